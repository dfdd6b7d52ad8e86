"""Measures of images, reports and pairs: arrays and texts in, numbers out.

positive       code 1 (present); absent, uncertain and not mentioned are negative
too few        a finding with fewer than MINIMUM_POSITIVES positives (or negatives) is shown, and left out of each mean

Features are arrays (N, D), float32; labels, predictions and probabilities are (N, 14) in the order of FINDINGS. Nothing
is trained here, and no network loaded; whose features and predictions they are is evaluation/judges.py's business.
"""

import re
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from sklearn.metrics import cohen_kappa_score, f1_score, pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.functional.text import bleu_score, rouge_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from evaluation.labeler import contradictions
from utils.findings import FINDINGS, PRESENT, UNCERTAIN
from utils.report_text import has_marks, without_marks
from utils.seeds import keyed_seed

MINIMUM_POSITIVES = 10  # of a finding, and negatives, for a number about it
LEAST_PROBABILITY = 1e-6  # of a finding and of its absence, so that no logarithm is endless
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale to the coarsest
_MS_SSIM_WINDOW = 11  # pixels
_STUTTER_WORDS = 6  # of a phrase that is said over and over; longer ones are repeated sentences


def positives(table):
    """Which findings are present, (N, 14) bool."""
    return table[list(FINDINGS)].to_numpy() == PRESENT


def enough(labels):
    """Which columns have at least MINIMUM_POSITIVES positives and as many negatives, (14,) bool."""
    count = np.asarray(labels, dtype=bool).sum(axis=0)
    return np.minimum(count, len(labels) - count) >= MINIMUM_POSITIVES


# ---- image quality -------------------------------------------------------------------------------------------------


_ALONE = {"sync_on_compute": False}  # each process of a launch has all images: together they would count them again


