"""The images of an open set, as the module of its source reads them => a CXR tree. The same for every source.

A source (open_data/kermany.py and its like) reads the files as they are downloaded into a table, a row an image:

    file          the image, relative to the folder as downloaded
    dicom_id      its name in the tree, without an ending
    patient       number of the patient in the source, 1 or more
    study         number of the study in the source, 0 or more: the same whatever else has been downloaded
    view          ViewPosition, "" where nobody says it
    patient_id    what the source calls the patient
    split         "train", "validate" or "test" where the source gives it, else "": it is drawn here, by patient
    report        the text of findings and impression, "" where there is none
    FINDINGS      codes of the authors' coding (utils.findings)

and whatever further columns it has: they stand in provenance.csv as they are.

ids      subject_id is 8 digits, of which the first two (p10 to p19) hang on a hash of source and patient, and the others
         on the patient's number: no two sources share a subject_id or a study_id, so their trees can be merged.
splits   By a hash of (seed, source, patient): they do not change when more of a download is there.
images   A JPEG is linked or copied as it is. Anything else becomes an 8-bit grey JPEG: colour and palettes by Pillow's
         luma, transparency ignored, 16 bits scaled by the fewest of 8 to 16 bits that hold the picture's largest value.
"""

import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.csv_files import SPLITS
from utils.errors import InputError, reason, replacing, say, writing
from utils.findings import FINDINGS, PRESENT
from utils.folders import OPEN_TREE, making
from utils.mimic_cxr import image_file, write_tree
from utils.seeds import keyed_seed

PROVENANCE_FILE = "provenance.csv"
JPEG_QUALITY = 95  # of converted images
_NUMBERS = {  # source => what is added to a patient's number, its first study_id, and how many there may be of it
    "openi": (0, 20_000_000, 2_000_000),
    "kermany": (10_000, 22_000_000, 28_000_000),  # MIMIC-CXR's own begin at 50,000,000
    "nih": (100_000, 60_000_000, 10_000_000),
    "chexpert": (200_000, 70_000_000, 10_000_000),
}
_PROVENANCE = ("dicom_id", "subject_id", "study_id", "split", "view", "file", "patient_id")  # first columns of it
_OF_A_TREE = ("patient", "study", "report", *FINDINGS)  # what it does not repeat
_AT_A_TIME = 256  # images between two looks at whether the run was stopped


def place_of(root, wanted, source):
    """`root` as a Path; InputError unless one of the names `wanted` is in it, with the folder that has them, if one is near.

    wanted: patterns of files or folders in the folder as downloaded, the first one named in the message.
    """
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


def image_places(root, folders, ending):
    """{file name: its path relative to root} of the images in some folders, patterns below root; says what stands twice."""
    places, twice = {}, []
    for folder in dict.fromkeys(found for pattern in folders for found in sorted(glob(pattern, root_dir=root))):
        if os.path.isdir(f"{root}/{folder}"):
            for name in sorted(entry.name for entry in os.scandir(f"{root}/{folder}") if entry.name.endswith(ending)):
                place = os.path.normpath(f"{folder}/{name}")
                if places.setdefault(name, place) != place:
                    twice.append(place)
    if twice:
        say(f"images: {len(twice)} stand in an earlier folder too and are not read, e.g. {twice[0]}")
    return places


def make_tree(output, table, settings, threads):
    """Writes the CXR tree of a source's table.

    output: the tree's folder, new or begun with the same settings.
    settings: a flat dict with source, root (the folder as downloaded), images ("link" or "copy"), validate_share,
        test_share and seed.
    threads: how many images are looked at and converted at a time.
    Prints what each step dropped. InputError when nothing is left, or for a folder that is not ours to write.
    """
    root = Path(settings["root"])
    table = _with_ids(table, settings["source"])
    table = table.assign(split=_splits(table, settings))  # before anything is dropped: so that it changes no split
    _check_one_each(table, "patient", ["split"], root, "patients", "split: what is trained on would be evaluated on")
    _check_one_each(table, "study_id", ["patient", *FINDINGS], root, "studies", "set of labels")
    table = _keep_existing(table, root)
    with making(OPEN_TREE, output, settings, constant="OUTPUT"):
        table = _place_images(Path(output).resolve(), root, table, settings["images"], threads)
        further = [name for name in table if name not in (*_PROVENANCE, *_OF_A_TREE)]
        write_tree(output, table, table[[*_PROVENANCE, *further]], PROVENANCE_FILE)
    _say_result(output, table)


def _keep_existing(table, root):
    there = np.array([os.path.isfile(f"{root}/{file}") for file in table["file"]], dtype=bool)
    if not there.all():
        first = table["file"].iloc[int(there.argmin())]
        say(f"images: dropped {(~there).sum()} of {len(table)} rows whose image is not there, e.g. {first}")
    if not there.any():
        raise InputError(f"none of the {len(table)} images is in {root}: is the download whole, and unpacked?")
    return table[there].reset_index(drop=True)


