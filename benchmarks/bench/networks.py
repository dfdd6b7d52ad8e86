"""The networks that benchmarks.bench measures: the demo's, or networks of the paper's sizes with random weights."""

from functools import cache, cached_property

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, CLIPTextConfig, CLIPTextModel

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
BASE_MODEL = str(ASSETS / "base_model")
PAPER_PRIOR = ("--PRIOR", "regression", "--FINDINGS_WEIGHT", "0", "--FREEZE_TRANSFORMER", "false")


class Networks:
    """The networks on a device: frozen ones are made once, in evaluation mode, trained ones at each call.

    paper: False for those of demo.toml with their pretrained parts; True for those of the scripts' own constants
    (Stable Diffusion v1.4's VAE, text encoder and U-Net, U-ViT-L/2, CLIP ViT-B/32, bart-base and ViT-Base) with random
    weights, of which nothing is downloaded. Their tokenizers are the demo's: the time depends on how many tokens there
    are, not on which.
    """

    def __init__(self, device: torch.device | str, paper: bool = False):
        self.device, self.paper = torch.device(device), paper
        torch.manual_seed(0)  # for random weights

    def constants_of(self, script: str) -> dict:
        """The constants of a script and of training/, {name: value}; the prior is the paper's kind."""
        arguments = [] if self.paper else ["--config", str(REPOSITORY / "demo.toml")]
        arguments += PAPER_PRIOR if script == "train_prior_model" else ()
        own = override_constants({"__file__": str(REPOSITORY / f"{script}.py")}, arguments)
        return {"PATCH_SIZE": PATCH_SIZE, **DEFAULTS, **own}

    @property
    def image_size(self) -> int:
        return self.constants_of("train_diffusion_clipUViT")["IMAGE_SIZE"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents, (C, h, w)."""
        return latent_shape(self.vae, self.image_size)

    @cached_property
    def vae(self) -> AutoencoderKL:
        if not self.paper:
            return load_vae(BASE_MODEL, self.device)
        with self.device:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            )  # fmt: skip
        return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # as load_vae returns it

    @cached_property
    def references(self) -> ReferenceEncoder:
        references = ReferenceEncoder(f"local-dir:{ASSETS / 'reference_encoder'}", "cpu" if self.paper else self.device)
        if self.paper:
            with self.device:
                tower = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device=self.device).visual
            tower.proj = None
            references.tower = tower.eval().requires_grad_(False)
            references.image_size, references.width = tower.image_size[0], tower.ln_post.normalized_shape[0]
        return references

    @cache  # noqa: B019 (kept as long as the process runs)
    def text_encoder(self, pooled: bool) -> TextEncoder:
        texts = TextEncoder(BASE_MODEL, pooled, self.device)
        if self.paper:
            ends = dict.fromkeys(("eos_token_id", "pad_token_id"), texts.tokenizer.eos_token_id)
            config = CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, projection_dim=768,
                num_attention_heads=12, bos_token_id=texts.tokenizer.bos_token_id, **ends,
            )  # fmt: skip
            with self.device:
                texts.model = CLIPTextModel(config).eval().requires_grad_(False)
            texts.width = config.hidden_size
        return texts

    def draw_latents(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, S, S) and standard normal noise (B, C, h, w) => latents (B, C, h, w), unit variance."""
        posterior = DiagonalGaussianDistribution(encode_moments(self.vae, pixels))
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def vision(self, script: str) -> PromptedDenoiser:
        """The model that a script of the vision module trains."""
        constants = self.constants_of(script)
        schedule = noise_schedule(BASE_MODEL, constants["PREDICTION"])
        text, reference = self.text_encoder(pooled=True).width, self.references.width
        channels, side, _ = self.shape
        with self.device:
            if script == "train_diffusion_clipUViT":
                sizes = (constants[name] for name in ("EMBED_DIM", "DEPTH", "NUM_HEADS"))
                denoiser = UViT(side, constants["PATCH_SIZE"], channels, *sizes)
                fusion = PooledFusion(text, reference, constants["EMBED_DIM"])
            else:
                fusion = TokenFusion(text, reference)
                if self.paper:
                    denoiser = UNet2DConditionModel(sample_size=side, cross_attention_dim=text, attention_head_dim=8)
                else:
                    denoiser = load_unet(BASE_MODEL, text)
        model = PromptedDenoiser(denoiser, fusion, schedule).to(self.device)
        if script == "train_diffusion_clipUViT" and not self.paper:
            start_from(model, str(REPOSITORY / constants["INITIAL_WEIGHTS"]))
        return model

    def autoencoder(self) -> ReportAutoencoder:
        if not self.paper:
            return ReportAutoencoder.from_pretrained(ASSETS / "bart", "mean").to(self.device)
        config = BartConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        )  # fmt: skip
        with self.device:
            bart = BartForConditionalGeneration(config)
        return ReportAutoencoder(bart, AutoTokenizer.from_pretrained(ASSETS / "bart"), "mean").to(self.device)

    def prior(self, report_dim: int) -> Prior:
        """The paper's kind of prior. The statistics of its report latents are the identity."""
        constants = self.constants_of("train_prior_model")
        channels, side, _ = self.shape
        sizes = (constants[name] for name in ("PATCH_SIZE", "EMBED_DIM", "DEPTH", "NUM_HEADS"))
        return Prior(channels, side, *sizes, report_dim).to(self.device)
