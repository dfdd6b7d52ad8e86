"""The networks that benchmarks.bench measures: those of assets/demo, or untrained ones of the paper's sizes.

"demo"     as demo.toml has them, with the pretrained parts in assets/demo
"paper"    as the scripts' own constants have them: Stable Diffusion v1.4's VAE, text encoder and U-Net, U-ViT-L/2, CLIP
           ViT-B/32, bart-base and ViT-Base; random weights, made in memory, and nothing is downloaded. The tokenizers
           are the demo's: how long a network takes depends on how many tokens there are, not on which
"""

from functools import cached_property

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from models.diffusion import PromptedDenoiser, load_unet, noise_schedule
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from models.weights import start_from
from utils.constants import REPOSITORY, override_constants
from utils.latents import latent_shape, load_vae
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder, TokenFusion
from uvit.model import UViT

ASSETS = REPOSITORY / "assets" / "demo"
REGRESSION = ("--PRIOR", "regression", "--FINDINGS_WEIGHT", "0", "--FREEZE_TRANSFORMER", "false")  # the paper's prior


def draw_latents(moments, noise, scaling_factor):
    """moments (B, 2C, h, w) and standard normal noise (B, C, h, w) => latents (B, C, h, w), unit variance."""
    posterior = DiagonalGaussianDistribution(moments)
    return (posterior.mean + posterior.std * noise) * scaling_factor


def constants_of(script, sizes):
    """A script's constants at these sizes, {name: value}."""
    arguments = ("--config", str(REPOSITORY / "demo.toml")) if sizes == "demo" else ()
    if script == "train_prior_model":
        arguments += REGRESSION
    return override_constants({"__file__": str(REPOSITORY / f"{script}.py")}, arguments)


class Parts:
    """Each network, made when it is first asked for, on its device; the frozen ones ready to be asked."""

    def __init__(self, sizes, device):
        self.sizes, self.device, self.paper = sizes, torch.device(device), sizes == "paper"
        self.base_model = str(ASSETS / "base_model")
        torch.manual_seed(0)  # of random weights

    @cached_property
    def image_size(self):
        return constants_of("train_diffusion_clipUViT", self.sizes)["IMAGE_SIZE"]

    @property
    def shape(self):
        return latent_shape(self.vae, self.image_size)

    @cached_property
    def vae(self):
        if not self.paper:
            return load_vae(self.base_model, self.device)
        with self.device:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            )  # fmt: skip
        return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # as load_vae has it

    @cached_property
    def pooled_texts(self):
        return self._text_encoder(pooled=True)

    @cached_property
    def token_texts(self):
        return self._text_encoder(pooled=False)

    def _text_encoder(self, pooled):
        return (
            UntrainedTexts(self.base_model, pooled, self.device)
            if self.paper
            else TextEncoder(self.base_model, pooled, self.device)
        )

    @cached_property
    def references(self):
        return (
            UntrainedReferences(self.device)
            if self.paper
            else ReferenceEncoder(f"local-dir:{ASSETS / 'reference_encoder'}", self.device)
        )

    def vision(self, script):
        """The PromptedDenoiser of a trainer of the vision module, made anew."""
        constants = constants_of(script, self.sizes)
        schedule = noise_schedule(self.base_model, constants["PREDICTION"])
        text, reference, (channels, side, _) = self.pooled_texts.width, self.references.width, self.shape
        with self.device:
            if script == "train_diffusion_clipSD":
                fusion = TokenFusion(text, reference)
                denoiser = (
                    UNet2DConditionModel(sample_size=side, cross_attention_dim=text, attention_head_dim=8)
                    if self.paper
                    else None
                )
            else:
                width = constants["EMBED_DIM"]
                fusion = PooledFusion(text, reference, width)
                denoiser = UViT(
                    side, constants["PATCH_SIZE"], channels, width, constants["DEPTH"], constants["NUM_HEADS"]
                )
        model = PromptedDenoiser(denoiser or load_unet(self.base_model, text), fusion, schedule).to(self.device)
        if not self.paper and script == "train_diffusion_clipUViT":
            start_from(model, str(REPOSITORY / constants["INITIAL_WEIGHTS"]))
        return model

    def autoencoder(self):
        """BART as a report autoencoder, made anew."""
        if not self.paper:
            return ReportAutoencoder.from_pretrained(ASSETS / "bart", "mean").to(self.device)
        config = BartConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        )  # fmt: skip
        with self.device:
            bart = BartForConditionalGeneration(config)
        return ReportAutoencoder(bart, AutoTokenizer.from_pretrained(ASSETS / "bart"), "mean").to(self.device)

    def prior(self, report_dim):
        """The prior of the paper's kind, made anew, with the identity for statistics."""
        constants = constants_of("train_prior_model", self.sizes)
        channels, side, _ = self.shape
        sizes = (constants[name] for name in ("PATCH_SIZE", "EMBED_DIM", "DEPTH", "NUM_HEADS"))
        return Prior(channels, side, *sizes, report_dim).to(self.device)


class UntrainedTexts(TextEncoder):
    """CLIP ViT-L/14's text encoder with random weights."""

    def __init__(self, base_model, pooled, device):
        self.tokenizer = CLIPTokenizer.from_pretrained(base_model, subfolder="tokenizer")
        end = self.tokenizer.eos_token_id
        config = CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            projection_dim=768, bos_token_id=self.tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        with device:
            self.model = CLIPTextModel(config)
        self.model.eval().requires_grad_(False)
        self.name, self.pooled, self.width = "", pooled, config.hidden_size


class UntrainedReferences(ReferenceEncoder):
    """CLIP ViT-B/32's image tower with random weights."""

    def __init__(self, device):
        with device:
            self.tower = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device=device).visual
        self.tower.proj = None
        self.tower.eval().requires_grad_(False)
        self.image_size = self.tower.image_size[0]
        self.width = self.tower.ln_post.normalized_shape[0]
