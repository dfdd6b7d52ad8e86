"""The baselines of an evaluation, and what its sections say where there is nothing to evaluate."""

import numpy as np
import torch

from utils import evaluation
from utils.findings import FINDINGS
from utils.latents import encode_moments, load_vae, read_pixels


def test_the_label_only_report_says_each_code():
    labels = np.zeros(14, dtype=int)
    labels[[FINDINGS.index(name) for name in ("Edema", "Fracture", "Pneumonia")]] = 1, -1, -2
    said = evaluation.label_only_report(labels)
    assert said == "FINDINGS: There is edema. There is no fracture. Possible pneumonia. IMPRESSION: Edema."


def test_shuffled_reports_are_all_kept_and_none_in_its_own_place():
    reports = [f"report {number}" for number in range(7)]
    moved = evaluation.shuffled(reports, seed=3)
    assert sorted(moved) == reports and all(one != other for one, other in zip(reports, moved))
    assert moved == evaluation.shuffled(reports, seed=3) != evaluation.shuffled(reports, seed=4)


def test_drawn_rows_are_distinct_in_order_and_no_more_than_there_are():
    rows = evaluation.draw_rows(50, 20, 1234, "floor")
    assert len(set(rows)) == 20 and (np.diff(rows) > 0).all() and rows.max() < 50
    assert evaluation.draw_rows(5, 20, 1234, "floor").tolist() == [0, 1, 2, 3, 4]


def test_the_stopwatch_tells_each_lap(capsys):
    stopwatch = evaluation.Stopwatch()
    stopwatch.lap("trees")
    stopwatch.lap("pairs")
    assert list(stopwatch.seconds) == ["trees", "pairs"] and 0 <= stopwatch.seconds["pairs"] < 60
    assert capsys.readouterr().out.splitlines()[0] == f"trees: {stopwatch.seconds['trees']} s"


def test_copies_are_looked_for_in_mean_latents_of_unit_variance(make_table, base_model, accelerator, tmp_path):
    """Not in the log variances that lie beside the means in the cache."""
    table, vae = make_table(np.zeros((5, 14)), range(5)), load_vae(base_model, "cpu")
    loading = evaluation.Loading(str(tmp_path / "cache"), 2, 0, accelerator)
    images = evaluation.Images(table, "drawn", 32, loading)
    found = evaluation._latent_reader(images, vae, 32)(1, 4)  # (3, C h w)
    pixels = torch.stack([read_pixels(path, 32) for path in table.image_path[1:4]])
    means, _ = encode_moments(vae, pixels).chunk(2, dim=1)
    wanted = means.flatten(1).numpy() * vae.config.scaling_factor
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())  # the cache holds 16 bits
