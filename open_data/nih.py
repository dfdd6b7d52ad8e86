"""NIH's ChestX-ray14 (Wang et al. 2017) as downloaded => a table for open_data.tree.

    ROOT/Data_Entry_2017*.csv              a row an image; the first edition and that of 2020
    ROOT/images_001/images/*.png ...       the twelve archives, unpacked side by side; or all in ROOT/images
    ROOT/train_val_list.txt, test_list.txt the authors' split; both, or none

Labels (COLUMNS), splits and views: docs/open-data.md. Each image counts as a study of its own.
"""

from pathlib import Path

import pandas as pd

from open_data.tree import drop_rows, place_of, png_places
from utils.csv_files import check_rows, read_csv
from utils.errors import InputError, say
from utils.findings import FINDINGS, NOT_MENTIONED, PRESENT

PUBLISHED_IMAGES, PUBLISHED_PATIENTS = 112_120, 30_805
COLUMNS = {  # NIH's finding => CheXpert's; "": none
    "Atelectasis": "Atelectasis", "Cardiomegaly": "Cardiomegaly", "Consolidation": "Consolidation", "Edema": "Edema",
    "Effusion": "Pleural Effusion", "Emphysema": "", "Fibrosis": "", "Hernia": "", "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion", "No Finding": "No Finding", "Nodule": "Lung Lesion", "Pleural_Thickening": "Pleural Other",
    "Pneumonia": "Pneumonia", "Pneumothorax": "Pneumothorax",
}  # fmt: skip
_ENTRIES = "Data_Entry_2017*.csv*"
_LISTS = {"train_val_list.txt": "", "test_list.txt": "test"}  # list => the split of its patients, "": drawn
_IMAGE_FOLDERS = ("images_*/images", "images", "images_*", "images/images_*", "images/images_*/images")
# columns of the CSV => of the table; the editions differ in the optional ones
_NEEDED = {"Image Index": "name", "Finding Labels": "labels", "Patient ID": "patient_id", "View Position": "view"}
_OPTIONAL = {"Follow-up #": "follow_up", "Patient Age": "age", "Patient Gender": "sex", "Patient Sex": "sex"}
_NAME = r"000([0-2]\d{4}|3[0-2]\d{3})_([0-2]\d{2})\.png"  # patient, 30,805 at most, and image, 183 at most
_IMAGES_A_PATIENT = 300


def read(root: str | Path) -> pd.DataFrame:
    """The table of the folder as downloaded, see open_data.tree; InputError for another folder."""
    root = place_of(root, (_ENTRIES,), "NIH's ChestX-ray14")
    path = max(root.glob(_ENTRIES))  # the edition of 2020 before that of 2017
    frame = read_csv(path, texts=tuple(_NEEDED), optional=tuple(_OPTIONAL))
    frame = frame.rename(columns={**_NEEDED, **_OPTIONAL})
    ids = frame["name"].str.extract(f"^{_NAME}$")
    wrong = ids[0].isna() | (ids[0].str.lstrip("0") != frame["patient_id"].str.strip().str.lstrip("0"))
    wrong |= frame.duplicated("name")
    right = "as 00000001_000.png is of 1, or stands there twice; fetch the file again"
    check_rows(frame["name"], ~wrong, path, f"Image Index {{!r}} is no image of its Patient ID, {right}")
    patient = ids[0].astype(int)
    strange = ~frame["view"].isin(["PA", "AP"])
    if strange.any():
        say(f"{path}: {strange.sum()} images have a view that is neither PA nor AP; it is left blank")
    study = _IMAGES_A_PATIENT * patient + ids[1].astype(int)
    table = frame.assign(patient=patient, study=study, view=frame["view"].mask(strange, ""))
    published = f"{PUBLISHED_IMAGES} of {PUBLISHED_PATIENTS} patients were published"
    say(f"{path}: {len(table)} images of {patient.nunique()} patients; {published}")
    table = _with_splits(table, root)
    table["file"] = table["name"].map(png_places(root, _IMAGE_FOLDERS)).fillna("images/" + table["name"])
    table = table.assign(dicom_id=table["name"].str.removesuffix(".png"), report="").drop(columns="name")
    return pd.concat([table, _codes(table["labels"], path)], axis=1)


def _with_splits(table, root):
    """The table with the split that the authors' lists give; images in neither list are dropped, and counted."""
    there = [name for name in _LISTS if (root / name).is_file()]
    if not there:
        say(f"{root} has no {' and no '.join(_LISTS)}: the test patients are drawn")
        return table.assign(split="")
    if len(there) < len(_LISTS):
        absent = next(name for name in _LISTS if name not in there)
        raise InputError(f"{root} has {there[0]} and no {absent}: fetch it as well, or remove both to draw the splits")
    listed = {name: set((root / name).read_text(encoding="utf-8", errors="replace").split()) for name in _LISTS}
    rest, test = (table["name"].isin(listed[name]) for name in _LISTS)
    both = table["name"][rest & test]
    if count := len(both):
        raise InputError(f"{count} images stand in both lists of {root}, e.g. {both.iloc[0]}; fetch the lists again")
    table = table.assign(split=test.map({True: "test", False: ""}))
    return drop_rows(table, ~(rest | test), "splits", "images that stand in no list", "name")


def _codes(labels, path):
    """NIH's findings, "Effusion|Mass", => codes. Prints what is dropped; InputError for a finding that is not NIH's."""
    places, texts = pd.factorize(labels)
    theirs = pd.Series(texts).str.get_dummies("|")  # a row a combination of findings, a column a finding of NIH's
    if unknown := [name for name in theirs if name not in COLUMNS]:
        raise InputError(f"{path}: {unknown[0]!r} in Finding Labels is none of {', '.join(COLUMNS)}")
    codes = pd.DataFrame(NOT_MENTIONED, index=theirs.index, columns=list(FINDINGS), dtype="int8")
    for name in theirs:
        if COLUMNS[name]:
            codes.loc[theirs[name] == 1, COLUMNS[name]] = PRESENT
    dropped = {name: int(theirs[name].to_numpy()[places].sum()) for name in theirs if not COLUMNS[name]}
    bare = (codes == NOT_MENTIONED).all(axis=1).to_numpy()[places]
    if dropped:
        counts = ", ".join(f"{name} of {count}" for name, count in dropped.items())
        say(f"labels: dropped {counts} images; {bare.sum()} images have no other label")
    return codes.take(places).set_axis(labels.index)
