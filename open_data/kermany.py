"""Chest X-rays of children with and without pneumonia (Kermany et al. 2018) => a table for open_data.tree.

    ROOT/chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg

Names (person<N>_bacteria_<M>, IM-<N>-<M> ...; <N>: the child), splits, views: docs/open-data.md. Each image is a study.

labels   NORMAL: No Finding present, Pneumonia absent, since the graders were asked for these two. PNEUMONIA: Pneumonia
         present. Nothing is known of the other findings.
"""

import hashlib
import os
from pathlib import Path

import pandas as pd

from open_data.tree import drop_rows, place_of
from utils.csv_files import join_numbers
from utils.errors import InputError, say
from utils.findings import ABSENT, FINDINGS, NOT_MENTIONED, PRESENT

PUBLISHED_IMAGES = 5856
_NAMES = {  # class => what its files are called
    "NORMAL": r"(?P<series>(?:NORMAL2-)?IM)-(?P<number>\d{1,4})-0*(?P<film>\d{1,2})(?:-0*(?P<copy>\d))?\.jpe?g",
    "PNEUMONIA": r"person(?P<number>\d{1,4})_(?P<series>bacteria|virus)_(?P<film>\d{1,4})(?:_(?P<copy>\d))?\.jpe?g",
}
_FIRST_STUDIES = {"bacteria": 0, "virus": 100_000, "IM": 1_000_000, "NORMAL2-IM": 11_000_000}  # of each series


def read(root: str | Path) -> pd.DataFrame:
    """The table of the folder as downloaded, see open_data.tree; InputError for another folder."""
    root = place_of(root, ("chest_xray/train/NORMAL", "chest_xray/train/PNEUMONIA"), "Kermany's chest X-rays")
    table = _files(root)
    if table.empty:
        raise InputError(f"{root}/chest_xray has no image whose name numbers a child, such as person1_virus_6.jpeg")
    table["dicom_id"] = table["file"].str.extract(r"([^/]+)\.\w+$")[0]
    table = drop_rows(table, table.duplicated("dicom_id"), "images", "whose name stands in an earlier folder too")
    say(f"{root}: {len(table)} images; {PUBLISHED_IMAGES} were published")
    digests = table["file"].map(lambda file: hashlib.blake2b((root / file).read_bytes()).digest())
    table["patient"] = join_numbers(table["number"], digests)  # the smallest number in a chain is the child
    if joined := (table["patient"] != table["number"]).sum():
        say(f"children: {joined} images are of a child with another number, by an identical file")
    table = table.sort_values(["patient", "dicom_id"], ignore_index=True)
    normal = table["class"] == "NORMAL"
    labels = pd.DataFrame(NOT_MENTIONED, index=table.index, columns=list(FINDINGS), dtype="int8")
    labels.loc[normal, ["No Finding", "Pneumonia"]] = PRESENT, ABSENT
    labels.loc[~normal, "Pneumonia"] = PRESENT
    number = table["number"].where(normal, 0)  # elsewhere the film's number is unique
    study = table["series"].map(_FIRST_STUDIES) + 1000 * number + 10 * table["film"] + table["copy"]
    table = table.assign(study=study, view="AP", split="", report="")  # a study's number depends on the name alone
    table = table.drop(columns=["film", "copy"]).rename(columns={"number": "patient_id"})
    return pd.concat([table, labels], axis=1)


def _files(root):
    """A row an image: file, part, class, and what its name says. Prints which files and parts are left out."""
    tables, absent = [], []
    for part in ("train", "val", "test"):
        for name, pattern in _NAMES.items():
            folder = f"chest_xray/{part}/{name}"
            if not (root / folder).is_dir():
                absent.append(f"{part}/{name}")
                continue
            names = pd.Series(sorted(entry.name for entry in os.scandir(root / folder) if entry.is_file()), dtype=str)
            rows = names.str.extract(f"^{pattern}$").assign(file=f"{folder}/" + names, part=part)
            tables.append(rows.assign(**{"class": name}))
    if absent:
        say(f"{root}/chest_xray has no {', no '.join(absent)}: is the download whole?")
    table = pd.concat(tables, ignore_index=True)
    table = drop_rows(table, table["number"].isna(), "files", "whose name numbers no child")
    return table.fillna({"copy": 0}).astype({"number": int, "film": int, "copy": int})
