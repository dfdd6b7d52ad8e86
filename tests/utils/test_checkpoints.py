"""Damaged and foreign checkpoint and model folders: each is refused in one sentence that names the folder."""

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_autoencoder

from models.diffusion import PromptedDenoiser, load_unet, noise_schedule
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from models.weights import load_autoencoder, load_prior, load_vision
from utils.checkpoints import check_encoders, check_finite, load_strictly, read_training
from utils.errors import InputError
from utils.latents import load_vae
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder
from uvit.model import UViT


class Creates:
    """A pickle that creates a file if it is loaded as Python's pickle does."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """A folder with one healthy specimen of everything that is loaded."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_models.save_base_model(folder / "base")
    tiny_models.save_reference_encoder(folder / "reference")
    make_autoencoder(tokenizer).save_pretrained(folder / "bart")
    uvit = UViT(img_size=8, embed_dim=16, depth=2, num_heads=2)
    schedule = noise_schedule(str(folder / "base"), "epsilon")
    PromptedDenoiser(uvit, PooledFusion(16, 16, 16), schedule).save_pretrained(folder / "vision")
    Prior(latent_side=8, embed_dim=16, depth=1, num_heads=2, report_dim=16).save_pretrained(folder / "prior")
    constants = {
        "BASE_MODEL": str(folder / "base"), "REFERENCE_ENCODER": f"local-dir:{folder / 'reference'}",
        "DATA_ROOT": "data",
        "CACHE_DIR": "cache", "VIEWS": ["PA"], "HOLD_OUT": ["p19"], "IMAGE_SIZE": 32,
        "BART_CHECKPOINT": str(folder / "bart"),
    }  # fmt: skip
    training = {"step": 3, "constants": constants, "encoders": {"vae": "a", "bart": "b"}}
    for name in ("vision", "prior"):
        (folder / name / "training.json").write_text(json.dumps(training))
    return folder


LOADERS = {  # name => (what it loads, out of a copy of `whole`; its weights; its config)
    "vision": (
        lambda root: load_vision(root / "vision", "UViT"), "vision/diffusion_pytorch_model.safetensors",
        "vision/config.json"
    ),
    "fusion": (
        lambda root: load_vision(root / "vision", "UViT"), "vision/fusion/diffusion_pytorch_model.safetensors",
        "vision/fusion/config.json",
    ),
    "prior": (lambda root: load_prior(root / "prior"), "prior/diffusion_pytorch_model.safetensors",
    "prior/config.json"),
    "bart": (lambda root: load_autoencoder(str(root / "bart"), "mean", ""), "bart/model.safetensors",
    "bart/config.json"),
    "vae": (
        lambda root: load_vae(str(root / "base")), "base/vae/diffusion_pytorch_model.safetensors",
        "base/vae/config.json"
    ),
    "unet": (
        lambda root: load_unet(str(root / "base"), 16), "base/unet/diffusion_pytorch_model.safetensors",
        "base/unet/config.json",
    ),
    "text encoder": (
        lambda root: TextEncoder(str(root / "base"), pooled=True), "base/text_encoder/model.safetensors",
        "base/text_encoder/config.json",
    ),
    "reference encoder": (
        lambda root: ReferenceEncoder(f"local-dir:{root / 'reference'}"), "reference/open_clip_model.safetensors",
        "reference/open_clip_config.json",
    ),
}  # fmt: skip
PICKLES = {  # where each loader looks when there are no safetensors
    "bart": "pytorch_model.bin", "text encoder": "pytorch_model.bin",
    "reference encoder": "open_clip_pytorch_model.bin",
}  # fmt: skip


def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def refusal(load, root):
    with pytest.raises(InputError) as caught:
        load(root)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 1000
    return sentence


@pytest.mark.parametrize("name", LOADERS)
def test_whole_models_load_and_damaged_weights_are_refused(name, whole, tmp_path):
    load, weights, _ = LOADERS[name]
    load(whole)
    root = copy(whole, tmp_path)
    path = root / weights
    content = path.read_bytes()
    for harmed in (content[: len(content) // 2], b"", b"no weights"):
        path.write_bytes(harmed)
        assert str(root) in refusal(load, root)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})  # another model's
    assert str(root) in refusal(load, root)
    path.unlink()
    assert str(root) in refusal(load, root)
    for number in (math.nan, math.inf):
        path.write_bytes(content)
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        last = max(key for key in tensors if "visual" in key or name != "reference encoder")
        tensors[last].view(-1)[-1] = number
        save_file(tensors, path, metadata={"format": "pt"})
        sentence = refusal(load, root)
        assert str(root) in sentence and "hold NaN or infinity" in sentence


