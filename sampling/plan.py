"""Label vectors and their prompts => requests => the plan: all images that were ever asked for in a synthetic tree.

A *request* is one image to make: its label vector, prompt, seed, reference and its place in the tree. The plan is written
(plan.csv) before the first image. A request stays as it was planned, its number and its reference with it, so that several
processes, or a second run, agree on it and make only what is missing; other requests get the numbers that follow.
"""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.labeler import labels_of_prompt, labels_of_sentence
from utils.csv_files import authors_codes, drop_blank, read_csv
from utils.errors import InputError, reason, replacing, say, writing
from utils.findings import FINDINGS, from_physionet, parse_findings, prompts_of
from utils.mimic_cxr import image_files, read_table, split_rows
from utils.prompt_text import check_prompt, shorten, with_prompts
from utils.report_text import clean_report
from utils.seeds import keyed_seed, numbered_seeds

TEXT = "text"  # the kind of a prompt that somebody wrote
NOBODY = -1  # the subject_id of a label vector that is no patient's
CONDITIONS = ("both", "text", "reference")  # what prompts an image
FIRST_ID, LAST_ID = 90_000_000, 99_999_999  # of synthetic patients and studies: MIMIC's are p10 to p19, s50 to s59
TREE_IDS, TREES = 10_000, 800  # a tree's numbers begin at one of 800 places, 10,000 apart; above the last are 2 million
PLAN_FILE = "plan.csv"
PROVENANCE = ("dicom_id", "subject_id", "source", "prompt", "prompt_kind", "seed", "reference_dicom_id", "checkpoint")
SETTINGS = (  # further columns of synthetic.csv, out of the tree's manifest: they are the same for all of its images
    "condition", "text_guidance", "reference_guidance", "guidance_low", "guidance_high", "steps", "scheduler",
    "start", "checkpoint_sha256", "student",
)  # fmt: skip
SELECTED = (
    "request_seed",
    "candidates",
    "candidate",
    "score",
    "agrees",
)  # of synthetic.csv, too: evaluation/selection.py's
_PLAN_COLUMNS = (*PROVENANCE, "view", *FINDINGS)


def real_rows(trained, data_root, reports_root, with_prompts):
    """The table of the tree that a model was trained on, or of data_root, with what its training left out left out.

    trained: the constants of its training; with_prompts: whether the rows' own prompts are asked for, and so, where it was
    trained on impressions, their reports, of the training's or of reports_root.
    """
    return read_table(
        data_root or trained["DATA_ROOT"],
        reports_root or trained["REPORTS_ROOT"],
        views=trained["VIEWS"],
        hold_out=trained["HOLD_OUT"],
        with_reports=with_prompts and trained["PROMPT"] != "findings",
    )


def label_vectors(findings, labels_csv, table, split, limit, seed, text="", prompt="findings"):
    """What to make images of: a DataFrame with the 14 findings, `prompt`, `prompt_kind`, `source` (texts), `subject_id`, `view`.

    text: a free text, whose label vector is findings where they are given, else read by rules; else findings: plain text
    such as "cardiomegaly, not edema"; else labels_csv: a CSV with PhysioNet's 14 columns, or with the authors' `label`
    column, or with a column `prompt` of free texts beside or in place of them; else the rows of one split of the table.
    limit: so many of them, drawn at random (a larger limit keeps them); 0: all. prompt: what the model was trained on;
    InputError for requests in other words than those.
    """
    check_prompt(prompt)
    if text and labels_csv:
        raise InputError(f"TEXT and LABELS_CSV {labels_csv} both say what to make images of: set one of them")
    if text:
        vectors = free_requests(pd.Series([text]), lambda _: "TEXT", prompt).assign(source="text")
        if findings:
            vectors[[*FINDINGS]] = parse_findings(findings)
    elif findings:
        _check_words(prompt, "FINDINGS gives no text")
        vectors = pd.DataFrame([parse_findings(findings)], columns=FINDINGS).assign(source="findings")
    elif labels_csv:
        vectors = _read_labels(Path(labels_csv), prompt)
    else:
        vectors = with_prompts(table.iloc[split_rows(table, split)], prompt)
        kept = [name for name in (*FINDINGS, "subject_id", "view", "prompt") if name in vectors]
        vectors = vectors[kept].assign(source=vectors.dicom_id, prompt_kind=prompt)
    if vectors.empty:
        raise InputError(f"{labels_csv or 'the split'} has no rows, so there is nothing to make images of")
    vectors = vectors.reset_index(drop=True)
    for column, default in (("subject_id", NOBODY), ("view", "PA"), ("prompt_kind", "findings")):
        vectors[column] = vectors.get(column, default)
    vectors["prompt"] = prompts_of(vectors)
    if limit:
        vectors = vectors.iloc[np.random.default_rng(keyed_seed(seed, "limit")).permutation(len(vectors))[:limit]]
    return vectors


