"""The frozen VAE: pixels <=> latents.

    image file  => pixels   (3, S, S) float32 in [-1, 1], grey repeated as RGB, bilinear, the aspect ratio not kept
    pixels      => moments  (2C, S/f, S/f) mean and log-variance of the posterior, unscaled: this is what is cached
    moments     => latents  (C, S/f, S/f) one draw of the posterior times `vae.config.scaling_factor`: unit variance
    latents     => image    (S, S) uint8

For Stable Diffusion v1.4's VAE at S = 256: C = 4, f = 8.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import weights_fingerprint
from utils.errors import InputError, reason

REDUCED_DECODING = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves this many times the wanted size
PREPROCESSING = f"grey as RGB, JPEG reduced to >= {REDUCED_DECODING}x, bilinear, [-1, 1]"


def read_pixels(path, size):
    """An image file => pixels, (3, size, size) float32 in [-1, 1]. OSError or ValueError names an unreadable file."""
    try:
        with Image.open(path) as image:
            image.draft("L", (REDUCED_DECODING * size, REDUCED_DECODING * size))
            grey = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"unreadable image {path}: {error}") from error
    pixels = np.asarray(grey, dtype=np.float32) / 127.5 - 1  # 0..255 => [-1, 1]
    return torch.from_numpy(pixels).expand(3, size, size)


def load_vae(base_model, device="cpu"):
    """The frozen AutoencoderKL in `<base_model>/vae`; base_model is a Stable-Diffusion-like folder or a hub id."""
    try:
        vae = AutoencoderKL.from_pretrained(base_model, subfolder="vae")
    except (OSError, ValueError) as error:
        raise InputError(
            f"no VAE in {base_model!r}: {reason(error)}; set BASE_MODEL to a Stable Diffusion folder"
        ) from error
    return vae.eval().requires_grad_(False).to(device)


def latent_shape(vae, image_size):
    """(C, h, w) of the latents of a square image; InputError if the VAE cannot halve image_size often enough."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if image_size % factor:
        raise InputError(f"IMAGE_SIZE {image_size} is not a multiple of {factor}, the VAE's downsampling factor")
    return vae.config.latent_channels, image_size // factor, image_size // factor


def encode_moments(vae, pixels):
    """pixels (B, 3, S, S) in [-1, 1] => moments (B, 2C, S/f, S/f), mean then log-variance, unscaled."""
    with torch.no_grad():
        return vae.encode(pixels.to(vae.device)).latent_dist.parameters


def draw_latents(moments, noise, scaling_factor):
    """moments (..., 2C, h, w) and standard normal noise (..., C, h, w) => latents (..., C, h, w), unit variance."""
    mean, log_variance = moments.chunk(2, dim=-3)
    return (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise) * scaling_factor


def draw_posterior(moments, generator, scaling_factor):
    """One image's cached moments, an array (2C, h, w), and a torch.Generator => latents (C, h, w), unit variance."""
    moments = torch.from_numpy(np.asarray(moments, dtype=np.float32))
    noise = torch.randn((moments.shape[0] // 2, *moments.shape[1:]), generator=generator)
    return draw_latents(moments, noise, scaling_factor)


def decode_latents(vae, latents):
    """latents (B, C, h, w), unit variance => images (B, S, S) uint8 on the CPU."""
    with torch.no_grad():
        pixels = vae.decode(latents.to(vae.device) / vae.config.scaling_factor).sample  # (B, 3, S, S), about [-1, 1]
    grey = pixels.float().mean(dim=1).add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


def cache_moments(table, vae, image_size, cache_dir, batch_size, accelerator, threads):
    """The moments of every image of a table, encoded once => (cache, keys, readable).

    readable: (len(table),) bool, False for images that cannot be decoded (each was named).
    """
    fingerprint = {
        "feature": "VAE moments, float16",
        "encoder": weights_fingerprint(vae),
        "image_size": image_size,
        "preprocessing": PREPROCESSING,
    }
    cache = FeatureCache(f"{cache_dir}/moments", fingerprint)
    keys, paths = image_keys(table), table.image_path.tolist()

    def encode(images):
        return encode_moments(vae, torch.stack(images)).cpu().numpy().astype(np.float16)

    readable = cache.fill(
        keys, lambda row: read_pixels(paths[row], image_size), encode, batch_size, accelerator, "VAE moments", threads
    )
    return cache, keys, readable
