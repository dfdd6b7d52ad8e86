"""Candidates of a request: which one is kept, and that a tree states it, whatever ends a run."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import contents, flags, kill, launch, pictures, provenance, sample, says

from evaluation import gallery, judges, metrics
from evaluation.judges import first_half
from evaluation.selection import Choice, ImageSelector, candidate_seed
from phantom import draw_tree
from sampling.plan import CHOSEN, read_plan
from sampling.tree import JPEG_QUALITY
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import read_table

SELECTOR = {"SELECTOR_MODEL": "test_resnet", "SELECTOR_STEPS": 6}


# ---- score, agreement, halves


def some(*names):
    return np.isin(FINDINGS, names)


def test_the_score_is_the_mean_log_probability_of_what_was_asked():
    labels = np.zeros((3, 14), dtype=int)
    labels[0, some("Edema")] = 1
    labels[1, some("Edema")] = -1
    labels[2, some("Edema", "Fracture")] = -2
    probabilities = np.full((3, 14), 0.9)
    probabilities[:, some("Edema")], probabilities[:, some("Fracture")] = 0.8, 0.3
    scores, agrees = metrics.request_agreement(probabilities, labels, np.full(14, 0.5), known=some("Edema", "Fracture"))
    np.testing.assert_allclose(
        scores, [(np.log(0.8) + np.log(0.7)) / 2, (np.log(0.2) + np.log(0.7)) / 2, 0], rtol=1e-12
    )
    assert agrees.tolist() == [True, False, True]  # the last one asks for nothing that can be told
    thresholds = np.full(14, 0.81)
    assert not metrics.request_agreement(probabilities, labels, thresholds, some("Edema"))[1][0]


def test_a_certain_error_costs_much_but_not_everything():
    scores, agrees = metrics.request_agreement(np.ones((1, 14)), np.zeros((1, 14)), np.full(14, 0.5), some("Edema"))
    assert scores == pytest.approx(np.log(1e-6)) and not agrees[0]


def test_calibration_of_a_selector_that_is_right():
    scores = np.linspace(-2, 0, 23)
    rows, acceptance = metrics.calibration(scores[::-1], (scores > -1)[::-1], (scores > -0.5)[::-1])
    assert [row["N"] for row in rows] == [5, 5, 5, 4, 4]
    shares = [row["agree by the judge"] for row in rows]
    assert shares[0] == shares[1] == 0 and shares[-1] == 1
    assert [row["mean score"] for row in rows] == sorted(row["mean score"] for row in rows)
    assert acceptance["agree by the selector"] == 11 / 23 and acceptance["agree by the judge, of the others"] == 0
    assert acceptance["agree by the judge, of these"] == pytest.approx(6 / 11, abs=0.1)
    _, everything = metrics.calibration([-1.0], [True], [True])
    assert np.isnan(everything["agree by the judge, of the others"])


def test_halves_are_of_patients_and_of_nothing_else():
    table = pd.DataFrame({"subject_id": np.repeat(np.arange(10_000_000, 10_002_000), 2), "split": "train"})
    half = first_half(table)
    assert (half[::2] == half[1::2]).all() and 0.45 < half.mean() < 0.55
    order = np.random.default_rng(0).permutation(len(table))
    assert (first_half(table.iloc[order]) == half[order]).all()


def test_the_first_candidate_has_the_seed_of_its_request():
    seeds = [candidate_seed(seed, number) for seed in (5, 6) for number in range(3)]
    assert seeds[0] == 5 and seeds[3] == 6
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**31 for seed in seeds)


# ---- trees


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tree with enough patients to train a selector on half of them."""
    root = tmp_path_factory.mktemp("large") / "tree"
    draw_tree(root, studies=150, image_size=32, seed=7)
    return root


@pytest.fixture
def choose(config, runs, large, tmp_path):
    """A function: a name under tmp_path, constants => what a sampler ended with; 6 requests by default."""

    def run(name, **constants):
        asked = {"SPLIT": "test", "MAX_LABELS": 6, "DATA_ROOT": large, "BATCH_SIZE": 6, **SELECTOR, **constants}
        return sample("clipUViT", config, runs, tmp_path / name, **asked)

    return run


class Looks:
    """In place of a selector: a score for each image and whether it agrees, by a function of images and requests."""

    def __init__(self, monkeypatch, judge):
        self.judged, self.sizes = [], []
        monkeypatch.setattr(ImageSelector, "train", lambda *_: None)

        def judge_images(_, images, requests):
            scores, agrees = judge(images, requests)
            self.sizes.append(len(images))
            self.judged += zip(requests.dicom_id, requests.candidate, images.copy(), scores)
            found = zip(requests.candidate, scores, agrees)
            return [Choice(int(number), float(score), int(agree)) for number, score, agree in found]

        monkeypatch.setattr(ImageSelector, "judge_images", judge_images)