def _check_words(prompt, what):
    """InputError for requests without words, which a model that was trained on impressions has not learned to read."""
    if prompt != "findings":
        raise InputError(
            f"{what}, and CHECKPOINT was trained on impressions: ask in the words of one, with TEXT or with a column "
            "`prompt` of LABELS_CSV, or for a SPLIT"
        )


def _read_labels(path, prompt):
    """The requests of LABELS_CSV. Labels that it states hold, and those of a column that it has not are read in `prompt`."""
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read LABELS_CSV {path}: {reason(error)}") from error
    for name in ("prompt", "label"):
        if name in frame:
            frame = drop_blank(frame.assign(**{name: frame[name].fillna("").astype(str)}), [name], path)
    stated = [name for name in FINDINGS if name in frame]
    labelled = "label" in frame or len(stated) == len(FINDINGS)
    if "prompt" in frame and labelled and prompt == "findings":
        say(
            f"{path}: its column `prompt` is not used, for CHECKPOINT was trained on prompts of findings: its labels are"
        )
        frame = frame.drop(columns="prompt")
    if "prompt" in frame:
        vectors = free_requests(frame["prompt"], lambda row: f"{path}, data row {row + 1}", prompt)
    elif labelled:
        _check_words(prompt, f"{path} has no column `prompt`")
        vectors = pd.DataFrame(0, columns=FINDINGS, index=frame.index)
    else:
        missing = sorted(set(FINDINGS) - set(frame))
        raise InputError(
            f"{path} has neither a column `prompt`, nor `label`, nor PhysioNet's 14 columns: {missing} are missing"
        )
    if "label" in frame:
        vectors[[*FINDINGS]] = authors_codes(frame["label"], path).to_numpy()
    elif stated:
        vectors[stated] = from_physionet(frame.reindex(columns=FINDINGS), path)[stated]
    return vectors.assign(source=[f"{path.name} {row}" for row in frame.index])


def plan_requests(vectors, copies, pool, settings, checkpoint, seed, output_root):
    """=> (requests, plan), DataFrames with a row an image: a row of the synthetic tree and of its synthetic.csv each.

    copies: images of each label vector, one number for all or one each; a larger one keeps those of a smaller one.
    pool: ReferencePool, None where no reference is asked for. settings: the tree's, see `utils.manifest`; checkpoint: a
    text. The plan holds the requests, and whatever else was asked for in this tree before.
    """
    counts = np.broadcast_to(copies, len(vectors))
    numbers = np.concatenate([np.arange(count) for count in counts])
    requests = vectors.loc[vectors.index.repeat(counts)].reset_index(drop=True)
    keys = list(zip(requests.source, requests.prompt, numbers))
    requests["seed"] = [keyed_seed(seed, *map(str, key)) % 2**31 for key in keys]
    requests["dicom_id"] = [_dicom_id(*key, seed, settings["checkpoint_sha256"]) for key in keys]
    assert requests.dicom_id.is_unique

    known = read_plan(output_root)
    new = requests[~requests.dicom_id.isin(known.dicom_id)]
    new = new.assign(
        # the patient to avoid is the vector's own; from here on each image is a patient of its own
        reference_dicom_id=pool.draw(new) if pool and len(new) else "",
        subject_id=(known.subject_id.max() + 1 if len(known) else _first_id(new, settings)) + np.arange(len(new)),
        checkpoint=checkpoint,
    )
    plan = pd.concat([known, new[[*_PLAN_COLUMNS]]], ignore_index=True).astype(dict.fromkeys(FINDINGS, "int8"))
    if plan.subject_id.max() > LAST_ID:
        raise InputError(
            f"{output_root} would hold more than {LAST_ID - plan.subject_id.min() + 1:,} images, for which there are no "
            "numbers: name another OUTPUT_ROOT"
        )
    plan = _as_rows(plan, settings, output_root)
    return plan.set_index("dicom_id").loc[requests.dicom_id].reset_index(), plan


