"""Measures of images, reports and pairs: arrays and texts in, numbers out. Nothing is trained or loaded here.

Features are (N, D), float32. Labels, predictions and probabilities are (N, 14) in the order of FINDINGS. Code 1
(present) is positive, every other code negative. A finding with fewer than MINIMUM_POSITIVES positives or negatives has
no score and is left out of each mean. torchmetrics is imported by the functions that need it: it takes seconds.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import f1_score, pairwise_distances
from sklearn.neighbors import NearestNeighbors

from utils.findings import FINDINGS, PRESENT
from utils.seeds import draw_rows, keyed_seed

MINIMUM_POSITIVES = 10  # of a finding, and as many negatives, for a score
BOOTSTRAP = 1000  # draws of patients for a 95 % interval
DRAWS = 20  # of them at a time, for their weights are copied several times
KID_SUBSETS, KID_SUBSET_SIZE = 50, 1000  # subsets, and images a subset at most
NEIGHBOUR_IMAGES = 10_000  # of a set, whose neighbours are looked for
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale to the coarsest
MS_SSIM_WINDOW = 11  # pixels
MS_SSIM_PAIRS = 64  # image pairs compared at a time


def positives(table: pd.DataFrame) -> np.ndarray:
    """Which findings are present, (N, 14) bool."""
    return table[list(FINDINGS)].to_numpy() == PRESENT


def enough(labels: np.ndarray) -> np.ndarray:
    """Which columns have at least MINIMUM_POSITIVES positives and as many negatives, (14,) bool."""
    count = np.asarray(labels, dtype=bool).sum(axis=0)
    return np.minimum(count, len(labels) - count) >= MINIMUM_POSITIVES


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of two feature sets (Heusel et al. 2017), (N, D) and (M, D): the FID.

    |mean difference|² + trace(C1 + C2 - 2 (C1 C2)^½), biased upwards for few images, without meaning below N = D. Where
    C = RᵀR (R: a QR decomposition of the centred features), the root's trace is the nuclear norm of R1 R2ᵀ.
    """
    pair = [features.astype(np.float64) for features in (real, fake)]
    means = [features.mean(axis=0) for features in pair]
    roots = [np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r") for x, mean in zip(pair, means)]
    traces = sum(np.square(root).sum() for root in roots) - 2 * np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return max(0.0, float(np.square(means[0] - means[1]).sum() + traces))


def kernel_distance(real: np.ndarray, fake: np.ndarray, seed: int) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): mean and standard deviation over subsets. Unbiased, so it may be below 0.

    With fewer than KID_SUBSET_SIZE images every subset is the whole smaller set.
    """
    from torchmetrics.image.kid import poly_mmd

    pair, size = (torch.from_numpy(real), torch.from_numpy(fake)), min(KID_SUBSET_SIZE, len(real), len(fake))
    with torch.random.fork_rng([]):
        torch.manual_seed(keyed_seed(seed, "KID"))
        subsets = ((part[torch.randperm(len(part))[:size]] for part in pair) for _ in range(KID_SUBSETS))
        values = torch.stack([poly_mmd(*subset) for subset in subsets])
    return float(values.mean()), float(values.std(correction=0))


def neighbourhood_metrics(real: np.ndarray, fake: np.ndarray, neighbours: int = 5) -> dict:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020); NaN below k + 1 images.

    An image lies inside a set when it is nearer to one of its images than that image's k-th neighbour. Of each set
    NEIGHBOUR_IMAGES at most count, drawn at random: time and memory grow with the square of their number.
    """
    real, fake = (part[draw_rows(len(part), NEIGHBOUR_IMAGES, "neighbours")] for part in (real, fake))
    if min(len(real), len(fake)) <= neighbours:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), np.nan)
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute")
    real_radius, fake_radius = (search.fit(features).kneighbors()[0][:, -1] for features in (real, fake))
    distances = pairwise_distances(real, fake)  # (N, M)
    inside_real = distances <= real_radius[:, None]
    return {
        "precision": float(inside_real.any(axis=0).mean()),
        "recall": float((distances <= fake_radius).any(axis=1).mean()),
        "density": float(inside_real.sum(axis=0).mean() / neighbours),
        "coverage": float(inside_real.any(axis=1).mean()),
    }


