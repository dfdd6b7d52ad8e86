"""Evaluates image-report pairs: a synthetic CXR tree against a real one, beside baselines that need no generator.

    python evaluate_pairs.py --REAL /data/mimic-cxr-jpg --SYNTHETIC synthetic/clipUViT --OUTPUT runs/evaluation

Reads:  REAL (its split SPLIT is compared with; its split "train" trains the judges unless TRAIN is given), SYNTHETIC
        (a CXR tree, a selected one with its floor.csv, or a CSV such as CheXGenBench's prompt_INFO.csv), WRITTEN
        (reports of real images), TWINS, CACHE_DIR
Writes: OUTPUT/{evaluation.json,evaluation.md,agreement.csv.gz,constants.json}, OUTPUT/closest.png,
        OUTPUT/radeval.csv of reports with a real one beside them, and the gallery page <SYNTHETIC>.html with the main
        numbers and each pair's findings (in OUTPUT where SYNTHETIC's folder is read-only)
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import os
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import baselines, counterfactuals, detail_agreement, judges, sections
from evaluation.foreign_pairs import is_foreign, read_pairs
from evaluation.gallery import write_page
from evaluation.images import Images, ImageSets, Loading
from evaluation.judges import JudgeSettings
from evaluation.metrics import positives
from evaluation.report import PAGE_IMAGES, Stopwatch, summary, write_evaluation
from utils.checkpoints import check_hold_out_of_tree
from utils.constants import save_constants
from utils.csv_files import write_csv
from utils.devices import make_accelerator
from utils.errors import InputError, run, say, writing
from utils.mimic_cxr import PROVENANCE_FILE, read_table, read_twins, split_rows

# what is compared
REAL = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where REAL's reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
SYNTHETIC = "synthetic/clipUViT"  # a CXR tree, or another project's CSV of images and prompts
TRAIN = ""  # the tree whose split "train" trains the judges and is searched for copies; empty: REAL
SPLIT = "test"  # the split of REAL to compare with (train, validate or test)
WRITTEN = ""  # a folder with reports.csv: reports written for REAL's images (the paper's evaluation); empty: none
TWINS = ""  # a tree of exact twins (python -m phantom), for the counterfactuals of drawn films; empty: none
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p19",)  # patient groups that count as the split "test", as in training
OUTPUT = "runs/evaluation"  # tables and plots (a folder to write)
# image quality
FEATURES = ("judge",)  # whose features (each judge, imagenet, inception, torchxrayvision or rad-dino)
IMAGE_SIZE = 256  # pixels at which images are compared, those of generated ones; the judge has its own (16 to 4096)
# clinical efficacy
CLASSIFIER = "judge"  # of images (judge or torchxrayvision)
TEXT_JUDGE = "tfidf"  # of reports (tfidf, rules or chexbert)
# the image judge
JUDGE_PATIENTS = "all"  # training patients of the judge (all or second half; the latter trained no selector)
JUDGE_MODEL = "resnet18"  # any timm classifier, trained from random weights
JUDGE_IMAGE_SIZE = 128  # pixels (32 to 4096)
JUDGE_STEPS = 8000  # optimiser steps (1 to 1000000)
JUDGE_LEARNING_RATE = 2e-3  # of AdamW, the peak of one cycle (above 0, 1 at most)
# running
CACHE_DIR = "cache"  # judges and pixels (a folder to write)
BATCH_SIZE = 64  # images at a time (1 to 65536)
SEED = 1234  # of draws, and of the judges' training (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


def read_tables(
    real: str, reports_root: str, synthetic: str, train: str, split: str, views: tuple, hold_out: tuple
) -> dict[str, pd.DataFrame]:
    """The rows of the trees, unreadable images included; InputError where a part is empty, or no finding is in both.

    real: to compare with; real_all: of all splits; synthetic: all of a synthetic tree or a CSV, of a real tree those of
    the split; train; validation: sets the image judge's thresholds, and is of half the patients where they are
    compared. Further columns of synthetic: source, the dicom_id of the image that the labels came from, or "" (a real
    image is its own), and the prompt of a synthetic image.
    """
    real_all = read_table(real, reports_root, views=views, hold_out=hold_out)
    train_all = read_table(train, views=views, hold_out=hold_out) if train else real_all
    validation = train_all[train_all["split"] == "validate"].reset_index(drop=True)
    if split == "validate" and train_all is real_all:
        validation = validation[judges.first_half(validation)].reset_index(drop=True)
    if is_foreign(synthetic):
        evaluated = read_pairs(synthetic)
    elif not (provenance := Path(synthetic) / PROVENANCE_FILE).exists():
        evaluated = read_table(synthetic, reports_root if synthetic == real else "", views, (split,), hold_out)
        evaluated["source"] = evaluated["dicom_id"]
    else:
        evaluated = read_table(synthetic, views=views)
        made = pd.read_csv(provenance, dtype=str, keep_default_na=False).set_index("dicom_id")
        check_hold_out_of_tree(hold_out, synthetic, made.get("checkpoint", ()))
        made = made.reindex(evaluated["dicom_id"], columns=["source", "prompt"], fill_value="")
        evaluated[["source", "prompt"]] = made.to_numpy()
    tables = {
        "real": real_all.iloc[split_rows(real_all, split, real)].reset_index(drop=True),
        "synthetic": evaluated,
        "train": train_all.iloc[split_rows(train_all, "train", train or real)].reset_index(drop=True),
        "validation": validation,
        "real_all": real_all,
    }
    asked, present = (positives(table).any(axis=0) for table in (tables["synthetic"], real_all))
    if not (asked & present).any():
        why = "none of the 14 is present in an image of each, so that nothing can be compared"
        doubt = "are the labels of the synthetic tree what was asked for?"
        raise InputError(f"{real} and {synthetic} share no findings: {why}; {doubt}")
    return tables


def read_written(folder: str, table: pd.DataFrame) -> pd.DataFrame:
    """`sections.read_written` for the rows of a table; InputError for fewer than two reports."""
    path, written = Path(folder) / "reports.csv", sections.read_written(folder)
    if written is None:
        raise InputError(f"{path} is not there: set WRITTEN to a folder of written reports")
    written = written[written.index.isin(table["dicom_id"]) & (written["report"] != "")]
    if len(written) < 2:
        counts = f"{len(written)} of the {len(table)} real images compared"
        raise InputError(f"{path} has reports for {counts}; 2 or more are needed")
    return written


def load_pretrained(features: tuple, classifier: str, text_judge: str, device) -> tuple:
    """What is not trained here: ({name: Extractor}, a text judge, or None: tfidf is trained on training reports)."""
    extractors = {name: judges.load_extractor(name, device) for name in sorted({*features, classifier} - {"judge"})}
    if text_judge == "chexbert":
        return extractors, judges.ChexbertJudge(device)
    return extractors, judges.RulesJudge() if text_judge == "rules" else None


def image_sets(
    tables: dict, judge_table: pd.DataFrame, names: dict[str, str], judge_size: int, loading: Loading, seed: int
) -> ImageSets:
    """The images of the evaluation; names: of the trees, for messages; judge_table: the rows that train the judge."""
    kinds = ("real", "synthetic", "train")
    real, synthetic, train = (Images(tables[kind], names[kind], judge_size, loading) for kind in kinds)
    known = {*tables["real"]["subject_id"], *judge_table["subject_id"]}
    unseen = tables["real_all"][~tables["real_all"]["subject_id"].isin(known)].reset_index(drop=True)
    unseen = Images(unseen, names["unseen"], judge_size, loading) if len(unseen) > 1 else None
    ceiling = np.flatnonzero(~real.table["subject_id"].isin(tables["validation"]["subject_id"]))
    copies = baselines.nearest_by_labels(synthetic.table, train.table, seed)
    floor = baselines.selected_floor(names["synthetic"], synthetic.table, train.table)
    return ImageSets(real, synthetic, train, copies=copies, seed=seed, unseen=unseen, ceiling=ceiling, floor=floor)


def page_of(synthetic: str, output: Path) -> Path:
    """The gallery page: beside the synthetic tree or CSV, or in the output folder where that place is read-only."""
    path = Path(synthetic)
    folder = path.parent if os.access(path.parent, os.W_OK) else output
    return folder / f"{path.stem if path.is_file() else path.name}.html"


def evaluate_reports(
    text_judge, sets: ImageSets, real_all: pd.DataFrame, written: dict[str, pd.DataFrame], output: Path
) -> dict:
    """The parts of evaluation.json about reports; those with a real one beside them are also written for RadEval.

    written: tables of `sections.read_written`, "" of the synthetic tree (or None), "written_" of real images, if any.
    """
    all_reports = {"": sections.synthetic_reports(sets, real_all, written.get(""))}  # prefix of names => Reports
    if "written_" in written:
        all_reports["written_"] = sections.written_reports(sets.real, written["written_"])
    constant = baselines.constant_normal_report(sets.train.table)
    result = {"text_judge": text_judge.name, "constant_report": constant}
    for prefix, reports in all_reports.items():
        parts = sections.report_quality(text_judge, reports, sets.train.table, constant, sets.seed)
        result |= {f"{prefix}{name}": part for name, part in zip(("reports", "report_f1"), parts)}
        pairs = reports.table[["study_id"]].assign(reference=reports.references, hypothesis=reports.table["report"])
        if sets.real.loading.accelerator.is_main_process:
            write_csv(output / f"{prefix}radeval.csv", pairs[pairs["reference"] != ""], "the reports for RadEval")
    result["texts"] = sections.report_texts(list(all_reports.values()), sets.train.table, sets.seed)
    return result


def main() -> None:
    constants = override_constants(globals())
    accelerator, stopwatch = make_accelerator(DEVICE, "no"), Stopwatch()
    output, page, name = Path(OUTPUT), page_of(SYNTHETIC, Path(OUTPUT)), Path(SYNTHETIC).name
    settings = JudgeSettings(JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, learning_rate=JUDGE_LEARNING_RATE, seed=SEED)

    # what is quick and can fail comes first
    tables = read_tables(REAL, REPORTS_ROOT, SYNTHETIC, TRAIN, SPLIT, VIEWS, HOLD_OUT)
    judge_rows = sections.judge_rows(tables["train"], JUDGE_PATIENTS)
    sections.check_apart(SYNTHETIC, tables["train"].iloc[judge_rows], TEXT_JUDGE, WRITTEN)
    written = {"": sections.read_written(SYNTHETIC)}
    if WRITTEN:
        written["written_"] = read_written(WRITTEN, tables["real"])
    if TWINS:
        counterfactuals.read_exact(TWINS, read_twins(SYNTHETIC))
    extractors, text_judge = load_pretrained(FEATURES, CLASSIFIER, TEXT_JUDGE, accelerator.device)
    judges.try_judge(settings, accelerator.device)
    with writing("the evaluation", output):
        output.mkdir(parents=True, exist_ok=True)

    names = {"real": f"{REAL}, {SPLIT}", "synthetic": SYNTHETIC, "train": f"{TRAIN or REAL}, train", "unseen": REAL}
    loading = Loading(CACHE_DIR, IMAGE_SIZE, BATCH_SIZE, accelerator)
    sets = image_sets(tables, tables["train"].iloc[judge_rows], names, JUDGE_IMAGE_SIZE, loading, SEED)
    result = {
        "selected": baselines.describe_selection(SYNTHETIC),
        "real": {"tree": REAL, "split": SPLIT, **sets.real.count()},
        "synthetic": {"tree": SYNTHETIC, **sets.synthetic.count()},
        "train": {"tree": TRAIN or REAL, **sets.train.count()},
    }
    if sets.unseen:
        result["unseen"] = {"N": len(sets.unseen), "splits": sets.unseen.table["split"].value_counts().to_dict()}
    stopwatch.lap("trees")

    judge_rows = sections.judge_rows(sets.train.table, JUDGE_PATIENTS)
    judged = sets.train.table.iloc[judge_rows]
    judge = extractors["judge"] = judges.image_judge(judged, tables["validation"], settings, CACHE_DIR, accelerator)
    stopwatch.lap("image judge")

    result["image_quality"] = sections.image_quality(sets, [extractors[name] for name in FEATURES])
    result["diversity"] = sections.diversity(sets)
    stopwatch.lap("image quality")

    result["classifier"] = extractors[CLASSIFIER].name
    result["auroc"] = sections.clinical_efficacy(sets, extractors[CLASSIFIER])
    stopwatch.lap("clinical efficacy of images")

    text_judge, notes = sections.text_judge_for(sets, SYNTHETIC, text_judge)
    if text_judge:
        result |= evaluate_reports(text_judge, sets, tables["real_all"], written, output)
        stopwatch.lap("reports")
    elif WRITTEN:
        notes.append(f"the reports in WRITTEN, {WRITTEN}, are not evaluated either: no text judge can read them")

    pair_findings, agreement = sections.pairs(sets, judge, text_judge, result.get("constant_report", ""))
    result |= agreement | detail_agreement.evaluate(sets, judge, text_judge, judge_rows, written.get("written_"))
    result |= counterfactuals.evaluate(sets, judge, text_judge, SYNTHETIC, TWINS)
    stopwatch.lap("pairs")

    result["memorisation"], nearest = sections.memorisation(sets)
    stopwatch.lap("memorisation")
    result |= {"notes": notes, "seconds": stopwatch.seconds}

    if accelerator.is_main_process:  # the others of a launch have helped with the cache
        text = write_evaluation(output, result, sets, pair_findings, nearest)
        save_constants(output, constants)
        made = {name: tables["synthetic"] if is_foreign(SYNTHETIC) else SYNTHETIC}
        write_page(page, made, tables["train"], f"{name}, evaluated", pair_findings, summary(result), PAGE_IMAGES)
        stopwatch.lap("pictures and page")
        say(f"{text}\nthe evaluation: {output / 'evaluation.md'}; the page: {page.resolve()}")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
