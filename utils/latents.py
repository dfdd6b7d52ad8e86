"""The frozen VAE: pixels <=> latents.

    image file  => pixels   (3, S, S) float32 in [-1, 1], grey repeated as RGB, bilinear, the aspect ratio not kept,
                            upright as its EXIF orientation says
    pixels      => moments  (2C, S/f, S/f) mean and log-variance of the posterior, unscaled: this is what is cached
    moments     => latents  (C, S/f, S/f) one draw of the posterior times `vae.config.scaling_factor`: unit variance
    latents     => image    (S, S) uint8

For Stable Diffusion v1.4's VAE at S = 256: C = 4, f = 8.

What an image file may be: a single picture in any format that Pillow reads, at least SMALLEST_SIDE pixels a side.

    1 and 8 bits a channel    grey as it is; a palette, RGB and CMYK as Pillow's luma; transparency is ignored
    16 bits, grey             0 to 65535 is black to white, unless a TIFF's tags state another range
    32 bits, grey             the range that a TIFF's tags state (SMinSampleValue, SMaxSampleValue, or without the S);
                              a file that states none is refused, since its black and white cannot be known
    white is zero             turned over where a TIFF says so (PhotometricInterpretation 0); a PNG or JPEG cannot say
                              it: a film exported with MONOCHROME1's values is read as the negative that it is

Everything else (several frames, fewer pixels, more than twice Pillow's MAX_IMAGE_PIXELS, broken) is refused by name.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import load_strictly, weights_fingerprint
from utils.errors import InputError, reason

REDUCED_DECODING = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves this many times the wanted size
SMALLEST_SIDE = 8  # pixels; what is smaller is no film
PREPROCESSING = (
    f"grey as RGB by its own value range, upright, JPEG reduced to >= {REDUCED_DECODING}x, bilinear, [-1, 1]"
)
_RANGE_TAGS = ((340, 341), (280, 281))  # TIFF's (SMinSampleValue, SMaxSampleValue), (MinSampleValue, MaxSampleValue)
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0  # TIFF's PhotometricInterpretation
_DEEP_MODES = ("I", "F")  # and I;16...: Pillow's modes of grey beyond 8 bits


def read_pixels(path, size):
    """An image file => pixels, (3, size, size) float32 in [-1, 1]. ValueError names a file that cannot be read."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # by its name, Pillow maps a turned TIFF wrongly
            _check_picture(image)
            image.draft("L", (REDUCED_DECODING * size, REDUCED_DECODING * size))
            grey = _deep_grey(image) if image.mode.startswith(_DEEP_MODES) else image.convert("L")
            small = _upright(grey.resize((size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise ValueError(f"unreadable image {path}: it is no picture that Pillow knows") from error
    except Exception as error:  # a decoder meets a broken file with whatever its code runs into
        raise ValueError(f"unreadable image {path}: {reason(error)}") from error
    pixels = np.asarray(small, dtype=np.float32) / 127.5 - 1  # 0..255 => [-1, 1]
    return torch.from_numpy(pixels).expand(3, size, size)


def read_grey(path, size):
    """An image file => (size, size) uint8; ValueError as `read_pixels`, which it reads by."""
    return read_pixels(path, size)[0].add(1).mul(127.5).round().byte().numpy()


def _check_picture(image):
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a JPEG with previews behind it; the first one is the picture
        raise ValueError(f"it has {frames} frames")
    if min(image.size) < SMALLEST_SIDE:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, and a film has {SMALLEST_SIDE} a side at least"
        )


def _deep_grey(image):
    """An image of more than 8 bits => mode F, 0 (black) to 255 (white) by the value range that its file states."""
    tags = getattr(image, "tag_v2", {})
    low, high = 0, None
    if image.mode.startswith("I;16") or image.format in (
        "PNG",
        "PPM",
    ):  # of which Pillow brings all beyond 8 bits to 16
        high = 65535
    for smallest, largest in _RANGE_TAGS:
        if largest in tags:
            low, high = (float(np.max(tags.get(tag, 0))) for tag in (smallest, largest))
            break
    if high is None:
        raise ValueError("it has 32 bits a pixel and states no range of values; save it with 8 or 16 bits")
    if not low < high:
        raise ValueError(f"its tags state that its values go from {low:g} to {high:g}")
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are no numbers")
    grey = ((values - low) * (255 / (high - low))).clip(0, 255)
    picture = Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO else grey)
    picture.info = image.info  # with its EXIF
    return picture


def _upright(picture):
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # an EXIF block that cannot be read says nothing of the picture
        return picture


def load_vae(base_model, device="cpu"):
    """The frozen AutoencoderKL in `<base_model>/vae`; base_model is a Stable-Diffusion-like folder or a hub id."""
    try:
        vae = load_strictly(AutoencoderKL, base_model, subfolder="vae")
    except InputError as error:
        raise InputError(f"no VAE in {base_model!r}: {error}; set BASE_MODEL to a Stable Diffusion folder") from error
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # quicker convolutions


def decode_in(vae, precision):
    """From now on a VAE decodes in bf16, where that is a run's precision, and in float32 otherwise; it encodes in float32.

    fp16 is not taken for it: in the decoders of some of Stable Diffusion's VAEs activations exceed its largest number.
    """
    if precision == "bf16":
        for part in filter(None, (vae.post_quant_conv, vae.decoder)):
            part.to(torch.bfloat16)


def latent_shape(vae, image_size, patch_size=1):
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


def encode_moments(vae, pixels):
    """pixels (B, 3, S, S) in [-1, 1] => moments (B, 2C, S/f, S/f), mean then log-variance, unscaled."""
    with torch.no_grad():
        return vae.encode(pixels.to(vae.device)).latent_dist.parameters


def draw_latents(moments, noise, scaling_factor):
    """moments (..., 2C, h, w) and standard normal noise (..., C, h, w) => latents (..., C, h, w), unit variance."""
    mean, log_variance = moments.chunk(2, dim=-3)
    return (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise) * scaling_factor


def mean_latents(moments, scaling_factor):
    """moments (..., 2C, h, w), a tensor or an array => the posterior's mean, latents (..., C, h, w), unit variance."""
    return moments[..., : moments.shape[-3] // 2, :, :] * scaling_factor


def draw_posterior(moments, generator, scaling_factor):
    """One image's cached moments, an array (2C, h, w), and a torch.Generator => latents (C, h, w), unit variance."""
    moments = torch.from_numpy(np.asarray(moments, dtype=np.float32))
    noise = torch.randn((moments.shape[0] // 2, *moments.shape[1:]), generator=generator)
    return draw_latents(moments, noise, scaling_factor)


def decode_latents(vae, latents):
    """latents (B, C, h, w), unit variance => images (B, S, S) uint8 on the CPU."""
    unscaled = latents.to(vae.device) / vae.config.scaling_factor
    with torch.no_grad():
        pixels = vae.decode(unscaled.to(vae.decoder.conv_in.weight.dtype)).sample  # (B, 3, S, S), about [-1, 1]
    grey = pixels.float().mean(dim=1).add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


def cache_moments(table, vae, image_size, cache_dir, batch_size, accelerator, threads, keys=None):
    """The moments of every image of a table, encoded once => (cache, keys, readable).

    keys: the table's `image_keys` where they are known; readable: (len(table),) bool, False for images that cannot be
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

    def encode(images):
        return encode_moments(vae, torch.stack(images)).cpu().numpy().astype(np.float16)

    readable = cache.fill(
        keys, lambda row: read_pixels(paths[row], image_size), encode, batch_size, accelerator, "VAE moments", threads
    )
    return cache, keys, readable
