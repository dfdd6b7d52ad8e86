"""The networks that benchmarks.bench measures.

Networks         those of demo.toml, with the pretrained parts in assets/demo
PaperNetworks    those of the scripts' own constants: Stable Diffusion v1.4's VAE, text encoder and U-Net, U-ViT-L/2,
                 CLIP ViT-B/32, bart-base and ViT-Base, with random weights; nothing is downloaded. The tokenizers are
                 the demo's: the time depends on how many tokens there are, not on which
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
from training.loop import DEFAULTS
from utils.constants import REPOSITORY, override_constants
from utils.latents import PATCH_SIZE, encode_moments, latent_shape, load_vae
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder, TokenFusion
from uvit.model import UViT

ASSETS = REPOSITORY / "assets" / "demo"
PAPER_PRIOR = ("--PRIOR", "regression", "--FINDINGS_WEIGHT", "0", "--FREEZE_TRANSFORMER", "false")


class Networks:
    """The demo's networks on a device: frozen ones are made once, in evaluation mode, trained ones at each call."""

    config = ("--config", str(REPOSITORY / "demo.toml"))  # what overrides the scripts' constants

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.base_model = str(ASSETS / "base_model")
        self._text_encoders = {}
        torch.manual_seed(0)  # for random weights

    def constants_of(self, script: str) -> dict:
        """The constants of a script and of training/, {name: value}; the prior is the paper's kind."""
        prior = PAPER_PRIOR if script == "train_prior_model" else ()
        own = override_constants({"__file__": str(REPOSITORY / f"{script}.py")}, (*self.config, *prior))
        return {"PATCH_SIZE": PATCH_SIZE, **DEFAULTS, **own}

    @cached_property
    def image_size(self) -> int:
        return self.constants_of("train_diffusion_clipUViT")["IMAGE_SIZE"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents, (C, h, w)."""
        return latent_shape(self.vae, self.image_size)

    @cached_property
    def vae(self) -> AutoencoderKL:
        return load_vae(self.base_model, self.device)

    @cached_property
    def references(self) -> ReferenceEncoder:
        return ReferenceEncoder(f"local-dir:{ASSETS / 'reference_encoder'}", self.device)

    def text_encoder(self, pooled: bool) -> TextEncoder:
        if pooled not in self._text_encoders:
            self._text_encoders[pooled] = self._make_text_encoder(pooled)
        return self._text_encoders[pooled]

    def draw_latents(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) and standard normal noise (B, C, h, w) => latents (B, C, h, w), unit variance."""
        posterior = DiagonalGaussianDistribution(encode_moments(self.vae, pixels))
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def vision(self, script: str) -> PromptedDenoiser:
        """The model that a script of the vision module trains."""
        constants = self.constants_of(script)
        schedule = noise_schedule(self.base_model, constants["PREDICTION"])
        text, reference = self.text_encoder(pooled=True).width, self.references.width
        with self.device:
            if script == "train_diffusion_clipSD":
                denoiser, fusion = self._unet(text), TokenFusion(text, reference)
            else:
                channels, side, _ = self.shape
                sizes = (constants[name] for name in ("EMBED_DIM", "DEPTH", "NUM_HEADS"))
                denoiser = UViT(side, constants["PATCH_SIZE"], channels, *sizes)
                fusion = PooledFusion(text, reference, constants["EMBED_DIM"])
        model = PromptedDenoiser(denoiser, fusion, schedule).to(self.device)
        self._initialise(model, constants)
        return model

    def autoencoder(self) -> ReportAutoencoder:
        return ReportAutoencoder.from_pretrained(ASSETS / "bart", "mean").to(self.device)

    def prior(self, report_dim: int) -> Prior:
        """The paper's kind of prior. The statistics of its report latents are the identity."""
        constants = self.constants_of("train_prior_model")
        channels, side, _ = self.shape
        sizes = (constants[name] for name in ("PATCH_SIZE", "EMBED_DIM", "DEPTH", "NUM_HEADS"))
        return Prior(channels, side, *sizes, report_dim).to(self.device)

    def _make_text_encoder(self, pooled):
        return TextEncoder(self.base_model, pooled, self.device)

    def _unet(self, text_width):
        return load_unet(self.base_model, text_width)

    def _initialise(self, model, constants):
        if isinstance(model.denoiser, UViT):
            start_from(model, str(REPOSITORY / constants["INITIAL_WEIGHTS"]))


class PaperNetworks(Networks):
    """Networks of the paper's sizes with random weights."""

    config = ()

    @cached_property
    def vae(self) -> AutoencoderKL:
        with self.device:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            )  # fmt: skip
        return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # as load_vae returns it

    @cached_property
    def references(self) -> ReferenceEncoder:
        return _UntrainedReferences(self.device)

    def autoencoder(self) -> ReportAutoencoder:
        config = BartConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        )  # fmt: skip
        with self.device:
            bart = BartForConditionalGeneration(config)
        return ReportAutoencoder(bart, AutoTokenizer.from_pretrained(ASSETS / "bart"), "mean").to(self.device)

    def _make_text_encoder(self, pooled):
        return _UntrainedTexts(self.base_model, pooled, self.device)

    def _unet(self, text_width):
        return UNet2DConditionModel(sample_size=self.shape[1], cross_attention_dim=text_width, attention_head_dim=8)

    def _initialise(self, model, constants):
        pass


class _UntrainedTexts(TextEncoder):
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
        self.pooled, self.width = pooled, config.hidden_size


class _UntrainedReferences(ReferenceEncoder):
    """CLIP ViT-B/32's image tower with random weights."""

    def __init__(self, device):
        with device:
            self.tower = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device=device).visual
        self.tower.proj = None
        self.tower.eval().requires_grad_(False)
        self.image_size = self.tower.image_size[0]
        self.width = self.tower.ln_post.normalized_shape[0]