def brightness(images, requests):
    """The brighter the better, and never good enough."""
    scores = images.reshape(len(images), -1).mean(axis=1)
    return scores, np.zeros(len(images), dtype=bool)


def as_jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(stream)).astype(int)


@pytest.mark.parametrize(("batch_size", "sizes"), [(6, [6, 6, 6]), (4, [4, 4, 4, 2, 2, 2])])
def test_of_candidates_that_do_not_agree_the_best_is_kept(choose, tmp_path, monkeypatch, batch_size, sizes):
    looks = Looks(monkeypatch, brightness)
    assert choose("made", CANDIDATES=3, BATCH_SIZE=batch_size) == 0
    assert looks.sizes == sizes
    told, planned, made = provenance(tmp_path / "made"), read_plan(tmp_path / "made"), pictures(tmp_path / "made")
    planned = planned.set_index("dicom_id")
    assert len(told) == len(made) == 6 and len(looks.judged) == 18
    for name, row in told.iterrows():
        candidates = [(score, image) for dicom_id, _, image, score in looks.judged if dicom_id == name]
        best = int(np.argmax([score for score, _ in candidates]))
        assert (row.candidate, row.candidates, row.agrees) == (best, 3, 0)
        assert row.score == pytest.approx(candidates[best][0], abs=1e-6)
        assert row.request_seed == planned.seed[name]
        assert row.seed == candidate_seed(planned.seed[name], best)
        np.testing.assert_array_equal(made[name], as_jpeg(candidates[best][1]))
    assert told.candidate.nunique() > 1  # of these seeds
    assert len(list((tmp_path / "made" / "latents").iterdir())) == 6


def test_the_first_candidate_that_agrees_is_kept_and_none_is_made_after_it(choose, tmp_path, monkeypatch):
    def judge(images, requests):
        """A request's place in the table says which candidate agrees; later ones score higher."""
        agrees = requests.candidate.to_numpy() == requests.index.to_numpy() % 4
        return requests.candidate.to_numpy() / 10, agrees

    looks = Looks(monkeypatch, judge)
    assert choose("made", CANDIDATES=3) == 0
    told = provenance(tmp_path / "made")
    # of places 0 to 5: agree at candidate 0, 1, 2, never, 0, 1
    assert sorted(told.candidate) == [0, 0, 1, 1, 2, 2] and sorted(told.agrees) == [0, 1, 1, 1, 1, 1]
    assert looks.sizes == [6, 4, 2]


def test_equal_candidates_leave_the_tree_that_has_one(choose, tmp_path, monkeypatch):
    assert choose("one", BATCH_SIZE=2) == 0
    Looks(monkeypatch, lambda images, requests: (np.zeros(len(images)), np.ones(len(images), dtype=bool)))
    assert choose("two", CANDIDATES=2, BATCH_SIZE=2) == 0
    one, two = provenance(tmp_path / "one"), provenance(tmp_path / "two")
    columns = ["source", "prompt", "seed", "reference_dicom_id", "candidate"]
    pd.testing.assert_frame_equal(one[columns], two.loc[one.index, columns])
    for name, image in pictures(tmp_path / "one").items():
        assert np.abs(image - pictures(tmp_path / "two")[name]).max() <= 1  # of 255: another batch


