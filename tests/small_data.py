"""Small drawn data of several tests: reports, CXR trees, findings. No patient's image or report is among them."""

import json
import shutil

import numpy as np
import pandas as pd
from PIL import Image

from utils.findings import FINDINGS
from utils.folders import MANIFEST_FILE, SYNTHETIC_TREE
from utils.mimic_cxr import image_file, read_table, write_tree

REPORTS = [
    "FINDINGS: The lungs are clear. IMPRESSION: No acute process.",
    "FINDINGS: Large left pleural effusion. There is no pneumothorax. The heart is enlarged. IMPRESSION: Effusion.",
    "FINDINGS: Clear. IMPRESSION: Normal.",
    "IMPRESSION: Right lower lobe pneumonia.",
]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old man with cough.

 FINDINGS:

 The heart is   enlarged. No
 pneumothorax.

 IMPRESSION:

 Cardiomegaly.
"""
CANONICAL = "FINDINGS: The heart is enlarged. No pneumothorax. IMPRESSION: Cardiomegaly."


def columns(*pairs, rows):
    """(rows, 14) bool with the named columns set."""
    array = np.zeros((rows, len(FINDINGS)), dtype=bool)
    for finding, values in pairs:
        array[:, FINDINGS.index(finding)] = values
    return array


def make_tree(root, studies=8, images_a_study=1, reports=REPORTS, split="train", provenance=False):
    """A small CXR tree of random blobs with 32 x 32 pixels; returns its table."""
    rows = []
    for study in range(studies):
        for image in range(images_a_study):
            ids = {"dicom_id": f"{study:04x}-{image}", "subject_id": 10_000_000 + study, "study_id": 50_000_000 + study}
            path = image_file(root, ids["subject_id"], ids["study_id"], ids["dicom_id"])
            path.parent.mkdir(parents=True, exist_ok=True)
            blobs = np.random.default_rng([study, image]).integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(blobs).resize((32, 32)).save(path)
            report = reports[study % len(reports)] if reports else ""
            rows.append({**ids, "view": "PA", "split": split, "report": report, "image_path": str(path)})
    table = pd.DataFrame(rows)
    table[list(FINDINGS)] = np.zeros((len(table), len(FINDINGS)), dtype=np.int8)
    made = table[["dicom_id"]].assign(prompt="A chest X ray image") if provenance else None
    write_tree(root, table, made)
    if provenance:
        (root / MANIFEST_FILE).write_text(json.dumps({SYNTHETIC_TREE: {}}))
    return table


def generated_tree(root, real, rows, reports=True):
    """A tree with synthetic.csv whose images and reports are those of real rows, under ids of their own."""
    table = read_table(real)
    table = table[table["split"].isin(rows)].reset_index(drop=True)
    made = table.assign(
        dicom_id=[f"{number:08x}" for number in range(len(table))],
        subject_id=10_000_000 + np.arange(len(table)),
        study_id=50_000_000 + np.arange(len(table)),
        split="train",
        report=table["report"] if reports else "",
    )
    for old, row in zip(table["image_path"], made.itertuples()):
        path = image_file(root, row.subject_id, row.study_id, row.dicom_id)
        path.parent.mkdir(parents=True)
        shutil.copyfile(old, path)
    provenance = pd.DataFrame({"dicom_id": made["dicom_id"], "source": table["dicom_id"], "prompt": "", "seed": 1})
    write_tree(root, made, provenance.assign(reference_dicom_id=""))
    return made
