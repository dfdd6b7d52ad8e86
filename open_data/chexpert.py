"""CheXpert (Irvin et al. 2019) as downloaded => a table for open_data.tree.

    ROOT/train.csv, valid.csv, test.csv                              the last two if they were downloaded
    ROOT/{train,valid,test}/patientNNNNN/studyN/viewN_frontal.jpg    or .png

ROOT is CheXpert-v1.0-small or CheXpert-v1.0. The batches in which the latter is downloaded ("CheXpert-v1.0 batch 2
(train 1)" ...) may lie in ROOT side by side, CSVs beside or inside them. The first folder of a Path does not matter.

Labels, in PhysioNet's coding, splits and views: docs/open-data.md.
"""

import os
from pathlib import Path

import pandas as pd

from open_data.tree import place_of
from utils.csv_files import check_rows, check_unique, read_csv
from utils.errors import say
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


def read(root: str | Path) -> pd.DataFrame:
    """The table of the folder as downloaded, see open_data.tree; InputError for another folder."""
    root = place_of(root, [place.format("train.csv") for place in _LIST_PLACES], "CheXpert")
    lists = {}  # name => its path
    for name in _SPLITS:
        for path in (path for place in _LIST_PLACES for path in sorted(root.glob(place.format(name)))):
            lists.setdefault(name, path)
    if absent := [name for name in _SPLITS if name not in lists]:
        consequence = "" if len(lists) > 1 else "; the test patients are drawn"
        say(f"{root} has no {' and no '.join(absent)}{consequence}")
    table = pd.concat([_read_list(path) for path in lists.values()], ignore_index=True)
    check_unique(table, ["dicom_id"], root)
    return table.assign(file=_files(table, root)).drop(columns=["folder", "part", "visit", "image", "path"])


def _read_list(path):
    """The rows of one CSV, an image each: codes, ids, view, and what its Path says."""
    frame = read_csv(path, FINDINGS, texts=("Path",), optional=tuple(_COLUMNS)).rename(columns=_COLUMNS)
    say(f"{path}: {len(frame)} images; {PUBLISHED_IMAGES[path.name]} were published")
    parts = frame["path"].str.extract(_PATH)
    form = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    check_rows(frame["path"], parts["patient"].notna(), path, f"Path {{!r}} names no image, such as {form}")
    lateral = (frame["side"] == "Lateral") | ((frame["side"] == "") & parts["image"].str.endswith("_lateral"))
    view = frame["position"].where(frame["position"].isin(["PA", "AP"]), "").mask(lateral, "LATERAL")
    if (view == "").any():
        say(f"{path}: {(view == '').sum()} frontal images are neither PA nor AP; their view is left blank")
    return pd.concat([frame[["path", "sex", "age"]], parts, from_physionet(frame, path)], axis=1).assign(
        dicom_id=parts["folder"] + "_study" + parts["visit"] + "_" + parts["image"], patient_id=parts["folder"],
        patient=parts["patient"].astype(int), study=100 * parts["patient"].astype(int) + parts["visit"].astype(int),
        view=view, split=_SPLITS[path.name], report="", list=path.name,
    )  # fmt: skip


def _files(table, root):
    """The path of each image, relative to root, whether or not it is there."""
    folders = {}  # (part, patient's folder) => the folder that it lies in; the first of several
    for part, patterns in _PLACES.items():
        for place in (path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_dir()):
            for entry in os.scandir(place):
                folders.setdefault((part, entry.name), place.relative_to(root))
    files = []
    for part, folder, visit, image in zip(table["part"], table["folder"], table["visit"], table["image"]):
        name = f"{folders.get((part, folder), part)}/{folder}/study{visit}/{image}"
        is_png = not os.path.isfile(f"{root}/{name}.jpg") and os.path.isfile(f"{root}/{name}.png")
        files.append(f"{name}.png" if is_png else f"{name}.jpg")
    return files
