"""A run folder: what a training leaves, and what one that goes on from it may find.

last/  best/  step-NNNNNNNN/    checkpoints: the model with its averaged weights (EMA) as `save_pretrained` writes it,
                                `raw/` the weights without averaging, `training.json` step, losses and constants;
                                `last/` also `optimizer.pt`, for resuming
metrics.csv  loss.png           losses, learning rate, gradient norm, speed and a GPU's memory over the steps
previews/                       what the averaged model makes, every so often
constants.json                  the resolved constants of the script
"""

import csv
import json
import os
import shutil

import pandas as pd

from utils.errors import InputError, reason, replacing, say, writing

METRICS = (
    "step", "epoch", "loss", "validation_loss", "learning_rate", "gradient_norm", "examples_per_second",
    "peak_gpu_mib",
)  # fmt: skip
MAY_CHANGE = {  # constants that a resumed run may have otherwise: how it is run and optimised, where its parts lie now
    "RUN_DIR", "RESUME", "CACHE_DIR", "DATA_ROOT", "REPORTS_ROOT", "BASE_MODEL", "TEXT_ENCODER", "REFERENCE_ENCODER", "BART_CHECKPOINT",
    "CHECKPOINT", "TOKENIZER", "INITIAL_WEIGHTS", "PRETRAINED", "PRETRAINED_FILE", "HEAD_ROWS", "ENCODE_BATCH_SIZE",
    "ACCUMULATION", "EPOCHS", "MAX_STEPS", "LEARNING_RATE", "BETAS", "WEIGHT_DECAY", "LR_SCHEDULE", "WARMUP_STEPS",
    "CLIP_NORM", "EMA_DECAY", "PRECISION", "GRADIENT_CHECKPOINTING", "COMPILE", "CHECKPOINT_EVERY", "KEEP_CHECKPOINTS", "VALIDATION_ROWS",
    "PREVIEW_STEPS", "PREVIEW_GUIDANCE", "PREVIEW_REPORTS", "EVALUATION_REPORTS", "EVALUATION_IMAGES", "LATENT_GAIN",
    "LOG_EVERY", "DEVICE", "NUM_WORKERS", "CHECK",
}  # fmt: skip

# ---- going on ------------------------------------------------------------------------------------------------------


def find_checkpoint(folder, resume):
    """`last/` of a run folder, or the one before if a kill came between two renames; None for a new run.

    InputError for a run that is there and may not be resumed, and for weights without what it takes to go on.
    """
    names = [name for name in ("last", "last.old", "best") if (folder / name).exists()]
    names += sorted(path.name for path in folder.glob("step-*"))
    if names and not resume:
        raise InputError(f"{folder} holds a run already: set RESUME to True to go on with it, or change RUN_DIR")
    found = [name for name in ("last", "last.old") if (folder / name / "optimizer.pt").is_file()]
    if names and not found:
        raise InputError(
            f"{folder} holds weights ({', '.join(names)}) and no last/optimizer.pt to go on with: put that file "
            "back, or change RUN_DIR; nothing was changed"
        )
    return folder / found[0] if found else None


def compare_with(checkpoint, training, constants, facts):
    """InputError for an experiment that is not the checkpoint's; says which other constants have changed.

    training: the checkpoint's training.json; constants, facts: of the run that would go on from it.
    """
    for name, fact in facts.items():
        if training.get(name) != json.loads(json.dumps(fact)):
            raise InputError(f"{checkpoint} was trained with other {name}; set them back, or change RUN_DIR")
    for name, value in json.loads(json.dumps(constants)).items():
        found = training["constants"].get(name, value)
        if found != value and name not in MAY_CHANGE:
            raise InputError(
                f"{checkpoint} was trained with {name} = {found!r}, this run has {value!r}: another experiment; set it "
                "back, or change RUN_DIR"
            )
        if found != value:
            say(f"{name} was {found!r}, and is {value!r} from here on")


def remove_unfinished(folder, found):
    """Removes what a killed run left unfinished; found: from `find_checkpoint`, which stays."""
    is_last = found is not None and found.name == "last"
    for path in [*folder.glob("*.new"), *([folder / "last.old"] if is_last else [])]:
        shutil.rmtree(path, ignore_errors=True)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def name_checkpoint(folder, step, improved, keep):
    """Gives the whole checkpoint `last.new` its names: `best` if it is improved, its step's where some are kept, `last`.

    keep: step-* folders that are kept, the newest; 0: this one gets no such name, and all stay. `last` comes last of all
    that a step leaves: a run killed before that goes on from the one before, and does all of this again.
    """
    new, last, old = (folder / name for name in ("last.new", "last", "last.old"))
    if improved:
        _link_checkpoint(new, folder / "best")
    if keep:
        _link_checkpoint(new, folder / f"step-{step:08d}")
        for outdated in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(outdated)
    if last.exists():
        shutil.rmtree(old, ignore_errors=True)
        last.rename(old)
    new.rename(last)
    shutil.rmtree(old, ignore_errors=True)


def _link_checkpoint(source, target):
    """A second name for a checkpoint's files (hard links where the disk has them), without the optimiser's state."""
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new, copy_function=_link, ignore=shutil.ignore_patterns("optimizer.pt"))
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# ---- metrics -------------------------------------------------------------------------------------------------------


class MetricsLog:
    """metrics.csv, its picture loss.png, and TensorBoard where it is installed."""

    def __init__(self, folder, step):
        self.folder, self.path = folder, folder / "metrics.csv"
        self.rows = []
        if step and self.path.exists():  # rows beyond the resumed step belong to what was lost
            try:
                with open(self.path, newline="") as file:
                    self.rows = [row for row in csv.DictReader(file, strict=True) if int(row["step"]) <= step]
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
                raise InputError(f"{self.path} is damaged ({reason(error)}): restore it, or remove it") from error
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=step)
        except ImportError:
            self.board = None

    def add(self, row):
        self.rows.append(row)
        with writing("metrics.csv", self.folder), replacing(self.path) as temporary:
            pd.DataFrame(self.rows, columns=METRICS).to_csv(temporary, index=False)
        if self.board:
            for name, value in row.items():
                if value is None:
                    continue
                self.board.add_scalar(name, value, row["step"])
        if row.get("validation_loss") is not None:
            self._draw()

    def _draw(self):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.subplots()
        for name in ("loss", "validation_loss"):
            points = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")]
            axes.plot(*zip(*points), label=name.replace("_", " "), marker="." if name == "validation_loss" else "")
        axes.set(xlabel="optimiser step", ylabel="loss", yscale="log")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(self.folder / "loss.png", dpi=120)
