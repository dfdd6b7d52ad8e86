"""fit(): the training loop that all trainers share. training/run_folder.py describes what it writes.

try_training(): a trial before it: what would end a training after hours of encoding ends it in seconds.

Data order and randomness follow from (SEED, step, position in the batch) alone, whether a run is resumed or has several
processes. Only dropout depends on the process count; its seed is (SEED, step, process).
"""

import copy
import json
import math
import multiprocessing
import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import gather_object, send_to_device
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from training.batches import Batches, make_loader
from training.run_folder import MetricsLog, compare_with, find_checkpoint, name_checkpoint
from utils.checkpoints import load_weights, read_training
from utils.constants import save_constants
from utils.errors import InputError, Stopped, as_input_error, reason, say, stoppable, writing
from utils.folders import locked
from utils.mimic_cxr import split_rows
from utils.seeds import draw_rows, keyed_seed

DEFAULTS = {  # what fit() reads of a script's constants where the script has them
    "ACCUMULATION": 1,  # passes an optimiser step
    "BETAS": (0.9, 0.999),  # of AdamW; the paper's
    "WEIGHT_DECAY": 0.01,  # the paper's
    "CLIP_NORM": 1.0,  # largest norm of the gradient; 0: not clipped, as in the paper
    "LOG_EVERY": 50,  # optimiser steps a row of metrics.csv
    "VALIDATION_ROWS": 1000,  # examples a validation; 0: all of them
}
BAD_STEPS = 20  # consecutive steps without a finite gradient after which a run ends


def fit(model, examples, validation, compute_loss, constants, accelerator, preview=None, facts=None) -> None:
    """Trains a model and writes its checkpoints, metrics and pictures to RUN_DIR.

    A second call resumes from RUN_DIR/last with its own constants of the optimisation; a changed experiment is refused.
    After SIGTERM the current step is finished and saved; the resumed run equals an uninterrupted one bit for bit. The
    CPU waits for a GPU only at a row of metrics.csv: whether a step's gradient was finite is read one step later.

    Args:
        model: nn.Module with save_pretrained(folder) and a class method from_pretrained(folder).
        examples, validation: training.batches.Examples.
        compute_loss: (model, batch) => scalar, a mean over the batch's terms (`Examples.count_terms`). A step's loss is
            the mean over the terms of all of its passes and processes.
        constants: the script's, of which fit reads DEFAULTS and those of data, optimisation and checkpoints.
        preview: (model, path without suffix) => None; writes what the averaged model generates. Main process only.
        facts: a dict kept in every checkpoint's training.json, e.g. fingerprints of frozen encoders.
    """
    settings = {**DEFAULTS, **constants}
    folder, main = Path(settings["RUN_DIR"]), accelerator.is_main_process
    with locked(folder, "a training") if main else nullcontext():
        checkpoint = find_checkpoint(folder)
        if main:
            old = [folder / "last.old"] if checkpoint and checkpoint.name == "last" else []
            for path in [*folder.glob("*.new"), *old]:  # what a killed run left unfinished
                shutil.rmtree(path, ignore_errors=True)
        accelerator.wait_for_everyone()
        run = _Run(model, examples, validation, compute_loss, settings, accelerator, preview, facts or {})
        if checkpoint:
            run.resume(checkpoint)
        steps = gather_object([run.step])  # RUN_DIR may be another folder on another machine
        if len({*steps}) > 1:
            way_out = f"put RUN_DIR {folder} onto storage that all machines share"
            raise InputError(f"the processes would go on from steps {steps}: {way_out}")
        if main:
            save_constants(folder, constants)
        try:
            run.train()
        finally:
            run.ended.set()
            for tracker in accelerator.trackers:
                tracker.finish()


