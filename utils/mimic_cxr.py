"""Reads and writes CXR trees: chest X-rays, labels and reports in the file layout of MIMIC-CXR-JPG.

The data contract, for everything that reads or writes images here:

layout   A *CXR tree* is a folder with
             mimic-cxr-2.*-metadata.csv[.gz]   one row an image: ids, view, size
             mimic-cxr-2.*-chexpert.csv[.gz]   one row a study: the 14 findings
             mimic-cxr-2.*-split.csv[.gz]      one row an image: its split
             files/pNN/pNNNNNNNN/sNNNNNNNN/<dicom_id>.jpg    pNN: the patient's group, the first two digits of its id
             files/pNN/pNNNNNNNN/sNNNNNNNN.txt               the study's report; or in a second root, or in a zip
         and, when its images are generated, synthetic.csv: for each dicom_id what made it.
labels   1 present, -1 absent, -2 uncertain, 0 not mentioned (utils.findings). On disk a tree has PhysioNet's
         1.0 / 0.0 / -1.0 / blank; the CSV of the CXR-IRGen authors has the codes themselves.
views    DICOM's ViewPosition: "PA" and "AP" are frontal, "LATERAL" and "LL" are not; "" where it is not known.
splits   "train", "validate", "test"; whole patients. The groups in hold_out are "test", whatever the split file says.
ids      A dicom_id names a file: 1 to 100 characters, no separator, no dot in front. subject_id and study_id are whole
         numbers from 1 to 10^15, and a study is of one patient.
pixels   8-bit grey JPEGs of any size, air black (0) and bone white (255).
reports  The text of the findings and of the impression, "FINDINGS: ... IMPRESSION: ...", see `report_text`.
table    A pandas DataFrame, one row an image, in the order of the metadata: dicom_id (str), subject_id (int),
         study_id (int), view, split, image_path, report (str) and the columns of FINDINGS (int8).

A synthetic tree follows the same contract, so that whatever reads a real one reads it too.
"""

import ast
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils.errors import InputError, reason, replacing, say, writing
from utils.findings import FINDINGS, check_labels, from_physionet, to_physionet
from utils.report_text import join_sections, report_file, report_sections, report_text
from utils.seeds import keyed_seed

SPLITS = ("train", "validate", "test")
TABLE_COLUMNS = ("dicom_id", "subject_id", "study_id", "view", "split", "image_path", "report", *FINDINGS)
METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
NEW_METADATA = {
    "PerformedProcedureStepDescription": "CHEST (SINGLE VIEW)",
    "StudyDate": "21800101",  # PhysioNet shifts dates to the years 2100 to 2200; a drawn image has none
    "StudyTime": "0.0",
    "ProcedureCodeSequence_CodeMeaning": "CHEST (SINGLE VIEW)",
}
VIEW_MEANINGS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral"}
REPORTS_ARCHIVE = "mimic-cxr-reports.zip"
PROVENANCE_FILE = "synthetic.csv"
PICTURE_FILE = "first.png"  # the first images of a synthetic tree, see first_images.py
_DICOM_ID = r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}"  # what names a file in its study's folder, and nothing elsewhere
MAX_REPORT_BYTES = 1_000_000  # a report has a few thousand; what is longer is something else
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, NotImplementedError)
_LARGEST_ID = 10**15  # a float64, which pandas makes of a column with blanks, still holds it exactly


# ---- reading -------------------------------------------------------------------------------------------------------


