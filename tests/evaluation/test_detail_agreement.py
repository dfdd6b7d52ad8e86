"""evaluation/detail_agreement.py: planted copies and swaps, values computed by hand, the judge of sides and zones."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import detail_agreement, metrics
from evaluation.details import DETAILS, read_details
from evaluation.images import Images, ImageSets, Loading
from evaluation.judges import JudgeSettings, RulesJudge, image_judge
from evaluation.sections import SHUFFLED, written_reports
from phantom import random_findings, write_report
from utils.devices import make_accelerator
from utils.findings import FINDINGS

SWAP = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def swapped(report):
    return re.sub("|".join(SWAP), lambda word: SWAP[word[0]], report)


def drawn_rows(count, seed=2):
    """Labels and reports of drawn studies, one a patient, as a table."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        drawn, labels = random_findings(rng)
        row = {"dicom_id": f"{seed}-{number}", "subject_id": number, "study_id": number}
        rows.append({**row, "report": write_report(drawn, labels, rng), **dict(zip(FINDINGS, labels))})
    return pd.DataFrame(rows)


def agreement(reports, references, subjects=None, train=None, ceiling=None):
    """`agreement_rows` of texts, {detail: row}."""
    read = [None if texts is None else read_details(texts) for texts in (reports, references, train, ceiling)]
    subjects = range(len(reports)) if subjects is None else subjects
    rows = detail_agreement.agreement_rows(read[0], read[1], subjects, read[2] or read[1], 3, read[3])
    return {row["detail"]: row for row in rows}


# ---- the measure -----------------------------------------------------------------------------------------------------


def test_a_copy_is_right_throughout_and_swapped_sides_are_wrong_throughout():
    reports = drawn_rows(150)["report"].tolist()
    copied = agreement(reports, reports, ceiling=reports)
    assert list(copied) == list(DETAILS)
    assert all(row["share"] == row["high"] == row["ceiling"] == 1 > row["low"] for row in copied.values())
    assert all(row["N"] == row["of"] > 30 for row in copied.values())
    assert 0.4 < copied["side"]["shuffled"] < 0.6 and copied["side"]["chance"] == pytest.approx(0.5, abs=0.05)

    turned = agreement([swapped(report) for report in reports], reports)
    assert turned["side"]["share"] == 0 and turned["side"]["N"] == copied["side"]["N"]
    assert {turned[detail]["share"] for detail in ("zone", "degree", "kind")} == {1}


def test_the_columns_of_a_small_table_are_those_computed_by_hand():
    references = ["Left effusion.", "Left effusion.", "Right effusion.", "Large effusion.", "No effusion."]
    reports = ["Left effusion.", "Right effusion.", "Right effusion.", "Left effusion.", "Left effusion."]
    train = ["Left effusion."] * 3 + ["Right effusion.", "Effusion."]
    row = agreement(reports, references, train=train, ceiling=["Left effusion.", *["Right effusion."] * 4])["side"]
    assert row["N"] == row["of"] == 3 and row["share"] == pytest.approx(2 / 3)
    assert row["chance"] == pytest.approx((3 / 4) ** 2 + (1 / 4) ** 2)  # "Effusion." names no side
    others = [2 / 4, 3 / 4, 1 / 4]  # of the five named sides those of the four other patients that fit
    assert row["shuffled"] == pytest.approx(np.mean(others))
    assert row["ceiling"] == pytest.approx(2 / 3)
    assert agreement(reports, references)["kind"]["N"] == 0 and np.isnan(
        agreement(reports, references)["kind"]["share"]
    )


def test_no_report_of_the_same_patient_is_a_shuffled_one():
    reports = ["Left effusion.", "Left effusion.", "Right effusion.", "Right effusion."]
    assert agreement(reports, reports, [1, 1, 2, 2])["side"]["shuffled"] == 0
    assert agreement(reports, reports, [1, 2, 3, 4])["side"]["shuffled"] == pytest.approx(1 / 3)


