"""Draws the exact twins of drawn films: what a perfect editor would make of the changes in a tree of counterfactuals.

A film and its twin are drawn from one seed: they differ by one finding alone. Where a finding is taken away there is
one exact twin; one that is added may lie anywhere, so that eight twins are drawn, each with it at another place.
"""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from phantom.anatomy import place_finding
from phantom.reports import write_report
from phantom.tree import draw_studies, studies_of_tree
from utils.csv_files import write_csv
from utils.errors import InputError
from utils.findings import CODE_NAMES, PRESENT, finding_index, with_code
from utils.folders import DRAWN_TREE, making, read_manifest
from utils.mimic_cxr import TWIN_COLUMNS, TWINS_FILE, read_twins

_FIRST_ID = 90_000_000  # of patients and studies
_PLACES = 8  # exact twins of a finding that is added


def exact_twins(study: dict, film: tuple, finding: str, code: int) -> list[dict]:
    """The study with another code of a finding, as studies of one film (view, seed, dicom_id); one, or one a place."""
    labels = with_code(study["labels"], finding_index(finding), code)
    others = [drawn for drawn in study["drawn"] if drawn.name != finding]
    twins = []
    for place in range(_PLACES if code == PRESENT else 1):
        rng = np.random.default_rng([study["identity"]["study_id"], finding_index(finding), place])
        taken = {(each.side, each.zone) for each in others}
        added = [place_finding(finding, 1.0, taken, rng)] if code == PRESENT else []
        twin = {**study, "drawn": others + added, "labels": labels}
        twins.append(twin | {"report": write_report(others + added, labels, rng), "films": [film]})
    return twins


def _with_ids(study: dict, number: int) -> dict:
    """The study as one of its own, of a patient of its own, with a film whose dicom_id follows from the number."""
    own_id, (view, seed, _) = _FIRST_ID + number, study["films"][0]
    dicom_id = "-".join(f"{word:08x}" for word in np.random.default_rng(own_id).integers(2**32, size=5))
    return study | {"identity": {"subject_id": own_id, "study_id": own_id}, "films": [(view, seed, dicom_id)]}


def draw_twins(twins_of: str, data_root: str, output_root: str, processes: int) -> None:
    """Draws the films and exact twins of a tree of counterfactuals; InputError where these are not of drawn films."""
    wanted, manifest = read_twins(twins_of), read_manifest(data_root, "DATA_ROOT").get(DRAWN_TREE, {})
    if wanted is None:
        raise InputError(f"{twins_of} has no {TWINS_FILE}: set TWINS_OF to a tree of sample_counterfactuals.py")
    if "studies" not in manifest:
        raise InputError(f"{data_root} is no drawn tree: set DATA_ROOT to the one that {twins_of} has its films from")
    known = {film[2]: (study, film) for study in studies_of_tree(manifest) for film in study["films"]}
    if strange := set(wanted["source"]) - set(known):
        raise InputError(f"{min(strange)!r}, a film in {twins_of}, is not of {data_root}: set DATA_ROOT to its tree")
    drawn, rows, films = [], [], {}
    for source, finding, before, after in wanted[["source", "finding", "from", "to"]].drop_duplicates().to_numpy():
        study, film = known[source]
        if source not in films:
            drawn.append(_with_ids({**study, "films": [film]}, len(drawn)))
            films[source] = drawn[-1]["films"][0][2]
        code = next(code for code, name in CODE_NAMES.items() if name == after)
        for twin in exact_twins(study, film, finding, code):
            drawn.append(_with_ids(twin, len(drawn)))
            rows.append((drawn[-1]["films"][0][2], films[source], source, finding, before, after, "drawn", 1.0))
    settings = {"twins of": manifest, "changes": hashlib.sha256(repr(rows).encode()).hexdigest()}
    with making(DRAWN_TREE, output_root, settings):
        draw_studies(output_root, drawn, manifest["image_size"], processes)
        write_csv(Path(output_root) / TWINS_FILE, pd.DataFrame(rows, columns=TWIN_COLUMNS))
