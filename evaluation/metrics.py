"""Measures of images, reports and pairs: arrays and texts in, numbers out. Nothing is trained or loaded here.

Features are (N, D), float32. Labels, predictions and probabilities are (N, 14) in the order of FINDINGS. Code 1
(present) is positive, every other code negative. A finding with fewer than MINIMUM_POSITIVES positives or negatives has
no score and is left out of each mean. A *reading* is what a judge says of N images or reports: (N, 14) float, 1
present, 0 absent, NaN where it cannot say, for a finding that it does not know or where there is no report.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn.metrics import cohen_kappa_score, f1_score, pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.text import bleu_score, rouge_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from evaluation.labeler import contradictions
from utils.findings import FINDINGS, PRESENT, UNCERTAIN
from utils.report_cleaning import count_comparisons, has_marks, without_marks
from utils.seeds import keyed_seed

MINIMUM_POSITIVES = 10  # of a finding, and as many negatives, for a score
BOOTSTRAP = 1000  # draws of images, or of pairs, for a 95 % interval
COPY_QUANTILE = 0.01  # a copy is nearer to a training image than all but this share of unseen real images
LEAST_PROBABILITY = 1e-6  # probabilities are kept this far from 0 and 1, so that logarithms are finite
KID_SUBSETS, KID_SUBSET_SIZE = 50, 1000  # subsets, and images a subset at most
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale to the coarsest
MS_SSIM_WINDOW = 11  # pixels
MS_SSIM_PAIRS = 64  # image pairs compared at a time
STUTTER_WORDS = 6  # longest phrase that counts as stuttering; a longer one is a repeated sentence


def positives(table: pd.DataFrame) -> np.ndarray:
    """Which findings are present, (N, 14) bool."""
    return table[list(FINDINGS)].to_numpy() == PRESENT


def enough(labels: np.ndarray) -> np.ndarray:
    """Which columns have at least MINIMUM_POSITIVES positives and as many negatives, (14,) bool."""
    count = np.asarray(labels, dtype=bool).sum(axis=0)
    return np.minimum(count, len(labels) - count) >= MINIMUM_POSITIVES


# ---- image quality -------------------------------------------------------------------------------------------------


def _as_network(width):
    """What torchmetrics takes for a network when its inputs are features (N, width) already."""
    network = torch.nn.Identity()
    network.num_features = width
    return network


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of two feature sets (Heusel et al. 2017), (N, D) and (M, D): the FID.

    |mean difference|² + trace(C1 + C2 - 2 (C1 C2)^½). Biased upwards for few images; without meaning below N = D.
    """
    # each process has all images, so nothing is summed over processes
    metric = FrechetInceptionDistance(feature=_as_network(real.shape[1]), sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(real: np.ndarray, fake: np.ndarray, seed: int) -> tuple[float, float]:
    """KID (Bińkowski et al. 2018): mean and standard deviation over subsets. Unbiased, so it may be below 0.

    With fewer than KID_SUBSET_SIZE images every subset is the whole smaller set.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")  # they are in memory anyway
        subset_size = min(KID_SUBSET_SIZE, len(real), len(fake))
        metric = KernelInceptionDistance(_as_network(real.shape[1]), KID_SUBSETS, subset_size, sync_on_compute=False)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(keyed_seed(seed, "KID"))
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def neighbourhood_metrics(real: np.ndarray, fake: np.ndarray, neighbours: int = 5) -> dict:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020); NaN below k + 1 images.

    An image lies inside a set when it is nearer to one of its images than that image's k-th neighbour.
    """
    if min(len(real), len(fake)) <= neighbours:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), np.nan)
    real_radius, fake_radius = (_radius(features, neighbours) for features in (real, fake))
    balls_around_fake = np.zeros(len(fake), int)  # real images' balls that hold each fake image
    inside_fake, covered = np.zeros((2, len(real)), bool)
    start = 0
    for distances in pairwise_distances_chunked(real, fake):  # (some rows of real, M)
        rows = slice(start, start + len(distances))
        inside_real = distances <= real_radius[rows, None]
        balls_around_fake += inside_real.sum(axis=0)
        covered[rows] = inside_real.any(axis=1)
        inside_fake[rows] = (distances <= fake_radius[None]).any(axis=1)
        start += len(distances)
    return {
        "precision": float((balls_around_fake > 0).mean()),
        "recall": float(inside_fake.mean()),
        "density": float(balls_around_fake.mean() / neighbours),
        "coverage": float(covered.mean()),
    }