def read_table(root, reports_root="", views=(), splits=(), hold_out=(), with_reports=True, check_images=True):
    """The table of a CXR tree, or of the authors' CSV.

    root: the tree's folder, or a path that ends in .csv or .csv.gz with the columns label (14 codes as a list in text),
        ViewPosition, split, image_path (relative to the CSV's folder, with or without a / in front, and inside it; of a
        .dcm the .jpg in its place) and text (the report; "none" or blank: there is none). Rows with a blank label,
        split or image_path are dropped.
    reports_root: where reports are that are not in the tree: a folder with files/pNN or pNN in it, or the path (or the
        folder) of PhysioNet's mimic-cxr-reports.zip, which is read in place. Without meaning for the authors' CSV.
    views, splits: names to keep, e.g. ("PA",) and ("train", "validate"); empty keeps all.
    hold_out: patient groups, e.g. ("p19",), whose rows become split "test". PhysioNet's own test rows stay test.
    with_reports: False leaves every report "" and opens none.
    check_images: False skips the look at the disk for each image; the caller has to know that they are there.

    Prints what each step dropped. InputError: see the module's contract; also when nothing is left.
    """
    root = Path(root)
    for name, value in {"views": views, "splits": splits, "hold_out": hold_out}.items():
        if isinstance(value, str):
            raise InputError(f"{name} is {value!r}, and has to be a tuple of names, such as ({value!r},)")
    unknown = [name for name in splits if name not in SPLITS]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no split; the splits are {', '.join(SPLITS)}")

    from_csv = root.name.endswith((".csv", ".csv.gz"))
    table = _read_authors_csv(root, with_reports) if from_csv else _read_tree(root)
    table = _hold_out(table, hold_out)
    _check_splits_apart(table, root)
    table = _keep_names(table, "view", views, root)
    table = _keep_names(table, "split", splits, root)
    if check_images:
        table = _keep_existing_images(table, root)
    if with_reports and from_csv:
        texts = {raw: report_text(raw) for raw in table["report"].unique()}
        table["report"] = table["report"].map(texts)
        say(f"reports: {(table['report'] != '').sum()} of {len(table)} images have one")
    elif with_reports:
        table["report"] = _read_reports(table, root, Path(reports_root) if reports_root else None)
    return table[list(TABLE_COLUMNS)]


def split_rows(table, split, root=""):
    """The row numbers of one split of a table; InputError if there are none; root: what the table was read from."""
    rows = np.flatnonzero(table["split"] == split)
    if not len(rows):
        raise InputError(
            f"no rows in the split {split!r}{f' of {root}' if root else ''} after the filters; there are "
            f"{_counts(table['split']) or 'none at all'}"
        )
    return rows


def is_report_list(path):
    """Whether a path is of a CSV of reports without images: what `read_report_list` reads."""
    columns = csv_header(path)
    return "image_path" not in columns and (columns >= {"findings", "impression"} or columns >= {"split", "text"})


def read_report_list(path):
    """Reports without images => columns subject_id, study_id, split, report.

    path: a CSV, a row a study, with the columns uid, findings and impression, such as Indiana University's open
    reports, of which by a hash of the uid one row in ten is "validate" and one in ten "test"; or with split and text,
    as the authors trained BART on, of which rows with a blank split are dropped. It names no patients: each row counts
    as one, and no patient group can be held out.
    """
    if csv_header(path) >= {"findings", "impression"}:
        frame = read_csv(path, ["uid", "findings", "impression"], texts=("uid", "findings", "impression"))
        _check_unique(frame, ["uid"], path)
        tenths = [keyed_seed("split", uid) % 10 for uid in frame["uid"]]
        split = [{0: "validate", 1: "test"}.get(tenth, "train") for tenth in tenths]
        reports = [join_sections(*sections) for sections in zip(frame["findings"], frame["impression"])]
    else:
        frame = drop_blank(read_csv(path, ["split", "text"], texts=("split", "text")), ["split"], path)
        _check_splits(frame, path)
        split, reports = [*frame["split"]], [report_text(raw) for raw in _authors_reports(frame["text"])]
    if frame.empty:
        raise InputError(f"{path} has no rows")
    numbers = range(len(frame))
    table = pd.DataFrame({"subject_id": numbers, "study_id": numbers, "split": split, "report": reports})
    say(f"{path}: {_counts(table['split'])} reports; it names no view and no patient, so none is held out")
    return table


def csv_header(path):
    """The set of a CSV's column names, empty where there is no CSV to read."""
    if not str(path).endswith((".csv", ".csv.gz")):
        return set()
    try:
        return {*pd.read_csv(path, nrows=0).columns}
    except (ValueError, OSError, EOFError, zlib.error):
        return set()