class _Features(torch.nn.Identity):
    """What torchmetrics takes for a network when the features are there already."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width


def frechet_distance(real, fake):
    """Fréchet distance of two feature sets (Heusel et al. 2017), (N, D) and (M, D): FID, by all images at once.

    |mean difference|² + trace(C1 + C2 - 2 (C1 C2)^½). Biased upwards for few images; below N = D meaningless by itself.
    """
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]), **_ALONE)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(real, fake, seed, subsets=50, subset_size=1000):
    """KID (Bińkowski et al. 2018), (mean, standard deviation over subsets); unbiased, so about 0 may be below 0.

    Subsets hold min(subset_size, N, M) images; when that is all of both sets, they are all the same.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")  # they are in memory anyway
        metric = KernelInceptionDistance(
            feature=_Features(real.shape[1]),
            subsets=subsets,
            subset_size=min(subset_size, len(real), len(fake)),
            **_ALONE,
        )
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(keyed_seed(seed, "KID"))
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def neighbourhood_metrics(real, fake, neighbours=5):
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) as a dict.

    An image is covered by a set when it lies within the distance of one of its images to that one's k-th neighbour.
    Distances are computed in blocks. NaN where a set has no k + 1 images.
    """
    if min(len(real), len(fake)) <= neighbours:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), float("nan"))
    real_radius, fake_radius = (_radius(features, neighbours) for features in (real, fake))
    inside_real, inside_fake, covered = np.zeros(len(fake), int), np.zeros(len(real), bool), np.zeros(len(real), bool)
    start = 0
    for block in pairwise_distances_chunked(real, fake):  # (rows, M)
        rows = slice(start, start + len(block))
        inside = block <= real_radius[rows, None]
        inside_real += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        inside_fake[rows] = (block <= fake_radius[None]).any(axis=1)
        start += len(block)
    return {
        "precision": float((inside_real > 0).mean()),
        "recall": float(inside_fake.mean()),
        "density": float(inside_real.mean() / neighbours),
        "coverage": float(covered.mean()),
    }


def feature_distances(real, fake, neighbours, seed):
    """FID, KID and its deviation, precision, recall, density and coverage of features (N, D) against real ones (M, D)."""
    kid, deviation = kernel_distance(real, fake, seed)
    return {
        "FID": frechet_distance(real, fake),
        "KID": kid,
        "KID deviation": deviation,
        **neighbourhood_metrics(real, fake, neighbours),
    }


def _radius(features, neighbours):
    """Distance of each row to its k-th neighbour, itself not counted."""
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features).kneighbors()[0][:, -1]


def label_set_pairs(tables, count, seed):
    """Pairs of rows with the same findings present, of two patients, drawn at random, each once: (P, 2) for each table.

    tables: one or more; P: up to count. The pairs in one place of all results have the same findings: some sets of
    findings look more alike than others, so tables are compared on the same ones.
    """
    groups = [
        pd.DataFrame(positives(table)).groupby(list(range(len(FINDINGS)))).indices for table in tables
    ]  # {14 bools: rows}
    rng = np.random.default_rng(keyed_seed(seed, "pairs"))
    found = [[np.zeros((0, 2), int)] for _ in tables]
    for findings in sorted(set(groups[0]).intersection(*groups[1:])):
        drawn = [
            _pairs_of(group[findings], table["subject_id"].to_numpy(), count, rng)
            for group, table in zip(groups, tables)
        ]
        shared = min(map(len, drawn))
        for pairs, some in zip(found, drawn):
            pairs.append(some[:shared])
    found = [np.concatenate(pairs) for pairs in found]
    kept = np.sort(rng.permutation(len(found[0]))[:count])
    return [pairs[kept] for pairs in found]


def _pairs_of(rows, subjects, count, rng):
    """Up to count distinct pairs of rows of two patients, in random order, (P, 2); of few rows all pairs."""
    if len(rows) ** 2 <= 4 * count:
        pairs = np.stack(np.triu_indices(len(rows), 1), axis=1)
    else:
        pairs = np.unique(np.sort(rng.integers(0, len(rows), (4 * count, 2)), axis=1), axis=0)
    pairs = rows[rng.permutation(pairs)]
    return pairs[subjects[pairs[:, 0]] != subjects[pairs[:, 1]]][:count]


def ms_ssim(first, second):
    """Multi-scale structural similarity (Wang et al. 2003) of image pairs, (B, 1, S, S) in [-1, 1] => (B,).

    Small images have fewer scales than the five of the paper (64 pixels: three), whose weights are scaled to sum to 1.
    """
    side = min(first.shape[-2:])
    scales = max(
        number
        for number in range(1, len(_MS_SSIM_WEIGHTS) + 1)
        if number == 1 or side // max(1, (number - 1) ** 2) > _MS_SSIM_WINDOW - 1
    )
    weights = np.array(_MS_SSIM_WEIGHTS[:scales]) / sum(_MS_SSIM_WEIGHTS[:scales])
    return multiscale_structural_similarity_index_measure(
        first.add(1).div(2), second.add(1).div(2), data_range=1.0, betas=tuple(weights.tolist()), reduction="none"
    ).reshape(-1)


def diversity(read, pairs, batch_size=64):
    """Mean MS-SSIM of pairs of rows (P, 2); read(row) => pixels (1, S, S) in [-1, 1]. 1: all alike; NaN: no pairs."""
    values = []
    for start in range(0, len(pairs), batch_size):
        first, second = (torch.stack([read(row) for row in rows]) for rows in pairs[start : start + batch_size].T)
        values.append(ms_ssim(first, second).numpy())
    return float(np.concatenate(values).mean()) if values else float("nan")


# ---- clinical efficacy ---------------------------------------------------------------------------------------------


def auroc(labels, scores):
    """Area under the ROC curve by ranks (Mann-Whitney U) along the last axis; NaN with one class only.

    labels (..., N) bool, scores (..., N), equal scores counting half.
    """
    labels = np.asarray(labels, dtype=bool)
    positive = labels.sum(axis=-1)
    negative = labels.shape[-1] - positive
    wins = (rankdata(scores, axis=-1) * labels).sum(axis=-1) - positive * (positive + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (positive * negative)


def auroc_table(labels, scores, known=None, replicates=1000, seed=1234):
    """AUROC per finding with 95 % bootstrap intervals over images => DataFrame, indexed by finding and "mean".

    labels (N, 14) bool, scores (N, 14). Columns: positives, auroc, low, high, counted: False for a finding with too few
    positives or negatives, or not `known` (14,) to the classifier; its AUROC is NaN, and no part of the mean.
    """
    counted = enough(labels) & (True if known is None else known)
    found = np.flatnonzero(counted)
    values = np.full((1 + replicates, len(FINDINGS)), np.nan)
    values[0, found] = auroc(labels[:, found].T, scores[:, found].T)
    rng = np.random.default_rng(keyed_seed(seed, "bootstrap"))
    rows_at_once = max(1, 1_000_000 // max(1, len(labels)))
    for start in range(1, replicates + 1, rows_at_once):
        end = min(start + rows_at_once, replicates + 1)
        draw = rng.integers(len(labels), size=(end - start, len(labels)))
        for index in found:
            values[start:end, index] = auroc(labels[draw, index], scores[draw, index])
    table = pd.DataFrame(index=[*FINDINGS, "mean"])
    table["positives"] = [*labels.sum(axis=0), labels[:, found].sum()]
    mean = np.nanmean(values[:, found], axis=1) if len(found) else np.full(len(values), np.nan)
    values = np.column_stack([values, mean])
    table["auroc"] = values[0]
    table["low"], table["high"] = _interval(values[1:])
    table["counted"] = [*counted, len(found) > 0]
    return table


def _interval(values):
    """The 2.5 % and 97.5 % quantiles of each column, NaN where a column has none."""
    bounds = np.full((2, values.shape[1]), np.nan)
    told = ~np.isnan(values).all(axis=0) if len(values) else np.zeros(values.shape[1], dtype=bool)
    if told.any():
        bounds[:, told] = np.nanquantile(values[:, told], (0.025, 0.975), axis=0)
    return bounds


def clinical_f1(labels, predictions):
    """F1 per finding, micro (all 14 findings pooled) and macro (mean over those with enough positives).

    labels, predictions: (N, 14) bool => DataFrame with positives and f1, indexed by finding, "micro" and "macro".
    """
    scores = f1_score(labels, predictions, average=None, zero_division=0.0)
    counted = labels.sum(axis=0) >= MINIMUM_POSITIVES
    table = pd.DataFrame(
        {"positives": labels.sum(axis=0), "f1": np.where(counted, scores, np.nan)}, index=list(FINDINGS)
    )
    micro = f1_score(labels.ravel(), predictions.ravel(), zero_division=0.0)
    macro = scores[counted].mean() if counted.any() else np.nan
    table.loc["micro"] = [labels.sum(), micro]
    table.loc["macro"] = [labels[:, counted].sum(), macro]
    return table.astype({"positives": int})


# ---- reports -------------------------------------------------------------------------------------------------------


def rouge_l(references, candidates):
    """The mean ROUGE-L F-measure (Lin 2004) of candidates against references, 0 to 1: words in common, in one order."""
    return float(rouge_score(list(candidates), list(references), rouge_keys="rougeL")["rougeL_fmeasure"])


def constant_report(reports, candidates=30, judged=60):
    """The one report that, written for everybody, would do best in ROUGE-L: the baseline of everything that writes.

    It is looked for among the commonest `candidates` of the reports, and judged on `judged` of them, evenly spaced.
    """
    reports = list(reports)
    sample = reports[:: max(1, len(reports) // judged)]
    common = [report for report, _ in Counter(reports).most_common(candidates)]
    return max(common, key=lambda report: rouge_l(sample, [report] * len(sample)))


def text_scores(references, candidates):
    """BLEU-1 to -4 (Papineni et al. 2002, over the corpus), ROUGE-L and METEOR of candidates, N texts each, as a dict.

    Words are lower-case letters and digits. METEOR's synonyms need NLTK and its WordNet; without them, no METEOR.
    """
    words, candidate_words = ([_words(text) for text in texts] for texts in (references, candidates))
    spaced, candidate_spaced = ([" ".join(text) for text in texts] for texts in (words, candidate_words))
    scores = {
        f"BLEU-{order}": float(bleu_score(candidate_spaced, [[text] for text in spaced], n_gram=order))
        for order in (1, 2, 3, 4)
    }
    scores["ROUGE-L"] = rouge_l(references, candidates)
    if has_wordnet():
        from nltk.translate.meteor_score import meteor_score

        scores["METEOR"] = float(np.mean([meteor_score([one], other) for one, other in zip(words, candidate_words)]))
    return scores


def has_wordnet():
    """Whether NLTK and its WordNet are here: pip install nltk, then python -m nltk.downloader wordnet."""
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        return False
    return True


def text_habits(reports, labels, subjects):
    """How N reports are as texts, whatever the images show => a dict.

    labels (N, 14) bool: findings that are present; subjects (N,): patients. marks, contradictions and stuttering count
    reports: with a de-identification mark; with a finding that one sentence calls present and another absent
    (`labeler.contradictions`); that stutter (`stutters`). distinct: different texts, over N. pairs of the same findings:
    of two reports of two patients; different: the share of these whose texts differ, NaN without any.
    """
    about = pd.DataFrame(labels, columns=FINDINGS).assign(report=list(reports), subject=np.asarray(subjects))

    def pairs(*columns):
        """How many pairs of reports have the same findings, and the same in these columns too."""
        sizes = about.groupby([*FINDINGS, *columns]).size()
        return int((sizes * (sizes - 1) // 2).sum())

    same_findings = pairs() - pairs("subject")
    alike = pairs("report") - pairs("report", "subject")
    return {
        "N": len(about),
        "marks": sum(map(has_marks, reports)),
        "contradictions": sum(bool(contradictions(text)) for text in reports),
        "stuttering": sum(map(stutters, reports)),
        "distinct": len(set(reports)) / len(about) if len(about) else float("nan"),
        "pairs of the same findings": same_findings,
        "different": 1 - alike / same_findings if same_findings else float("nan"),
    }


def stutters(text):
    """Whether a word, or a phrase of a few words, stands three times in a row, de-identification marks aside."""
    words = _words(without_marks(text))
    return any(
        words[start : start + 2 * size] == words[start + size : start + 3 * size]
        for size in range(1, _STUTTER_WORDS + 1)
        for start in range(len(words) - 3 * size + 1)
    )


def _words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


# ---- requests ------------------------------------------------------------------------------------------------------


def request_agreement(probabilities, labels, thresholds, known):
    """How well images show what was asked => (scores (N,), 0 at best; agrees (N,) bool).

    probabilities: (N, 14), that an image shows each finding; labels: (N, 14), the codes that were asked for;
    thresholds: (14,) probabilities from which on a finding counts as shown; known: (14,) bool, findings that the judge
    can tell. A finding counts in a row if it is known and not asked as uncertain; every other code than 1 asks for its
    absence. score: the mean over these of log p where presence was asked, log(1 - p) else, p kept LEAST_PROBABILITY away
    from 0 and 1. agrees: whether all of them are shown as asked. A row without any has the score 0, and agrees.
    """
    labels = np.asarray(labels)
    asked, counted = labels == PRESENT, np.asarray(known) & (labels != UNCERTAIN)
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    logarithms = np.where(counted, np.log(np.where(asked, p, 1 - p)), 0.0)
    scores = logarithms.sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return scores, (((probabilities >= thresholds) == asked) | ~counted).all(axis=1)


def calibration(scores, agrees, seen, bins=5):
    """Does a selector's score say what another judge sees? => (rows, a dict each; acceptance, a dict).

    scores (N,) and agrees (N,) bool are the selector's, from `request_agreement`; seen (N,) bool: whether the other judge
    finds all that was asked. rows: the images in up to `bins` groups of equal size from the lowest score to the highest,
    with N, "mean score" and "agree by the judge", the share that is `seen`. acceptance: "agree by the selector", the
    share, and "agree by the judge, of these" and "..., of the others", NaN where there are none.
    """
    scores, agrees, seen = np.asarray(scores), np.asarray(agrees, dtype=bool), np.asarray(seen, dtype=bool)
    groups = np.array_split(np.argsort(scores, kind="stable"), bins)
    rows = [
        {"N": len(group), "mean score": float(scores[group].mean()), "agree by the judge": float(seen[group].mean())}
        for group in groups
        if len(group)
    ]
    acceptance = {"N": len(scores), "agree by the selector": float(agrees.mean())}
    for name, part in (("of these", seen[agrees]), ("of the others", seen[~agrees])):
        acceptance[f"agree by the judge, {name}"] = float(part.mean()) if len(part) else float("nan")
    return rows, acceptance


# ---- pairs ---------------------------------------------------------------------------------------------------------


def pair_table(dicom_ids, asked, image, report):
    """What request, image and report say of each finding: dicom_id, finding, asked, image, report, a row each.

    asked (N, 14) bool; image, report (N, 14), True, False or NaN where it cannot be told; or None: all NaN.
    """
    columns = {"asked": asked, "image": image, "report": report}
    table = {"dicom_id": np.repeat(np.asarray(dicom_ids), len(FINDINGS)), "finding": np.tile(FINDINGS, len(dicom_ids))}
    for name, values in columns.items():
        values = np.full(asked.shape, np.nan) if values is None else np.asarray(values, dtype=float)
        table[name] = values.ravel()
    return pd.DataFrame(table)


def only_known(predictions, known):
    """(N, 14) bool => float, NaN in the columns of findings that the judge does not know."""
    return np.where(known, predictions.astype(float), np.nan)


def agreement(pairs):
    """Agreement per finding, from `pair_table` => DataFrame indexed by finding and "mean".

    asked: how many were asked for; all three: share of images in which request, image and report say the same; seen,
    told: shares of the asked ones that the image shows and that the report says; kappa (Cohen 1960) of each two, 0:
    chance.
    NaN where it cannot be told, or too few were asked for.
    """
    rows = {}
    for finding in FINDINGS:
        asked, image, report = pairs.loc[pairs["finding"] == finding, ["asked", "image", "report"]].to_numpy().T
        row = {"asked": int(asked.sum())}
        if row["asked"] >= MINIMUM_POSITIVES:
            told = ~np.isnan(image) & ~np.isnan(report)
            same = (asked == image) & (image == report)
            row["all three"] = same[told].mean() if told.any() else np.nan
            for name, values in (("seen in the image", image), ("told in the report", report)):
                row[name] = values[asked == 1].mean()
            for name, one, other in (
                ("kappa request-image", asked, image),
                ("kappa request-report", asked, report),
                ("kappa image-report", image, report),
            ):
                row[name] = _kappa(one, other)
        rows[finding] = row
    columns = ["asked", "all three", "seen in the image", "told in the report"]
    columns += [f"kappa {pair}" for pair in ("request-image", "request-report", "image-report")]
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
    table.loc["mean"] = table.mean()
    table.loc["mean", "asked"] = table["asked"].iloc[:-1].sum()
    return table.astype({"asked": int})


def complete_agreement(labels, image, report=None, replicates=1000, seed=1234):
    """The share of pairs in which request, image and report agree on every finding => a dict.

    labels (N, 14): the codes that were asked for; image, report (N, 14): True, False, or NaN where it cannot be told. A
    finding counts in a pair where image and report are both told, and the request does not leave it uncertain; every other
    code than 1 asks for its absence. A pair in which no finding counts is left out, as one without a report is.

    N: pairs; findings: how many count in some pair; all three: the share, low and high: its 95 % bootstrap interval over
    pairs; request-image, request-report, image-report: the share in which these two agree on the same findings. NaN without
    pairs; without `report` everything but request-image is NaN, of the findings told of the image.
    """
    asked, image = np.asarray(labels) == PRESENT, np.asarray(image, dtype=float)
    told = image if report is None else image + np.asarray(report, dtype=float)  # NaN where one of them is
    counted = (np.asarray(labels) != UNCERTAIN) & ~np.isnan(told)
    kept = counted.any(axis=1)
    compared = {"request-image": asked == image}
    if report is not None:
        compared |= {"request-report": asked == report, "image-report": image == report}
        compared["all three"] = compared["request-image"] & compared["request-report"]
    count = int(kept.sum())
    shares = {name: float((same | ~counted)[kept].all(axis=1).mean()) for name, same in compared.items() if count}
    row = {"N": count, "findings": int(counted.any(axis=0).sum()), "all three": shares.get("all three", np.nan)}
    row["low"] = row["high"] = np.nan
    if "all three" in shares:  # of `count` pairs drawn from them, so many agree: a binomial number
        rng = np.random.default_rng(keyed_seed(seed, "bootstrap"))
        drawn = rng.binomial(count, row["all three"], replicates) / count
        row["low"], row["high"] = np.quantile(drawn, (0.025, 0.975)).tolist()
    return row | {name: shares.get(name, np.nan) for name in ("request-image", "request-report", "image-report")}


def _kappa(one, other):
    """Cohen's kappa where both are told; NaN where nothing is, or where both say one and the same thing throughout."""
    told = ~np.isnan(one) & ~np.isnan(other)
    if not told.any() or len(np.unique([one[told], other[told]])) < 2:
        return np.nan
    return cohen_kappa_score(one[told], other[told])


