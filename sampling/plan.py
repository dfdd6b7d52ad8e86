"""Label vectors and prompts => requests => the plan: all images that were ever requested in a synthetic tree.

A *request* is one image to make: its label vector, prompt, seed and reference, and its place in the tree. The plan
(plan.csv) is written before the first image, and a request in it never changes. So several processes, or a second run,
agree on each request and make only the images that are missing. New requests get the numbers that follow.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.labeler import labels_of_prompt
from sampling.reference_pool import ReferencePool
from utils.csv_files import authors_codes, drop_blank, parse_csv, read_csv, write_csv
from utils.errors import InputError, say
from utils.findings import FINDINGS, check_prompt, from_physionet, from_prompt, parse_findings, prompts_of, with_prompts
from utils.mimic_cxr import image_files, read_table, split_rows
from utils.report_cleaning import clean_report
from utils.seeds import keyed_seed

FREE_TEXT = "text"  # the kind of a prompt in free text; the others are those of PROMPTS
NO_PATIENT = -1  # the subject_id of a label vector that does not come from a patient's image
FIRST_ID = 90_000_000  # of synthetic patients and studies, up to 99,999,999: MIMIC's are p10 to p19, s50 to s59
TREE_IDS, TREES = 10_000, 800  # a tree's numbers begin at one of 800 places, 10,000 apart; 2 million follow the last
PLAN_FILE = "plan.csv"
PROVENANCE = ("dicom_id", "subject_id", "source", "prompt", "prompt_kind", "seed", "reference_dicom_id", "checkpoint")
SETTINGS = (  # columns of synthetic.csv from the tree's manifest, the same for all images
    "condition", "text_guidance", "reference_guidance", "guidance_low", "guidance_high", "steps", "scheduler",
    "checkpoint_sha256", "student",
)  # fmt: skip
SYNTHETIC_COLUMNS = (*PROVENANCE, *SETTINGS)  # of synthetic.csv
_PLAN_COLUMNS = (*PROVENANCE, "view", *FINDINGS)


def real_rows(trained: dict, data_root: str, reports_root: str, with_prompts: bool) -> pd.DataFrame:
    """The rows of data_root, by default of the tree that a model was trained on, which its training did not leave out.

    trained: the constants of the training; with_prompts: whether the rows' own prompts are needed. For a model that was
    trained on impressions these come from the reports in reports_root, by default those of the training.
    """
    roots = data_root or trained["DATA_ROOT"], reports_root or trained["REPORTS_ROOT"]
    with_reports = with_prompts and trained["PROMPT"] != "findings"
    return read_table(*roots, views=trained["VIEWS"], hold_out=trained["HOLD_OUT"], with_reports=with_reports)


def label_vectors(
    table: pd.DataFrame | None, seed: int, trained_on: str = "findings", *,
    text: str = "", findings: str = "", labels_csv: str = "", split: str = "", limit: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """What to make images of, a row each: the 14 findings, `prompt`, `prompt_kind`, `source`, `subject_id` and `view`.

    text: free text; its label vector is `findings` where these are set, else it is read by rules. Else findings: one
    label vector, such as "cardiomegaly, not edema". Else labels_csv: a CSV with PhysioNet's 14 columns, with the
    authors' `label`, or with a column `prompt` of free texts; `dicom_id` and `subject_id` in it name the images that
    its rows are from. Else the rows of one split of the table. limit: so many of them, drawn at random (more keep those
    of fewer); 0: all. trained_on: the PROMPT of the model's training. InputError for other prompts, and without a row.
    """
    check_prompt(trained_on)
    if text and labels_csv:
        raise InputError(f"both TEXT and LABELS_CSV {labels_csv} are set: set only one of them")
    if text:
        vectors = free_requests(pd.Series([text]), ["TEXT"], trained_on).assign(source="text")
        if findings:
            vectors[[*FINDINGS]] = parse_findings(findings)
    elif findings:
        vectors = pd.DataFrame([parse_findings(findings)], columns=FINDINGS).assign(source="findings")
    elif labels_csv:
        vectors = _read_labels(Path(labels_csv), trained_on)
    else:
        vectors = with_prompts(table.iloc[split_rows(table, split)], trained_on)
        kept = [name for name in (*FINDINGS, "subject_id", "view", "prompt") if name in vectors]
        vectors = vectors[kept].assign(source=vectors.dicom_id, prompt_kind=trained_on)
    if trained_on != "findings" and "prompt" not in vectors:
        without = f"{labels_csv or 'FINDINGS'} gives no text, and CHECKPOINT was trained on impressions"
        raise InputError(f"{without}: write one in TEXT or in a column `prompt` of LABELS_CSV, or set a SPLIT")
    if vectors.empty:
        raise InputError(f"{labels_csv or 'the split'} has no rows, so there are no images to make")
    vectors = vectors.reset_index(drop=True)
    for column, default in (("subject_id", NO_PATIENT), ("view", "PA"), ("prompt_kind", "findings")):
        vectors[column] = vectors.get(column, default)
    vectors["prompt"] = prompts_of(vectors)
    if limit:
        vectors = vectors.iloc[np.random.default_rng(keyed_seed(seed, "limit")).permutation(len(vectors))[:limit]]
    return vectors


def _read_labels(path: Path, trained_on: str) -> pd.DataFrame:
    """The label vectors of LABELS_CSV; where it has prompts, the labels that it does not state are read in them."""
    frame = parse_csv(path)
    for name in ("prompt", "label"):
        if name in frame:
            frame = drop_blank(frame.assign(**{name: frame[name].fillna("").astype(str)}), [name], path)
    stated = [name for name in FINDINGS if name in frame]
    has_labels = "label" in frame or len(stated) == len(FINDINGS)
    if "prompt" in frame and has_labels and trained_on == "findings":
        say(f"{path}: its column `prompt` is not used, because CHECKPOINT was trained on prompts of findings")
        frame = frame.drop(columns="prompt")
    if "prompt" in frame:
        places = [f"{path}, data row {row + 1}" for row in frame.index]
        vectors = free_requests(frame["prompt"], places, trained_on)
    elif has_labels:
        vectors = pd.DataFrame(0, columns=FINDINGS, index=frame.index)
    else:
        missing = sorted(set(FINDINGS) - set(frame))
        raise InputError(f"{path} needs a column `prompt`, or `label`, or PhysioNet's 14, of which it has no {missing}")
    if "label" in frame:
        vectors[[*FINDINGS]] = authors_codes(frame["label"], path).to_numpy()
    elif stated:
        vectors[stated] = from_physionet(frame.reindex(columns=FINDINGS), path)[stated]
    if {"dicom_id", "subject_id"} <= {*frame}:  # of real images, whose patients give no references
        return vectors.assign(source=frame["dicom_id"].astype(str), subject_id=frame["subject_id"])
    return vectors.assign(source=[f"{path.name} {row}" for row in frame.index])


def free_requests(texts: pd.Series, places: list[str], trained_on: str) -> pd.DataFrame:
    """Prompts in free text => a DataFrame with the 14 findings, `prompt` and `prompt_kind`, a row a text.

    places: where each text stands, for messages, such as "labels.csv, data row 3"; trained_on: one of PROMPTS.
    De-identification marks are removed, as from a training's impressions. InputError for a text without a word, and for
    free text where the model was trained on prompts of findings.
    """
    cleaned = texts.map(clean_report)
    for place, original, text in zip(places, texts, cleaned):
        if not text:
            raise InputError(f"{place}: {original[:60]!r} has no word, so no image can be made of it")
        if trained_on == "findings" and from_prompt(text) is None:
            free = f"{text[:60]!r} is free text, and CHECKPOINT was trained on prompts of findings"
            way_out = "set FINDINGS instead, or take a checkpoint that was trained with PROMPT impression"
            raise InputError(f"{place}: {free}: {way_out}")
    if changed := (cleaned != texts.str.split().str.join(" ")).sum():
        say(f"prompts: de-identification marks removed from {changed} of {len(texts)}")
    codes = pd.DataFrame([labels_of_prompt(text) for text in cleaned], columns=FINDINGS, index=texts.index)
    return codes.assign(prompt=cleaned, prompt_kind="findings" if trained_on == "findings" else FREE_TEXT)


def make_requests(vectors: pd.DataFrame, copies: int, seed: int, checkpoint_sha256: str) -> pd.DataFrame:
    """Label vectors => `copies` rows of each, with their own seeds and dicom_ids; more copies keep those of fewer."""
    requests = vectors.loc[vectors.index.repeat(copies)].reset_index(drop=True)
    keys = list(zip(requests.source, requests.prompt, np.tile(np.arange(copies), len(vectors))))
    requests["seed"] = [keyed_seed(seed, *map(str, key)) % 2**31 for key in keys]
    requests["dicom_id"] = [new_dicom_id(*key, seed, checkpoint_sha256) for key in keys]
    assert requests.dicom_id.is_unique
    return requests


def plan_requests(
    requests: pd.DataFrame, pool: ReferencePool | None, settings: dict, checkpoint: str, output_root: str | Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests => (the same, the plan): each as a row of the synthetic tree and of its synthetic.csv.

    requests: of `make_requests`. pool: where references are drawn from, None for images without. settings: those of the
    tree's manifest. The plan holds these requests and those of the tree's plan.csv; InputError for a damaged one.
    """
    path = Path(output_root) / PLAN_FILE
    if path.exists():
        texts = [name for name in (*PROVENANCE, "view") if name not in ("subject_id", "seed")]
        known = read_csv(path, _PLAN_COLUMNS, texts=texts)[[*_PLAN_COLUMNS]]
    else:
        known = pd.DataFrame(columns=[*_PLAN_COLUMNS]).astype({"subject_id": "int64", "seed": "int64"})
    new = requests[~requests.dicom_id.isin(known.dicom_id)]
    # keyed by the tree's settings, so that two trees to be merged rarely share a number
    place = keyed_seed("first id", *new.dicom_id[:1], *map(str, settings.items())) % TREES
    first_id = known.subject_id.max() + 1 if len(known) else FIRST_ID + TREE_IDS * place
    new = new.assign(
        reference_dicom_id=pool.draw(new) if pool and len(new) else "",  # avoids the patient of the label vector
        subject_id=first_id + np.arange(len(new)),  # from here on each image is a patient of its own
        checkpoint=checkpoint,
    )
    plan = pd.concat([known, new[[*_PLAN_COLUMNS]]], ignore_index=True).astype(dict.fromkeys(FINDINGS, "int8"))
    stated = {name: settings.get(name, "") for name in SETTINGS}
    plan = plan.assign(study_id=plan.subject_id, split="train", report="", **stated)
    plan = plan.assign(image_path=image_files(Path(output_root), plan))
    return plan.set_index("dicom_id").loc[requests.dicom_id].reset_index(), plan


def new_dicom_id(*key) -> str:
    """An id in MIMIC-CXR's form: five groups of eight hexadecimal digits."""
    return "-".join(f"{keyed_seed('dicom_id', number, *map(str, key)) % 16**8:08x}" for number in range(5))


def save_plan(output_root: str | Path, plan: pd.DataFrame):
    """Writes plan.csv, in one step."""
    write_csv(Path(output_root) / PLAN_FILE, plan[[*_PLAN_COLUMNS]])


def plan_digest(output_root: str | Path, plan: pd.DataFrame) -> str:
    """A hash of a plan and of the plan.csv on disk: equal in all processes of a launch that share OUTPUT_ROOT."""
    rows = pd.util.hash_pandas_object(plan[["dicom_id", "subject_id", "seed", "reference_dicom_id"]], index=False)
    path = Path(output_root) / PLAN_FILE
    written = path.read_bytes() if path.exists() else b""
    return hashlib.sha256(rows.to_numpy().tobytes() + written).hexdigest()
