"""Measures of reports as texts."""

import numpy as np
import pytest
from torchmetrics.functional.text import rouge_score

from evaluation import text_metrics


def test_text_scores_counted_by_hand():
    perfect = text_metrics.text_scores(["No acute process in the chest."], ["no acute process in the chest"])
    assert all(perfect[f"BLEU-{order}"] == pytest.approx(1) for order in (1, 2, 3, 4)) and perfect["ROUGE-L"] == 1
    found = text_metrics.text_scores(["a b c d"], ["a b x d"])
    assert found["BLEU-1"] == pytest.approx(3 / 4)
    assert found["BLEU-2"] == pytest.approx((3 / 4 * 1 / 3) ** 0.5)
    assert found["BLEU-4"] == 0
    assert found["ROUGE-L"] == pytest.approx(3 / 4)


def test_headings_are_no_words():
    report = "FINDINGS: Small effusion. IMPRESSION: Effusion."
    assert text_metrics.report_words(report) == ["small", "effusion", "effusion"]
    apart = text_metrics.text_scores([report], ["FINDINGS: Clear lungs. IMPRESSION: Normal."])
    assert apart["ROUGE-L"] == apart["BLEU-1"] == 0  # with the headings: 2 of 5 words
    assert text_metrics.report_words("Other findings: none.") == ["other", "findings", "none"]


def test_rouge_l_of_known_texts():
    assert text_metrics.rouge_l(["no edema"], ["no edema"]) == 1
    assert text_metrics.rouge_l(["no edema"], ["clear lungs"]) == 0
    texts = [" ".join(np.random.default_rng(seed).choice(list("abcdefgh"), 40)) for seed in range(20)]
    expected = rouge_score(texts[:10], texts[10:], rouge_keys="rougeL")["rougeL_fmeasure"]
    assert text_metrics.rouge_l(texts[10:], texts[:10]) == pytest.approx(float(expected))
    assert text_metrics.rouge_l(["a b c d"], ["a c x"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_constant_report_is_the_commonest_kind():
    reports = ["the lungs are clear"] * 5 + ["the lungs are clear today"] * 2 + ["large effusion"]
    assert text_metrics.constant_report(reports) == "the lungs are clear"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No edema edema edema.", True),
        ("No pulmonary edema, pulmonary edema. Pulmonary edema is seen.", True),
        ("Edema. EDEMA! edema?", True),
        ("No edema edema.", False),
        ("No edema, no effusion, no pneumothorax.", False),
        ("1. Edema. 2. Edema. 3. Edema.", False),
        ("XXXX XXXX XXXX. Seen on ___ ___ ___.", False),
        ("a b c d e f g " * 3, False),  # a sentence said three times
        ("a b c d e f " * 3, True),
        ("", False),
    ],
)
def test_stuttering(text, found):
    assert text_metrics.stutters(text) == found


def test_text_habits_counted_by_hand():
    reports = ["Edema.", "Edema.", "Edema.", "Edema edema edema.", "No edema. Edema.", "Clear on ___.", "Clear on ___."]
    assert text_metrics.text_habits(reports) == {
        "N": 7, "marks": 2, "comparisons": 0, "contradictions": 1, "stuttering": 1, "distinct": 4 / 7,
    }  # fmt: skip
