"""Whatever kills a run, the same command completes it: every script under random SIGKILLs and SIGTERMs.

    python -m benchmarks.soak

Each trainer and sampler runs once without interruption, and then again and again, each start ended by SIGKILL or SIGTERM
at a random moment over the length of the uninterrupted run, and started again, until all KILLS and TERMS have met it. A
run that completes before is compared and begun anew, and so is the last one. What a run leaves has to be what the
uninterrupted one left: the same files with the same bytes, but for

    metrics.csv       without its column of speeds
    tensorboard/      not compared: its files hold the time
    a feature cache   its features, by key, byte for byte: a kill leaves them in other, randomly named shards

and SIGTERM has to end a run with exit status 0 and a sentence. Both runs have the same constants, paths included: they
differ in the working directory. On a drawn tree, with the demo's pretrained parts; each call starts afresh, in a new
folder under OUTPUT that is kept if something differs.

Starting Python and importing torch takes longer than such a run. So the runs are forked from this process, which has
imported what they need, and has no thread but one; a killed fork is as dead as a process of its own.

All seven, 25 signals each, took 7 minutes on 2 cores of which another process kept one busy.

Prints: a table, a line a script; exit status 1 if anything differs
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch: a process with threads cannot be forked safely

import csv
import io
import json
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil

from phantom import draw_tree
from utils.constants import REPOSITORY, override_constants
from utils.errors import InputError, run, writing

OUTPUT = "demo/soak"  # where the runs lie while they are compared (a folder to write)
KILLS = 20  # SIGKILLs a script (0 or more)
TERMS = 5  # SIGTERMs a script (0 or more)
STUDIES = 40  # of the drawn tree (10 or more)
IMAGE_SIZE = 32  # pixels (32 to 256; a multiple of 32 is what the demo's parts can take)
MAX_STEPS = 20  # optimiser steps a training (1 or more)
CHECKPOINT_EVERY = 4  # optimiser steps: what a SIGKILL can lose of a training (1 or more)
SEED = 1234  # of the moments, and of the tree (0 or more)

_RUNS = {  # script => what it writes
    "train_diffusion_clipUViT": ("cache-clipUViT", "clipUViT"),
    "sample_diffusion_clipUViT": ("made-by-clipUViT",),
    "train_diffusion_clipSD": ("cache-clipSD", "clipSD"),
    "sample_diffusion_clipSD": ("made-by-clipSD",),
    "train_bart": ("bart",),
    "train_prior_model": ("cache-prior", "prior"),
    "sample_prior_model": ("written",),
}
_CONFIG = """  # indented, so that none is taken for a constant of this script
[common]
    DATA_ROOT = "{tree}"
    BASE_MODEL = "{assets}/base_model"
    REFERENCE_ENCODER = "local-dir:{assets}/reference_encoder"
    VIEWS = []
    HOLD_OUT = []
    IMAGE_SIZE = {image_size}
    DEVICE = "cpu"
    PRECISION = "no"
    NUM_WORKERS = 0
    ENCODE_BATCH_SIZE = 8
    PREDICTION = "v_prediction"
    BATCH_SIZE = 4
    EPOCHS = 1000
    MAX_STEPS = {max_steps}
    WARMUP_STEPS = 2
    LOG_EVERY = 3
    CHECKPOINT_EVERY = {checkpoint_every}
    KEEP_CHECKPOINTS = 2
    VALIDATION_ROWS = 8
    PREVIEW_STEPS = 2
    STEPS = 4
[train_diffusion_clipUViT]
    CACHE_DIR = "cache-clipUViT"
    RUN_DIR = "clipUViT"
    INITIAL_WEIGHTS = ""
    EMBED_DIM = 32
    DEPTH = 2
    NUM_HEADS = 2
