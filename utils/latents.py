"""The frozen VAE: pixels <=> latents.

    pixels      => moments  (2C, S/f, S/f) mean and log-variance of the posterior, unscaled: this is what is cached
    moments     => latents  (C, S/f, S/f) one draw of the posterior times `vae.config.scaling_factor`: unit variance
    latents     => image    (S, S) uint8

For Stable Diffusion v1.4's VAE at S = 256: C = 4, f = 8.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import load_strictly, weights_fingerprint
from utils.errors import InputError, as_input_error
from utils.pixels import PREPROCESSING, read_pixels
from utils.seeds import keyed_generator

PATCH_SIZE = 2  # latent pixels, the side of a transformer's token: the paper's, of U-ViT and prior


def load_vae(base_model: str, device: str | torch.device = "cpu") -> AutoencoderKL:
    """The frozen AutoencoderKL in `<base_model>/vae`; base_model is a Stable-Diffusion-like folder or a hub id."""
    way_out = "set BASE_MODEL to a Stable Diffusion folder"
    with as_input_error(lambda error: f"no VAE in {base_model!r}: {error}; {way_out}", InputError):
        vae = load_strictly(AutoencoderKL, base_model, subfolder="vae")
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # quicker convolutions


def load_decoder(name: str, vae: AutoencoderKL) -> AutoencoderKL | AutoencoderTiny:
    """A quicker decoder of a VAE's latents, an AutoencoderTiny of diffusers, from a folder or hub id; "": the VAE."""
    if not name:
        return vae
    way_out = "name an AutoencoderTiny such as madebyollin/taesd, or leave DECODER empty"
    with as_input_error(lambda error: f"no DECODER in {name!r}: {error}; {way_out}", InputError):
        decoder = load_strictly(AutoencoderTiny, name)
    (channels, side, _), (own_channels, own_side, _) = (latent_shape(model, 4096) for model in (decoder, vae))
    if (channels, side) != (own_channels, own_side):
        takes = f"latents of {channels} channels and 1/{4096 // side} of the side"
        raise InputError(f"DECODER {name!r} takes {takes}; the VAE makes {own_channels} and 1/{4096 // own_side}")
    return decoder.eval().requires_grad_(False).to(vae.device, memory_format=torch.channels_last)


def decode_in(vae: AutoencoderKL | AutoencoderTiny, precision: str) -> None:
    """Lets a VAE decode in bf16 if that is the run's precision, else in float32; it always encodes in float32.

    fp16 is not used: in the decoders of some of Stable Diffusion's VAEs, activations exceed its largest number.
    """
    if precision == "bf16":
        for part in (vae.decoder, getattr(vae, "post_quant_conv", None)):
            if part is not None:
                part.to(torch.bfloat16)


def latent_shape(vae: AutoencoderKL, image_size: int, patch_size: int = 1) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square image; InputError if the VAE cannot halve image_size often enough.

    patch_size: the side of a transformer's token in latent pixels, which has to divide h and w.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if image_size % (factor * patch_size):
        of = f"{factor}, the VAE's downsampling factor x PATCH_SIZE {patch_size}"
        raise InputError(f"IMAGE_SIZE {image_size} is not a multiple of {of}")
    return vae.config.latent_channels, image_size // factor, image_size // factor


def encode_moments(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """pixels (B, 3, S, S) in [-1, 1] => moments (B, 2C, S/f, S/f), mean then log-variance, unscaled."""
    with torch.no_grad():
        return vae.encode(pixels.to(vae.device)).latent_dist.parameters


def draw_posterior(moments: np.ndarray, generator: torch.Generator, scaling_factor: float) -> torch.Tensor:
    """One image's cached moments (2C, h, w) => one draw of its posterior, latents (C, h, w), unit variance."""
    moments = torch.from_numpy(np.asarray(moments, dtype=np.float32))
    return DiagonalGaussianDistribution(moments[None]).sample(generator)[0] * scaling_factor


def draw_latents(vae: AutoencoderKL, pixels: torch.Tensor, seed: int, name: str) -> torch.Tensor:
    """pixels (3, S, S) in [-1, 1] => latents (C, h, w), one draw of the posterior by the image's own seed and name."""
    moments = encode_moments(vae, pixels[None])[0].float().cpu()  # (2C, h, w)
    return draw_posterior(moments, keyed_generator(seed, "posterior", name), vae.config.scaling_factor)


def mean_latents(moments: torch.Tensor | np.ndarray, scaling_factor: float) -> torch.Tensor | np.ndarray:
    """moments (..., 2C, h, w) => the posterior's mean, latents (..., C, h, w), unit variance."""
    return moments[..., : moments.shape[-3] // 2, :, :] * scaling_factor


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> np.ndarray:
    """latents (B, C, h, w), unit variance => images (B, S, S) uint8."""
    unscaled = latents.to(vae.device) / vae.config.scaling_factor
    with torch.no_grad():
        pixels = vae.decode(unscaled.to(next(vae.decoder.parameters()).dtype)).sample  # (B, 3, S, S), about [-1, 1]
    grey = pixels.float().mean(dim=1).add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


def cache_moments(
    table: pd.DataFrame, vae: AutoencoderKL, image_size: int, cache_dir: str | Path, batch_size: int,
    accelerator: Accelerator, threads: int, keys: list[str | None] | None = None,
) -> tuple[FeatureCache, list[str | None], np.ndarray]:  # fmt: skip
    """The moments of every image of a table, encoded once => (cache, keys, readable).

    keys: the table's `image_keys` if known; readable: (len(table),) bool, False for undecodable images, each named.
    """
    fingerprint = {
        "feature": "VAE moments, float16", "encoder": weights_fingerprint(vae),
        "image_size": image_size, "preprocessing": PREPROCESSING,
    }  # fmt: skip
    cache = FeatureCache(f"{cache_dir}/moments", fingerprint)
    keys, paths = keys or image_keys(table), table.image_path.tolist()
    readable = cache.fill(
        keys,
        lambda row: read_pixels(paths[row], image_size, refuse_blank=True),
        lambda images: encode_moments(vae, torch.stack(images)).cpu().numpy().astype(np.float16),
        batch_size, accelerator, "VAE moments", threads,
    )  # fmt: skip
    return cache, keys, readable
