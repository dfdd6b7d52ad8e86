"""Agreement of request, image and report, counted by hand."""

import numpy as np
import pytest
from small_data import columns

from evaluation import agreement
from utils.findings import FINDINGS, UNCERTAIN


def test_a_planted_label_flip_is_found_by_the_agreement():
    asked = columns(("Edema", np.arange(40) < 20), ("Fracture", np.arange(40) < 20), rows=40)
    report = asked.copy()
    report[3, FINDINGS.index("Edema")] = False
    table = agreement.agreement(asked, asked, report)
    assert table.loc["Fracture"].tolist() == [20, 1, 1, 1, 1, 1, 1]
    assert table.loc["Edema", "all three"] == pytest.approx(39 / 40)
    assert table.loc["Edema", "told in the report"] == pytest.approx(19 / 20)
    assert table.loc["Edema", "kappa request-report"] == pytest.approx(0.95)
    assert table.loc["Edema", "kappa request-image"] == 1
    assert table.loc["Pneumonia"].isna().sum() == 6  # never asked for
    unreported = agreement.agreement(asked, asked, None)
    assert np.isnan(unreported.loc["Edema", "all three"]) and unreported.loc["Edema", "seen in the image"] == 1


def complete(labels, image, report=None, subjects=None, seed=1):
    """`complete_agreement`, of one pair a patient."""
    subjects = np.arange(len(labels)) if subjects is None else subjects
    return agreement.complete_agreement(labels, image, report, subjects, seed)


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
    found = complete(labels, image, report)
    assert (found["N"], found["findings"]) == (9, 2)
    assert found["all three"] == pytest.approx(3 / 9)
    assert found["request-image"] == pytest.approx(4 / 9) and found["request-report"] == pytest.approx(5 / 9)
    assert found["image-report"] == pytest.approx(6 / 9)
    image_only = complete(labels, np.where(np.isnan(report), np.nan, image))
    assert image_only["request-image"] == pytest.approx(4 / 9)
    assert complete(labels, image)["request-image"] == 0  # everybody is seen to have pneumonia
    for name in ("all three", "low", "high", "request-report", "image-report"):
        assert np.isnan(image_only[name])
    nothing = complete(labels[8:9], image[8:9], report[8:9])
    assert nothing["N"] == nothing["findings"] == 0 and np.isnan([*nothing.values()][2:]).all()


def test_the_interval_of_complete_agreement_is_that_of_pairs_drawn_again():
    labels = columns(("Edema", True), rows=200).astype(int)
    report = labels.astype(float)
    report[60:, FINDINGS.index("Edema")] = 0
    found = complete(labels, labels, report, seed=1)
    draws = np.random.default_rng(0).integers(200, size=(2000, 200))
    low, high = np.quantile((draws < 60).mean(axis=1), (0.025, 0.975))
    assert found["all three"] == 0.3 and [found["low"], found["high"]] == pytest.approx([low, high], abs=0.011)
    assert found == complete(labels, labels, report, seed=1)
    certain = complete(labels, labels, labels)
    assert certain["high"] == certain["all three"] == 1
    assert certain["low"] == pytest.approx(200 / (200 + 1.95996**2))  # Wilson's, which does not collapse
    by_patient = complete(labels, labels, report, subjects=np.arange(200) // 4)
    width, wider = (row["high"] - row["low"] for row in (found, by_patient))
    assert wider / width == pytest.approx(2, rel=0.15)  # 50 patients for 200 pairs


def test_the_interval_of_a_share_is_over_patients():
    right = np.tile([1, 0], 40)
    apart = agreement.share_interval(right, np.ones(80), np.arange(80), seed=3)
    alike = agreement.share_interval(np.repeat([1, 0], 40), np.ones(80), np.repeat(np.arange(8), 10), seed=3)
    assert apart[0] < 0.5 < apart[1] and alike[1] - alike[0] > 2 * (apart[1] - apart[0])
    assert np.isnan(agreement.share_interval(np.zeros(3), np.zeros(3), np.arange(3), seed=3)).all()
