"""Fixtures of the tests of networks."""

import pytest
import torch
from small_data import make_tree
from tiny_models import make_autoencoder

from models.diffusion import PromptedDenoiser, load_unet, noise_schedule
from training.examples import PriorFeatures
from training.reports import reported_rows
from utils.latents import load_vae
from utils.mimic_cxr import read_table
from utils.prompts import PooledFusion, TokenFusion
from uvit.model import UViT


@pytest.fixture
def unet_model(base_model):
    """The tiny U-Net with the fusion of tokens."""
    return PromptedDenoiser(
        load_unet(base_model, 16), TokenFusion(16, 16), noise_schedule(base_model, "epsilon")
    ).eval()


@pytest.fixture
def uvit_model(base_model):
    torch.manual_seed(0)
    uvit = UViT(img_size=8, embed_dim=16, depth=2, num_heads=2)
    return PromptedDenoiser(uvit, PooledFusion(16, 16, 16), noise_schedule(base_model, "v_prediction")).eval()


@pytest.fixture
def features(base_model, tokenizer, accelerator, tmp_path):
    make_tree(tmp_path / "tree", studies=6, images_a_study=2)
    make_tree(tmp_path / "tree", studies=8, reports=())  # two more studies, without a report
    table = read_table(tmp_path / "tree")
    autoencoder = make_autoencoder(tokenizer).requires_grad_(False)
    arguments = (load_vae(base_model), autoencoder, 32, tmp_path / "cache", 0, accelerator)
    return PriorFeatures(reported_rows(table), *arguments), table, arguments


@pytest.fixture
def sample(write_reports):
    return write_reports
