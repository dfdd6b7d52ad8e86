"""What are synthetic pairs good for? Models trained on real, on synthetic, and on both kinds of pairs, tested on real ones.

    python -m benchmarks.utility --CONFIG demo.toml

As many synthetic pairs as there are real training images, of the same label vectors, are sampled from the U-ViT and the
prior of CONFIG. Then, for each seed, two kinds of models are trained, all for the same number of steps: a classifier of
images, and a report model (BART and prior), on

    real                   a share of the real training patients
    synthetic              all synthetic pairs
    real + synthetic       both, mixed
    synthetic, then real   half of the steps on the one, then half on the other

and tested on the real images of the split "test". Nothing is chosen on them, nor on validation rows: the steps are set
before, and the last checkpoint is the one that is tested. The vision module and the prior that made the pairs were trained
on *all* real training pairs: a share of 0.1 is someone who has a tenth of them, and was given the synthetic ones.

Reads:  CONFIG and what its scripts read: the checkpoints of sample_diffusion_clipUViT.py and sample_prior_model.py
Writes: OUTPUT/synthetic (the pairs), OUTPUT/<models>-<share>-<seed> (trees, runs and reports), OUTPUT/results.json,
        OUTPUT/utility.md; a second run goes on where one was cut
Prints: mean AUROC of the findings; clinical F1 of the written reports (micro, macro), read by the rules of evaluation/labeler.py,
        against the labels of the images; ROUGE-L to their real reports: mean and standard deviation over the seeds
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.judges import Judge, JudgeSettings, cache_pixels, extract, pixel_reader, train_classifier
from evaluation.labeler import label_reports
from evaluation.metrics import auroc_table, clinical_f1, positives, rouge_l
from evaluation.report import markdown
from utils.constants import override_constants
from utils.csv_files import read_csv
from utils.devices import make_accelerator
from utils.errors import InputError, replacing, run, say, writing
from utils.findings import PRESENT
from utils.launch import run_script
from utils.mimic_cxr import image_file, read_table, write_tree
from utils.seeds import keyed_seed

CONFIG = "demo.toml"  # the constants of all scripts
REAL = "demo/phantom"  # the real CXR tree that its trainings read
OUTPUT = "demo/utility"  # folder of pairs, runs and the table (a folder to write)
SEEDS = (1, 2, 3)  # of patients, data order and weights (each 0 or more)
SHARES = (1.0, 0.1)  # of the real training patients (each above 0, 1 at most)
MAX_LABELS = 0  # label vectors of the training split, a pair each (0 or more; 0: all)
VIEWS = ()  # ViewPosition of the real images; () for all
HOLD_OUT = ()  # patient groups that count as the split "test"; those of CONFIG's trainings
CLASSIFIER_MODEL = "test_resnet"  # any timm classifier, trained from random weights
CLASSIFIER_IMAGE_SIZE = 64  # pixels (32 to 4096)
CLASSIFIER_STEPS = 600  # optimiser steps (2 to 1000000)
CLASSIFIER_BATCH_SIZE = 64  # images a step (2 to 65536)
CLASSIFIER_LEARNING_RATE = 5e-3  # of AdamW, the highest of one cycle (above 0, 1 at most)
REPORTS = True  # train report models as well
BART_STEPS = 300  # optimiser steps (2 to 100000000)
PRIOR_STEPS = 400  # optimiser steps (2 to 100000000)
BATCH_SIZE = 64  # images at a time through a classifier (1 to 65536)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 0  # threads that decode images (0 to 256)

_REGIMES = {  # the stages of each training, and the sources of each stage
    "real": (("real",),),
    "synthetic": (("synthetic",),),
    "real + synthetic": (("real", "synthetic"),),
    "synthetic, then real": (("synthetic",), ("real",)),
}


def share_of(table, share, seed):
    """The rows of a share of a table's patients, at least one of them, drawn by the seed."""
    patients = np.unique(table["subject_id"])
    drawn = np.random.default_rng(keyed_seed(seed, "patients")).permutation(patients)
    return table[table["subject_id"].isin(drawn[: max(1, round(share * len(patients)))])]