def _radius(features, neighbours):
    """Distance of each row to its k-th neighbour, itself not counted."""
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features).kneighbors()[0][:, -1]


def feature_distances(real: np.ndarray, fake: np.ndarray, neighbours: int, seed: int) -> dict:
    """FID, KID and its deviation, precision, recall, density and coverage of fake features against real ones."""
    kid, deviation = kernel_distance(real, fake, seed)
    distances = {"FID": frechet_distance(real, fake), "KID": kid, "KID deviation": deviation}
    return distances | neighbourhood_metrics(real, fake, neighbours)


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


# ---- clinical efficacy ---------------------------------------------------------------------------------------------


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve by ranks (Mann-Whitney U) along the last axis; NaN with one class only.

    labels (..., N) bool, scores (..., N), equal scores counting half.
    """
    labels = np.asarray(labels, dtype=bool)
    positive = labels.sum(axis=-1)
    negative = labels.shape[-1] - positive
    wins = (rankdata(scores, axis=-1) * labels).sum(axis=-1) - positive * (positive + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (positive * negative)


def auroc_table(
    labels: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray | None = None,
    replicates: int = BOOTSTRAP,
    seed: int = 1234,
) -> pd.DataFrame:
    """AUROC per finding with 95 % bootstrap intervals over images => DataFrame, indexed by finding and "mean".

    labels (N, 14) bool, scores (N, 14). Columns: positives, auroc, low, high, counted: False, with AUROC NaN, for a
    finding with too few positives or negatives, or not `known` (14,) to the classifier.
    """
    counted = enough(labels) & (True if known is None else known)
    columns = np.flatnonzero(counted)
    values = np.full((len(columns), 1 + replicates), np.nan)  # first of all images, then of each draw
    values[:, 0] = auroc(labels[:, columns].T, scores[:, columns].T)
    rng = np.random.default_rng(keyed_seed(seed, "bootstrap"))
    draws_at_once = max(1, 1_000_000 // max(1, len(labels)))
    for start in range(1, replicates + 1, draws_at_once):
        end = min(start + draws_at_once, replicates + 1)
        images = rng.integers(len(labels), size=(end - start, len(labels)))
        for place, column in enumerate(columns):
            values[place, start:end] = auroc(labels[images, column], scores[images, column])

    table = pd.DataFrame(index=[*FINDINGS, "mean"])
    table["positives"] = [*labels.sum(axis=0), labels[:, columns].sum()]
    table[["auroc", "low", "high"]] = np.nan
    if len(columns):
        values = np.vstack([values, np.nanmean(values, axis=0)])
        rows = [*table.index[columns], "mean"]
        table.loc[rows, "auroc"] = values[:, 0]
        if replicates:
            table.loc[rows, ["low", "high"]] = np.nanquantile(values[:, 1:], (0.025, 0.975), axis=1).T
    table["counted"] = [*counted, len(columns) > 0]
    return table


def clinical_f1(labels: np.ndarray, predictions: np.ndarray) -> pd.DataFrame:
    """F1 per finding, micro (all 14 findings pooled) and macro (mean over those with enough positives).

    labels, predictions: (N, 14) bool => DataFrame with positives and f1, indexed by finding, "micro" and "macro".
    """
    scores = f1_score(labels, predictions, average=None, zero_division=0.0)
    counted = labels.sum(axis=0) >= MINIMUM_POSITIVES
    table = pd.DataFrame(
        {"positives": labels.sum(axis=0), "f1": np.where(counted, scores, np.nan)}, index=list(FINDINGS)
    )
    table.loc["micro"] = [labels.sum(), f1_score(labels.ravel(), predictions.ravel(), zero_division=0.0)]
    table.loc["macro"] = [labels[:, counted].sum(), scores[counted].mean() if counted.any() else np.nan]
    return table.astype({"positives": int})


# ---- reports -------------------------------------------------------------------------------------------------------


def rouge_l(references: Sequence[str], candidates: Sequence[str]) -> float:
    """The mean ROUGE-L F-measure (Lin 2004) of candidates against references, 0 to 1."""
    return float(rouge_score(list(candidates), list(references), rouge_keys="rougeL")["rougeL_fmeasure"])


def constant_report(reports: Sequence[str], candidates: int = 30, judged: int = 60) -> str:
    """The report with the best ROUGE-L if it were written for every image: the baseline of a report generator.

    Chosen among the commonest `candidates` by ROUGE-L to `judged` reports, evenly spaced.
    """
    reports = list(reports)
    sample = reports[:: max(1, len(reports) // judged)]
    common = [report for report, _ in Counter(reports).most_common(candidates)]
    return max(common, key=lambda report: rouge_l(sample, [report] * len(sample)))


def text_scores(references: Sequence[str], candidates: Sequence[str]) -> dict:
    """BLEU-1 to -4 (Papineni et al. 2002, over the corpus), ROUGE-L and METEOR of N candidates against N references.

    Words are lower-case letters and digits. METEOR is left out without NLTK and its WordNet, its synonyms.
    """
    reference_words, candidate_words = ([_words(text) for text in texts] for texts in (references, candidates))
    spaced_references = [[" ".join(words)] for words in reference_words]
    spaced_candidates = [" ".join(words) for words in candidate_words]
    scores = {
        f"BLEU-{order}": float(bleu_score(spaced_candidates, spaced_references, n_gram=order)) for order in (1, 2, 3, 4)
    }
    scores["ROUGE-L"] = rouge_l(references, candidates)
    if has_wordnet():
        from nltk.translate.meteor_score import meteor_score

        values = [meteor_score([words], other) for words, other in zip(reference_words, candidate_words)]
        scores["METEOR"] = float(np.mean(values))
    return scores


def has_wordnet() -> bool:
    """Whether NLTK and its WordNet are installed."""
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError):
        return False
    return True


def text_habits(reports: Sequence[str], labels: np.ndarray, subjects: Sequence[int]) -> dict:
    """Properties of N reports as texts; labels (N, 14) bool: findings that are present; subjects (N,): patients.

    marks, comparisons, contradictions, stuttering: how many have a de-identification mark, compare with an earlier
    film, call a finding both present and absent, or stutter. distinct: the share of different texts. different: of the
    pairs of reports of two patients with the same findings the share with two texts.
    """
    table = pd.DataFrame(labels, columns=FINDINGS).assign(report=list(reports), subject=np.asarray(subjects))

    def count_pairs(*columns):
        """Pairs of reports that are equal in their findings and in these columns."""
        sizes = table.groupby([*FINDINGS, *columns]).size()
        return int((sizes * (sizes - 1) // 2).sum())

    same_findings = count_pairs() - count_pairs("subject")
    same_text = count_pairs("report") - count_pairs("report", "subject")
    return {
        "N": len(table),
        "marks": sum(map(has_marks, reports)),
        "comparisons": sum(count_comparisons(text) > 0 for text in reports),
        "contradictions": sum(bool(contradictions(text)) for text in reports),
        "stuttering": sum(map(stutters, reports)),
        "distinct": len(set(reports)) / len(table) if len(table) else np.nan,
        "pairs of the same findings": same_findings,
        "different": 1 - same_text / same_findings if same_findings else np.nan,
    }


def stutters(text: str) -> bool:
    """Whether a phrase of up to STUTTER_WORDS words stands three times in a row, de-identification marks aside."""
    words = _words(without_marks(text))
    return any(
        words[start : start + 2 * size] == words[start + size : start + 3 * size]
        for size in range(1, STUTTER_WORDS + 1)
        for start in range(len(words) - 3 * size + 1)
    )


def _words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


# ---- requests ------------------------------------------------------------------------------------------------------


def request_agreement(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How well images show what was asked => (scores (N,), 0 at best; agrees (N,) bool).

    probabilities (N, 14) that an image shows each finding; labels (N, 14): the codes asked for; thresholds (14,) from
    which on a finding counts as shown; known (14,) bool. A finding counts in a row if it is known and not asked as
    uncertain; every code other than 1 asks for its absence. score: the mean log probability of what was asked, over the
    findings that count; agrees: whether all of them are shown as asked. A row without any has the score 0, and agrees.
    """
    labels = np.asarray(labels)
    asked, counted = labels == PRESENT, np.asarray(known) & (labels != UNCERTAIN)
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    logarithms = np.where(counted, np.log(np.where(asked, p, 1 - p)), 0.0)
    scores = logarithms.sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return scores, (((probabilities >= thresholds) == asked) | ~counted).all(axis=1)


