"""Metrics on inputs whose values are known."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small_data import columns

from evaluation import metrics
from utils.findings import FINDINGS, UNCERTAIN


def gaussians(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.fixture
def enough(monkeypatch):
    monkeypatch.setattr(metrics, "MINIMUM_POSITIVES", 2)


# ---- image quality


def test_frechet_distance_of_a_set_to_itself_is_zero():
    features = gaussians(300, 12)
    assert metrics.frechet_distance(features, features[::-1].copy()) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_scaled_and_shifted_gaussians_is_the_closed_form():
    real = gaussians(500, 6)
    fake = 2 * real + 3  # covariance 4 C: |shift of the mean|² + trace(C + 4 C - 2 · 2 C)
    closed = np.square(fake.mean(axis=0) - real.mean(axis=0)).sum() + np.trace(np.cov(real.T))
    assert metrics.frechet_distance(real, fake) == pytest.approx(closed, rel=1e-4)


def test_kernel_distance_is_about_zero_for_one_distribution_and_grows_with_a_shift():
    same, _ = metrics.kernel_distance(gaussians(300, 8), gaussians(300, 8, seed=1), seed=0)
    far, _ = metrics.kernel_distance(gaussians(300, 8), gaussians(300, 8, seed=1) + 1, seed=0)
    assert abs(same) < 0.05 < 1 < far
    assert metrics.kernel_distance(gaussians(50, 8), gaussians(90, 8), 7) == metrics.kernel_distance(
        gaussians(50, 8), gaussians(90, 8), 7
    )


def test_neighbourhood_metrics_of_equal_and_of_distant_sets():
    features = gaussians(200, 4)
    equal = metrics.neighbourhood_metrics(features, features, neighbours=5)
    assert equal["precision"] == equal["recall"] == equal["coverage"] == 1
    assert equal["density"] == pytest.approx(6 / 5)  # each ball holds its 5 neighbours and its centre
    apart = metrics.neighbourhood_metrics(features, features + 100, neighbours=5)
    assert set(apart.values()) == {0.0}
    assert np.isnan(metrics.neighbourhood_metrics(features[:5], features)["recall"])


def test_neighbourhood_metrics_counted_by_hand():
    real = np.array([[0.0], [1.0], [10.0]], dtype=np.float32)  # radii for k = 1: 1, 1, 9
    fake = np.array([[0.5], [30.0]], dtype=np.float32)  # radii: 29.5, 29.5
    found = metrics.neighbourhood_metrics(real, fake, neighbours=1)
    assert found == {"precision": 0.5, "recall": 1.0, "density": 1.0, "coverage": 2 / 3}


def test_mode_collapse_shows_in_recall_and_coverage_not_in_precision():
    real = gaussians(300, 4)
    collapsed = real[:1] + 1e-3 * gaussians(300, 4, seed=1)
    found = metrics.neighbourhood_metrics(real, collapsed)
    assert found["precision"] == 1 and found["recall"] < 0.05 and found["coverage"] < 0.2


def test_diversity_is_compared_on_the_same_findings():
    rng = np.random.default_rng(0)
    edema = [(rng.random(size) < share).astype(int) for size, share in ((60, 0.5), (300, 0.9))]
    tables = [
        pd.DataFrame(columns(("Edema", values), rows=len(values)).astype(int), columns=FINDINGS).assign(
            subject_id=np.arange(len(values)) // 2
        )
        for values in edema
    ]
    first, second = metrics.label_set_pairs(tables, 50, seed=0)
    assert first.shape == second.shape == (50, 2)
    for pairs, table, values in zip((first, second), tables, edema):
        assert len(np.unique(pairs, axis=0)) == 50 and (pairs[:, 0] != pairs[:, 1]).all()
        subjects = table["subject_id"].to_numpy()
        assert (subjects[pairs[:, 0]] != subjects[pairs[:, 1]]).all()
        assert ((values[pairs[:, 0]] == 1) == (values[pairs[:, 1]] == 1)).all()
    assert ((edema[0][first[:, 0]] == 1) == (edema[1][second[:, 0]] == 1)).all(), "place for place"
    again = metrics.label_set_pairs(tables, 50, seed=0)
    assert np.array_equal(again[0], first) and np.array_equal(again[1], second)


@pytest.mark.parametrize("side", [32, 64, 256])
def test_ms_ssim_of_equal_images_is_one_at_any_size(side):
    images = torch.rand(3, 1, side, side) * 2 - 1
    torch.testing.assert_close(metrics.ms_ssim(images, images), torch.ones(3))
    assert (metrics.ms_ssim(images, images.flip(-1)) < 0.5).all()


@pytest.mark.parametrize(
    ("side", "scales", "value"), [(32, 2, 0.909787), (64, 3, 0.879005), (128, 4, 0.847801), (256, 5, 0.842523)]
)
def test_ms_ssim_counts_windows_inside_the_image_only(side, scales, value):
    """The values are those of pytorch-msssim 1.0 at as many scales, its weights scaled to sum to 1."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    first = torch.sin(9 * x + 4 * y * y) * 0.7
    second = (first + 0.5 * torch.cos(15 * y * x + x)) / 1.3
    assert metrics.ms_ssim_scales(side) == scales
    assert metrics.ms_ssim(first[None, None], second[None, None]).item() == pytest.approx(value, abs=3e-6)


