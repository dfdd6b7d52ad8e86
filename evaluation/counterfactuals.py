"""What differs between films and their counterfactual twins: the finding that was to change, and what else.

report.md says what is measured: flip, drift, inside, SSIM and reports. No Finding follows from the others and never
counts. Floors: another film as the twin, with the film's or the twin's findings. Ceiling: exact twins of drawn films.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from evaluation.agreement import share_interval
from evaluation.images import Images, ImageSets
from evaluation.judges import Judge
from evaluation.metrics import mean_or_nan
from evaluation.sections import image_reading, report_reading
from utils.errors import InputError
from utils.findings import CODE_NAMES, FINDINGS, PRESENT, finding_index
from utils.mimic_cxr import read_table, read_twins
from utils.pixels import read_grey

TRUE_CHANGE, TRUE_BORDER = 5, 3  # grey levels that JPEG alone hardly changes; pixels
CEILING = "exact twins of drawn films (ceiling)"
FLOORS = ("a real film with the film's findings (floor)", "a real film with the twin's findings (floor)")


@dataclass(frozen=True)
class Twins:
    """N twins beside their films."""

    table: pd.DataFrame  # the rows of `read_twins`
    labels: np.ndarray  # of film and twin, (2, N, 14) codes
    seen: np.ndarray  # what the judge sees in their images, (2, N, 14) readings
    told: np.ndarray | None  # what is read in their reports, (2, N, 14) readings; None without reports
    pixels: np.ndarray  # (2, N, S, S) uint8

    @classmethod
    def of(cls, table: pd.DataFrame, images: Images, judge: Judge, text_judge) -> "Twins":
        """Those rows of `read_twins` whose film and twin are among the images."""
        places = pd.Index(images.table["dicom_id"])
        rows = np.stack([places.get_indexer(table[name]) for name in ("film_dicom_id", "dicom_id")])
        kept = (rows >= 0).all(axis=0)
        table, rows = table[kept].reset_index(drop=True), rows[:, kept]
        reports, size = images.table["report"], images.loading.image_size
        told = None
        if text_judge is not None and (reports != "").any():
            told = report_reading(text_judge, reports, (reports != "").to_numpy())[rows]
        films = {row: read_grey(images.table["image_path"][row], size) for row in np.unique(rows)}
        pixels = np.stack([[films[row] for row in side] for side in rows])
        return cls(table, images.codes()[rows], image_reading(judge, images)[rows], told, pixels)

    def changed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """=> (the findings that change, (N,); whether they become present, (N,); which others count, (N, 14))."""
        finding = self.table["finding"].map(finding_index).to_numpy()
        others = self.labels[0] == self.labels[1]
        others[np.arange(len(finding)), finding] = False
        others[:, finding_index("No Finding")] = False
        return finding, (self.table["to"] == CODE_NAMES[PRESENT]).to_numpy(), others


def evaluate(sets: ImageSets, judge: Judge, text_judge, tree: str, exact: str) -> dict:
    """The parts of evaluation.json about the twins in a tree, or {}; exact: a tree of exact twins, "" for none."""
    table = read_twins(tree)
    if table is None or not table["dicom_id"].isin(sets.synthetic.table["dicom_id"]).any():
        return {}
    twins = Twins.of(table, sets.synthetic, judge, text_judge)
    groups = {"synthetic": twins, **dict(zip(FLOORS, _other_films(sets, twins, judge, text_judge)))}
    known = dict.fromkeys(groups)  # name => true differences
    if exact:
        images, pair = Images(read_table(exact), exact, judge.image_size, sets.real.loading), ["source", "finding"]
        every = Twins.of(read_exact(exact, table), images, judge, text_judge)
        known = dict.fromkeys(groups, true_differences(twins.table, every))  # the floors are of the same films
        asked = every.table.drop_duplicates(pair)  # one of several places
        groups[CEILING], known[CEILING] = Twins.of(asked, images, judge, text_judge), true_differences(asked, every)
    rows = [{"twins": name, **_row(group, known[name], sets.seed)} for name, group in groups.items()]
    return {"counterfactuals": rows, "counterfactual_findings": _by_finding(twins, groups.get(CEILING))}


def read_exact(exact: str, twins: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of `read_twins` of a tree of exact twins that are of these twins' changes; InputError for none."""
    every, pair = read_twins(exact), ["source", "finding"]
    rows = None if every is None or twins is None else every.merge(twins[pair].drop_duplicates())
    if rows is None or rows.empty:
        raise InputError(f"{exact} has no exact twins of these films: draw them by python -m phantom, or empty TWINS")
    return rows


