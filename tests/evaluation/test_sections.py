"""What the sections of an evaluation compare, and what they say where there is nothing to evaluate."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import metrics, sections
from evaluation.baselines import constant_normal_report, nearest_by_labels, shuffled
from evaluation.images import Images, ImageSets, Loading
from evaluation.judges import Extractor, RulesJudge
from utils.findings import FINDINGS, UNCERTAIN
from utils.pixels import read_grey


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

    def __len__(self):
        return len(self.table)

    def codes(self):
        return self.table[list(FINDINGS)].to_numpy()

    def subjects(self, rows=None):
        return self.table["subject_id"].to_numpy()[slice(None) if rows is None else rows]


def sets_of(synthetic, real, train, **more):
    return ImageSets(real, synthetic, train, nearest_by_labels(synthetic.table, train.table, 3), seed=3, **more)


EDEMA, NORMAL, BROKEN = {"Edema": 1}, {"No Finding": 1}, {"Fracture": 1}
JUDGE = SimpleNamespace(thresholds=np.full(14, 0.5), known=np.isin(FINDINGS, ["Edema", "Fracture"]))


def drawn_pairs(text_judge, **more):
    """`sections.pairs` of 12 synthetic images, half with edema; the first report is wrong, the last one is silent."""
    labels = findings_rows(*[EDEMA] * 6, *[NORMAL] * 6)
    reports = ["No edema.", *["Mild edema."] * 5, *["The lungs are clear."] * 5, ""]
    train_labels = findings_rows(NORMAL, EDEMA, NORMAL, EDEMA)
    train = Shown(
        train_labels,
        findings_rows(NORMAL, EDEMA, BROKEN, EDEMA),
        ["", "Some edema.", "Clear lungs.", "Edema is present."],
    )
    real_labels = findings_rows(EDEMA, NORMAL, EDEMA, NORMAL)
    real = Shown(real_labels, real_labels, ["Mild edema.", "Clear lungs.", "Clear lungs.", "Mild edema."])
    sets = sets_of(Shown(labels, labels, reports), real, train, **more)
    return sections.pairs(sets, JUDGE, text_judge, constant_normal_report(train.table)), reports


def test_pairs_that_agree_on_every_finding_beside_the_floor_the_baselines_and_the_real_pairs():
    (table, found), reports = drawn_pairs(RulesJudge())
    rows = {row["pairs"]: row for row in found["complete_agreement"]}
    assert list(found["pairs"]) == ["synthetic", sections.SHUFFLED, "real"]
    moved = np.array(["edema" in text and "No" not in text for text in shuffled(reports[:11], 3)])
    share = {name: row["all three"] for name, row in rows.items()}
    assert share == {
        "synthetic": 10 / 11,
        sections.COPYING: 6 / 11,  # the only normal training image with a report shows a fracture
        sections.SHUFFLED: (moved == (np.arange(11) < 6)).mean(),
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


def test_selected_random_pairs_and_real_pairs_that_set_no_threshold():
    """A floor of the training pairs 1 (edema) and 2 (normal, shows a fracture); the last two real pairs are left."""
    (_, found), _ = drawn_pairs(RulesJudge(), floor=np.array([1] * 9 + [2] * 3), ceiling=np.array([2, 3]))
    rows = {row["pairs"]: row for row in found["complete_agreement"]}
    assert rows[sections.SELECTED]["all three"] == 6 / 11 and rows[sections.SELECTED]["N"] == 11
    assert rows["real"]["N"] == 2 and rows["real"]["all three"] == 0  # (edema, "Clear lungs.") and the other way round
    (_, silent), _ = drawn_pairs(None, floor=np.array([1] * 9 + [2] * 3))
    assert [row["pairs"] for row in silent["complete_agreement"]][1] == sections.SELECTED


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
    rows = sections.pairs(sets_of(right, wrong, right), JUDGE, RulesJudge(), "Clear lungs.")[1]["complete_agreement"]
    assert rows[0]["all three"] == 1 and rows[-1]["all three"] == 0 and np.isnan(rows[0]["of the real share"])


def test_what_a_request_leaves_uncertain_is_negative_per_finding_and_counts_in_no_whole_pair():
    labels = findings_rows(*[EDEMA] * 10, *[{"Edema": UNCERTAIN, "Fracture": -1}] * 10)
    images = Shown(labels, findings_rows(*[EDEMA] * 20), ["Mild edema."] * 20)
    _, found = sections.pairs(sets_of(images, images, images), JUDGE, RulesJudge(), "Clear lungs.")
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
    assert rows[1]["distinct"] == 0.5 and rows[2]["distinct"] == 1
    many = sections.report_texts([sections.Reports("synthetic", pd.concat([table] * 5), [])], train.table, seed=3)
    assert many[1]["N"] == 7  # one a study, none without a report


class Featured(Shown):
    """Images whose features depend on their labels."""

    def __init__(self, labels, seed):
        super().__init__(labels, labels, [""] * len(labels))
        noise = np.random.default_rng(seed).normal(size=(len(labels), 4))
        self.features = (noise + 2 * (labels[:, :4] == 1)).astype(np.float32)

    def encode(self, judge, rows=None):
        return (self.features if rows is None else self.features[rows]), None


def test_the_floor_of_fid_is_that_of_other_images_with_the_labels_of_the_requests():
    """As the mean over pairs of such sets, and not that of images as they come, of which few have a finding."""
    rng = np.random.default_rng(0)
    asked, usual = ((rng.random((size, 14)) < share).astype(int) for size, share in ((100, 0.5), (2000, 0.3)))
    matched = asked[rng.integers(100, size=1000)]
    unseen = np.concatenate([usual, matched])
    sets = sets_of(Featured(asked, 1), Featured(asked, 2), Featured(usual, 3), unseen=Featured(unseen, 4))
    extractor = SimpleNamespace(name="features", width=4)
    rows = {row["images"]: row for row in sections.image_quality(sets, [extractor])}
    others = [metrics.frechet_distance(sets.real.features, Featured(asked, seed).features) for seed in range(10, 40)]
    floor = rows[sections.FLOOR]
    assert abs(floor["FID"] - np.mean(others)) < 3 * np.std(others) / sections.FLOOR_DRAWS**0.5 + 0.02
    assert 0 < floor["FID deviation"] < 2 * np.std(others) and floor["FID / floor"] == 1
    assert metrics.frechet_distance(sets.real.features, Featured(usual, 5).features[:100]) > 2 * floor["FID"]
    assert rows["synthetic"]["FID / floor"] == pytest.approx(rows["synthetic"]["FID"] / floor["FID"])


def test_written_reports_may_hold_a_ceiling_and_a_floor(tmp_path, capsys):
    frame = pd.DataFrame({"dicom_id": ["3-0", "3-1", "3-2"], "report": ["a", "b", ""], "floor": ["x", "y", "z"]})
    frame.assign(reconstruction=["u", "", "w"]).to_csv(tmp_path / "reports.csv", index=False)
    written = sections.read_written(tmp_path)
    images = Shown(findings_rows(EDEMA, EDEMA, EDEMA), findings_rows(EDEMA, EDEMA, EDEMA), ["", "", ""])
    found = sections.written_reports(images, written[written["report"] != ""])
    assert found.further == {sections.CHOSEN: ["x", "y"]} and found.table["report"].tolist() == ["a", "b"]
    assert "reconstruction" in capsys.readouterr().out
    assert sections.read_written(tmp_path / "nowhere") is None


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
