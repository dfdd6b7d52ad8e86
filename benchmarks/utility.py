"""What are synthetic pairs good for? Models trained on real, synthetic, and both kinds of pairs, tested on real ones.

    python -m benchmarks.utility --CONFIG demo.toml

The U-ViT and the prior of CONFIG sample a synthetic pair for each label vector of the real training images. Then, for
each seed, a classifier of images and a report model (BART and prior) are trained, always for the same number of steps:

    real                   on a share of the real training patients
    synthetic              on all synthetic pairs
    real + synthetic       on both, mixed
    synthetic, then real   half of the steps on the one, then half on the other

The last checkpoint of each is tested on the real images of the split "test": nothing is chosen on these, nor on
validation rows. The models that made the pairs were trained on *all* real training pairs: a share of 0.1 is someone who
has a tenth of them, and was given the synthetic ones.

Reads:  CONFIG and what its scripts read: the checkpoints of sample_diffusion_clipUViT.py and sample_prior_model.py
Writes: OUTPUT (pairs, trees, runs, reports, results.json), benchmarks/results/RECORD.json; a second run resumes
Prints: mean AUROC of the findings; clinical F1 of the written reports (micro, macro) against the labels of the images,
        read by the rules of evaluation/labeler.py; ROUGE-L to the images' real reports: mean and deviation of the seeds
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from benchmarks.record import run_script, write_record
from evaluation.images import Images, Loading
from evaluation.judges import JudgeSettings, image_judge
from evaluation.labeler import label_reports
from evaluation.metrics import auroc_table, clinical_f1, positives, rouge_l
from evaluation.sections import read_written
from utils.constants import REPOSITORY, override_constants
from utils.devices import make_accelerator
from utils.errors import replacing, run, say, writing
from utils.findings import PRESENT
from utils.mimic_cxr import image_file, read_table, write_tree
from utils.seeds import keyed_seed

CONFIG = "demo.toml"  # the constants of all scripts; its U-ViT's DATA_ROOT, VIEWS and HOLD_OUT name the real pairs
OUTPUT = "demo/utility"  # folder of pairs and runs (a folder to write)
RECORD = "utility"  # name of the table under benchmarks/results
SEEDS = (1, 2, 3)  # of patients, data order and weights (each 0 or more)
MAX_LABELS = 0  # label vectors of the training split, a pair each (0 or more; 0: all)
SHARES = (1.0, 0.1)  # of the real training patients (each above 0, 1 at most)
BART_STEPS = 300  # optimiser steps (2 to 100000000)
PRIOR_STEPS = 400  # optimiser steps (2 to 100000000)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)

_CLASSIFIER = JudgeSettings("test_resnet", steps=600)  # and the seed of the training
_REGIMES = {  # the stages of each training, and the sources of each stage
    "real": (("real",),),
    "synthetic": (("synthetic",),),
    "real + synthetic": (("real", "synthetic"),),
    "synthetic, then real": (("synthetic",), ("real",)),
}


def share_of(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The rows of a share of the patients, drawn by the seed; at least of one patient."""
    patients = np.unique(table["subject_id"])
    drawn = np.random.default_rng(keyed_seed(seed, "patients")).permutation(patients)
    return table[table["subject_id"].isin(drawn[: max(1, round(share * len(patients)))])]


