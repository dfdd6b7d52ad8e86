"""What several tests do: run the scripts, in this process or in two, and read and compare what they wrote."""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import load_file

from utils.constants import resolve
from utils.mimic_cxr import read_table

ROOT = Path(__file__).parent.parent
BACKBONES = {"clipUViT": "UViT", "clipSD": "UNet2DConditionModel"}
CSVS = ("synthetic.csv", *(f"mimic-cxr-2.0.0-{kind}.csv.gz" for kind in ("metadata", "chexpert", "split")))
EVALUATION = {
    "VIEWS": "()", "HOLD_OUT": "()", "JUDGE_MODEL": "test_resnet", "JUDGE_IMAGE_SIZE": 32, "JUDGE_STEPS": 12,
    "IMAGE_SIZE": 32, "DEVICE": "cpu",
}  # fmt: skip
FIT_CONSTANTS = (  # fit() reads these of a script's constants
    "RUN_DIR", "SEED", "BATCH_SIZE", "EPOCHS", "MAX_STEPS", "LEARNING_RATE", "LR_SCHEDULE", "WARMUP_STEPS", "EMA_DECAY",
    "CHECKPOINT_EVERY", "NUM_WORKERS",
)  # fmt: skip
TINY = """
[common]
VIEWS = []
HOLD_OUT = []
IMAGE_SIZE = 32
DEVICE = "cpu"
PRECISION = "no"
NUM_WORKERS = 0
BATCH_SIZE = 4
MAX_STEPS = 4
WARMUP_STEPS = 1
CHECKPOINT_EVERY = 2
VALIDATION_ROWS = 4
STEPS = 3
TEXT_GUIDANCE = 2.0
REFERENCE_GUIDANCE = 2.0
{places}
[train_diffusion_clipUViT]
INITIAL_WEIGHTS = ""
EMBED_DIM = 16
DEPTH = 2
NUM_HEADS = 2
[train_diffusion_clipSD]
ACCUMULATION = 2
"""


# ---- running scripts


def tiny_config(path, **places):
    """Writes a TOML file with the constants of a very small experiment and these places; returns its path."""
    path.write_text(TINY.format(places="\n".join(f'{name} = "{place}"' for name, place in places.items())))
    return path


def pipeline_of(checkpoint, config, prior=""):
    """A CXRIRGenPipeline of a U-ViT and of a prior, "" for none, by the samplers' constants and a TOML file."""
    from pipeline import CXRIRGenPipeline, load_parts

    scripts = {"sample_diffusion_clipUViT": checkpoint, "sample_prior_model": prior}
    images, reports = (
        resolve(ROOT / f"{script}.py", ["--config", str(config), "--CHECKPOINT", str(place)])
        for script, place in scripts.items()
    )
    return CXRIRGenPipeline(**load_parts(images, reports if prior else None))


def run_script(name, *arguments):
    """Runs a script in this process, as `python name.py ARGUMENTS` would; returns its exit status or message."""
    argv, sys.argv = sys.argv, [f"{name}.py", *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv = argv
    return 0


def flags(**constants):
    return [part for name, value in constants.items() for part in (f"--{name}", str(value))]


def train(config, tmp_path, **constants):
    constants = {"RUN_DIR": tmp_path / "run", "CACHE_DIR": tmp_path / "cache", **constants}
    return run_script("train_diffusion_clipUViT", "--config", config, *flags(**constants))


def sample(backbone, config, runs, output_root, **constants):
    constants = {"CHECKPOINT": runs / backbone / "best", "OUTPUT_ROOT": output_root, **constants}
    return run_script(f"sample_diffusion_{backbone}", "--config", config, *flags(**constants))


def launch(script, config, *arguments):
    """Two processes on the CPU; returns what they printed. (accelerate launch --cpu starts one only.)"""
    return launch_each([script, config, *arguments])


SERVER = multiprocessing.get_context("forkserver")  # imports the scripts once, and forks the processes of all launches
SERVER.set_forkserver_preload([path.stem for path in sorted(ROOT.glob("*.py"))])


def launch_each(*runs):
    """As `launch`, for several scripts one after the other."""
    runs = [[str(ROOT / f"{script}.py"), "--config", *map(str, arguments)] for script, *arguments in runs]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with tempfile.NamedTemporaryFile("r") as output:
        workers = [SERVER.Process(target=_run_as, args=(rank, port, runs, output.name)) for rank in (0, 1)]
        try:
            with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)):  # of the server
                for worker in workers:
                    worker.start()
            multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=400)
            if not any(worker.exitcode for worker in workers):
                for worker in workers:
                    worker.join(timeout=60)
        finally:
            for worker in workers:
                worker.kill()  # where the other one has failed
        said = output.read()
    assert [worker.exitcode for worker in workers] == [0, 0], said[-3000:]
    return said


def _run_as(rank, port, runs, output):
    """Runs scripts as one of two processes of a launch; what they print is appended to a file."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    sys.stdout = sys.stderr = open(output, "a", buffering=1)  # noqa: SIM115
    for sys.argv in runs:
        runpy.run_path(sys.argv[0], run_name="__main__")


# ---- what they wrote


def says(message, *words):
    assert isinstance(message, str) and message.count("\n") == 0, message
    for word in words:
        assert word in message, message


def by(rows, column):
    return {row[column]: row for row in rows}


def pictures(root):
    table = read_table(root)
    return {row.dicom_id: np.asarray(Image.open(row.image_path)).astype(int) for row in table.itertuples()}


def read_reports(root):
    return pd.read_csv(root / "reports.csv", keep_default_na=False).set_index("dicom_id")["report"].to_dict()


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def provenance(root):
    return pd.read_csv(root / "synthetic.csv", keep_default_na=False).set_index("dicom_id")


def kill(root, images_left):
    """Leaves a tree as SIGKILL does: some images and their latents, the manifest and the plan, but no CSV."""
    for name in CSVS:
        (root / name).unlink()
    for path in sorted(root.rglob("*.jpg"))[images_left:]:
        path.unlink()
        (root / "latents" / f"{path.stem}.npy").unlink()


def weights(folder):
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(Path(folder).rglob("*.safetensors"))}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys() and one
    for file in one:
        for name in one[file]:
            np.testing.assert_array_equal(one[file][name], other[file][name], err_msg=f"{file}: {name}")