def calibration(
    scores: np.ndarray, agrees: np.ndarray, judge_agrees: np.ndarray, bins: int = 5
) -> tuple[list[dict], dict]:
    """Whether a selector's score predicts what another judge finds => (rows, acceptance).

    scores (N,) and agrees (N,) bool are the selector's, judge_agrees (N,) bool the other judge's (`request_agreement`).
    rows: up to `bins` groups of equal size from the lowest score to the highest; acceptance: the share that agrees by
    the selector, and by the judge among these and among the others.
    """
    scores, agrees, judge_agrees = np.asarray(scores), np.asarray(agrees, dtype=bool), np.asarray(judge_agrees)
    groups = np.array_split(np.argsort(scores, kind="stable"), min(bins, len(scores)))
    rows = [
        {"N": len(group), "mean score": _mean(scores[group]), "agree by the judge": _mean(judge_agrees[group])}
        for group in groups
    ]
    acceptance = {"N": len(scores), "agree by the selector": _mean(agrees)}
    acceptance["agree by the judge, of these"] = _mean(judge_agrees[agrees])
    acceptance["agree by the judge, of the others"] = _mean(judge_agrees[~agrees])
    return rows, acceptance


def _mean(values):
    return float(values.mean()) if len(values) else np.nan


# ---- pairs ---------------------------------------------------------------------------------------------------------