def _first_id(new, settings):
    """Where the numbers of a new tree begin, keyed by what it is, so that two trees that are merged rarely share one."""
    return FIRST_ID + TREE_IDS * (keyed_seed("first id", *new.dicom_id[:1], *map(str, settings.items())) % TREES)


def read_plan(output_root):
    """The plan of a synthetic tree without what follows from it, empty where there is none; InputError for a damaged one."""
    path = Path(output_root) / PLAN_FILE
    if not path.exists():
        return pd.DataFrame(columns=[*_PLAN_COLUMNS]).astype({"subject_id": "int64", "seed": "int64"})
    texts = [name for name in (*PROVENANCE, "view") if name not in ("subject_id", "seed", "prompt_kind")]
    columns = [name for name in _PLAN_COLUMNS if name != "prompt_kind"]
    plan = read_csv(path, columns, texts=texts, optional=["prompt_kind"])  # older plans are all of findings
    plan["prompt_kind"] = plan["prompt_kind"].replace("", "findings")
    in_range = plan.subject_id.between(FIRST_ID, LAST_ID)
    codes = plan[[*FINDINGS]].isin([1, -1, -2, 0]).all(axis=1)
    for name, right in (
        ("dicom_id", ~plan.duplicated("dicom_id")),
        ("subject_id", in_range & ~plan.duplicated("subject_id")),
        ("label", codes),
        ("seed", pd.to_numeric(plan.seed, errors="coerce").between(0, 2**31) & (plan.seed.dtype.kind in "iu")),
    ):
        if not right.all():
            row = right.to_numpy().argmin()
            raise InputError(f"{path} is damaged: data row {row + 1} has a wrong {name}; name another OUTPUT_ROOT")
    return plan[[*_PLAN_COLUMNS]]


def save_plan(output_root, plan):
    """Writes plan.csv, in one step."""
    with writing(PLAN_FILE, output_root), replacing(Path(output_root) / PLAN_FILE) as temporary:
        plan[[*_PLAN_COLUMNS]].to_csv(temporary, index=False, lineterminator="\n")


def plan_digest(output_root, plan):
    """What tells two processes apart that have another plan, or see another plan.csv in their OUTPUT_ROOT."""
    rows = pd.util.hash_pandas_object(plan[["dicom_id", "subject_id", "seed", "reference_dicom_id"]], index=False)
    path = Path(output_root) / PLAN_FILE
    written = path.read_bytes() if path.exists() else b""
    return hashlib.sha256(rows.to_numpy().tobytes() + written).hexdigest()


def _as_rows(plan, settings, output_root):
    """A plan with the columns that follow from it: those of a tree's table, and the settings."""
    plan = plan.assign(
        study_id=plan.subject_id, split="train", report="", **{name: settings.get(name, "") for name in SETTINGS}
    )
    return plan.assign(image_path=image_files(Path(output_root), plan))


def _dicom_id(*key):
    """An id in MIMIC-CXR's form: five groups of eight hexadecimal digits."""
    seeds = numbered_seeds("dicom_id", 5, *map(str, key))
    digits = "".join(f"{seed % 16**8:08x}" for seed in seeds)
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


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
        if trained_on == "findings" and labels_of_sentence(text) is None:
            raise InputError(
                f"{where(row)}: {shorten(text)!r} is free text, and CHECKPOINT was trained on prompts of findings: say it "
                "with FINDINGS, or take a checkpoint that was trained with PROMPT impression"
            )
    changed = (cleaned != texts.str.split().str.join(" ")).sum()
    if changed:
        say(f"prompts: de-identification marks removed from {changed} of {len(texts)}")
    codes = pd.DataFrame([labels_of_prompt(text) for text in cleaned], columns=FINDINGS, index=texts.index)
    return codes.assign(prompt=cleaned, prompt_kind="findings" if trained_on == "findings" else TEXT)