[sample_diffusion_clipUViT]
    CHECKPOINT = "clipUViT/best"
    OUTPUT_ROOT = "made-by-clipUViT"
    SPLIT = "train"
    DATA_ROOT = ""
    CACHE_DIR = ""
    BASE_MODEL = ""
    REFERENCE_ENCODER = ""
[train_diffusion_clipSD]
    CACHE_DIR = "cache-clipSD"
    RUN_DIR = "clipSD"
    ACCUMULATION = 2
[sample_diffusion_clipSD]
    CHECKPOINT = "clipSD/best"
    OUTPUT_ROOT = "made-by-clipSD"
    SPLIT = "train"
    DATA_ROOT = ""
    CACHE_DIR = ""
    BASE_MODEL = ""
    REFERENCE_ENCODER = ""
[train_bart]
    RUN_DIR = "bart"
    INITIAL_WEIGHTS = "{assets}/bart"
    LATENT_NOISE = 0.4
    PREVIEW_REPORTS = 2
    EVALUATION_REPORTS = 4
[train_prior_model]
    CACHE_DIR = "cache-prior"
    RUN_DIR = "prior"
    BART_CHECKPOINT = "bart/best"
    PRETRAINED = "local-dir:{assets}/vit"
    EMBED_DIM = 64
    DEPTH = 4
    NUM_HEADS = 4
    EVALUATION_IMAGES = 4
[sample_prior_model]
    CHECKPOINT = "prior/best"
    BASE_MODEL = ""
    OUTPUT_ROOT = "written"
    MAX_TOKENS = 40
"""
_MODULES = (  # what the scripts import, and what these import only when they need it
    "torch", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_dpmsolver_multistep", "transformers.models.bart.modeling_bart",
    "transformers.models.clip.modeling_clip", "open_clip", "timm", "matplotlib.figure", "training.examples", "evaluation.metrics",
    "training.preflight", "models.prior", "utils.references", "sampling.images", "training.loop", "models.weights", "uvit.model",
)  # fmt: skip


# ---- what a run has left -------------------------------------------------------------------------------------------


def contents(folder, names):
    """{file: its bytes} of the folders of these names under `folder`; features of a cache, and metrics, as said above."""
    found = {}
    for path in sorted(path for name in names for path in (folder / name).rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or "tensorboard" in name.parts or path.with_suffix(".keys.json").exists():
            continue
        if path.name.endswith(".keys.json"):
            found.update(_features(path, name.parent))
        elif path.name == "metrics.csv":
            found[str(name)] = _without_speed(path)
        elif not _is_of_an_unfinished_shard(path):
            found[str(name)] = path.read_bytes()
    return found


def differences(one, other):
    """How what a run left differs from what it should have: a sentence for each file; one, other: from `contents`."""
    return [
        f"{name}: {'missing' if name not in other else 'not in the uninterrupted run' if name not in one else 'differs'}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def _features(keys_file, folder):
    about = json.loads(keys_file.read_text())
    values = np.load(keys_file.with_name(keys_file.name.replace(".keys.json", ".npy")))
    return {f"{folder}/{key}": value.tobytes() for key, value in zip(about["keys"], values)}


def _is_of_an_unfinished_shard(path):
    """Whether a file is a shard's values whose keys a kill came before: they do not count, and go after a day."""
    return path.suffix == ".npy" and (path.parent / "fingerprint.json").exists()


def _without_speed(path):
    with open(path, newline="") as file:
        rows = [{**row, "examples_per_second": ""} for row in csv.DictReader(file)]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writerows(rows)
    return text.getvalue().encode()


# ---- runs ----------------------------------------------------------------------------------------------------------


