"""Evaluates image-report pairs: a synthetic CXR tree against a real one, beside the floors and baselines that tell much.

    python evaluate_pairs.py --REAL /data/mimic-cxr-jpg --SYNTHETIC synthetic/clipUViT --OUTPUT evaluation/clipUViT

Reads:  REAL (its split SPLIT is compared with, its split "train" trains the judges unless TRAIN is given), SYNTHETIC,
        WRITTEN (reports of real images), BASE_MODEL (the VAE in whose latents copies are looked for), CACHE_DIR
Writes: OUTPUT/{evaluation.json,evaluation.md,agreement.csv.gz,constants.json}, OUTPUT/{auroc,memorisation,closest}.png,
        and PAGE, the gallery page with the main numbers and with what request, image and report say of each finding
"""

from utils.constants import check_command_line, override_constants, save_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator
from matplotlib.figure import Figure

from utils import findings, metrics, mimic_cxr
from utils.errors import InputError, run, writing
from utils.gallery import write_page
from utils.latents import cache_moments, load_vae, read_pixels
from utils.mimic_cxr import read_table
from utils.references import References
from utils.report_autoencoder import constant_report
from utils.seeds import keyed_generator
from utils.training import make_accelerator

# what is compared
REAL = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where REAL's reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
SYNTHETIC = "synthetic/clipUViT"  # a CXR tree
TRAIN = ""  # the tree whose split "train" trains the judges and is searched for copies; empty: REAL
SPLIT = "test"  # the split of REAL to compare with
SYNTHETIC_SPLIT = ""  # a split of SYNTHETIC; empty: all of a generated tree, SPLIT of a real one
WRITTEN = ""  # a folder with reports.csv: reports written for REAL's images (the paper's evaluation); empty: none
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p19",)  # patient groups that count as the split "test", as in training
OUTPUT = "evaluation"  # folder of tables and plots
PAGE = ""  # the gallery page; empty: index.html in the folder that holds SYNTHETIC
PAGE_IMAGES = 5000  # synthetic images on the page at most; 0: all
# image quality
FEATURES = ("judge",)  # whose features: judge, inception, torchxrayvision, rad-dino
NEIGHBOURS = 5  # of precision, recall, density and coverage
DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM
IMAGE_SIZE = 256  # pixels, for MS-SSIM and the latents
# clinical efficacy
CLASSIFIER = "judge"  # of images: judge or torchxrayvision
TEXT_JUDGE = "tfidf"  # of reports: tfidf or chexbert
RADGRAPH = False  # RadGraph F1 of reports, by the package radgraph
BOOTSTRAP = 1000  # draws of images for the 95 % intervals
DOWNSTREAM = True  # train the judge on synthetic, and on real and synthetic images, and test it on real ones
# the image judge
JUDGE_MODEL = "resnet18"  # any timm classifier, trained from random weights
JUDGE_IMAGE_SIZE = 128  # pixels
JUDGE_STEPS = 8000  # optimiser steps
JUDGE_BATCH_SIZE = 64  # images an optimiser step
JUDGE_LEARNING_RATE = 2e-3  # of AdamW, the highest of one cycle
# memorisation
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # whose vae; empty: the judge's features only
COPY_QUANTILE = 0.01  # nearer to a training image than this share of unseen real images: counted as a copy
CLOSEST = 8  # closest pairs in the picture
# running
CACHE_DIR = "cache"  # judges, pixels and latents
BATCH_SIZE = 64  # images at a time
SEED = 1234  # of draws, and of the judges' training
DEVICE = ""  # cpu, cuda, cuda:1 ...; empty: the best there is
NUM_WORKERS = 4  # threads that decode images

_FLOOR, _COPYING = "real train (floor)", "nearest training image (copying)"


@dataclass(frozen=True)
class Loading:
    """How images are read, and where what was computed from them is kept."""

    cache_dir: str
    batch_size: int  # images at a time
    threads: int  # that decode images
    accelerator: Accelerator


