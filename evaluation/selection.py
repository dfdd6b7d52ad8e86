"""Several candidates of a request => the one that is kept.

Images: a *selector* judges them, an image judge (evaluation/judges.py) of one half of the training patients, whom
SELECTOR_FILE names: an evaluation has to use another judge. An image *agrees* with its request when the selector finds
each finding as it was requested. The first candidate that agrees is kept, and no further one is drawn (the highest
score of all would favour a few easy kinds of images); where none agrees, the highest score is. The choice is stated in
the image file, as a JPEG comment, so that both appear in one step.

Reports: the one that states the wanted findings best is kept, by the rules of evaluation/labeler.py.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from evaluation.judges import SELECTOR_FILE, JudgeSettings, first_half, image_judge, images_to_pixels
from evaluation.labeler import contradictions, label_reports
from evaluation.metrics import request_agreement, stutters
from utils.errors import InputError, replacing, say, writing
from utils.findings import FINDINGS, PRESENT, UNCERTAIN
from utils.mimic_cxr import split_rows, table_fingerprint
from utils.seeds import keyed_seed

LARGEST_SIDE = 128  # pixels of the images that a selector judges
DECODING_THREADS = 4  # threads that decode its training images


@dataclass(frozen=True)
class Choice:
    """Which candidate of a request was kept; score and agrees are "" where there is no selector."""

    candidate: int = 0
    score: float | str = ""
    agrees: int | str = ""

    def comment(self) -> str:
        """The JPEG comment of a kept image that a selector chose."""
        return json.dumps({**asdict(self), "score": round(self.score, 6)})


class ImageSelector:
    """Judges the candidate images of a request; `settings` is what a tree's manifest states of it.

    candidates: images drawn for a request at most, 2 or more; table: real rows. InputError without training rows.
    """

    def __init__(self, candidates: int, judge_settings: JudgeSettings, table: pd.DataFrame):
        self.candidates, self.judge_settings, self.judge = candidates, judge_settings, None
        train = table.iloc[split_rows(table, "train")]
        self.train_table = train[first_half(train)].reset_index(drop=True)
        self.validation_table = table[table["split"] == "validate"].reset_index(drop=True)
        parts = [asdict(judge_settings), table_fingerprint(self.train_table), table_fingerprint(self.validation_table)]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.settings = {"candidates": candidates, "keep": "all", "selector": digest}  # keep: of older versions

    def train(self, cache_dir: str | Path, output_root: str | Path, accelerator: Accelerator):
        """Trains the judge, or loads it from the cache, and writes its patients; all processes have to call it."""
        self.judge = image_judge(
            self.train_table, self.validation_table, self.judge_settings, cache_dir, accelerator, DECODING_THREADS
        )
        if not self.judge.known.any():
            raise InputError(
                f"the selector can learn no finding: too few of its {len(self.train_table)} images, of half the "
                "training patients, have one; set CANDIDATES to 1, or DATA_ROOT to a larger tree"
            )
        say(f"selector: knows {', '.join(np.array(FINDINGS)[self.judge.known])}")
        if accelerator.is_main_process:
            patients = pd.DataFrame({"subject_id": np.unique(self.train_table["subject_id"])})
            with writing(SELECTOR_FILE, output_root), replacing(Path(output_root) / SELECTOR_FILE) as temporary:
                patients.to_csv(temporary, index=False, lineterminator="\n")

    def judge_images(self, images: np.ndarray, candidates: pd.DataFrame) -> list[Choice]:
        """What the selector finds in B images (B, S, S) uint8; candidates: their rows, with the column `candidate`."""
        device = next(self.judge.model.parameters()).device
        _, probabilities = self.judge.encode(images_to_pixels(images, self.judge.image_size).to(device))
        labels = candidates[list(FINDINGS)].to_numpy()
        scores, agrees = request_agreement(probabilities.cpu().numpy(), labels, self.judge.thresholds, self.judge.known)
        found = zip(candidates["candidate"], scores, agrees)
        return [Choice(int(candidate), float(score), int(agree)) for candidate, score, agree in found]

    def read_choice(self, info: dict) -> Choice:
        """Pillow's `info` of an image file => its Choice; ValueError where its comment states none."""
        try:
            return Choice(**json.loads(info["comment"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("its comment does not state which candidate it is") from error


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a request's candidate: the first one has the request's own, the others follow from it."""
    return keyed_seed(int(seed), "candidate", int(candidate)) % 2**31 if candidate else int(seed)


# ---- reports -------------------------------------------------------------------------------------------------------


def check_candidates(candidates: int, flows: bool, decoding: str):
    """InputError where all candidates would be the same report."""
    if candidates > 1 and not (flows or decoding == "nucleus"):
        raise InputError(
            f"{candidates} CANDIDATES would be the same report: this prior predicts a mean, and DECODING {decoding} is "
            "not random; set CANDIDATES to 1, or DECODING to nucleus, or train a prior with PRIOR flow"
        )


def requested_findings(requests: pd.DataFrame) -> np.ndarray:
    """Rows of a synthetic tree => (n, 14): 1 for a requested finding, NaN for an uncertain one, 0 for another."""
    labels = requests[list(FINDINGS)].to_numpy()
    return np.where(labels == UNCERTAIN, np.nan, labels == PRESENT)


def write_best(
    latents: torch.Tensor, dicom_ids: pd.Series, draw: Callable[[torch.Tensor, list[int]], list[str]], candidates: int,
    seed: int, wanted: np.ndarray | None,
) -> list[str]:  # fmt: skip
    """The best of the candidate reports of each of n images, as `best_reports` chooses with `wanted`.

    latents: (n, C, h, w); draw: latents and n seeds => n reports. Further reports are drawn only of images whose best
    report so far can be surpassed, which changes no choice.
    """
    seeds = [keyed_seed(seed, dicom_id) for dicom_id in dicom_ids]

    def draw_rows(rows, number):
        return draw(latents[rows], [candidate_seed(seeds[row], number) for row in rows])

    all_rows = list(range(len(seeds)))
    if wanted is None or candidates == 1:  # without `wanted`, the best is known only when all are drawn
        return best_reports([draw_rows(all_rows, number) for number in range(candidates)])
    wanted = np.asarray(wanted, dtype=float)
    smallest = np.nansum(np.minimum(wanted, 1 - wanted), axis=1)  # (n,) the smallest distance that a report can have
    best = draw_rows(all_rows, 0)
    distances = report_distances(best, wanted)
    for number in range(1, candidates):
        rows = np.flatnonzero(distances > smallest + 1e-6).tolist()
        if not rows:
            break
        reports = draw_rows(rows, number)
        for row, report, distance in zip(rows, reports, report_distances(reports, wanted[rows])):
            if distance < distances[row]:
                best[row], distances[row] = report, distance
    return best


def best_reports(drawn: list[list[str]], wanted: np.ndarray | None = None) -> list[str]:
    """Of the reports drawn for each of n images, the nearest to the wanted findings (`report_distances`); n texts.

    drawn: N lists of n reports; of equal ones the first is kept. wanted: (n, 14) from 0 to 1, NaN for a finding that
    does not count: what was requested, or a prior's probabilities. None: the share of the N reports that state each
    finding (minimum Bayes risk, Kumar & Byrne 2004).
    """
    if len(drawn) == 1:
        return drawn[0]
    if wanted is None:
        wanted = np.mean([label_reports(reports) == PRESENT for reports in drawn], axis=0)
    distances = np.stack([report_distances(reports, wanted) for reports in drawn])  # (N, n)
    return [drawn[number][row] for row, number in enumerate(distances.argmin(axis=0))]


def report_distances(reports: list[str], wanted: np.ndarray) -> np.ndarray:
    """For n reports the sum of the differences from (n, 14), and 1 for each contradiction and each repetition; (n,)."""
    stated = label_reports(reports) == PRESENT  # (n, 14)
    faults = [len(contradictions(report)) + stutters(report) for report in reports]
    return np.nansum(np.abs(stated - np.asarray(wanted, dtype=float)), axis=1) + faults
