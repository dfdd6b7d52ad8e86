"""CSV files: any one read with checks, and the CSV of the CXR-IRGen authors.

A file that cannot be read, a missing column, and a cell that cannot be right are InputErrors that name file and row.
"""

import ast
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from utils.errors import InputError, as_input_error, reason, say, write_whole
from utils.findings import FINDINGS, check_labels

SPLITS = ("train", "validate", "test")
_DICOM_ID = r"(?!\.)[^/\\\x00-\x1f\x7f]{1,100}"  # names a file in its study's folder, and nowhere else
_LARGEST_ID = 10**15  # a float64, which pandas makes of a column with blanks, still holds it exactly


def csv_header(path: str | Path) -> set[str]:
    """The names of a CSV's columns; empty if there is no CSV that can be read."""
    with suppress(InputError):
        return {*parse_csv(path, nrows=0).columns} if str(path).endswith((".csv", ".csv.gz")) else set()
    return set()


def parse_csv(path, **options) -> pd.DataFrame:
    """`pandas.read_csv`, but an InputError that names the file if it cannot be read."""
    unreadable = (ValueError, OSError, EOFError, zlib.error)
    with as_input_error(lambda error: f"{path} cannot be read as a CSV: {reason(error)}", unreadable):
        with as_input_error(lambda _: f"there is no {path}", FileNotFoundError):
            frame = pd.read_csv(path, **options)
        if len(frame) and not isinstance(frame.index, pd.RangeIndex):  # the first column was taken for names of rows
            raise ValueError("its rows have more cells than its header")
    return frame