# ---- memorisation --------------------------------------------------------------------------------------------------


def nearest(queries, read, count, device="cpu", block=4096):
    """The nearest of `count` candidates for each query: (distances (N,), rows (N,)).

    queries (N, D); read(start, end) => candidates (end - start, D), so that they need not fit into memory at once.
    Distances are root mean square differences over the D numbers.
    """
    queries = torch.from_numpy(np.asarray(queries, dtype=np.float32)).to(device)
    distances = torch.full((len(queries),), torch.inf, device=device)
    rows = torch.zeros(len(queries), dtype=torch.long, device=device)
    for start in range(0, count, block):
        candidates = read(start, min(start + block, count))
        candidates = torch.from_numpy(np.asarray(candidates, dtype=np.float32)).to(device)
        for first in range(0, len(queries), block):
            part = slice(first, first + block)
            found = torch.cdist(queries[part], candidates).argmin(dim=1)
            values = (queries[part] - candidates[found]).square().mean(dim=1).sqrt()  # cdist is inexact near zero
            closer = values < distances[part]
            distances[part] = torch.where(closer, values, distances[part])
            rows[part] = torch.where(closer, found + start, rows[part])
    return distances.cpu().numpy(), rows.cpu().numpy()


def memorisation(synthetic, real, quantile):
    """How many synthetic images lie suspiciously near to a training image, as a dict.

    synthetic, real: distances (N,), (M,) to the nearest training image. threshold: the `quantile` of the real images',
    which were not trained on: so many of *them* lie below it by definition. share: of the synthetic ones below it.
    """
    threshold = float(np.quantile(real, quantile))
    return {
        "threshold": threshold,
        "quantile": quantile,
        "share": float((synthetic < threshold).mean()),
        "copies": int((synthetic < threshold).sum()),
        "median": float(np.median(synthetic)),
        "median_real": float(np.median(real)),
    }
