"""Metrics on inputs whose values are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small_data import columns

from evaluation import metrics
from utils.findings import FINDINGS


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
    once = np.ones((1, 4))
    assert metrics.auroc(labels, np.array([0.1, 0.4, 0.35, 0.8]), once) == 0.75  # 3 of the 4 pairs in order
    assert metrics.auroc(labels, np.full(4, 0.5), once) == 0.5
    assert np.isnan(metrics.auroc(np.ones(4, bool), np.arange(4), once))


def test_auroc_of_rows_that_count_several_times_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(80) < 0.4, rng.integers(0, 9, 80) / 9  # with ties
    weights = rng.integers(0, 4, (5, 80))
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(metrics.auroc(labels, scores, weights), expected)


def test_rows_of_a_patient_are_drawn_together(monkeypatch):
    """200 rows of 50 patients: the deviation of a share of 0.3 is that of 50 draws, not of 200."""
    monkeypatch.setattr(metrics, "BOOTSTRAP", 4000)
    subjects = np.repeat(np.arange(50), 4)
    weights = metrics.patient_weights(subjects, seed=1)
    assert (weights.sum(axis=1) == 200).all() and (weights.reshape(-1, 50, 4).std(axis=2) == 0).all()
    shares = weights @ (subjects < 15) / 200
    assert shares.std() == pytest.approx((0.3 * 0.7 / 50) ** 0.5, rel=0.05)


def test_the_interval_of_a_perfect_auroc_does_not_collapse():
    edema = np.arange(60) < 20
    labels = columns(("Edema", edema), rows=60)
    row = metrics.auroc_table(labels, labels.astype(float)).loc["mean"]
    assert row["auroc"] == row["high"] == 1
    area = row["low"]  # is 1.96 of its own standard errors (Hanley & McNeil 1982, equal classes) below 1
    others = area / (2 - area) + 2 * area**2 / (1 + area)
    more = (20 + 40) / 2 - 1
    variance = (area * (1 - area) + more * (others - 2 * area**2) / 1) / (20 * 40)
    assert (1 - area) / variance**0.5 == pytest.approx(1.95996, rel=1e-4) and 0.8 < area < 0.98
    as_patients = metrics.auroc_table(labels, labels.astype(float), subjects=np.arange(60) // 4)
    assert as_patients.loc["mean", "low"] < area


def test_auroc_intervals_hold_the_true_area(monkeypatch):
    """Of 300 sets of 15 + 15 images the 95 % intervals of an area of 0.98; a third of the sets is in perfect order."""
    monkeypatch.setattr(metrics, "BOOTSTRAP", 100)
    rng, labels = np.random.default_rng(3), columns(("Edema", np.arange(30) < 15), rows=30)
    inside, perfect = 0, 0
    for _ in range(300):
        scores = np.zeros((30, 14))
        scores[:, FINDINGS.index("Edema")] = rng.normal(size=30) + labels.any(axis=1) * 2.9044  # 2^0.5 x 2.0537
        row = metrics.auroc_table(labels, scores).loc["mean"]
        inside += row["low"] <= 0.98 <= row["high"]
        perfect += row["auroc"] == 1
    assert perfect > 60 and inside / 300 > 0.9


def test_auroc_table_leaves_rare_and_unknown_findings_out_of_the_mean():
    rng = np.random.default_rng(0)
    edema, rare = np.arange(100) < 40, np.arange(100) < 9
    labels = columns(("Edema", edema), ("Fracture", rare), ("Pneumonia", edema), rows=100)
    scores = rng.random((100, 14))
    scores[:, FINDINGS.index("Edema")] = edema + rng.normal(size=100)
    known = np.array([name != "Pneumonia" for name in FINDINGS])
    table = metrics.auroc_table(labels, scores, known)
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