def image_file(root, subject_id, study_id, dicom_id):
    """Where a tree keeps an image, a Path."""
    return Path(root, "files", _study_folder(subject_id, study_id), f"{dicom_id}.jpg")


def image_files(root, table):
    """`image_file` of each row of a table, a list of str: a Path a row would take as long as all the rest of a plan."""
    ids = zip(table["subject_id"], table["study_id"], table["dicom_id"])
    return [f"{root}/files/{_study_folder(subject, study)}/{dicom}.jpg" for subject, study, dicom in ids]


def _study_folder(subject_id, study_id):
    return f"p{str(subject_id)[:2]}/p{subject_id}/s{study_id}"


def _read_tree(root):
    if not root.is_dir():
        raise InputError(f"{root} is no folder; a CXR tree (or a .csv) is wanted there")
    files = {kind: _find_csv(root, kind) for kind in ("metadata", "chexpert", "split")}
    missing = [f"mimic-cxr-2.*-{kind}.csv[.gz]" for kind, path in files.items() if path is None]
    if missing:
        raise InputError(f"{root} is no CXR tree: there is no {' and no '.join(missing)} in it")

    ids = ("subject_id", "study_id")
    metadata = read_csv(files["metadata"], ("dicom_id", *ids, "ViewPosition"), texts=("dicom_id", "ViewPosition"))
    chexpert = read_csv(files["chexpert"], (*ids, *FINDINGS))
    split = read_csv(files["split"], ("dicom_id", "split"), texts=("dicom_id", "split"))
    _check_unique(metadata, ["dicom_id"], files["metadata"])
    _check_unique(chexpert, [*ids], files["chexpert"])
    _check_unique(split, ["dicom_id"], files["split"])
    _check_splits(split, files["split"])

    codes = from_physionet(chexpert, files["chexpert"])
    studies = pd.MultiIndex.from_frame(chexpert[[*ids]])
    table = metadata.rename(columns={"ViewPosition": "view"})
    table["split"] = table["dicom_id"].map(split.set_index("dicom_id")["split"])
    table["place"] = studies.get_indexer(pd.MultiIndex.from_frame(table[[*ids]]))  # row of codes; -1: no labels
    labelled, divided = table["place"] >= 0, table["split"].notna()
    if not labelled.all():
        _say_kept("labels", labelled, f"of studies not in {files['chexpert'].name} dropped")
    if not divided[labelled].all():
        _say_kept("splits", divided[labelled], f"not in {files['split'].name} dropped")
    table = table[labelled & divided].reset_index(drop=True)
    if table.empty:
        raise InputError(f"{root} has no image with labels and a split: its three CSVs have no row in common")
    table = pd.concat([table, codes.take(table["place"]).reset_index(drop=True)], axis=1)
    table["image_path"] = image_files(root, table)
    table["report"] = ""
    return table


def _read_authors_csv(path, with_reports):
    columns = ["label", "ViewPosition", "split", "image_path"] + ["text"] * with_reports
    frame = drop_blank(read_csv(path, columns, texts=columns), ["label", "split", "image_path"], path)
    if frame.empty:
        raise InputError(f"{path} has no rows")
    _check_splits(frame, path)
    names = _jpeg_names(frame["image_path"], path)
    ids = names.str.extract(r"p(\d+)/s(\d+)/([^/]+)\.\w+$")
    if ids.isna().any(axis=None):
        row = ids.index[ids.isna().any(axis=1)][0]
        raise InputError(
            f"{path}, data row {row + 1}: image_path {frame['image_path'][row]!r} names no patient, study and "
            "image; it has to end like p10000032/s50414267/<dicom_id>.jpg"
        )
    table = pd.DataFrame(
        {
            "dicom_id": ids[2],
            "subject_id": _whole_numbers(ids[0], "subject_id", path),
            "study_id": _whole_numbers(ids[1], "study_id", path),
            "view": frame["ViewPosition"],
            "split": frame["split"],
            "image_path": [os.path.join(path.parent, name) for name in names],
            "report": _authors_reports(frame["text"]) if with_reports else "",
        }
    )
    _check_dicom_ids(table["dicom_id"], path)
    table = table.reset_index(drop=True)
    _check_unique(table, ["dicom_id"], path)
    table = pd.concat([table, authors_codes(frame["label"], path)], axis=1)
    _check_one_each(table, "study_id", list(FINDINGS), path, "label", "correct the rows that are wrong")
    return table


