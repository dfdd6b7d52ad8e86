"""Image, report and pair metrics, and the two judges that need nothing but the real training rows.

image judge    a small timm classifier of the 14 findings, trained on real images, kept in the cache
text judge     TF-IDF and logistic regression, trained on real reports
positive       code 1 (present); absent, uncertain and not mentioned are negative
too few        a finding with fewer than MINIMUM_POSITIVES positives (or negatives) is shown, and left out of each mean

Features are arrays (N, D), float32; labels, predictions and probabilities are (N, 14) in the order of FINDINGS.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from nltk.corpus import wordnet
from nltk.translate.meteor_score import meteor_score
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, f1_score, pairwise_distances_chunked, precision_recall_curve
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.functional.text import bleu_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm import tqdm

from utils.cache import FeatureCache, image_keys
from utils.errors import InputError, reason, writing
from utils.findings import ABSENT, FINDINGS, PRESENT, UNCERTAIN
from utils.latents import PREPROCESSING, read_pixels
from utils.report_autoencoder import rouge_l
from utils.seeds import keyed_generator, keyed_seed

MINIMUM_POSITIVES = 10
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale to the coarsest
_MS_SSIM_WINDOW = 11  # pixels


def positives(table):
    """Which findings are present, (N, 14) bool."""
    return table[list(FINDINGS)].to_numpy() == PRESENT


# ---- the image judge -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """How an image judge is trained; with its training rows, all that it depends on."""

    model: str = "resnet18"  # any timm classifier, from random weights
    image_size: int = 64  # pixels
    steps: int = 300  # optimiser steps
    batch_size: int = 64
    learning_rate: float = 5e-3  # of AdamW, the highest of one cycle (Smith & Topin 2019)
    seed: int = 1234


class Judge:
    """A trained image judge.

    thresholds: (14,) probabilities from which on a finding is called present; known: (14,) bool, False for findings
    that too few training images had: nothing that it says about them counts.
    """

    def __init__(self, model, settings, thresholds, known):
        self.model, self.settings = model.eval(), settings
        self.thresholds, self.known = np.asarray(thresholds), np.asarray(known, dtype=bool)
        self.name, self.image_size, self.width = f"judge ({settings.model})", settings.image_size, model.num_features

    @torch.no_grad()
    def encode(self, pixels):
        """pixels (B, 1, S, S) in [-1, 1] => features (B, D), probabilities (B, 14)."""
        features = self.model.forward_head(self.model.forward_features(pixels), pre_logits=True)
        return features, self.model.get_classifier()(features).sigmoid()


def cache_pixels(table, image_size, cache_dir, accelerator, threads=0):
    """Every image of a table at the judge's size, decoded once => (cache of (S, S) uint8, keys, readable).

    readable: (len(table),) bool, False for images that cannot be decoded (each was named).
    """
    fingerprint = {"feature": "grey pixels, uint8", "image_size": image_size, "preprocessing": PREPROCESSING}
    cache = FeatureCache(f"{cache_dir}/pixels-{image_size}", fingerprint)
    keys, paths = image_keys(table), table["image_path"].tolist()

    def load(row):
        return (read_pixels(paths[row], image_size)[0].add(1) * 127.5).round().to(torch.uint8).numpy()

    readable = cache.fill(keys, load, np.stack, 256, accelerator, f"pixels at {image_size}", threads)
    return cache, keys, readable


def image_judge(train_table, validation_table, settings, cache_dir, accelerator, threads=0):
    """The Judge of these training rows: from `<cache_dir>/judge` if it was trained before, else trained now.

    validation_table: rows that only set the thresholds (best F1); a finding with too few positives there keeps 0.5.
    """
    (pixels, keys, labels), validation = (
        _judged_rows(table, settings.image_size, cache_dir, accelerator, threads)
        for table in (train_table, validation_table)
    )
    if len(keys) < 2:
        raise InputError(
            f"an image judge cannot be trained on {len(keys)} images; the training rows have to be 2 or more"
        )
    fingerprint = hashlib.sha256(
        json.dumps(
            [dataclasses.asdict(settings), keys, labels.tolist(), validation[1], validation[2].tolist()]
        ).encode()
    ).hexdigest()
    folder = Path(cache_dir) / "judge" / fingerprint[:20]
    if (folder / "judge.json").exists():
        about = json.loads((folder / "judge.json").read_text())
        model = _classifier(settings.model)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return Judge(model.to(accelerator.device), settings, about["thresholds"], about["known"])

    model = train_classifier(pixels, keys, labels, settings, accelerator.device)
    known = np.minimum(labels.sum(axis=0), (~labels).sum(axis=0)) >= MINIMUM_POSITIVES
    judge = Judge(model, settings, np.full(len(FINDINGS), 0.5), known)
    if len(validation[1]):
        _, probabilities = extract(judge, pixel_reader(*validation[:2]), len(validation[1]), accelerator.device)
        judge.thresholds = best_thresholds(validation[2], probabilities)
    _save_judge(judge, folder)
    return judge


def _judged_rows(table, image_size, cache_dir, accelerator, threads):
    """(cache, keys, labels) of the rows whose image can be read."""
    cache, keys, readable = cache_pixels(table, image_size, cache_dir, accelerator, threads)
    return cache, [key for key, kept in zip(keys, readable) if kept], positives(table)[readable]


def _classifier(name):
    try:
        return timm.create_model(name, pretrained=False, in_chans=1, num_classes=len(FINDINGS))
    except RuntimeError as error:
        raise InputError(f"JUDGE_MODEL {name!r}: {error}; timm.list_models() names those there are") from error


def train_classifier(pixels, keys, labels, settings, device):
    """Trains a timm classifier from random weights; returns it in evaluation mode.

    pixels: {key: (S, S) uint8}; keys: one an image, N; labels: (N, 14) bool. Each batch is moved by up to 5 % of its
    side, so that no place in the picture is learnt by heart.
    """
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(keyed_seed(settings.seed, "judge"))
        model = _classifier(settings.model).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
        epochs = -(-settings.steps * settings.batch_size // len(keys))
        order = torch.cat([torch.randperm(len(keys)) for _ in range(epochs)])
        reach = settings.image_size // 20
        for step in tqdm(range(settings.steps), desc="judge", leave=False, disable=None):
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size].tolist()
            images = _to_float(np.stack([pixels[keys[row]] for row in rows])).to(device)  # (B, 1, S, S), [-1, 1]
            x, y = torch.randint(0, 2 * reach + 1, (2,)).tolist()
            images = F.pad(images, (reach,) * 4, mode="replicate")
            images = images[:, :, y : y + settings.image_size, x : x + settings.image_size]
            targets = torch.from_numpy(labels[rows]).float().to(device)
            loss = F.binary_cross_entropy_with_logits(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _save_judge(judge, folder):
    """The folder appears under its name only when it is whole."""
    about = {
        "settings": dataclasses.asdict(judge.settings),
        "thresholds": judge.thresholds.tolist(),
        "known": judge.known.tolist(),
    }
    with writing("the image judge", folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.mkdir()
            save_file(
                {name: value.cpu() for name, value in judge.model.state_dict().items()}, temporary / "model.safetensors"
            )
            (temporary / "judge.json").write_text(json.dumps(about, indent=2))
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def best_thresholds(labels, probabilities):
    """For each finding the probability with the best F1, (14,); 0.5 where there are too few positives to tell."""
    thresholds = np.full(labels.shape[1], 0.5)
    for index in np.flatnonzero(enough(labels)):
        precision, recall, levels = precision_recall_curve(labels[:, index], probabilities[:, index])
        thresholds[index] = levels[(precision * recall / np.maximum(precision + recall, 1e-9))[:-1].argmax()]
    return thresholds


# ---- features ------------------------------------------------------------------------------------------------------


def pixel_reader(cache, keys):
    """row => pixels (1, S, S) in [-1, 1], out of `cache_pixels`."""
    return lambda row: _to_float(cache[keys[row]][None])[0]


def file_reader(paths, image_size):
    """row => pixels (1, S, S) in [-1, 1], out of image files."""
    return lambda row: read_pixels(paths[row], image_size)[:1]


def _to_float(pixels):
    """(B, S, S) uint8 => (B, 1, S, S) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pixels))[:, None].float().div(127.5).sub(1)


