"""Free text as a prompt: the impression of a report, or whatever a radiologist would write, and its label vector.

findings     the sentence of a label vector (`utils.findings.to_prompt`): the paper's
impression   the impression of a row's own report, without de-identification marks; a row that has none is dropped
text         anybody's words, to a model that was trained on impressions

A label vector goes with each of them: references are chosen by it, selector and evaluation judge by it. A free text has
the codes that the rules of utils/labeler.py read in it, unless its codes are given.
"""

import pandas as pd

from utils.errors import InputError, say
from utils.findings import FINDINGS, from_prompt
from utils.labeler import label_report
from utils.report_text import clean_report, report_sections

PROMPTS = ("findings", "impression")  # what a vision module may be trained on
TEXT = "text"  # the kind of a prompt that somebody wrote
_SHOWN = 60  # characters of a text in a message


def with_prompts(table, prompt):
    """The rows of a table that a training with this PROMPT has, with a column `prompt` for "impression".

    InputError where no row has an impression, and for a PROMPT that is none. Prints what was dropped, and why.
    """
    check_prompt(prompt)
    if prompt == "findings":
        return table
    raw = table["report"].map({report: report_sections(report)[1] for report in table["report"].unique()})
    impressions = raw.map({text: clean_report(text) for text in raw.unique()})
    silent, lacking, kept = table["report"] == "", raw == "", impressions != ""
    dropped = (
        f"dropped {silent.sum()} without a report, {(lacking & ~silent).sum()} whose report has no impression and "
        f"{(~kept & ~lacking).sum()} of which de-identification left no sentence"
    )
    if not kept.any():
        raise InputError(
            f"not one of {len(table)} images has an impression for a prompt ({dropped}): set REPORTS_ROOT to where the "
            ".txt files are, or train with PROMPT findings"
        )
    say(f"impressions: {kept.sum()} of {len(table)} images have one; {dropped}")
    return table[kept].assign(prompt=impressions[kept]).reset_index(drop=True)


def impression_of(report):
    """The impression of a report, without de-identification marks; "" where it has none, or none is left."""
    return clean_report(report_sections(report)[1])


def check_prompt(prompt):
    """InputError for a PROMPT, of a script or of a checkpoint, that is none of PROMPTS."""
    if prompt not in PROMPTS:
        raise InputError(f"PROMPT {prompt!r} is none of {', '.join(PROMPTS)}")


def labels_of_prompt(text):
    """The label vector that a prompt asks for, (14,) int8: of a sentence of findings its own, else what the rules read."""
    labels = _labels_of_sentence(text)
    return label_report(text) if labels is None else labels


def _labels_of_sentence(text):
    """The label vector whose sentence a text is, None where it is no such sentence."""
    try:
        return from_prompt(text)
    except InputError:
        return None


def free_requests(texts, where, trained_on):
    """Prompts in somebody's words => a DataFrame with the 14 findings, `prompt` and `prompt_kind`, a row a text.

    texts: a Series; where: what each stands in, such as "LABELS_CSV labels.csv, data row", for the message; trained_on:
    one of PROMPTS. Marks are removed as from a training's impressions. InputError for a text without a word, and for one
    that the model cannot have learned to read: a free text where it was trained on findings.
    """
    check_prompt(trained_on)
    cleaned = texts.map(clean_report)
    for row, text in cleaned.items():
        if not text:
            raise InputError(f"{where(row)}: {shorten(texts[row])!r} has no word to make an image of")
        if trained_on == "findings" and _labels_of_sentence(text) is None:
            raise InputError(
                f"{where(row)}: {shorten(text)!r} is free text, and CHECKPOINT was trained on prompts of findings: say it "
                "with FINDINGS, or take a checkpoint that was trained with PROMPT impression"
            )
    changed = (cleaned != texts.str.split().str.join(" ")).sum()
    if changed:
        say(f"prompts: de-identification marks removed from {changed} of {len(texts)}")
    codes = pd.DataFrame([labels_of_prompt(text) for text in cleaned], columns=FINDINGS, index=texts.index)
    return codes.assign(prompt=cleaned, prompt_kind="findings" if trained_on == "findings" else TEXT)


def shorten(text):
    """A text as a message shows it."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + " …"
