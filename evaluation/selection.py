"""Candidates of a request => the one that is kept, by a judge that no evaluation uses.

candidate    one of the images made for a request: the first has the request's own seed, the others seeds that follow
             from it; prompt and reference are the request's
selector     an image judge (evaluation/judges.py) trained on one half of the training patients, `first_half`; an evaluation
             trains its own judge on the other half, or on other patients altogether
agrees       whether the selector finds each finding in an image as it was asked, `metrics.request_agreement`; the first
             candidate that agrees is kept, and no further one is made: the easiest of all would be one of few kinds
score        how well it finds what was asked; where no candidate agrees, the highest is kept

Which candidate was kept is written into its image file, as a JPEG comment: image and score appear in one step, whatever
ends a run, and several processes need no common file. The patients of the selector are written beside the tree's
manifest, so that an evaluation can refuse to judge by them. With one candidate, and all pairs listed, there is no selector
and no comment.

Of the reports drawn for an image one is kept as well, `best_reports`, by the rules of evaluation/labeler.py.
"""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.judges import SELECTOR_FILE, first_half, image_judge, images_to_pixels, try_judge
from evaluation.labeler import contradictions, label_reports
from evaluation.metrics import positives, request_agreement, stutters
from utils.errors import InputError, replacing, say, writing
from utils.findings import FINDINGS, PRESENT, UNCERTAIN
from utils.mimic_cxr import split_rows, table_fingerprint
from utils.seeds import keyed_seed

_NOT_JUDGED = {"candidate": 0, "score": "", "agrees": ""}


class Selection:
    """How many images are made for a request, and which of them is kept.

    Args:
        candidates: images a request at most, 1 or more; keep: "all", or "agreeing": a pair whose best candidate does not agree
            with its request is not listed.
        judge_settings: JudgeSettings of the selector.
        table: real rows, whose split "train" the selector learns from; None is allowed where nothing is selected.
    Attributes: selects, whether there is a selector; settings: what a tree's manifest says of it, {} without one;
    judge: the selector, once `train` was called. InputError for a table without training rows.
    """

    def __init__(self, candidates, keep, judge_settings, table):
        self.candidates, self.keep, self.judge_settings = candidates, keep, judge_settings
        self.selects, self.settings, self.judge = needs_selector(candidates, keep), {}, None
        if self.selects:
            train = table.iloc[split_rows(table, "train")]
            self.train_table = train[first_half(train)].reset_index(drop=True)
            self.validation_table = table[table["split"] == "validate"].reset_index(drop=True)
            about = [asdict(judge_settings), *map(table_fingerprint, (self.train_table, self.validation_table))]
            selector = hashlib.sha256(json.dumps(about).encode()).hexdigest()
            self.settings = {"candidates": candidates, "keep": keep, "selector": selector}

    def train(self, cache_dir, output_root, accelerator, threads):
        """Has the selector trained, or takes it from the cache; its patients are written before the first image."""
        if not self.selects:
            return
        self.judge = image_judge(
            self.train_table, self.validation_table, self.judge_settings, cache_dir, accelerator, threads
        )
        if not self.judge.known.any():
            raise InputError(
                f"the selector knows no finding: of {len(self.train_table)} images, half of the training patients, too "
                "few have any one of the 14; set CANDIDATES to 1 and KEEP to 'all', or DATA_ROOT to a larger tree"
            )
        say(f"selector: knows {', '.join(np.array(FINDINGS)[self.judge.known])}")
        if accelerator.is_main_process:
            patients = pd.DataFrame({"subject_id": np.unique(self.train_table["subject_id"])})
            with writing(SELECTOR_FILE, output_root), replacing(Path(output_root) / SELECTOR_FILE) as temporary:
                patients.to_csv(temporary, index=False, lineterminator="\n")

    def check(self, cache_dir, device):
        """Tries one step of the selector's training => {cache_dir: bytes that its images add at most}, {} without one."""
        if not self.selects:
            return {}
        try_judge(self.judge_settings, device)
        images = len(self.train_table) + len(self.validation_table)
        return {cache_dir: images * self.judge_settings.image_size**2}  # one byte a pixel

    def candidate(self, requests, number):
        """Requests => the rows of one of their candidates: a further column `candidate`, and its `seed`."""
        return requests.assign(candidate=number, seed=[candidate_seed(seed, number) for seed in requests["seed"]])

    def judge_images(self, images, requests):
        """Images (B, S, S) uint8 and their B requests => scores (B,) and whether they agree, (B,) bool."""
        if not self.selects:
            return np.zeros(len(images)), np.ones(len(images), dtype=bool)
        device = next(self.judge.model.parameters()).device
        _, probabilities = self.judge.encode(images_to_pixels(images, self.judge.image_size).to(device))
        labels = requests[list(FINDINGS)].to_numpy()
        return request_agreement(probabilities.cpu().numpy(), labels, self.judge.thresholds, self.judge.known)

    def comment(self, candidate, score, agrees):
        """What is written into the file of a kept image, None where nothing was selected."""
        told = {"candidate": int(candidate), "score": round(float(score), 6), "agrees": int(agrees)}
        return json.dumps(told) if self.selects else None

    def read_comment(self, info):
        """Pillow's info of an image => {"candidate", "score", "agrees"}; ValueError for one that was not kept here."""
        if not self.selects:
            return _NOT_JUDGED
        try:
            told = json.loads(info["comment"])
            told = {name: told[name] for name in _NOT_JUDGED}
            right = told["candidate"] in range(self.candidates) and told["agrees"] in (0, 1)
            if not (right and math.isfinite(told["score"])):
                raise ValueError
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("its comment does not say which candidate it is") from error
        return told

    def tell(self, plan, told):
        """Rows of a plan with what `read_comment` says of each image => plan.SELECTED's columns, the seed the kept image's."""
        told = pd.DataFrame(told, index=plan.index, columns=list(_NOT_JUDGED))
        seeds = list(map(candidate_seed, plan["seed"], told["candidate"]))
        return plan.assign(request_seed=plan["seed"], candidates=self.candidates, **told, seed=seeds)

    def is_listed(self, told):
        """Whether a pair is listed whose image has this comment."""
        return self.keep == "all" or bool(told["agrees"])

    def more_copies(self, copies, vectors, listed, wanted, limit):
        """How many requests of each label vector are to be made next, (len(vectors),); None where no more are.

        copies: how many were made, for all or for each; listed: the requests of which a pair is listed; wanted: pairs a
        label vector; limit: requests in all, 0: no request that was dropped is replaced.
        """
        copies = np.broadcast_to(copies, len(vectors))
        kept = vectors["source"].map(listed["source"].value_counts()).fillna(0).to_numpy(dtype=int)
        room = max(0, limit - copies.sum())
        added = np.diff(np.minimum(np.cumsum(np.maximum(wanted - kept, 0)), room), prepend=0)
        return copies + added if added.any() else None

    def report(self, requests, listed):
        """Prints for each finding how many requests asked for it, and how many of them are kept, where some may not be."""
        if self.keep == "all":
            return
        asked, kept = positives(requests), positives(listed)
        table = pd.DataFrame({"requests": asked.sum(axis=0), "kept": kept.sum(axis=0)}, index=list(FINDINGS))
        nothing = table.index[(table["requests"] > 0) & (table["kept"] == 0)]
        table.loc["all"] = [len(requests), len(listed)]
        say(table.assign(dropped=table["requests"] - table["kept"]).to_string())
        if len(nothing):
            say(
                f"warning: nothing is kept of {', '.join(nothing)}, so the tree has no such image: raise CANDIDATES or "
                "MAX_REQUESTS, or set KEEP to 'all'"
            )


