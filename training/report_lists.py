"""CSV files of reports without images, which a report autoencoder can be trained on."""

from pathlib import Path

import pandas as pd

from utils import csv_files
from utils.csv_files import csv_header, read_csv
from utils.errors import InputError, say
from utils.report_cleaning import MARK
from utils.report_text import join_sections, report_text
from utils.seeds import keyed_seed

COPY_WORDS = 5  # a shorter report is a phrase that many write


def is_report_list(path: str | Path) -> bool:
    """Whether a path leads to a CSV of reports without images, for `read_report_list`."""
    columns = csv_header(path)
    return "image_path" not in columns and (columns >= {"findings", "impression"} or columns >= {"split", "text"})


def read_report_list(path: str | Path) -> pd.DataFrame:
    """Reports without images => columns subject_id, study_id, split, report.

    path: a CSV, a row a study, with uid, findings and impression, such as Indiana University's open reports, split by
    `_splits_by_hash`; or with split and text, as the authors trained BART on. Each row counts as a patient.
    """
    if csv_header(path) >= {"findings", "impression"}:
        frame = read_csv(path, ["uid", "findings", "impression"], texts=("uid", "findings", "impression"))
        csv_files.check_unique(frame, ["uid"], path)
        reports = [join_sections(*sections) for sections in zip(frame["findings"], frame["impression"])]
        split = _splits_by_hash(frame, path)
    else:
        frame = csv_files.drop_blank(read_csv(path, ["split", "text"], texts=("split", "text")), ["split"], path)
        csv_files.check_splits(frame, path)
        split, reports = [*frame["split"]], [report_text(raw) for raw in csv_files.stated_reports(frame["text"])]
    if frame.empty:
        raise InputError(f"{path} has no rows")
    numbers = range(len(frame))
    table = pd.DataFrame({"subject_id": numbers, "study_id": numbers, "split": split, "report": reports})
    counts = csv_files.count_values(table["split"])
    say(f"{path}: {counts} reports; it names no view and no patient, so none is held out")
    return table


def _splits_by_hash(frame: pd.DataFrame, path: str | Path) -> list[str]:
    """The split of each report of a list, by a hash of its group's first uid: one in ten "validate", one in ten "test".

    A group is what one patient's uids name, with all near-copies of these reports, see docs/data.md.
    """
    # the patient in a uid that is a path (of CheXpert Plus, say), else its folder; other uids stand for themselves
    folders = frame["uid"].str.replace(r"(?<!^)/[^/]*$", "", regex=True)
    named = ("/" + frame["uid"]).str.extract(r"(.*/(?:patient|p)\d+)/")[0].str[1:]
    patients, names = pd.factorize(named.fillna(folders))
    texts = (frame["findings"] + " " + frame["impression"]).str.replace(MARK, " ", regex=True).str.lower()
    words = texts.str.findall("[a-z]+")
    texts = words.str.join(" ").where(words.str.len() >= COPY_WORDS, frame["uid"])
    patients = pd.Series(patients, frame.index)
    groups = csv_files.join_numbers(patients, texts)
    if texts.duplicated().any():
        say(f"{path}: {texts.duplicated().sum()} reports are near-copies of another; copies are in one split")
    of_group = groups.groupby(groups)
    too_large = (groups != patients).groupby(groups).transform("any") & (of_group.transform("size") > len(frame) / 10)
    tenths = groups.map({group: keyed_seed("split", names[group]) % 10 for group in groups.unique()})
    return tenths.mask(too_large, 9).map(lambda tenth: {0: "validate", 1: "test"}.get(tenth, "train")).tolist()