def label_set_pairs(tables: Sequence[pd.DataFrame], count: int, seed: int) -> list[np.ndarray]:
    """Up to `count` pairs of rows with the same findings present, of two patients, drawn at random => (P, 2) a table.

    The p-th pairs of all tables have the same findings: images of some findings are more alike than of others.
    """
    rows_of_findings = [pd.DataFrame(positives(table)).groupby(list(range(len(FINDINGS)))).indices for table in tables]
    subjects = [table["subject_id"].to_numpy() for table in tables]
    rng = np.random.default_rng(keyed_seed(seed, "pairs"))
    pairs = [np.zeros((len(tables), 0, 2), int)]  # for each set of findings (tables, P, 2)
    for findings in sorted(set(rows_of_findings[0]).intersection(*rows_of_findings[1:])):
        drawn = [_pairs_of(rows[findings], whose, count, rng) for rows, whose in zip(rows_of_findings, subjects)]
        shared = min(map(len, drawn))
        pairs.append(np.stack([some[:shared] for some in drawn]))
    pairs = np.concatenate(pairs, axis=1)
    return list(pairs[:, np.sort(rng.permutation(pairs.shape[1])[:count])])


def _pairs_of(rows, subjects, count, rng):
    """Up to count distinct pairs of rows of two patients, in random order, (P, 2); of few rows all pairs."""
    if len(rows) ** 2 <= 4 * count:
        pairs = np.stack(np.triu_indices(len(rows), 1), axis=1)
    else:
        pairs = np.unique(np.sort(rng.integers(0, len(rows), (4 * count, 2)), axis=1), axis=0)
    pairs = rows[rng.permutation(pairs)]
    return pairs[subjects[pairs[:, 0]] != subjects[pairs[:, 1]]][:count]


def ms_ssim_scales(side: int) -> int:
    """How many of MS-SSIM's five scales an image of this side has: the window has to fit inside the coarsest one."""
    return max(1, sum(side // 2**scale >= MS_SSIM_WINDOW for scale in range(len(MS_SSIM_WEIGHTS))))


def ms_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity (Wang et al. 2003) of image pairs, (B, 1, S, S) in [-1, 1] => (B,).

    Small images have fewer than the paper's five scales (64 pixels: three); the weights are scaled to sum to 1. Only
    windows inside the image count. torchmetrics' own multi-scale function counts a reflected border at the coarsest
    scale, where at 64 pixels it is most of the image.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    scales, border = ms_ssim_scales(min(first.shape[-2:])), MS_SSIM_WINDOW // 2
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    first, second, product = first.add(1).div(2), second.add(1).div(2), 1.0
    for scale, weight in enumerate(weights.tolist()):
        coarsest = scale == scales - 1  # the finer ones count by contrast and structure, without luminance
        _, part = structural_similarity_index_measure(
            first, second, data_range=1.0, reduction="none", return_full_image=coarsest,
            return_contrast_sensitivity=not coarsest,
        )  # fmt: skip
        if coarsest:
            part = part[..., border:-border, border:-border].mean(dim=(1, 2, 3))
        product = product * part.relu() ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return product


def diversity(read: Callable[[int], torch.Tensor], pairs: np.ndarray) -> float:
    """Mean MS-SSIM of pairs of rows (P, 2); read(row) => pixels (1, S, S) in [-1, 1]. 1: all alike; NaN: no pairs."""
    values = []
    for start in range(0, len(pairs), MS_SSIM_PAIRS):
        first, second = (torch.stack([read(row) for row in rows]) for rows in pairs[start : start + MS_SSIM_PAIRS].T)
        values.append(ms_ssim(first, second).numpy())
    return float(np.concatenate(values).mean()) if values else np.nan


def patient_weights(subjects: np.ndarray, seed: int) -> np.ndarray:
    """How often each of N rows counts in each draw of as many patients, with repetition; (BOOTSTRAP, N).

    The cluster bootstrap: all rows of a patient are drawn together. subjects (N,): the patients of the rows.
    """
    patients, patient_of = np.unique(subjects, return_inverse=True)
    rng, count = np.random.default_rng(keyed_seed(seed, "bootstrap")), len(patients)
    return rng.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP)[:, patient_of].astype(np.float32)


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Areas under the ROC curve (Mann-Whitney U, equal scores counting half) => (R,); NaN with one class only.

    labels (N,) bool, scores (N,); weights (R, N): how often each row counts in each of R draws.
    """
    labels, order = np.asarray(labels, dtype=bool), np.argsort(scores, kind="stable")
    levels = np.flatnonzero(np.diff(np.asarray(scores)[order], prepend=np.nan) != 0)  # where a new score begins
    labels, areas = labels[order], []
    for part in np.array_split(weights, -(-len(weights) // DRAWS)):
        part = np.asarray(part, dtype=float)[:, order]
        positive, negative = (np.add.reduceat(part * chosen, levels, axis=1) for chosen in (labels, ~labels))
        wins = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            areas.append(wins / (positive.sum(axis=1) * negative.sum(axis=1)))
    return np.concatenate(areas)


def auroc_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % interval of an AUROC by method 5 of Newcombe (2006), which does not collapse at 0 and 1.

    It holds the areas whose standard error by Hanley and McNeil (1982), for equal class sizes, explains the difference.
    """
    more, tiny = (positives + negatives) / 2 - 1, 1e-9

    def excess(area):
        variance = area * (1 - area) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area)))
        return (value - area) ** 2 - norm.ppf(0.975) ** 2 * variance / (positives * negatives)

    return brentq(excess, 0.0, max(value - tiny, 0.0)), brentq(excess, min(value + tiny, 1.0), 1.0)