def extract(extractor, read, count, device, batch_size=128, threads=0):
    """features (count, D) float32 and probabilities (count, 14), or None where the extractor has no classifier.

    extractor: a Judge or an Extractor; read(row) => pixels (1, S, S) in [-1, 1]. Only one batch of images is held.
    """
    features, probabilities = [], []
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for start in tqdm(range(0, count, batch_size), desc=extractor.name, leave=False, disable=None):
            rows = range(start, min(start + batch_size, count))
            pixels = torch.stack(list(pool.map(read, rows))).to(device)
            values, scores = extractor.encode(pixels)
            features.append(values.float().cpu().numpy())
            if scores is not None:
                probabilities.append(scores.float().cpu().numpy())
    features = np.concatenate(features) if features else np.zeros((0, extractor.width), np.float32)
    return features, np.concatenate(probabilities) if probabilities else None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A pretrained feature extractor: encode(pixels (B, 1, S, S) in [-1, 1]) => features (B, D), probabilities or None."""

    name: str
    image_size: int  # pixels
    width: int  # D
    encode: object
    known: np.ndarray = None  # (14,) bool, the findings that its probabilities are about


def load_extractor(name, device):
    """An Extractor by name: inception, torchxrayvision or rad-dino; its own library downloads it where it is absent."""
    makers = {"inception": _inception, "torchxrayvision": _torchxrayvision, "rad-dino": _rad_dino}
    if name not in makers:
        raise InputError(f"{name!r} is no feature extractor; there are judge, {', '.join(makers)}")
    try:
        with torch.no_grad():
            return makers[name](device)
    except Exception as error:  # each library has its own words for "no network" and "not installed"
        raise InputError(
            f"the feature extractor {name!r} is not at hand ({reason(error)}); install its package and have a network for its "
            "first use, or set FEATURES and CLASSIFIER to judge, which needs neither"
        ) from error


def _inception(device):
    inception = FrechetInceptionDistance(feature=2048).inception.to(device)

    def encode(pixels):
        pixels = F.interpolate(pixels, size=(299, 299), mode="bilinear", antialias=True)
        return inception(pixels.add(1).mul(127.5).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)), None

    return Extractor("Inception v3", 299, 2048, encode)


def _torchxrayvision(device):
    import torchxrayvision

    model = torchxrayvision.models.DenseNet(weights="densenet121-res224-mimic_ch").eval().to(device)
    names = ["Pleural Effusion" if name == "Effusion" else name for name in model.pathologies]
    columns = [names.index(name) if name in names else -1 for name in FINDINGS]
    known = np.array(columns) >= 0

    @torch.no_grad()
    def encode(pixels):
        pixels = pixels * 1024  # [-1, 1] => the package's [-1024, 1024]
        scores = model(pixels)[:, columns]
        return model.features2(pixels), torch.where(torch.from_numpy(known).to(device), scores, 0.5)

    return Extractor("torchxrayvision DenseNet-121 (MIMIC-CXR)", 224, 1024, encode, known)


def _rad_dino(device):
    from transformers import AutoModel

    model = AutoModel.from_pretrained("microsoft/rad-dino").eval().to(device)
    mean, deviation = 0.5307, 0.2583  # of its image processor, for pixels in [0, 1]

    @torch.no_grad()
    def encode(pixels):
        pixels = (pixels.add(1).div(2) - mean) / deviation
        return model(pixels.expand(-1, 3, -1, -1)).pooler_output, None

    return Extractor("RAD-DINO", 518, 768, encode)


# ---- image quality -------------------------------------------------------------------------------------------------


class _Features(torch.nn.Identity):
    """What torchmetrics takes for a network when the features are there already."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width


