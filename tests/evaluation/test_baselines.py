"""Floors and ceilings: which rows and texts they are."""

import json

import numpy as np
import pandas as pd
import pytest

from evaluation import baselines
from utils.errors import InputError
from utils.findings import FINDINGS


def test_the_label_only_report_says_each_code():
    labels = np.zeros(14, dtype=int)
    labels[[FINDINGS.index(name) for name in ("Edema", "Fracture", "Pneumonia")]] = 1, -1, -2
    said = baselines.label_only_report(labels)
    assert said == "FINDINGS: There is edema. There is no fracture. Possible pneumonia. IMPRESSION: Edema."


def test_shuffled_reports_are_all_kept_and_none_in_its_own_place():
    reports = [f"report {number}" for number in range(7)]
    moved = baselines.shuffled(reports, seed=3)
    assert sorted(moved) == reports and all(one != other for one, other in zip(reports, moved))
    assert moved == baselines.shuffled(reports, seed=3) != baselines.shuffled(reports, seed=4)


def vectors(*present):
    """Codes, (N, 14): these findings are present."""
    return np.array([[int(place in places) for place in range(14)] for places in present])


def test_draws_have_the_labels_of_the_requests_and_take_no_row_twice():
    asked = vectors([0], [0], [1], [1], [2, 3])
    codes = vectors(*[[0]] * 4, [1], *[[]] * 6, [2], [2, 3, 4, 5])
    draws = baselines.matched_draws(asked, codes, 20, seed=1)
    assert draws.shape == (20, 5) and all(len(set(rows)) == 5 for rows in draws.tolist())
    assert (draws[:, :2] < 4).all() and len({tuple(sorted(rows)) for rows in draws[:, :2].tolist()}) > 3
    assert ((draws[:, 2:4] == 4).sum(axis=1) == 1).all()  # the other one gets the nearest, which is without findings
    assert np.isin(draws[:, 2:4], range(4, 11)).all() and (draws[:, 4] == 11).all()
    assert np.array_equal(draws, baselines.matched_draws(asked, codes, 20, seed=1))


def test_with_fewer_rows_than_requests_each_row_is_taken_equally_often():
    drawn = baselines.matched_draws(vectors(*[[0]] * 7), vectors([0], [0], [3]), 2, seed=1)
    assert all(set(np.bincount(rows, minlength=3)) <= {2, 3} for rows in drawn)


def test_the_floor_of_a_selected_tree_is_the_training_rows_that_it_names(tmp_path):
    table, train = pd.DataFrame({"dicom_id": ["a", "b"]}), pd.DataFrame({"dicom_id": ["t", "u", "v"]})
    assert baselines.selected_floor(tmp_path, table, train) is None
    pd.DataFrame({"dicom_id": ["b", "a", "c"], "floor_dicom_id": ["v", "t", "u"]}).to_csv(tmp_path / "floor.csv")
    assert baselines.selected_floor(tmp_path, table, train).tolist() == [0, 2]
    with pytest.raises(InputError, match="floor.csv names no .* for 1 of 2 images, e.g. b.*TRAIN"):
        baselines.selected_floor(tmp_path, table, train[:2])


def test_whether_a_tree_is_selected_is_said(tmp_path):
    assert "not selected" in baselines.describe_selection(tmp_path)
    how = {"by": "pair", "keep": "first", "requests": 20, "candidates": 60, "kept": 20, "share that agrees": 0.4}
    (tmp_path / "selection.json").write_text(json.dumps(how | {"floor": {"share that agrees": 0.1}}))
    assert "20 of 60 pairs for 20 requests" in baselines.describe_selection(tmp_path)
