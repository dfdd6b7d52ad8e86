"""Selects pairs: of several images a request, with their reports or without, those that agree with it by a judge.

    python select_pairs.py --SYNTHETIC synthetic/clipUViT --OUTPUT_ROOT synthetic/selected --BY pair
    python select_pairs.py --SYNTHETIC others/prompt_INFO.csv --OUTPUT_ROOT synthetic/others --KEEP agreeing

Reads:  SYNTHETIC (a finished synthetic tree with several images a request, or another project's CSV of images and
        prompts), DATA_ROOT (one half of its training patients trains the judge, the others are the floor), CACHE_DIR
Writes: OUTPUT_ROOT, a synthetic tree of the pairs that are kept, whose images and latents are copied as they are;
        OUTPUT_ROOT/synthetic.csv, their rows with the columns `score` and `agrees`;
        OUTPUT_ROOT/selector.csv, the patients of the judge: an evaluation has to use others (JUDGE_PATIENTS);
        OUTPUT_ROOT/floor.csv, for a kept pair (`dicom_id`) a training pair (`floor_dicom_id`) that was selected for the
        same request in the same way, among as many random ones; OUTPUT_ROOT/selection.json, what the selection cost
Prints: how many candidates agree, and how many were drawn for a pair that is kept
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import copies, judges
from evaluation.baselines import FLOOR_FILE, SELECTION_FILE
from evaluation.foreign_pairs import is_foreign, read_pairs
from evaluation.images import Images, Loading
from evaluation.selection import keep_candidates, score_candidates
from sampling.data_set import holds_films, save_data_set
from sampling.plan import PLAN_FILE
from utils.checkpoints import check_hold_out_of_tree
from utils.constants import save_constants
from utils.csv_files import csv_header, read_csv, write_csv
from utils.devices import make_accelerator
from utils.errors import InputError, replacing, run, say, write_whole, writing
from utils.findings import FINDINGS
from utils.folders import SYNTHETIC_TREE, WRITTEN_REPORTS, making, read_manifest
from utils.mimic_cxr import PROVENANCE_FILE, image_files, read_table, split_rows, table_fingerprint, write_tree
from utils.report_text import report_sections
from utils.seeds import keyed_seed

# what to select from, and where to write
SYNTHETIC = "synthetic/clipUViT"  # a finished synthetic tree, or another project's CSV of images and prompts
OUTPUT_ROOT = "synthetic/selected"  # the tree of the pairs that are kept (a folder to write)
DATA_ROOT = "data/mimic-cxr-jpg"  # the real CXR tree, or the authors' CSV: its training patients, those of the sampler
REPORTS_ROOT = ""  # where its reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition of the real images; () for all
HOLD_OUT = ("p19",)  # patient groups that count as the split "test", as in training
# how to select
BY = "image"  # what has to agree with the request; pair: the image and its report (image or pair)
DROP = ""  # candidates that are left out; copies: of training images by their pixels (empty or copies)
KEEP = "first"  # one a request, the first that agrees, else the best; or all that agree (first or agreeing)
# the judge
JUDGE_MODEL = "resnet18"  # any timm classifier, trained from random weights
JUDGE_IMAGE_SIZE = 128  # pixels (32 to 4096)
JUDGE_STEPS = 8000  # optimiser steps (1 to 1000000)
JUDGE_LEARNING_RATE = 2e-3  # of AdamW, the peak of one cycle (above 0, 1 at most)
# running
CACHE_DIR = "cache"  # judges and pixels (a folder to write)
BATCH_SIZE = 64  # images at a time (1 to 65536)
SEED = 1234  # of the judge's training and of the floor's draws (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


def read_candidates(synthetic: str, by: str, hold_out: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
    """=> (the table of the candidates, with `request`, the number of each one's request; their rows of synthetic.csv).

    Images of one source, prompt and label vector are of one request. InputError for a tree that is not synthetic, not
    finished, or selected already, and without a report where `by` is "pair".
    """
    if is_foreign(synthetic):
        table = read_pairs(synthetic)
        made = table[["dicom_id", "source", "prompt"]].assign(seed="", reference_dicom_id="")
    else:
        tree = Path(synthetic)
        path, plan = tree / PROVENANCE_FILE, tree / PLAN_FILE
        if not path.exists():
            raise InputError(f"{tree} has no {PROVENANCE_FILE}, so it is no synthetic tree: set SYNTHETIC to one")
        if judges.selector_patients(tree):
            raise InputError(f"the pairs of {tree} are selected already: set SYNTHETIC to the tree that they are from")
        if holds_films(read_manifest(tree)):
            raise InputError(f"{tree} holds films and their counterfactual twins, which a selection would part")
        made = _read_texts(path, "source", "prompt")
        check_hold_out_of_tree(hold_out, tree, made.get("checkpoint", ()))
        table = read_table(tree)
        table = table[table["dicom_id"].isin(made["dicom_id"])].reset_index(drop=True)
        planned = {*_read_texts(plan)["dicom_id"]} if plan.exists() else set()
        if missing := len(planned - {*table["dicom_id"]}):
            of = f"{missing} of its {len(planned)} images are missing"
            raise InputError(f"{tree} is not finished, {of}: sample it first")
    if by == "pair" and not (table["report"] != "").any():
        raise InputError(f"{synthetic} has no reports: write them by sample_prior_model.py first, or set BY to image")
    made = made.set_index("dicom_id").loc[table["dicom_id"]].reset_index()
    keys = pd.concat([made[["source", "prompt"]], table[[*FINDINGS]]], axis=1)
    return table.assign(request=keys.groupby(list(keys), sort=False).ngroup()), made


def _read_texts(path, *columns):
    """All columns of a CSV as text; it has to have dicom_id and these ones."""
    columns = sorted({*csv_header(path), "dicom_id", *columns})
    return read_csv(path, columns, texts=columns)


def drop_copies(candidates: pd.DataFrame, real: pd.DataFrame, size: int, loading: Loading) -> pd.DataFrame:
    """The candidates that are no copies (evaluation/copies.py) of training images in `real`; prints how many are.

    The other rows of `real` show how near images come that nobody trained on; InputError where there are none.
    """
    trained = real["split"] == "train"
    if trained.all():
        raise InputError("all rows of DATA_ROOT are training rows, so that nothing shows what a copy is: unset DROP")
    named = {"the candidates": candidates, "the training images": real[trained], "other real images": real[~trained]}
    images, train, unseen = (Images(rows, name, size, loading) for name, rows in named.items())
    copied = copies.search(images.pixels(), train)[0] < copies.limit_of(unseen, train)
    say(f"copies: {copied.sum()} of {len(images)} candidates are left out, since they are copies of training images")
    return images.table[~copied].reset_index(drop=True)


def draw_floor(candidates: pd.DataFrame, pool: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As many random rows of the pool for each request as it has candidates, with its `request` and label vector."""
    floor = []
    for _, of_request in candidates.groupby("request"):
        rng = np.random.default_rng(keyed_seed(seed, "floor", of_request["dicom_id"].iloc[0]))
        rows = rng.choice(len(pool), min(len(of_request), len(pool)), replace=False)
        drawn = pool[["dicom_id", "image_path", "report"]].iloc[rows]
        floor.append(drawn.assign(**of_request[["request", *FINDINGS]].iloc[0]))
    return pd.concat(floor, ignore_index=True)


def select(rows: pd.DataFrame, judge: judges.Judge, name: str, by: str, keep: str, loading: Loading) -> pd.DataFrame:
    """The rows whose images can be read, with `score`, `agrees` and `kept`; name: of their tree, for messages."""
    images = Images(rows.drop_duplicates("dicom_id"), name, judge.image_size, loading)
    place = dict(zip(images.table["dicom_id"], range(len(images))))
    rows = rows[rows["dicom_id"].isin(place)].reset_index(drop=True)
    probabilities = images.encode(judge)[1][rows["dicom_id"].map(place)]
    reports = rows["report"].tolist() if by == "pair" else None
    scores, agrees = score_candidates(judge, probabilities, rows[[*FINDINGS]].to_numpy(), reports)
    kept = keep_candidates(rows["request"].to_numpy(), scores, agrees, keep)
    return rows.assign(score=scores.round(6), agrees=agrees.astype(int), kept=kept)


def cost(selected: pd.DataFrame) -> dict:
    """What `select` kept of its candidates, in numbers."""
    kept = selected[selected["kept"]]
    return {
        "requests": selected["request"].nunique(), "requests with a kept pair": kept["request"].nunique(),
        "candidates": len(selected), "share that agrees": float(selected["agrees"].mean()),
        "kept": len(kept), "share of the kept that agrees": float(kept["agrees"].mean()),
        "candidates a kept pair": len(selected) / max(1, len(kept)),
    }  # fmt: skip


def write_kept(root: Path, synthetic: Path, kept: pd.DataFrame, made: pd.DataFrame) -> None:
    """Writes the tree of the kept candidates; images and latents keep their bytes."""
    with writing("the selected pairs", root):
        for row, image in zip(kept.itertuples(), image_files(root, kept)):
            latents = Path("latents", f"{row.dicom_id}.npy")
            for source, target in ((row.image_path, image), (synthetic / latents, root / latents)):
                if Path(source).exists():
                    with replacing(target) as temporary:
                        shutil.copyfile(source, temporary)
    texts = [text if any(report_sections(text)) else text and f"FINDINGS: {text}" for text in kept["report"]]
    write_tree(root, kept.assign(report=texts), made.merge(kept[["dicom_id", "score", "agrees"]], on="dicom_id"))


def beside(kept: pd.DataFrame, floor: pd.DataFrame) -> pd.DataFrame:
    """The nth kept candidate of a request beside the nth kept row of its floor: columns dicom_id and floor_dicom_id."""
    keys = ["request", "nth"]
    kept, floor = (rows.assign(nth=rows.groupby("request").cumcount())[[*keys, "dicom_id"]] for rows in (kept, floor))
    return kept.merge(floor.rename(columns={"dicom_id": "floor_dicom_id"}), on=keys).drop(columns=keys)


def copy_written(root: Path, tree: Path, kept: pd.DataFrame) -> None:
    """Copies the rows of a tree's reports.csv, and what its manifest states of them, so that they can be continued."""
    settings, path = read_manifest(tree).get(WRITTEN_REPORTS), tree / "reports.csv"
    if settings is not None and path.exists():
        rows = _read_texts(path)
        with making(WRITTEN_REPORTS, root, settings, SYNTHETIC_TREE):
            write_csv(root / "reports.csv", rows[rows["dicom_id"].isin(kept["dicom_id"])])


def main():
    constants = override_constants(globals())
    accelerator, root = make_accelerator(DEVICE, "no"), Path(OUTPUT_ROOT)
    if accelerator.num_processes > 1:
        raise InputError("select_pairs.py runs as one process: start it with python, not with accelerate launch")
    judge_settings = judges.JudgeSettings(
        JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, learning_rate=JUDGE_LEARNING_RATE, seed=SEED
    )
    candidates, made = read_candidates(SYNTHETIC, BY, HOLD_OUT)
    if candidates["request"].is_unique and KEEP == "first":
        say(f"{SYNTHETIC}: one image a request, so there is nothing to choose between; each is scored")
    real = read_table(DATA_ROOT, REPORTS_ROOT, views=VIEWS, hold_out=HOLD_OUT, with_reports=BY == "pair")
    train, validation = real.iloc[split_rows(real, "train", DATA_ROOT)], real[real["split"] == "validate"]
    half = judges.first_half(train)
    judged, pool = train[half], train[~half]
    if BY == "pair":
        pool = pool[pool["report"] != ""]
    if pool.empty:
        lacks = "no images (or, for BY pair, no reports) of patients other than the judge's, of which the floor is made"
        way_out = "set REPORTS_ROOT, or DATA_ROOT to a larger tree"
        raise InputError(f"the training rows of {DATA_ROOT} have {lacks}: {way_out}")
    parts = [asdict(judge_settings), *map(table_fingerprint, (judged, validation, pool))]
    selector = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    settings = {"by": BY, "keep": KEEP, "candidates": table_fingerprint(candidates), "selector": selector}
    settings |= {"drop": DROP} if DROP else {}  # a tree of an earlier version states none
    judges.try_judge(judge_settings, accelerator.device)
    with making(SYNTHETIC_TREE, root, settings):
        if (root / SELECTION_FILE).exists():
            say(f"{root} is finished: {len(read_table(root, with_reports=False))} pairs are kept")
            return
        judge = judges.image_judge(judged, validation, judge_settings, CACHE_DIR, accelerator)
        if not judge.known.any():
            why = f"too few of its {len(judged)} images, of half the training patients, have one"
            raise InputError(f"the judge can learn no finding: {why}; set DATA_ROOT to a larger tree")
        loading, drawn = Loading(CACHE_DIR, JUDGE_IMAGE_SIZE, BATCH_SIZE, accelerator), len(candidates)
        if DROP:
            candidates = drop_copies(candidates, real, JUDGE_IMAGE_SIZE, loading)
        selected = select(candidates, judge, SYNTHETIC, BY, KEEP, loading)
        kept = selected[selected["kept"]].reset_index(drop=True)
        if kept.empty:
            none = f"none of the {len(selected)} candidates of {SYNTHETIC} agrees with its request"
            raise InputError(f"{none}: set KEEP to first, or BY to image, or draw more with a larger IMAGES_PER_LABEL")
        floor = select(draw_floor(selected, pool, SEED), judge, f"{DATA_ROOT}, train", BY, KEEP, loading)
        save_constants(root, constants)
        write_csv(root / judges.SELECTOR_FILE, pd.DataFrame({"subject_id": np.unique(judged["subject_id"])}))
        write_csv(root / FLOOR_FILE, beside(kept, floor[floor["kept"]]))
        write_kept(root, Path(SYNTHETIC), kept, made)
    copy_written(root, Path(SYNTHETIC), kept)
    save_data_set(root)
    summary = {"synthetic": SYNTHETIC, "by": BY, "keep": KEEP, **cost(selected), "floor": cost(floor)}
    summary |= {"copies left out": drawn - len(candidates)} if DROP else {}
    known = np.array(FINDINGS)[judge.known].tolist()
    summary["judge"] = {**asdict(judge_settings), "patients": judged["subject_id"].nunique(), "findings": known}
    write_whole(root / SELECTION_FILE, json.dumps(summary, indent=2) + "\n")
    shares = [part["share that agrees"] for part in (summary, summary["floor"])]
    agree = f"{shares[0]:.1%} agree with their requests, of random training {BY}s {shares[1]:.1%}"
    say(f"{root}: {len(kept)} of {len(selected)} candidates kept; {agree}")


if __name__ == "__main__":
    run(main)