def auroc_table(
    labels: np.ndarray, scores: np.ndarray, known: np.ndarray | None = None, seed: int = 1234,
    subjects: np.ndarray | None = None,
) -> pd.DataFrame:  # fmt: skip
    """AUROC per finding with 95 % bootstrap intervals over patients => DataFrame, indexed by finding and "mean".

    labels (N, 14) bool, scores (N, 14), subjects (N,): patients, None: each image has its own. Columns: positives,
    auroc, low, high, counted: False, with AUROC NaN, for a finding with too few positives or negatives, or not `known`
    (14,) to the classifier. Where all draws give one value, the interval is `auroc_interval`'s, of the patients.
    """
    counted = enough(labels) & (True if known is None else known)
    subjects = np.arange(len(labels)) if subjects is None else subjects
    columns = np.flatnonzero(counted)
    table = pd.DataFrame(index=[*FINDINGS, "mean"])
    table["positives"] = [*labels.sum(axis=0), labels[:, columns].sum()]
    table[["auroc", "low", "high"]] = np.nan
    table["counted"] = [*counted, counted.any()]
    if not counted.any():
        return table
    weights = np.vstack([np.ones(len(labels)), patient_weights(subjects, seed)])  # first all images, then each draw
    values = np.array([auroc(labels[:, column], scores[:, column], weights) for column in columns])
    low, high = np.nanquantile(values[:, 1:], (0.025, 0.975), axis=1)
    for place in np.flatnonzero(low == high):
        positive = labels[:, columns[place]]
        patients = [len(np.unique(subjects[part])) for part in (positive, ~positive)]
        low[place], high[place] = auroc_interval(values[place, 0], *patients)
    mean = values.mean(axis=0)
    ends = np.nanquantile(mean[1:], (0.025, 0.975))
    if ends[0] == ends[1]:
        ends = low.mean(), high.mean()
    table.loc[table.index[columns], ["auroc", "low", "high"]] = np.stack([values[:, 0], low, high], axis=1)
    table.loc["mean", ["auroc", "low", "high"]] = mean[0], *ends
    return table


def clinical_f1(labels: np.ndarray, predictions: np.ndarray) -> pd.DataFrame:
    """F1 per finding, micro (all 14 findings pooled) and macro (mean over those with enough positives).

    labels, predictions: (N, 14) bool => DataFrame with positives and f1, indexed by finding, "micro" and "macro".
    """
    positives = labels.sum(axis=0)
    counted = positives >= MINIMUM_POSITIVES
    scores = f1_score(labels, predictions, average=None, zero_division=0.0)
    table = pd.DataFrame({"positives": positives, "f1": np.where(counted, scores, np.nan)}, index=list(FINDINGS))
    table.loc["micro"] = [positives.sum(), f1_score(labels, predictions, average="micro", zero_division=0.0)]
    table.loc["macro"] = [positives[counted].sum(), mean_or_nan(scores[counted])]
    return table.astype({"positives": int})


def mean_or_nan(values: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else np.nan