def test_written_reports_stand_beside_their_reconstructions():
    table = drawn_rows(60)
    images = SimpleNamespace(table=table)
    made = table[["dicom_id"]].assign(report=[swapped(report) for report in table["report"]])
    made = made.assign(reconstruction=table["report"], floor="").set_index("dicom_id")
    for written, ceiling in ((made, 1), (made.assign(reconstruction=""), np.nan)):
        side = detail_agreement.written_details(
            written_reports(images, written), read_details(table.drop_duplicates("study_id")["report"]), 3
        )[0]
        assert side["share"] == 0 and side["N"] > 20
        np.testing.assert_equal(side["ceiling"], ceiling)


# ---- the judge of sides and zones ------------------------------------------------------------------------------------


def target(detail, finding, value):
    return detail_agreement.TARGETS.index((detail, finding, value))


def test_targets_are_what_reports_say_of_places_and_unknown_where_a_finding_has_none():
    reports = ["Left effusion.", "Bilateral effusions.", "Effusion.", "Possible effusion.", "No effusion.", "Clear."]
    targets = detail_agreement.place_targets(pd.DataFrame({"report": reports}))
    left, right = (targets[:, target("side", "Pleural Effusion", side)] for side in ("left", "right"))
    np.testing.assert_equal(left, [1, 1, np.nan, np.nan, 0, 0])
    np.testing.assert_equal(right, [0, 1, np.nan, np.nan, 0, 0])
    zones = detail_agreement.place_targets(pd.DataFrame({"report": ["Upper and lower lobe opacities."]}))[0]
    assert [zones[target("zone", "Lung Opacity", zone)] for zone in ("upper", "middle", "lower")] == [1, 0, 1]


class Shown:
    """Images of a table in which a judge of findings finds the labels and a judge of places the given probabilities."""

    def __init__(self, table, places):
        self.table, self.places = table.reset_index(drop=True), places

    def encode(self, judge, rows=None):
        return None, self.places if judge is PLACES else metrics.positives(self.table).astype(float)

    def codes(self):
        return self.table[list(FINDINGS)].to_numpy()

    def subjects(self):
        return self.table["subject_id"].to_numpy()


PLACES = SimpleNamespace(known=np.ones(len(detail_agreement.TARGETS), dtype=bool))
JUDGE = SimpleNamespace(thresholds=np.full(14, 0.5), known=np.ones(14, dtype=bool))


def test_the_places_that_a_judge_sees_are_those_above_half_or_the_likeliest():
    probabilities = np.zeros((3, len(detail_agreement.TARGETS)))
    probabilities[:, target("side", "Pleural Effusion", "left")] = 0.9, 0.8, 0.2
    probabilities[:, target("side", "Pleural Effusion", "right")] = 0.1, 0.7, 0.4
    probabilities[:, target("zone", "Lung Opacity", "upper")] = 0.6, 0.0, 0.0
    probabilities[:, target("zone", "Lung Opacity", "lower")] = 0.7, 0.9, 0.1
    known = ~np.isin([place[1] for place in detail_agreement.TARGETS], "Edema")
    seen = detail_agreement.read_places(
        SimpleNamespace(known=known), SimpleNamespace(encode=lambda _: (None, probabilities))
    )
    assert seen["side"][:, FINDINGS.index("Pleural Effusion")].tolist() == ["left", "bilateral", "right"]
    assert seen["zone"][:, FINDINGS.index("Lung Opacity")].tolist() == ["lower, upper", "lower", "lower"]
    assert set(seen["side"][:, FINDINGS.index("Edema")]) == {""}


