"""The baselines of an evaluation, and what its sections say where there is nothing to evaluate."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evaluation import sections
from evaluation.images import Images, ImageSets, Loading
from evaluation.judges import Extractor, RulesJudge
from utils.findings import FINDINGS, UNCERTAIN
from utils.latents import encode_moments, load_vae, read_grey, read_pixels


def test_the_label_only_report_says_each_code():
    labels = np.zeros(14, dtype=int)
    labels[[FINDINGS.index(name) for name in ("Edema", "Fracture", "Pneumonia")]] = 1, -1, -2
    said = sections.label_only_report(labels)
    assert said == "FINDINGS: There is edema. There is no fracture. Possible pneumonia. IMPRESSION: Edema."


def test_shuffled_reports_are_all_kept_and_none_in_its_own_place():
    reports = [f"report {number}" for number in range(7)]
    moved = sections.shuffled(reports, seed=3)
    assert sorted(moved) == reports and all(one != other for one, other in zip(reports, moved))
    assert moved == sections.shuffled(reports, seed=3) != sections.shuffled(reports, seed=4)


def findings_rows(*rows):
    """Codes, (N, 14), of rows that are each a dict {finding: code}."""
    return np.array([[row.get(name, 0) for name in FINDINGS] for row in rows])


class Shown:
    """Images of a table in which the judge finds the given codes."""

    def __init__(self, labels, shown, reports):
        ids = [f"{len(labels)}-{row}" for row in range(len(labels))]
        numbers = {"dicom_id": ids, "subject_id": range(len(labels)), "study_id": range(len(labels))}
        self.table = pd.DataFrame(labels, columns=FINDINGS).assign(**numbers, report=reports)
        self.shown = (shown == 1).astype(float)

    def encode(self, judge, rows=None):
        return None, self.shown if rows is None else self.shown[rows]

    def codes(self):
        return self.table[list(FINDINGS)].to_numpy()


def sets_of(synthetic, real, train):
    copies = sections.nearest_by_labels(synthetic.table, train.table, 3)
    return ImageSets(real, synthetic, train, copies, seed=3)


EDEMA, NORMAL, BROKEN = {"Edema": 1}, {"No Finding": 1}, {"Fracture": 1}
JUDGE = SimpleNamespace(thresholds=np.full(14, 0.5), known=np.isin(FINDINGS, ["Edema", "Fracture"]))


def drawn_pairs(text_judge, silent=""):
    """`sections.pairs` of 12 synthetic images, half with edema; the first report is wrong, the last one is silent."""
    labels = findings_rows(*[EDEMA] * 6, *[NORMAL] * 6)
    reports = ["No edema.", *["Mild edema."] * 5, *["The lungs are clear."] * 5, silent]
    train_labels = findings_rows(NORMAL, EDEMA, NORMAL, EDEMA)
    train = Shown(
        train_labels,
        findings_rows(NORMAL, EDEMA, BROKEN, EDEMA),
        ["", "Some edema.", "Clear lungs.", "Edema is present."],
    )
    real_labels = findings_rows(EDEMA, NORMAL, EDEMA, NORMAL)
    real = Shown(real_labels, real_labels, ["Mild edema.", "Clear lungs.", "Clear lungs.", "Mild edema."])
    return sections.pairs(sets_of(Shown(labels, labels, reports), real, train), JUDGE, text_judge), reports


def test_pairs_that_agree_on_every_finding_beside_the_floor_the_baselines_and_the_real_pairs():
    (table, found), reports = drawn_pairs(RulesJudge())
    rows = {row["pairs"]: row for row in found["complete_agreement"]}
    assert list(found["pairs"]) == ["synthetic", sections.SHUFFLED, "real"]
    moved = np.array(["edema" in text and "No" not in text for text in sections.shuffled(reports[:11], 3)])
    share = {name: row["all three"] for name, row in rows.items()}
    assert share == {
        "synthetic": 10 / 11,
        sections.SHUFFLED: (moved == (np.arange(11) < 6)).mean(),
        sections.COPYING: 6 / 11,  # the only normal training image with a report shows a fracture
        "label-only report": 1,
        "constant normal report": 5 / 11,
        "real": 1 / 2,
    }
    assert list(share)[-1] == "real" and share[sections.SHUFFLED] < share["synthetic"]
    assert {row["N"] for name, row in rows.items() if name != "real"} == {11} and rows["real"]["N"] == 4
    assert {row["findings"] for row in rows.values()} == {2}
    assert rows["synthetic"]["of the real share"] == pytest.approx(20 / 11) and rows["real"]["of the real share"] == 1
    assert rows[sections.COPYING]["request-report"] == 1 and rows[sections.COPYING]["request-image"] == 6 / 11
    assert np.isnan(table["report"].to_numpy().reshape(12, 14)[11]).all() and len(table) == 12 * 14
    assert table["asked"].to_numpy().reshape(12, 14)[:, FINDINGS.index("Edema")].tolist() == [1] * 6 + [0] * 6


def test_pairs_without_a_text_judge_are_of_request_and_image():
    table, found = drawn_pairs(None)[0]
    rows = found["complete_agreement"]
    assert [row["pairs"] for row in rows] == ["synthetic", sections.COPYING, "real"]
    assert [row["request-image"] for row in rows] == [1, rows[1]["request-image"], 1] and rows[0]["N"] == 12
    assert all(np.isnan(row["all three"]) and np.isnan(row["of the real share"]) for row in rows)
    assert table["report"].isna().all() and list(found["pairs"]) == ["synthetic", "real"]


def test_no_real_pair_that_agrees_has_no_share():
    labels = findings_rows(EDEMA, NORMAL)
    right, wrong = (Shown(labels, labels[order], ["Edema.", "Clear lungs."]) for order in ([0, 1], [1, 0]))
    rows = sections.pairs(sets_of(right, wrong, right), JUDGE, RulesJudge())[1]["complete_agreement"]
    assert rows[0]["all three"] == 1 and rows[-1]["all three"] == 0 and np.isnan(rows[0]["of the real share"])


def test_what_a_request_leaves_uncertain_is_negative_per_finding_and_counts_in_no_whole_pair():
    labels = findings_rows(*[EDEMA] * 10, *[{"Edema": UNCERTAIN, "Fracture": -1}] * 10)
    images = Shown(labels, findings_rows(*[EDEMA] * 20), ["Mild edema."] * 20)
    _, found = sections.pairs(sets_of(images, images, images), JUDGE, RulesJudge())
    assert found["pairs"]["synthetic"].loc["Edema", "all three"] == 0.5
    assert found["complete_agreement"][0]["all three"] == 1


def test_reports_as_texts_stand_beside_as_many_real_studies():
    texts = ["Edema.", "Edema.", "No edema. Edema.", "Seen on ___."]
    table = Shown(findings_rows(*[EDEMA] * 4), findings_rows(*[EDEMA] * 4), texts).table
    train = Shown(findings_rows(*[EDEMA] * 9), findings_rows(*[EDEMA] * 9), [f"{row} lungs" for row in range(8)] + [""])
    train.table["study_id"] = [0, 0, 1, 2, 3, 4, 5, 6, 7]
    made, written = sections.Reports("synthetic", table, []), sections.Reports("written", table[:2], [])
    rows = sections.report_texts([made, written], train.table, seed=3)
    assert [row["reports"] for row in rows] == ["synthetic", "written", "real train"]
    assert [row["N"] for row in rows] == [4, 2, 4]
    assert [rows[0][name] for name in ("marks", "contradictions", "distinct")] == [1, 1, 0.75]
    assert rows[1]["distinct"] == 0.5 and rows[2]["distinct"] == rows[2]["different"] == 1
    many = sections.report_texts([sections.Reports("synthetic", pd.concat([table] * 5), [])], train.table, seed=3)
    assert many[1]["N"] == 7  # one a study, none without a report


def test_copies_are_looked_for_in_mean_latents_of_unit_variance(make_table, base_model, accelerator, tmp_path):
    """Not in the log variances that lie beside the means in the cache."""
    table, vae = make_table(np.zeros((5, 14)), range(5)), load_vae(base_model, "cpu")
    loading = Loading(str(tmp_path / "cache"), 32, 2, accelerator)
    images = Images(table, "drawn", 32, loading)
    found = sections._latent_reader(images, vae)(1, 4)  # (3, C h w)
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

    def features(table, image_size):
        loading = Loading(str(tmp_path / "cache"), image_size, 2, accelerator)
        return Images(table, "drawn", 32, loading).encode(extractor)[0]

    np.testing.assert_array_equal(features(fine, 16), features(coarse, 16))
    assert np.abs(features(fine, 256) - features(fine, 16)).max() > 0.1
