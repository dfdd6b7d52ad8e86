"""Measures of reports as texts, and the words that they count."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluation.labeler import contradictions
from utils.report_cleaning import MARK, count_comparisons, without_marks

STUTTER_WORDS = 6  # longest phrase that counts as stuttering; a longer one is a repeated sentence


def report_words(report: str) -> list[str]:
    """The words of a report, lower-case letters and digits, without its headings."""
    return _words(re.sub(r"\b(?:FINDINGS|IMPRESSION):", " ", report))


def _words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(references: Sequence[str], candidates: Sequence[str]) -> float:
    """The mean ROUGE-L F-measure (Lin 2004) of candidates against references, 0 to 1."""
    scores = []
    for reference, candidate in (map(report_words, pair) for pair in zip(references, candidates)):
        common = _common_subsequence(reference, candidate)
        precision, recall = common / max(1, len(candidate)), common / max(1, len(reference))
        scores.append(2 * precision * recall / (recall + precision) if common else 0.0)
    return float(np.mean(scores)) if scores else np.nan


def _common_subsequence(first, second):
    """The length of the longest common subsequence of two lists of words, a bit a word of the first (Hyyrö 2004)."""
    places = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = free = (1 << len(first)) - 1
    for word in second:
        matched = free & places.get(word, 0)
        free = (free + matched | free - matched) & every
    return len(first) - free.bit_count()


def constant_report(reports: Sequence[str]) -> str:
    """The report with the best ROUGE-L if written for every image: of the 30 commonest, against some 60 of all."""
    sample = list(reports)[:: max(1, len(reports) // 60)]
    commonest = [report for report, _ in Counter(reports).most_common(30)]
    return max(commonest, key=lambda report: rouge_l(sample, [report] * len(sample)))


def text_scores(references: Sequence[str], candidates: Sequence[str]) -> dict:
    """BLEU-1 to -4 (Papineni et al. 2002, over the corpus) and ROUGE-L of N candidates, on their `report_words`."""
    from torchmetrics.functional.text import bleu_score

    wanted, made = ([" ".join(report_words(text)) for text in texts] for texts in (references, candidates))
    wanted = [[text] for text in wanted]
    scores = {f"BLEU-{order}": float(bleu_score(made, wanted, n_gram=order)) for order in (1, 2, 3, 4)}
    return scores | {"ROUGE-L": rouge_l(references, candidates)}


def text_habits(reports: Sequence[str]) -> dict:
    """Properties of N reports as texts.

    marks, comparisons, contradictions, stuttering: how many have a de-identification mark, compare with an earlier
    film, call a finding both present and absent, or stutter. distinct: the share of different texts.
    """
    return {
        "N": len(reports), "marks": sum(bool(MARK.search(text)) for text in reports),
        "comparisons": sum(count_comparisons(text) > 0 for text in reports),
        "contradictions": sum(bool(contradictions(text)) for text in reports),
        "stuttering": sum(map(stutters, reports)), "distinct": len(set(reports)) / len(reports),
    }  # fmt: skip


def stutters(text: str) -> bool:
    """Whether a phrase of up to STUTTER_WORDS words stands three times in a row, de-identification marks aside."""
    words = "".join(f"{word} " for word in _words(without_marks(text)))
    return bool(re.search(rf"(?<!\S)((?:\S+ ){{1,{STUTTER_WORDS}}})\1\1", words))