def agreement(asked: np.ndarray, image: np.ndarray, report: np.ndarray | None) -> pd.DataFrame:
    """Agreement of request, image and report per finding => DataFrame indexed by finding and "mean".

    asked (N, 14) bool; image and report: readings (None: NaN throughout). Columns: how many were asked for; the share
    in which all three agree; the shares of the asked ones that image and report show; Cohen's kappa (1960) of each two.
    NaN without readings, or where too few were asked for.
    """
    asked, image = np.asarray(asked, dtype=float), np.asarray(image, dtype=float)
    report = np.full(asked.shape, np.nan) if report is None else np.asarray(report, dtype=float)
    table = pd.DataFrame(map(_finding_agreement, asked.T, image.T, report.T), index=list(FINDINGS))
    table.loc[table["asked"] < MINIMUM_POSITIVES, table.columns != "asked"] = np.nan
    table.loc["mean"] = table.mean()
    table.loc["mean", "asked"] = table["asked"].iloc[:-1].sum()
    return table.astype({"asked": int})


def _finding_agreement(asked, image, report):
    """The row of one finding; asked, image, report: (N,) float."""
    both = ~np.isnan(image) & ~np.isnan(report)
    return {
        "asked": asked.sum(),
        "all three": _mean(((asked == image) & (image == report))[both]),
        "seen in the image": _mean(image[asked == 1]),
        "told in the report": _mean(report[asked == 1]),
        "kappa request-image": _kappa(asked, image),
        "kappa request-report": _kappa(asked, report),
        "kappa image-report": _kappa(image, report),
    }


