"""The baselines of an evaluation, and what its sections say where there is nothing to evaluate."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evaluation import sections as evaluation
from evaluation.judges import Extractor, RulesJudge
from utils.findings import FINDINGS, UNCERTAIN
from utils.latents import encode_moments, load_vae, read_grey, read_pixels


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


def findings_rows(*rows):
    """Codes, (N, 14), of rows that are each a dict {finding: code}."""
    return np.array([[row.get(name, 0) for name in FINDINGS] for row in rows])


class Seen:
    """Images of a table in which a judge sees the findings that are told to be shown."""

    def __init__(self, labels, shown, reports):
        ids = [f"{len(labels)}-{row}" for row in range(len(labels))]
        numbers = {"dicom_id": ids, "subject_id": range(len(labels)), "study_id": range(len(labels))}
        self.table = pd.DataFrame(labels, columns=FINDINGS).assign(**numbers, report=reports)
        self.shown = (shown == 1).astype(float)

    def see(self, judge, rows=None):
        return None, self.shown if rows is None else self.shown[rows]


EDEMA, NORMAL, BROKEN = {"Edema": 1}, {"No Finding": 1}, {"Fracture": 1}
JUDGE = SimpleNamespace(thresholds=np.full(14, 0.5), known=np.isin(FINDINGS, ["Edema", "Fracture"]))


def drawn_pairs(text_judge, silent=""):
    """`evaluation.pairs` of 12 synthetic images, half with edema; the first report is wrong, the last one is silent."""
    labels = findings_rows(*[EDEMA] * 6, *[NORMAL] * 6)
    reports = ["No edema.", *["Mild edema."] * 5, *["The lungs are clear."] * 5, silent]
    train_labels = findings_rows(NORMAL, EDEMA, NORMAL, EDEMA)
    train = Seen(
        train_labels,
        findings_rows(NORMAL, EDEMA, BROKEN, EDEMA),
        ["", "Some edema.", "Clear lungs.", "Edema is present."],
    )
    real_labels = findings_rows(EDEMA, NORMAL, EDEMA, NORMAL)
    real = Seen(real_labels, real_labels, ["Mild edema.", "Clear lungs.", "Clear lungs.", "Mild edema."])
    return evaluation.pairs(JUDGE, text_judge, Seen(labels, labels, reports), real, train, 100, seed=3), reports


def test_pairs_that_agree_on_every_finding_beside_the_floor_the_baselines_and_the_real_pairs():
    (told, found), reports = drawn_pairs(RulesJudge())
    rows = {row["pairs"]: row for row in found["complete_agreement"]}
    assert list(found["pairs"]) == ["synthetic", evaluation.SHUFFLED, "real"]
    moved = np.array(["edema" in text and "No" not in text for text in evaluation.shuffled(reports[:11], 3)])
    share = {name: row["all three"] for name, row in rows.items()}
    assert share == {
        "synthetic": 10 / 11,
        evaluation.SHUFFLED: (moved == (np.arange(11) < 6)).mean(),
        evaluation.COPYING: 6 / 11,  # the only normal training image with a report shows a fracture
        "label-only report": 1,
        "constant normal report": 5 / 11,
        "real": 1 / 2,
    }
    assert list(share)[-1] == "real" and share[evaluation.SHUFFLED] < share["synthetic"]
    assert {row["N"] for name, row in rows.items() if name != "real"} == {11} and rows["real"]["N"] == 4
    assert {row["findings"] for row in rows.values()} == {2}
    assert rows["synthetic"]["of the real share"] == pytest.approx(20 / 11) and rows["real"]["of the real share"] == 1
    assert rows[evaluation.COPYING]["request-report"] == 1 and rows[evaluation.COPYING]["request-image"] == 6 / 11
    assert np.isnan(told["report"].to_numpy().reshape(12, 14)[11]).all() and len(told) == 12 * 14
    assert told["asked"].to_numpy().reshape(12, 14)[:, FINDINGS.index("Edema")].tolist() == [1] * 6 + [0] * 6


def test_pairs_without_a_text_judge_are_of_request_and_image():
    told, found = drawn_pairs(None)[0]
    rows = found["complete_agreement"]
    assert [row["pairs"] for row in rows] == ["synthetic", evaluation.COPYING, "real"]
    assert [row["request-image"] for row in rows] == [1, rows[1]["request-image"], 1] and rows[0]["N"] == 12
    assert all(np.isnan(row["all three"]) and np.isnan(row["of the real share"]) for row in rows)
    assert told["report"].isna().all() and list(found["pairs"]) == ["synthetic", "real"]


def test_no_real_pair_that_agrees_has_no_share():
    labels = findings_rows(EDEMA, NORMAL)
    right, wrong = (Seen(labels, labels[order], ["Edema.", "Clear lungs."]) for order in ([0, 1], [1, 0]))
    rows = evaluation.pairs(JUDGE, RulesJudge(), right, wrong, right, 10, seed=3)[1]["complete_agreement"]
    assert rows[0]["all three"] == 1 and rows[-1]["all three"] == 0 and np.isnan(rows[0]["of the real share"])


def test_what_a_request_leaves_uncertain_is_negative_per_finding_and_counts_in_no_whole_pair():
    labels = findings_rows(*[EDEMA] * 10, *[{"Edema": UNCERTAIN, "Fracture": -1}] * 10)
    images = Seen(labels, findings_rows(*[EDEMA] * 20), ["Mild edema."] * 20)
    _, found = evaluation.pairs(JUDGE, RulesJudge(), images, images, images, 10, seed=3)
    assert found["pairs"]["synthetic"].loc["Edema", "all three"] == 0.5
    assert found["complete_agreement"][0]["all three"] == 1


def test_reports_as_texts_stand_beside_as_many_real_studies():
    texts = ["Edema.", "Edema.", "No edema. Edema.", "Seen on ___."]
    table = Seen(findings_rows(*[EDEMA] * 4), findings_rows(*[EDEMA] * 4), texts).table
    train = Seen(findings_rows(*[EDEMA] * 9), findings_rows(*[EDEMA] * 9), [f"{row} lungs" for row in range(8)] + [""])
    train.table["study_id"] = [0, 0, 1, 2, 3, 4, 5, 6, 7]
    rows = evaluation.report_texts({"synthetic": table, "written": table[:2]}, train.table, seed=3)
    assert [row["reports"] for row in rows] == ["synthetic", "written", "real train"]
    assert [row["N"] for row in rows] == [4, 2, 4]
    assert [rows[0][name] for name in ("marks", "contradictions", "distinct")] == [1, 1, 0.75]
    assert rows[1]["distinct"] == 0.5 and rows[2]["distinct"] == rows[2]["different"] == 1
    many = evaluation.report_texts({"synthetic": pd.concat([table] * 5)}, train.table, seed=3)
    assert many[1]["N"] == 7  # one a study, none without a report


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
    loading = evaluation.Loading(str(tmp_path / "cache"), 32, 2, 0, accelerator)
    images = evaluation.Images(table, "drawn", 32, loading)
    found = evaluation._latent_reader(images, vae)(1, 4)  # (3, C h w)
    pixels = torch.stack([read_pixels(path, 32) for path in table.image_path[1:4]])
    means, _ = encode_moments(vae, pixels).chunk(2, dim=1)
    wanted = means.flatten(1).numpy() * vae.config.scaling_factor
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())  # the cache holds 16 bits


def test_extractors_see_images_at_the_size_of_generated_ones(make_table, accelerator, tmp_path):
    """A finer film differs from a generated one in nothing that the generated one's size cannot hold."""
    fine = make_table(np.zeros((4, 14)), range(4), size=(256, 256))
    coarse = fine.assign(image_path=[str(tmp_path / f"coarse-{row}.png") for row in range(4)])
    for path, finer in zip(coarse.image_path, fine.image_path):
        Image.fromarray(read_grey(finer, 16)).save(path)
    extractor = Extractor("pixels", 48, 48 * 48, lambda pixels: (pixels.flatten(1), None))

    def seen(table, image_size):
        loading = evaluation.Loading(str(tmp_path / "cache"), image_size, 2, 0, accelerator)
        return evaluation.Images(table, "drawn", 32, loading).see(extractor)[0]

    np.testing.assert_array_equal(seen(fine, 16), seen(coarse, 16))
    assert np.abs(seen(fine, 256) - seen(fine, 16)).max() > 0.1