def drawn_sets(turn=lambda report: report):
    """Image sets whose judge of places sees what the reports say; `turn` rewrites the synthetic reports."""
    real, synthetic = drawn_rows(80, seed=4), drawn_rows(80, seed=5)
    shown = [Shown(table, np.nan_to_num(detail_agreement.place_targets(table))) for table in (real, synthetic)]
    shown[1].table["report"] = [turn(report) for report in synthetic["report"]]
    return ImageSets(shown[0], shown[1], SimpleNamespace(table=real), np.zeros(80, dtype=int), seed=3)


def image_details(sets):
    train = read_details(sets.train.table.drop_duplicates("study_id")["report"])
    return detail_agreement.image_details(sets, JUDGE, PLACES, RulesJudge(), train)


def test_pairs_whose_reports_swap_sides_agree_on_every_finding_and_on_no_side():
    found = image_details(drawn_sets())
    right = {(row["images"], row["detail"]): row["share"] for row in found["image_details"]}
    assert right == {(images, detail): 1 for images in ("synthetic", "real") for detail in ("side", "zone")}
    pairs = {row["pairs"]: row for row in found["agreement_with_sides"]}
    assert pairs["real"]["and every side"] == pairs["real"]["every finding"] > 0.95
    assert pairs[SHUFFLED]["every finding"] < 0.3 and pairs["synthetic"]["of the real share"] == pytest.approx(
        1, abs=0.05
    )

    found = image_details(drawn_sets(swapped))
    turned = {row["pairs"]: row for row in found["agreement_with_sides"]}
    assert found["image_details"][0]["detail"] == "side" and found["image_details"][0]["share"] == 0
    assert turned["synthetic"]["every finding"] == pairs["synthetic"]["every finding"]
    sideless = (read_details(drawn_rows(80, seed=5)["report"])["side"] == "").all(axis=1).mean()
    assert turned["synthetic"]["and every side"] == pytest.approx(sideless, abs=0.05)


def test_what_prompts_ask_for_is_compared_with_what_is_seen():
    sets = drawn_sets()
    assert {row["images"] for row in image_details(sets)["image_details"]} == {"synthetic", "real"}
    sets.synthetic.table = sets.synthetic.table.assign(
        prompt=[swapped(text) for text in sets.synthetic.table["report"]]
    )
    shares = {(row["images"], row["detail"]): row["share"] for row in image_details(sets)["image_details"]}
    assert shares["synthetic, as asked", "side"] == 0 and shares["synthetic, as asked", "zone"] == 1
    assert shares["synthetic", "side"] == 1


def test_a_judge_learns_sides_from_reports_that_name_them(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(80):
        side = ("left", "right")[number % 2]
        pixels = rng.integers(0, 80, (32, 32), dtype=np.uint8)
        half = slice(20, 30) if side == "left" else slice(2, 12)  # the patient's left is at the image's right
        pixels[10:20, half] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        report = f"{side} effusion." if number < 60 else "Effusion."  # the last ones say no side
        place = {"dicom_id": str(number), "image_path": str(tmp_path / f"{number}.png"), "subject_id": number}
        rows.append({**place, "report": report})
    table = pd.DataFrame(rows)
    settings = JudgeSettings("test_resnet", image_size=32, steps=100, batch_size=16, learning_rate=3e-3)
    loading = Loading(str(tmp_path / "cache"), 32, 16, make_accelerator("cpu", "no"))
    images = Images(table, "drawn", 32, loading)
    findings = image_judge(
        table.assign(**dict.fromkeys(FINDINGS, 1)),
        table[:0].assign(**dict.fromkeys(FINDINGS, 1)),
        settings,
        tmp_path / "cache",
        loading.accelerator,
    )
    judge = detail_agreement.place_judge(images, np.arange(80), findings)
    assert judge.known.sum() == 2
    seen = detail_agreement.read_places(judge, images)["side"][:, FINDINGS.index("Pleural Effusion")]
    assert (seen[60:] == np.tile(["left", "right"], 10)).mean() > 0.9
    images.table["report"] = "Clear."
    assert detail_agreement.place_judge(images, np.arange(80), findings) is None