def _with_ids(table, source):
    """The table with subject_id and study_id; InputError for numbers that are too large to be of this source."""
    first_patient, first_study, most = _NUMBERS[source]
    wrong = (table["patient"] < 1) | (table["patient"] > 99_999) | (table["study"] >= most)
    if wrong.any():
        row = table[wrong].iloc[0]
        raise InputError(f"{row['file']}: patient {row['patient']}, study {row['study']} is no number of {source}")
    groups = {patient: 10 + keyed_seed("group", source, patient) % 10 for patient in table["patient"].unique()}
    return table.assign(
        subject_id=table["patient"].map(groups) * 1_000_000 + first_patient + table["patient"],
        study_id=first_study + table["study"],
    )


def _splits(table, settings):
    """The split of each row: the source's, else drawn by patient; test rows are drawn where the source has none."""
    test_share = 0 if (table["split"] == "test").any() else settings["test_share"]
    drawn = {}
    for patient in table["patient"].unique():
        place = keyed_seed("split", settings["seed"], settings["source"], patient) / 2**63  # [0, 1)
        in_test, in_validate = place < test_share, place >= 1 - settings["validate_share"]
        drawn[patient] = "test" if in_test else "validate" if in_validate else "train"
    return table["split"].where(table["split"] != "", table["patient"].map(drawn))


def _check_one_each(table, key, columns, root, whose, what):
    """InputError where the lists of a source give a patient two splits, or a study two sets of labels."""
    found = table[[key, *columns]].drop_duplicates()
    several = found.loc[found.duplicated(key), key].unique()
    if len(several):
        files = table.loc[table[key] == several[0]].drop_duplicates(columns)["file"]
        raise InputError(
            f"the lists in {root} give {len(several)} {whose} more than one {what}; e.g. {files.iloc[0]} "
            f"and {files.iloc[1]}; mend the lists, or fetch them again"
        )


# ---- images --------------------------------------------------------------------------------------------------------


def _place_images(output, root, table, how, threads):
    """Links, copies or converts each image; the rows whose image can be read."""
    targets = [image_file(output, *row) for row in zip(table["subject_id"], table["study_id"], table["dicom_id"])]
    work = list(zip([root / file for file in table["file"]], targets))
    kinds, refused = Counter(), {}
    with (
        writing("the images", output),
        tqdm(total=len(work), desc="images", unit="image", disable=None) as progress,
        ThreadPoolExecutor(max(threads, 1)) as pool,
    ):
        for start in range(0, len(work), _AT_A_TIME):
            batch = work[start : start + _AT_A_TIME]
            for row, (kind, why_not) in enumerate(pool.map(lambda pair: _place_image(*pair, how), batch), start):
                if why_not:
                    refused[row] = f"{table['file'].iloc[row]}: {why_not}"
                else:
                    kinds[kind] += 1
            progress.update(len(batch))
    if refused:
        say(f"images: dropped {len(refused)} of {len(table)} that cannot be read, e.g. {next(iter(refused.values()))}")
    if len(refused) == len(table):
        raise InputError(f"none of the {len(table)} images of {root} can be read: fetch them again")
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    say(f"images: {said}")
    return table.drop(index=list(refused)).reset_index(drop=True)


def _place_image(source, target, how):
    """Puts an image into the tree => (how, and what it was, in words; "" or why it cannot be read)."""
    grey = None
    try:
        with Image.open(source) as image:
            kind, is_jpeg = f"{image.format} {image.mode}", image.format == "JPEG"
            if is_jpeg and not _is_in_place(source, target, how):
                image.draft("L", (1, 1))  # decodes an eighth of the size: enough to meet a file that was cut short
                image.load()
            elif not is_jpeg and not target.is_file():
                grey = to_grey(image)
    except Exception as error:  # a decoder meets a broken file with whatever its code runs into
        return "", reason(error)
    if is_jpeg:
        _put(source, target, how)
        return f"{'linked' if how == 'link' else 'copied'}, {kind}", ""
    if grey:
        with replacing(target) as temporary:
            grey.save(temporary, format="JPEG", quality=JPEG_QUALITY)
    return f"converted from {kind}", ""


def _is_in_place(source, target, how):
    if how == "link":
        return target.is_symlink() and os.readlink(target) == os.path.relpath(source, target.parent)
    return target.is_file() and target.stat().st_size == source.stat().st_size


def _put(source, target, how):
    """Links or copies a file, in one step."""
    if _is_in_place(source, target, how):
        return
    if how == "copy":
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a link to something else
    os.symlink(os.path.relpath(source, target.parent), target)


def to_grey(image):
    """A Pillow image of any mode => mode L. Of 16 bits, the fewest that hold the largest value are black to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.int64)
        bits = min(max(int(values.max()).bit_length(), 8), 16)
        return Image.fromarray((values.clip(0) * (255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("it has 32 bits a pixel and states no range of values; save it with 8 or 16 bits")
    return image.convert("RGB").convert("L") if image.mode in ("RGBA", "LA", "P", "PA") else image.convert("L")


def _say_result(output, table):
    splits = table["split"].value_counts()
    said = ", ".join(f"{splits.get(split, 0)} {split}" for split in SPLITS)
    present = {name: int((table[name] == PRESENT).sum()) for name in FINDINGS}
    found = ", ".join(f"{name} {count}" for name, count in present.items() if count)
    say(
        f"{output}: {table['subject_id'].nunique()} patients, {table['study_id'].nunique()} studies, {len(table)} images "
        f"({said}), {(table['report'] != '').sum()} of them with a report; present: {found or 'nothing'}"
    )
