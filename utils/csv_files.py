"""CSV files: any one read with checks, the CSV of the CXR-IRGen authors, and lists of reports without images.

A file that cannot be read, a missing column, and a cell that cannot be right are InputErrors that name file and row.
"""

import ast
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.errors import InputError, reason, say
from utils.findings import FINDINGS, check_labels
from utils.report_text import join_sections, report_text
from utils.seeds import keyed_seed

SPLITS = ("train", "validate", "test")
_DICOM_ID = r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}"  # names a file in its study's folder, and nowhere else
_LARGEST_ID = 10**15  # a float64, which pandas makes of a column with blanks, still holds it exactly

# ---- any CSV -------------------------------------------------------------------------------------------------------


def csv_header(path: str | Path) -> set[str]:
    """The names of a CSV's columns; empty if there is no CSV that can be read."""
    if not str(path).endswith((".csv", ".csv.gz")):
        return set()
    try:
        return {*pd.read_csv(path, nrows=0).columns}
    except (ValueError, OSError, EOFError, zlib.error):
        return set()


def parse_csv(path, **options) -> pd.DataFrame:
    """`pandas.read_csv`, but an InputError that names the file if it cannot be read."""
    try:
        frame = pd.read_csv(path, **options)
        if not isinstance(frame.index, pd.RangeIndex):  # pandas has taken the first column for names of rows
            raise ValueError("its rows have more cells than its header")
        return frame
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a CSV: {reason(error)}") from error


def read_csv(
    path: str | Path, columns: Sequence[str], texts: Sequence[str] = (), optional: Sequence[str] = ()
) -> pd.DataFrame:
    """The named columns of a CSV: `texts` as str ("" where blank), other *_id as integers, the rest as pandas has them.

    optional: further texts, "" where the file has no such column. InputError for a file that cannot be read, a missing
    column, and ids against the contract in utils/mimic_cxr.py.
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


def drop_blank(frame: pd.DataFrame, columns: Sequence[str], path: str | Path) -> pd.DataFrame:
    """The rows of a frame without a blank in some columns, with their row numbers; prints what was dropped, and why."""
    frame[columns] = frame[columns].apply(lambda column: column.str.strip())
    blank = frame[columns] == ""
    dropped = blank.any(axis=1)
    if dropped.any():
        why = blank[dropped].idxmax(axis=1).value_counts()
        counts = ", ".join(f"{count} without {name}" for name, count in why.items())
        say(f"{path}: {(~dropped).sum()} of {len(frame)} rows kept ({counts} dropped)")
    return frame[~dropped]


def count_values(column: pd.Series) -> str:
    """The number of rows by value, for a message: "3 PA, 1 AP, 1 blank"."""
    return ", ".join(f"{count} {name or 'blank'}" for name, count in column.value_counts().items())


# ---- checks --------------------------------------------------------------------------------------------------------


def _first_wrong(right: pd.Series) -> int | None:
    """The position of the first row that is not right, None if all are."""
    return None if right.all() else int(right.to_numpy(dtype=bool).argmin())


def _whole_numbers(column: pd.Series, name: str, path: str | Path) -> pd.Series:
    """A column of ids as int64, or InputError."""
    numbers = pd.to_numeric(column, errors="coerce")
    row = _first_wrong(numbers.between(1, _LARGEST_ID) & (numbers % 1 == 0))
    if row is not None:
        raise InputError(
            f"{path}, data row {column.index[row] + 1}: {name} '{column.iloc[row]}' is not a whole number from 1 to "
            f"{_LARGEST_ID:,}"
        )
    return numbers.astype("int64")


def _check_dicom_ids(column: pd.Series, path: str | Path) -> None:
    row = _first_wrong(column.str.fullmatch(_DICOM_ID))
    if row is not None:
        raise InputError(
            f"{path}, data row {column.index[row] + 1}: dicom_id {column.iloc[row]!r} cannot name an image's file: "
            "it has to be 1 to 100 characters without / and \\ and without a dot in front"
        )


def check_splits(frame: pd.DataFrame, path: str | Path) -> None:
    """InputError unless each row's split is one of SPLITS."""
    row = _first_wrong(frame["split"].isin(SPLITS))
    if row is not None:
        raise InputError(
            f"{path}, data row {frame.index[row] + 1}: unknown split {frame['split'].iloc[row]!r}; choose from "
            f"{', '.join(SPLITS)}"
        )


def check_unique(frame: pd.DataFrame, columns: Sequence[str], path: str | Path) -> None:
    """InputError if two rows have the same values in some columns."""
    repeated = frame.duplicated(columns)
    row = _first_wrong(~repeated)
    if row is not None:
        what = ", ".join(f"{name} {frame[name].iloc[row]}" for name in columns)
        raise InputError(f"{path} has {repeated.sum()} repeated rows, e.g. for {what}; keep one row each")


def check_one_each(frame: pd.DataFrame, key: str, columns: Sequence[str], path, what: str, way_out: str) -> None:
    """InputError if one id stands beside two values: e.g. a patient in two splits."""
    pairs = frame[[key, *columns]].drop_duplicates()
    several = pairs.loc[pairs.duplicated(key), key].unique()
    if len(several):
        values = pairs.loc[pairs[key] == several[0], columns]
        shown = " and ".join(map(str, values[columns[0]])) if len(columns) == 1 else f"{len(values)} of them"
        raise InputError(
            f"{path}: {len(several)} {key}s have more than one {what}, e.g. {several[0]}: {shown}; {way_out}"
        )


