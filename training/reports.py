"""Reports to train on, of a table or of a CSV without images, and the report autoencoder's examples of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import default_collate

from models.report_autoencoder import tokenise
from training.batches import Examples
from utils import csv_files
from utils.csv_files import csv_header, read_csv
from utils.errors import InputError, say
from utils.report_cleaning import MARK, clean_report
from utils.report_text import join_sections, report_text
from utils.seeds import keyed_seed

COPY_WORDS = 5  # a shorter report is a phrase that many write
POOL_BATCHES = 50  # batches of reports that are sorted by length together


def reported_rows(table: pd.DataFrame, what: str = "images") -> pd.DataFrame:
    """The rows (what: they are) that have a report, cleaned; prints what was dropped. InputError if none has one."""
    texts = table["report"].map(clean_report)
    reported = texts != ""
    emptied = (table["report"][~reported].str.strip() != "").sum()
    say(f"reports: {reported.sum()} of {len(table)} {what} have one; cleaning left no sentence of {emptied} others")
    if not reported.any():
        raise InputError(f"none of the {what} has a report; set REPORTS_ROOT to where the .txt files are")
    return table.assign(report=texts)[reported].reset_index(drop=True)


def study_reports(table: pd.DataFrame) -> pd.DataFrame:
    """The `reported_rows` of a table's distinct studies => columns subject_id, study_id, split, report."""
    studies = table.drop_duplicates(["subject_id", "study_id"])[["subject_id", "study_id", "split", "report"]]
    return reported_rows(studies, "studies")


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


class ReportExamples(Examples):
    """Cleaned reports, tokenised once; flags: what they say, (n, K) bool, for a readout; or None."""

    def __init__(self, reports, autoencoder, batch_size, flags=None):
        self.reports = list(reports)
        self.flags = None if flags is None else torch.from_numpy(flags)
        self.tokens, cut = tokenise(self.reports, autoencoder.tokenizer, autoencoder.max_tokens)
        self.lengths = np.array([len(ids) for ids in self.tokens])
        self.batch_size, self.width, self.tokenizer = batch_size, autoencoder.width, autoencoder.tokenizer
        cuts = f"{cut} of {len(self.tokens)} reports cut at {autoencoder.max_tokens}"
        say(f"tokens: {self.lengths.mean():.0f} a report, {self.lengths.max()} at most; {cuts}")

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row_and_seed):
        row, seed = row_and_seed
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.width, generator=generator)  # (D,)
        steps = torch.randint(1, max(2, len(self)), (), generator=generator).item()  # to another row
        ids, other_ids = (torch.tensor(self.tokens[place]) for place in (row, (row + steps) % len(self)))  # (L,), (L',)
        example = {"input_ids": ids, "noise": noise, "other_ids": other_ids}
        return example if self.flags is None else {**example, "flags": self.flags[row].float()}

    def longest(self, size: int) -> dict[str, torch.Tensor]:
        """A batch of the longest reports, which needs the most memory."""
        return self.collate([self[row, 0] for row in np.argsort(-self.lengths, kind="stable")[:size]])

    def collate(self, examples):
        """=> input_ids and attention_mask (B, L of the longest), other_ids and other_mask (B, L'), the rest stacked."""
        batch, others = (
            self.tokenizer.pad({"input_ids": [example[name] for example in examples]}, return_tensors="pt")
            for name in ("input_ids", "other_ids")
        )
        rest = default_collate([{name: one[name] for name in one.keys() & {"noise", "flags"}} for one in examples])
        return {**batch, **rest, "other_ids": others["input_ids"], "other_mask": others["attention_mask"]}

    def count_terms(self, batch):
        """The tokens of a batch, without padding."""
        return batch["attention_mask"].sum().item()

    def order(self, generator, head=0):
        """The positions of an epoch, shuffled, by similar lengths in POOL_BATCHES batches; a last batch stays last."""
        shuffled = generator.permutation(len(self))
        batches = []
        for start in range(head, len(self), POOL_BATCHES * self.batch_size):
            pool = shuffled[start : start + POOL_BATCHES * self.batch_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[first : first + self.batch_size] for first in range(0, len(pool), self.batch_size)]
        rest = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        batches = [batches[place] for place in generator.permutation(len(batches))]
        return np.concatenate([shuffled[:head], *batches, *rest])