def test_diversity_pairs_have_the_same_findings_and_two_patients():
    labels = columns(("Edema", [1, 1, 1, 0, 0]), rows=5).astype(int)
    table = pd.DataFrame(labels, columns=FINDINGS).assign(subject_id=[1, 1, 2, 3, 4])
    pairs = metrics.label_set_pairs([table], 10, seed=0)[0].tolist()
    assert sorted(pairs) == [[0, 2], [1, 2], [3, 4]]
    alike = metrics.diversity(lambda row: torch.full((1, 64, 64), 0.3), np.array(pairs))
    assert alike == pytest.approx(1)
    assert np.isnan(metrics.diversity(None, metrics.label_set_pairs([table.iloc[:2]], 10, seed=0)[0]))


# ---- clinical efficacy


def test_auroc_counted_by_hand():
    labels = np.array([0, 0, 1, 1], dtype=bool)
    assert metrics.auroc(labels, np.array([0.1, 0.4, 0.35, 0.8])) == 0.75  # 3 of the 4 pairs in order
    assert metrics.auroc(labels, np.full(4, 0.5)) == 0.5
    assert np.isnan(metrics.auroc(np.ones(4, bool), np.arange(4)))


def test_auroc_table_leaves_rare_and_unknown_findings_out_of_the_mean():
    rng = np.random.default_rng(0)
    edema, rare = np.arange(100) < 40, np.arange(100) < 9
    labels = columns(("Edema", edema), ("Fracture", rare), ("Pneumonia", edema), rows=100)
    scores = rng.random((100, 14))
    scores[:, FINDINGS.index("Edema")] = edema + rng.normal(size=100)
    known = np.array([name != "Pneumonia" for name in FINDINGS])
    table = metrics.auroc_table(labels, scores, known, replicates=200)
    assert table.index[table["counted"]].tolist() == ["Edema", "mean"]
    assert np.isnan(table.loc["Fracture", "auroc"]) and table.loc["Fracture", "positives"] == 9
    row = table.loc["Edema"]
    assert row["low"] < row["auroc"] < row["high"] and table.loc["mean", "auroc"] == row["auroc"]
    assert 0.05 < row["high"] - row["low"] < 0.4  # the standard error of such an AUROC is about 0.05
    nothing = metrics.auroc_table(labels[:5], scores[:5])
    assert not nothing["counted"].any() and np.isnan(nothing.loc["mean", "auroc"])