def frechet_distance(real, fake):
    """Fréchet distance of two feature sets (Heusel et al. 2017), (N, D) and (M, D): FID, by all images at once.

    |mean difference|² + trace(C1 + C2 - 2 (C1 C2)^½). Biased upwards for few images; below N = D meaningless by itself.
    """
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1]))
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
            feature=_Features(real.shape[1]), subsets=subsets, subset_size=min(subset_size, len(real), len(fake))
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


def _radius(features, neighbours):
    """Distance of each row to its k-th neighbour, itself not counted."""
    return NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features).kneighbors()[0][:, -1]


def label_set_pairs(table, count, seed):
    """Pairs of rows with the same findings present and of two patients, (up to count, 2), drawn at random, each once."""
    groups = pd.DataFrame(positives(table)).groupby(list(range(len(FINDINGS)))).indices.values()
    subjects = table["subject_id"].to_numpy()
    groups = [rows for rows in groups if len(np.unique(subjects[rows])) > 1]
    if not groups:
        return np.zeros((0, 2), int)
    rng = np.random.default_rng(keyed_seed(seed, "pairs"))
    sizes = np.array([len(rows) for rows in groups])
    pairs = set()
    for group in rng.choice(len(groups), 4 * count, p=sizes / sizes.sum()):
        first, second = sorted(rng.choice(groups[group], 2, replace=False).tolist())
        if subjects[first] != subjects[second]:
            pairs.add((first, second))
        if len(pairs) == count:
            break
    return np.array(sorted(pairs))


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


def enough(labels):
    """Which columns have at least MINIMUM_POSITIVES positives and as many negatives, (14,) bool."""
    count = np.asarray(labels, dtype=bool).sum(axis=0)
    return np.minimum(count, len(labels) - count) >= MINIMUM_POSITIVES


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