class Images:
    """The images of one table that can be read, at the judge's size, and what the judge sees in them."""

    def __init__(self, table, name, judge_size, loading):
        self.loading, self.device = loading, loading.accelerator.device
        self.cache, keys, readable = metrics.cache_pixels(
            table, judge_size, loading.cache_dir, loading.accelerator, loading.threads
        )
        self.unreadable = int((~readable).sum())
        if self.unreadable:
            print(f"{name}: {self.unreadable} of {len(table)} images cannot be read and are left out of everything")
        self.table = table[readable].reset_index(drop=True)
        self.keys = [key for key, kept in zip(keys, readable) if kept]
        if len(self.table) < 2:
            raise InputError(f"{name} has {len(self.table)} readable images; an evaluation needs 2 or more")
        self._seen = {}  # (extractor, its rows) => features, probabilities

    def __len__(self):
        return len(self.table)

    def see(self, extractor, rows=None):
        """The features of an extractor, (N, D), or those of some rows only; extracted once, probabilities beside them.

        The judge sees all rows, which other parts need as well; another extractor no more than it is asked for.
        """
        some = None if isinstance(extractor, metrics.Judge) else rows
        key = extractor.name, None if some is None else some.tobytes()
        if key not in self._seen:
            if isinstance(extractor, metrics.Judge):
                read = metrics.pixel_reader(self.cache, self.keys)
            else:
                paths = self.table["image_path"] if some is None else self.table["image_path"].iloc[some]
                read = metrics.file_reader(paths.tolist(), extractor.image_size)
            count = len(self) if some is None else len(some)
            self._seen[key] = metrics.extract(
                extractor, read, count, self.device, self.loading.batch_size, self.loading.threads
            )
        found = self._seen[key]
        return found if some is not None or rows is None else tuple(values[rows] for values in found)


def read_synthetic(root, reports_root, views, hold_out, split, split_of_real):
    """The table of the synthetic rows, with a column source: the dicom_id of the image that the labels came from, or "".

    Of a real tree the rows of `split_of_real` are taken unless `split` says otherwise; each is its own source.
    """
    provenance = Path(root) / mimic_cxr.PROVENANCE_FILE
    if not provenance.exists():
        table = read_table(root, reports_root, views, splits=(split or split_of_real,), hold_out=hold_out)
        return table.assign(source=table["dicom_id"])
    table = read_table(root, views=views, splits=(split,) if split else ())
    made = pd.read_csv(provenance, dtype=str, keep_default_na=False).set_index("dicom_id")
    source = made["source"] if "source" in made else pd.Series(dtype=str)
    return table.assign(source=table["dicom_id"].map(source).fillna(""))


def rows_of(table, split, root):
    rows = table[table["split"] == split]
    if rows.empty:
        raise InputError(
            f"{root} has no image in the split {split!r}; there are {table['split'].value_counts().to_dict()}"
        )
    return rows.reset_index(drop=True)


def image_quality(extractor, real, synthetic, train, copies, neighbours, seed):
    """One row for the synthetic images, the floor and copying each; all against the same real rows."""
    floor = metrics.draw_rows(len(train), len(synthetic), seed, "floor")
    used, place = np.unique(np.concatenate([floor, copies]), return_inverse=True)
    used_features = train.see(extractor, used)[0][place]
    compared = real.see(extractor)[0]
    rows = []
    for name, features in (
        ("synthetic", synthetic.see(extractor)[0]),
        (_FLOOR, used_features[: len(floor)]),
        (_COPYING, used_features[len(floor) :]),
    ):
        kid, deviation = metrics.kernel_distance(compared, features, seed)
        smaller = min(len(features), len(compared))
        warnings = [f"FID from fewer images ({smaller}) than feature dimensions ({extractor.width})"] * (
            smaller < extractor.width
        )
        if len(features) != len(synthetic):
            warnings.append(f"not the same N as the synthetic images ({len(synthetic)})")
        rows.append(
            {
                "images": name,
                "extractor": f"{extractor.name}, D = {extractor.width}",
                "N": len(features),
                "N real": len(compared),
                "FID": metrics.frechet_distance(compared, features),
                "KID": kid,
                "KID deviation": deviation,
                **metrics.neighbourhood_metrics(compared, features, neighbours),
                "warning": "; ".join(warnings),
            }
        )
    return rows


