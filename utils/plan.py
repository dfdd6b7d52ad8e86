"""Label vectors => requests: the list of images to make, and the manifest of the tree that they go into.

A *request* is one image to make: its label vector, prompt, seed, reference and its place in the tree. The whole list is
a function of the constants, so that several processes, or a second run, agree on it and make only what is missing.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import InputError
from utils.findings import FINDINGS, check_labels, from_physionet, parse_findings, prompts_of
from utils.mimic_cxr import PROVENANCE_FILE, image_file, split_rows
from utils.seeds import keyed_seed

NOBODY = -1  # the subject_id of a label vector that is no patient's
CONDITIONS = ("both", "text", "reference")  # what prompts an image
FIRST_SUBJECT, FIRST_STUDY = 10_000_000, 50_000_000  # synthetic ids count up from here
PROVENANCE = ("dicom_id", "subject_id", "source", "prompt", "seed", "reference_dicom_id", "checkpoint")
SETTINGS = (  # columns of synthetic.csv that one tree has only one value of
    "condition", "text_guidance", "reference_guidance", "steps", "scheduler", "checkpoint_sha256"
)  # fmt: skip


def label_vectors(findings, labels_csv, table, split, limit, seed):
    """What to make images of: a DataFrame with the 14 findings, `source` (a text), `subject_id`, `view`.

    findings: plain text such as "cardiomegaly, not edema"; else labels_csv: a CSV with PhysioNet's 14 columns, or with
    the authors' `label` column; else the rows of one split of the table. limit: so many of them, drawn at random
    (a larger limit keeps them); 0: all.
    """
    if findings:
        vectors = pd.DataFrame([parse_findings(findings)], columns=FINDINGS).assign(source="findings")
    elif labels_csv:
        vectors = _read_labels(Path(labels_csv))
    else:
        vectors = table.iloc[split_rows(table, split)]
        vectors = vectors[[*FINDINGS, "subject_id", "view"]].assign(source=vectors.dicom_id)
    vectors = vectors.reset_index(drop=True)
    for column, default in (("subject_id", NOBODY), ("view", "PA")):
        vectors[column] = vectors.get(column, default)
    if limit:
        vectors = vectors.iloc[np.random.default_rng(keyed_seed(seed, "limit")).permutation(len(vectors))[:limit]]
    return vectors


def _read_labels(path):
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read LABELS_CSV {path}: {error}") from error
    if "label" in frame:
        try:
            vectors = pd.DataFrame([check_labels(json.loads(label)) for label in frame.label], columns=FINDINGS)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: a `label` is no list of 14 codes: {error}") from error
    elif set(FINDINGS) <= set(frame):
        vectors = from_physionet(frame, path)
    else:
        missing = sorted(set(FINDINGS) - set(frame))
        raise InputError(f"{path} has neither a column `label` nor PhysioNet's 14 columns: {missing} are missing")
    return vectors.assign(source=[f"{path.name} {row}" for row in range(len(vectors))])


def plan_requests(vectors, images_per_label, pool, condition, seed, settings, output_root):
    """The list of images to make, a DataFrame: a row of the synthetic tree and of its synthetic.csv each.

    pool: ReferencePool (None where condition is "text"). settings: the values of the other columns of synthetic.csv; a
    tree made with others is refused, so that one tree is one experiment.
    """
    if condition not in CONDITIONS:
        raise InputError(f"CONDITION {condition!r} is none of {CONDITIONS}")
    made = _already_made(output_root, {"condition": condition, **settings})
    copies = np.tile(np.arange(images_per_label), len(vectors))
    requests = vectors.loc[vectors.index.repeat(images_per_label)].reset_index(drop=True)
    requests["prompt"] = prompts_of(requests)
    keys = list(zip(requests.source, requests.prompt, copies))
    requests["seed"] = [keyed_seed(seed, *map(str, key)) % 2**31 for key in keys]
    requests["dicom_id"] = [_dicom_id(*key, seed, settings["checkpoint_sha256"]) for key in keys]
    requests["condition"] = condition
    requests["reference_dicom_id"] = "" if condition == "text" else pool.draw(requests)

    # each image is a patient of its own; those made before keep their numbers, new ones go on counting
    numbers = (made.subject_id - FIRST_SUBJECT).to_dict()
    following = max(numbers.values(), default=-1) + 1
    for dicom_id in requests.dicom_id:
        if dicom_id not in numbers:
            numbers[dicom_id] = following
            following += 1
    number = requests.dicom_id.map(numbers)
    requests["subject_id"], requests["study_id"] = FIRST_SUBJECT + number, FIRST_STUDY + number
    requests["split"], requests["report"] = "train", ""
    requests["image_path"] = [
        str(image_file(output_root, *ids)) for ids in zip(requests.subject_id, requests.study_id, requests.dicom_id)
    ]
    return requests.assign(**settings)


def _already_made(output_root, settings):
    """The rows of the tree's synthetic.csv with their subject_id, by dicom_id; InputError if made otherwise."""
    path = Path(output_root) / PROVENANCE_FILE
    if not path.exists():
        return pd.DataFrame({"subject_id": pd.Series(dtype=int)})
    made = pd.read_csv(path, keep_default_na=False, index_col="dicom_id")
    for name in SETTINGS:
        found = made[name].unique()
        if len(found) > 1 or str(found[0]) != str(settings[name]):
            raise InputError(
                f"{output_root} holds images made with {name} = {found[0]}, this run has {settings[name]}; "
                "set OUTPUT_ROOT to another folder"
            )
    return made


def _dicom_id(*key):
    """An id in MIMIC-CXR's form: five groups of eight hexadecimal digits."""
    digits = "".join(f"{keyed_seed('dicom_id', part, *map(str, key)) % 16**8:08x}" for part in range(5))
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))
