"""The same reports in the conventions of other papers, so that a figure can stand beside theirs.

R2Gen          (Chen et al. 2020, and who followed) the findings alone, in lower case; a full stop between sentences is
               a word, other marks vanish; words rarer than 10 in the training reports are one unknown word; texts end
               after 99 words; BLEU over the corpus, ROUGE-L with recall weighted by 1.2; METEOR, which needs WordNet,
               is left out
RadEval        (Xu et al. 2025) words as they are written, capitals and marks included; ROUGE-L of stemmed words; F1 of
               the findings that a report calls present *or uncertain*, against those of the real report, the mean over
               all 14, those without a positive included
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score

from evaluation.labeler import label_reports
from evaluation.metrics import bleu, report_words, rouge_l, without_headings
from utils.findings import PRESENT, UNCERTAIN
from utils.report_text import report_sections

R2GEN_RARE, R2GEN_WORDS = 10, 99  # R2Gen's settings for MIMIC-CXR: 100 words, of which the first is a mark


def text_conventions(text_judge, references: list[str], candidates: dict[str, list[str]], train: list[str]) -> list:
    """Rows {convention, measure, and a column for each set of candidates}; train: the training reports.

    references and each set of candidates: N reports. text_judge: its uncertain findings count for RadEval's F1; one
    without them (TF-IDF) is replaced by the rules of evaluation/labeler.py.
    """
    read = getattr(text_judge, "codes", label_reports)
    labeler = text_judge.name if hasattr(text_judge, "codes") else "rules"
    counts = Counter(word for report in train for word in r2gen_words(report))
    frequent = {word for word, count in counts.items() if count >= R2GEN_RARE}
    cased, found = [without_headings(text) for text in references], _possible(read(references))
    rows = {}
    for name, texts in candidates.items():
        scores = {("R2Gen", measure): value for measure, value in r2gen(references, texts, frequent).items()}
        scores["RadEval", "BLEU-4"] = bleu(cased, [without_headings(text) for text in texts])["BLEU-4"]
        scores["RadEval", "ROUGE-L"] = stemmed_rouge_l(references, texts)
        f1 = f1_score(found, _possible(read(texts)), average="macro", zero_division=0.0)
        scores["RadEval", f"F1 of 14, macro ({labeler})"] = f1
        for key, value in scores.items():
            rows.setdefault(key, {"convention": key[0], "measure": key[1]})[name] = value
    return list(rows.values())


def _possible(codes):
    """Which findings are present or uncertain."""
    return np.isin(codes, (PRESENT, UNCERTAIN))


def r2gen(references: Sequence[str], candidates: Sequence[str], frequent: set[str]) -> dict:
    """BLEU-1 to -4 and ROUGE-L as R2Gen computes them; frequent: the words that are not too rare."""

    def cut(report):
        return " ".join(word if word in frequent else "<unk>" for word in r2gen_words(report)[:R2GEN_WORDS])

    references, candidates = [cut(text) for text in references], [cut(text) for text in candidates]
    return bleu(references, candidates) | {"ROUGE-L": rouge_l(references, candidates, str.split, beta=1.2)}


def r2gen_words(report: str) -> list[str]:
    """The words of a report's findings (of its impression, if it has no findings) in R2Gen's convention."""
    findings, impression = report_sections(report)
    text = re.sub(r"\.{2,}", ".", re.sub(r"_+", "_", findings or impression))
    text = re.sub(r"\.? [2-5]\. ", ". ", text.replace("1. ", "")).strip().lower()  # without numbers of a list
    sentences = [re.sub(r"[][\"'/\\\\.,?;:*!%^&_+(){}<=>@]", "", sentence) for sentence in text.split(". ")]
    return [*" . ".join(sentences).split(), "."]


def stemmed_rouge_l(references: Sequence[str], candidates: Sequence[str]) -> float:
    """ROUGE-L of words stemmed by Porter's rules, those of up to 3 letters aside; NaN without the package nltk."""
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        return np.nan
    stem = PorterStemmer().stem

    def stems(report):
        return [stem(word) if len(word) > 3 else word for word in report_words(report)]

    return rouge_l(references, candidates, stems)