def drop_blank(frame, columns, path):
    """The rows of a frame without a blank in some columns, with their row numbers; prints what was dropped, and why."""
    frame[columns] = frame[columns].apply(lambda column: column.str.strip())
    blank = frame[columns] == ""
    dropped = blank.any(axis=1)
    if dropped.any():
        why = blank[dropped].idxmax(axis=1).value_counts()
        counts = ", ".join(f"{count} without {name}" for name, count in why.items())
        say(f"{path}: {(~dropped).sum()} of {len(frame)} rows kept ({counts} dropped)")
    return frame[~dropped]


def _jpeg_names(names, path):
    """The image_path column of the authors' CSV => paths of JPEGs, relative to its folder; prints what was replaced."""
    for row, name in names.items():
        if os.path.normpath(name.lstrip("/")).split(os.sep)[0] == "..":
            raise InputError(
                f"{path}, data row {row + 1}: image_path {name!r} leaves {path.parent}; it has to be relative to the "
                "CSV's folder and inside it"
            )
    dicoms = names.str.contains(r"\.dcm$", case=False)
    if dicoms.any():
        say(f"{path}: {dicoms.sum()} of {len(names)} image_paths end in .dcm; the .jpg in its place is read instead")
    names = names.str.replace(r"\.dcm$", ".jpg", case=False, regex=True)
    return names.map(lambda name: os.path.normpath(name.lstrip("/")))


def _authors_reports(texts):
    """The text column of the authors' CSV, "" where it says that there is no report."""
    return texts.where(~texts.str.strip().str.lower().isin(["none", "nan"]), "")


