"""Reads and writes CXR trees: chest X-rays, labels and reports in the file layout of MIMIC-CXR-JPG.

The data contract, for everything that reads or writes images here:

layout   A *CXR tree* is a folder with
             mimic-cxr-2.*-metadata.csv[.gz]   one row an image: ids, view, size
             mimic-cxr-2.*-chexpert.csv[.gz]   one row a study: the 14 findings
             mimic-cxr-2.*-split.csv[.gz]      one row an image: its split
             files/pNN/pNNNNNNNN/sNNNNNNNN/<dicom_id>.jpg    or .dcm; pNN: the group, the first two digits of the id
             files/pNN/pNNNNNNNN/sNNNNNNNN.txt               the study's report; or in a second root, or in a zip
             synthetic.csv                     if its images are generated: for each dicom_id what made it
labels   1 present, -1 absent, -2 uncertain, 0 not mentioned (utils.findings). On disk a tree has PhysioNet's
         1.0 / 0.0 / -1.0 / blank; the authors' CSV has the codes, and so has a tree's whose column coding says authors.
views    DICOM's ViewPosition: "PA" and "AP" are frontal, "LATERAL" and "LL" are not; "" if it is unknown.
splits   "train", "validate", "test"; whole patients. The groups in hold_out are "test", whatever the split file says;
         with ONE_STUDY in it the last study of each patient who has several is left out (see audit_privacy.py).
ids      A dicom_id names a file: 1 to 100 characters, no separator, no dot in front. subject_id and study_id are whole
         numbers from 1 to 10^15, and a study has one patient.
pixels   8-bit grey JPEGs of any size, air black (0) and bone white (255).
reports  The text of the findings and of the impression, "FINDINGS: ... IMPRESSION: ...", see `report_text`.
table    A pandas DataFrame, one row an image, in the order of the metadata: dicom_id (str), subject_id (int),
         study_id (int), view, split, image_path, report (str) and the columns of FINDINGS (int8).
"""

import gzip
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils.csv_files import check_one_each, check_splits, count_values, parse_csv, read_authors_csv, read_csv
from utils.errors import InputError, as_input_error, reason, say, write_whole
from utils.findings import FINDINGS, codes_of_tree, to_physionet
from utils.report_text import report_file, report_sections, report_text

TABLE_COLUMNS = ("dicom_id", "subject_id", "study_id", "view", "split", "image_path", "report", *FINDINGS)
METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
NEW_METADATA = {
    "PerformedProcedureStepDescription": "CHEST (SINGLE VIEW)",
    "StudyDate": "21800101",  # PhysioNet shifts dates to the years 2100 to 2200; a drawn image has none
    "StudyTime": "0.0",
    "ProcedureCodeSequence_CodeMeaning": "CHEST (SINGLE VIEW)",
}
VIEW_MEANINGS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral"}
REPORTS_ARCHIVE = "mimic-cxr-reports.zip"
PROVENANCE_FILE = "synthetic.csv"
ONE_STUDY = "one study"  # in hold_out: of each patient with several studies the one of the highest study_id
TWINS_FILE = "counterfactuals.csv"  # in a tree of films and their counterfactual twins, see `read_twins`
TWIN_COLUMNS = ("dicom_id", "film_dicom_id", "source", "finding", "from", "to", "method", "strength")
PICTURE_FILE = "first.png"  # the first images of a synthetic tree, see sampling/first_images.py