def measure_classifier(
    stages: list[pd.DataFrame], test: pd.DataFrame, settings: JudgeSettings, cache_dir: Path, accelerator: Accelerator
) -> dict[str, float]:
    """Trains a classifier on one table after the other, sharing the steps => {"AUROC"}, the mean over the findings."""
    settings, judge = replace(settings, steps=settings.steps // len(stages)), None
    for table in stages:
        judge = image_judge(table, table[:0], settings, cache_dir, accelerator, start=judge)  # without thresholds
    loading = Loading(cache_dir, settings.image_size, settings.batch_size, accelerator)
    images = Images(test, "the test images", settings.image_size, loading)
    table = auroc_table(positives(images.table), images.encode(judge)[1])
    return {"AUROC": float(table.loc["mean", "auroc"])}


def measure_reports(
    folder: Path, stages: list[pd.DataFrame], validation: pd.DataFrame, test: pd.DataFrame, seed: int, constants: dict
) -> dict[str, float]:
    """Trains BART and prior on one table after the other, and scores the reports that they write for the test images.

    validation: rows that are only watched; constants: of this script.
    """
    trees = [link_tree(folder / f"tree-{number}", [table, validation]) for number, table in enumerate(stages)]
    common = ("--config", constants["CONFIG"], "--SEED", seed)
    own = (*common, "--EVALUATION_REPORTS", 0)
    bart = train_in_stages("train_bart.py", trees, folder / "bart", constants["BART_STEPS"], *own)
    own = (*common, "--EVALUATION_IMAGES", 0, "--BART_CHECKPOINT", bart, "--CACHE_DIR", folder / "cache")
    prior = train_in_stages("train_prior_model.py", trees, folder / "prior", constants["PRIOR_STEPS"], *own)
    images = ("--DATA_ROOT", link_tree(folder / "test", [test]), "--SPLIT", "test")
    own = (*common[:2], "--CHECKPOINT", prior, "--BART_CHECKPOINT", bart, "--OUTPUT_ROOT", folder / "written")
    run_script("sample_prior_model.py", *own, *images)
    reports = read_written(folder / "written")["report"]
    both = test[test["dicom_id"].isin(reports.index)]
    written = both["dicom_id"].map(reports)
    f1 = clinical_f1(positives(both), label_reports(written.tolist()) == PRESENT)["f1"]
    reported = both["report"] != ""
    rouge = rouge_l(both["report"][reported].tolist(), written[reported].tolist())
    return {"F1 micro": float(f1["micro"]), "F1 macro": float(f1["macro"]), "ROUGE-L": rouge}


def train_in_stages(script: str, trees: list[Path], run: Path, steps: int, *arguments) -> Path:
    """Trains on one tree after the other, sharing the steps => the last checkpoint; arguments: further ones."""
    start = ()
    for number, tree in enumerate(trees):
        folder = run.with_name(f"{run.name}-{number}")
        own = ("--DATA_ROOT", tree, "--RUN_DIR", folder, "--MAX_STEPS", steps // len(trees))
        run_script(script, *own, *arguments, *start)
        start = "--INITIAL_WEIGHTS", folder / "last"
    return folder / "last"


def link_tree(root: Path, tables: list[pd.DataFrame]) -> Path:
    """Writes a CXR tree of these rows, whose images are links => its folder."""
    table = pd.concat(tables, ignore_index=True)
    with writing("a tree", root):
        for row in table.itertuples():
            path = image_file(root, row.subject_id, row.study_id, row.dicom_id)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(Path(row.image_path).resolve(), path)
    write_tree(root, table)
    return root


def table_of(results: list[dict]) -> pd.DataFrame:
    """[{"trained on", "share", "seed", "pairs", scores}, ...] => mean ± standard deviation over the seeds."""
    rows = []
    for (share, name), group in pd.DataFrame(results).groupby(["share", "trained on"], sort=False):
        row = {"real patients": f"{share:.0%}", "trained on": name, "pairs": round(group["pairs"].mean())}
        scores = group.drop(columns=["trained on", "share", "seed", "pairs"])
        rows.append(row | {score: f"{each.mean():.3f} ± {each.std():.3f}" for score, each in scores.items()})
    return pd.DataFrame(rows)


def plans(seeds: tuple[int, ...], shares: tuple[float, ...]) -> list[tuple[int, float, str]]:
    """(seed, share of the real patients, regime) of each training; that on synthetic pairs alone has share 0."""
    every = [(seed, share, name) for seed in seeds for share in shares for name in _REGIMES]
    return list(dict.fromkeys((seed, 0.0 if name == "synthetic" else share, name) for seed, share, name in every))


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    trained = override_constants({"__file__": str(REPOSITORY / "train_diffusion_clipUViT.py")}, ("--config", CONFIG))
    output = Path(OUTPUT).resolve()
    sampling = ("--config", CONFIG, "--OUTPUT_ROOT", output / "synthetic")
    one_of_each = ("--SPLIT", "train", "--MAX_LABELS", MAX_LABELS, "--IMAGES_PER_LABEL", 1)
    run_script("sample_diffusion_clipUViT.py", *sampling, *one_of_each)
    run_script("sample_prior_model.py", *sampling)
    real = read_table(trained["DATA_ROOT"], views=trained["VIEWS"], hold_out=trained["HOLD_OUT"])
    train, validation, test = (real[real["split"] == split] for split in ("train", "validate", "test"))
    synthetic = read_table(output / "synthetic").assign(split="train")
    kept = output / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else []
    done = {(result["seed"], result["share"], result["trained on"]) for result in results}
    for seed, share, name in plans(SEEDS, SHARES):
        if (seed, share, name) in done:
            continue
        sources = {"real": share_of(train, share, seed), "synthetic": synthetic}
        stages = [pd.concat([sources[source] for source in stage]) for stage in _REGIMES[name]]
        folder = output / f"{name.replace(' ', '').replace(',', '-')}-{share}-{seed}"
        result = {"share": share, "trained on": name, "seed": seed, "pairs": sum(map(len, stages))}
        result |= measure_classifier(stages, test, replace(_CLASSIFIER, seed=seed), output / "cache", accelerator)
        result |= measure_reports(folder, stages, validation, test, seed, constants)
        results.append(result)
        with writing("the results", output), replacing(kept) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
        say(f"{name}, {share:g} of the real patients, seed {seed}: {result}")
    table = table_of(sorted(results, key=lambda result: -result["share"]))
    write_record(RECORD, "Models trained on synthetic pairs", table, constants, device=accelerator.device)


if __name__ == "__main__":
    run(main)