def authors_codes(labels, path):
    """The label column of the authors' CSV => an int8 DataFrame with the columns of FINDINGS, from row 0 on."""
    places, texts = pd.factorize(labels)
    codes = []
    for place, text in enumerate(texts):
        try:
            codes.append(check_labels(ast.literal_eval(text)))
        except (InputError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            row = labels.index[(places == place).argmax()]
            raise InputError(
                f"{path}, data row {row + 1}: label {reason(text)!r} is no list of "
                f"{len(FINDINGS)} codes out of 1 (present), -1 (absent), -2 (uncertain) and 0 (not mentioned)"
            ) from None
    return pd.DataFrame(codes, columns=list(FINDINGS)).take(places).reset_index(drop=True)


def _find_csv(root, kind):
    found = [*root.glob(f"mimic-cxr-2.*-{kind}.csv"), *root.glob(f"mimic-cxr-2.*-{kind}.csv.gz")]
    return max(found, default=None)  # the newest version


def read_csv(path, columns, texts=(), optional=()):
    """The named columns of a CSV: `texts` as str ("" where blank), *_id otherwise as integers, the rest as they are.

    optional: further texts, "" where the file has no such column.
    InputError for a file that is none, for a column that is missing, and for ids that are none (see the contract).
    """
    frame = parse_csv(
        path,
        usecols=lambda name: name in columns or name in optional,
        dtype={name: str for name in (*texts, *optional)},
        low_memory=False,
    )
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; its columns have to include {', '.join(columns)}")
    for name in optional:
        frame[name] = frame[name].fillna("") if name in frame else ""
    for name in frame.columns.intersection(texts):
        frame[name] = frame[name].fillna("")
    for name in frame.columns.difference(texts):
        if name.endswith("_id"):
            frame[name] = _whole_numbers(frame[name], name, path)
    if "dicom_id" in frame:
        _check_dicom_ids(frame["dicom_id"], path)
    return frame


def parse_csv(path, **options):
    """`pandas.read_csv`, but a file that is none is an InputError that names it."""
    try:
        frame = pd.read_csv(path, **options)
        if not isinstance(frame.index, pd.RangeIndex):  # pandas has taken the first column for names of rows
            raise ValueError("its rows have more cells than its header")
        return frame
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a CSV: {reason(error)}") from error


def _whole_numbers(column, name, path):
    """A column of ids as int64, or InputError."""
    numbers = pd.to_numeric(column, errors="coerce")
    right = numbers.between(1, _LARGEST_ID) & (numbers % 1 == 0)
    if not right.all():
        row = right.to_numpy().argmin()
        raise InputError(
            f"{path}, data row {column.index[row] + 1}: {name} '{column.iloc[row]}' is no whole number from 1 to {_LARGEST_ID:,}"
        )
    return numbers.astype("int64")


def _check_dicom_ids(column, path):
    right = column.str.fullmatch(_DICOM_ID)
    if not right.all():
        row = right.to_numpy(dtype=bool).argmin()
        raise InputError(
            f"{path}, data row {column.index[row] + 1}: dicom_id {column.iloc[row]!r} cannot name an image's file: it has to be 1 to "
            "100 characters without / and \\ and without a dot in front"
        )


def _check_splits_apart(table, root):
    """InputError unless each patient is in one split, and each study of one patient."""
    _check_one_each(table, "study_id", ["subject_id"], root, "patient", "give each study an id of its own")
    _check_one_each(
        table, "subject_id", ["split"], root, "split",
        "what is trained on would be evaluated on, so give each patient one split (or hold out its group)",
    )  # fmt: skip


def _check_one_each(table, key, columns, path, what, way_out):
    """InputError when one id stands beside two values: e.g. a patient in two splits."""
    found = table[[key, *columns]].drop_duplicates()
    several = found.loc[found.duplicated(key), key].unique()
    if len(several):
        values = found.loc[found[key] == several[0], columns]
        shown = " and ".join(map(str, values[columns[0]])) if len(columns) == 1 else f"{len(values)} of them"
        raise InputError(
            f"{path}: {len(several)} {key}s have more than one {what}, e.g. {several[0]}: {shown}; {way_out}"
        )


def _check_unique(frame, columns, path):
    repeated = frame.duplicated(columns)
    if repeated.any():
        row = repeated.to_numpy().argmax()
        what = ", ".join(f"{name} {frame[name].iloc[row]}" for name in columns)
        raise InputError(f"{path} has {repeated.sum()} repeated rows, e.g. for {what}; one row each is wanted")


def _check_splits(frame, path):
    wrong = ~frame["split"].isin(SPLITS)
    if wrong.any():
        row = wrong.to_numpy().argmax()
        raise InputError(
            f"{path}, data row {frame.index[row] + 1}: {frame['split'].iloc[row]!r} is no split; the splits are "
            f"{', '.join(SPLITS)}"
        )


# ---- filters -------------------------------------------------------------------------------------------------------


def _say_kept(what, mask, why):
    say(f"{what}: {mask.sum()} of {len(mask)} images kept ({(~mask).sum()} {why})")


def _keep_names(table, column, names, root):
    if not names:
        return table
    mask = table[column].isin(names)
    if not mask.any():
        raise InputError(
            f"{column}s {', '.join(names)}: empty, no image of {root} is left; there are {_counts(table[column])}"
        )
    why = f"of other {column}s dropped"
    if not mask.all():
        why += f": {_counts(table.loc[~mask, column])}"
    _say_kept(f"{column}s {', '.join(names)}", mask, why)
    return table[mask].reset_index(drop=True)


def _counts(column):
    return ", ".join(f"{count} {name or 'blank'}" for name, count in column.value_counts().items())


def _hold_out(table, groups):
    """Patient groups such as p19 become split "test": the one rule by which every trainer leaves out a group."""
    wrong = [group for group in groups if not re.fullmatch(r"p\d\d", str(group))]
    if wrong:
        raise InputError(f"{wrong[0]!r} in hold_out is no patient group; a group is the name of a folder such as p19")
    if groups:
        mask = ("p" + table["subject_id"].astype(str).str[:2]).isin(groups)
        moved = mask & (table["split"] != "test")
        say(f"hold-out {', '.join(groups)}: {mask.sum()} images are test, {moved.sum()} of them moved there")
        table.loc[mask, "split"] = "test"
    return table


def _keep_existing_images(table, root):
    mask = table["image_path"].map(os.path.isfile)
    if not mask.any():
        first = table["image_path"].iloc[0]
        raise InputError(f"none of the {len(table)} images is on disk, e.g. {first}; is {root} whole?")
    if not mask.all():
        first = table["image_path"][mask.to_numpy().argmin()]
        say(f"images: dropped {(~mask).sum()} of {len(table)} rows whose image is not on disk, e.g. {first}")
    return table[mask].reset_index(drop=True)


# ---- reports -------------------------------------------------------------------------------------------------------


def _read_reports(table, root, reports_root):
    """The report of each row, a list of str; each study is read once, from the first place that has it."""
    if reports_root and not reports_root.exists():
        raise InputError(f"there is no {reports_root} to read reports from; set REPORTS_ROOT")
    studies = [_study_folder(subject, study) for subject, study in zip(table["subject_id"], table["study_id"])]
    texts, unfound, unread = {}, 0, 0
    with ExitStack() as stack:
        sources = [_folder_source(root / "files")]
        if reports_root and reports_root.is_dir():
            inner = reports_root / "files"
            sources.append(_folder_source(inner if inner.is_dir() else reports_root))
        for place in filter(None, (root, reports_root)):
            archive = place / REPORTS_ARCHIVE if place.is_dir() else place
            if archive.is_file():
                sources.append(_archive_source(stack, archive))
        for study in dict.fromkeys(studies):
            raw = next((raw for raw in (read(study) for read in sources) if raw is not None), None)
            texts[study] = "" if raw is None else report_text(raw.decode("utf-8", errors="replace"))
            unfound += raw is None
            unread += raw is not None and not texts[study]
    say(
        f"reports: {len(texts) - unfound - unread} of {len(texts)} studies have one ({unfound} without a file"
        f"{f' in {reports_root or root}' if unfound else ''}, {unread} without findings or impression in it)"
    )
    return [texts[study] for study in studies]


def _folder_source(folder):
    """A function: study such as "p10/p10000032/s50414267" => the bytes of its report, None when there is none."""

    def read(study):
        try:
            with open(f"{folder}/{study}.txt", "rb") as file:
                return _read_bounded(file, f"{folder}/{study}.txt")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # a folder, a loop of links, no permission, a failing disk
            raise InputError(
                f"the report {folder}/{study}.txt cannot be read ({os.strerror(error.errno or errno.EIO).lower()}); "
                "mend or remove it"
            ) from error

    return read


def _read_bounded(file, name):
    """The bytes of a report; InputError where there are too many for one."""
    raw = file.read(MAX_REPORT_BYTES + 1)
    if len(raw) > MAX_REPORT_BYTES:
        raise InputError(f"{name} has more than {MAX_REPORT_BYTES:,} bytes, so it is no report; remove it")
    return raw


def _archive_source(stack, path):
    """The same for a zip, which stays open as long as the stack."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except _ZIP_ERRORS as error:
        raise InputError(f"{path} is no zip file that can be read: {reason(error)}; fetch it again") from error
    # PhysioNet's members start with files/; a zip packed by hand may have another folder around the groups, or none
    prefix = next((m[1] for m in map(re.compile(r"(.*?)p\d\d/p\d+/s\d+\.txt$").match, archive.namelist()) if m), "")

    def read(study):
        name = f"{prefix}{study}.txt"
        try:
            with archive.open(name) as file:
                return _read_bounded(file, f"{name} in {path}")
        except KeyError:
            return None
        except (NotImplementedError, RuntimeError) as error:  # another compression; encrypted
            raise InputError(
                f"{name} in {path} cannot be read ({reason(error)}); unpack the zip and name the folder as REPORTS_ROOT"
            ) from error
        except _ZIP_ERRORS as error:
            raise InputError(f"{name} in {path} is damaged: {reason(error)}; fetch the zip again") from error

    return read


# ---- writing -------------------------------------------------------------------------------------------------------


def write_tree(root, table, provenance=None, provenance_file=PROVENANCE_FILE):
    """Adds rows to a CXR tree, which is made when there is none; reading it back gives the same rows.

    table: the columns of `read_table`, but for image_path: the caller has written each image at `image_file(...)`
        before, and Rows and Columns are read from there. Images of one study share their labels and report. Columns
        indication and comparison, if there are any, become further sections of the report's file.
    provenance: a DataFrame with dicom_id and what made each image, or where it is from, for synthetic.csv or another
        provenance_file.

    Of an image or a study that is there already, what is given here is replaced and other columns stay, as do all other
    rows. Each file is replaced in one step and the metadata, which makes rows visible, last: a killed run leaves a
    readable tree. The bytes do not depend on the order in which rows were added. One process at a time may write.
    """
    root = Path(root)
    ids = ["subject_id", "study_id"]
    studies = table.drop_duplicates(ids)
    assert table["dicom_id"].is_unique
    assert len(studies) == len(table.drop_duplicates([*ids, "report", *FINDINGS])), "a study has two reports or labels"

    sizes = list(map(_image_size, image_files(root, table)))
    metadata = table[["dicom_id", *ids]].assign(
        ViewPosition=table["view"],
        Rows=[height for _, height in sizes],
        Columns=[width for width, _ in sizes],
        ViewCodeSequence_CodeMeaning=table["view"].map(VIEW_MEANINGS).fillna(""),
    )
    chexpert = pd.concat([studies[ids], to_physionet(studies)], axis=1)
    further = [name for name in ("indication", "comparison") if name in table]
    for subject, study, report, *texts in studies[[*ids, "report", *further]].itertuples(index=False):
        if report:
            path = root / "files" / f"{_study_folder(subject, study)}.txt"
            content = report_file(*report_sections(report), dict(zip(map(str.upper, further), texts)))
            _replace_file(path, content.encode("utf-8"), root)
    if provenance is not None:
        _merge_csv(root / provenance_file, provenance, ["dicom_id"], root)
    for kind, frame, keys in (
        ("chexpert", chexpert, ids),
        ("split", table[["dicom_id", "study_id", "subject_id", "split"]], ["dicom_id"]),
        ("metadata", metadata, ["dicom_id"]),
    ):
        path = _find_csv(root, kind) or root / f"mimic-cxr-2.0.0-{kind}.csv.gz"
        _merge_csv(path, frame, keys, root, NEW_METADATA if kind == "metadata" else {})


def _merge_csv(path, frame, keys, root, defaults=None):
    """Adds the rows of a frame to a CSV, sorted by their ids; a row with the same keys has its cells replaced.

    defaults: column => value for further columns of rows that are new.
    """
    frame = _as_text(io.StringIO(frame.to_csv(index=False)))
    columns = list(METADATA_COLUMNS) if defaults else list(frame.columns)
    if path.exists():
        ids = [name for name in ("subject_id", "study_id", "dicom_id") if name in frame]
        _check_unique(read_csv(path, ids, texts=("dicom_id",)), keys, path)
        old = _as_text(path)
        columns = list(dict.fromkeys([*old.columns, *columns]))
        frame = frame.set_index(keys).combine_first(old.set_index(keys)).reset_index()
    frame = frame.reindex(columns=columns).astype(object).fillna(defaults or {}).fillna("")
    order = [name for name in ("subject_id", "study_id", "dicom_id") if name in frame]
    frame = frame.sort_values(order, key=lambda column: column.astype(int) if column.name != "dicom_id" else column)
    content = frame.to_csv(index=False, lineterminator="\n").encode("utf-8")
    _replace_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content, root)


def _as_text(source):
    return parse_csv(source, dtype=str, keep_default_na=False)


def _replace_file(path, content, root):
    """Writes bytes; the file is the old one or the new one, never a part."""
    with writing(path.name, root), replacing(path) as temporary:
        temporary.write_bytes(content)


def _image_size(path):
    """(width, height) in pixels, from the file's header."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error}); it has to be there before its row") from error


def table_fingerprint(table):
    """SHA-256 (hex) of what a training takes from a table's rows: ids, splits, labels and reports, in their order."""
    columns = [name for name in ("dicom_id", "study_id", "split", "report", *FINDINGS) if name in table]
    rows = pd.util.hash_pandas_object(table[columns].astype(str), index=False)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()
