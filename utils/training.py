"""fit(): the one training loop, for every model of this project.

A run folder holds

    last/  best/  step-NNNNNNNN/    checkpoints: the model with its averaged weights (EMA) as `save_pretrained` writes it,
                                    `raw/` the weights without averaging, `training.json` step, losses and constants;
                                    `last/` also `optimizer.pt`, for resuming
    metrics.csv  loss.png           losses, learning rate, gradient norm and speed over the steps
    previews/                       what the averaged model makes, every so often
    constants.json                  the resolved constants of the script

Data order and randomness are functions of (SEED, step, position in the batch): a resumed run, or one on another number
of processes, sees the same batches and the same noise.
"""

import csv
import json
import math
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.checkpoints import load_weights
from utils.constants import save_constants
from utils.errors import InputError, reason, say, writing
from utils.seeds import keyed_seed

METRICS = (
    "step", "epoch", "loss", "validation_loss", "learning_rate", "gradient_norm", "examples_per_second"
)  # fmt: skip
FIT_CONSTANTS = (  # what fit() reads of a script's constants
    "RUN_DIR", "RESUME", "SEED", "BATCH_SIZE", "ACCUMULATION", "EPOCHS", "MAX_STEPS", "LEARNING_RATE", "BETAS",
    "WEIGHT_DECAY", "LR_SCHEDULE", "WARMUP_STEPS", "CLIP_NORM", "EMA_DECAY", "CHECKPOINT_EVERY", "KEEP_CHECKPOINTS", "LOG_EVERY",
    "VALIDATION_ROWS", "NUM_WORKERS",
)  # fmt: skip


def make_accelerator(device, precision):
    """An Accelerator. device: "" (the best there is), "cpu", "cuda:1" ...; precision: "auto" (bf16 where the device has
    it), "no", "bf16" or "fp16"."""
    if precision not in ("auto", "no", "bf16", "fp16"):
        raise InputError(f"PRECISION {precision!r} is none of 'auto', 'no', 'bf16', 'fp16'")
    try:
        kind = torch.device(device or "cpu")
    except RuntimeError as error:
        raise InputError(f"DEVICE {device!r} is no torch device; e.g. 'cpu', 'cuda' or 'cuda:1'") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"DEVICE {device!r}: torch {torch.__version__} sees no CUDA device here; set DEVICE to 'cpu'")
    try:
        if kind.type != "cuda" or kind.index is not None:  # without a number, each process of a launch has its own
            torch.ones(1, device=kind).item()
    except Exception as error:  # each kind of device says in its own way that it is not here
        raise InputError(
            f"DEVICE {device!r}: torch {torch.__version__} cannot compute on it here ({reason(error)}); set DEVICE to "
            "'cpu', 'cuda' or ''"
        ) from error
    if device and device != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    if precision == "auto":
        cuda = device != "cpu" and torch.cuda.is_available()
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


def fit(model, examples, validation, compute_loss, constants, accelerator, preview=None, facts=None, collate=None):
    """Trains a model and leaves its checkpoints, metrics and pictures in RUN_DIR.

    Args:
        model: nn.Module with save_pretrained(folder) and a class method from_pretrained(folder).
        examples, validation: data sets indexed by (position, seed). `examples.order(generator)` => positions of one
            epoch, where the data set has it; a random permutation otherwise.
        compute_loss: (model, batch) => scalar, a mean over the batch.
        constants: the script's constants, of which fit reads FIT_CONSTANTS. BATCH_SIZE counts the examples of one
            optimiser step over all processes; ACCUMULATION splits a process's share into so many passes.
        preview: (model, path without suffix) => None; writes what the averaged model makes. On the main process.
        facts: a dict kept in every checkpoint's training.json, e.g. fingerprints of frozen encoders.
        collate: as torch's DataLoader has it.
    """
    run = _Run(model, examples, validation, compute_loss, constants, accelerator, preview, facts or {}, collate)
    run.train()