def diversity(images, name, count, image_size, seed):
    """MS-SSIM of up to `count` pairs of images with the same findings present."""
    pairs = metrics.label_set_pairs(images.table, count, seed)
    read = metrics.file_reader(images.table["image_path"].tolist(), image_size)
    return {"images": name, "pairs": len(pairs), "MS-SSIM": metrics.diversity(read, pairs)}


def clinical_efficacy(classifier, real, synthetic, train, copies, replicates, seed):
    """AUROC per finding of asked findings on synthetic images, on copied ones, and of real findings on real images."""
    asked, present = metrics.positives(synthetic.table), metrics.positives(real.table)
    used, place = np.unique(copies, return_inverse=True)
    return {
        name: metrics.auroc_table(labels, scores, classifier.known, replicates, seed)
        for name, labels, scores in (
            ("synthetic", asked, synthetic.see(classifier)[1]),
            (_COPYING, asked, train.see(classifier, used)[1][place]),
            ("real", present, real.see(classifier)[1]),
        )
    }


def downstream_utility(settings, real, synthetic, train, efficacy_of_real, replicates):
    """The judge's network trained on synthetic, real, and both kinds of images, tested on real ones: AUROC."""
    labels = {"synthetic": metrics.positives(synthetic.table), "real": metrics.positives(train.table)}
    pixels = {key: images.cache for images in (synthetic, train) for key in images.keys}
    both = _Pixels(pixels)
    sets = {
        "synthetic": (synthetic.keys, labels["synthetic"]),
        "real and synthetic": (train.keys + synthetic.keys, np.concatenate([labels["real"], labels["synthetic"]])),
    }
    rows = [{"trained on": "real", "N": len(train), **efficacy_of_real.loc["mean", ["auroc", "low", "high"]]}]
    for name, (keys, targets) in sets.items():
        model = metrics.train_classifier(both, keys, targets, settings, real.device)
        classifier = metrics.Judge(model, settings, np.full(14, 0.5), np.ones(14, bool))
        read = metrics.pixel_reader(real.cache, real.keys)
        _, scores = metrics.extract(classifier, read, len(real), real.device, real.loading.batch_size)
        known = efficacy_of_real["counted"].iloc[:-1].to_numpy(dtype=bool)
        table = metrics.auroc_table(metrics.positives(real.table), scores, known, replicates, settings.seed)
        rows.append({"trained on": name, "N": len(keys), **table.loc["mean", ["auroc", "low", "high"]]})
    return rows


class _Pixels(dict):
    """{key: the cache that has it}, read as {key: pixels}."""

    def __getitem__(self, key):
        return super().__getitem__(key)[key]


def report_rows(text_judge, candidates, references, labels, radgraph):
    """A row of scores for each set of reports.

    candidates: {name: N reports}; references: N real reports, "" where there is none; labels: (N, 14) bool.
    """
    rows, per_finding = [], {}
    referenced = np.array([bool(text) for text in references])
    for name, reports in candidates.items():
        row = {"reports": name, "N": len(reports), "N with a reference": int(referenced.sum())}
        if referenced.any():
            texts = [reports[index] for index in np.flatnonzero(referenced)]
            wanted = [references[index] for index in np.flatnonzero(referenced)]
            row |= metrics.text_scores(wanted, texts)
            if radgraph:
                row["RadGraph F1"] = metrics.radgraph_f1(wanted, texts)
        per_finding[name] = metrics.clinical_f1(labels, text_judge(reports))
        row["clinical F1 micro"], row["clinical F1 macro"] = per_finding[name].loc[["micro", "macro"], "f1"]
        rows.append(row)
    return rows, per_finding


