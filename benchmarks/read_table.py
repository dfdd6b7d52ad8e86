"""How long the table of a tree of MIMIC-CXR-JPG's size takes: 377,110 images, 227,835 studies, reports in a zip.

    python -m benchmarks.read_table

Writes:  the tree's three CSVs and mimic-cxr-reports.zip with drawn content in a temporary folder; no images, so their
         look-up on the disk is timed by itself, on paths that do not exist.
Prints:  seconds, and the peak of this process's memory, which includes making the files (reading is the larger).
"""

import os
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from utils.constants import override_constants
from utils.errors import run
from utils.findings import FINDINGS
from utils.mimic_cxr import image_file, read_table
from utils.report_text import report_file

STUDIES = 227_835  # of the tree (1 or more)
_IMAGES_PER_STUDY = 377_110 / 227_835


def make_tree(root, studies):
    """A tree without images; the ids, views, label and report lengths are spread about as in MIMIC-CXR."""
    rng = np.random.default_rng(0)
    subject_id = np.sort(rng.integers(10_000_000, 20_000_000, studies))
    study_id = 50_000_000 + np.arange(studies)
    images = int(studies * _IMAGES_PER_STUDY)
    study = np.sort(np.concatenate([np.arange(studies), rng.integers(0, studies, images - studies)]))
    dicom_id = [
        f"{a:08x}-{b:08x}-{c:08x}-{d:08x}-{i:08x}" for i, (a, b, c, d) in enumerate(rng.integers(0, 2**32, (images, 4)))
    ]
    rows = pd.DataFrame({"dicom_id": dicom_id, "subject_id": subject_id[study], "study_id": study_id[study]})
    view = rng.choice(["PA", "AP", "LATERAL", "LL", None], images, p=[0.25, 0.39, 0.22, 0.09, 0.05])
    patients, patient = np.unique(rows["subject_id"], return_inverse=True)
    split = rng.choice(["train", "validate", "test"], len(patients), p=[0.978, 0.008, 0.014])[patient]
    metadata = rows.assign(PerformedProcedureStepDescription="CHEST (PA AND LAT)", ViewPosition=view, Rows=3056)
    labels = rng.choice([1.0, 0.0, -1.0, np.nan], (studies, len(FINDINGS)), p=[0.13, 0.06, 0.02, 0.79])
    chexpert = pd.DataFrame(labels, columns=list(FINDINGS))
    chexpert.insert(0, "study_id", study_id)
    chexpert.insert(0, "subject_id", subject_id)
    metadata.to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    rows.assign(split=split).to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    chexpert.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)

    sentence = "There is no focal consolidation, pleural effusion or pneumothorax. The heart is of normal size. "
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for subject, one in zip(subject_id, study_id):
            report = report_file(f"Study {one}. " + sentence * int(one % 7), "No acute cardiopulmonary process.")
            archive.writestr(f"files/p{subject // 1_000_000}/p{subject}/s{one}.txt", report)


def measure(title, function):
    start = time.perf_counter()
    result = function()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB => GiB
    print(f"{title:<24} {time.perf_counter() - start:6.1f} s   peak {peak:.2f} GiB", flush=True)
    return result


def main():
    override_constants(globals())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measure("make the files", lambda: make_tree(root, STUDIES))
        measure("table without reports", lambda: read_table(root, with_reports=False, check_images=False))
        table = measure("table with reports", lambda: read_table(root, check_images=False))
        measure("look for the images", lambda: table["image_path"].map(os.path.isfile))
        assert len(table) == int(STUDIES * _IMAGES_PER_STUDY) and (table["report"] != "").all()
        assert table["image_path"][0] == str(image_file(root, *table.loc[0, ["subject_id", "study_id", "dicom_id"]]))
        print(f"{len(table):,} images, {table['study_id'].nunique():,} studies")


if __name__ == "__main__":
    run(main)
