"""Candidates of an image: the best one is kept whatever ends a run, and who chose it may not evaluate it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import CSVS, contents, flags, kill, launch, pictures, provenance, run_script, sample, says

from evaluation import gallery, judges, metrics, selection
from evaluation.judges import JudgeSettings, first_half
from phantom import draw_tree
from sampling import images as synthesis
from sampling.plan import SELECTED, read_plan
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import read_table

SELECTOR = {"SELECTOR_MODEL": "test_resnet", "SELECTOR_IMAGE_SIZE": 32, "SELECTOR_STEPS": 6, "SELECTOR_BATCH_SIZE": 8}
SETTINGS = JudgeSettings("test_resnet", 32, 6, 8)


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


def test_the_first_candidate_is_the_request_s_own_image():
    requests = pd.DataFrame({"dicom_id": ["a", "b"], "seed": [5, 6]})
    table = pd.DataFrame(0, index=range(4), columns=list(FINDINGS)).assign(
        subject_id=range(4), split="train", dicom_id=list("abcd"), study_id=1
    )
    chosen = selection.Selection(3, "all", SETTINGS, table)
    rows = pd.concat([chosen.candidate(requests, number) for number in range(3)])
    assert rows.dicom_id.tolist() == list("ababab") and rows.candidate.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows.seed[rows.candidate == 0].tolist() == [5, 6]
    assert rows.seed.is_unique and rows.seed.between(0, 2**31 - 1).all()


# ---- trees


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough patients for a selector of half of them."""
    root = tmp_path_factory.mktemp("large") / "tree"
    draw_tree(root, studies=150, image_size=32, seed=7)
    return root


@pytest.fixture
def choose(config, runs, large, tmp_path):  # noqa: F811
    """A function: a name under tmp_path, constants => what a sampler ended with; 6 requests unless told otherwise."""

    def run(name, **constants):
        asked = {"SPLIT": "test", "MAX_LABELS": 6, "DATA_ROOT": large, "BATCH_SIZE": 6, **SELECTOR, **constants}
        return sample("clipUViT", config, runs, tmp_path / name, **asked)

    return run


class Looks:
    """In place of a selector: a score for each image and whether it agrees, by a function of images and requests."""

    def __init__(self, monkeypatch, judge):
        self.seen, self.sizes = [], []
        known = judges.Judge(judges._classifier("test_resnet"), SETTINGS, np.full(14, 0.5), np.ones(14))
        monkeypatch.setattr(selection, "image_judge", lambda *_: known)

        def judge_images(_, images, requests):
            scores, agrees = map(np.asarray, judge(images, requests))
            self.sizes.append(len(images))
            self.seen += zip(requests.dicom_id, requests.candidate, images.copy(), scores)
            return scores, agrees

        monkeypatch.setattr(selection.Selection, "judge_images", judge_images)


def brightness(images, requests):
    """The brighter the better, and never good enough."""
    scores = images.reshape(len(images), -1).mean(axis=1)
    return scores, np.zeros(len(images), dtype=bool)


def as_jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=synthesis.JPEG_QUALITY)
    return np.asarray(Image.open(stream)).astype(int)


@pytest.mark.parametrize(("batch_size", "sizes"), [(6, [6, 6, 6]), (4, [4, 4, 4, 2, 2, 2])])
def test_of_candidates_that_do_not_agree_the_best_is_kept(choose, tmp_path, monkeypatch, batch_size, sizes):
    looks = Looks(monkeypatch, brightness)
    assert choose("made", CANDIDATES=3, BATCH_SIZE=batch_size) == 0
    assert looks.sizes == sizes
    told, planned, made = provenance(tmp_path / "made"), read_plan(tmp_path / "made"), pictures(tmp_path / "made")
    planned = planned.set_index("dicom_id")
    assert len(told) == len(made) == 6 and len(looks.seen) == 18
    for name, row in told.iterrows():
        candidates = [(score, image) for dicom_id, _, image, score in looks.seen if dicom_id == name]
        best = int(np.argmax([score for score, _ in candidates]))
        assert (row.candidate, row.candidates, row.agrees) == (best, 3, 0)
        assert row.score == pytest.approx(candidates[best][0], abs=1e-6)
        assert row.request_seed == planned.seed[name]
        assert row.seed == selection.candidate_seed(planned.seed[name], best)
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


def test_one_candidate_is_chosen_by_nobody(choose, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "image_judge", None)
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
    assert selection.selector_patients(tmp_path / "made") == set(found.subject_id)
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
        image.save(spoiled, comment=b'{"candidate": 7, "score": 0, "agrees": 1}')
    assert choose("killed", CANDIDATES=3) == 0
    assert f"damaged: {spoiled} (its comment does not say which candidate it is)" in capsys.readouterr().out
    one, other = contents(tmp_path / "whole"), contents(killed)
    for run in (one, other):
        del run[Path("constants.json")]
    assert one == other


