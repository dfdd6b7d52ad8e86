"""The 14 CheXpert findings, their coding, label vector <=> prompt, and impressions as prompts (docs/free-text.md).

A *label vector* is 14 integer codes in the order of FINDINGS, in the coding of the CXR-IRGen authors:

    1 present    -1 absent    -2 uncertain    0 not mentioned

PhysioNet's files (mimic-cxr-2.x-chexpert.csv) code the same as 1.0 / 0.0 / -1.0 / blank. The two differ in the meaning
of -1; only `from_physionet` and `to_physionet` convert between them.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import InputError, as_input_error, say
from utils.report_cleaning import clean_report
from utils.report_text import report_sections

FINDINGS = (  # the column order of mimic-cxr-2.0.0-chexpert.csv
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1, -1, -2, 0
CODE_NAMES = {PRESENT: "present", ABSENT: "absent", UNCERTAIN: "uncertain", NOT_MENTIONED: "not mentioned"}

PROMPTS = ("findings", "impression")  # what a vision module may be trained on
PROMPT_START = "A chest X ray image"
# (code, words before its findings), in the order of a prompt
PROMPT_PARTS = ((PRESENT, " with "), (ABSENT, ", without "), (UNCERTAIN, ", and with uncertain "))

_INDEX = {name.lower(): index for index, name in enumerate(FINDINGS)}
_WORDS_OF_CODES = {"not": ABSENT, "no": ABSENT, "without": ABSENT, "uncertain": UNCERTAIN, "possible": UNCERTAIN}
_PHYSIONET_TO_CODE = {1.0: PRESENT, 0.0: ABSENT, -1.0: UNCERTAIN}
_CODING = "to say which it is, add a column coding with physionet, or authors, in every row"
_CODE_TO_PHYSIONET = {PRESENT: 1.0, ABSENT: 0.0, UNCERTAIN: -1.0, NOT_MENTIONED: np.nan}


def to_prompt(labels: Sequence[int] | np.ndarray) -> str:
    """The prompt for a label vector.

    labels: 14 codes (authors' coding). E.g. edema present and pneumothorax absent give
    "A chest X ray image with edema, without pneumothorax"; 14 zeros give "A chest X ray image".
    """
    labels = check_labels(labels)
    prompt = PROMPT_START
    for code, words in PROMPT_PARTS:
        if names := [name.lower() for name, label in zip(FINDINGS, labels) if label == code]:
            prompt += words + " and ".join(names)
    return prompt


def prompts_of(table: pd.DataFrame) -> list[str]:
    """The prompt of each row of a table: its column `prompt` if there is one, else the prompt for its labels."""
    if "prompt" in table:
        return table["prompt"].tolist()
    return [*map(cache(to_prompt), table[list(FINDINGS)].itertuples(index=False, name=None))]


def from_prompt(prompt: str) -> np.ndarray | None:
    """The label vector, (14,) int8, for which `to_prompt` returns this prompt; None if there is none."""
    labels = np.zeros(len(FINDINGS), dtype=np.int8)
    rest = prompt.strip()
    for code, words in reversed(PROMPT_PARTS):
        rest, found, names = rest.partition(words)
        for name in names.split(" and ") if found else ():
            if name not in _INDEX:
                return None
            labels[_INDEX[name]] = code
    return labels if to_prompt(labels) == prompt.strip() else None


def finding_index(name: str) -> int:
    """The index of a finding in FINDINGS, in upper or lower case; InputError for an unknown finding."""
    with as_input_error(lambda _: f"unknown finding {name!r}; choose from {', '.join(FINDINGS)}", KeyError):
        return _INDEX[name.strip().lower()]


def parse_findings(text: str) -> np.ndarray:
    """Findings in plain words, comma-separated => a label vector, (14,) int8.

    E.g. "cardiomegaly, edema, not pneumothorax, uncertain pneumonia". "not", "no" and "without" mean absent,
    "uncertain" and "possible" mean uncertain. InputError for an unknown finding, or one that is named twice.
    """
    labels = np.zeros(len(FINDINGS), dtype=np.int8)  # none mentioned
    for part in filter(None, (part.strip().lower() for part in text.split(","))):
        first, _, rest = part.partition(" ")
        if first in _WORDS_OF_CODES and part != "no finding":  # that is the name of a finding
            code, index = _WORDS_OF_CODES[first], finding_index(rest)
        else:
            code, index = PRESENT, finding_index(part)
        if labels[index]:
            raise InputError(f"{FINDINGS[index]} is named twice in {text!r}")
        labels[index] = code
    return labels


def with_code(labels: np.ndarray, finding: int, code: int) -> np.ndarray:
    """The label vector (14,) with another code of a finding, given by its index; No Finding follows.

    It is present where nothing is uncertain, and nothing else present but support devices, which do not change it.
    """
    changed, devices = labels.copy(), _INDEX["support devices"]
    changed[finding] = code
    others = ~np.isin(range(len(FINDINGS)), (_INDEX["no finding"], devices))
    ill = (changed == UNCERTAIN) | (changed == PRESENT) & others
    if finding != devices:
        changed[_INDEX["no finding"]] = NOT_MENTIONED if ill.any() else PRESENT
    return changed


def check_labels(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """A label vector as (14,) int8; InputError if it is not 14 codes out of 1, -1, -2 and 0."""
    labels = np.asarray(labels)
    if labels.shape != (len(FINDINGS),) or not np.isin(labels, list(_CODE_TO_PHYSIONET)).all():
        raise InputError(f"a label vector is {len(FINDINGS)} codes out of 1, -1, -2 and 0, not {labels.tolist()}")
    return labels.astype(np.int8)


def from_physionet(frame: pd.DataFrame, where: str | Path, coding: dict = _PHYSIONET_TO_CODE) -> pd.DataFrame:
    """PhysioNet's columns (1.0 / 0.0 / -1.0 / blank) => codes, an int8 DataFrame with the columns of FINDINGS.

    frame: 14 columns, numbers or text; where: its file, for the message; coding: of its numbers, if not PhysioNet's.
    """
    labels = frame[list(FINDINGS)].replace(r"^\s*$", np.nan, regex=True)
    values = labels.apply(pd.to_numeric, errors="coerce")
    wrong = labels.notna() & ~values.isin(list(coding))
    if wrong.any(axis=None):
        row, column = np.argwhere(wrong.to_numpy())[0]
        cell = f"data row {row + 1}, column {FINDINGS[column]!r}: '{labels.iat[row, column]}'"
        known = "PhysioNet's labels are 1.0 (present), 0.0 (absent), -1.0 (uncertain) and blank (not mentioned)"
        raise InputError(f"{where}, {cell} is not a label; {known}; {_CODING}")
    return values.replace(coding).fillna(NOT_MENTIONED).astype(np.int8)


def codes_of_tree(frame: pd.DataFrame, where: str | Path) -> pd.DataFrame:
    """The labels of a tree => codes; frame: as `from_physionet` takes it, with a column coding ("" where not stated).

    InputError where nothing is stated and both codings are possible: every cell is filled, and some with -1.
    """
    stated = {*frame["coding"].str.strip().str.lower()}
    if stated == {"authors"}:
        return from_physionet(frame, where, {code: code for code in _CODE_TO_PHYSIONET})
    if not stated <= {"", "physionet"}:
        raise InputError(f"{where}: the column coding has {', '.join(sorted(stated))}; {_CODING}")
    numbers = frame[list(FINDINGS)].apply(pd.to_numeric, errors="coerce")
    if stated == {""} and numbers.isin([1, 0, -1]).all(axis=None) and (numbers == -1).any(axis=None):
        to_physionet = "-1 is uncertain to PhysioNet, which leaves blank what is not mentioned"
        to_authors = "absent to the CXR-IRGen authors, whose 0 is not mentioned"
        raise InputError(f"{where} has 1, 0 or -1 in every cell: {to_physionet}, and {to_authors}; {_CODING}")
    return from_physionet(frame, where)


def to_physionet(codes: pd.DataFrame) -> pd.DataFrame:
    """Codes, a DataFrame with the columns of FINDINGS => PhysioNet's 1.0 / 0.0 / -1.0 / NaN (written as blank)."""
    return codes[list(FINDINGS)].astype(int).replace(_CODE_TO_PHYSIONET).astype(float)


def with_prompts(table: pd.DataFrame, prompt: str) -> pd.DataFrame:
    """The rows of a table that can be trained on with this PROMPT; for "impression" with a column `prompt`.

    Prints how many rows were dropped, and why. InputError if no row has an impression, or for an unknown PROMPT.
    """
    check_prompt(prompt)
    if prompt == "findings":
        return table
    raw = table["report"].map({report: report_sections(report)[1] for report in table["report"].unique()})
    impressions = raw.map({text: clean_report(text) for text in raw.unique()})
    no_report, no_impression, kept = table["report"] == "", raw == "", impressions != ""
    counts = f"{no_report.sum()} without a report, {(no_impression & ~no_report).sum()} whose report has no impression"
    dropped = f"dropped {counts} and {(~kept & ~no_impression).sum()} of which de-identification left no sentence"
    if not kept.any():
        way_out = "set REPORTS_ROOT to where the .txt files are, or train with PROMPT findings"
        raise InputError(f"not one of {len(table)} images has an impression for a prompt ({dropped}): {way_out}")
    say(f"impressions: {kept.sum()} of {len(table)} images have one; {dropped}")
    return table[kept].assign(prompt=impressions[kept]).reset_index(drop=True)


def check_prompt(prompt: str) -> None:
    """InputError for an unknown PROMPT, of a script or of a checkpoint."""
    if prompt not in PROMPTS:
        raise InputError(f"PROMPT {prompt!r} is none of {', '.join(PROMPTS)}")