@pytest.mark.parametrize("name", LOADERS)
def test_a_pickle_that_holds_code_is_not_run(name, whole, tmp_path):
    load, weights, _ = LOADERS[name]
    root = copy(whole, tmp_path)
    path = root / weights
    path.unlink()
    pickled = path.with_name(PICKLES.get(name, "diffusion_pytorch_model.bin"))
    torch.save({"weight": Creates(tmp_path / "run")}, pickled)
    assert "nothing of it was run" in refusal(load, root)
    pickled.write_bytes(pickle.dumps(Creates(tmp_path / "run")))
    refusal(load, root)
    assert not (tmp_path / "run").exists()
    with open(pickled, "rb") as file:  # the same file does run where it is trusted
        pickle.load(file).close()
    assert (tmp_path / "run").exists()


SIZES = {
    "vision": "embed_dim", "fusion": "text_dim", "prior": "embed_dim", "bart": "d_model", "vae": "latent_channels",
    "unet": "cross_attention_dim", "text encoder": "hidden_size", "reference encoder": "model_cfg",
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_config_is_refused(name, whole, tmp_path):
    load, _, config = LOADERS[name]
    root = copy(whole, tmp_path)
    path = root / config
    content = path.read_bytes()
    for harmed in (content[:-5], b"", b"[]"):
        path.write_bytes(harmed)
        assert str(root) in refusal(load, root)
    for size in (0, "many"):
        path.write_text(json.dumps({**json.loads(content), SIZES[name]: size}))
        assert str(root) in refusal(load, root)
    path.unlink()  # a library would take its own configuration in its place
    assert str(root) in refusal(load, root) and not path.exists()


def test_a_damaged_scheduler_is_refused(whole, tmp_path):
    root = copy(whole, tmp_path)
    path = root / "vision" / "scheduler" / "scheduler_config.json"
    content = path.read_text()
    path.write_text(content[:-5])
    assert str(root) in refusal(LOADERS["vision"][0], root)
    path.unlink()
    assert str(root) in refusal(LOADERS["vision"][0], root)


# ---- training.json -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vision", "prior"])
def test_a_damaged_training_is_refused(name, whole, tmp_path):
    root = copy(whole, tmp_path)
    path = root / name / "training.json"
    content = path.read_text()
    for harmed in (content[:-5], "[]", json.dumps({**json.loads(content), "constants": None})):
        path.write_text(harmed)
        assert str(root / name) in refusal(LOADERS[name][0], root)
    path.unlink()
    assert str(root / name) in refusal(LOADERS[name][0], root)


def test_another_frozen_model_than_in_training_is_named(whole):
    training = read_training(whole / "prior")
    with pytest.raises(InputError, match="trained with another bart .*fingerprint .*set BART_CHECKPOINT"):
        check_encoders(training, bart="a")
    del training["encoders"]
    with pytest.raises(InputError, match="trained with another vae .*None"):
        check_encoders(training, vae="a")


# ---- folders that are not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["runs/absent", "/no/such/place"])
def test_an_absent_folder_is_named(place):
    for load in (
        lambda: load_vision(place, "UViT"), lambda: load_prior(place), lambda: load_autoencoder(place, "mean", ""),
        lambda: load_vae(place), lambda: load_unet(place, 16), lambda: TextEncoder(place, pooled=True),
        lambda: ReferenceEncoder(f"local-dir:{place}"), lambda: load_strictly(Prior, place),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"there is no such folder|there is no checkpoint") as caught:
            load()
        assert place in str(caught.value)


def test_a_bart_without_its_tokenizer_is_refused(whole, tmp_path):
    root = copy(whole, tmp_path)
    path = root / "bart" / "tokenizer.json"
    content = path.read_bytes()
    for harmed in (b"", content[:200]):
        path.write_bytes(harmed)
        refusal(LOADERS["bart"][0], root)
    path.unlink()
    (root / "bart" / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(LOADERS["bart"][0], root)


def test_weights_that_are_not_finite_are_named():
    layer = torch.nn.Linear(2, 2)
    check_finite(layer, "here")
    with torch.no_grad():
        layer.bias[0] = math.nan
    with pytest.raises(InputError, match=r"the weights in here are damaged: 1 tensors hold NaN or infinity, e.g. bias"):
        check_finite(layer, "here")


def test_start_from_refuses_code(whole, tmp_path):
    root = copy(whole, tmp_path)
    weights = root / "vision" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({"weight": Creates(tmp_path / "run")}, weights.with_suffix(".bin"))
    model, _ = load_vision(whole / "vision", "UViT")
    with pytest.raises(InputError, match="nothing of it was run"):
        model.start_from(root / "vision")
    assert not (tmp_path / "run").exists()
    assert isinstance(ReportAutoencoder.from_pretrained(Path(whole) / "bart"), ReportAutoencoder)
