"""What `make utility` rests on: shares of patients, trees of links, training in stages, the table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import utility
from evaluation import judges
from evaluation.judges import JudgeSettings
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import read_table


def rows_of(make_table, patients=8, images=2, seed=0):
    """A table of patients with so many images each, and random labels."""
    labels = np.random.default_rng(seed).integers(0, 2, (patients * images, len(FINDINGS)))
    table = make_table(labels, np.repeat(np.arange(patients) + 10_000_000, images))
    return table.assign(dicom_id=[f"{row:08x}-00000000-00000000-00000000-00000000" for row in range(len(table))])


def test_a_share_is_of_whole_patients_and_holds_the_smaller_ones(make_table):
    table = rows_of(make_table)
    half, quarter, hardly_any = (utility.share_of(table, share, 3) for share in (0.5, 0.25, 0.001))
    assert [part.subject_id.nunique() for part in (half, quarter, hardly_any)] == [4, 2, 1]
    assert (half.groupby("subject_id").size() == 2).all()
    assert set(hardly_any.subject_id) < set(quarter.subject_id) < set(half.subject_id)
    assert set(utility.share_of(table, 0.5, 4).subject_id) != set(half.subject_id)
    pd.testing.assert_frame_equal(utility.share_of(table, 1.0, 3), table)


def test_a_tree_of_links_is_read_as_the_rows_that_it_was_made_of(make_table, tmp_path):
    table = rows_of(make_table)
    reports = [f"FINDINGS: Image {row}. IMPRESSION: Normal." for row in range(len(table))]
    table = table.assign(report=reports)
    parts = [table[:6].assign(split="train"), table[6:].assign(split="validate")]
    for _ in range(2):  # a second run goes on in the same folder
        root = utility.link_tree(tmp_path / "linked", parts)
    found = read_table(root, views=(), hold_out=()).set_index("dicom_id").loc[table.dicom_id].reset_index()
    assert found.split.tolist() == ["train"] * 6 + ["validate"] * (len(table) - 6)
    pd.testing.assert_frame_equal(found[[*FINDINGS]], table[[*FINDINGS]], check_dtype=False)
    for linked, path in zip(found.image_path, table.image_path):
        assert Path(linked).read_bytes() == Path(path).read_bytes()
    assert all(f"Image {row}." in report for row, report in enumerate(found.report))


def test_a_classifier_in_two_stages_learns_from_both(make_table, tmp_path, accelerator, monkeypatch):
    table = rows_of(make_table, patients=30)
    settings = JudgeSettings("test_resnet", 32, 4, 4, 1e-3, seed=7)
    stages = []

    def train(pixels, keys, labels, settings, device, start=None):
        stages.append((len(keys), settings.steps, settings.seed, start))
        return train_classifier(pixels, keys, labels, settings, device, start)

    train_classifier = judges.train_classifier
    monkeypatch.setattr(judges, "train_classifier", train)
    found = utility.measure_classifier([table[:6], table[6:]], table, settings, tmp_path, accelerator)
    assert 0 <= found["AUROC"] <= 1
    assert [stage[:3] for stage in stages] == [(6, 2, 7), (54, 2, 7)]
    assert stages[0][3] is None and stages[1][3] is not None


def test_the_stages_of_a_training_share_its_steps_and_follow_each_other(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(utility, "run_script", lambda *call: calls.append([str(part) for part in call]))
    last = utility.train_in_stages("train_bart.py", ["one", "two"], tmp_path / "bart", 9, "--SEED", 3)
    assert last == tmp_path / "bart-1" / "last"
    first, second = (dict(zip(call[1::2], call[2::2])) for call in calls)
    assert (first["--DATA_ROOT"], second["--DATA_ROOT"]) == ("one", "two")
    assert first["--MAX_STEPS"] == second["--MAX_STEPS"] == "4"
    assert "--INITIAL_WEIGHTS" not in first and second["--INITIAL_WEIGHTS"] == str(tmp_path / "bart-0" / "last")


def test_the_table_has_mean_and_deviation_of_the_seeds():
    results = [
        {"trained on": name, "share": share, "seed": seed, "pairs": 10 + seed, "AUROC": value + seed / 100}
        for name, share, value in (("real", 1.0, 0.9), ("real", 0.1, 0.7))
        for seed in (1, 2, 3)
    ]
    rows = utility.table_of(results).to_numpy().tolist()
    assert rows == [["100%", "real", 12, "0.920 ± 0.010"], ["10%", "real", 12, "0.720 ± 0.010"]]


def test_models_of_synthetic_pairs_are_trained_once_whatever_the_share():
    plans = utility.plans((1, 2), (1.0, 0.1))
    assert len(plans) == 2 * (1 + 3 * 2)
    assert [share for _, share, name in plans if name == "synthetic"] == [0.0, 0.0]


def test_a_missing_config_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["utility", "--CONFIG", str(tmp_path / "none.toml")])
    with pytest.raises(InputError, match="none.toml"):
        utility.main()
