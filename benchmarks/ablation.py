"""Does the reference help? The U-ViT trained with text only, and with the fused prompt, side by side.

    python -m benchmarks.ablation --CONFIG demo.toml

Each seed trains both at the same budget from the same start, with the same data order and noise, samples the same label
vectors, and evaluates the images: FID (features of the image judge) and mean AUROC of the asked findings. Text only is
PROMPT_DROPOUT (0, 0.9, 0.1): no training example has its reference, the text is dropped as often as in the
fused training, and CONDITION text samples without a reference.

Reads:  CONFIG, and what train_diffusion_clipUViT.py reads
Writes: OUTPUT/{text,fused}-SEED/{run,synthetic,evaluation}, OUTPUT/ablation.md; a second run goes on where one was cut, and makes
        nothing again that has been evaluated: other constants want another OUTPUT
Prints: the table, with the spread over the seeds and the paper's claim beside it
"""

import json
import shlex
from pathlib import Path

import numpy as np

from utils.constants import override_constants
from utils.errors import InputError, run, writing
from utils.launch import run_script

CONFIG = "demo.toml"  # the constants of all three scripts
OUTPUT = "demo/ablation"  # folder of runs, images and the table (a folder to write)
SEEDS = (1, 2, 3)  # of training and sampling; the spread needs 3 or more seeds (each 0 or more)
MAX_STEPS = 2600  # optimiser steps a training (0 or more; 0: as CONFIG says)
MAX_LABELS = 200  # label vectors of the test split, an image each (0 or more; 0: all)
# further constants of the training: above all a start that saw no prompt of either kind
TRAINING = "--INITIAL_WEIGHTS assets/demo/uvit_unprompted --LEARNING_RATE 1e-3"
SAMPLING = "--CANDIDATES 1 --TEXT_GUIDANCE 2 --REFERENCE_GUIDANCE 2"  # of the sampling, the same for both
EVALUATION = "--JUDGE_PATIENTS all"  # further constants of the evaluation

_VARIANTS = {  # what differs: constants of the training, constants of the sampling
    "text": (["--PROMPT_DROPOUT", "(0, 0.9, 0.1)"], ["--CONDITION", "text"]),
    "fused": ([], ["--CONDITION", "both"]),
}
_CLAIM = {"FID": "15.84 % lower", "AUROC": "1.84 % higher"}  # of the paper: fused against text only, on MIMIC-CXR


def measure(folder, config, seed, training, sampling, evaluation):
    """Trains, samples and evaluates one variant with one seed => {"FID", "AUROC"}; the last three: further arguments."""
    done = folder / "evaluation" / "evaluation.json"
    if not done.exists():
        run_script(
            "train_diffusion_clipUViT.py", "--config", config, "--RUN_DIR", folder / "run", "--SEED", seed, *training
        )
        run_script(
            "sample_diffusion_clipUViT.py", "--config", config, "--CHECKPOINT", folder / "run/last",
            "--OUTPUT_ROOT", folder / "synthetic", "--SEED", seed, *sampling,
        )  # fmt: skip
        # the evaluation's own seed stays: one judge for all
        run_script(
            "evaluate_pairs.py", "--config", config, "--SYNTHETIC", folder / "synthetic", "--OUTPUT", folder / "evaluation",
            "--DOWNSTREAM", False, "--PAGE", folder / "index.html", *evaluation,
        )  # fmt: skip
    found = json.loads(done.read_text())
    auroc = found["auroc"]["synthetic"]["mean"]["auroc"]
    return {"FID": found["image_quality"][0]["FID"], "AUROC": np.nan if auroc is None else auroc}


def table(measured, seeds):
    """{variant: [{"FID", "AUROC"}, ...]}, one a seed => Markdown: mean ± standard deviation, and the gain."""
    lines = [
        f"| {len(seeds)} seeds | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean ± deviation |",
        "| --- " * (len(seeds) + 2) + "|",
    ]
    values = {
        (metric, variant): np.array([row[metric] for row in rows])
        for variant, rows in measured.items()
        for metric in ("FID", "AUROC")
    }
    digits = {"FID": 2, "AUROC": 3}
    for metric in ("FID", "AUROC"):
        for variant in _VARIANTS:
            each = values[metric, variant]
            cells = [f"{value:.{digits[metric]}f}" for value in each]
            lines.append(f"| {metric}, {variant} | {' | '.join(cells)} | {_spread(each, digits[metric])} |")
        gain = 100 * (values[metric, "fused"] / values[metric, "text"] - 1)  # of pairs with one seed
        cells = [f"{value:+.1f} %" for value in gain]
        claim = f"{_spread(gain, 1)} % (paper: {_CLAIM[metric]})"
        lines.append(f"| {metric}, fused against text | {' | '.join(cells)} | {claim} |")
    return "\n".join(lines)


def _spread(values, digits):
    deviation = values.std(ddof=1) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"


def main():
    override_constants(globals())
    if not Path(CONFIG).is_file():
        raise InputError(f"there is no config file {CONFIG}; set CONFIG")
    steps = ["--MAX_STEPS", MAX_STEPS] if MAX_STEPS else []
    measured = {variant: [] for variant in _VARIANTS}
    for seed in SEEDS:
        for variant, rows in measured.items():
            training, sampling = _VARIANTS[variant]
            rows.append(
                measure(
                    Path(OUTPUT).resolve() / f"{variant}-{seed}",
                    CONFIG,
                    seed,
                    [*steps, *training, *shlex.split(TRAINING)],
                    ["--MAX_LABELS", MAX_LABELS, *sampling, *shlex.split(SAMPLING)],
                    shlex.split(EVALUATION),
                )
            )
            print(f"{variant}, seed {seed}: {rows[-1]}", flush=True)
    text = table(measured, SEEDS)
    with writing("the ablation", OUTPUT):
        (Path(OUTPUT) / "ablation.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(main)
