"""A run folder: what a training writes, and what a resumed one reads again.

last/  best/                    checkpoints: the model with its averaged weights (EMA) as `save_pretrained` writes it,
                                `raw/` those without averaging, `training.json`; `last/` also `optimizer.pt`
metrics.csv  loss.png           losses, learning rate, gradient norm, speed and GPU memory over the steps
previews/                       what the averaged model generates, at each checkpoint
constants.json                  the resolved constants of the script
"""

import csv
import json
import shutil
from pathlib import Path

import pandas as pd

from utils.errors import InputError, as_input_error, reason, replacing, writing

METRICS = (
    "step", "epoch", "loss", "validation_loss", "learning_rate", "gradient_norm", "examples_per_second", "peak_gpu_mib",
)  # fmt: skip
MAY_CHANGE = {  # constants that a resumed run may change: places, optimisation, and how it is run and reported
    "RUN_DIR", "CACHE_DIR", "DATA_ROOT", "REPORTS_ROOT", "BASE_MODEL", "TEXT_ENCODER", "REFERENCE_ENCODER",
    "BART_CHECKPOINT", "CHECKPOINT", "INITIAL_WEIGHTS", "PRETRAINED", "ACCUMULATION", "EPOCHS", "MAX_STEPS",
    "LEARNING_RATE", "BETAS", "WEIGHT_DECAY", "LR_SCHEDULE", "WARMUP_STEPS", "CLIP_NORM", "EMA_DECAY", "PRECISION",
    "COMPILE", "CHECKPOINT_EVERY", "VALIDATION_ROWS", "EVALUATION_REPORTS", "EVALUATION_IMAGES", "LOG_EVERY",
    "LOG_WITH", "DEVICE", "NUM_WORKERS",
}  # fmt: skip


def find_checkpoint(folder: Path) -> Path | None:
    """`last/` of a run folder, or the checkpoint before it after a kill between two renames; None for a new run.

    InputError for weights without the optimiser's state, which cannot be resumed and would be overwritten.
    """
    for name in ("last", "last.old"):
        if (folder / name / "optimizer.pt").is_file():
            return folder / name
    names = [name for name in ("last", "last.old", "best") if (folder / name).exists()]
    if names:
        lacks = f"weights ({', '.join(names)}) but no last/optimizer.pt to resume from"
        raise InputError(f"{folder} holds {lacks}: put that file back, or change RUN_DIR")
    return None


def compare_with(checkpoint: Path, training: dict, constants: dict, facts: dict) -> list[tuple]:
    """(name, old value, new value) of each constant that differs between a checkpoint and the run that would resume it.

    training: the checkpoint's training.json; constants, facts: of the run. InputError if it is another experiment.
    """
    for name, fact in facts.items():
        if training.get(name) != json.loads(json.dumps(fact)):
            raise InputError(f"{checkpoint} was trained with other {name}; set them back, or change RUN_DIR")
    old, new = training["constants"], json.loads(json.dumps(constants))
    changes = [(name, old[name], value) for name, value in new.items() if old.get(name, value) != value]
    for name, before, now in changes:
        if name not in MAY_CHANGE:
            changed = f"{name} = {before!r}, this run has {now!r}: another experiment"
            raise InputError(f"{checkpoint} was trained with {changed}; set it back, or change RUN_DIR")
    return changes


def name_checkpoint(folder: Path, improved: bool) -> None:
    """Names the finished checkpoint `last.new`: `best` if it is improved, and `last`.

    It is renamed after everything else of a step is written: a run that is killed before repeats all of that step.
    """
    new, last, old = (folder / name for name in ("last.new", "last", "last.old"))
    if improved:  # the same files, without the optimiser's state
        best, new_best = folder / "best", folder / "best.new"
        shutil.rmtree(new_best, ignore_errors=True)
        shutil.copytree(new, new_best, ignore=shutil.ignore_patterns("optimizer.pt"))
        shutil.rmtree(best, ignore_errors=True)
        new_best.rename(best)
    if last.exists():
        shutil.rmtree(old, ignore_errors=True)
        last.rename(old)
    new.rename(last)
    shutil.rmtree(old, ignore_errors=True)


class MetricsLog:
    """metrics.csv and its plot loss.png."""

    def __init__(self, folder: Path, step: int):
        """step: where the run begins; later rows of metrics.csv are dropped, the run repeats those steps."""
        self.folder, self.path, self.rows = folder, folder / "metrics.csv", []
        if step and self.path.exists():
            damaged = as_input_error(lambda error: f"{self.path} is damaged ({reason(error)}): restore or remove it")
            with damaged, open(self.path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file, strict=True) if int(row["step"]) <= step]

    def add(self, row: dict) -> None:
        self.rows.append(row)
        with writing("metrics.csv", self.folder), replacing(self.path) as temporary:
            pd.DataFrame(self.rows, columns=METRICS).to_csv(temporary, index=False)
        if "validation_loss" in row:
            self._draw()

    def _draw(self):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.subplots()
        for name, marker in (("loss", ""), ("validation_loss", ".")):
            points = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")]
            axes.plot(*zip(*points), label=name.replace("_", " "), marker=marker)
        axes.set(xlabel="optimiser step", ylabel="loss", yscale="log")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(self.folder / "loss.png", dpi=120)