def test_another_way_to_choose_is_another_tree(choose, tmp_path):
    assert choose("made", CANDIDATES=2) == 0
    before = contents(tmp_path / "made")
    says(choose("made", CANDIDATES=3), "begun with candidates = 2, this run has 3", "OUTPUT_ROOT")
    says(choose("made", CANDIDATES=2, KEEP="agreeing"), "begun with keep = 'all', this run has 'agreeing'")
    says(choose("made", CANDIDATES=2, SELECTOR_STEPS=7), "begun with selector = ")
    says(choose("made"), "begun with candidates = 2")
    assert contents(tmp_path / "made") == before


def test_a_selector_that_knows_nothing(choose, tree, tmp_path):  # noqa: F811
    says(choose("made", CANDIDATES=2, DATA_ROOT=tree), "the selector knows no finding", "CANDIDATES", "DATA_ROOT")
    says(choose("made", CANDIDATES=2, SELECTOR_MODEL="unheard"), "SELECTOR_MODEL 'unheard'")


def test_what_a_check_tries(choose, tmp_path, capsys):
    assert choose("made", CANDIDATES=2, CHECK=True, CACHE_DIR=tmp_path / "cache") == 0
    assert f"{tmp_path / 'cache'}: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    says(choose("made", CANDIDATES=2, CHECK=True, SELECTOR_MODEL="unheard"), "SELECTOR_MODEL 'unheard'")


def test_two_processes_make_the_tree_that_one_makes(choose, config, runs, large, tmp_path):  # noqa: F811
    constants = {"CHECKPOINT": runs / "clipUViT" / "best", "SPLIT": "test", "MAX_LABELS": 6, "DATA_ROOT": large}
    constants |= {"BATCH_SIZE": 4, "CANDIDATES": 2, "KEEP": "agreeing", "MAX_REQUESTS": 9, **SELECTOR}
    places = {"OUTPUT_ROOT": tmp_path / "two", "CACHE_DIR": tmp_path / "cache"}
    said = launch("sample_diffusion_clipUViT", config, *flags(**constants, **places))
    assert said.count("selector: knows") == 1
    assert len(list((tmp_path / "cache" / "judge").iterdir())) == 1
    one = {name: constants[name] for name in ("BATCH_SIZE", "CANDIDATES", "KEEP", "MAX_REQUESTS")}
    assert choose("one", **one) == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for run in (one, two):
        del run[Path("constants.json")], run[Path(".lock")]
    assert one == two and sum(path.suffix == ".jpg" for path in one) == 9


# ---- only what agrees


def without_edema(images, requests):
    scores, _ = brightness(images, requests)
    return scores, (requests["Edema"] != 1).to_numpy()


def test_pairs_that_do_not_agree_are_made_and_not_listed(choose, tmp_path, monkeypatch, capsys):
    Looks(monkeypatch, without_edema)
    csv = pd.DataFrame(np.nan, index=range(5), columns=list(FINDINGS))
    csv.loc[[0, 1], "Edema"], csv.loc[[2, 3], "Fracture"] = 1.0, 1.0
    csv.to_csv(tmp_path / "labels.csv", index=False)
    asked = {"LABELS_CSV": tmp_path / "labels.csv", "CANDIDATES": 2, "KEEP": "agreeing", "MAX_LABELS": 0}
    assert choose("made", **asked) == 0
    said = capsys.readouterr().out
    assert "3 images; 2 more do not agree with their request and are not listed" in said
    table = {line.split("  ")[0]: line.split()[-3:] for line in said.splitlines() if line[-1:].isdigit()}
    assert (
        table["Edema"] == ["2", "0", "2"] and table["Fracture"] == ["2", "2", "0"] and table["all"] == ["5", "3", "2"]
    )
    assert "warning: nothing is kept of Edema, so" in said
    listed = read_table(tmp_path / "made")
    assert len(listed) == 3 and not (listed["Edema"] == 1).any()
    assert set(provenance(tmp_path / "made").index) == set(listed.dicom_id)
    assert len(list((tmp_path / "made").rglob("*.jpg"))) == 5
    with Image.open(tmp_path / "made" / "first.png") as picture:
        left = np.asarray(picture)[:, : 4 * 32]
    shown = [left[:, 32 * place : 32 * (place + 1)].any() for place in range(4)]
    assert shown == [True] * 3 + [False]  # the listed ones only
    before = contents(tmp_path / "made")
    assert choose("made", **asked) == 0
    assert contents(tmp_path / "made") == before


