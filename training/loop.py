"""fit(): the one training loop, for every model of this project. What it leaves is in training/run_folder.py.

Data order and randomness are functions of (SEED, step, position in the batch): a resumed run, or one on another number
of processes, sees the same batches and the same noise. Only a network's own dropout (BART's) hangs on how many processes
there are, for it is drawn for a whole pass at a time: by (SEED, step, process).
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections import deque
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.muon import make_optimizer
from training.run_folder import MetricsLog, compare_with, find_checkpoint, name_checkpoint, remove_unfinished
from utils.checkpoints import load_weights, read_training
from utils.constants import save_constants
from utils.errors import InputError, Stopped, reason, say, stoppable, writing
from utils.folders import locked
from utils.seeds import draw_rows, keyed_seed

FIT_CONSTANTS = (  # what fit() reads of a script's constants
    "RUN_DIR", "RESUME", "SEED", "BATCH_SIZE", "ACCUMULATION", "EPOCHS", "MAX_STEPS", "OPTIMIZER", "LEARNING_RATE",
    "BETAS", "WEIGHT_DECAY", "LR_SCHEDULE", "WARMUP_STEPS", "CLIP_NORM", "EMA_DECAY", "CHECKPOINT_EVERY", "KEEP_CHECKPOINTS", "LOG_EVERY",
    "VALIDATION_ROWS", "NUM_WORKERS",
)  # fmt: skip
BAD_STEPS = 20  # steps in a row whose gradient is no number, after which a run ends: it does not mend itself
NAMED_EXAMPLES = 8  # examples of such a step that are named


def fit(
    model,
    examples,
    validation,
    compute_loss,
    constants,
    accelerator,
    preview=None,
    facts=None,
    collate=None,
    terms=None,
):
    """Trains a model and leaves its checkpoints, metrics and pictures in RUN_DIR.

    A second call goes on from RUN_DIR/last with the optimisation that the constants say now; a changed experiment is
    refused. SIGTERM ends it after the step in hand with a checkpoint, from which the run goes on bit for bit. Between two
    rows of metrics.csv nothing waits for a GPU: whether a step's gradient was a number is looked at one step later.

    Args:
        model: nn.Module with save_pretrained(folder) and a class method from_pretrained(folder).
        examples, validation: data sets indexed by (position, seed). Where they have it, `examples.order(generator,
            head)` => positions of one epoch, the first `head` of which fill the batch before (a random permutation
            otherwise), and `examples.name(position)`, what an example is called in a message.
        compute_loss: (model, batch) => scalar, a mean over the batch.
        terms: batch, on the CPU => how many terms that mean is over (the examples, where it is not given): a step's loss is
            the mean over the terms of all of its passes and processes, however they share them.
        constants: the script's constants, of which fit reads FIT_CONSTANTS. BATCH_SIZE counts the examples of one
            optimiser step over all processes; ACCUMULATION splits a process's share into so many passes.
        preview: (model, path without suffix) => None; writes what the averaged model makes. On the main process.
        facts: a dict kept in every checkpoint's training.json, e.g. fingerprints of frozen encoders.
        collate: as torch's DataLoader has it.
    """
    folder, main = Path(constants["RUN_DIR"]), accelerator.is_main_process
    with locked(folder, "a training") if main else nullcontext():
        run = _Run(model, examples, validation, compute_loss, constants, accelerator, preview, facts, collate, terms)
        try:
            run.train()
        finally:
            run.over.set()


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
            order = getattr(self.examples, "order", lambda generator, head: generator.permutation(len(self.examples)))
            head = min(-epoch * len(self.examples) % self.batch_size, len(self.examples))
            self._epoch, self._order = epoch, order(generator, head).tolist()
        return self._order


class _Run:
    def __init__(
        self, model, examples, validation, compute_loss, constants, accelerator, preview, facts, collate, terms
    ):
        get = constants.__getitem__
        self.examples, self.validation, self.collate = examples, validation, collate
        self.compute_loss, self.preview, self.facts = compute_loss, preview, facts or {}
        self.terms = terms or (lambda batch: len(next(iter(batch.values()))))
        self.constants, self.accelerator = constants, accelerator
        self.folder = Path(get("RUN_DIR"))
        self.total_steps = math.ceil(get("EPOCHS") * len(examples) / get("BATCH_SIZE"))
        if get("MAX_STEPS"):
            self.total_steps = min(self.total_steps, get("MAX_STEPS"))
        if self.total_steps < 1:
            raise InputError(f"EPOCHS {get('EPOCHS')} and MAX_STEPS {get('MAX_STEPS')} leave no step to train")
        self.step, self.best, self.validation_loss = 0, math.inf, math.nan
        self.pending = []  # (loss, norm) of each step since the last row of metrics.csv
        self.unseen = deque()  # (step, loss, norm, whether it was applied) of steps that may still be running on a GPU
        self.skipped = 0  # steps in a row that were not applied
        self.over = multiprocessing.Event()  # for the processes that load batches

        self.raw_model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        checkpoint = self._checkpoint_to_resume()
        if checkpoint:
            self._load_weights(checkpoint / "raw")
        model.to(accelerator.device)
        optimizer = make_optimizer(
            get("OPTIMIZER"), model, lr=get("LEARNING_RATE"), betas=get("BETAS"), weight_decay=get("WEIGHT_DECAY")
        )
        try:
            schedule = get_scheduler(
                get("LR_SCHEDULE"),
                optimizer,
                num_warmup_steps=get("WARMUP_STEPS"),
                num_training_steps=self.total_steps,
            )
        except ValueError as error:
            raise InputError(f"LR_SCHEDULE: {error}; use constant_with_warmup, linear or cosine") from error
        self.rate_at = schedule.lr_lambdas[0]  # step => its learning rate, in units of LEARNING_RATE
        self.ema = Average(self.parameters, decay=get("EMA_DECAY"))
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if checkpoint:
            self._load_progress(checkpoint)
        self._compare_starts()

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
        self.batches = batches
        loader = iter(self._loader(self.examples, batches))
        log = MetricsLog(self.folder, self.step) if accelerator.is_main_process else None
        progress = tqdm(
            total=self.total_steps, initial=self.step, desc="training", disable=not accelerator.is_main_process
        )
        since = time.perf_counter()
        with stoppable() as asked_to_stop:
            while self.step < self.total_steps:
                self._optimiser_step(loader, asked_to_stop())
                self.step += 1
                progress.update()
                checkpoint = self.step == self.total_steps or self.step % constants["CHECKPOINT_EVERY"] == 0
                if checkpoint or self.step % constants["LOG_EVERY"] == 0:
                    row = self._row(time.perf_counter() - since)
                    if checkpoint:
                        with torch.compiler.set_stance("force_eager"):  # compiling for it takes longer than it does
                            self._checkpoint(row, log)
                    elif log:
                        log.add(row)
                    progress.set_postfix(
                        loss=f"{row['loss']:.4f}",
                        validation=f"{self.validation_loss:.4f}",
                        per_s=f"{row['examples_per_second']:.0f}",
                    )
                    since = time.perf_counter()
                if self.step < self.total_steps and self._has_to_stop(asked_to_stop()):
                    self._stop(checkpoint)
        progress.close()
        say(f"done: {self.folder}/best has the lowest validation loss, {self.best:.4f}")
        accelerator.wait_for_everyone()

    def _optimiser_step(self, loader, asked_to_stop):
        """One step; a gradient that is no number is not applied, and BAD_STEPS of them in a row end the run."""
        constants, accelerator = self.constants, self.accelerator
        torch.manual_seed(keyed_seed(constants["SEED"], "dropout", self.step, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = constants["LEARNING_RATE"] * self.rate_at(self.step)
            group["betas"], group["weight_decay"] = tuple(constants["BETAS"]), constants["WEIGHT_DECAY"]
        self.model.train()
        batches = [next(loader) for _ in range(constants["ACCUMULATION"])]
        terms = [self.terms(batch) for batch in batches]
        self.everyones = self._sum_over_processes(sum(terms), asked_to_stop)
        total = torch.zeros((), device=accelerator.device)
        for part, batch in enumerate(batches):
            synchronise = part == constants["ACCUMULATION"] - 1
            with nullcontext() if synchronise else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    # the gradients of the processes are averaged, so each has its share of the terms, times how many
                    share = terms[part] * accelerator.num_processes / self.everyones[0]
                    loss = self.compute_loss(self.model, _to_device(batch, accelerator.device)) * share
                accelerator.backward(loss)
            total += loss.detach()
        norm = torch.as_tensor(accelerator.clip_grad_norm_(self.parameters, constants["CLIP_NORM"] or math.inf))
        applied = self._apply(norm)
        self.ema.step(self.parameters)  # of weights that may not have moved
        self.unseen.append((self.step, total, norm.detach().to(total.device), applied))
        self._look_at_steps(but=1 if accelerator.device.type == "cuda" else 0)

    def _apply(self, norm):
        """The optimiser's step, which leaves the weights as they are if the gradient's norm is no number => whether it did not.

        fp16: the scaler itself skips what overflows, and lowers its scale.
        """
        applied = torch.isfinite(norm)
        if self.accelerator.scaler is None:
            self.optimizer.optimizer.found_inf = (~applied).float()  # what the optimiser itself asks, on its device
        self.optimizer.step()
        if self.accelerator.scaler is not None:
            applied = not self.accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        return applied

    def _look_at_steps(self, but=0):
        """Asks of all steps, but the last so many, whether they were applied: their losses count, or their examples are named.

        Asking waits for the GPU until it has done the step.
        """
        while len(self.unseen) > but:
            step, loss, norm, applied = self.unseen.popleft()
            if applied:
                self.pending.append((loss, norm))
                self.skipped = 0
            else:
                self.skipped += 1
                self._name_examples(step, norm.item())

    def _name_examples(self, step, norm):
        """Of a step that was not applied; InputError after BAD_STEPS of them."""
        positions = [position for position, _ in self.batches.step(step)]
        names = [str(getattr(self.examples, "name", str)(position)) for position in positions]
        shown = ", ".join(names[:NAMED_EXAMPLES]) + (
            f" and {len(names) - NAMED_EXAMPLES} more" * (len(names) > NAMED_EXAMPLES)
        )
        say(f"step {step + 1} is not applied, its gradient is {norm} ({self.skipped} in a row); it saw {shown}")
        if self.skipped == BAD_STEPS:
            raise InputError(
                f"the gradients of {BAD_STEPS} steps in a row are no numbers, up to step {step + 1}; the last good "
                f"checkpoint is kept in {self.folder}: lower LEARNING_RATE or set PRECISION to 'no', and run the same "
                "command again"
            )

    def _row(self, seconds):
        """A row of metrics.csv, means over the steps since the last one."""
        self._look_at_steps()
        losses, norms = zip(*self.pending) if self.pending else ((torch.tensor(math.nan),), (torch.tensor(math.nan),))
        count, self.pending = len(self.pending), []
        mean = torch.stack(losses).mean().to(self.accelerator.device)
        return {
            "step": self.step,
            "epoch": self.step * self.constants["BATCH_SIZE"] / len(self.examples),
            "loss": self.accelerator.reduce(mean, "mean").item(),
            "learning_rate": self.constants["LEARNING_RATE"] * self.rate_at(self.step),
            "gradient_norm": torch.stack(norms).mean().item(),
            "examples_per_second": count * self.constants["BATCH_SIZE"] / seconds,
            "peak_gpu_mib": self._peak_memory(),
        }

    def _peak_memory(self):
        """MiB that this process has taken of its GPU since the last row, with what PyTorch holds ready; None without one."""
        device = self.accelerator.device
        if device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_reserved(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
        return round(peak)

    def _sum_over_processes(self, *values):
        """The sums of these numbers over all processes, of which no GPU is waited for."""
        if self.accelerator.num_processes == 1:
            return values
        device = self.accelerator.device
        return self.accelerator.reduce(
            torch.stack([torch.full((), float(value), device=device) for value in values]), "sum"
        )

    def _has_to_stop(self, asked):
        """Whether this process was asked to, or with several, whether any was when the step began; all agree."""
        return asked if self.accelerator.num_processes == 1 else self.everyones[1].item() > 0

    def _stop(self, saved):
        """Ends the run after SIGTERM: saves where it is, unless that was just done."""
        self._look_at_steps()
        if not saved and self.accelerator.is_main_process:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
            with writing("a checkpoint", self.folder):
                self._save()
                name_checkpoint(self.folder, self.step, improved=False, keep=0)
            self.ema.restore(self.parameters)
        self.accelerator.wait_for_everyone()
        raise Stopped(f"stopped after step {self.step} of {self.total_steps}; run the same command again to go on")

    def _loader(self, data, batches):
        return DataLoader(
            data,
            batch_sampler=batches,
            num_workers=self.constants["NUM_WORKERS"],
            worker_init_fn=partial(_outlive_sigterm, self.over),
            pin_memory=self.accelerator.device.type == "cuda",
            collate_fn=self.collate,
        )

    # --- validation and checkpoints ------------------------------------------------------------------------------

    def _checkpoint(self, row, log):
        """Validates, saves and draws with the averaged weights; the row of metrics.csv gets its validation loss.

        log: a MetricsLog, on the main process.
        """
        self._compare_processes()
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.model.eval()
        self.validation_loss = self._validate()
        weights = [self.parameters, self.ema.temp_stored_params]
        if not (
            math.isfinite(self.validation_loss)
            and all(tensor.isfinite().all() for group in weights for tensor in group)
        ):
            raise InputError(
                f"after step {self.step} the validation loss is {self.validation_loss}, or a weight is no number: nothing "
                f"of it is saved, and the last good checkpoint is kept in {self.folder}; lower LEARNING_RATE or set "
                "PRECISION to 'no', and run the same command again"
            )
        improved = self.validation_loss < self.best
        self.best = min(self.best, self.validation_loss)
        row["validation_loss"] = self.validation_loss
        if self.accelerator.is_main_process:
            with writing("a checkpoint", self.folder):
                self._save()
                log.add(row)
                try:
                    self._draw_preview()
                finally:  # a picture that fails costs no checkpoint
                    name_checkpoint(self.folder, self.step, improved, self.constants["KEEP_CHECKPOINTS"])
        self.ema.restore(self.parameters)
        self.accelerator.wait_for_everyone()

    def _compare_processes(self):
        """InputError unless all processes have the same weights, which the same gradients have made of the same start."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return
        sums = torch.stack([parameter.detach().sum(dtype=torch.float32) for parameter in self.parameters])
        everyones = accelerator.gather(sums[None]).nan_to_num()  # (processes, tensors)
        others = [number for number, row in enumerate(everyones) if not torch.equal(row, everyones[0])]
        if others:
            raise InputError(
                f"after step {self.step} the weights of process {others[0]} are not those of process 0: a device or the "
                f"link between them computes wrongly; nothing of it is saved, and the last good checkpoint is kept in "
                f"{self.folder}; run the same command again, without that device if it happens again"
            )

    def _draw_preview(self):
        if self.preview:
            (self.folder / "previews").mkdir(exist_ok=True)
            with torch.no_grad(), self.accelerator.autocast():
                self.preview(self.raw_model, self.folder / "previews" / f"step-{self.step:08d}")

    @torch.no_grad()
    def _validate(self):
        """The mean loss over VALIDATION_ROWS validation examples, drawn by key, each with a fixed seed of its own."""
        constants, accelerator = self.constants, self.accelerator
        wanted = constants["VALIDATION_ROWS"] or len(self.validation)
        rows = draw_rows(len(self.validation), wanted, constants["SEED"], "validation rows").tolist()
        seeds = [(row, keyed_seed(constants["SEED"], "validation", row)) for row in rows]
        size = max(1, constants["BATCH_SIZE"] // (constants["ACCUMULATION"] * accelerator.num_processes))
        batches = [seeds[start : start + size] for start in range(0, len(seeds), size)]
        batches = batches[accelerator.process_index :: accelerator.num_processes]
        losses, terms = [torch.zeros((), device=accelerator.device)], [0]
        for batch in self._loader(self.validation, batches):
            terms.append(self.terms(batch))
            with accelerator.autocast():
                losses.append(self.compute_loss(self.raw_model, _to_device(batch, accelerator.device)))
        sums = [sum(loss * count for loss, count in zip(torch.stack(losses).tolist(), terms)), sum(terms)]
        exact = torch.float32 if accelerator.device.type == "mps" else torch.float64  # MPS has no float64
        total = accelerator.reduce(torch.tensor(sums, device=accelerator.device, dtype=exact), "sum")
        return (total[0] / total[1]).item()

    def _save(self):
        """Writes `last.new`; the averaged weights are in the model, the others stored."""
        new = self.folder / "last.new"
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
            {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
                "pending": [[loss.item(), norm.item()] for loss, norm in self.pending],
                "skipped": self.skipped,
            },
            new / "optimizer.pt",
        )

    # --- resuming ------------------------------------------------------------------------------------------------

    def _checkpoint_to_resume(self):
        """What `find_checkpoint` finds; removes what a kill left."""
        found = find_checkpoint(self.folder, self.constants["RESUME"])
        if self.accelerator.is_main_process:
            remove_unfinished(self.folder, found)
        self.accelerator.wait_for_everyone()
        return found

    def _compare_starts(self):
        """InputError unless all processes begin at one step: on another machine, RUN_DIR may be another folder."""
        steps = gather_object([self.step])
        others = [number for number, step in enumerate(steps) if step != steps[0]]
        if others:
            raise InputError(
                f"process {others[0]} would go on from step {steps[others[0]]}, and process 0 from step {steps[0]}: put "
                f"RUN_DIR {self.folder} onto storage that all machines share, and run the same command again"
            )

    def _load_weights(self, folder):
        loaded = type(self.raw_model).from_pretrained(folder).state_dict()
        load_weights(self.raw_model, loaded, folder, "set the constants back, or change RUN_DIR")

    def _load_progress(self, checkpoint):
        training = read_training(checkpoint)
        compare_with(checkpoint, training, self.constants, self.facts)
        try:
            state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            for group in state["optimizer"]["param_groups"]:
                group["fused"] = True  # in older checkpoints it was not
            self.step, self.best = int(training["step"]), float(training["best_validation_loss"])
            self.validation_loss = float(training["validation_loss"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.pending = [
                tuple(torch.tensor(value, device=self.accelerator.device) for value in pair)
                for pair in state["pending"]
            ]
            self.skipped = state["skipped"]
        except Exception as error:  # a damaged file, or one that holds code, fails in whatever reads it
            raise InputError(
                f"{checkpoint} cannot be gone on with, its optimizer.pt or training.json is damaged or foreign "
                f"({reason(error)}): restore it, or change RUN_DIR; nothing was changed"
            ) from error
        averaged = dict(type(self.raw_model).from_pretrained(checkpoint).named_parameters())
        trained = [name for name, parameter in self.raw_model.named_parameters() if parameter.requires_grad]
        self.ema.shadow_params = [averaged[name].detach().to(self.accelerator.device) for name in trained]
        self.ema.optimization_step = self.step
        say(f"resuming {checkpoint} at step {self.step}")


class Average(EMAModel):
    """The average of a training's weights, as diffusers makes it; a step reads them once, and copies none."""

    @torch.no_grad()
    def step(self, parameters):
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        get_ema_multi_avg_fn(self.cur_decay_value)(self.shadow_params, parameters, self.optimization_step)


def _outlive_sigterm(over, _):
    """In a process that loads batches: what stops a whole job (Slurm, `timeout`) tells it too, and the step needs its batch.

    over: an Event, after which SIGTERM ends it: it comes from its own run then, which would wait for it for ever.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if over.is_set() else None)


def _to_device(batch, device):
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