def report_quality(text_judge, table, references, train_table, name, radgraph, seed):
    """The reports of a table and its baselines, against references and against what was asked for."""
    labels = metrics.positives(table)
    normal = train_table[(train_table["No Finding"] == findings.PRESENT) & (train_table["report"] != "")]
    pool = normal if len(normal) else train_table[train_table["report"] != ""]
    reports = table["report"].tolist()
    copied = nearest_by_labels(table, train_table[train_table["report"] != ""], seed)
    copies = train_table["report"].iloc[copied].tolist()
    candidates = {
        name: reports,
        "real reports of the same labels": references,
        "nearest training report (copying)": copies,
        "label-only": [metrics.label_report(row) for row in table[list(findings.FINDINGS)].to_numpy()],
        "constant normal report": [constant_report(pool["report"])] * len(reports),
        "shuffled among images": shuffled(reports, seed),
    }
    if not all(references):
        del candidates["real reports of the same labels"]
    return report_rows(text_judge, candidates, references, labels, radgraph)


def shuffled(reports, seed):
    """The reports in another order, none in its own place."""
    order = np.random.default_rng(seed).permutation(len(reports))
    moved = np.empty(len(reports), dtype=int)
    moved[order] = np.roll(order, 1)
    return [reports[row] for row in moved]


def nearest_by_labels(table, train_table, seed):
    """For each row the index label, in train_table, of a training row with the nearest label vector: what a copier gives."""
    references = References(train_table)
    labels = table[list(findings.FINDINGS)].to_numpy()
    rows = [
        references.draw(row, -1, keyed_generator(seed, "copying", dicom_id))
        for row, dicom_id in zip(labels, table["dicom_id"])
    ]
    return train_table.index.to_numpy()[rows]


def pairs(judge, text_judge, images):
    """What request, image and report say of each finding; without a text judge, request and image only."""
    asked, table = metrics.positives(images.table), images.table
    image = metrics.only_known(images.see(judge)[1] >= judge.thresholds, judge.known)
    report = None
    if text_judge:
        has_report = (table["report"] != "").to_numpy()
        report = metrics.only_known(text_judge(table["report"].tolist()), text_judge.known)
        report[~has_report] = np.nan
    return metrics.pair_table(table["dicom_id"], asked, image, report)


def memorisation(spaces, real, synthetic, train, quantile):
    """Distances to the nearest training image in each space => (rows of the table, {space: distances and pairs})."""
    rows, found = [], {}
    for name, (values_real, values_synthetic, read_train) in spaces.items():
        near_real, _ = metrics.nearest(values_real, read_train, len(train), real.device)
        near_synthetic, places = metrics.nearest(values_synthetic, read_train, len(train), real.device)
        result = metrics.memorisation(near_synthetic, near_real, quantile)
        rows.append({"space": name, "N": len(synthetic), "N real": len(real), **result})
        found[name] = (near_synthetic, near_real, places, result["threshold"])
    return rows, found