def test_clinical_f1_counted_by_hand(enough):
    labels = columns(("Edema", [1, 1, 1, 0]), ("Fracture", [1, 1, 0, 0]), ("Pneumonia", [1, 0, 0, 0]), rows=4)
    said = columns(("Edema", [1, 1, 0, 1]), ("Fracture", [1, 1, 0, 0]), ("Pneumonia", [0, 0, 0, 0]), rows=4)
    table = metrics.clinical_f1(labels, said)["f1"]
    assert table["Edema"] == pytest.approx(2 / 3)  # 2 hits, 1 miss, 1 false alarm
    assert table["Fracture"] == 1 and np.isnan(table["Pneumonia"])  # 1 positive: too few
    assert table["macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert table["micro"] == pytest.approx(2 * 4 / (2 * 4 + 2 + 1))  # 4 hits, 2 misses, 1 false alarm


# ---- reports


def test_text_scores_counted_by_hand():
    perfect = metrics.text_scores(["No acute process in the chest."], ["no acute process in the chest"])
    assert all(perfect[f"BLEU-{order}"] == pytest.approx(1) for order in (1, 2, 3, 4)) and perfect["ROUGE-L"] == 1
    found = metrics.text_scores(["a b c d"], ["a b x d"])
    assert found["BLEU-1"] == pytest.approx(3 / 4)
    assert found["BLEU-2"] == pytest.approx((3 / 4 * 1 / 3) ** 0.5)
    assert found["BLEU-4"] == 0
    assert found["ROUGE-L"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("absent", ["nltk", "its WordNet"])
def test_without_nltk_or_its_wordnet_there_is_no_meteor_and_everything_else(absent, monkeypatch):
    corpus = SimpleNamespace(wordnet=SimpleNamespace(ensure_loaded=lambda: {}["wordnet"]))
    monkeypatch.setitem(sys.modules, "nltk", None if absent == "nltk" else SimpleNamespace(corpus=corpus))
    monkeypatch.setitem(sys.modules, "nltk.corpus", None if absent == "nltk" else corpus)
    assert not metrics.has_wordnet()
    assert list(metrics.text_scores(["a b"], ["a b"])) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]


def test_meteor_is_the_mean_over_reports_where_wordnet_is_here(monkeypatch):
    given = []
    meteor = SimpleNamespace(meteor_score=lambda *texts: given.append(texts) or len(given) / 4)
    monkeypatch.setattr(metrics, "has_wordnet", lambda: True)
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nltk.translate", SimpleNamespace(meteor_score=meteor))
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", meteor)
    assert metrics.text_scores(["A b.", "c"], ["a", "d"])["METEOR"] == pytest.approx(3 / 8)
    assert given == [([["a", "b"]], ["a"]), ([["c"]], ["d"])]


def test_rouge_l_of_known_texts():
    assert metrics.rouge_l(["no edema"], ["no edema"]) == 1
    assert metrics.rouge_l(["no edema"], ["clear lungs"]) == 0
    assert metrics.rouge_l(["a b c d"], ["a c x"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_constant_report_is_the_commonest_kind():
    reports = ["the lungs are clear"] * 5 + ["the lungs are clear today"] * 2 + ["large effusion"]
    assert metrics.constant_report(reports) == "the lungs are clear"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No edema edema edema.", True),
        ("No pulmonary edema, pulmonary edema. Pulmonary edema is seen.", True),
        ("Edema. EDEMA! edema?", True),
        ("No edema edema.", False),
        ("No edema, no effusion, no pneumothorax.", False),
        ("1. Edema. 2. Edema. 3. Edema.", False),
        ("XXXX XXXX XXXX. Seen on ___ ___ ___.", False),
        ("a b c d e f g " * 3, False),  # a sentence said three times
        ("a b c d e f " * 3, True),
        ("", False),
    ],
)
def test_stuttering(text, found):
    assert metrics.stutters(text) == found


def test_text_habits_counted_by_hand():
    reports = ["Edema.", "Edema.", "Edema.", "Edema edema edema.", "No edema. Edema.", "Clear on ___.", "Clear on ___."]
    labels = columns(("Edema", [1, 1, 1, 1, 1, 0, 0]), rows=7)
    found = metrics.text_habits(reports, labels, subjects=[1, 1, 2, 3, 4, 5, 6])
    assert found == {
        "N": 7, "marks": 2, "comparisons": 0, "contradictions": 1, "stuttering": 1, "distinct": 4 / 7,
        "pairs of the same findings": 9 + 1,  # of the 10 of edema one is of one patient
        "different": pytest.approx(7 / 10),  # not two of edema, nor that of the clear ones
    }  # fmt: skip
    assert np.isnan(metrics.text_habits(reports[:2], labels[:2], [1, 1])["different"])
    assert np.isnan(metrics.text_habits([], labels[:0], [])["distinct"])


# ---- pairs and memorisation


def test_a_planted_label_flip_is_found_by_the_agreement():
    asked = columns(("Edema", np.arange(40) < 20), ("Fracture", np.arange(40) < 20), rows=40)
    report = asked.copy()
    report[3, FINDINGS.index("Edema")] = False
    table = metrics.agreement(asked, asked, report)
    assert table.loc["Fracture"].tolist() == [20, 1, 1, 1, 1, 1, 1]
    assert table.loc["Edema", "all three"] == pytest.approx(39 / 40)
    assert table.loc["Edema", "told in the report"] == pytest.approx(19 / 20)
    assert table.loc["Edema", "kappa request-report"] == pytest.approx(0.95)
    assert table.loc["Edema", "kappa request-image"] == 1
    assert table.loc["Pneumonia"].isna().sum() == 6  # never asked for
    unreported = metrics.agreement(asked, asked, None)
    assert np.isnan(unreported.loc["Edema", "all three"]) and unreported.loc["Edema", "seen in the image"] == 1


def hand_made_pairs():
    """Codes, image and report of 11 pairs; the judges know edema and fracture, the image judge pneumonia as well."""
    labels = columns(("Edema", np.arange(11) % 2), rows=11).astype(int)
    image, report = (np.full((11, 14), np.nan) for _ in range(2))
    edema, fracture, pneumonia = (FINDINGS.index(name) for name in ("Edema", "Fracture", "Pneumonia"))
    for told in (image, report):
        told[:, [edema, fracture]] = labels[:, [edema, fracture]]
    image[:, pneumonia] = 1  # nobody asked for it, and the text judge does not know it
    image[[1, 2], edema] = 1 - image[[1, 2], edema]
    report[3, fracture] = 1
    for told in (image, report):
        told[[4, 5, 6], fracture] = 1
    labels[7, edema], image[7, edema], report[7, edema] = UNCERTAIN, 1, 0
    report[8] = np.nan  # without a report
    labels[9, [edema, fracture]] = UNCERTAIN
    return labels, image, report


def test_complete_agreement_counted_by_hand():
    """Pairs 0, 7 and 10 agree; the image of 1 and 2 differs, the report of 3, both of 4 to 6; 8 and 9 do not count."""
    labels, image, report = hand_made_pairs()
    found = metrics.complete_agreement(labels, image, report)
    assert (found["N"], found["findings"]) == (9, 2)
    assert found["all three"] == pytest.approx(3 / 9)
    assert found["request-image"] == pytest.approx(4 / 9) and found["request-report"] == pytest.approx(5 / 9)
    assert found["image-report"] == pytest.approx(6 / 9)
    image_only = metrics.complete_agreement(labels, np.where(np.isnan(report), np.nan, image))
    assert image_only["request-image"] == pytest.approx(4 / 9)
    assert metrics.complete_agreement(labels, image)["request-image"] == 0  # everybody is seen to have pneumonia
    for name in ("all three", "low", "high", "request-report", "image-report"):
        assert np.isnan(image_only[name])
    nothing = metrics.complete_agreement(labels[8:9], image[8:9], report[8:9])
    assert nothing["N"] == nothing["findings"] == 0 and np.isnan([*nothing.values()][2:]).all()


def test_the_interval_of_complete_agreement_is_that_of_pairs_drawn_again():
    labels = columns(("Edema", True), rows=200).astype(int)
    report = labels.astype(float)
    report[60:, FINDINGS.index("Edema")] = 0
    found = metrics.complete_agreement(labels, labels, report, seed=1)
    draws = np.random.default_rng(0).integers(200, size=(2000, 200))
    low, high = np.quantile((draws < 60).mean(axis=1), (0.025, 0.975))
    assert found["all three"] == 0.3 and [found["low"], found["high"]] == pytest.approx([low, high], abs=0.011)
    assert found == metrics.complete_agreement(labels, labels, report, seed=1)
    certain = metrics.complete_agreement(labels, labels, labels)
    assert certain["low"] == certain["high"] == certain["all three"] == 1


def test_a_planted_copy_is_found():
    train, synthetic, real = gaussians(200, 32), gaussians(50, 32, seed=1), gaussians(60, 32, seed=2)
    synthetic[7] = train[123]
    distances, rows = metrics.nearest(synthetic, lambda start, end: train[start:end], len(train), block=33)
    assert distances.argmin() == 7 and rows[7] == 123 and distances[7] == 0
    exact = np.sqrt(np.square(synthetic[0] - train).mean(axis=1))
    assert distances[0] == pytest.approx(exact.min()) and rows[0] == exact.argmin()
    near_real, _ = metrics.nearest(real, lambda start, end: train[start:end], len(train))
    found = metrics.memorisation(distances, near_real)
    assert found["copies"] >= 1 and found["share"] == found["copies"] / 50
    copied = metrics.memorisation(np.zeros(50), near_real)
    assert copied["share"] == 1 and found["share"] < 0.2