def _kappa(one, other):
    """Cohen's kappa of two columns of readings; NaN where both are NaN throughout, or hold one and the same value."""
    both = ~np.isnan(one) & ~np.isnan(other)
    if not both.any() or len(np.unique([one[both], other[both]])) < 2:
        return np.nan
    return cohen_kappa_score(one[both], other[both])


def complete_agreement(
    labels: np.ndarray, image: np.ndarray, report: np.ndarray | None = None, seed: int = 1234
) -> dict:
    """The share of pairs in which request, image and report agree on every finding.

    labels (N, 14): the codes asked for; image and report: readings. A finding counts in a pair where both readings have
    it and the request does not leave it uncertain; every code other than 1 asks for its absence. A pair in which no
    finding counts is left out.

    N: pairs; findings: how many count in some pair; all three: the share, with its 95 % bootstrap interval over pairs;
    then the shares in which two agree on the same findings. Without `report` only request-image is a number.
    """
    asked, image = labels == PRESENT, np.asarray(image, dtype=float)
    counted = (labels != UNCERTAIN) & ~np.isnan(image)
    same = {"request-image": asked == image}
    if report is not None:
        counted &= ~np.isnan(report)
        same |= {"request-report": asked == report, "image-report": image == report}
        same["all three"] = same["request-image"] & same["request-report"]
    kept = counted.any(axis=1)
    count = int(kept.sum())
    shares = dict.fromkeys(("all three", "low", "high", "request-image", "request-report", "image-report"), np.nan)
    if count:
        shares |= {name: float((equal | ~counted)[kept].all(axis=1).mean()) for name, equal in same.items()}
    if not np.isnan(shares["all three"]):  # how many of `count` pairs drawn again agree is a binomial number
        rng = np.random.default_rng(keyed_seed(seed, "bootstrap"))
        drawn = rng.binomial(count, shares["all three"], BOOTSTRAP) / count
        shares["low"], shares["high"] = np.quantile(drawn, (0.025, 0.975)).tolist()
    return {"N": count, "findings": int(counted.any(axis=0).sum()), **shares}


# ---- memorisation --------------------------------------------------------------------------------------------------


def nearest(
    queries: np.ndarray, read: Callable, count: int, device: torch.device | str = "cpu", block: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `count` candidates for each query => (distances (N,), rows (N,)).

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
            indices = torch.cdist(queries[part], candidates).argmin(dim=1)
            values = (queries[part] - candidates[indices]).square().mean(dim=1).sqrt()  # cdist is inexact near zero
            closer = values < distances[part]
            distances[part] = torch.where(closer, values, distances[part])
            rows[part] = torch.where(closer, indices + start, rows[part])
    return distances.cpu().numpy(), rows.cpu().numpy()


def memorisation(synthetic: np.ndarray, real: np.ndarray) -> dict:
    """How many synthetic images are suspiciously near to a training image.

    synthetic, real: distances (N,), (M,) to the nearest training image. The threshold is the COPY_QUANTILE of the real
    images, which were not trained on; copies and share are the synthetic images below it.
    """
    threshold = float(np.quantile(real, COPY_QUANTILE))
    return {
        "threshold": threshold,
        "quantile": COPY_QUANTILE,
        "share": float((synthetic < threshold).mean()),
        "copies": int((synthetic < threshold).sum()),
        "median": float(np.median(synthetic)),
        "median_real": float(np.median(real)),
    }