def feature_spaces(judge, real, synthetic, train, base_model, image_size):
    """{name: (real, synthetic: arrays (N, D), read(start, end) => training rows)}, cached latents and judge features.

    Without a base_model there are no latents.
    """
    features = train.see(judge)[0]
    spaces = {
        f"features of the {judge.name}": (
            real.see(judge)[0],
            synthetic.see(judge)[0],
            lambda *rows: features[slice(*rows)],
        )
    }
    if base_model:
        vae, loading = load_vae(base_model, real.device), real.loading
        found = {}
        for images in (real, synthetic, train):
            cache, keys, _ = cache_moments(
                images.table,
                vae,
                image_size,
                loading.cache_dir,
                loading.batch_size,
                loading.accelerator,
                loading.threads,
            )
            found[images] = (cache, keys)

        def latents(images, start, end):
            cache, keys = found[images]
            means = cache.stack(keys[start:end])  # (n, 2C, h, w)
            means = means[:, : means.shape[1] // 2].astype(np.float32) * vae.config.scaling_factor
            return means.reshape(len(means), -1)

        spaces = {
            "VAE latents": (
                latents(real, 0, len(real)),
                latents(synthetic, 0, len(synthetic)),
                lambda start, end: latents(train, start, end),
            ),
            **spaces,
        }
    return spaces


# ---- tables and pictures -------------------------------------------------------------------------------------------


def markdown(frame, digits=3):
    """A DataFrame as a Markdown table; NaN is a dash."""

    def cell(value):
        if isinstance(value, (float, np.floating)):
            return "–" if np.isnan(value) else f"{value:.{digits}f}"
        return str(value)

    lines = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    lines += [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def auroc_columns(efficacy):
    """The AUROC tables side by side, with intervals, one row a finding."""
    table = pd.DataFrame({"finding": efficacy["synthetic"].index})
    for name, values in efficacy.items():
        if name != _COPYING:  # has the positives of the synthetic images
            table["asked" if name == "synthetic" else f"{name}: positives"] = values["positives"].tolist()
        table[f"{name}: AUROC [95 %]"] = [
            f"{row.auroc:.3f} [{row.low:.3f}, {row.high:.3f}]" if row.counted else "too few"
            for row in values.itertuples()
        ]
    return table


def draw_auroc(efficacy, path):
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for offset, (name, table) in enumerate(efficacy.items()):
        places = np.arange(len(table)) + 0.25 * (offset - 1)
        errors = np.abs(table[["low", "high"]].to_numpy(dtype=float).T - table["auroc"].to_numpy(dtype=float))
        axes.errorbar(table["auroc"], places, xerr=errors, fmt="o", markersize=4, label=name)
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set(yticks=range(len(table)), yticklabels=table.index, xlabel="AUROC, 95 % bootstrap interval")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_distances(found, path):
    figure = Figure(figsize=(4.5 * len(found), 3.5), layout="constrained")
    for axes, (name, (synthetic, real, _, threshold)) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items()
    ):
        bins = np.linspace(0, max(synthetic.max(), real.max()) or 1, 40)
        axes.hist([real, synthetic], bins, density=True, histtype="stepfilled", alpha=0.6, label=["real", "synthetic"])
        axes.axvline(threshold, color="black", linewidth=0.8, label="copies are left of this")
        axes.set(title=name, xlabel="distance to the nearest training image")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_closest(found, synthetic, train, count, image_size, path):
    """The `count` closest pairs of each space: the synthetic image above its nearest training image."""
    count = min(count, len(synthetic))
    figure = Figure(figsize=(1.6 * count, 3.8 * len(found)), layout="constrained")
    grid = figure.subplots(2 * len(found), count, squeeze=False)
    for block, (name, (distances, _, places, _)) in enumerate(found.items()):
        for column, row in enumerate(np.argsort(distances, kind="stable")[:count]):
            tables = ((synthetic.table, row, f"{distances[row]:.3f}"), (train.table, places[row], "training image"))
            for below, (table, which, title) in enumerate(tables):
                axes = grid[2 * block + below, column]
                pixels = read_pixels(table["image_path"].iloc[which], min(image_size, 256))[0]
                axes.imshow(pixels.numpy(), cmap="gray", vmin=-1, vmax=1)
                axes.set_title(title, fontsize=8)
                axes.set(xticks=[], yticks=[])
        grid[2 * block, 0].set_ylabel(name, fontsize=7)
    figure.savefig(path, dpi=120)


def as_json(value):
    """Tables, arrays and NaN as what JSON can hold."""
    if isinstance(value, pd.DataFrame):
        return as_json(value.to_dict("index"))
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    if CLASSIFIER not in ("judge", "torchxrayvision"):
        raise InputError(f"CLASSIFIER {CLASSIFIER!r} is none of judge and torchxrayvision")
    if TEXT_JUDGE not in ("tfidf", "chexbert"):
        raise InputError(f"TEXT_JUDGE {TEXT_JUDGE!r} is none of tfidf and chexbert")
    names = {*FEATURES, CLASSIFIER} - {"judge"}
    extractors = {name: metrics.load_extractor(name, accelerator.device) for name in sorted(names)}
    chexbert = metrics.ChexbertJudge(accelerator.device) if TEXT_JUDGE == "chexbert" else None

    timings, clock = {}, time.perf_counter()

    def lap(name):
        nonlocal clock
        timings[name] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()
        print(f"{name}: {timings[name]} s", flush=True)

    real_all = read_table(REAL, REPORTS_ROOT, views=VIEWS, hold_out=HOLD_OUT)
    train_all = read_table(TRAIN, views=VIEWS, hold_out=HOLD_OUT) if TRAIN else real_all
    reports_root = REPORTS_ROOT if SYNTHETIC == REAL else ""
    synthetic_table = read_synthetic(SYNTHETIC, reports_root, VIEWS, HOLD_OUT, SYNTHETIC_SPLIT, SPLIT)
    real_table, train_table = rows_of(real_all, SPLIT, REAL), rows_of(train_all, "train", TRAIN or REAL)
    validation_table = train_all[train_all["split"] == "validate"].reset_index(drop=True)
    asked, present = (metrics.positives(table).any(axis=0) for table in (synthetic_table, real_all))
    if not (asked & present).any():
        raise InputError(
            f"{REAL} and {SYNTHETIC} share no findings: none of the 14 is present in an image of each, so that nothing "
            "can be compared; are the labels of the synthetic tree what was asked for?"
        )
    loading = Loading(CACHE_DIR, BATCH_SIZE, NUM_WORKERS, accelerator)
    settings = metrics.JudgeSettings(
        JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, JUDGE_BATCH_SIZE, JUDGE_LEARNING_RATE, SEED
    )
    real = Images(real_table, f"{REAL}, {SPLIT}", JUDGE_IMAGE_SIZE, loading)
    synthetic = Images(synthetic_table, SYNTHETIC, JUDGE_IMAGE_SIZE, loading)
    train = Images(train_table, f"{TRAIN or REAL}, train", JUDGE_IMAGE_SIZE, loading)
    lap("trees")
    judge = metrics.image_judge(train.table, validation_table, settings, CACHE_DIR, accelerator, NUM_WORKERS)
    extractors["judge"] = judge
    lap("image judge")

    copies = nearest_by_labels(synthetic.table, train.table, SEED)
    quality = [
        row
        for name in FEATURES
        for row in image_quality(extractors[name], real, synthetic, train, copies, NEIGHBOURS, SEED)
    ]
    spread = [
        diversity(images, name, DIVERSITY_PAIRS, IMAGE_SIZE, SEED)
        for images, name in ((synthetic, "synthetic"), (real, "real"))
    ]
    lap("image quality")
    efficacy = clinical_efficacy(extractors[CLASSIFIER], real, synthetic, train, copies, BOOTSTRAP, SEED)
    lap("clinical efficacy of images")

    result = {
        "real": {"tree": REAL, "split": SPLIT, "N": len(real), "unreadable": real.unreadable},
        "synthetic": {"tree": SYNTHETIC, "N": len(synthetic), "unreadable": synthetic.unreadable},
        "train": {"tree": TRAIN or REAL, "N": len(train), "unreadable": train.unreadable},
        "image_quality": quality,
        "diversity": spread,
        "classifier": extractors[CLASSIFIER].name,
        "auroc": efficacy,
    }
    notes = []
    if DOWNSTREAM:
        of_real = efficacy["real"]
        if CLASSIFIER != "judge":
            labels = metrics.positives(real.table)
            of_real = metrics.auroc_table(labels, real.see(judge)[1], judge.known, BOOTSTRAP, SEED)
        result["downstream"] = downstream_utility(settings, real, synthetic, train, of_real, BOOTSTRAP)
        lap("downstream utility")

    text_judge = None
    if not (synthetic.table["report"] != "").any():
        notes.append(f"{SYNTHETIC} has no reports: images are evaluated, reports and pairs are not")
    elif not (train.table["report"] != "").any():
        notes.append("the training rows have no reports to learn or to copy from: reports and pairs are not evaluated")
    else:
        text_judge = chexbert
        if not chexbert:
            studies = train.table[train.table["report"] != ""].drop_duplicates("study_id")
            text_judge = metrics.TextJudge(studies["report"].tolist(), metrics.positives(studies))
    if text_judge:
        result["text_judge"] = text_judge.name
        if not metrics.has_wordnet():
            notes.append("METEOR is left out: NLTK's WordNet is not here (python -m nltk.downloader wordnet)")
        reported = synthetic.table[synthetic.table["report"] != ""].reset_index(drop=True)
        if len(reported) < len(synthetic):
            notes.append(f"{len(synthetic) - len(reported)} synthetic images have no report, and no part in its scores")
        real_reports = real_all.set_index("dicom_id")["report"]
        references = reported["source"].map(real_reports).fillna("").tolist()
        rows, per_finding = report_quality(text_judge, reported, references, train.table, "synthetic", RADGRAPH, SEED)
        result["reports"], result["report_f1"] = rows, per_finding
        lap("reports")
    if text_judge and WRITTEN:
        written, references = read_written(WRITTEN, real.table)
        rows, per_finding = report_quality(
            text_judge, written, references, train.table, "written for real images", RADGRAPH, SEED
        )
        result["written_reports"], result["written_report_f1"] = rows, per_finding
        lap("written reports")

    told = pairs(judge, text_judge, synthetic)
    table_of_pairs = {"synthetic": metrics.agreement(told)}
    if text_judge:
        table_of_pairs["real"] = metrics.agreement(pairs(judge, text_judge, real))
        reports = told["report"].to_numpy().reshape(len(synthetic), -1)
        mixed = told.assign(report=np.array(shuffled(list(reports), SEED)).ravel())
        table_of_pairs["shuffled reports"] = metrics.agreement(mixed)
    result["pairs"] = table_of_pairs
    lap("pairs")

    spaces = feature_spaces(judge, real, synthetic, train, BASE_MODEL, IMAGE_SIZE)
    rows, found = memorisation(spaces, real, synthetic, train, COPY_QUANTILE)
    result["memorisation"] = rows
    if not BASE_MODEL:
        notes.append("copies were not looked for in VAE latents: BASE_MODEL is empty")
    lap("memorisation")

    result["notes"] = notes
    output = Path(OUTPUT)
    with writing("the evaluation", output):
        output.mkdir(parents=True, exist_ok=True)
        draw_auroc(efficacy, output / "auroc.png")
        draw_distances(found, output / "memorisation.png")
        draw_closest(found, synthetic, train, CLOSEST, IMAGE_SIZE, output / "closest.png")
        told.to_csv(output / "agreement.csv.gz", index=False)
        text = report(result)
        (output / "evaluation.md").write_text(text, encoding="utf-8")
        result["seconds"] = timings
        (output / "evaluation.json").write_text(json.dumps(as_json(result), indent=2, allow_nan=False) + "\n")
    save_constants(output, constants)
    page = Path(PAGE) if PAGE else Path(SYNTHETIC).parent / "index.html"
    write_page(
        page,
        {Path(SYNTHETIC).name: SYNTHETIC},
        train_table,
        title=f"{Path(SYNTHETIC).name}, evaluated",
        agreement=told,
        summary=summary(result),
        max_images=PAGE_IMAGES,
    )
    lap("pictures and page")
    print(text)
    print(f"the evaluation: {output / 'evaluation.md'}; the page: {page.resolve()}")


def read_written(folder, table):
    """The real rows for which <folder>/reports.csv has a report, with that report; and their real reports."""
    path = Path(folder) / "reports.csv"
    try:
        written = pd.read_csv(path, dtype=str, keep_default_na=False)
        texts = written.drop_duplicates("dicom_id").set_index("dicom_id")["report"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as written reports (columns dicom_id and report): {error}") from error
    reported = table["dicom_id"].map(texts).fillna("")
    rows = table[reported != ""]
    if len(rows) < 2:
        raise InputError(
            f"{path} has reports for {len(rows)} of the {len(table)} real images compared; 2 or more are needed"
        )
    return rows.assign(report=reported).reset_index(drop=True), rows["report"].tolist()


def report(result):
    """evaluation.md."""
    real, synthetic, train = (result[name] for name in ("real", "synthetic", "train"))
    parts = [
        "# Evaluation",
        f"Synthetic: {synthetic['tree']}, N = {synthetic['N']} ({synthetic['unreadable']} unreadable, left out).  \n"
        f"Real: {real['tree']}, split {real['split']}, N = {real['N']} ({real['unreadable']} unreadable, left out).  \n"
        f"Training rows: {train['tree']}, N = {train['N']} ({train['unreadable']} unreadable, left out).",
        *(f"**Note:** {note}." for note in result["notes"]),
        "## Image quality",
        "Each row against the same real images. The floor is what other real images get at the same N; copying needs no "
        "model. The judge was trained on the images of these two rows and knows them better than unseen ones, which "
        "makes its floor a little too high.",
        markdown(pd.DataFrame(result["image_quality"])),
        "Diversity: MS-SSIM of pairs with the same findings (1: all alike; to be read beside the real images'):",
        markdown(pd.DataFrame(result["diversity"])),
        "## Clinical efficacy of images",
        f"Classifier: {result['classifier']}. Asked findings on synthetic images; the last columns are the classifier's "
        f"own AUROC on real ones. Fewer than {metrics.MINIMUM_POSITIVES} positives: too few, and no part of the mean.",
        markdown(auroc_columns(result["auroc"])),
        "![AUROC](auroc.png)",
    ]
    if "downstream" in result:
        parts += ["## Downstream utility", f"The judge's network, tested on {real['N']} real images, mean AUROC:"]
        parts.append(markdown(pd.DataFrame(result["downstream"])))
    for name, title in (("reports", "Reports"), ("written_reports", "Reports written for real images")):
        if name in result:
            parts += [
                f"## {title}",
                f"Clinical F1 by the {result['text_judge']} against the asked findings; the other scores against the real "
                "report of the image that the label vector came from. The TF-IDF judge reads the wording of the training "
                "reports and no other, which the label-only reports show.",
                markdown(pd.DataFrame(result[name])),
                f1_columns(result["report_f1" if name == "reports" else "written_report_f1"]),
            ]
    parts += ["## Pairs", "Agreement between request, image (image judge) and report (text judge), mean over findings:"]
    means = pd.concat({name: table.loc[["mean"]] for name, table in result["pairs"].items()}).droplevel(1)
    parts.append(markdown(means.rename_axis("pairs").reset_index()))
    parts += ["Per finding, synthetic:", markdown(result["pairs"]["synthetic"].rename_axis("finding").reset_index())]
    parts += [
        "## Memorisation",
        f"Distance to the nearest training image. Of the real images, which were not trained on, "
        f"{result['memorisation'][0]['quantile']:.0%} lie below the threshold; `share` is that of the synthetic ones.",
        markdown(pd.DataFrame(result["memorisation"])),
        "![distances](memorisation.png)",
        "![closest pairs](closest.png)",
    ]
    return "\n\n".join(parts) + "\n"


def f1_columns(tables):
    """Clinical F1 per finding of several sets of reports side by side, in Markdown."""
    first = next(iter(tables.values()))
    table = pd.DataFrame({"finding": first.index, "positives": first["positives"].tolist()})
    for name, values in tables.items():
        table[name] = values["f1"].tolist()
    return markdown(table)


def summary(result):
    """The main numbers, (name, value) pairs for the page."""
    rows = []
    for row in result["image_quality"]:
        warning = f" — {row['warning']}" if row["warning"] else ""
        rows.append((f"FID, {row['images']}", f"{row['FID']:.2f} (N = {row['N']}, {row['extractor']}{warning})"))
    for name, table in result["auroc"].items():
        mean = table.loc["mean"]
        value = (
            f"{mean['auroc']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" if mean["counted"] else "too few positives"
        )
        rows.append((f"mean AUROC, {name}", f"{value} ({result['classifier']})"))
    for row in [*result.get("reports", []), *result.get("written_reports", [])[:1]]:
        value = f"{row['clinical F1 micro']:.3f} / {row['clinical F1 macro']:.3f} (N = {row['N']})"
        rows.append((f"clinical F1 of reports, micro / macro, {row['reports']}", value))
    for row in result["memorisation"]:
        rows.append((f"copies, {row['space']}", f"{row['share']:.1%} (of unseen real images {row['quantile']:.0%})"))
    return rows


if __name__ == "__main__":
    run(main)