def make_pairs(config, output, max_labels):
    """Samples a synthetic pair for each label vector of the training split => the folder of their tree."""
    folder = output / "synthetic"
    run_script(
        "sample_diffusion_clipUViT.py", "--config", config, "--OUTPUT_ROOT", folder, "--SPLIT", "train",
        "--MAX_LABELS", max_labels,
    )  # fmt: skip
    run_script("sample_prior_model.py", "--config", config, "--OUTPUT_ROOT", folder)
    return folder


class Classifiers:
    """Trains classifiers of images, and tests them on real ones."""

    def __init__(self, settings, tables, test, output, accelerator, threads, batch_size):
        """tables: one a source, {"real", "synthetic"}, all rows that a training may use; test: the rows to test on."""
        self.settings, self.batch_size, self.device = settings, batch_size, accelerator.device
        rows = pd.concat([*tables.values(), test], ignore_index=True)
        self.pixels, keys, readable = cache_pixels(rows, settings.image_size, output / "cache", accelerator, threads)
        self.key_of = dict(zip(rows["dicom_id"][readable], np.array(keys, dtype=object)[readable]))
        self.test = test[test["dicom_id"].isin(self.key_of)]

    def measure(self, stages, seed):
        """stages: a table of training rows each => {"AUROC"}, the mean over the findings."""
        settings, model = self._settings(seed, len(stages)), None
        for table in stages:
            table = table[table["dicom_id"].isin(self.key_of)]
            keys = [self.key_of[name] for name in table["dicom_id"]]
            model = train_classifier(self.pixels, keys, positives(table), settings, self.device, model)
        judge = Judge(model, settings, np.full(14, 0.5), np.ones(14, dtype=bool))
        read = pixel_reader(self.pixels, [self.key_of[name] for name in self.test["dicom_id"]])
        _, probabilities = extract(judge, read, len(self.test), self.device, self.batch_size)
        return {"AUROC": float(auroc_table(positives(self.test), probabilities, replicates=0).loc["mean", "auroc"])}

    def _settings(self, seed, stages):
        return JudgeSettings(**{**vars(self.settings), "seed": seed, "steps": self.settings.steps // stages})


def measure_reports(config, folder, stages, validation, test, seed, steps):
    """Trains BART and prior on the stages, one table each, and has them write the test images' reports => scores.

    steps: optimiser steps in all, of BART and of the prior. validation: rows that are only watched.
    """
    trees = [link_tree(folder / f"tree-{number}", [table, validation]) for number, table in enumerate(stages)]
    bart = train_in_stages(
        "train_bart.py", config, trees, folder / "bart", steps["bart"], "--SEED", seed, "--EVALUATION_REPORTS", 0
    )
    prior = train_in_stages(
        "train_prior_model.py", config, trees, folder / "prior", steps["prior"], "--SEED", seed, "--EVALUATION_IMAGES", 0,
        "--BART_CHECKPOINT", bart, "--CACHE_DIR", folder / "cache",
    )  # fmt: skip
    written = folder / "written"
    run_script(
        "sample_prior_model.py", "--config", config, "--CHECKPOINT", prior, "--BART_CHECKPOINT", bart,
        "--OUTPUT_ROOT", written, "--DATA_ROOT", link_tree(folder / "test", [test]), "--SPLIT", "test",
    )  # fmt: skip
    reports = read_csv(written / "reports.csv", ("dicom_id", "report"), texts=("dicom_id", "report"))
    both = test.merge(reports.rename(columns={"report": "written"})[["dicom_id", "written"]], on="dicom_id")
    f1 = clinical_f1(positives(both), label_reports(both["written"].tolist()) == PRESENT)["f1"]
    reported = both[both["report"] != ""]
    return {
        "F1 micro": float(f1["micro"]),
        "F1 macro": float(f1["macro"]),
        "ROUGE-L": rouge_l(reported["report"].tolist(), reported["written"].tolist()),
    }


def train_in_stages(script, config, trees, run, steps, *arguments):
    """Trains on one tree after the other, each for as many of the steps => the last checkpoint."""
    start = ()
    for number, tree in enumerate(trees):
        folder = run.with_name(f"{run.name}-{number}")
        run_script(
            script, "--config", config, "--DATA_ROOT", tree, "--RUN_DIR", folder, "--MAX_STEPS", steps // len(trees),
            *arguments, *start,
        )  # fmt: skip
        start = "--INITIAL_WEIGHTS", folder / "last"
    return folder / "last"


def link_tree(root, tables):
    """A CXR tree of these rows, whose images are links => its folder."""
    table = pd.concat(tables, ignore_index=True)
    with writing("a tree", root):
        for row in table.itertuples():
            path = image_file(root, row.subject_id, row.study_id, row.dicom_id)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(Path(row.image_path).resolve(), path)
    write_tree(root, table)
    return root


def table_of(results):
    """[{"trained on", "share", "seed", "pairs", scores}, ...] => Markdown: mean ± standard deviation over the seeds."""
    frame = pd.DataFrame(results)
    scores = [name for name in frame if name not in ("trained on", "share", "seed", "pairs")]
    rows = []
    for (share, name), group in frame.groupby(["share", "trained on"], sort=False):
        spread = {score: f"{group[score].mean():.3f} ± {group[score].std():.3f}" for score in scores}
        rows.append(
            {"real patients": f"{share:.0%}", "trained on": name, "pairs": round(group["pairs"].mean()), **spread}
        )
    return markdown(pd.DataFrame(rows))


def save_results(results, output):
    with writing("the results", output), replacing(output / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")


def main():
    override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    if not Path(CONFIG).is_file():
        raise InputError(f"there is no config file {CONFIG}; set CONFIG")
    output = Path(OUTPUT).resolve()
    real = read_table(REAL, views=VIEWS, hold_out=HOLD_OUT)
    train, validation, test = (real[real["split"] == split] for split in ("train", "validate", "test"))
    synthetic = read_table(make_pairs(CONFIG, output, MAX_LABELS)).assign(split="train")
    settings = JudgeSettings(
        CLASSIFIER_MODEL, CLASSIFIER_IMAGE_SIZE, CLASSIFIER_STEPS, CLASSIFIER_BATCH_SIZE, CLASSIFIER_LEARNING_RATE
    )
    tables = {"real": train, "synthetic": synthetic}
    classifiers = Classifiers(settings, tables, test, output, accelerator, NUM_WORKERS, BATCH_SIZE)
    kept = output / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else []
    done = {(result["share"], result["trained on"], result["seed"]) for result in results}
    plans = [(seed, share, name) for seed in SEEDS for share in SHARES for name in _REGIMES]
    for seed, share, name in plans:
        share = 0.0 if name == "synthetic" else share  # it has no real pairs, whatever the share
        if (share, name, seed) in done:
            continue
        sources = {"real": share_of(train, share, seed), "synthetic": synthetic}
        stages = [pd.concat([sources[source] for source in stage]) for stage in _REGIMES[name]]
        result = {"share": share, "trained on": name, "seed": seed, "pairs": sum(map(len, stages))}
        result |= classifiers.measure(stages, seed)
        if REPORTS:
            folder = output / f"{name.replace(' ', '').replace(',', '-')}-{share}-{seed}"
            steps = {"bart": BART_STEPS, "prior": PRIOR_STEPS}
            result |= measure_reports(CONFIG, folder, stages, validation, test, seed, steps)
        done.add((share, name, seed))
        results.append(result)
        save_results(results, output)
        say(f"{name}, {share:g} of the real patients, seed {seed}: {result}")
    text = table_of(sorted(results, key=lambda result: -result["share"]))
    with writing("the table", output):
        (output / "utility.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(main)
