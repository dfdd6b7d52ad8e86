"""What `make utility` rests on: which films each training has, how it is scored, and what its table shows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import run_script

from benchmarks import utility
from evaluation import judges
from evaluation.judges import JudgeSettings
from utils.errors import InputError
from utils.findings import FINDINGS, PRESENT, UNCERTAIN
from utils.mimic_cxr import read_table, read_twins

TARGET, SHORTCUT = PAIR = ["Pneumothorax", "Support Devices"]


def rows_of(make_table, patients=8, images=2, seed=0):
    """A table of patients with so many images each, and random labels."""
    labels = np.random.default_rng(seed).integers(0, 2, (patients * images, len(FINDINGS)))
    table = make_table(labels, np.repeat(np.arange(patients) + 10_000_000, images))
    ids = [f"{row:08x}-00000000-00000000-00000000-00000000" for row in range(len(table))]
    return table.assign(dicom_id=ids, synthetic=False)


def test_a_share_is_of_whole_patients_and_holds_the_smaller_ones(make_table, tmp_path, monkeypatch):
    table, synthetic = rows_of(make_table), rows_of(make_table, patients=3).assign(synthetic=True)
    monkeypatch.setattr(utility, "make_films", lambda *_: synthetic)
    constants = {"CONFIG": "", "MAX_LABELS": 0, "SEEDS": (3, 4), "SHARES": (1.0, 0.5, 0.001)}
    trainings = utility.share_trainings(table, tmp_path, constants)
    assert len(trainings) == 2 * (3 * 2 + 1)
    tables = {(seed, name): trained_on for seed, name, trained_on in trainings}
    every, half, hardly_any = (tables[3, f"real ({share})"] for share in ("100%", "50%", "0%"))
    pd.testing.assert_frame_equal(every, table)
    assert half.subject_id.nunique() == 4 and (half.groupby("subject_id").size() == 2).all()
    assert hardly_any.subject_id.nunique() == 1 and set(hardly_any.subject_id) < set(half.subject_id)
    assert set(tables[4, "real (50%)"].subject_id) != set(half.subject_id)
    both = tables[3, "real (50%) + synthetic"]
    assert len(both) == 8 + 6 and both.synthetic.sum() == 6 and len(tables[4, "synthetic"]) == 6


def test_twins_and_ordinary_films_of_the_planted_ones(tmp_path, tree, config, runs, monkeypatch):
    """By the scripts themselves, in this process."""
    place = f'CHECKPOINT = "{runs / "clipUViT" / "best"}"\n'
    own = tmp_path / "own.toml"
    tables = (f"[{name}]\n{place}" for name in ("sample_diffusion_clipUViT", "sample_counterfactuals"))
    own.write_text(config.read_text() + "\n".join(tables))
    calls = []

    def run(script, *arguments):
        calls.append(dict(zip(arguments[::2], arguments[1::2])))
        assert run_script(script.removesuffix(".py"), *arguments) == 0

    monkeypatch.setattr(utility, "run_script", run)
    films = read_table(tree, with_reports=False).assign(synthetic=False)
    train = films[(films[PAIR] != UNCERTAIN).all(axis=1)].head(24)
    constants = {"CONFIG": own, "MAX_TWINS": (8,), "TARGET": TARGET.lower(), "SHORTCUT": SHORTCUT, "SEEDS": (1, 2)}
    trainings = utility.shortcut_trainings(train.assign(split="train"), tmp_path, constants)
    found = {name: table for seed, name, table in trainings if seed == 2}
    assert len(trainings) == 2 * len(found) == 10

    real, unplanted, twins, as_films, as_twins = found.values()
    assert set(real.dicom_id) == set(train.dicom_id[(train[TARGET] == PRESENT) == (train[SHORTCUT] == PRESENT)])
    assert 0 < len(real) < len(train) and set(read_table(calls[0]["--FILMS"]).dicom_id) == set(real.dicom_id)
    assert [call["--TOGGLE"] for call in calls[:2]] == PAIR and calls[0]["--MAX_TWINS"] == 4
    assert len(unplanted) == len(real) and set(unplanted.dicom_id) - set(real.dicom_id)
    for table in (twins, as_films, as_twins):
        assert table[~table.synthetic].dicom_id.tolist() == real.dicom_id.tolist()
        assert table.synthetic.sum() == 8 and table.dicom_id.is_unique
    pairs = read_twins(calls[0]["--OUTPUT_ROOT"])
    added = twins[twins.synthetic]
    assert set(added.dicom_id) == set(pairs.dicom_id) and not set(added.dicom_id) & set(pairs.film_dicom_id)
    assert ((added[TARGET] == PRESENT) != (added[SHORTCUT] == PRESENT)).all()
    assert sorted(as_twins[as_twins.synthetic][PAIR].values.tolist()) == sorted(added[PAIR].values.tolist())
    ordinary = as_films[as_films.synthetic]
    assert ((ordinary[TARGET] == PRESENT) == (ordinary[SHORTCUT] == PRESENT)).all()


def test_a_tree_of_links_is_read_as_the_rows_that_it_was_made_of(make_table, tmp_path):
    table = rows_of(make_table)
    for _ in range(2):  # a second run goes on in the same folder
        root = utility.link_tree(tmp_path / "linked", table)
    found = read_table(root).set_index("dicom_id").loc[table.dicom_id].reset_index()
    pd.testing.assert_frame_equal(found[[*FINDINGS]], table[[*FINDINGS]], check_dtype=False)
    for linked, path in zip(found.image_path, table.image_path):
        assert Path(linked).read_bytes() == Path(path).read_bytes()


def test_the_worst_group_is_the_one_where_the_shortcut_is_all_there_is(make_table):
    labels = np.zeros((80, len(FINDINGS)), dtype=int)
    target, short = np.arange(80) % 4 < 2, np.arange(80) % 2 == 0
    labels[:, FINDINGS.index(TARGET)], labels[:, FINDINGS.index(SHORTCUT)] = target, short
    table, probabilities = make_table(labels, np.arange(80)), np.zeros((80, len(FINDINGS)))
    probabilities[:, FINDINGS.index(TARGET)] = np.where(short, 0.5, target)  # blind within those with the shortcut
    scores = utility.scores_of(table, probabilities, PAIR)
    assert scores == {f"AUROC of {TARGET}": pytest.approx(0.875), "worst-group AUROC": pytest.approx(0.5)}
    few = table[short | (np.arange(80) > 44)]  # 9 with the target and without the shortcut
    scores = utility.scores_of(few, probabilities[few.index], PAIR)
    assert scores[f"AUROC of {TARGET}"] > 0 and np.isnan(scores["worst-group AUROC"])
    assert utility.scores_of(table, probabilities, []) == {"mean AUROC": pytest.approx((0.875 + 0.5) / 2)}


def test_each_classifier_is_trained_once_and_the_table_sums_up_the_seeds(
    make_table, tmp_path, accelerator, monkeypatch
):
    table, trained = rows_of(make_table, patients=30), []

    def train(pixels, keys, labels, settings, device, start=None):
        trained.append((len(keys), settings.steps, settings.seed))
        return train_classifier(pixels, keys, labels, settings, device, start)

    train_classifier = judges.train_classifier
    monkeypatch.setattr(judges, "train_classifier", train)
    monkeypatch.setattr(utility, "_CLASSIFIER", JudgeSettings("test_resnet", 32, 4, 4, 1e-3))
    both = pd.concat([table[:6], table[6:].assign(synthetic=True)])
    trainings = [(7, "both", both), (8, "both", table[:7])]
    for _ in range(2):  # a second run trains nothing
        shown = utility.measure(trainings, table, [], tmp_path, accelerator)
        assert trained == [(60, 4, 7), (7, 4, 8)]
    row = dict(shown.iloc[0])
    assert len(shown) == 1 and (row["trained on"], row["real films"], row["synthetic films"]) == ("both", 6, 27)
    assert 0 < float(row["mean AUROC"].split(" ± ")[0]) < 1

    scores = {7: 0.5, 8: 0.6}
    monkeypatch.setattr(utility, "scores_of", lambda *_: {"score": scores.popitem()[1], "few": np.nan})
    row = dict(utility.measure(trainings, table, [], tmp_path, accelerator).iloc[0])
    assert row["score"] == "0.550 ± 0.071" and "fewer than 10" in row["few"]


@pytest.mark.parametrize(("name", "value"), [("CONFIG", "none.toml"), ("TARGET", "gout"), ("TABLES", "films,")])
def test_what_is_wrong_is_named(config, monkeypatch, tmp_path, name, value):
    constants = {"CONFIG": config, "OUTPUT": tmp_path, "TABLES": "shortcut,", name: value}
    monkeypatch.setattr(
        "sys.argv", ["utility", *(part for each in constants.items() for part in (f"--{each[0]}", str(each[1])))]
    )
    with pytest.raises(InputError, match=value.rstrip(",")):
        utility.main()
