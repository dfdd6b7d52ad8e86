"""The frozen VAE: pixels <=> latents.

    image file  => pixels   (3, S, S) float32 in [-1, 1], grey repeated as RGB, bilinear, the aspect ratio not kept,
                            upright as its EXIF orientation says
    pixels      => moments  (2C, S/f, S/f) mean and log-variance of the posterior, unscaled: this is what is cached
    moments     => latents  (C, S/f, S/f) one draw of the posterior times `vae.config.scaling_factor`: unit variance
    latents     => image    (S, S) uint8

For Stable Diffusion v1.4's VAE at S = 256: C = 4, f = 8.

An image file holds a single picture in any format that Pillow reads, at least SMALLEST_SIDE pixels a side.

    1 and 8 bits a channel    grey as it is; a palette, RGB and CMYK as Pillow's luma; transparency is ignored
    16 bits, grey             black to white are 0 to the largest number of the fewest bits that hold all values (a
                              12-bit film: 4095), unless a TIFF's tags state another range
    32 bits, grey             the range that a TIFF's tags state (SMinSampleValue, SMaxSampleValue, or without the S);
                              a file that states none is refused, since its black and white cannot be known
    white is zero             inverted where a TIFF states it (PhotometricInterpretation 0); a PNG or JPEG cannot state
                              it, so that an X-ray exported with MONOCHROME1's values is read as a negative

Everything else (several frames, fewer pixels, more than twice Pillow's MAX_IMAGE_PIXELS, broken) is refused by name.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import load_strictly, weights_fingerprint
from utils.errors import InputError, reason

REDUCED_DECODING = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves this many times the wanted size
SMALLEST_SIDE = 8  # pixels; a smaller image is not an X-ray
PREPROCESSING = (
    f"grey as RGB by its own value range, upright, JPEG reduced to >= {REDUCED_DECODING}x, bilinear, [-1, 1]"
)
PATCH_SIZE = 2  # latent pixels, the side of a transformer's token: the paper's, of U-ViT and prior
_RANGE_TAGS = ((340, 341), (280, 281))  # TIFF's (SMinSampleValue, SMaxSampleValue), (MinSampleValue, MaxSampleValue)
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0  # TIFF's PhotometricInterpretation
_DEEP_MODES = ("I", "F")  # the first letters of Pillow's modes of grey beyond 8 bits, such as I;16


def read_pixels(path: str | Path, size: int) -> torch.Tensor:
    """An image file => pixels, (3, size, size) float32 in [-1, 1]. ValueError names a file that cannot be read."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # given a path, Pillow reads a turned TIFF wrongly
            _check_picture(image)
            image.draft("L", (REDUCED_DECODING * size, REDUCED_DECODING * size))
            grey = _deep_grey(image) if image.mode.startswith(_DEEP_MODES) else image.convert("L")
            small = _upright(grey.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise ValueError(f"unreadable image {path}: it is not an image that Pillow reads") from error
    except Exception as error:  # decoders raise errors of any type for a broken file
        raise ValueError(f"unreadable image {path}: {reason(error)}") from error
    pixels = np.asarray(small, dtype=np.float32) / 127.5 - 1  # 0..255 => [-1, 1]
    return torch.from_numpy(pixels).expand(3, size, size)


def read_grey(path: str | Path, size: int) -> np.ndarray:
    """An image file => (size, size) uint8, read by `read_pixels`; ValueError as there."""
    return read_pixels(path, size)[0].add(1).mul(127.5).round().byte().numpy()


def _check_picture(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a JPEG with previews; its first frame is the image
        raise ValueError(f"it has {frames} frames")
    if min(image.size) < SMALLEST_SIDE:
        raise ValueError(f"it has {image.width} x {image.height} pixels; an X-ray has {SMALLEST_SIDE} a side at least")


def _deep_grey(image: Image.Image) -> Image.Image:
    """An image of more than 8 bits => mode F, 0 (black) to 255 (white) by the value range that its file states."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image, dtype=np.float32)
    low, high = _value_range(image, tags, values)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not numbers")
    grey = ((values - low) * (255 / (high - low))).clip(0, 255)
    picture = Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO else grey)
    picture.info = image.info  # with its EXIF
    return picture


def _value_range(image: Image.Image, tags: Mapping, values: np.ndarray) -> tuple[float, float]:
    """The values of black and white of a file of more than 8 bits: those that a TIFF's tags state, else `white_of`."""
    for smallest, largest in _RANGE_TAGS:
        if largest in tags:
            low, high = (float(np.max(tags.get(tag, 0))) for tag in (smallest, largest))
            if not low < high:
                raise ValueError(f"its tags state that its values go from {low:g} to {high:g}")
            return low, high
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # Pillow scales their deep values to 16 bits
        return 0, white_of(values)
    raise ValueError("it has 32 bits a pixel and states no range of values; save it with 8 or 16 bits")


def white_of(values: np.ndarray) -> int:
    """The largest number of the fewest bits, 8 to 16, that hold all values: a 12-bit film in a 16-bit file has 4095."""
    return 2 ** min(max(int(values.max()).bit_length(), 8), 16) - 1


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged EXIF block: the pixels may still be right
        return picture


def load_vae(base_model: str, device: str | torch.device = "cpu") -> AutoencoderKL:
    """The frozen AutoencoderKL in `<base_model>/vae`; base_model is a Stable-Diffusion-like folder or a hub id."""
    try:
        vae = load_strictly(AutoencoderKL, base_model, subfolder="vae")
    except InputError as error:
        raise InputError(f"no VAE in {base_model!r}: {error}; set BASE_MODEL to a Stable Diffusion folder") from error
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # quicker convolutions


def decode_in(vae: AutoencoderKL, precision: str) -> None:
    """Lets a VAE decode in bf16 if that is the run's precision, else in float32; it always encodes in float32.

    fp16 is not used: in the decoders of some of Stable Diffusion's VAEs, activations exceed its largest number.
    """
    if precision == "bf16":
        vae.decoder.to(torch.bfloat16)
        if vae.post_quant_conv is not None:
            vae.post_quant_conv.to(torch.bfloat16)


def latent_shape(vae: AutoencoderKL, image_size: int, patch_size: int = 1) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square image; InputError if the VAE cannot halve image_size often enough.

    patch_size: the side of a transformer's token in latent pixels, which has to divide h and w.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if image_size % (factor * patch_size):
        patches = f" x PATCH_SIZE {patch_size}" if patch_size > 1 else ""
        raise InputError(
            f"IMAGE_SIZE {image_size} is not a multiple of {factor}, the VAE's downsampling factor{patches}"
        )
    return vae.config.latent_channels, image_size // factor, image_size // factor


def encode_moments(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """pixels (B, 3, S, S) in [-1, 1] => moments (B, 2C, S/f, S/f), mean then log-variance, unscaled."""
    with torch.no_grad():
        return vae.encode(pixels.to(vae.device)).latent_dist.parameters


def draw_posterior(moments: np.ndarray, generator: torch.Generator, scaling_factor: float) -> torch.Tensor:
    """One image's cached moments (2C, h, w) => one draw of its posterior, latents (C, h, w), unit variance."""
    moments = torch.from_numpy(np.asarray(moments, dtype=np.float32))
    return DiagonalGaussianDistribution(moments[None]).sample(generator)[0] * scaling_factor


def mean_latents(moments: torch.Tensor | np.ndarray, scaling_factor: float) -> torch.Tensor | np.ndarray:
    """moments (..., 2C, h, w) => the posterior's mean, latents (..., C, h, w), unit variance."""
    return moments[..., : moments.shape[-3] // 2, :, :] * scaling_factor


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """latents (B, C, h, w), unit variance => images (B, S, S) uint8."""
    unscaled = latents.to(vae.device) / vae.config.scaling_factor
    with torch.no_grad():
        pixels = vae.decode(unscaled.to(vae.decoder.conv_in.weight.dtype)).sample  # (B, 3, S, S), about [-1, 1]
    grey = pixels.float().mean(dim=1).add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


def cache_moments(
    table: pd.DataFrame,
    vae: AutoencoderKL,
    image_size: int,
    cache_dir: str | Path,
    batch_size: int,
    accelerator: Accelerator,
    threads: int,
    keys: list[str | None] | None = None,
) -> tuple[FeatureCache, list[str | None], np.ndarray]:
    """The moments of every image of a table, encoded once => (cache, keys, readable).

    keys: the table's `image_keys` if they are known; readable: (len(table),) bool, False for images that cannot be
    decoded (each was named).
    """
    fingerprint = {
        "feature": "VAE moments, float16",
        "encoder": weights_fingerprint(vae),
        "image_size": image_size,
        "preprocessing": PREPROCESSING,
    }
    cache = FeatureCache(f"{cache_dir}/moments", fingerprint)
    keys, paths = keys or image_keys(table), table.image_path.tolist()

    def load(row):
        return read_pixels(paths[row], image_size)

    def encode(images):
        return encode_moments(vae, torch.stack(images)).cpu().numpy().astype(np.float16)

    return cache, keys, cache.fill(keys, load, encode, batch_size, accelerator, "VAE moments", threads)