class TextJudge:
    """Which findings a report says are present: TF-IDF of 1 to 3 words, a logistic regression for each finding.

    reports: N texts; labels: (N, 14) bool. A finding with too few positives (or negatives) is not `known` and never
    said to be present.
    """

    name = "text judge (TF-IDF + logistic regression)"

    def __init__(self, reports, labels):
        if not any(reports):
            raise InputError("a text judge cannot be trained without reports; the training rows have none")
        self.known = enough(labels)
        self._words = TfidfVectorizer(ngram_range=(1, 3), min_df=2, max_features=200_000, sublinear_tf=True)
        try:
            features = self._words.fit_transform(reports)
        except ValueError as error:  # no words that two reports share
            raise InputError(f"a text judge cannot be trained on {len(reports)} reports: {error}") from error
        self._models = {
            index: LogisticRegression(C=30.0, class_weight="balanced", solver="liblinear").fit(
                features, labels[:, index]
            )
            for index in np.flatnonzero(self.known)
        }

    def __call__(self, reports):
        """N texts => (N, 14) bool."""
        found = np.zeros((len(reports), len(FINDINGS)), dtype=bool)
        features = self._words.transform(reports)
        for index, model in self._models.items():
            found[:, index] = model.predict(features)
        return found


class ChexbertJudge:
    """CheXbert (Smit et al. 2020), by the package f1chexbert and its weights."""

    name = "CheXbert"

    def __init__(self, device):
        try:
            from f1chexbert import F1CheXbert

            self._labeler = F1CheXbert(device=str(device))
        except Exception as error:
            raise InputError(
                f"CheXbert is not at hand ({reason(error)}); pip install f1chexbert and have a network for "
                "its first use, or set TEXT_JUDGE to tfidf"
            ) from error
        self.known = np.ones(len(FINDINGS), dtype=bool)
        self._columns = [self._labeler.target_names.index(name) for name in FINDINGS]

    def __call__(self, reports):
        """N texts => (N, 14) bool."""
        return np.array([self._labeler.get_label(report) for report in reports])[:, self._columns] == 1


def radgraph_f1(references, candidates):
    """Mean RadGraph F1 (Jain et al. 2021, partial reward), by the package radgraph and its weights."""
    try:
        from radgraph import F1RadGraph

        return float(F1RadGraph(reward_level="partial")(refs=list(references), hyps=list(candidates))[0])
    except Exception as error:
        raise InputError(
            f"RadGraph is not at hand ({reason(error)}); pip install radgraph and have a network for its "
            "first use, or set RADGRAPH to False"
        ) from error


def text_scores(references, candidates):
    """BLEU-1 to -4 (Papineni et al. 2002, over the corpus), ROUGE-L and METEOR of candidates, N texts each, as a dict.

    Words are lower-case letters and digits. METEOR's synonyms need NLTK's WordNet; without it there is no METEOR.
    """
    words, candidate_words = ([_words(text) for text in texts] for texts in (references, candidates))
    spaced, candidate_spaced = ([" ".join(text) for text in texts] for texts in (words, candidate_words))
    scores = {
        f"BLEU-{order}": float(bleu_score(candidate_spaced, [[text] for text in spaced], n_gram=order))
        for order in (1, 2, 3, 4)
    }
    scores["ROUGE-L"] = rouge_l(references, candidates)
    if has_wordnet():
        scores["METEOR"] = float(np.mean([meteor_score([one], other) for one, other in zip(words, candidate_words)]))
    return scores


def has_wordnet():
    """Whether NLTK's WordNet is on this machine: python -m nltk.downloader wordnet fetches it."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def _words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def label_report(labels):
    """A report that says a label vector (14 codes) and nothing else: what can be known without an image."""
    words = {PRESENT: "There is {}.", ABSENT: "There is no {}.", UNCERTAIN: "Possible {}."}
    said = [words[label].format(name.lower()) for name, label in zip(FINDINGS, labels) if label in words]
    named = [f"{name.capitalize()}." for name, label in zip(FINDINGS, labels) if label == PRESENT]
    return "FINDINGS: " + (" ".join(said) or "Chest X-ray.") + " IMPRESSION: " * bool(named) + " ".join(named)


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

    asked: how many were asked for; all three: share of images in which request, image and report say the same; seen, told:
    shares of the asked ones that the image shows and that the report says; kappa (Cohen 1960) of each two, 0: chance.
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


def draw_rows(count, wanted, *key):
    """`wanted` of `count` rows, drawn without repetition by a key, in their order."""
    return np.sort(torch.randperm(count, generator=keyed_generator(*key))[:wanted].numpy())