def read_csv(
    path: str | Path, columns: Sequence[str] = (), texts: Sequence[str] = (), optional: Sequence[str] = (),
    key: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """The named columns of a CSV: dicom_id as str, other *_id as integers, the rest as pandas has them.

    texts: further columns, as str, "" where blank; optional: texts that are "" where there is no such column; key: what
    identifies a row. InputError for an unreadable file, a missing column, repeated keys, wrong ids (mimic_cxr.py).
    """
    needed, texts = dict.fromkeys([*columns, *texts]), {"dicom_id", *texts, *optional}
    used, types = {*needed, *optional}, dict.fromkeys(texts, str)
    frame = parse_csv(path, usecols=lambda name: name in used, dtype=types, low_memory=False)
    if missing := [name for name in needed if name not in frame]:
        raise InputError(f"{path} has no column {missing[0]!r}; its columns have to include {', '.join(needed)}")
    frame = frame.assign(**{name: "" for name in optional if name not in frame})
    for name in frame:
        if name in texts:
            frame[name] = frame[name].fillna("")
        elif name.endswith("_id"):
            frame[name] = whole_numbers(frame[name], path)
    if "dicom_id" in frame:
        check_dicom_ids(frame["dicom_id"], path)
    if key:
        check_unique(frame, key, path)
    return frame


def write_csv(path: Path, frame: pd.DataFrame, what: str = "") -> None:
    """Writes a frame without its index, as `write_whole` writes a file."""
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"), what)


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


def join_numbers(numbers: pd.Series, keys: pd.Series) -> pd.Series:
    """For each row the smallest number in its chain of rows that share a number or a key."""
    joined, smaller = None, numbers
    while not smaller.equals(joined):
        joined = smaller
        smaller = joined.groupby(keys).transform("min").groupby(numbers).transform("min")
    return joined


def check_rows(column: pd.Series, right: pd.Series, path: str | Path, wrong: str) -> None:
    """InputError unless all values of a CSV's column are right; wrong: the rest of the sentence, {} for the value."""
    if not right.all():
        row = int(right.to_numpy(dtype=bool).argmin())
        raise InputError(f"{path}, data row {column.index[row] + 1}: {wrong.format(column.iloc[row])}")


def whole_numbers(column: pd.Series, path: str | Path) -> pd.Series:
    """A column of ids as int64, or InputError."""
    numbers = pd.to_numeric(column, errors="coerce")
    right = numbers.between(1, _LARGEST_ID) & (numbers % 1 == 0)
    check_rows(column, right, path, f"{column.name} '{{}}' is not a whole number from 1 to {_LARGEST_ID:,}")
    return numbers.astype("int64")


def check_dicom_ids(column: pd.Series, path: str | Path) -> None:
    """InputError unless each id can name a file."""
    form = "1 to 100 characters without / and \\ and without a dot in front"
    wrong = f"dicom_id {{!r}} cannot name an image's file: it has to be {form}"
    check_rows(column, column.str.fullmatch(_DICOM_ID), path, wrong)


def check_splits(frame: pd.DataFrame, path: str | Path) -> None:
    """InputError unless each row's split is one of SPLITS."""
    wrong = f"unknown split {{!r}}; choose from {', '.join(SPLITS)}"
    check_rows(frame["split"], frame["split"].isin(SPLITS), path, wrong)


def check_unique(frame: pd.DataFrame, columns: Sequence[str], path: str | Path) -> None:
    """InputError if two rows have the same values in some columns."""
    repeated = frame[frame.duplicated(columns)]
    if len(repeated):
        what = ", ".join(f"{name} {repeated[name].iloc[0]}" for name in columns)
        raise InputError(f"{path} has {len(repeated)} repeated rows, e.g. for {what}; keep one row each")


def check_one_each(
    frame: pd.DataFrame, key: str, columns: Sequence[str], path, what: str, way_out: str, shown: str = ""
) -> None:
    """InputError if one id stands beside two values, e.g. a patient in two splits; shown: the column of examples."""
    distinct = frame.drop_duplicates([key, *columns])
    several = distinct[distinct.duplicated(key, keep=False)]
    if len(several):
        first = several[key].iloc[0]
        examples = several.loc[several[key] == first, shown or columns[0]].astype(str)
        ids = f"{several[key].nunique()} {key}s have more than one {what}"
        raise InputError(f"{path}: {ids}, e.g. {first}: {' and '.join(examples)}; {way_out}")


def read_authors_csv(path: Path, with_reports: bool) -> pd.DataFrame:
    """The rows of the authors' CSV as columns of `read_table`; report is the raw text, "" without reports."""
    columns = ["label", "ViewPosition", "split", "image_path", *(["text"] if with_reports else [])]
    frame = drop_blank(read_csv(path, columns, texts=columns), ["label", "split", "image_path"], path)
    if frame.empty:
        raise InputError(f"{path} has no rows")
    check_splits(frame, path)
    names = frame["image_path"].str.lstrip("/").map(os.path.normpath)
    names = names.str.replace(r"\.dcm$", ".jpg", case=False, regex=True)
    ids = names.str.extract(r"^(?!\.\.(?:/|$)).*p(?P<subject_id>\d+)/s(?P<study_id>\d+)/(?P<dicom_id>[^/]+)\.\w+$")
    wrong = "{!r} has to lie in the CSV's folder and to end like p10000032/s50414267/<dicom_id>.jpg"
    check_rows(frame["image_path"], ids.notna().all(axis=1), path, f"image_path {wrong}")
    check_dicom_ids(ids["dicom_id"], path)
    table = ids.assign(
        subject_id=whole_numbers(ids["subject_id"], path), study_id=whole_numbers(ids["study_id"], path),
        view=frame["ViewPosition"], split=frame["split"],
        image_path=[os.path.join(path.parent, name) for name in names],
        report=stated_reports(frame["text"]) if with_reports else "",
    ).reset_index(drop=True)  # fmt: skip
    check_unique(table, ["dicom_id"], path)
    table = pd.concat([table, authors_codes(frame["label"], path)], axis=1)
    check_one_each(table, "study_id", list(FINDINGS), path, "label", "correct the wrong rows", "dicom_id")
    return table


def stated_reports(texts: pd.Series) -> pd.Series:
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
            codes_are = f"{len(FINDINGS)} codes out of 1 (present), -1 (absent), -2 (uncertain), 0 (not mentioned)"
            raise InputError(f"{path}, data row {row + 1}: label {reason(text)!r} is no list of {codes_are}") from None
    return pd.DataFrame(codes, columns=list(FINDINGS)).take(places).reset_index(drop=True)
