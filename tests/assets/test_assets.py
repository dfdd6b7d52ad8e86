"""The makers of the parts in assets/: what they leave is what the scripts load."""

import re

import numpy as np
import pytest
import timm
import torch

import phantom
from assets import make_demo_assets, make_open_assets
from assets.autoencoder import distil_decoder, make_vae, refine_decoder, save_half, to_pixels
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from utils.checkpoints import load_strictly
from utils.constants import REPOSITORY
from utils.errors import InputError
from utils.latents import decode_latents, load_decoder, load_vae
from utils.prompts import ReferenceEncoder, TextEncoder

SIDE = 32


@pytest.fixture(scope="module")
def films():
    rng = np.random.default_rng(0)
    return np.stack([phantom.random_chest(rng, SIDE)[0] for _ in range(12)])


def test_a_vae_learns_and_its_decoder_alone_is_refined(films, tmp_path):
    untrained, vae = (make_vae(films, (8, 16), steps, 4, 5e-3, seed=0) for steps in (1, 40))
    assert make_open_assets.psnr(vae, films) > make_open_assets.psnr(untrained, films) + 3
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    refine_decoder(vae, films, 4, critic_from=2, critic_weight=0.1, batch_size=4, seed=0)
    moved = {name.split(".")[0] for name, tensor in vae.state_dict().items() if (tensor != before[name]).any()}
    assert moved == {"decoder", "post_quant_conv"}
    save_half(vae, tmp_path / "vae")
    again = load_vae(tmp_path)
    with torch.no_grad():
        latents = again.encode(to_pixels(films)).latent_dist.mean * again.config.scaling_factor
    assert 0.5 < latents.std() < 2


def test_a_quick_decoder_learns_what_the_vaes_own_makes(films, tmp_path):
    vae = make_vae(films, (8, 16), 40, 4, 5e-3, seed=0).eval()
    with torch.no_grad():
        latents = vae.encode(to_pixels(films)).latent_dist.mean * vae.config.scaling_factor
    wanted = decode_latents(vae, latents).astype(float)
    errors = []
    for steps in (1, 60):
        save_half(distil_decoder(vae, films, 8, steps, 4, seed=0), tmp_path / str(steps))
        quick = load_decoder(str(tmp_path / str(steps)), vae)
        errors.append(np.abs(decode_latents(quick, latents) - wanted).mean())
    assert errors[1] < errors[0] / 2


def test_the_open_assets_are_a_base_model_with_a_vae_of_these_films(tmp_path, monkeypatch):
    phantom.draw_tree(tmp_path / "tree", studies=40, image_size=SIDE)
    for name, value in {
        "DATA_ROOTS": (str(tmp_path / "tree"),), "FOLDER": str(tmp_path / "open"), "IMAGE_SIZE": SIDE,
        "CHANNELS": (8, 16), "VAE_STEPS": 2, "DECODER_STEPS": 2, "CRITIC_FROM": 1, "BATCH_SIZE": 2, "DEVICE": "cpu",
    }.items():  # fmt: skip
        monkeypatch.setattr(make_open_assets, name, value)
    monkeypatch.setattr(make_open_assets, "override_constants", lambda own: None)
    make_open_assets.main()
    made = {path.name for path in (tmp_path / "open" / "base_model").iterdir()}
    assert made == {"scheduler", "text_encoder", "tokenizer", "vae"}
    assert load_vae(tmp_path / "open" / "base_model").config.sample_size == SIDE


CONFIG = """
[common]
DEVICE = "cpu"
PRECISION = "no"
NUM_WORKERS = 0
VIEWS = []
HOLD_OUT = []
IMAGE_SIZE = 64
BATCH_SIZE = 4
MAX_STEPS = 1
EVALUATION_REPORTS = 0
EVALUATION_IMAGES = 0
DETAILS_WEIGHT = 0.1

[train_bart]
POOLING = "sentences"

[train_prior_model]
PRIOR = "flow"
EMBED_DIM = 128
DEPTH = 6
NUM_HEADS = 4
FREEZE_TRANSFORMER = true
"""


def test_the_demos_parts_are_made_once_and_load(tmp_path, monkeypatch, capsys):
    """But for the denoisers."""
    phantom.draw_tree(tmp_path / "parts" / "phantom", studies=30, image_size=64)
    (tmp_path / "parts.toml").write_text(CONFIG)
    for name, value in {
        "FOLDER": str(tmp_path / "demo"), "WORK": str(tmp_path / "parts"), "CONFIG": str(tmp_path / "parts.toml"),
        "PARTS": ("vae", "decoder", "quick", "clip", "vit", "bart", "prior"), "CHESTS": 80, "VAE_CHANNELS": (8, 16, 16),
        "VAE_STEPS": 2, "DECODER_STEPS": 3, "CRITIC_FROM": 2, "QUICK_STEPS": 1, "CLIP_STEPS": 1, "VIT_STEPS": 1,
        "REPORTS": 80,
        "BART_STEPS": 1,
        "BART_DECODER_STEPS": 1,
        "FURTHER": 20,
        "UNSEEN": 40,
    }.items():  # fmt: skip
        monkeypatch.setattr(make_demo_assets, name, value)
    monkeypatch.setattr(make_demo_assets, "override_constants", lambda own: None)
    make_demo_assets.main()
    demo = tmp_path / "demo"
    base_model = str(demo / "base_model")
    first, refined = (load_vae(root).state_dict() for root in (str(tmp_path / "parts"), base_model))
    assert {name.split(".")[0] for name in first if (first[name] != refined[name]).any()} == {
        "decoder",
        "post_quant_conv",
    }
    assert load_decoder(str(demo / "decoder"), load_vae(base_model)).config.latent_channels == 4
    assert TextEncoder(base_model, pooled=True).width == make_demo_assets.WIDTH
    assert ReferenceEncoder(f"local-dir:{demo / 'reference_encoder'}").width == make_demo_assets.WIDTH
    autoencoder, prior = ReportAutoencoder.from_pretrained(demo / "bart"), load_strictly(Prior, demo / "prior")
    assert autoencoder.pooling == "sentences" and autoencoder.readout.out_features >= 14
    assert prior.config.report_dim == autoencoder.width
    vit = timm.create_model(f"local-dir:{demo / 'vit'}", pretrained=True).state_dict()
    assert all(torch.allclose(vit[name], tensor, atol=1e-3) for name, tensor in prior.vit.state_dict().items())

    made = {path: path.stat().st_mtime_ns for path in demo.rglob("*.*")}
    (tmp_path / "parts" / "bart.made").unlink()
    capsys.readouterr()
    make_demo_assets.main()
    assert capsys.readouterr().out.count("made before") == 6
    anew = {path.relative_to(demo).parts[0] for path in demo.rglob("*.*") if path.stat().st_mtime_ns != made[path]}
    assert anew == {"bart"}

    monkeypatch.setattr(make_demo_assets, "PARTS", ("vea",))
    with pytest.raises(InputError, match="'vea'"):
        make_demo_assets.main()


def test_make_makes_all_parts():
    named = re.search(r"^PARTS := .*parts/,(.*)\)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert tuple(named[1].split()) == make_demo_assets.PARTS
