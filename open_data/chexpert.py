"""CheXpert (Irvin et al. 2019) as downloaded => a table for open_data.tree.

    ROOT/train.csv, valid.csv, test.csv                              the last two where they are there
    ROOT/{train,valid,test}/patientNNNNN/studyN/viewN_frontal.jpg    .png where the .jpg is not there

ROOT is CheXpert-v1.0-small or CheXpert-v1.0. Of the latter, the batches in which it is downloaded ("CheXpert-v1.0 batch 2
(train 1)" and so on) may lie in ROOT side by side, the CSVs beside or inside them. What folder a Path in the CSVs begins
with does not matter.

labels   CheXpert's own, in its coding: 1.0 present, 0.0 absent, -1.0 uncertain, blank not mentioned. Those of train.csv
         were read by rules in reports, those of valid.csv and test.csv by radiologists in the images.
splits   What radiologists labelled, valid.csv and test.csv, is test. VALIDATE_SHARE of the patients of train.csv are
         validate, so that a trainer's validation rows have labels of the same kind as its training rows. `list` in
         provenance.csv names the CSV.
view     PA or AP of a frontal image, LATERAL; "" of a frontal one of which neither is said. There are no reports.
"""

import os

import pandas as pd

from open_data.tree import place_of
from utils.csv_files import read_csv
from utils.errors import InputError, say
from utils.findings import FINDINGS, from_physionet

PUBLISHED_IMAGES = {"train.csv": 223_414, "valid.csv": 234, "test.csv": 668}
_SPLITS = {"train.csv": "", "valid.csv": "test", "test.csv": "test"}  # "": drawn
_PATH = (
    r"^(?:[^/\\]+/)?(?P<part>train|valid|test)/(?P<folder>patient(?P<patient>\d{1,5}))/study(?P<visit>\d{1,2})/"
    r"(?P<image>[^/\\]+)\.(?:jpg|png)$"
)
_LIST_PLACES = ("{}", "* batch * (*/{}")  # where a CSV may lie in ROOT
_PLACES = {  # part => where its patients' folders may lie in ROOT
    "train": ("train", "* batch * (train *)"),
    "valid": ("valid", "* batch * (valid*)", "* batch * (valid*)/valid"),
    "test": ("test", "* batch * (test*)", "* batch * (test*)/test"),
}
_COLUMNS = {"Path": "path", "Frontal/Lateral": "side", "AP/PA": "position", "Sex": "sex", "Age": "age"}


def read(root):
    """The table of the folder as downloaded, see open_data.tree; InputError for a folder that is none."""
    root = place_of(root, [place.format("train.csv") for place in _LIST_PLACES], "CheXpert")
    found = {
        name: [path for place in _LIST_PLACES for path in sorted(root.glob(place.format(name)))] for name in _SPLITS
    }
    there = [paths[0] for paths in found.values() if paths]
    absent = [name for name, paths in found.items() if not paths]
    if absent:
        drawn = "" if len(there) > 1 else "; the test patients are drawn"
        say(f"{root} has no {' and no '.join(absent)}{drawn}")
    table = pd.concat([_read_list(path) for path in there], ignore_index=True)
    twice = table.duplicated("dicom_id")
    if twice.any():
        raise InputError(
            f"{twice.sum()} rows of the CSVs in {root} repeat an image, e.g. {table['path'][twice].iloc[0]}"
        )
    table["file"] = _files(table, root)
    return table.drop(columns=["folder", "part", "visit", "image", "path"])


def _read_list(path):
    """A row an image of one CSV: codes, ids, view, and what its Path says."""
    texts = tuple(_COLUMNS)
    frame = read_csv(path, ("Path", *FINDINGS), texts=texts, optional=texts).rename(columns=_COLUMNS)
    frame = frame.reindex(columns=[*_COLUMNS.values(), *FINDINGS]).fillna({name: "" for name in _COLUMNS.values()})
    say(f"{path}: {len(frame)} images; {PUBLISHED_IMAGES[path.name]} were published")
    parts = frame["path"].str.extract(_PATH)
    wrong = parts["patient"].isna()
    if wrong.any():
        row = frame.index[wrong][0]
        raise InputError(
            f"{path}, data row {row + 1}: Path {frame['path'][row]!r} names no image, such as "
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
        )
    lateral = (frame["side"] == "Lateral") | ((frame["side"] == "") & parts["image"].str.endswith("_lateral"))
    view = frame["position"].where(frame["position"].isin(["PA", "AP"]), "").mask(lateral, "LATERAL")
    if (view == "").any():
        say(f"{path}: {(view == '').sum()} frontal images are neither PA nor AP; their view is left blank")
    return pd.concat([frame[["path", "sex", "age"]], parts, from_physionet(frame, path)], axis=1).assign(
        dicom_id=parts["folder"] + "_study" + parts["visit"] + "_" + parts["image"],
        patient_id=parts["folder"],
        patient=parts["patient"].astype(int),
        study=100 * parts["patient"].astype(int) + parts["visit"].astype(int),
        view=view,
        split=_SPLITS[path.name],
        report="",
        list=path.name,
    )


def _files(table, root):
    """Where each image is, or would be: relative to root."""
    folders = {}  # (part, patient's folder) => where that lies
    for part, places in _PLACES.items():
        for place in (found for pattern in places for found in sorted(root.glob(pattern))):
            if place.is_dir():
                names = (entry.name for entry in os.scandir(place) if entry.name.startswith("patient"))
                folders = {**{(part, name): place.relative_to(root) for name in names}, **folders}
    files = []
    for part, folder, visit, image in zip(table["part"], table["folder"], table["visit"], table["image"]):
        name = f"{folders.get((part, folder), part)}/{folder}/study{visit}/{image}"
        is_png = not os.path.isfile(f"{root}/{name}.jpg") and os.path.isfile(f"{root}/{name}.png")
        files.append(f"{name}.png" if is_png else f"{name}.jpg")
    return files