class Place:
    """A working directory in which scripts run, all with the same constants."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config
        folder.mkdir()

    def start(self, script):
        """Forks a run of a script; returns its process id. What it prints is added to SCRIPT.log."""
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            os.setsid()
            os.chdir(self.folder)
            sys.stdout = sys.stderr = log = open(f"{script}.log", "a", encoding="utf-8")  # noqa: SIM115
            os.dup2(log.fileno(), 1)  # what libraries of C write
            os.dup2(log.fileno(), 2)
            sys.argv = [f"{script}.py", "--config", str(self.config)]
            runpy.run_path(str(REPOSITORY / f"{script}.py"), run_name="__main__")
            status = 0
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
            print(exit.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)  # not through what this process would do at its end

    def run(self, script, kind=None, after=0.0):
        """Runs a script, and sends it a signal after so many seconds; returns whether it met the signal.

        InputError if it ends otherwise than it should.
        """
        log = self.folder / f"{script}.log"
        log.touch()  # a signal may come before the run has opened it
        said = log.stat().st_size
        process, end = self.start(script), time.monotonic() + after
        ended, status = 0, 0
        while not ended and (kind is None or time.monotonic() < end):
            time.sleep(0.002)
            ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            os.kill(process, kind)
            ended, status = os.waitpid(process, 0)
            met = True
        else:
            met = False
        status, words = os.waitstatus_to_exitcode(status), log.read_bytes()[said:].decode(errors="replace")
        unstarted = kind == signal.SIGTERM and not words  # it came before the script's first line
        if status and not (met and (kind == signal.SIGKILL or unstarted)):
            raise InputError(
                f"{script} ended with {status} after {signal.strsignal(kind) if met else 'no signal'}: {words}"
            )
        return met

    def clear(self, script):
        for name in _RUNS[script]:
            shutil.rmtree(self.folder / name, ignore_errors=True)


def soak(script, whole, killed, signals, draw):
    """Runs a script whole, and then killed until all signals have met it; returns the row of the table.

    whole, killed: two Places; signals: a list; draw: a random.Random.
    """
    since = time.monotonic()
    whole.run(script)
    length, wanted = time.monotonic() - since, contents(whole.folder, _RUNS[script])
    rounds, different, left = 0, [], list(signals)
    while left or not rounds:
        killed.clear(script)
        finished = False
        while not finished:
            met = killed.run(script, left[0], draw.uniform(0, length)) if left else killed.run(script)
            finished = not met
            left = left[met:]
        rounds += 1
        found = differences(wanted, contents(killed.folder, _RUNS[script]))
        if found:
            different = different or found
            break
    met = signals[: len(signals) - len(left)]
    return {
        "script": script,
        "kills": met.count(signal.SIGKILL),
        "terms": met.count(signal.SIGTERM),
        "completed": rounds,
        "files": len(wanted),
        "s": f"{time.monotonic() - since:.0f}",
        "result": "equal" if not different else f"{len(different)} differ: {', '.join(different[:5])}",
    }


def main():
    override_constants(globals())
    for name in _MODULES:
        import_module(name)
    assert psutil.Process().num_threads() == 1, "a library has started threads"

    with writing("the runs", OUTPUT):
        Path(OUTPUT).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=OUTPUT)).resolve()
        tree, assets = folder / "tree", REPOSITORY / "assets" / "demo"
        draw_tree(tree, STUDIES, IMAGE_SIZE, SEED)
        text = _CONFIG.format(
            tree=tree, assets=assets, image_size=IMAGE_SIZE, max_steps=MAX_STEPS, checkpoint_every=CHECKPOINT_EVERY
        )
        (folder / "soak.toml").write_text(text)
    whole, killed = (Place(folder / name, folder / "soak.toml") for name in ("whole", "killed"))
    differs = False
    for script in _RUNS:
        draw = random.Random(f"{SEED} {script}")
        signals = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * TERMS
        draw.shuffle(signals)
        row = soak(script, whole, killed, signals, draw)
        if script == next(iter(_RUNS)):
            print("| " + " | ".join(row) + " |\n" + "| --- " * len(row) + "|")
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
        differs = differs or row["result"] != "equal"
    if differs:
        sys.exit(f"something differs; the runs are kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    run(main)