# ---- the authors' CSV ----------------------------------------------------------------------------------------------


def read_authors_csv(path: Path, with_reports: bool) -> pd.DataFrame:
    """The rows of the authors' CSV as columns of `read_table`; report is the raw text, "" without reports."""
    columns = ["label", "ViewPosition", "split", "image_path"]
    if with_reports:
        columns.append("text")
    frame = drop_blank(read_csv(path, columns, texts=columns), ["label", "split", "image_path"], path)
    if frame.empty:
        raise InputError(f"{path} has no rows")
    check_splits(frame, path)
    names = _jpeg_names(frame["image_path"], path)
    ids = names.str.extract(r"p(\d+)/s(\d+)/([^/]+)\.\w+$")
    row = _first_wrong(ids.notna().all(axis=1))
    if row is not None:
        raise InputError(
            f"{path}, data row {ids.index[row] + 1}: image_path {frame['image_path'].iloc[row]!r} names no patient, "
            "study and image; it has to end like p10000032/s50414267/<dicom_id>.jpg"
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
    check_unique(table, ["dicom_id"], path)
    table = pd.concat([table, authors_codes(frame["label"], path)], axis=1)
    check_one_each(table, "study_id", list(FINDINGS), path, "label", "correct the rows that are wrong")
    return table


def _jpeg_names(names: pd.Series, path: Path) -> pd.Series:
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


def _authors_reports(texts: pd.Series) -> pd.Series:
    """The text column of the authors' CSV, "" where it states that there is no report."""
    return texts.where(~texts.str.strip().str.lower().isin(["none", "nan"]), "")


def authors_codes(labels: pd.Series, path: str | Path) -> pd.DataFrame:
    """The label column of the authors' CSV => an int8 DataFrame with the columns of FINDINGS, from row 0 on."""
    places, texts = pd.factorize(labels)
    codes = []
    for place, text in enumerate(texts):
        try:
            codes.append(check_labels(ast.literal_eval(text)))
        except (InputError, ValueError, SyntaxError, TypeError):
            row = labels.index[(places == place).argmax()]
            raise InputError(
                f"{path}, data row {row + 1}: label {reason(text)!r} is no list of "
                f"{len(FINDINGS)} codes out of 1 (present), -1 (absent), -2 (uncertain) and 0 (not mentioned)"
            ) from None
    return pd.DataFrame(codes, columns=list(FINDINGS)).take(places).reset_index(drop=True)


# ---- reports without images ----------------------------------------------------------------------------------------


def is_report_list(path: str | Path) -> bool:
    """Whether a path leads to a CSV of reports without images, for `read_report_list`."""
    columns = csv_header(path)
    return "image_path" not in columns and (columns >= {"findings", "impression"} or columns >= {"split", "text"})


def read_report_list(path: str | Path) -> pd.DataFrame:
    """Reports without images => columns subject_id, study_id, split, report.

    path: a CSV, a row a study. Either with the columns uid, findings and impression, such as Indiana University's open
    reports; a hash of the uid makes one row in ten "validate" and one in ten "test". A uid that is a path, such as
    CheXpert Plus's train/patient00001/study1/view1_frontal.jpg, counts by its patient, or else by its folder. Or with
    split and text, as the authors trained BART on; rows with a blank split are dropped. Otherwise each row counts as a
    patient, and no patient group can be held out.
    """
    if csv_header(path) >= {"findings", "impression"}:
        frame = read_csv(path, ["uid", "findings", "impression"], texts=("uid", "findings", "impression"))
        check_unique(frame, ["uid"], path)
        groups = [_group_of(uid) for uid in frame["uid"]]
        tenths = [keyed_seed("split", group) % 10 for group in groups]
        if len(set(groups)) < len(groups):
            say(f"{path}: {len(groups)} reports of {len(set(groups))} patients or studies, by the paths in uid")
        split = [{0: "validate", 1: "test"}.get(tenth, "train") for tenth in tenths]
        reports = [join_sections(*sections) for sections in zip(frame["findings"], frame["impression"])]
    else:
        frame = drop_blank(read_csv(path, ["split", "text"], texts=("split", "text")), ["split"], path)
        check_splits(frame, path)
        split, reports = [*frame["split"]], [report_text(raw) for raw in _authors_reports(frame["text"])]
    if frame.empty:
        raise InputError(f"{path} has no rows")
    numbers = range(len(frame))
    table = pd.DataFrame({"subject_id": numbers, "study_id": numbers, "split": split, "report": reports})
    say(f"{path}: {count_values(table['split'])} reports; it names no view and no patient, so none is held out")
    return table


def _group_of(uid: str) -> str:
    """The patient in a uid that is a path, or else its folder; any other uid stands for itself."""
    patient = re.search(r".*/(?:patient|p)\d+(?=/)", f"/{uid}")
    return patient[0][1:] if patient else uid.rpartition("/")[0] or uid
