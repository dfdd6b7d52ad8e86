"""Fixtures for all tests: tiny models and drawn images. Nothing is downloaded, and no patient's image is read."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import importlib.util
import json
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from PIL import Image
from running import BACKBONES, EVALUATION, ROOT, flags, run_script, tiny_config

from evaluation import copies, metrics
from models.prior import Prior
from phantom import draw_tree
from utils.checkpoints import weights_fingerprint
from utils.devices import make_accelerator
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.latents import load_vae

torch.set_num_threads(1)  # tiny models are no quicker with more


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    """A Stable-Diffusion-like folder, as text."""
    folder = tmp_path_factory.mktemp("models") / "base_model"
    tiny_models.save_base_model(folder)
    return str(folder)


@pytest.fixture(scope="session")
def reference_encoder_name(tmp_path_factory):
    """The open_clip name of an image tower."""
    folder = tmp_path_factory.mktemp("models") / "reference_encoder"
    tiny_models.save_reference_encoder(folder)
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def accelerator():
    return make_accelerator("cpu", "no")


@pytest.fixture
def make_table(tmp_path):
    """A function: label vectors and patients (one a row) => a table, each row with a JPEG of random blobs."""

    def make(labels, subjects, splits=None, size=(48, 40)):
        rows = len(labels)
        table = pd.DataFrame(np.asarray(labels, dtype=np.int8), columns=FINDINGS)
        table["dicom_id"] = [f"image-{row}" for row in range(rows)]
        table["subject_id"] = subjects
        table["study_id"] = np.arange(rows) + 50_000_000
        table["view"] = "PA"
        table["split"] = "train" if splits is None else splits
        table["image_path"] = [str(tmp_path / f"image-{row}.jpg") for row in range(rows)]
        table["report"] = ""
        for row, path in enumerate(table.image_path):
            blobs = np.random.default_rng(row).integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
        return table

    return make


# ---- trees, and what the scripts make of them


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tree"
    draw_tree(root, studies=40, image_size=32, seed=5)
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory, tree, base_model, reference_encoder_name):
    """A TOML file with the constants of a very small experiment."""
    folder = tmp_path_factory.mktemp("config")
    return tiny_config(
        folder / "tiny.toml",
        DATA_ROOT=tree, CACHE_DIR=folder / "cache", BASE_MODEL=base_model, REFERENCE_ENCODER=reference_encoder_name,
    )  # fmt: skip


@pytest.fixture(scope="session")
def runs(tmp_path_factory, config):
    """A trained run folder of either backbone."""
    folder = tmp_path_factory.mktemp("runs")
    for backbone in BACKBONES:
        code = run_script(f"train_diffusion_{backbone}", "--config", config, *flags(RUN_DIR=folder / backbone))
        assert code == 0, code
    return folder


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation") / "real"
    draw_tree(root, studies=150, image_size=32, seed=5)
    return root


@pytest.fixture
def evaluate(real, tmp_path, monkeypatch):
    """evaluate(SYNTHETIC=..., ...) => evaluation.json; all runs share one cache, so one judge."""
    monkeypatch.setattr(metrics, "MINIMUM_POSITIVES", 2)
    monkeypatch.setattr(copies, "PLANTED", 4)
    script = ROOT / "evaluate_pairs.py"

    def run(**constants):
        output = tmp_path / "evaluation"
        places = {"REAL": real, "CACHE_DIR": real.parent / "cache", "OUTPUT": output}
        arguments = [
            text for item in {**EVALUATION, **places, **constants}.items() for text in (f"--{item[0]}", str(item[1]))
        ]
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        spec = importlib.util.spec_from_file_location("evaluate_pairs", script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()
        return json.loads((output / "evaluation.json").read_text())

    return run


# ---- models that write reports


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_models.make_tokenizer()


@pytest.fixture(scope="session")
def autoencoder(tokenizer):
    return tiny_models.make_autoencoder(tokenizer)


@pytest.fixture
def checkpoints(base_model, tokenizer, tmp_path):
    """The folders of a prior and of its BART, untrained."""
    autoencoder = tiny_models.make_autoencoder(tokenizer)
    autoencoder.save_pretrained(tmp_path / "bart")
    torch.manual_seed(0)
    prior = Prior(**tiny_models.PRIOR)
    prior.set_statistics(torch.zeros(16), 5 * torch.ones(16))  # large latents: images differ in their reports
    prior.save_pretrained(tmp_path / "prior")
    training = {
        "step": 1,
        "constants": {"IMAGE_SIZE": 32, "BASE_MODEL": base_model, "BART_CHECKPOINT": str(tmp_path / "bart")},
        "encoders": {
            "vae": weights_fingerprint(load_vae(base_model)),
            "bart": autoencoder.fingerprint(),
            "pooling": "mean",
        },
    }
    (tmp_path / "prior" / "training.json").write_text(json.dumps(training))
    return tmp_path / "prior", tmp_path / "bart"


@pytest.fixture
def write_reports(checkpoints, monkeypatch):
    """A function: constants => runs sample_prior_model.py with them."""

    def run_script(**constants):
        script = ROOT / "sample_prior_model.py"
        fixed = {"CHECKPOINT": checkpoints[0], "DEVICE": "cpu", "MAX_TOKENS": 20, "NUM_WORKERS": 1}
        arguments = [text for name, value in {**fixed, **constants}.items() for text in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as error:
            raise InputError(str(error)) from error

    return run_script


@pytest.fixture
def uvit_file(tmp_path):
    """A checkpoint of the U-ViT as the authors' Lightning writes it."""
    return tiny_models.save_lightning(tmp_path / "clipUViT.ckpt", tiny_models.uvit_state())