class Batches:
    """Which examples, with which seeds, each pass of each step takes: iterates over the passes of one process."""

    def __init__(self, examples, batch_size, accumulation, seed, first_step, last_step, process=0, processes=1):
        if batch_size % (accumulation * processes):
            raise InputError(
                f"BATCH_SIZE {batch_size} cannot be shared by {processes} processes x ACCUMULATION {accumulation}; "
                "make it a multiple of their product"
            )
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.passes, self.process, self.processes = accumulation, process, processes
        self.steps = range(first_step, last_step)
        self._epoch, self._order = -1, None

    def __len__(self):
        return len(self.steps) * self.passes

    def __iter__(self):
        share = self.batch_size // (self.passes * self.processes)
        for step in self.steps:
            batch = self.step(step)
            for part in range(self.passes):
                start = (part * self.processes + self.process) * share
                yield batch[start : start + share]

    def step(self, step):
        """All BATCH_SIZE (position, seed) of one step. Epochs follow each other without a gap."""
        count = len(self.examples)
        batch = []
        for place in range(self.batch_size):
            epoch, index = divmod(step * self.batch_size + place, count)
            batch.append((self._positions(epoch)[index], keyed_seed(self.seed, "training", step, place)))
        return batch

    def _positions(self, epoch):
        if epoch != self._epoch:
            generator = np.random.default_rng(keyed_seed(self.seed, "order", epoch))
            order = getattr(self.examples, "order", lambda generator: generator.permutation(len(self.examples)))
            self._epoch, self._order = epoch, order(generator).tolist()
        return self._order