def read_table(
    root: str | Path, reports_root: str | Path = "", views: Sequence[str] = (), splits: Sequence[str] = (),
    hold_out: Sequence[str] = (), with_reports: bool = True, check_images: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """The table of a CXR tree, or of the authors' CSV.

    root: the tree's folder, or a .csv or .csv.gz with the columns label (14 codes as a list in text), ViewPosition,
        split, image_path (relative to the CSV's folder, with or without a / in front, and inside it; of .dcm and .jpg
        the latter is read) and text ("none" or blank: no report). Rows with a blank label, split or path are dropped.
    reports_root: the place of reports that are not in the tree: a folder with files/pNN or pNN in it, or the path (or
        the folder) of PhysioNet's mimic-cxr-reports.zip, which stays packed. Not used for the authors' CSV.
    views, splits: names to keep, e.g. ("PA",) and ("train", "validate"); empty keeps all.
    hold_out: patient groups, e.g. ("p19",), whose rows become split "test". PhysioNet's own test rows stay test. With
        ONE_STUDY among them, the study of the highest study_id of each patient who has several is dropped.
    with_reports: False leaves every report "" and opens none.
    check_images: False does not check that each image is on disk.

    Prints what each step dropped. InputError for files against the module's contract, and if no row is left.
    """
    root = Path(root)
    from_csv = root.name.endswith((".csv", ".csv.gz"))
    table = read_authors_csv(root, with_reports) if from_csv else _read_tree(root)
    table = _hold_out(table, hold_out)
    check_one_each(table, "study_id", ["subject_id"], root, "patient", "give each study an id of its own")
    way_out = "what is trained on would be evaluated on, so give each patient one split (or hold out its group)"
    check_one_each(table, "subject_id", ["split"], root, "split", way_out)
    table = _keep_names(table, "view", views, root)
    table = _keep_names(table, "split", splits, root)
    if check_images:
        table = _keep_existing_images(table, root)
    if with_reports and from_csv:
        table["report"] = table["report"].map(cache(report_text))
        say(f"reports: {(table['report'] != '').sum()} of {len(table)} images have one")
    elif with_reports:
        table["report"] = _read_reports(table, root, Path(reports_root) if reports_root else None)
    return table[list(TABLE_COLUMNS)]


def split_rows(table: pd.DataFrame, split: str, root: str | Path = "") -> np.ndarray:
    """The row numbers of one split of a table; InputError if there are none; root: what the table was read from."""
    rows = np.flatnonzero(table["split"] == split)
    if not len(rows):
        there = count_values(table["split"]) or "none at all"
        where = f"the split {split!r} of {root or 'the table'}"
        raise InputError(f"no rows in {where} after the filters; there are {there}")
    return rows


def image_file(root: str | Path, subject_id: int, study_id: int, dicom_id: str) -> Path:
    """The path of an image in a tree."""
    return Path(root, "files", _study_folder(subject_id, study_id), f"{dicom_id}.jpg")


def image_files(root: str | Path, table: pd.DataFrame) -> list[str]:
    """`image_file` of each row of a table, as texts: Paths would take as long as all the rest of a plan."""
    ids = zip(table["subject_id"], table["study_id"], table["dicom_id"])
    return [f"{root}/files/{_study_folder(subject, study)}/{dicom}.jpg" for subject, study, dicom in ids]


def _study_folder(subject_id: int, study_id: int) -> str:
    return f"p{str(subject_id)[:2]}/p{subject_id}/s{study_id}"


def _read_tree(root: Path) -> pd.DataFrame:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; name the folder of a CXR tree (or a .csv file)")
    files = {kind: _find_csvs(root, kind) for kind in ("metadata", "chexpert", "split")}
    if missing := [f"mimic-cxr-2.*-{kind}.csv[.gz]" for kind, paths in files.items() if not paths]:
        raise InputError(f"{root} is not a CXR tree: there is no {' and no '.join(missing)} in it")
    for kind, (path, *others) in files.items():
        if others:
            unread = ", ".join(other.name for other in others)
            say(f"{root} has {1 + len(others)} CSVs of the {kind}: {path.name} is read, and not {unread}")
    (of_metadata, *_), (of_labels, *_), (of_split, *_) = files.values()

    ids = ["subject_id", "study_id"]
    metadata = read_csv(of_metadata, (*ids, "dicom_id"), texts=("ViewPosition",), key=["dicom_id"])
    chexpert = read_csv(of_labels, (*ids, *FINDINGS), optional=("coding",), key=ids)
    split = read_csv(of_split, ("dicom_id",), texts=("split",), key=["dicom_id"])
    check_splits(split, of_split)

    codes = pd.concat([chexpert[ids], codes_of_tree(chexpert, of_labels)], axis=1)
    table = metadata.rename(columns={"ViewPosition": "view"}).merge(split, "left", "dicom_id").merge(codes, "left", ids)
    labelled, divided = table[FINDINGS[0]].notna(), table["split"].notna()
    if not labelled.all():
        _say_kept("labels", labelled, f"of studies not in {of_labels.name} dropped")
    if not divided[labelled].all():
        _say_kept("splits", divided[labelled], f"not in {of_split.name} dropped")
    table = table[labelled & divided].reset_index(drop=True).astype(dict.fromkeys(FINDINGS, np.int8))
    if table.empty:
        raise InputError(f"{root} has no image with labels and a split: its three CSVs have no row in common")
    table["image_path"] = image_files(root, table)
    table["report"] = ""
    return table


def _find_csvs(root: Path, kind: str) -> list[Path]:
    """The CSVs of a kind: the newest version first, unpacked (it may be a user's own) before packed."""
    found = [*root.glob(f"mimic-cxr-2.*-{kind}.csv"), *root.glob(f"mimic-cxr-2.*-{kind}.csv.gz")]
    return sorted(found, key=lambda path: (path.name.removesuffix(".gz"), path.suffix == ".csv"), reverse=True)


def _say_kept(what: str, mask: pd.Series, why: str) -> None:
    say(f"{what}: {mask.sum()} of {len(mask)} images kept ({(~mask).sum()} {why})")


def _keep_names(table: pd.DataFrame, column: str, names: Sequence[str], root: Path) -> pd.DataFrame:
    if not names:
        return table
    mask = table[column].isin(names)
    if not mask.any():
        there = count_values(table[column])
        raise InputError(f"{column}s {', '.join(names)}: empty, no image of {root} is left; there are {there}")
    others = f": {count_values(table.loc[~mask, column])}" if not mask.all() else ""
    _say_kept(f"{column}s {', '.join(names)}", mask, f"of other {column}s dropped{others}")
    return table[mask].reset_index(drop=True)


def _hold_out(table: pd.DataFrame, hold_out: Sequence[str]) -> pd.DataFrame:
    """Gives patient groups such as p19 the split "test", and drops ONE_STUDY; all trainers leave out by this rule."""
    groups = [group for group in hold_out if group != ONE_STUDY]
    if wrong := [group for group in groups if not re.fullmatch(r"p\d\d", str(group))]:
        way_out = f"name a folder such as p19, or {ONE_STUDY!r}"
        raise InputError(f"{wrong[0]!r} in hold_out is not a patient group; {way_out}")
    if groups:
        mask = ("p" + table["subject_id"].astype(str).str[:2]).isin(groups)
        moved = mask & (table["split"] != "test")
        say(f"hold-out {', '.join(groups)}: {mask.sum()} images are test, {moved.sum()} of them moved there")
        table.loc[mask, "split"] = "test"
    if ONE_STUDY in hold_out:
        studies = table.groupby("subject_id")["study_id"]
        kept = (table["study_id"] < studies.transform("max")) | (studies.transform("nunique") == 1)
        _say_kept(f"hold-out {ONE_STUDY}", kept, "of the last study of a patient who has several dropped")
        table = table[kept].reset_index(drop=True)
    return table


def _keep_existing_images(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    paths = table["image_path"].copy()
    mask = paths.map(os.path.isfile)
    dicoms = paths[~mask].str.replace(r"\.jpg$", ".dcm", regex=True)
    dicoms = dicoms[dicoms.map(os.path.isfile).astype(bool)]
    paths[dicoms.index], mask[dicoms.index] = dicoms, True
    first = table["image_path"][mask.to_numpy().argmin()]  # of those that are not on disk
    if not mask.any():
        raise InputError(f"none of the {len(table)} images is on disk, e.g. {first}; is {root} complete?")
    if not mask.all():
        say(f"images: dropped {(~mask).sum()} of {len(table)} rows whose image is not on disk, e.g. {first}")
    table = table.assign(image_path=paths)[mask].reset_index(drop=True)
    if count := table["image_path"].str.endswith(".dcm").sum():
        mixed = "; MIMIC-CXR-JPG's JPEGs are histogram-equalised, which these are not" if count < len(table) else ""
        say(f"images: {count} of {len(table)} are DICOM files, read through their windows{mixed}")
    return table


def _read_reports(table: pd.DataFrame, root: Path, reports_root: Path | None) -> list[str]:
    """The report of each row; each study is read once, from the first place that has it."""
    if reports_root and not reports_root.exists():
        raise InputError(f"there is no {reports_root} to read reports from; set REPORTS_ROOT")
    places = [root / "files"]  # folders, on disk or in a zip, in which p10/p10000032/s50414267.txt may be
    if reports_root and reports_root.is_dir():
        inner = reports_root / "files"
        places.append(inner if inner.is_dir() else reports_root)
    for place in filter(None, (root, reports_root)):
        path = place / REPORTS_ARCHIVE if place.is_dir() else place
        if path.is_file():
            failed = f"{path} cannot be read as a zip file"
            with as_input_error(lambda error, failed=failed: f"{failed}: {reason(error)}; fetch it again"):
                places.append(zipfile.Path(zipfile.ZipFile(path), "files/"))
    studies = [_study_folder(subject, study) for subject, study in zip(table["subject_id"], table["study_id"])]
    raw = {study: _read_report(places, study) for study in dict.fromkeys(studies)}
    texts = {study: "" if content is None else report_text(content) for study, content in raw.items()}
    without_file, blank = [*raw.values()].count(None), [*texts.values()].count("")
    place = f" in {reports_root or root}" if without_file else ""
    others = f"{without_file} without a file{place}, {blank - without_file} without findings or impression in it"
    say(f"reports: {len(texts) - blank} of {len(texts)} studies have one ({others})")
    return [texts[study] for study in studies]


def _read_report(places: list[Path | zipfile.Path], study: str) -> str | None:
    """The text of the first file of a study, None if there is none; study: such as p10/p10000032/s50414267."""
    for place in places:
        try:
            return (place / f"{study}.txt").read_bytes().decode("utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except Exception as error:  # no permission, a failing disk; in a zip: damaged, encrypted, unknown compression
            unreadable = f"the report {study}.txt in {place} cannot be read ({reason(error)})"
            raise InputError(f"{unreadable}; repair it, or unpack its zip") from error
    return None


def write_tree(
    root: str | Path, table: pd.DataFrame, provenance: pd.DataFrame | None = None,
    provenance_file: str = PROVENANCE_FILE,
) -> None:  # fmt: skip
    """Adds rows to a CXR tree, which is made if there is none; reading it back gives the same rows.

    table: the columns of `read_table`, except image_path: the caller has written each image at `image_file(...)`
        before. Its (width, height) in pixels is read there where there is no column size. Images of one study share
        their labels and report. Columns indication and comparison, if any, become further sections of its file.
    provenance: a DataFrame with dicom_id and what made each image, or where it is from, for provenance_file.

    For an image or a study that is there already, the given columns are replaced; its other columns and all other rows
    stay. Each file is replaced in one step and the metadata, which makes rows visible, last: a killed run leaves a
    readable tree. The bytes do not depend on the order in which rows were added. Only one process at a time may write.
    """
    root = Path(root)
    ids = ["subject_id", "study_id"]
    studies = table.drop_duplicates(ids)
    assert table["dicom_id"].is_unique
    assert len(studies) == len(table.drop_duplicates([*ids, "report", *FINDINGS])), "a study has two reports or labels"

    sizes = list(table.get("size", ()))
    for path in image_files(root, table)[len(sizes) :]:
        with Image.open(path) as image:  # reads the header alone
            sizes.append(image.size)
    metadata = table[["dicom_id", *ids]].assign(
        ViewPosition=table["view"], Rows=[height for _, height in sizes], Columns=[width for width, _ in sizes],
        ViewCodeSequence_CodeMeaning=table["view"].map(VIEW_MEANINGS).fillna(""),
    )  # fmt: skip
    chexpert = pd.concat([studies[ids], to_physionet(studies)], axis=1)
    further = [name for name in ("indication", "comparison") if name in table]
    for subject, study, report, *texts in studies[[*ids, "report", *further]].itertuples(index=False):
        if report:
            path = root / "files" / f"{_study_folder(subject, study)}.txt"
            content = report_file(*report_sections(report), dict(zip(map(str.upper, further), texts)))
            write_whole(path, content, where=root)
    if provenance is not None:
        _merge_csv(root / provenance_file, provenance, ["dicom_id"])
    for kind, frame, keys in (
        ("chexpert", chexpert, ids),
        ("split", table[["dicom_id", "study_id", "subject_id", "split"]], ["dicom_id"]),
        ("metadata", metadata, ["dicom_id"]),
    ):
        path = next(iter(_find_csvs(root, kind)), root / f"mimic-cxr-2.0.0-{kind}.csv.gz")
        _merge_csv(path, frame, keys, NEW_METADATA if kind == "metadata" else {})


def read_twins(root: str | Path) -> pd.DataFrame | None:
    """The counterfactual twins of a tree, a row each with TWIN_COLUMNS as text; None for a tree without TWINS_FILE.

    dicom_id, film_dicom_id: of the twin and of its film, both in the tree; source: where the film is from, the dicom_id
    of a real film; finding: the one that differs, with its codes' names in film and twin in `from` and `to`.
    """
    path = Path(root) / TWINS_FILE
    return read_csv(path, texts=TWIN_COLUMNS, key=["dicom_id"]) if path.exists() else None


def _merge_csv(path: Path, frame: pd.DataFrame, keys: list[str], defaults: dict[str, str] | None = None) -> None:
    """Adds rows to a CSV, sorted by ids; cells of rows with the same keys are replaced; defaults: cells of new rows."""
    as_text = partial(parse_csv, dtype=str, keep_default_na=False)
    frame = as_text(io.StringIO(frame.to_csv(index=False)))
    columns = list(METADATA_COLUMNS) if defaults else list(frame.columns)
    ids = [name for name in ("subject_id", "study_id", "dicom_id") if name in frame]
    if path.exists():
        read_csv(path, ids, key=keys)  # InputError for a damaged file
        old = as_text(path)
        columns = list(dict.fromkeys([*old.columns, *columns]))
        frame = frame.set_index(keys).combine_first(old.set_index(keys)).reset_index()
    frame = frame.reindex(columns=columns).astype(object).fillna(defaults or {}).fillna("")
    frame = frame.sort_values(ids, key=lambda column: column.astype(int) if column.name != "dicom_id" else column)
    content = frame.to_csv(index=False, lineterminator="\n").encode("utf-8")
    write_whole(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def table_fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 (hex) of the columns of a table that a training reads: ids, split, report and labels, in their order."""
    columns = [name for name in ("dicom_id", "study_id", "split", "report", *FINDINGS) if name in table]
    rows = pd.util.hash_pandas_object(table[columns].astype(str), index=False)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()
