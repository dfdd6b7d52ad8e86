"""Several candidates of a request, or several reports of an image => those that are kept.

Pairs: an image *agrees* with its request when a judge (evaluation/judges.py) finds each finding as it was requested.
The judge is of one half of the training patients, whom SELECTOR_FILE names: an evaluation has to use another one. A
report agrees when it states what was requested and nothing else, by the rules of evaluation/labeler.py.

Reports of one image: the one that states best what is read in the image is kept, sides and zones included. The request
has no part in it: a report that was chosen by a request says nothing of how well reports are written.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from evaluation.details import detail_flags
from evaluation.judges import Judge
from evaluation.labeler import contradictions
from evaluation.text_metrics import stutters
from utils.findings import FINDINGS, PRESENT, UNCERTAIN
from utils.seeds import keyed_seed

LEAST_PROBABILITY = 1e-6  # probabilities are kept this far from 0 and 1, so that logarithms are finite


def score_candidates(
    judge: Judge, probabilities: np.ndarray, labels: np.ndarray, reports: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How well N candidates agree with their requests => (scores (N,), 0 at best; agrees (N,) bool).

    probabilities (N, 14): the judge's, of the images; labels (N, 14): the codes requested; reports: of the images, None
    to score the images alone. A finding counts in a row if the judge knows it and it is not requested as uncertain;
    every code other than 1 requests its absence. The score is the mean log probability of what was requested, over the
    findings that count; an image agrees when all of them are as requested, also where none counts. A report agrees when
    it states each requested finding and no other one, uncertain ones aside, without a contradiction or a repetition;
    each of these faults lowers the score by 1. "" never agrees.
    """
    asked, counted = labels == PRESENT, judge.known & (labels != UNCERTAIN)
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    logarithms = np.where(counted, np.log(np.where(asked, p, 1 - p)), 0.0)
    scores = logarithms.sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    agrees = (((probabilities >= judge.thresholds) == asked) | ~counted).all(axis=1)
    if reports is not None:
        faults = report_distances(list(reports), np.where(labels == UNCERTAIN, np.nan, asked))
        scores, agrees = scores - faults, agrees & (faults == 0) & np.array([report != "" for report in reports])
    return scores, agrees


def keep_candidates(requests: np.ndarray, scores: np.ndarray, agrees: np.ndarray, keep: str) -> np.ndarray:
    """Which of N candidates are kept, (N,) bool; requests (N,): the number of each one's request.

    keep: "agreeing", all that agree; or "first", one of each request: the first that agrees, else the highest score.
    """
    if keep == "agreeing":
        return np.asarray(agrees, dtype=bool)
    kept = np.zeros(len(requests), dtype=bool)
    kept[pd.Series(np.where(agrees, np.inf, scores)).groupby(np.asarray(requests)).idxmax()] = True
    return kept


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a candidate: the first one has the image's own, the others follow from it."""
    return keyed_seed(int(seed), "candidate", int(candidate)) % 2**31 if candidate else int(seed)


def write_best(
    latents: torch.Tensor, dicom_ids: Sequence[str], draw: Callable[[torch.Tensor, list[int]], list[str]],
    candidates: int, seed: int, wanted: np.ndarray | None, names: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """The `best_reports` of candidates for n images; latents: (n, C, h, w); draw: latents and n seeds => n reports."""
    seeds = [keyed_seed(seed, dicom_id) for dicom_id in dicom_ids]
    drawn = [draw(latents, [candidate_seed(own, number) for own in seeds]) for number in range(candidates)]
    return best_reports(drawn, wanted, names)


def best_reports(drawn: list[list[str]], wanted: np.ndarray | None = None, names: Sequence[str] = ()) -> list[str]:
    """Of the reports drawn for each of n images, the nearest to the wanted flags (`report_distances`); n texts.

    drawn: N lists of n reports; of equal ones the first is kept. wanted: (n, K) from 0 to 1, as read in the image; or
    None: the share of the N reports in which each flag is set (minimum Bayes risk, Kumar & Byrne 2004). names: of the K
    flags, as `details.detail_flags` has them; () for the findings.
    """
    if len(drawn) == 1:
        return drawn[0]
    if wanted is None:
        wanted = np.mean([detail_flags(reports, names or FINDINGS)[1] for reports in drawn], axis=0)
    distances = np.stack([report_distances(reports, wanted, names) for reports in drawn])  # (N, n)
    return [drawn[number][row] for row, number in enumerate(distances.argmin(axis=0))]


def report_distances(reports: list[str], wanted: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """For n reports the sum of the differences from (n, K), and 1 for each contradiction and each repetition; (n,).

    wanted: from 0 to 1, NaN for a flag that does not count; names: of the K flags.
    """
    stated = detail_flags(reports, names or FINDINGS)[1]  # (n, K)
    faults = [len(contradictions(report)) + stutters(report) for report in reports]
    return np.nansum(np.abs(stated - np.asarray(wanted, dtype=float)), axis=1) + faults