def test_reports_are_written_for_listed_images_only(choose, config, checkpoints, tmp_path, monkeypatch):  # noqa: F811
    Looks(monkeypatch, every_third)
    asked = {"KEEP": "agreeing", "FINDINGS": "edema", "IMAGES_PER_LABEL": 8}
    assert choose("made", **asked) == 0
    root = tmp_path / "made"
    constants = {"CHECKPOINT": checkpoints[0], "OUTPUT_ROOT": root, "DATA_ROOT": "", "VIEWS": "()", "HOLD_OUT": "()"}
    writing = flags(**constants, DECODING="greedy", MAX_TOKENS=8)
    assert run_script("sample_prior_model", "--config", config, *writing) == 0
    written = pd.read_csv(root / "reports.csv")
    assert 0 < len(written) < len(list(root.rglob("*.jpg"))) == 8
    assert sorted(written.dicom_id) == sorted(provenance(root).index)


def test_a_tree_of_which_nothing_agrees(choose, tmp_path, monkeypatch, capsys):
    Looks(monkeypatch, lambda images, requests: (np.zeros(len(images)), np.zeros(len(images), dtype=bool)))
    assert choose("made", KEEP="agreeing", FINDINGS="edema") == 0
    assert "warning: nothing is kept of Edema, so" in capsys.readouterr().out
    assert len(list((tmp_path / "made").rglob("*.jpg"))) == 1 and not (tmp_path / "made" / "synthetic.csv").exists()


def every_third(images, requests):
    return np.zeros(len(images)), (requests["seed"] % 3 == 0).to_numpy()


def test_dropped_requests_are_replaced(choose, tmp_path, monkeypatch):
    Looks(monkeypatch, every_third)
    asked = {"KEEP": "agreeing", "FINDINGS": "edema", "IMAGES_PER_LABEL": 4, "BATCH_SIZE": 2}
    assert choose("made", MAX_REQUESTS=200, **asked) == 0
    planned, told = read_plan(tmp_path / "made"), provenance(tmp_path / "made")
    assert len(told) == 4 < len(planned) and (told.seed % 3 == 0).all() and (planned.seed % 3 == 0).sum() == 4
    save, calls = synthesis.save_array, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:  # among the first that replace others
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "save_array", interrupted)
        assert choose("killed", MAX_REQUESTS=200, **asked) == 130
    for name in CSVS:
        (tmp_path / "killed" / name).unlink()
    assert 4 < len(read_plan(tmp_path / "killed")) < len(planned)
    assert choose("killed", MAX_REQUESTS=200, **asked) == 0
    whole, again = contents(tmp_path / "made"), contents(tmp_path / "killed")
    for run in (whole, again):
        del run[Path("constants.json")]
    assert whole == again
    limit = len(planned) - 1
    assert choose("fewer", MAX_REQUESTS=limit, **asked) == 0
    assert len(read_plan(tmp_path / "fewer")) == limit and len(provenance(tmp_path / "fewer")) == 3


def test_more_copies_are_asked_for_label_vector_by_label_vector():
    vectors, listed = pd.DataFrame({"source": list("abc")}), pd.DataFrame({"source": list("aac")})
    chosen = selection.Selection(1, "all", SETTINGS, None)
    assert chosen.more_copies(2, vectors, listed, 2, 100).tolist() == [2, 4, 3]
    assert chosen.more_copies(2, vectors, listed, 2, 7).tolist() == [2, 3, 2]
    assert chosen.more_copies(np.array([2, 4, 3]), vectors, listed, 2, 9) is None
    assert chosen.more_copies(2, vectors, listed, 2, 0) is None
    assert chosen.more_copies(2, vectors, pd.DataFrame({"source": list("aabbcc")}), 2, 100) is None


# ---- who reads it


def test_the_page_pairs_requests_whose_candidates_differ(choose, tmp_path, monkeypatch):
    for name, sign in (("one", 1), ("two", -1)):
        Looks(monkeypatch, lambda images, requests, sign=sign: (sign * requests["candidate"], [False] * len(images)))
        assert choose(name, CANDIDATES=2) == 0
    one, two = (gallery._read_tree(tmp_path / name) for name in ("one", "two"))
    seeds = [set(provenance(tmp_path / name).seed) for name in ("one", "two")]
    assert not seeds[0] & seeds[1]  # other candidates
    rows = gallery._side_by_side({"one": one, "two": two})
    assert len(rows) == 6 and all(all(row) for row in rows)


def test_a_tree_without_these_columns_is_read_and_added_to(choose, tmp_path):
    assert choose("made", MAX_LABELS=2) == 0
    path = tmp_path / "made" / "synthetic.csv"
    older = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=list(SELECTED))
    older.to_csv(path, index=False)
    assert len(gallery._read_tree(tmp_path / "made")) == 2
    assert choose("made") == 0
    assert len(provenance(tmp_path / "made")) == 6 and (provenance(tmp_path / "made").candidates == 1).all()


def test_a_damaged_selector_csv_is_named(tmp_path):
    (tmp_path / "selector.csv").write_text("subject\n1\n")
    with pytest.raises(InputError, match="selector.csv has no column 'subject_id'"):
        selection.selector_patients(tmp_path)
