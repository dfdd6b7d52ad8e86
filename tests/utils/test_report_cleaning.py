"""Comparisons with earlier films: how many sentences of a report make one."""

import pytest

from utils.report_cleaning import count_comparisons


@pytest.mark.parametrize(
    "sentence",
    [
        "Compared to the prior study, there is a left effusion.",
        "Small left effusion, unchanged.",
        "Mild edema since the previous radiograph.",
        "The left effusion has increased.",
        "Interval increase in the right effusion.",
        "The pneumothorax has resolved.",
        "No change in bibasilar atelectasis.",
        "Stable cardiomegaly.",
        "There is a new opacity.",
        "Heart size remains enlarged.",
        "2. Worsening edema.",
    ],
)
def test_a_sentence_that_compares_is_counted(sentence):
    assert count_comparisons(sentence) == 1


@pytest.mark.parametrize(
    "text", ["", "Clear lungs.", "Increased interstitial markings.", "Sequela of prior granulomatous disease."]
)
def test_what_compares_nothing_is_not_counted(text):
    assert count_comparisons(text) == 0


def test_comparisons_are_counted_sentence_by_sentence():
    assert count_comparisons("FINDINGS: The heart is unchanged. Stable edema. Clear. IMPRESSION: No change.") == 3
