"""What stands beside generated images and reports: floors and ceilings that need no generator.

unseen     other real images, of patients whom the judge does not know, with the labels of the requests
copying    a training image, or training report, of the nearest labels
selected   random training pairs that select_pairs.py chose in the same way as the evaluated ones (FLOOR_FILE)
texts      a report that only lists the labels, one report for all images, shuffled reports
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import text_metrics
from utils.csv_files import read_csv
from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, PRESENT, UNCERTAIN
from utils.references import References, label_distances
from utils.seeds import keyed_generator, keyed_seed

FLOOR_FILE, SELECTION_FILE = "floor.csv", "selection.json"  # in a selected tree


def matched_draws(asked: np.ndarray, codes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Rows with the labels of requests => (draws, N) row numbers.

    asked (N, 14), codes (M, 14): label vectors of requests and rows. A draw takes a row with the same vector where one
    is left, else one with the nearest vector (`label_distances`). It takes no row twice before it has taken all M.
    """
    vectors, group_of_row = np.unique(codes, axis=0, return_inverse=True)
    requests, request_of = np.unique(asked, axis=0, return_inverse=True)
    rows_of_group = pd.Series(range(len(codes))).groupby(group_of_row.ravel()).indices
    distances = np.stack([label_distances(vectors, request) for request in requests])
    nearest = distances.argsort(axis=1, kind="stable")  # groups of each kind of request
    drawn = np.full((draws, len(asked)), -1)
    for number, places in enumerate(drawn):
        rng, left = np.random.default_rng(keyed_seed(seed, "floor", number)), {}
        order = rng.permutation(len(asked))
        for same_labels in (True, False):  # a request without equals must not take another one's
            for place in order[places[order] < 0]:
                if not any(left.values()):
                    left = {group: rng.permutation(rows).tolist() for group, rows in rows_of_group.items()}
                groups = nearest[request_of.ravel()[place]]
                group = groups[0] if same_labels else next(group for group in groups if left[group])
                if left[group] and (not same_labels or (vectors[group] == asked[place]).all()):
                    places[place] = left[group].pop()
    return drawn


def nearest_by_labels(table: pd.DataFrame, train_table: pd.DataFrame, seed: int) -> np.ndarray:
    """For each row the index label of a row of train_table with the nearest label vector, drawn among equals."""
    generators = [keyed_generator(seed, "copying", dicom_id) for dicom_id in table["dicom_id"]]
    rows = References(train_table).draw_for(table.assign(subject_id=-1), generators)
    return train_table.index.to_numpy()[rows]


def selected_floor(tree: str | Path, table: pd.DataFrame, train_table: pd.DataFrame) -> np.ndarray | None:
    """The training row that FLOOR_FILE names for each synthetic image of a selected tree, (N,); None without the file.

    table, train_table: synthetic and training rows. InputError where an image or a training row is missing.
    """
    path = Path(tree) / FLOOR_FILE
    if not path.is_file():
        return None
    names = read_csv(path, ("dicom_id",), texts=("floor_dicom_id",)).drop_duplicates("dicom_id")
    wanted = table["dicom_id"].map(names.set_index("dicom_id")["floor_dicom_id"])
    places = pd.Index(train_table["dicom_id"]).get_indexer(wanted)
    if (places < 0).any():
        bare = f"{(places < 0).sum()} of {len(table)} images, e.g. {table['dicom_id'][places < 0].iloc[0]}"
        way_out = "set TRAIN, or REAL, to the tree that the selection read, with its VIEWS and HOLD_OUT"
        raise InputError(f"{path} names no readable training image for {bare}: {way_out}, or delete the file")
    return places


def describe_selection(tree: str | Path) -> str:
    """Whether and how the images or reports of a tree were selected, as a sentence without its full stop."""
    path = Path(tree) / SELECTION_FILE
    if path.is_file():
        how = json.loads(path.read_text(encoding="utf-8"))
        agree = [f"{part['share that agrees']:.0%}" for part in (how, how["floor"])]
        pairs = f"{how['kept']} of {how['candidates']} pairs for {how['requests']} requests"
        shares = f"{agree[0]} of the candidates agree with their request, of random training pairs {agree[1]}"
        compare = "compare with the floor that was selected in the same way, and with unselected pairs"
        return f"{pairs}, selected by {how['by']} (KEEP {how['keep']}); {shares}: {compare}"
    return "not selected: every image and report that was made for a request counts"


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a report."""
    return table[table["report"] != ""]


def constant_normal_report(train_table: pd.DataFrame) -> str:
    """The best single report for all images, out of those of training images without findings, else out of all."""
    table = reported(train_table)
    normal = table[table["No Finding"] == PRESENT]
    return text_metrics.constant_report((normal if len(normal) else table)["report"])


def label_only_report(codes: np.ndarray) -> str:
    """A report that lists 14 codes and nothing else: what can be known without an image."""
    sentences = {PRESENT: "There is {}.", ABSENT: "There is no {}.", UNCERTAIN: "Possible {}."}
    findings = [sentences[code].format(name.lower()) for name, code in zip(FINDINGS, codes) if code in sentences]
    report = "FINDINGS: " + (" ".join(findings) or "Chest X-ray.")
    present = [f"{name.capitalize()}." for name, code in zip(FINDINGS, codes) if code == PRESENT]
    return f"{report} IMPRESSION: {' '.join(present)}" if present else report


def shuffled(reports: Sequence[str], seed: int) -> list[str]:
    """The reports in another order, none in its own place; "" stays where it is."""
    moved = np.array(reports, dtype=object)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(moved != ""))
    moved[order] = moved[np.roll(order, 1)]
    return moved.tolist()
