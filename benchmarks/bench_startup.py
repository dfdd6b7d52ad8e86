"""Seconds until a trainer does something, each in a process of its own; of the demo's size, on the CPU.

--help       naive   the script's imports, after which a script without `check_command_line` could answer
             ours    the script's answer
first step   naive   from an empty cache and an empty run folder until the first step has been done
             ours    the same command again: from the filled cache, resumed, until the next step has been done

A step has been done when it stands in metrics.csv; the process is then killed, which costs a run nothing but the steps since
its checkpoint.
"""

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bench_clock import result, take_turns
from utils.constants import REPOSITORY
from utils.errors import InputError
from utils.phantom import draw_tree

SCRIPT = "train_diffusion_clipUViT.py"
STUDIES = 100  # of the drawn tree
IMAGE_SIZE = 64  # pixels, the demo's
MORE_STEPS = 100_000  # a run that is killed long before its end
PATIENCE = 300  # seconds
POLL = 0.01  # seconds between two looks at metrics.csv


def start(*arguments):
    """Starts Python in the repository, silently; it knows nothing of this process's GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_TORCH_DEVICE"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=REPOSITORY, env=environment, **quiet)


def call(*arguments):
    """Runs Python to its end."""
    if start(*arguments).wait():
        raise InputError(f"python {' '.join(map(str, arguments))} failed")


def arguments(tree, cache, run, max_steps):
    """The command line of the trainer."""
    places = ("--config", "demo.toml", "--DATA_ROOT", tree, "--CACHE_DIR", cache, "--RUN_DIR", run)
    return SCRIPT, *places, "--DEVICE", "cpu", "--MAX_STEPS", max_steps, "--LOG_EVERY", 1, "--PREVIEW_STEPS", 1


def steps_done(run):
    """The last step in a run's metrics.csv, 0 where there is none."""
    try:
        with open(Path(run) / "metrics.csv", newline="") as file:
            return max((int(row["step"]) for row in csv.DictReader(file)), default=0)
    except FileNotFoundError:
        return 0


def until_step(step, *command):
    """Starts the trainer, and kills it when a step has been done."""
    run = command[command.index("--RUN_DIR") + 1]
    process = start(*command)
    end = time.monotonic() + PATIENCE
    try:
        while steps_done(run) < step:
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(f"{SCRIPT} came to no step {step} in {PATIENCE} seconds, or ended before")
            time.sleep(POLL)
    finally:
        process.kill()
        process.wait()


def measure(folder, steps, turns, enough):
    """steps: of the run that is resumed; yields results."""
    folder = Path(folder)
    tree, cache, run = (str(folder / name) for name in ("tree", "cache", "run"))
    draw_tree(tree, STUDIES, IMAGE_SIZE)
    helps = {
        "naive": lambda: call("-c", f"import {SCRIPT.removesuffix('.py')}"),
        "ours": lambda: call(SCRIPT, "--help"),
    }
    seconds = take_turns(helps, turns, "cpu", enough=enough)
    yield result("startup", "--help", "s", seconds["ours"], seconds["naive"])

    call(*arguments(tree, cache, run, steps))  # the run that is resumed
    written = (Path(run) / "metrics.csv").read_text()

    def from_nothing():
        for place in (folder / "new-cache", folder / "new-run"):
            shutil.rmtree(place, ignore_errors=True)
        until_step(1, *arguments(tree, folder / "new-cache", folder / "new-run", MORE_STEPS))

    def resumed():
        (Path(run) / "metrics.csv").write_text(written)  # without the step of the turn before
        until_step(steps + 1, *arguments(tree, cache, run, MORE_STEPS))

    seconds = take_turns({"naive": from_nothing, "ours": resumed}, turns, "cpu", warm_up=0, enough=enough)
    note = f"{STUDIES} studies of {IMAGE_SIZE} pixels; resumed at step {steps}; {os.cpu_count()} cores"
    yield result("startup", "first step", "s", seconds["ours"], seconds["naive"], note=note)
