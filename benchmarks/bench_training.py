"""Training examples a second, and the memory of it: the frozen encoders in every step, against cached features.

naive   float32, each step encodes its images with the VAE, its prompts and references with CLIP, its reports with BART;
        reports are padded to the longest that BART can read; AdamW, and nothing else
ours    the features come from the cache; reports are padded to the longest of their batch, of a like length as train_bart.py
        batches them; the precision, checkpointing, clipping and averaging that the script's constants say

Both take the script's own compute_loss, BATCH_SIZE and ACCUMULATION, train the same network, and get their batches from
the CPU, on a GPU ours from pinned memory, as training.loop does, and several steps in a row, none of which waits for the one
before. Reading files is not in it (benchmarks.bench_data), so pixels and features are random numbers.

Memory is of a GPU the allocator's peak, without what belongs to the other recipe; of a CPU the peak of a process of its
own, without what it holds when all is imported and nothing made. The share of the ceiling is of the operations that a step
really does, those that checkpointing does again included, over those of a large product of bf16 matrices in the same time;
of the time that a step takes, the profiler says which kind of operation has how much (benchmarks.bench_profile).
Compiled is the denoiser, as a script's COMPILE does it.
"""

import gc
import statistics
import subprocess
import sys
from functools import partial

import torch

from benchmarks.bench_clock import (
    ceiling,
    memory_of_this_process,
    peak_of_a_step,
    precision_of,
    result,
    speeds,
    take_turns,
)
from benchmarks.bench_parts import Parts
from benchmarks.bench_profile import PRODUCTS, told, where_time_goes
from benchmarks.bench_trainers import TRAINERS, VisionTrainer, make_trainer
from models.diffusion import PromptedDenoiser
from models.graphs import compiling
from utils.constants import REPOSITORY
from utils.devices import make_accelerator
from utils.errors import reason, say

STEPS_A_TURN = 4  # of ours on a GPU
SCRIPTS = {trainer.name: script for script, trainer in TRAINERS.items()}
OTHERWISE = {  # besides what the script's constants say
    "train_diffusion_clipUViT": {"Muon": {"OPTIMIZER": "muon"}},
}


def print_peak(script, recipe, sizes, report_tokens, otherwise):
    """Does two steps on the CPU and prints the MiB that they, and all that they need, have taken at most."""
    before = memory_of_this_process("VmRSS")
    trainer = make_trainer(script, Parts(sizes, "cpu"), make_accelerator("cpu", "auto"), report_tokens, **otherwise)
    for _ in range(2):
        getattr(trainer, recipe)()
    print(f"\n{memory_of_this_process('VmHWM') - before}")


def peaks(trainer, parts, report_tokens, otherwise):
    """{"naive", "ours"}: [MiB of memory at most]."""
    if parts.device.type == "cuda":
        step = {recipe: getattr(trainer, recipe) for recipe in ("naive", "ours")}
        return {recipe: [peak_of_a_step(step[recipe], trainer.resident(recipe), parts.device)] for recipe in step}
    found = {}
    for recipe in ("naive", "ours"):
        call = f"print_peak({trainer.script!r}, {recipe!r}, {parts.sizes!r}, {report_tokens}, {otherwise})"
        command = [sys.executable, "-c", f"from benchmarks.bench_training import print_peak; {call}"]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
        found[recipe] = [float(done.stdout.split()[-1])]
    return found


def compiled(trainer):
    """{"compiled": our step with the denoiser compiled}, or nothing, with a word why, where it cannot be."""
    if trainer.denoiser is None or trainer.device.type != "cuda":
        return {}
    own = trainer.model
    model = PromptedDenoiser(
        torch.compile(trainer.denoiser, **compiling(trainer.denoiser, trainer.passes, trainer.accelerator)),
        own.fusion,
        own.schedule,
    )
    try:
        trainer.ours(model)
    except Exception as error:  # a compiler fails in whatever it meets
        say(f"{trainer.title} cannot be compiled here: {reason(error)}")
        trainer._our_optimizer.zero_grad()
        return {}
    return {"compiled": partial(trainer.ours, model)}


def in_a_row(step, steps):
    """A variant of so many steps."""
    return lambda: [step() for _ in range(steps)]


def ways(trainers, batch_size):
    """(script, what its title adds, constants that are other than its own) of each training that is measured."""
    for script in map(SCRIPTS.get, trainers):
        if batch_size and issubclass(TRAINERS[script], VisionTrainer):
            yield script, "", {"BATCH_SIZE": batch_size}
            continue
        yield script, "", {}
        for way, otherwise in OTHERWISE.get(script, {}).items():
            yield script, f", {way}", otherwise


def measure(parts, accelerator, trainers, batch_size, report_tokens, turns, enough):
    """Yields results: speed and memory of these trainers; on a GPU also the shares of its ceiling.

    batch_size: of the vision module's, instead of their own constants' and of other ways; 0: as they have it.
    """
    cuda = parts.device.type == "cuda"
    most = ceiling(parts.device) if cuda else None
    if cuda:
        what = f"product of bf16 matrices, {most / 1e12:.0f} x 10^12 operations a second"
        yield result("training", what, "%", [100.0], note="the ceiling")
    for script, way, otherwise in ways(trainers, batch_size):
        trainer = make_trainer(script, parts, accelerator, report_tokens, **otherwise)
        title, size = trainer.title + way, trainer.constants["BATCH_SIZE"]
        note = f"batches of {size}, in {trainer.passes} passes, float32 and {precision_of(accelerator)}"
        variants = {"naive": trainer.naive, "ours": trainer.ours, **({} if way else compiled(trainer))}
        steps = {name: STEPS_A_TURN if cuda and name != "naive" else 1 for name in variants}
        turn = {name: in_a_row(step, steps[name]) for name, step in variants.items()}
        taken = take_turns(turn, turns, parts.device, warm_up=2, enough=enough)
        seconds = {name: [value / steps[name] for value in values] for name, values in taken.items()}
        speed = {name: speeds(size, values) for name, values in seconds.items()}
        note = "; ".join(filter(None, (note, getattr(trainer, "note", ""))))
        yield result("training", title, "examples/s", speed["ours"], speed["naive"], True, note)
        if "compiled" in speed:
            yield result("training", f"{title}, compiled", "examples/s", speed["compiled"], speed["naive"], True)
        if cuda or not way:  # on a CPU it takes two processes more
            memory = peaks(trainer, parts, report_tokens, otherwise)
            yield result("training", f"{title}, memory", "MiB", memory["ours"], memory["naive"])
        operations = trainer.operations() if cuda else 0
        for name, suffix in {"ours": "", "compiled": ", compiled"}.items():
            if name not in seconds:
                continue
            if cuda:
                share = [100 * operations / each / most for each in seconds[name]]
                note = f"{operations / 1e12:.3g} x 10^12 operations a step"
                yield result("training", f"{title}, share of the ceiling{suffix}", "%", share, note=note)
            shares = where_time_goes(variants[name], statistics.median(seconds[name]), parts.device)
            counted = [100 * sum(shares[kind] for kind in PRODUCTS)]
            yield result("training", f"{title}, products in its time{suffix}", "%", counted, note=told(shares))
        del trainer, variants
        gc.collect()
        torch.cuda.empty_cache()  # nothing happens where there is no GPU
