"""Evaluates image-report pairs: a synthetic CXR tree against a real one, beside floors and baselines that tell much.

    python evaluate_pairs.py --REAL /data/mimic-cxr-jpg --SYNTHETIC synthetic/clipUViT --OUTPUT evaluation/clipUViT

Reads:  REAL (its split SPLIT is compared with, its split "train" trains the judges unless TRAIN is given), SYNTHETIC (a
        CXR tree, or a CSV such as CheXGenBench's prompt_INFO.csv), WRITTEN (reports of real images), BASE_MODEL (the VAE in
        whose latents copies are looked for), CACHE_DIR
Writes: OUTPUT/{evaluation.json,evaluation.md,agreement.csv.gz,constants.json}, OUTPUT/{auroc,memorisation,closest}.png,
        OUTPUT/{radeval,rexrank_references,rexrank_predictions}.csv of reports that have a real one beside them, and
        PAGE, the gallery page with the main numbers and with what request, image and report say of each finding
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.foreign_pairs import is_foreign, read_pairs, write_for_others
from evaluation.gallery import write_page
from evaluation.judges import ChexbertJudge, JudgeSettings, RulesJudge, image_judge, load_extractor, try_judge
from evaluation.metrics import positives
from evaluation.report import summary, write_evaluation
from evaluation.sections import (
    Images,
    Loading,
    Stopwatch,
    check_apart,
    clinical_efficacy,
    diversity,
    downstream_utility,
    image_quality,
    judge_rows,
    memorisation,
    nearest_by_labels,
    pairs,
    report_quality,
    report_texts,
    selection,
    text_judge_for,
    with_references,
)
from training.preflight import check_run
from utils import mimic_cxr
from utils.checkpoints import check_hold_out
from utils.constants import save_constants
from utils.devices import make_accelerator
from utils.errors import InputError, run, say
from utils.latents import latent_shape, load_vae
from utils.mimic_cxr import read_table, split_rows

# what is compared
REAL = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where REAL's reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
SYNTHETIC = "synthetic/clipUViT"  # a CXR tree, or somebody else's CSV of images and prompts
IMAGES_ROOT = ""  # the folder that such a CSV's image names start from; empty: the CSV's own
TRAIN = ""  # the tree whose split "train" trains the judges and is searched for copies; empty: REAL
SPLIT = "test"  # the split of REAL to compare with (train, validate or test)
SYNTHETIC_SPLIT = ""  # of SYNTHETIC (train, validate, test or empty; empty: all, or SPLIT if it is a real tree)
WRITTEN = ""  # a folder with reports.csv: reports written for REAL's images (the paper's evaluation); empty: none
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p19",)  # patient groups that count as the split "test", as in training
OUTPUT = "evaluation"  # folder of tables and plots (a folder to write)
PAGE = ""  # the gallery page (a file to write or empty; empty: index.html in the folder that holds SYNTHETIC)
PAGE_IMAGES = 5000  # synthetic images on the page at most (0 or more; 0: all)
# image quality
FEATURES = ("judge",)  # whose features (each judge, imagenet, inception, torchxrayvision or rad-dino)
NEIGHBOURS = 5  # of precision, recall, density and coverage (1 or more)
DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM (0 to 1000000)
IMAGE_SIZE = 256  # pixels at which images are compared, those of generated ones; the judge has its own (16 to 4096)
# clinical efficacy
CLASSIFIER = "judge"  # of images (judge or torchxrayvision)
TEXT_JUDGE = "tfidf"  # of reports (tfidf, rules or chexbert)
RADGRAPH = False  # RadGraph F1 of reports, by the package radgraph
BOOTSTRAP = 1000  # draws of images, and of pairs, for the 95 % intervals (1 to 1000000)
DOWNSTREAM = True  # train the judge on synthetic, and on real and synthetic images, and test it on real ones
# the image judge
JUDGE_PATIENTS = "all"  # training patients that teach it (all or second half; the latter taught no selector)
JUDGE_MODEL = "resnet18"  # any timm classifier, trained from random weights
JUDGE_IMAGE_SIZE = 128  # pixels (32 to 4096)
JUDGE_STEPS = 8000  # optimiser steps (1 to 1000000)
JUDGE_BATCH_SIZE = 64  # images an optimiser step (2 to 65536)
JUDGE_LEARNING_RATE = 2e-3  # of AdamW, the highest of one cycle (above 0, 1 at most)
# memorisation
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # whose vae; empty: the judge's features only
COPY_QUANTILE = 0.01  # nearer to a training image than this share of unseen real images: counted as a copy (0 to 1)
CLOSEST = 8  # closest pairs in the picture (1 to 100)
# running
CHECK = False  # True: only try what the run needs, and say what would end it
JUDGE_ONLY = False  # True: only train the image judge, for evaluations that later find it in CACHE_DIR
CACHE_DIR = "cache"  # judges, pixels and latents (a folder to write)
BATCH_SIZE = 64  # images at a time (1 to 65536)
SEED = 1234  # of draws, and of the judges' training (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images (0 to 256)

_BYTES_OF_OUTPUT = 100_000_000  # of tables and plots, or of a page with its images, at most


@dataclass(frozen=True)
class Tables:
    """The rows of the trees, unreadable images included."""

    real: pd.DataFrame  # to compare with
    synthetic: pd.DataFrame  # with a column source, see read_synthetic
    train: pd.DataFrame
    validation: pd.DataFrame  # sets the image judge's thresholds
    real_all: pd.DataFrame  # all splits of the real tree
    shown: object  # of the synthetic rows on the page: the root of their tree, or a table


def read_tables(real, reports_root, synthetic, images, train, split, synthetic_split, views, hold_out):
    """Reads the trees => Tables; InputError where a part is empty, or nothing can be compared."""
    real_all = read_table(real, reports_root, views=views, hold_out=hold_out)
    train_all = read_table(train, views=views, hold_out=hold_out) if train else real_all
    own_reports = reports_root if synthetic == real else ""
    rows = read_synthetic(synthetic, images, own_reports, views, hold_out, synthetic_split, split)
    tables = Tables(
        synthetic=rows,
        real=real_all.iloc[split_rows(real_all, split, real)].reset_index(drop=True),
        train=train_all.iloc[split_rows(train_all, "train", train or real)].reset_index(drop=True),
        validation=train_all[train_all["split"] == "validate"].reset_index(drop=True),
        real_all=real_all,
        shown=rows if "prompt" in rows else synthetic,
    )
    asked, present = (positives(table).any(axis=0) for table in (tables.synthetic, real_all))
    if not (asked & present).any():
        raise InputError(
            f"{real} and {synthetic} share no findings: none of the 14 is present in an image of each, so that nothing "
            "can be compared; are the labels of the synthetic tree what was asked for?"
        )
    return tables


def read_synthetic(root, images, reports_root, views, hold_out, split, split_of_real):
    """The synthetic rows, with a column source: the dicom_id of the image that the labels came from, or ""; and with
    score and agrees, what a selector said of it, or NaN.

    Of a real tree the rows of `split_of_real` are taken unless `split` says otherwise; each is its own source. Of somebody
    else's CSV all rows are taken; images: the folder that its image names start from.
    """
    if is_foreign(root):
        if split:
            raise InputError(
                f"SYNTHETIC_SPLIT is {split!r}, and {root}, which is no tree, has no splits: leave it empty"
            )
        return read_pairs(root, images).assign(score=np.nan, agrees=np.nan)
    provenance = Path(root) / mimic_cxr.PROVENANCE_FILE
    if not provenance.exists():
        table = read_table(root, reports_root, views, splits=(split or split_of_real,), hold_out=hold_out)
        return table.assign(source=table["dicom_id"], score=np.nan, agrees=np.nan)
    table = read_table(root, views=views, splits=(split,) if split else ())
    made = pd.read_csv(provenance, dtype=str, keep_default_na=False).set_index("dicom_id")
    for checkpoint in sorted({*made.get("checkpoint", ())} - {""}):  # where it is here still
        check_hold_out(hold_out, **{f"the checkpoint of {root},": checkpoint})
    made = made.reindex(index=table["dicom_id"], columns=["source", "score", "agrees"])  # older trees lack some
    numbers = {name: pd.to_numeric(made[name], errors="coerce").to_numpy() for name in ("score", "agrees")}
    return table.assign(source=made["source"].fillna("").to_numpy(), **numbers)


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


def load_foreign(features, classifier, text_judge, device):
    """What is not trained here: ({name: Extractor}, a text judge or None), loaded before anything else is done."""
    names = {*features, classifier} - {"judge"}
    extractors = {name: load_extractor(name, device) for name in sorted(names)}
    if text_judge == "chexbert":
        return extractors, ChexbertJudge(device)
    return extractors, RulesJudge() if text_judge == "rules" else None


def evaluate_reports(text_judge, tables, synthetic, train, written, real, radgraph, output, seed):
    """What evaluation.json says of the reports of synthetic images, and of those written for real ones.

    Both are also written into `output`, for RadEval and ReXrank.
    """
    reported, references = with_references(synthetic.table, tables.real_all)
    kinds = {("reports", "report_f1"): (reported, references, "synthetic")}
    if written:
        kinds["written_reports", "written_report_f1"] = *read_written(written, real.table), "written for real images"
    result = {"text_judge": text_judge.name}
    for names, (rows, references, title) in kinds.items():
        found = report_quality(text_judge, rows, references, train.table, title, radgraph, seed)
        result.update(zip(names, found))
        if synthetic.loading.accelerator.is_main_process:
            write_for_others(output, rows, references, "written_" if title != "synthetic" else "")
    result["texts"] = report_texts({title: rows for rows, _, title in kinds.values()}, train.table, seed)
    return result


def check(tables, settings, written, base_model, image_size, cache_dir, output, page, accelerator):
    """Tries what the evaluation needs, see training/preflight.py."""
    if written:
        read_written(written, tables.real)
    try_judge(settings, accelerator.device)
    images = pd.concat([tables.real, tables.synthetic, tables.train, tables.validation])["image_path"]
    an_image = settings.image_size**2  # one byte a pixel
    if base_model:
        an_image += 4 * math.prod(latent_shape(load_vae(base_model, accelerator.device), image_size))
    check_run(
        {cache_dir: len(images) * an_image, output: _BYTES_OF_OUTPUT, page: _BYTES_OF_OUTPUT}, images, accelerator
    )


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    extractors, ready = load_foreign(FEATURES, CLASSIFIER, TEXT_JUDGE, accelerator.device)
    stopwatch = Stopwatch()
    tables = read_tables(REAL, REPORTS_ROOT, SYNTHETIC, IMAGES_ROOT, TRAIN, SPLIT, SYNTHETIC_SPLIT, VIEWS, HOLD_OUT)
    check_apart(SYNTHETIC, tables.train.iloc[judge_rows(tables.train, JUDGE_PATIENTS)], TEXT_JUDGE, WRITTEN)
    settings = JudgeSettings(JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, JUDGE_BATCH_SIZE, JUDGE_LEARNING_RATE, SEED)
    output, page, name = Path(OUTPUT), Path(PAGE or Path(SYNTHETIC).parent / "index.html"), Path(SYNTHETIC).name
    if CHECK:
        return check(tables, settings, WRITTEN, BASE_MODEL, IMAGE_SIZE, CACHE_DIR, output, page, accelerator)
    loading = Loading(CACHE_DIR, IMAGE_SIZE, BATCH_SIZE, NUM_WORKERS, accelerator)
    real = Images(tables.real, f"{REAL}, {SPLIT}", JUDGE_IMAGE_SIZE, loading)
    synthetic = Images(tables.synthetic, SYNTHETIC, JUDGE_IMAGE_SIZE, loading)
    train = Images(tables.train, f"{TRAIN or REAL}, train", JUDGE_IMAGE_SIZE, loading)
    result = {
        "real": {"tree": REAL, "split": SPLIT, **real.count()},
        "synthetic": {"tree": SYNTHETIC, **synthetic.count()},
        "train": {"tree": TRAIN or REAL, **train.count()},
    }
    stopwatch.lap("trees")

    rows = judge_rows(train.table, JUDGE_PATIENTS)
    judge = image_judge(train.table.iloc[rows], tables.validation, settings, CACHE_DIR, accelerator, NUM_WORKERS)
    extractors["judge"] = judge
    stopwatch.lap("image judge")
    if JUDGE_ONLY:
        return say(f"the image judge is kept in {CACHE_DIR}")

    copies = nearest_by_labels(synthetic.table, train.table, SEED)
    seers = [extractors[name] for name in FEATURES]
    result["image_quality"] = image_quality(seers, real, synthetic, train, copies, NEIGHBOURS, SEED)
    result["diversity"] = diversity(synthetic, real, DIVERSITY_PAIRS, SEED)
    stopwatch.lap("image quality")

    classifier = extractors[CLASSIFIER]
    result["classifier"] = classifier.name
    result["auroc"] = clinical_efficacy(classifier, real, synthetic, train, copies, BOOTSTRAP, SEED)
    stopwatch.lap("clinical efficacy of images")

    if DOWNSTREAM:
        result["downstream"] = downstream_utility(judge, real, synthetic, train, rows, BOOTSTRAP)
        stopwatch.lap("downstream utility")

    text_judge, notes = text_judge_for(synthetic, train, SYNTHETIC, ready)
    if text_judge:
        result |= evaluate_reports(text_judge, tables, synthetic, train, WRITTEN, real, RADGRAPH, output, SEED)
        stopwatch.lap("reports")
    elif WRITTEN:
        notes.append(f"the reports in WRITTEN, {WRITTEN}, are not evaluated either: no text judge can read them")

    told, found = pairs(judge, text_judge, synthetic, real, train, BOOTSTRAP, SEED)
    chosen = selection(judge, synthetic)
    result |= found | ({"selection": chosen} if chosen else {})
    stopwatch.lap("pairs")

    result["memorisation"], nearest = memorisation(judge, real, synthetic, train, BASE_MODEL, COPY_QUANTILE)
    if not BASE_MODEL:
        notes.append("copies were not looked for in VAE latents: BASE_MODEL is empty")
    result["notes"] = notes
    stopwatch.lap("memorisation")

    if accelerator.is_main_process:  # the others of a launch have helped with the cache
        text = write_evaluation(output, result, stopwatch.seconds, told, nearest, synthetic, train, CLOSEST, IMAGE_SIZE)
        save_constants(output, constants)
        write_page(page, {name: tables.shown}, tables.train, f"{name}, evaluated", told, summary(result), PAGE_IMAGES)
        stopwatch.lap("pictures and page")
        say(f"{text}\nthe evaluation: {output / 'evaluation.md'}; the page: {page.resolve()}")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
