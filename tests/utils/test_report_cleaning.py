"""Comparisons with earlier films: what is left of a sentence, and how many there are."""

import pytest

from utils.report_cleaning import count_comparisons, drop_comparisons


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("Compared to the prior study, there is a left effusion.", "There is a left effusion."),
        ("Small left effusion, unchanged.", "Small left effusion."),
        ("Mild edema since the previous radiograph.", "Mild edema."),
        ("The left effusion has increased.", "There is left effusion."),
        ("Interval increase in the right effusion.", "There is right effusion."),
        ("Interval resolution of the edema.", "No edema."),
        ("The pneumothorax has resolved.", "No pneumothorax."),
        ("No change in bibasilar atelectasis.", "There is bibasilar atelectasis."),
        ("Stable cardiomegaly.", "Cardiomegaly."),
        ("There is a new opacity.", "There is an opacity."),
        ("No new opacity.", "No opacity."),
        ("Heart size remains enlarged.", "Heart size is enlarged."),
        ("Heart size is stable and normal.", "Heart size is normal."),
        ("Heart size is unchanged.", ""),
        ("Stable cardiomediastinal silhouette.", ""),
        ("No significant interval change.", ""),
        ("2. Worsening edema.", "2. Edema."),
    ],
)
def test_a_sentence_says_what_its_own_image_shows(sentence, rest):
    assert count_comparisons(sentence) == 1
    assert drop_comparisons(sentence) == (rest, 1)


@pytest.mark.parametrize(
    "text", ["", "Clear lungs.", "Increased interstitial markings.", "Sequela of prior granulomatous disease."]
)
def test_what_compares_nothing_stays(text):
    assert drop_comparisons(text) == (text, 0) and count_comparisons(text) == 0


def test_headings_stay_with_their_sentences():
    text = "FINDINGS: The heart is unchanged. Stable edema. IMPRESSION: No change."
    assert drop_comparisons(text) == ("FINDINGS: Edema.", 3)
    assert drop_comparisons("FINDINGS: Clear. IMPRESSION: No change.") == ("FINDINGS: Clear.", 1)