def test_one_candidate_needs_no_selector(choose, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.selection.image_judge", None)
    assert choose("made") == 0
    told = provenance(tmp_path / "made")
    assert (told.candidates == 1).all() and (told.candidate == 0).all()
    assert (told.score == "").all() and (told.agrees == "").all() and (told.seed == told.request_seed).all()
    assert "candidates" not in json.loads((tmp_path / "made" / "manifest.json").read_text())["synthetic tree"]
    assert not (tmp_path / "made" / "selector.csv").exists()
    for path in (tmp_path / "made").rglob("*.jpg"):
        assert "comment" not in Image.open(path).info


def test_no_table_is_read_for_plain_words(choose, tmp_path):
    asked = {"FINDINGS": "edema", "CONDITION": "text", "DATA_ROOT": tmp_path / "none"}
    assert choose("made", **asked) == 0
    says(choose("chosen", CANDIDATES=2, **asked), str(tmp_path / "none"))
    assert not (tmp_path / "chosen").exists()


def test_the_selector_learns_from_half_the_training_patients(choose, tmp_path, large):
    assert choose("made", CANDIDATES=2) == 0
    train = read_table(large, splits=("train",))
    found = pd.read_csv(tmp_path / "made" / "selector.csv")
    assert list(found) == ["subject_id"]
    assert found.subject_id.tolist() == sorted(set(train.subject_id[first_half(train)]))
    assert 0 < len(found) < train.subject_id.nunique()
    assert judges.selector_patients(tmp_path / "made") == set(found.subject_id)
    told = provenance(tmp_path / "made")
    assert (told.score < 0).all() and told.agrees.isin([0, 1]).all()


def test_a_killed_run_becomes_the_one_that_was_not_killed(choose, tmp_path, capsys):
    assert choose("whole", CANDIDATES=3) == 0
    killed = Path(shutil.copytree(tmp_path / "whole", tmp_path / "killed"))
    kill(killed, images_left=3)  # in the middle of a batch
    (killed / "selector.csv").unlink()
    spoiled = sorted(killed.rglob("*.jpg"))[0]
    with Image.open(spoiled) as image:
        image.load()
        image.info.pop("comment")
        image.save(spoiled, comment=b"of another program")
    assert choose("killed", CANDIDATES=3) == 0
    assert f"damaged: {spoiled} (its comment does not state which candidate it is)" in capsys.readouterr().out
    one, other = contents(tmp_path / "whole"), contents(killed)
    for run in (one, other):
        del run[Path("constants.json")]
    assert one == other


def test_another_way_to_choose_is_another_tree(choose, tmp_path):
    assert choose("made", CANDIDATES=2) == 0
    before = contents(tmp_path / "made")
    says(choose("made", CANDIDATES=3), "begun with candidates = 2, this run has 3", "OUTPUT_ROOT")
    says(choose("made", CANDIDATES=2, SELECTOR_STEPS=7), "begun with selector = ")
    says(choose("made"), "begun with candidates = 2")
    assert contents(tmp_path / "made") == before


def test_a_selector_that_knows_nothing(choose, tree, tmp_path):
    says(choose("made", CANDIDATES=2, DATA_ROOT=tree), "selector", "no finding", "CANDIDATES", "DATA_ROOT")
    says(choose("made", CANDIDATES=2, SELECTOR_MODEL="unheard"), "SELECTOR_MODEL 'unheard'")


def test_two_processes_make_the_tree_that_one_makes(choose, config, runs, large, tmp_path):
    constants = {"CHECKPOINT": runs / "clipUViT" / "best", "SPLIT": "test", "MAX_LABELS": 6, "DATA_ROOT": large}
    constants |= {"BATCH_SIZE": 4, "CANDIDATES": 2, **SELECTOR}
    places = {"OUTPUT_ROOT": tmp_path / "two", "CACHE_DIR": tmp_path / "cache"}
    said = launch("sample_diffusion_clipUViT", config, *flags(**constants, **places))
    assert said.count("selector: knows") == 1
    assert len(list((tmp_path / "cache" / "judge").iterdir())) == 1
    assert choose("one", BATCH_SIZE=4, CANDIDATES=2) == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for run in (one, two):
        del run[Path("constants.json")], run[Path(".lock")]
    assert one == two and sum(path.suffix == ".jpg" for path in one) == 6


# ---- what reads it


def test_the_page_pairs_requests_whose_candidates_differ(choose, tmp_path, monkeypatch):
    for name, sign in (("one", 1), ("two", -1)):
        Looks(monkeypatch, lambda images, requests, sign=sign: (sign * requests["candidate"], [False] * len(images)))
        assert choose(name, CANDIDATES=2) == 0
    one, two = (gallery._read_tree(tmp_path / name) for name in ("one", "two"))
    seeds = [set(provenance(tmp_path / name).seed) for name in ("one", "two")]
    assert not seeds[0] & seeds[1]  # other candidates
    rows = gallery._side_by_side([one, two])
    assert len(rows) == 6 and all(all(row) for row in rows)


def test_a_tree_without_these_columns_is_read_and_added_to(choose, tmp_path):
    assert choose("made", MAX_LABELS=2) == 0
    path = tmp_path / "made" / "synthetic.csv"
    older = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=list(CHOSEN))
    older.to_csv(path, index=False)
    assert len(gallery._read_tree(tmp_path / "made")) == 2
    assert choose("made") == 0
    assert len(provenance(tmp_path / "made")) == 6 and (provenance(tmp_path / "made").candidates == 1).all()


def test_a_damaged_selector_csv_is_named(tmp_path):
    (tmp_path / "selector.csv").write_text("subject\n1\n")
    with pytest.raises(InputError, match="selector.csv has no column 'subject_id'"):
        judges.selector_patients(tmp_path)