def needs_selector(candidates, keep):
    """Whether CANDIDATES and KEEP ask for a selector, and so for real rows to train it on."""
    return candidates > 1 or keep != "all"


def candidate_seed(seed, candidate):
    """The seed of a request's candidate: the first one's is the request's own."""
    return keyed_seed(int(seed), "candidate", int(candidate)) % 2**31 if candidate else int(seed)


def check_candidates(candidates, flows, decoding):
    """InputError where all candidates would be the same report."""
    if candidates > 1 and not (flows or decoding == "nucleus"):
        raise InputError(
            f"{candidates} CANDIDATES would be {candidates} times the same report: this prior predicts a mean, and DECODING "
            f"{decoding} draws nothing; set CANDIDATES to 1, or DECODING to nucleus, or train a prior with PRIOR flow"
        )


def requested_findings(requests):
    """Requests, or rows of a synthetic tree => 1 for a finding that was asked for, 0 for another, NaN for an uncertain one."""
    labels = requests[list(FINDINGS)].to_numpy()
    return np.where(labels == UNCERTAIN, np.nan, labels == PRESENT)


def write_best(latents, dicom_ids, draw, candidates, seed, wanted):
    """Latents (n, C, h, w) of n images => for each the best of its candidates' reports, a list of n texts.

    draw: latents and n seeds => n texts; wanted: as `best_reports` has it. Further reports are drawn of those images only
    whose best one can still be surpassed: the same reports are kept as if all had been drawn.
    """
    seeds = [keyed_seed(seed, dicom_id) for dicom_id in dicom_ids]

    def draw_of(rows, number):
        return draw(latents[rows], [candidate_seed(seeds[row], number) for row in rows])

    every = list(range(len(seeds)))
    if wanted is None or candidates == 1:  # what most say is known when all are there; of one there is no choice
        return best_reports([draw_of(every, number) for number in range(candidates)])
    wanted = np.asarray(wanted, dtype=float)
    least = np.nansum(np.minimum(wanted, 1 - wanted), axis=1)  # (n,) how near a report can be
    best = draw_of(every, 0)
    off = report_distances(best, wanted)
    for number in range(1, candidates):
        rows = np.flatnonzero(off > least + 1e-6).tolist()
        if not rows:
            break
        reports = draw_of(rows, number)
        for row, report, distance in zip(rows, reports, report_distances(reports, wanted[rows])):
            if distance < off[row]:
                best[row], off[row] = report, distance
    return best


def best_reports(drawn, wanted=None):
    """Of the reports drawn for each image the one that names the findings best, by rules => a list of n texts.

    drawn: N lists of n reports each; wanted: (n, 14), how much each finding is wanted, 0 to 1, NaN where that does not count:
    what was asked for, or how sure a prior's readout is of it. None: the report nearest to what all N say, each finding with
    the share of them that call it present (minimum Bayes risk, Kumar & Byrne 2004). Nearest by `report_distances`; ties go to
    the report drawn first.
    """
    if len(drawn) == 1:
        return drawn[0]
    if wanted is None:
        wanted = np.mean([label_reports(reports) == PRESENT for reports in drawn], axis=0)
    off = np.stack([report_distances(reports, wanted) for reports in drawn])  # (N, n)
    return [drawn[number][row] for row, number in enumerate(off.argmin(axis=0))]


def report_distances(reports, wanted):
    """How far n reports are from the findings wanted, (n, 14) => (n,).

    The sum of the differences, and one for each finding of which a report says the opposite as well, and for stuttering.
    """
    said = label_reports(reports) == PRESENT  # (n, 14)
    spoilt = [len(contradictions(report)) + stutters(report) for report in reports]
    return np.nansum(np.abs(said - np.asarray(wanted, dtype=float)), axis=1) + spoilt
