"""Planted copies of drawn chests are found, whatever was done to them."""

import numpy as np
import pytest
import torch
from scipy.stats import beta

from evaluation import copies
from evaluation.judges import to_float
from phantom import random_chest


@pytest.fixture(scope="module")
def chests():
    """(300, 64, 64) uint8: 240 are training images, 60 are not."""
    rng = np.random.default_rng(5)
    return np.stack([random_chest(rng, 64)[0] for _ in range(300)])


def test_planted_copies_of_every_kind_are_found_and_other_images_are_not(chests):
    train = to_float(chests[:240])

    def search(images):
        return copies.search_copies(to_float(images), lambda rows: train[torch.from_numpy(rows)], len(train))

    threshold = np.quantile(search(chests[240:])[0], copies.COPY_QUANTILE)
    for kind, images in copies.plant_copies(chests[100:120]).items():
        distances, rows = search(images)
        found = copies.copied_share(distances, threshold)
        assert found["share"] >= 0.95, kind
        assert (rows == np.arange(100, 120)).mean() >= 0.95, kind
    fainter = (chests[100:103] * 0.7 + 30).astype(np.uint8)
    assert copies.copied_share(search(fainter)[0], threshold)["share"] == 1


def test_the_nearest_of_several_blocks_is_found(chests, monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", 7)
    monkeypatch.setattr(copies, "CANDIDATES", 3)
    train = to_float(chests[:40])
    distances, rows = copies.search_copies(train[[3, 39]], lambda rows: train[torch.from_numpy(rows)], len(train))
    assert rows.tolist() == [3, 39] and distances.max() < 0.01
    lonely, row = copies.search_copies(train[:1], lambda rows: train[torch.from_numpy(rows) + 1], 1)
    assert row.tolist() == [0] and 0.1 < lonely[0] < 1.5


def test_a_picture_without_contrast_has_no_nearest_image_of_distance_zero():
    black = torch.full((1, 1, 64, 64), -1.0)
    noise = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    distances, _ = copies.search_copies(black, lambda rows: noise[torch.from_numpy(rows)], 5)
    assert np.isfinite(distances).all() and distances[0] > 1


def test_the_interval_of_the_copied_share_is_clopper_pearsons():
    found = copies.copied_share(np.array([0.1, *[0.9] * 159]), 0.5)
    assert (found["copies"], found["share"]) == (1, 1 / 160)
    assert [found["low"], found["high"]] == pytest.approx([beta.ppf(0.025, 1, 160), beta.ppf(0.975, 2, 159)])
    nothing = copies.copied_share(np.ones(160), 0.5)
    assert nothing["low"] == 0 and nothing["high"] == pytest.approx(1 - 0.025 ** (1 / 160))  # 2.3 %
