"""From the table of any source to a CXR tree.

A source (open_data/kermany.py and so on) reads the files as they are downloaded into a table with a row for each image:

    file          the image, relative to the folder as downloaded
    dicom_id      its name in the tree, without an ending
    patient       number of the patient in the source, 1 to 99,999
    study         number of the study in the source, 0 or more: the same whatever else has been downloaded
    view          ViewPosition, "" if it is unknown
    patient_id    what the source calls the patient
    split         "train", "validate" or "test" if the source gives it, else "": then it is drawn here, by patient
    report        the text of findings and impression, "" if there is none
    FINDINGS      codes of the authors' coding (utils.findings)

Further columns are copied to provenance.csv.

ids      subject_id has 8 digits: the first two (10 to 19) are a hash of source and patient, the others follow from the
         patient's number. Splits and images: docs/open-data.md.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from utils.csv_files import check_one_each, count_values
from utils.errors import InputError, reason, replacing, say, writing
from utils.findings import FINDINGS, PRESENT
from utils.folders import OPEN_TREE, making
from utils.mimic_cxr import image_file, write_tree
from utils.pixels import open_image, to_grey
from utils.seeds import keyed_seed

PROVENANCE_FILE = "provenance.csv"
JPEG_QUALITY = 95  # of converted images
_BATCH = 256  # images that a run which is stopped still places
_NUMBERS = {  # source => what is added to a patient's number, and the first study_id
    "openi": (0, 20_000_000),
    "kermany": (10_000, 22_000_000),  # MIMIC-CXR's own begin at 50,000,000
    "nih": (100_000, 60_000_000),
    "chexpert": (200_000, 70_000_000),
}
_PROVENANCE = ("dicom_id", "subject_id", "study_id", "split", "view", "file", "patient_id")  # its first columns
_NOT_IN_PROVENANCE = ("patient", "study", "report", *FINDINGS)


def place_of(root: str | Path, wanted: tuple[str, ...], source: str) -> Path:
    """`root` as a Path; InputError, which names a folder near by that does, unless it holds a pattern of `wanted`."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: name the folder of {source} as downloaded as ROOT")

    def fits(folder):
        return any(next(folder.glob(pattern), None) for pattern in wanted)

    if fits(root):
        return root
    near = [*root.absolute().parents[:2], *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
    found = next(filter(fits, near), None)
    way_out = f"it is in {found}: name that as ROOT" if found else "name the folder with what was downloaded as ROOT"
    raise InputError(f"{root} is no folder of {source}: there is no {wanted[0]} in it; {way_out}")


def png_places(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """{file name: its path relative to root} of the PNGs in some folders (patterns). Prints which names stand twice."""
    places, twice = {}, []
    for pattern in folders:
        for place in map(os.path.normpath, sorted(glob(f"{pattern}/*.png", root_dir=root))):
            if places.setdefault(os.path.basename(place), place) != place:
                twice.append(place)
    if twice:
        say(f"images: {len(twice)} stand in an earlier folder too and are not read, e.g. {twice[0]}")
    return places


def drop_rows(table: pd.DataFrame, wrong: pd.Series, what: str, why: str, column: str = "file") -> pd.DataFrame:
    """The table without its wrong rows. Prints how many are dropped, and why, with an example from a column."""
    if wrong.any():
        say(f"{what}: dropped {wrong.sum()} of {len(table)} {why}, e.g. {table[column][wrong].iloc[0]}")
    return table[~wrong].reset_index(drop=True)


def make_tree(output: str | Path, table: pd.DataFrame, settings: dict, threads: int) -> None:
    """Writes the CXR tree of a source's table.

    output: the tree's folder, new or begun with the same settings.
    settings: a flat dict of source, root (as downloaded), images ("link" or "copy"), validate_share, test_share, seed.
    threads: how many images are looked at and converted at a time.
    Prints what each step dropped. InputError when nothing is left, or for a folder that holds something else.
    """
    root = Path(settings["root"])
    first_patient, first_study = _NUMBERS[settings["source"]]
    groups = {patient: 10 + keyed_seed("group", settings["source"], patient) % 10 for patient in {*table["patient"]}}
    test_share = 0 if (table["split"] == "test").any() else settings["test_share"]  # unless the source has some
    drawn = {}
    for patient in groups:
        place = keyed_seed("split", settings["seed"], settings["source"], patient) / 2**63  # [0, 1)
        in_test, in_validate = place < test_share, place >= 1 - settings["validate_share"]
        drawn[patient] = "test" if in_test else "validate" if in_validate else "train"
    table = table.assign(
        subject_id=table["patient"].map(groups) * 1_000_000 + first_patient + table["patient"],
        study_id=first_study + table["study"],
        # before anything is dropped: so that it changes no split
        split=table["split"].where(table["split"] != "", table["patient"].map(drawn)),
    )
    way_out = "mend the lists, or fetch them again"
    check_one_each(table, "patient", ["split"], root, "split", f"so training and test would mix; {way_out}", "file")
    check_one_each(table, "study", ["patient", *FINDINGS], root, "set of labels", way_out, "file")
    is_there = table["file"].map(lambda file: os.path.isfile(f"{root}/{file}")).astype(bool)
    if not is_there.any():
        raise InputError(f"none of the {len(table)} images is in {root}: is the download whole, and unpacked?")
    table = drop_rows(table, ~is_there, "images", "rows whose image is not there")
    with making(OPEN_TREE, output, settings, constant="OUTPUT"):
        table = _place_images(Path(output).resolve(), root, table, settings["images"], threads)
        further = [name for name in table if name not in (*_PROVENANCE, *_NOT_IN_PROVENANCE)]
        write_tree(output, table, table[[*_PROVENANCE, *further]], PROVENANCE_FILE)
    present = (table[list(FINDINGS)] == PRESENT).sum()
    findings = ", ".join(f"{name} {count}" for name, count in present.items() if count) or "no finding"
    size = f"{table['subject_id'].nunique()} patients, {table['study_id'].nunique()} studies, {len(table)} images"
    splits, reported = count_values(table["split"]), (table["report"] != "").sum()
    say(f"{output}: {size} ({splits}), {reported} with a report; present: {findings}")


def _place_images(output, root, table, how, threads):
    """Links, copies or converts each image; returns the rows whose image can be read."""
    targets = [image_file(output, *row) for row in zip(table["subject_id"], table["study_id"], table["dicom_id"])]
    sources, results = [root / file for file in table["file"]], []
    place = partial(_place_image, how=how)
    with writing("the images", output), ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in tqdm(range(0, len(table), _BATCH), "images", unit=f" x {_BATCH}", disable=None):
            results += pool.map(place, sources[start : start + _BATCH], targets[start : start + _BATCH])
    kinds, errors = (pd.Series(column, index=table.index) for column in zip(*results))
    broken = errors != ""
    if broken.all():
        raise InputError(f"none of the {len(table)} images of {root} can be read, e.g. {errors[0]}: fetch them again")
    table = table.assign(error=table["file"] + ": " + errors)
    table = drop_rows(table, broken, "images", "that cannot be read", "error").drop(columns="error")
    say(f"images: {count_values(kinds[~broken])}")
    return table


def _place_image(source, target, how):
    """Puts an image into the tree unless it is there => (what it was made by, ""), or ("", why it cannot be read)."""
    is_there = target.is_file()
    try:
        with open_image(source) as image:
            kind, is_jpeg = f"{image.format} {image.mode}", image.format == "JPEG"
            if is_jpeg and not is_there:
                image.draft("L", (1, 1))  # decodes an eighth of the size: enough to find a file that was cut short
                image.load()
            elif not is_there:
                grey = Image.fromarray(np.asarray(to_grey(image)).round().astype(np.uint8))
    except InputError:
        raise
    except Exception as error:  # decoders raise errors of many kinds for a broken file
        return "", reason(error)
    if not is_there:
        with replacing(target) as temporary:
            if not is_jpeg:
                grey.save(temporary, format="JPEG", quality=JPEG_QUALITY)
            elif how == "copy":
                shutil.copyfile(source, temporary)
            else:
                os.symlink(os.path.relpath(source, target.parent), temporary)
    if not is_jpeg:
        return f"converted from {kind}", ""
    return f"{'linked' if how == 'link' else 'copied'}, {kind}", ""
