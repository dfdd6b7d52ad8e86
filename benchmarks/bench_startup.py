"""Seconds until a trainer does something, each in a process of its own; of the demo's size, on the CPU.

--help       naive   the script's imports, after which a script without `check_command_line` could answer
             ours    the script's answer
first step   naive   from an empty cache and an empty run folder until the first step has been done
             ours    the same command again: from the filled cache, resumed, until the next step has been done
N rows       naive   from the filled cache of so many images, and an empty run folder
             ours    the same command again, resumed

The N images are links to the drawn ones under other patients' names; the cache has a copy of their features for each name.
A step has been done when it stands in metrics.csv; the process is then killed, which costs a run nothing but the steps since
its checkpoint.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.bench_clock import result, take_turns
from phantom import draw_tree
from utils.cache import SHARD_ROWS, FeatureCache, image_keys
from utils.constants import REPOSITORY
from utils.errors import InputError
from utils.mimic_cxr import image_files, read_table, write_tree

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


def enlarge(tree, cache, large, rows):
    """Makes `large`, a tree of so many rows whose images are links to those of a drawn tree, and adds their features to the
    cache, copies of the drawn ones', which it has."""
    table = read_table(tree, splits=("train", "validate"), with_reports=False)
    numbers = np.arange(rows)
    repeated = table.iloc[numbers % len(table)].assign(
        dicom_id=[f"row-{number}" for number in numbers], subject_id=10_000_000 + numbers, study_id=50_000_000 + numbers
    )
    for path, link in zip(repeated["image_path"], image_files(large, repeated)):
        Path(link).parent.mkdir(parents=True)
        os.link(path, link)
    write_tree(large, repeated)
    found, drawn_keys = read_table(large, with_reports=False), image_keys(table)
    places = found["dicom_id"].str.removeprefix("row-").astype(int).to_numpy() % len(table)
    keys = image_keys(found)
    for kind in ("moments", "references"):
        features = FeatureCache(f"{cache}/{kind}", json.loads(Path(f"{cache}/{kind}/fingerprint.json").read_text()))
        values = features.stack(drawn_keys)
        for start in range(0, rows, SHARD_ROWS):
            features.append(keys[start : start + SHARD_ROWS], values[places[start : start + SHARD_ROWS]])


def measure(folder, steps, rows, turns, enough):
    """steps: of the run that is resumed; rows: of the larger tree; yields results."""
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

    def from_nothing():
        shutil.rmtree(folder / "new-cache", ignore_errors=True)
        begin(tree, folder / "new-cache")

    def begin(tree, cache):
        shutil.rmtree(folder / "new-run", ignore_errors=True)
        until_step(1, *arguments(tree, cache, folder / "new-run", MORE_STEPS))

    def resume(tree, run):
        metrics = Path(run) / "metrics.csv"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[: steps + 1]))  # as it ended
        until_step(steps + 1, *arguments(tree, cache, run, MORE_STEPS))

    variants = {"naive": from_nothing, "ours": lambda: resume(tree, run)}
    seconds = take_turns(variants, turns, "cpu", warm_up=0, enough=enough)
    note = f"{STUDIES} studies of {IMAGE_SIZE} pixels; resumed at step {steps}; {os.cpu_count()} cores"
    yield result("startup", "first step", "s", seconds["ours"], seconds["naive"], note=note)

    large, run = str(folder / "large"), str(folder / "large-run")
    enlarge(tree, cache, large, rows)
    call(*arguments(large, cache, run, steps))
    variants = {"naive": lambda: begin(large, cache), "ours": lambda: resume(large, run)}
    seconds = take_turns(variants, turns, "cpu", warm_up=0, enough=enough)
    note = f"the cache is full: a new run, and one resumed at step {steps}; {os.cpu_count()} cores"
    yield result("startup", f"first step, {rows:,} rows", "s", seconds["ours"], seconds["naive"], note=note)
