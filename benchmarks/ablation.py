"""Does the reference help? The U-ViT trained with text only, and with the fused prompt, side by side.

    python -m benchmarks.ablation --CONFIG demo.toml

For each seed both are trained at the same budget from the same start, with the same data order and noise. They sample
the same label vectors, and the images are evaluated: FID (features of the image judge) and mean AUROC of the requested
findings. Text only is PROMPT_DROPOUT (0, 0.9, 0.1): no training example keeps its reference, and the text is
dropped as often as in the fused training. CONDITION text then samples without a reference.

Reads:  CONFIG, and what train_diffusion_clipUViT.py reads
Writes: OUTPUT/{text,fused}-SEED/{run,synthetic,evaluation}, benchmarks/results/RECORD.json; a second run resumes, and
        repeats nothing that has been evaluated: other constants need another OUTPUT
Prints: the table, with the spread over the seeds and the paper's claim beside it
"""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.record import run_script, write_record
from utils.constants import override_constants
from utils.errors import InputError, run

CONFIG = "demo.toml"  # the constants of all three scripts
OUTPUT = "demo/ablation"  # folder of runs and images (a folder to write)
RECORD = "ablation"  # name of the table under benchmarks/results
SEEDS = (1, 2, 3)  # of training and sampling; the spread needs 3 or more seeds (each 0 or more)
MAX_STEPS = 2600  # optimiser steps a training (0 or more; 0: as CONFIG says)
MAX_LABELS = 200  # label vectors of the test split, an image each (0 or more; 0: all)
# further constants of the training: above all a start that saw no prompt of either kind
TRAINING = "--INITIAL_WEIGHTS assets/demo/uvit_unprompted --LEARNING_RATE 1e-3"
SAMPLING = "--IMAGES_PER_LABEL 1 --TEXT_GUIDANCE 2 --REFERENCE_GUIDANCE 2"  # of the sampling, the same for both
EVALUATION = "--JUDGE_PATIENTS all"  # further constants of the evaluation

_VARIANTS = {  # what differs: constants of the training, constants of the sampling
    "text": ("--PROMPT_DROPOUT 0,0.9,0.1", "--CONDITION text"),
    "fused": ("", "--CONDITION both"),
}
_CLAIM = {"FID": "15.84 % lower", "AUROC": "1.84 % higher"}  # of the paper: fused against text only, on MIMIC-CXR
_DIGITS = {"FID": 2, "AUROC": 3}


def measure(folder: Path, seed: int, training: list, sampling: list, evaluation: list) -> dict[str, float]:
    """Trains, samples and evaluates one variant with one seed => {"FID", "AUROC"}; the lists: command lines."""
    done = folder / "evaluation" / "evaluation.json"
    if not done.exists():
        checkpoint, tree = folder / "run/last", folder / "synthetic"
        own = ("--CHECKPOINT", checkpoint, "--OUTPUT_ROOT", tree, "--SEED", seed)
        run_script("train_diffusion_clipUViT.py", "--RUN_DIR", folder / "run", "--SEED", seed, *training)
        run_script("sample_diffusion_clipUViT.py", *own, *sampling)
        # with the evaluation's own seed: one judge for all
        own = ("--SYNTHETIC", tree, "--OUTPUT", folder / "evaluation")
        run_script("evaluate_pairs.py", *own, *evaluation)
    result = json.loads(done.read_text())
    auroc = result["auroc"]["synthetic"]["mean"]["auroc"]
    return {"FID": result["image_quality"][0]["FID"], "AUROC": np.nan if auroc is None else auroc}


def table_of(measured: dict[str, list[dict]], seeds: tuple[int, ...]) -> pd.DataFrame:
    """{variant: [{"FID", "AUROC"} for each seed]} => rows of each metric: a variant each, and their difference."""
    rows = []
    for metric, digits in _DIGITS.items():
        values = {variant: np.array([result[metric] for result in results]) for variant, results in measured.items()}
        for variant, each in values.items():
            cells = [f"{value:.{digits}f}" for value in each]
            rows.append([f"{metric}, {variant}", *cells, spread(each, digits)])
        gain = 100 * (values["fused"] / values["text"] - 1)  # of the two with one seed
        cells = [f"{value:+.1f} %" for value in gain]
        rows.append([f"{metric}, fused against text", *cells, f"{spread(gain, 1)} % (paper: {_CLAIM[metric]})"])
    return pd.DataFrame(rows, columns=["", *(f"seed {seed}" for seed in seeds), "mean ± deviation"])


def spread(values: np.ndarray, digits: int) -> str:
    """Mean ± standard deviation."""
    deviation = values.std(ddof=1) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"


def main():
    constants = override_constants(globals())
    if not Path(CONFIG).is_file():
        raise InputError(f"there is no config file {CONFIG}; set CONFIG")
    config = ["--config", CONFIG]
    steps = ["--MAX_STEPS", MAX_STEPS] if MAX_STEPS else []
    measured = {variant: [] for variant in _VARIANTS}
    for seed in SEEDS:
        for variant, (training, sampling) in _VARIANTS.items():
            training = [*config, *steps, *shlex.split(f"{training} {TRAINING}")]
            sampling = [*config, "--MAX_LABELS", MAX_LABELS, *shlex.split(f"{sampling} {SAMPLING}")]
            folder = Path(OUTPUT).resolve() / f"{variant}-{seed}"
            result = measure(folder, seed, training, sampling, [*config, *shlex.split(EVALUATION)])
            measured[variant].append(result)
            print(f"{variant}, seed {seed}: {result}", flush=True)
    write_record(RECORD, "Text only against the fused prompt", table_of(measured, SEEDS), constants)


if __name__ == "__main__":
    run(main)
