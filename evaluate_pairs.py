"""Evaluates image-report pairs: a synthetic CXR tree against a real one, beside the floors and baselines that tell much.

    python evaluate_pairs.py --REAL /data/mimic-cxr-jpg --SYNTHETIC synthetic/clipUViT --OUTPUT evaluation/clipUViT

Reads:  REAL (its split SPLIT is compared with, its split "train" trains the judges unless TRAIN is given), SYNTHETIC,
        WRITTEN (reports of real images), BASE_MODEL (the VAE in whose latents copies are looked for), CACHE_DIR
Writes: OUTPUT/{evaluation.json,evaluation.md,agreement.csv.gz,constants.json}, OUTPUT/{auroc,memorisation,closest}.png,
        and PAGE, the gallery page with the main numbers and with what request, image and report say of each finding
"""

from utils.constants import check_command_line, override_constants, save_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import time
from pathlib import Path

from utils import metrics
from utils.errors import InputError, run, say
from utils.evaluation import (
    Images,
    Loading,
    agreements,
    clinical_efficacy,
    diversity,
    downstream_utility,
    evaluate_reports,
    feature_spaces,
    image_quality,
    memorisation,
    nearest_by_labels,
    pairs,
    read_synthetic,
    text_judge_of,
)
from utils.gallery import write_page
from utils.judges import JudgeSettings, image_judge, load_extractor, load_text_judge
from utils.mimic_cxr import read_table, split_rows
from utils.report import summary, write_evaluation
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


class Clock:
    """How long each section took: clock(name) says it and keeps it in `seconds`."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def __call__(self, name):
        now = time.perf_counter()
        self.seconds[name], self.last = round(now - self.last, 1), now
        say(f"{name}: {self.seconds[name]} s")


def read_tables(real_root, synthetic_root, train_root, reports_root, views, hold_out, split, synthetic_split):
    """The tables compared: all of REAL, its rows of the split, the synthetic rows, and the rows that train and validate."""
    whole = read_table(real_root, reports_root, views=views, hold_out=hold_out)
    source = read_table(train_root, views=views, hold_out=hold_out) if train_root else whole
    reports_of_synthetic = reports_root if synthetic_root == real_root else ""
    synthetic = read_synthetic(synthetic_root, reports_of_synthetic, views, hold_out, synthetic_split, split)
    asked, present = (metrics.positives(table).any(axis=0) for table in (synthetic, whole))
    if not (asked & present).any():
        raise InputError(
            f"{real_root} and {synthetic_root} share no findings: none of the 14 is present in an image of each, so that "
            "nothing can be compared; are the labels of the synthetic tree what was asked for?"
        )
    real = whole.iloc[split_rows(whole, split, real_root)].reset_index(drop=True)
    train = source.iloc[split_rows(source, "train", train_root or real_root)].reset_index(drop=True)
    validation = source[source["split"] == "validate"].reset_index(drop=True)
    return whole, real, synthetic, train, validation


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    if CLASSIFIER not in ("judge", "torchxrayvision"):
        raise InputError(f"CLASSIFIER {CLASSIFIER!r} is none of judge and torchxrayvision")
    names = sorted({*FEATURES, CLASSIFIER} - {"judge"})
    extractors = {name: load_extractor(name, accelerator.device) for name in names}
    loaded_text_judge = load_text_judge(TEXT_JUDGE, accelerator.device)

    clock, notes = Clock(), []
    whole, real_table, synthetic_table, train_table, validation_table = read_tables(
        REAL, SYNTHETIC, TRAIN, REPORTS_ROOT, VIEWS, HOLD_OUT, SPLIT, SYNTHETIC_SPLIT
    )
    loading = Loading(CACHE_DIR, BATCH_SIZE, NUM_WORKERS, accelerator)
    real = Images(real_table, f"{REAL}, {SPLIT}", JUDGE_IMAGE_SIZE, loading)
    synthetic = Images(synthetic_table, SYNTHETIC, JUDGE_IMAGE_SIZE, loading)
    train = Images(train_table, f"{TRAIN or REAL}, train", JUDGE_IMAGE_SIZE, loading)
    result = {
        "real": {"tree": REAL, "split": SPLIT, "N": len(real), "unreadable": real.unreadable},
        "synthetic": {"tree": SYNTHETIC, "N": len(synthetic), "unreadable": synthetic.unreadable},
        "train": {"tree": TRAIN or REAL, "N": len(train), "unreadable": train.unreadable},
    }
    clock("trees")

    settings = JudgeSettings(JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, JUDGE_BATCH_SIZE, JUDGE_LEARNING_RATE, SEED)
    judge = image_judge(train.table, validation_table, settings, CACHE_DIR, accelerator, NUM_WORKERS)
    extractors["judge"] = judge
    classifier = extractors[CLASSIFIER]
    clock("image judge")

    copies = nearest_by_labels(synthetic.table, train.table, SEED)
    features = [extractors[name] for name in FEATURES]
    result["image_quality"] = image_quality(features, real, synthetic, train, copies, NEIGHBOURS, SEED)
    result["diversity"] = diversity({"synthetic": synthetic, "real": real}, DIVERSITY_PAIRS, IMAGE_SIZE, SEED)
    clock("image quality")

    result["classifier"] = classifier.name
    result["auroc"] = clinical_efficacy(classifier, real, synthetic, train, copies, BOOTSTRAP, SEED)
    clock("clinical efficacy of images")

    if DOWNSTREAM:
        result["downstream"] = downstream_utility(settings, judge, real, synthetic, train, BOOTSTRAP)
        clock("downstream utility")

    text_judge = text_judge_of(synthetic, train, loaded_text_judge, notes)
    if text_judge:
        result |= evaluate_reports(text_judge, whole, real, synthetic, train, WRITTEN, RADGRAPH, SEED, notes)
        clock("reports")

    told = pairs(judge, text_judge, synthetic)
    result["pairs"] = agreements(judge, text_judge, told, synthetic, real, SEED)
    clock("pairs")

    spaces = feature_spaces(judge, real, synthetic, train, BASE_MODEL, IMAGE_SIZE)
    result["memorisation"], found = memorisation(spaces, real, synthetic, train, COPY_QUANTILE)
    if not BASE_MODEL:
        notes.append("copies were not looked for in VAE latents: BASE_MODEL is empty")
    clock("memorisation")

    output, page = Path(OUTPUT), Path(PAGE) if PAGE else Path(SYNTHETIC).parent / "index.html"
    result |= {"notes": notes, "seconds": clock.seconds}
    text = write_evaluation(output, result, told, found, synthetic, train, CLOSEST, IMAGE_SIZE)
    save_constants(output, constants)
    title = Path(SYNTHETIC).name
    write_page(
        page, {title: SYNTHETIC}, train_table, f"{title}, evaluated", told, summary(result), max_images=PAGE_IMAGES
    )
    clock("pictures and page")
    say(text)
    say(f"the evaluation: {output / 'evaluation.md'}; the page: {page.resolve()}")


if __name__ == "__main__":
    run(main)
