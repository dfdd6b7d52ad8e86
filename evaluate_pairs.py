"""Evaluates image-report pairs: a synthetic CXR tree against a real one, beside baselines that need no generator.

    python evaluate_pairs.py --REAL /data/mimic-cxr-jpg --SYNTHETIC synthetic/clipUViT --OUTPUT runs/evaluation

Reads:  REAL (its split SPLIT is compared with; its split "train" trains the judges unless TRAIN is given), SYNTHETIC
        (a CXR tree, or a CSV such as CheXGenBench's prompt_INFO.csv), WRITTEN (reports of real images), BASE_MODEL (the
        VAE in whose latents copies are searched), CACHE_DIR
Writes: OUTPUT/{evaluation.json,evaluation.md,agreement.csv.gz,constants.json}, OUTPUT/{auroc,memorisation,closest}.png,
        OUTPUT/{radeval,rexrank_references,rexrank_predictions}.csv of reports that have a real one beside them, and the
        gallery page <SYNTHETIC>.html with the main numbers and each pair's findings (in OUTPUT where SYNTHETIC's folder
        is read-only)
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import detail_agreement, sections
from evaluation.foreign_pairs import is_foreign, read_pairs, write_for_others
from evaluation.gallery import write_page
from evaluation.images import THREADS, Images, ImageSets, Loading
from evaluation.judges import ChexbertJudge, JudgeSettings, RulesJudge, image_judge, load_extractor, try_judge
from evaluation.metrics import positives
from evaluation.report import PAGE_IMAGES, Stopwatch, summary, write_evaluation
from utils import mimic_cxr
from utils.checkpoints import check_hold_out
from utils.constants import save_constants
from utils.devices import make_accelerator
from utils.errors import InputError, run, say, writing
from utils.latents import load_vae
from utils.mimic_cxr import read_table, split_rows

# what is compared
REAL = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where REAL's reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
SYNTHETIC = "synthetic/clipUViT"  # a CXR tree, or another project's CSV of images and prompts
TRAIN = ""  # the tree whose split "train" trains the judges and is searched for copies; empty: REAL
SPLIT = "test"  # the split of REAL to compare with (train, validate or test)
WRITTEN = ""  # a folder with reports.csv: reports written for REAL's images (the paper's evaluation); empty: none
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p19",)  # patient groups that count as the split "test", as in training
OUTPUT = "runs/evaluation"  # tables and plots (a folder to write)
# image quality
FEATURES = ("judge",)  # whose features (each judge, imagenet, inception, torchxrayvision or rad-dino)
IMAGE_SIZE = 256  # pixels at which images are compared, those of generated ones; the judge has its own (16 to 4096)
# clinical efficacy
CLASSIFIER = "judge"  # of images (judge or torchxrayvision)
TEXT_JUDGE = "tfidf"  # of reports (tfidf, rules or chexbert)
RADGRAPH = False  # RadGraph F1 of reports, by the package radgraph
DOWNSTREAM = True  # train the judge on synthetic, and on real and synthetic images, and test it on real ones
# the image judge
JUDGE_PATIENTS = "all"  # training patients of the judge (all or second half; the latter trained no selector)
JUDGE_MODEL = "resnet18"  # any timm classifier, trained from random weights
JUDGE_IMAGE_SIZE = 128  # pixels (32 to 4096)
JUDGE_STEPS = 8000  # optimiser steps (1 to 1000000)
JUDGE_LEARNING_RATE = 2e-3  # of AdamW, the peak of one cycle (above 0, 1 at most)
# memorisation
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # whose VAE; empty: copies are searched in the judge's features only
# running
CACHE_DIR = "cache"  # judges, pixels and latents (a folder to write)
BATCH_SIZE = 64  # images at a time (1 to 65536)
SEED = 1234  # of draws, and of the judges' training (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


@dataclass(frozen=True)
class Tables:
    """The rows of the trees, unreadable images included."""

    real: pd.DataFrame  # to compare with
    synthetic: pd.DataFrame  # see read_synthetic
    train: pd.DataFrame
    validation: pd.DataFrame  # sets the image judge's thresholds
    real_all: pd.DataFrame  # all splits of the real tree


def read_tables(
    real: str, reports_root: str, synthetic: str, train: str, split: str, views: tuple, hold_out: tuple
) -> Tables:
    """Reads the trees; InputError where a part is empty, or no finding is present in both trees."""
    real_all = read_table(real, reports_root, views=views, hold_out=hold_out)
    train_all = read_table(train, views=views, hold_out=hold_out) if train else real_all
    tables = Tables(
        real=real_all.iloc[split_rows(real_all, split, real)].reset_index(drop=True),
        synthetic=read_synthetic(synthetic, reports_root if synthetic == real else "", views, hold_out, split),
        train=train_all.iloc[split_rows(train_all, "train", train or real)].reset_index(drop=True),
        validation=train_all[train_all["split"] == "validate"].reset_index(drop=True),
        real_all=real_all,
    )
    asked, present = (positives(table).any(axis=0) for table in (tables.synthetic, real_all))
    if not (asked & present).any():
        raise InputError(
            f"{real} and {synthetic} share no findings: none of the 14 is present in an image of each, so that nothing "
            "can be compared; are the labels of the synthetic tree what was asked for?"
        )
    return tables


def read_synthetic(root: str, reports_root: str, views: tuple, hold_out: tuple, split: str) -> pd.DataFrame:
    """The synthetic rows: all of a synthetic tree or a CSV; of a real tree those of a split.

    Further columns: source, the dicom_id of the image that the labels came from, or "" (a real image is its own); score
    and agrees of a selector, or NaN.
    """
    if is_foreign(root):
        return read_pairs(root).assign(score=np.nan, agrees=np.nan)
    provenance = Path(root) / mimic_cxr.PROVENANCE_FILE
    if not provenance.exists():
        table = read_table(root, reports_root, views, splits=(split,), hold_out=hold_out)
        return table.assign(source=table["dicom_id"], score=np.nan, agrees=np.nan)
    table = read_table(root, views=views)
    made = pd.read_csv(provenance, dtype=str, keep_default_na=False).set_index("dicom_id")
    for checkpoint in sorted({*made.get("checkpoint", ())} - {""}):
        check_hold_out(hold_out, **{f"the checkpoint of {root},": checkpoint})
    made = made.reindex(index=table["dicom_id"], columns=["source", "score", "agrees"])  # older trees lack some
    score, agrees = (pd.to_numeric(made[name], errors="coerce").to_numpy() for name in ("score", "agrees"))
    return table.assign(source=made["source"].fillna("").to_numpy(), score=score, agrees=agrees)


def read_written(folder: str, table: pd.DataFrame) -> dict[str, str]:
    """{dicom_id: its report in <folder>/reports.csv} for the rows of a table; InputError for fewer than two."""
    path = Path(folder) / "reports.csv"
    try:
        written = pd.read_csv(path, dtype=str, keep_default_na=False).drop_duplicates("dicom_id")
        written = written[written["dicom_id"].isin(table["dicom_id"]) & (written["report"] != "")]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as written reports (columns dicom_id and report): {error}") from error
    if len(written) < 2:
        raise InputError(
            f"{path} has reports for {len(written)} of the {len(table)} real images compared; 2 or more are needed"
        )
    return dict(zip(written["dicom_id"], written["report"]))


def load_pretrained(features: tuple, classifier: str, text_judge: str, base_model: str, device) -> tuple:
    """What is not trained here: ({name: Extractor}, a text judge or None, a VAE or None)."""
    extractors = {name: load_extractor(name, device) for name in sorted({*features, classifier} - {"judge"})}
    judge = None  # tfidf is trained on the training reports
    if text_judge == "chexbert":
        judge = ChexbertJudge(device)
    elif text_judge == "rules":
        judge = RulesJudge()
    return extractors, judge, load_vae(base_model, device) if base_model else None


def page_of(synthetic: str, output: Path) -> Path:
    """The gallery page: beside the synthetic tree or CSV, or in the output folder where that place is read-only."""
    path = Path(synthetic)
    folder = path.parent if os.access(path.parent, os.W_OK) else output
    return folder / f"{path.stem if path.is_file() else path.name}.html"


def evaluate_reports(
    text_judge, sets: ImageSets, real_all: pd.DataFrame, written: dict, radgraph: bool, output: Path
) -> dict:
    """The parts of evaluation.json about reports; the reports are also written for RadEval and ReXrank.

    written: {dicom_id: a report written for a real image}, may be empty.
    """
    all_reports = {"": sections.synthetic_reports(sets.synthetic, real_all)}  # prefix of names => Reports
    if written:
        all_reports["written_"] = sections.written_reports(sets.real, written)
    result = {"text_judge": text_judge.name}
    for prefix, reports in all_reports.items():
        rows, f1_tables = sections.report_quality(text_judge, reports, sets.train.table, radgraph, sets.seed)
        result |= {f"{prefix}reports": rows, f"{prefix}report_f1": f1_tables}
        if sets.real.loading.accelerator.is_main_process:
            write_for_others(output, reports.table, reports.references, prefix)
    result["texts"] = sections.report_texts(list(all_reports.values()), sets.train.table, sets.seed)
    return result


def main() -> None:
    constants = override_constants(globals())
    accelerator, stopwatch = make_accelerator(DEVICE, "no"), Stopwatch()
    output, page, name = Path(OUTPUT), page_of(SYNTHETIC, Path(OUTPUT)), Path(SYNTHETIC).name
    settings = JudgeSettings(JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, learning_rate=JUDGE_LEARNING_RATE, seed=SEED)

    # what is quick and can fail comes first
    tables = read_tables(REAL, REPORTS_ROOT, SYNTHETIC, TRAIN, SPLIT, VIEWS, HOLD_OUT)
    judge_rows = sections.judge_rows(tables.train, JUDGE_PATIENTS)
    sections.check_apart(SYNTHETIC, tables.train.iloc[judge_rows], TEXT_JUDGE, WRITTEN)
    written = read_written(WRITTEN, tables.real) if WRITTEN else {}
    extractors, text_judge, vae = load_pretrained(FEATURES, CLASSIFIER, TEXT_JUDGE, BASE_MODEL, accelerator.device)
    try_judge(settings, accelerator.device)
    with writing("the evaluation", output):
        output.mkdir(parents=True, exist_ok=True)

    loading = Loading(CACHE_DIR, IMAGE_SIZE, BATCH_SIZE, accelerator)
    real = Images(tables.real, f"{REAL}, {SPLIT}", JUDGE_IMAGE_SIZE, loading)
    synthetic = Images(tables.synthetic, SYNTHETIC, JUDGE_IMAGE_SIZE, loading)
    train = Images(tables.train, f"{TRAIN or REAL}, train", JUDGE_IMAGE_SIZE, loading)
    sets = ImageSets(real, synthetic, train, sections.nearest_by_labels(synthetic.table, train.table, SEED), SEED)
    result = {"real": {"tree": REAL, "split": SPLIT, **real.count()}}
    result["synthetic"] = {"tree": SYNTHETIC, **synthetic.count()}
    result["train"] = {"tree": TRAIN or REAL, **train.count()}
    stopwatch.lap("trees")

    judge_rows = sections.judge_rows(train.table, JUDGE_PATIENTS)
    judge = image_judge(train.table.iloc[judge_rows], tables.validation, settings, CACHE_DIR, accelerator, THREADS)
    extractors["judge"] = judge
    stopwatch.lap("image judge")

    result["image_quality"] = sections.image_quality(sets, [extractors[name] for name in FEATURES])
    result["diversity"] = sections.diversity(sets)
    stopwatch.lap("image quality")

    result["classifier"] = extractors[CLASSIFIER].name
    result["auroc"] = sections.clinical_efficacy(sets, extractors[CLASSIFIER])
    stopwatch.lap("clinical efficacy of images")

    if DOWNSTREAM:
        result["downstream"] = sections.downstream_utility(sets, judge, judge_rows)
        stopwatch.lap("downstream utility")

    text_judge, notes = sections.text_judge_for(sets, SYNTHETIC, text_judge)
    if text_judge:
        result |= evaluate_reports(text_judge, sets, tables.real_all, written, RADGRAPH, output)
        stopwatch.lap("reports")
    elif WRITTEN:
        notes.append(f"the reports in WRITTEN, {WRITTEN}, are not evaluated either: no text judge can read them")

    pair_findings, agreement = sections.pairs(sets, judge, text_judge)
    result |= agreement | detail_agreement.evaluate(sets, judge, text_judge, judge_rows, written, WRITTEN)
    if synthetic.table["score"].notna().any():
        result["selection"] = sections.selection(sets, judge)
    stopwatch.lap("pairs")

    result["memorisation"], spaces = sections.memorisation(sets, judge, vae)
    if not BASE_MODEL:
        notes.append("copies were not looked for in VAE latents: BASE_MODEL is empty")
    stopwatch.lap("memorisation")
    result |= {"notes": notes, "seconds": stopwatch.seconds}

    if accelerator.is_main_process:  # the others of a launch have helped with the cache
        text = write_evaluation(output, result, sets, pair_findings, spaces)
        save_constants(output, constants)
        shown = tables.synthetic if is_foreign(SYNTHETIC) else SYNTHETIC
        write_page(page, {name: shown}, tables.train, f"{name}, evaluated", pair_findings, summary(result), PAGE_IMAGES)
        stopwatch.lap("pictures and page")
        say(f"{text}\nthe evaluation: {output / 'evaluation.md'}; the page: {page.resolve()}")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