def _other_films(sets, twins, judge, text_judge):
    """The twins' films with other films in place of the twins: training images of the film's and the twin's labels."""
    places = pd.Index(sets.synthetic.table["dicom_id"])
    for name in ("film_dicom_id", "dicom_id"):
        rows = sets.copies[places.get_indexer(twins.table[name])]
        reports, paths = (sets.train.table[column].iloc[rows] for column in ("report", "image_path"))
        told, size = None, twins.pixels.shape[-1]
        if twins.told is not None:
            told = np.stack([twins.told[0], report_reading(text_judge, reports, (reports != "").to_numpy())])
        seen = np.stack([twins.seen[0], image_reading(judge, sets.train, rows)])
        pixels = np.stack([twins.pixels[0], [read_grey(path, size) for path in paths]])
        yield Twins(twins.table, twins.labels, seen, told, pixels)


def true_differences(table: pd.DataFrame, drawn: Twins) -> list[np.ndarray]:
    """For each row of `read_twins` the true differences of its film and finding, (K, S, S) bool; K 0: not known."""
    differs = np.abs(drawn.pixels[1].astype(int) - drawn.pixels[0]) > TRUE_CHANGE
    differs = ndimage.binary_dilation(differs, np.ones((1, 3, 3), dtype=bool), iterations=TRUE_BORDER)
    asked = drawn.table.groupby(["source", "finding"]).indices
    return [differs[asked.get(key, slice(0))] for key in zip(table["source"], table["finding"])]


def _flips(twins):
    """(which films show the finding as they are labelled; which of these have a twin that shows it changed), (N,)."""
    finding, present, _ = twins.changed()
    before, after = twins.seen[:, np.arange(len(finding)), finding]
    labelled = before == ~present
    return labelled, labelled & (after == present)


def _row(twins, truth, seed):
    """The measures of one set of twins; truth: their `true_differences`, None where nothing is known."""
    finding, present, others = twins.changed()
    (labelled, flips), (before, after), every = _flips(twins), twins.seen, np.arange(len(finding))
    counted = others & ~np.isnan(before) & ~np.isnan(after)
    row = {"N": len(finding), "flip": mean_or_nan(flips[labelled])}
    row["low"], row["high"] = share_interval(flips, labelled, twins.table["source"].to_numpy(), seed)
    row |= {"taken away": mean_or_nan(flips[labelled & ~present]), "added": mean_or_nan(flips[labelled & present])}
    row["drift"] = mean_or_nan((before != after)[counted])
    row |= _places(twins.pixels, truth, present)
    if twins.told is not None:
        told, wanted = twins.told, np.stack([~present, present])
        known = ~np.isnan(told).any(axis=0)
        only = (told[:, every, finding] == wanted).all(axis=0) & ((told[0] == told[1]) | ~(others & known)).all(axis=1)
        row["reports differ in it alone"] = mean_or_nan(only[known[every, finding]])
    return row


def _places(pixels, truth, present):
    """Where the pixels (2, N, S, S) change: shares inside the true differences, and similarity."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds

    similar, inside, outside = np.full((3, pixels.shape[1]), np.nan)
    for place, pair in enumerate(zip(*pixels)):
        film, twin = (torch.from_numpy(side.astype(np.float64))[None, None] for side in pair)
        each = structural_similarity_index_measure(film, twin, data_range=255.0, return_full_image=True)[1][0, 0]
        similar[place], change = each.mean(), (film - twin).abs()[0, 0].numpy()
        if truth is not None and len(truth[place]) and change.any():
            shares = [change[mask].sum() / change.sum() for mask in truth[place]]
            inside[place], nearest = max(shares), truth[place][int(np.argmax(shares))]
            outside[place] = mean_or_nan(each.numpy()[~nearest])
    known = ~np.isnan(inside)
    return {
        "inside, taken away": mean_or_nan(inside[known & ~present]), "SSIM": similar.mean(),
        "inside, added": mean_or_nan(inside[known & present]), "SSIM outside": mean_or_nan(outside[~np.isnan(outside)]),
    }  # fmt: skip


def _by_finding(twins, drawn):
    """Per finding: the twins of which it is changed, and the flips of these and of the exact twins."""
    rows = []
    for name in (name for name in FINDINGS if (twins.table["finding"] == name).any()):
        rows.append({"finding": name, "N": int((twins.table["finding"] == name).sum())})
        for column, each in {"flip": twins, "exact twins: flip": drawn}.items():
            if each is not None:
                labelled, flips = (rows_of & (each.table["finding"] == name).to_numpy() for rows_of in _flips(each))
                rows[-1][column] = mean_or_nan(flips[labelled])
    return rows