class _Run:
    def __init__(self, model, examples, validation, compute_loss, constants, accelerator, preview, facts, collate):
        get = constants.__getitem__
        self.examples, self.validation, self.collate = examples, validation, collate
        self.compute_loss, self.preview, self.facts = compute_loss, preview, facts
        self.constants, self.accelerator = constants, accelerator
        self.folder = Path(get("RUN_DIR"))
        self.total_steps = math.ceil(get("EPOCHS") * len(examples) / get("BATCH_SIZE"))
        if get("MAX_STEPS"):
            self.total_steps = min(self.total_steps, get("MAX_STEPS"))
        self.step, self.best, self.validation_loss = 0, math.inf, math.nan

        self.raw_model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        checkpoint = self._checkpoint_to_resume()
        if checkpoint:
            self._load_weights(checkpoint / "raw")
        model.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            self.parameters, lr=get("LEARNING_RATE"), betas=get("BETAS"), weight_decay=get("WEIGHT_DECAY")
        )
        try:
            self.schedule = get_scheduler(
                get("LR_SCHEDULE"),
                optimizer,
                num_warmup_steps=get("WARMUP_STEPS"),
                num_training_steps=self.total_steps,
            )
        except ValueError as error:
            raise InputError(f"LR_SCHEDULE: {error}; use constant_with_warmup, linear or cosine") from error
        self.ema = EMAModel(self.parameters, decay=get("EMA_DECAY"), foreach=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if checkpoint:
            self._load_progress(checkpoint)

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self):
        constants, accelerator = self.constants, self.accelerator
        if accelerator.is_main_process:
            save_constants(self.folder, constants)
        count = sum(parameter.numel() for parameter in self.parameters)
        say(
            f"{count:,} trained parameters, {len(self.examples)} training and {len(self.validation)} validation examples, "
            f"steps {self.step} to {self.total_steps} on {accelerator.num_processes} x {accelerator.device.type}, "
            f"precision {accelerator.mixed_precision}"
        )
        batches = Batches(
            self.examples, constants["BATCH_SIZE"], constants["ACCUMULATION"], constants["SEED"], self.step,
            self.total_steps, accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        loader = iter(self._loader(self.examples, batches))
        log = _MetricsLog(self.folder, self.step) if accelerator.is_main_process else None
        progress = tqdm(
            total=self.total_steps, initial=self.step, desc="training", disable=not accelerator.is_main_process
        )
        losses, norms, since = [], [], time.perf_counter()
        while self.step < self.total_steps:
            loss, norm = self._optimiser_step(loader)
            losses.append(loss)
            norms.append(norm)
            self.step += 1
            progress.update()
            last = self.step == self.total_steps
            checkpoint = last or self.step % constants["CHECKPOINT_EVERY"] == 0
            if checkpoint or self.step % constants["LOG_EVERY"] == 0:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                if not math.isfinite(mean):
                    raise InputError(
                        f"the loss is {mean} at step {self.step}; the checkpoint before it is kept in {self.folder}; "
                        "lower LEARNING_RATE or set PRECISION to 'no'"
                    )
                speed = len(losses) * constants["BATCH_SIZE"] / (time.perf_counter() - since)
                row = {
                    "step": self.step,
                    "epoch": self.step * constants["BATCH_SIZE"] / len(self.examples),
                    "loss": mean,
                    "learning_rate": self.schedule.get_last_lr()[0],
                    "gradient_norm": torch.stack(norms).mean().item(),
                    "examples_per_second": speed,
                }
                if checkpoint:
                    row["validation_loss"] = self._checkpoint()
                if log:
                    log.add(row)
                progress.set_postfix(loss=f"{mean:.4f}", validation=f"{self.validation_loss:.4f}", per_s=f"{speed:.0f}")
                losses, norms, since = [], [], time.perf_counter()
        progress.close()
        say(f"done: {self.folder}/best has the lowest validation loss, {self.best:.4f}")
        accelerator.wait_for_everyone()

    def _optimiser_step(self, loader):
        constants, accelerator = self.constants, self.accelerator
        set_seed(keyed_seed(constants["SEED"], "dropout", self.step, accelerator.process_index) % 2**32)
        self.model.train()
        total = torch.zeros((), device=accelerator.device)
        for part in range(constants["ACCUMULATION"]):
            batch = _to_device(next(loader), accelerator.device)
            synchronise = part == constants["ACCUMULATION"] - 1
            with nullcontext() if synchronise else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss = self.compute_loss(self.model, batch) / constants["ACCUMULATION"]
                accelerator.backward(loss)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.parameters, constants["CLIP_NORM"])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        return total, torch.as_tensor(norm).detach().to(total.device)

    def _loader(self, data, batches):
        return DataLoader(
            data,
            batch_sampler=batches,
            num_workers=self.constants["NUM_WORKERS"],
            pin_memory=self.accelerator.device.type == "cuda",
            collate_fn=self.collate,
        )

    # --- validation and checkpoints ------------------------------------------------------------------------------

    def _checkpoint(self):
        """Validates, saves and draws with the averaged weights; returns the validation loss."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.model.eval()
        self.validation_loss = self._validate()
        improved = self.validation_loss < self.best
        self.best = min(self.best, self.validation_loss)
        if self.accelerator.is_main_process:
            with writing("a checkpoint", self.folder):
                self._save(improved)
            if self.preview:
                (self.folder / "previews").mkdir(exist_ok=True)
                with torch.no_grad(), self.accelerator.autocast():
                    self.preview(self.raw_model, self.folder / "previews" / f"step-{self.step:08d}")
        self.ema.restore(self.parameters)
        self.accelerator.wait_for_everyone()
        return self.validation_loss

    @torch.no_grad()
    def _validate(self):
        """The mean loss over the first VALIDATION_ROWS validation examples, each with a fixed seed of its own."""
        constants, accelerator = self.constants, self.accelerator
        count = min(len(self.validation), constants["VALIDATION_ROWS"] or len(self.validation))
        seeds = [(row, keyed_seed(constants["SEED"], "validation", row)) for row in range(count)]
        size = max(1, constants["BATCH_SIZE"] // (constants["ACCUMULATION"] * accelerator.num_processes))
        batches = [seeds[start : start + size] for start in range(0, count, size)]
        batches = batches[accelerator.process_index :: accelerator.num_processes]
        total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)  # sum of losses, examples
        for numbers, batch in zip(batches, self._loader(self.validation, batches)):
            with accelerator.autocast():
                loss = self.compute_loss(self.raw_model, _to_device(batch, accelerator.device))
            total += torch.tensor([loss.item() * len(numbers), len(numbers)], device=total.device, dtype=total.dtype)
        total = accelerator.reduce(total, "sum")
        return (total[0] / total[1]).item()

    def _save(self, improved):
        new, last, old = (self.folder / name for name in ("last.new", "last", "last.old"))
        shutil.rmtree(new, ignore_errors=True)
        self.raw_model.save_pretrained(new)
        self.ema.restore(self.parameters)
        self.raw_model.save_pretrained(new / "raw")
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        training = {
            "step": self.step,
            "validation_loss": self.validation_loss,
            "best_validation_loss": self.best,
            "constants": self.constants,
            **self.facts,
        }
        (new / "training.json").write_text(json.dumps(training, indent=2) + "\n")
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}, new / "optimizer.pt"
        )

        # `last` comes last: a run killed before that goes on from the one before, and does all of this again
        if improved:
            _link_checkpoint(new, self.folder / "best")
        if self.constants["KEEP_CHECKPOINTS"]:
            _link_checkpoint(new, self.folder / f"step-{self.step:08d}")
            for outdated in sorted(self.folder.glob("step-*"))[: -self.constants["KEEP_CHECKPOINTS"]]:
                shutil.rmtree(outdated)
        if last.exists():
            shutil.rmtree(old, ignore_errors=True)
            last.rename(old)
        new.rename(last)
        shutil.rmtree(old, ignore_errors=True)

    # --- resuming ------------------------------------------------------------------------------------------------

    def _checkpoint_to_resume(self):
        """`last/`, or the one before if a kill came between two renames; None for a new run."""
        found = [self.folder / name for name in ("last", "last.old") if (self.folder / name / "optimizer.pt").exists()]
        if found and not self.constants["RESUME"]:
            raise InputError(
                f"{self.folder} holds a run already: set RESUME to True to go on with it, or change RUN_DIR"
            )
        return found[0] if found else None

    def _load_weights(self, folder):
        loaded = type(self.raw_model).from_pretrained(folder).state_dict()
        load_weights(self.raw_model, loaded, folder, "set the constants back, or change RUN_DIR")

    def _load_progress(self, checkpoint):
        training = json.loads((checkpoint / "training.json").read_text())
        self.step, self.best = training["step"], training["best_validation_loss"]
        self.validation_loss = training["validation_loss"]
        for name, fact in self.facts.items():
            if training.get(name) != json.loads(json.dumps(fact)):
                raise InputError(f"{checkpoint} was trained with other {name}; set them back, or change RUN_DIR")
        state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        averaged = dict(type(self.raw_model).from_pretrained(checkpoint).named_parameters())
        trained = [name for name, parameter in self.raw_model.named_parameters() if parameter.requires_grad]
        self.ema.shadow_params = [averaged[name].detach().to(self.accelerator.device) for name in trained]
        self.ema.optimization_step = self.step
        say(f"resuming {checkpoint} at step {self.step}")


class _MetricsLog:
    """metrics.csv, its picture loss.png, and TensorBoard where it is installed."""

    def __init__(self, folder, step):
        self.folder, self.path = folder, folder / "metrics.csv"
        self.rows = []
        if step and self.path.exists():  # rows beyond the resumed step belong to what was lost
            with open(self.path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=step)
        except ImportError:
            self.board = None

    def add(self, row):
        self.rows.append(row)
        with writing("metrics.csv", self.folder), open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, METRICS)
            writer.writeheader()
            writer.writerows(self.rows)
        if self.board:
            for name, value in row.items():
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


def _to_device(batch, device):
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
