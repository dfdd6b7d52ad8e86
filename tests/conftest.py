"""Fixtures for all tests: tiny models and drawn images. Nothing is downloaded, and no patient's image is read."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # tiny models are no quicker with more


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    """A Stable-Diffusion-like folder, as text."""
    import tiny_models

    folder = tmp_path_factory.mktemp("models") / "base_model"
    tiny_models.save_base_model(folder)
    return str(folder)


@pytest.fixture(scope="session")
def reference_encoder_name(tmp_path_factory):
    """The open_clip name of an image tower."""
    import tiny_models

    folder = tmp_path_factory.mktemp("models") / "reference_encoder"
    tiny_models.save_reference_encoder(folder)
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def accelerator():
    from utils.devices import make_accelerator

    return make_accelerator("cpu", "no")


@pytest.fixture
def make_table(tmp_path):
    """A function: label vectors and patients (one a row) => a table, each row with a JPEG of random blobs."""
    from utils.findings import FINDINGS

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
