"""The networks that benchmarks/peers.py measures: the demo's, or of the paper's sizes with random weights.

The latter are in peers.toml. Their tokenizers are the demo's: the time depends on how many tokens there are.
"""

import tomllib

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import AutoTokenizer, BartForConditionalGeneration, CLIPTextModel

from models.diffusion import PromptedDenoiser, noise_schedule
from models.report_autoencoder import ReportAutoencoder
from utils.constants import REPOSITORY
from utils.devices import make_accelerator
from utils.latents import latent_shape
from utils.prompts import PooledFusion, ReferenceEncoder, ReferenceTower, TextEncoder, TokenFusion
from uvit.model import UViT

_DEMO = REPOSITORY / "assets" / "demo"


class Networks:
    """All in evaluation mode and frozen, on a device; paper: of the paper's sizes."""

    def __init__(self, device: str, paper: bool = False):
        self.accelerator = make_accelerator(device, "auto")
        self.device = self.accelerator.device
        torch.set_float32_matmul_precision("highest")  # no TF32, so that the results of both sides can be compared
        torch.backends.cudnn.allow_tf32 = False
        self.sizes = tomllib.loads((REPOSITORY / "benchmarks" / "peers.toml").read_text()) if paper else {}
        self.image_size, self.batch_size = (256, 32) if paper else (64, 16)
        torch.manual_seed(0)
        self.vae = self._make(AutoencoderKL, "base_model/vae").to(memory_format=torch.channels_last)
        tower = ReferenceEncoder(f"local-dir:{_DEMO / 'reference_encoder'}").component().to(self.device)
        self.tower = self._make(ReferenceTower, "reference_encoder") if paper else tower
        tokenizer = AutoTokenizer.from_pretrained(_DEMO / "base_model" / "tokenizer")
        loaded = tokenizer, self._make(CLIPTextModel, "base_model/text_encoder")
        self.texts = {name: TextEncoder("", name == "U-ViT", self.device, loaded=loaded) for name in ("U-ViT", "U-Net")}
        self.shape = latent_shape(self.vae, self.image_size)  # (C, h, w)

    def _make(self, kind, part):
        if self.sizes:
            is_transformers, sizes = hasattr(kind, "config_class"), self.sizes[part]
            with self.device:
                network = kind(kind.config_class(**sizes)) if is_transformers else kind(**sizes)
        else:
            network = kind.from_pretrained(_DEMO / part).float()
        return network.to(self.device).eval().requires_grad_(False)

    def vision(self, backbone: str) -> PromptedDenoiser:
        """The model that is trained; backbone: "U-ViT" or "U-Net"."""
        text, reference = self.texts[backbone].width, self.tower.tower.ln_post.normalized_shape[0]
        if backbone == "U-ViT":
            denoiser = self._make(UViT, "uvit")
            fusion = PooledFusion(text, reference, denoiser.config.embed_dim)
        else:
            denoiser, fusion = self._make(UNet2DConditionModel, "base_model/unet"), TokenFusion(text, reference)
        return PromptedDenoiser(denoiser, fusion, noise_schedule(str(_DEMO / "base_model"))).to(self.device)

    def autoencoder(self) -> ReportAutoencoder:
        """The report module's BART."""
        bart = self._make(BartForConditionalGeneration, "bart")
        return ReportAutoencoder(bart, AutoTokenizer.from_pretrained(_DEMO / "bart"), "mean")
