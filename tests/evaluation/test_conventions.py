"""Figures in other papers' conventions, beside those that their own code gives (computed once)."""

import numpy as np
import pytest

from evaluation import conventions
from evaluation.judges import RulesJudge

REFERENCES = ["The heart is enlarged. No edema is seen.", "1. Small left effusion. 2. Clear lungs today."]
CANDIDATES = ["The heart is normal. Mild Edema is seen today.", "Small right effusions. Lungs are clear."]
TIMES = 10  # so often do the training reports use every word


def test_r2gen_words_are_its_tokenizers():
    report = 'FINDINGS: 1. Small effusion. 2. No edema, e.g. 2.5 cm. -- [x] {y} "q" a/b it\'s ... ok IMPRESSION: Fine.'
    assert " ".join(conventions.r2gen_words(report)) == "small effusion . no edema eg . 25 cm . -- x y q ab its . ok ."
    assert conventions.r2gen_words("IMPRESSION: The ___ heart.") == ["the", "heart", "."]  # no findings; a mark goes


def test_r2gen_scores_are_those_of_pycocoevalcap():
    frequent = {word for text in REFERENCES + CANDIDATES for word in conventions.r2gen_words(text)}
    found = conventions.r2gen(REFERENCES, CANDIDATES, frequent)
    assert [found[f"BLEU-{order}"] for order in (1, 2, 3)] == pytest.approx([0.684211, 0.401236, 0.277916], abs=1e-6)
    assert found["BLEU-4"] == 0 and found["ROUGE-L"] == pytest.approx(0.634252, abs=1e-6)
    assert conventions.r2gen(["a b c"], ["d e f"], {"."})["BLEU-1"] == 1  # rare words are one word
    long = ["word " * 98 + end for end in ("x. y.", "x. z.")]
    assert conventions.r2gen(long[:1], long[1:], {"word", "x", "y", "z", "."})["BLEU-1"] == 1  # cut after 99 words


def test_radeval_counts_capitals_marks_and_uncertain_findings():
    reports = [f"FINDINGS: {text}" for text in ("Mild Edema.", "No edema.", "Possible edema.", "Clear lungs.")]
    others = [f"FINDINGS: {text}" for text in ("mild edema.", "No edema.", "There is edema.", "Clear lungs.")]
    rows = conventions.text_conventions(RulesJudge(), reports, {"made": others}, reports * TIMES)
    found = {(row["convention"], row["measure"]): row["made"] for row in rows}
    assert found["RadEval", "BLEU-4"] == 0 and found["R2Gen", "BLEU-1"] < 1
    # edema is called present or uncertain in the same two, and No Finding in the same; the other 12 of 14 count as 0
    f1 = next(value for (_, measure), value in found.items() if "F1" in measure)
    assert f1 == pytest.approx(f1_of_two(reports, others))


def f1_of_two(reports, others):
    judge = RulesJudge()
    first, second = (np.isin(judge.codes(texts), (1, -2)) for texts in (reports, others))
    hits, all_ = (first & second).sum(axis=0), first.sum(axis=0) + second.sum(axis=0)
    return (2 * hits / np.maximum(all_, 1)).mean()


def test_stemmed_rouge_l_is_that_of_rouge_score():
    pytest.importorskip("nltk")
    value = conventions.stemmed_rouge_l(REFERENCES, CANDIDATES)
    assert value == pytest.approx(0.567227, abs=1e-6)