def try_training(
    model: nn.Module, compute_loss: Callable, make_batch: Callable, table: pd.DataFrame, constants: dict, accelerator
) -> None:
    """Tries the first pass of a new run, or compares a resumed one with its checkpoint. Changes nothing.

    make_batch: number of examples => a batch of so many. table: the rows to train on, with a column `split`. The others
    are those of `fit`. InputError for an empty split, a checkpoint in RUN_DIR that is of another experiment, a loss
    that is not finite, and a RUN_DIR that cannot be written; torch's error for too little memory.
    """
    settings, folder = {**DEFAULTS, **constants}, Path(constants["RUN_DIR"])
    for split in ("train", "validate"):
        split_rows(table, split, settings["DATA_ROOT"])
    size, parts = settings["BATCH_SIZE"], settings["ACCUMULATION"] * accelerator.num_processes
    if size % parts:
        shares = f"{accelerator.num_processes} processes x ACCUMULATION {settings['ACCUMULATION']}"
        raise InputError(f"BATCH_SIZE {size} cannot be shared by {shares}; make it a multiple of their product")
    checkpoint = find_checkpoint(folder)
    if checkpoint:
        compare_with(checkpoint, read_training(checkpoint), settings, facts={})
        return
    device, tried = accelerator.device, copy.deepcopy(model)  # a copy is not compiled, which would take minutes
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = send_to_device(make_batch(size // parts), device)
        tried.to(device).train()
        with accelerator.autocast():
            loss = compute_loss(tried, batch)
        loss.backward()
    if not torch.isfinite(loss):
        raise InputError(f"the first loss is {loss.item()}: take other INITIAL_WEIGHTS, or set PRECISION to 'no'")
    with writing("checkpoints", folder):
        folder.mkdir(parents=True, exist_ok=True)


def random_batch(shapes: dict[str, tuple[int, ...]], size: int) -> dict[str, torch.Tensor]:
    """`size` examples of the given shapes: standard normal tensors, and zeros for what is a single number."""
    return {
        name: torch.randn(size, *shape) if shape else torch.zeros(size, dtype=torch.long)
        for name, shape in shapes.items()
    }


class _Run:
    """A training and its state. `fit` resumes it, if there is a checkpoint, and then trains it."""

    def __init__(self, model, examples, validation, compute_loss, settings, accelerator, preview, facts):
        self.settings, self.accelerator = settings, accelerator
        self.examples, self.validation = examples, validation
        self.compute_loss, self.preview, self.facts = compute_loss, preview, facts
        self.folder = Path(settings["RUN_DIR"])
        self.total_steps = math.ceil(settings["EPOCHS"] * len(examples) / settings["BATCH_SIZE"])
        if settings["MAX_STEPS"]:
            self.total_steps = min(self.total_steps, settings["MAX_STEPS"])

        self.raw_model = model.to(accelerator.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, fused=True)  # its settings follow at each step
        self.average = Average(self.parameters, settings["EMA_DECAY"])
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

        # progress, kept in every checkpoint
        self.step, self.best, self.validation_loss = 0, math.inf, math.nan
        self.pending = []  # (loss, norm) of each step since the last row of metrics.csv
        self.skipped = 0  # consecutive steps that were not applied
        # not kept
        self.unread = deque()  # (step, loss, norm, applied) of steps that a GPU may still be computing
        self.stop_requests = 0  # processes that had received SIGTERM when the step began; of several, a tensor
        self.ended = multiprocessing.Event()  # for the processes that load batches
        loading = {"workers": settings["NUM_WORKERS"], "device": accelerator.device, "ended": self.ended}
        self._loader = partial(make_loader, **loading)  # data set, batches => DataLoader

    def train(self):
        settings, accelerator, main = self.settings, self.accelerator, self.accelerator.is_main_process
        parameters = sum(parameter.numel() for parameter in self.parameters)
        examples = f"{len(self.examples)} training and {len(self.validation)} validation examples"
        where = f"{accelerator.num_processes} x {accelerator.device.type}, precision {accelerator.mixed_precision}"
        say(f"{parameters:,} trained parameters, {examples}, steps {self.step} to {self.total_steps} on {where}")
        own_share = accelerator.process_index, accelerator.num_processes
        sizes = (settings[name] for name in ("BATCH_SIZE", "ACCUMULATION", "SEED"))
        batches = Batches(self.examples, *sizes, self.step, self.total_steps, *own_share)
        loader = iter(self._loader(self.examples, batches))
        log = MetricsLog(self.folder, self.step) if main else None
        accelerator.init_trackers(self.folder.name)
        progress = tqdm(total=self.total_steps, initial=self.step, desc="training", disable=not main)
        since = time.perf_counter()
        with stoppable() as stop_requested:
            while self.step < self.total_steps:
                self._take_step(loader, stop_requested())
                self.step += 1
                progress.update()
                at_checkpoint = self.step == self.total_steps or self.step % settings["CHECKPOINT_EVERY"] == 0
                if at_checkpoint or self.step % settings["LOG_EVERY"] == 0:
                    row = self._measure(time.perf_counter() - since)
                    if at_checkpoint:
                        self._checkpoint(row, log)
                    elif log:
                        log.add(row)
                        self._track(row)
                    progress.set_postfix(loss=row["loss"], validation=self.validation_loss)
                    since = time.perf_counter()
                # of several processes, all stop if one got the signal before the step began
                stops = stop_requested() if accelerator.num_processes == 1 else self.stop_requests.item() > 0
                if stops and self.step < self.total_steps:
                    self._read_steps()
                    if main and not at_checkpoint:
                        with writing("a checkpoint", self.folder):
                            self._save()
                            name_checkpoint(self.folder, improved=False)
                    accelerator.wait_for_everyone()
                    done = f"stopped after step {self.step} of {self.total_steps}"
                    raise Stopped(f"{done}; run the same command again to go on")
        progress.close()
        say(f"done: {self.folder}/best has the lowest validation loss, {self.best:.4f}")
        accelerator.wait_for_everyone()

    def _take_step(self, loader, stop_requested):
        """One optimiser step, which is taken if the gradient's norm is finite (fp16: as its scaler says)."""
        settings, accelerator = self.settings, self.accelerator
        torch.manual_seed(keyed_seed(settings["SEED"], "dropout", self.step, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
            group["betas"], group["weight_decay"] = tuple(settings["BETAS"]), settings["WEIGHT_DECAY"]
        self.model.train()
        batches = [next(loader) for _ in range(settings["ACCUMULATION"])]
        terms = [self.examples.count_terms(batch) for batch in batches]
        all_terms, self.stop_requests = sum(terms), stop_requested
        if accelerator.num_processes > 1:  # of all processes: tensors, so that nothing waits for a GPU
            own = [torch.full((), float(value), device=accelerator.device) for value in (all_terms, stop_requested)]
            all_terms, self.stop_requests = accelerator.reduce(torch.stack(own), "sum")
        total = torch.zeros((), device=accelerator.device)
        for part, batch in enumerate(batches):
            is_last = part == settings["ACCUMULATION"] - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    # the gradients of the processes are averaged, hence the factor num_processes
                    weight = terms[part] * accelerator.num_processes / all_terms
                    inputs = send_to_device(batch, accelerator.device, non_blocking=True)
                    loss = self.compute_loss(self.model, inputs) * weight
                accelerator.backward(loss)
            total += loss.detach()
        norm = torch.as_tensor(accelerator.clip_grad_norm_(self.parameters, settings["CLIP_NORM"] or math.inf))
        applied = torch.isfinite(norm)
        if accelerator.scaler is None:
            self.optimizer.optimizer.found_inf = (~applied).float()  # read by the optimiser itself, on its device
        self.optimizer.step()
        if accelerator.scaler is not None:
            applied = not accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        self.average.step(self.parameters)
        self.unread.append((self.step, total, norm.detach().to(total.device), applied))
        self._read_steps(leave=1 if accelerator.device.type == "cuda" else 0)

    def _learning_rate(self):
        """Of this step: it rises linearly to LEARNING_RATE in WARMUP_STEPS, and then falls as LR_SCHEDULE says."""
        peak, warmup = self.settings["LEARNING_RATE"], self.settings["WARMUP_STEPS"]
        if self.step < warmup:
            return peak * (self.step / warmup)
        length = max(1, self.total_steps - warmup)
        falling = {
            "constant_with_warmup": 1.0, "linear": (self.total_steps - self.step) / length,
            "cosine": 0.5 * (1 + math.cos(math.pi * ((self.step - warmup) / length))),
        }  # fmt: skip
        return peak * falling[self.settings["LR_SCHEDULE"]]

    def _read_steps(self, leave=0):
        """Reads the results of all steps but the last `leave`, for each of which this waits until the GPU has it.

        Prints which were not applied; InputError after BAD_STEPS of them in a row.
        """
        while len(self.unread) > leave:
            step, loss, norm, applied = self.unread.popleft()
            if applied:
                self.pending.append((loss, norm))
                self.skipped = 0
                continue
            self.skipped += 1
            say(f"step {step + 1} is not applied: its gradient is {norm.item()} ({self.skipped} in a row)")
            if self.skipped == BAD_STEPS:
                self._give_up(f"the gradients of {BAD_STEPS} steps in a row, up to step {step + 1}, are not finite")

    def _give_up(self, why):
        way_out = "lower LEARNING_RATE or set PRECISION to 'no', and run the same command again"
        raise InputError(f"{why}; the last good checkpoint is kept in {self.folder}: {way_out}")

    def _measure(self, seconds):
        """A row of metrics.csv: means over the steps since the last row."""
        self._read_steps()
        nan = torch.tensor(math.nan)
        losses, norms = zip(*self.pending or [(nan, nan)])
        count, self.pending = len(self.pending), []
        device, peak = self.accelerator.device, None
        if device.type == "cuda":  # what this process reserved since the last row
            peak = round(torch.cuda.max_memory_reserved(device) / 2**20)  # MiB
            torch.cuda.reset_peak_memory_stats(device)
        mean = torch.stack(losses).mean().to(device)
        return {
            "step": self.step, "epoch": self.step * self.settings["BATCH_SIZE"] / len(self.examples),
            "loss": self.accelerator.reduce(mean, "mean").item(),
            "learning_rate": self._learning_rate(),
            "gradient_norm": torch.stack(norms).mean().item(),
            "examples_per_second": count * self.settings["BATCH_SIZE"] / seconds,
            "peak_gpu_mib": peak,
        }  # fmt: skip

    @torch.compiler.set_stance("force_eager")  # compiling validation and preview would take longer than running them
    def _checkpoint(self, row, log):
        """Validates, saves and draws with the averaged weights. row: of metrics.csv; log: MetricsLog, main process."""
        self.model.eval()
        with self.average.taken_by(self.parameters):
            self.validation_loss = self._validate()
        weights = [*self.parameters, *self.average.weights]
        if not (math.isfinite(self.validation_loss) and all(tensor.isfinite().all() for tensor in weights)):
            self._give_up(f"after step {self.step} the validation loss is {self.validation_loss}, or a weight infinite")
        improved = self.validation_loss < self.best
        self.best = min(self.best, self.validation_loss)
        row["validation_loss"] = self.validation_loss
        if self.accelerator.is_main_process:
            with writing("a checkpoint", self.folder):
                self._save()
                log.add(row)
                try:
                    self._track(row)
                    if self.preview:
                        path = self.folder / "previews" / f"step-{self.step:08d}"
                        path.parent.mkdir(exist_ok=True)
                        with torch.no_grad(), self.accelerator.autocast(), self.average.taken_by(self.parameters):
                            self.preview(self.raw_model, path)
                finally:  # a tracker or a preview that fails costs no checkpoint
                    name_checkpoint(self.folder, improved)
        self.accelerator.wait_for_everyone()

    def _track(self, row):
        """Gives a row of metrics.csv to the trackers."""
        self.accelerator.log({name: value for name, value in row.items() if value is not None}, self.step)

    @torch.no_grad()
    def _validate(self):
        """The mean loss over VALIDATION_ROWS validation examples, the same ones with the same seeds each time."""
        settings, accelerator = self.settings, self.accelerator
        seed, wanted = settings["SEED"], settings["VALIDATION_ROWS"] or len(self.validation)
        rows = draw_rows(len(self.validation), wanted, seed, "validation rows").tolist()
        seeds = [(row, keyed_seed(seed, "validation", row)) for row in rows]
        size = max(1, settings["BATCH_SIZE"] // (settings["ACCUMULATION"] * accelerator.num_processes))
        batches = [seeds[start : start + size] for start in range(0, len(seeds), size)]
        batches = batches[accelerator.process_index :: accelerator.num_processes]
        losses, terms = [torch.zeros((), device=accelerator.device)], [0]
        for batch in self._loader(self.validation, batches):
            terms.append(self.validation.count_terms(batch))
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            with accelerator.autocast():
                losses.append(self.compute_loss(self.raw_model, batch))
        sums = [sum(loss * count for loss, count in zip(torch.stack(losses).tolist(), terms)), sum(terms)]
        exact = torch.float32 if accelerator.device.type == "mps" else torch.float64  # MPS has no float64
        total = accelerator.reduce(torch.tensor(sums, device=accelerator.device, dtype=exact), "sum")
        return (total[0] / total[1]).item()

    def _save(self):
        """Writes the checkpoint `last.new`."""
        new = self.folder / "last.new"
        shutil.rmtree(new, ignore_errors=True)
        with self.average.taken_by(self.parameters):
            self.raw_model.save_pretrained(new)
        self.raw_model.save_pretrained(new / "raw")
        progress = {"step": self.step, "validation_loss": self.validation_loss, "best_validation_loss": self.best}
        training = {**progress, "constants": self.settings, **self.facts}
        (new / "training.json").write_text(json.dumps(training, indent=2) + "\n")
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            "pending": [[loss.item(), norm.item()] for loss, norm in self.pending],
            "skipped": self.skipped,
        }
        torch.save(state, new / "optimizer.pt")

    def resume(self, checkpoint: Path):
        """Loads the weights and the progress of a checkpoint; InputError if it is of another experiment, or damaged."""
        training = read_training(checkpoint)
        for name, before, now in compare_with(checkpoint, training, self.settings, self.facts):
            say(f"{name} was {before!r}, and is {now!r} from here on")
        raw = type(self.raw_model).from_pretrained(checkpoint / "raw").state_dict()
        load_weights(self.raw_model, raw, checkpoint / "raw", "set the constants back, or change RUN_DIR")
        failed = f"{checkpoint} cannot be resumed, its optimizer.pt or training.json is damaged"
        # a damaged file, or one that holds code, can fail anywhere
        with as_input_error(lambda error: f"{failed} ({reason(error)}): restore it, or change RUN_DIR"):
            state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            self.step, self.best = int(training["step"]), float(training["best_validation_loss"])
            self.validation_loss, self.skipped = float(training["validation_loss"]), state["skipped"]
            for group in state["optimizer"]["param_groups"]:
                group["fused"] = True  # older checkpoints have it otherwise, and would apply steps that are not finite
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            device = self.accelerator.device
            self.pending = [tuple(torch.tensor(value, device=device) for value in pair) for pair in state["pending"]]
        averaged = dict(type(self.raw_model).from_pretrained(checkpoint).named_parameters())
        trained = [name for name, parameter in self.raw_model.named_parameters() if parameter.requires_grad]
        self.average.weights = [averaged[name].detach().to(device) for name in trained]
        self.average.steps = self.step
        say(f"resuming {checkpoint} at step {self.step}")


class Average:
    """The exponential moving average of weights; at step n it decays by (n + 1) / (n + 10), in the end by `decay`."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.weights = [parameter.detach().clone() for parameter in parameters]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def step(self, parameters: list[nn.Parameter]) -> None:
        """Takes the parameters into the average, in one call for all of them; the first ones are the average."""
        decay = min(self.decay, (self.steps + 1) / (self.steps + 10)) if self.steps else 0.0
        self.steps += 1
        get_ema_multi_avg_fn(decay)(self.weights, parameters, self.steps)

    @contextmanager
    def taken_by(self, parameters: list[nn.Parameter]):
        """Inside, the parameters are the averaged ones."""
        with torch.no_grad():
            own = [parameter.to("cpu", copy=True) for parameter in parameters]
            torch._foreach_copy_(parameters, self.weights)
            yield
            torch._foreach_copy_(parameters, own)
