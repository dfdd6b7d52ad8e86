"""Whatever kills a run, the same command completes it: every script under random SIGKILLs and SIGTERMs.

    python -m tests.soak

Each script runs once without interruption. Then it is started again and again, and each start is ended by SIGKILL or
SIGTERM at a random moment over the length of the uninterrupted run, until all KILLS and TERMS have hit it. Each
completed run has to leave the same files with the same bytes as the uninterrupted run, except for metrics.csv, compared
without its column of speeds, and a feature cache, compared by key, since a kill leaves the features in other, randomly
named shards. What a kill cuts in the middle of a file stays as `.NAME.tmp`, which no script reads, and does not count.

The runs have the same constants, paths included, in two working directories, which are kept if something differs. They
are forked from this process, which has a single thread and has imported torch: importing it takes longer than such a
run. A SIGTERM that comes before the script has set its handler, or after it has ended, is ignored and does not count.

Prints: a line for each script; exit status 1 if anything differs
"""

import os

# before numpy and torch: a process with threads cannot be forked safely
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # of pyarrow, which pandas imports where it is installed

import csv
import json
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from phantom import draw_tree
from utils.constants import REPOSITORY, override_constants
from utils.errors import STATUS_WHEN_STOPPED, InputError, run, say, writing

OUTPUT = "demo/soak"  # where the runs lie while they are compared (a folder to write)
KILLS = 20  # SIGKILLs a script (0 or more)
TERMS = 5  # SIGTERMs a script (0 or more)
STUDIES = 120  # of the drawn tree (100 or more; a judge needs 10 images of a finding)
SEED = 1234  # of the moments, and of the tree (0 or more)

_CONFIG = REPOSITORY / "tests" / "soak.toml"
_IMAGE_SIZE = 32  # pixels of the drawn tree
_STOPPED = 3  # exit status of a run that SIGTERM has stopped in good order
_RUNS = {  # script => what it writes
    "train_diffusion_clipUViT": ("cache-clipUViT", "clipUViT"), "sample_diffusion_clipUViT": ("made-by-clipUViT",),
    "train_diffusion_clipSD": ("cache-clipSD", "clipSD"), "sample_diffusion_clipSD": ("made-by-clipSD",),
    "train_bart": ("bart",), "train_prior_model": ("cache-prior", "prior"), "sample_prior_model": ("written",),
    "select_pairs": ("cache-selected", "selected"), "sample_counterfactuals": ("twins",),
}  # fmt: skip


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, object]:
    """{file: what is compared of it} for the folders of these names; {cache/key: bytes} for the features of a cache."""
    compared = {}
    for path in sorted(path for name in names for path in (folder / name).rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") and part.endswith(".tmp") for part in name.parts):
            continue
        if path.name.endswith(".keys.json"):
            values = np.load(path.with_name(path.name.replace(".keys.json", ".npy")))
            keys = json.loads(path.read_text())["keys"]
            compared |= {f"{name.parent}/{key}": value.tobytes() for key, value in zip(keys, values)}
        elif path.name == "metrics.csv":
            with open(path, newline="") as file:
                compared[str(name)] = [{**row, "examples_per_second": ""} for row in csv.DictReader(file)]
        elif not (path.suffix == ".npy" and (path.parent / "fingerprint.json").exists()):  # a shard: see its keys
            compared[str(name)] = path.read_bytes()
    return compared


def differences(whole: dict, killed: dict) -> list[str]:
    """A sentence for each file in which what a killed run left differs from what the whole one left."""
    sentences = {name: f"{name}: missing" for name in whole.keys() - killed.keys()}
    sentences |= {name: f"{name}: not in the uninterrupted run" for name in killed.keys() - whole.keys()}
    sentences |= {name: f"{name}: differs" for name in whole.keys() & killed.keys() if whole[name] != killed[name]}
    return [sentences[name] for name in sorted(sentences)]


def run_in(folder: Path, script: str, kind: signal.Signals | None = None, after: float = 0.0) -> bool:
    """Runs a script in a folder, and sends it a signal after so many seconds; returns whether the signal ended it.

    InputError if it ends in any other way than completing.
    """
    process = get_context("fork").Process(target=_run_here, args=(folder, script))
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the fork inherits, until the script sets its own
    process.start()
    signal.signal(signal.SIGTERM, handler)
    process.join(after if kind else None)
    if process.exitcode is None:
        os.kill(process.pid, kind)
        process.join()
    status = process.exitcode
    if status and status != {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: _STOPPED}.get(kind):
        sent = signal.strsignal(kind) if kind else "no signal"
        text = (folder / f"{script}.log").read_text(encoding="utf-8", errors="replace")
        raise InputError(f"{script} ended with {status} after {sent}: {text[-2000:]}")
    return status != 0


def _run_here(folder, script):
    """Runs a script in this process, which was forked for it. Its output is appended to SCRIPT.log."""
    os.setsid()
    os.chdir(folder)
    os.environ[STATUS_WHEN_STOPPED] = str(_STOPPED)
    sys.stdout = sys.stderr = log = open(f"{script}.log", "a", encoding="utf-8")  # noqa: SIM115
    os.dup2(log.fileno(), 1)  # for what libraries in C write
    os.dup2(log.fileno(), 2)
    sys.argv = [f"{script}.py", "--config", str(_CONFIG)]
    runpy.run_path(str(REPOSITORY / f"{script}.py"), run_name="__main__")


def soak(script: str, whole: Path, killed: Path, signals: list[signal.Signals], rng: random.Random) -> dict:
    """Runs a script in the folder `whole`, and then in `killed` until all signals have hit it => what is printed."""
    begin = time.monotonic()
    run_in(whole, script)
    length, wanted = time.monotonic() - begin, contents(whole, _RUNS[script])
    completed, sentences, hits = 0, [], 0
    while not sentences and (hits < len(signals) or not completed):
        for name in _RUNS[script]:
            shutil.rmtree(killed / name, ignore_errors=True)
        while hits < len(signals) and run_in(killed, script, signals[hits], rng.uniform(0, length)):
            hits += 1
        if hits == len(signals):
            run_in(killed, script)  # without a signal: to its end
        completed += 1
        sentences = differences(wanted, contents(killed, _RUNS[script]))
    result = f"{len(sentences)} differ: {', '.join(sentences[:5])}" if sentences else "equal"
    row = {"script": script, "signals": hits, "completed": completed, "files": len(wanted)}
    return row | {"s": round(time.monotonic() - begin), "result": result}


def main():
    override_constants(globals())
    for name in _RUNS:
        import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started threads"

    with writing("the runs", OUTPUT):
        Path(OUTPUT).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=OUTPUT)).resolve()
        draw_tree(folder / "tree", STUDIES, _IMAGE_SIZE, SEED)
        whole, killed = places = folder / "whole", folder / "killed"
        for place in places:
            place.mkdir()
            (place / "tree").symlink_to(folder / "tree")
            (place / "assets").symlink_to(REPOSITORY / "assets" / "demo")
    equal = True
    for script in _RUNS:
        rng = random.Random(f"{SEED} {script}")
        signals = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * TERMS
        rng.shuffle(signals)
        row = soak(script, whole, killed, signals, rng)
        say(", ".join(f"{name} {value}" for name, value in row.items()))
        equal = equal and row["result"] == "equal"
    if not equal:
        sys.exit(f"something differs; the runs are kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    run(main)
