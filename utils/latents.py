"""The frozen VAE: pixels <=> latents.

    image file  => pixels   (3, S, S) float32 in [-1, 1], grey repeated as RGB, bilinear, the aspect ratio not kept,
                            upright as its EXIF orientation says
    pixels      => moments  (2C, S/f, S/f) mean and log-variance of the posterior, unscaled: this is what is cached
    moments     => latents  (C, S/f, S/f) one draw of the posterior times `vae.config.scaling_factor`: unit variance
    latents     => image    (S, S) uint8

For Stable Diffusion v1.4's VAE at S = 256: C = 4, f = 8.

An image file holds a single picture in any format that Pillow reads, at least SMALLEST_SIDE pixels a side.

    1 and 8 bits a channel    grey as it is; a palette, RGB and CMYK as Pillow's luma; transparency is ignored
    more bits, DICOM (.dcm)   as docs/data.md says
    white is zero             not known here: an X-ray exported with MONOCHROME1's values is read as a negative

Everything else (several frames, a DICOM file in colour, fewer pixels, more than twice Pillow's MAX_IMAGE_PIXELS,
broken) is refused by name; so is a blank image, but where it is only shown.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image, ImageOps

from utils.cache import FeatureCache, image_keys
from utils.checkpoints import load_strictly, weights_fingerprint
from utils.errors import InputError, as_input_error, reason
from utils.seeds import keyed_generator

REDUCED_DECODING = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves this many times the wanted size
SMALLEST_SIDE = 8  # pixels; a smaller image is not an X-ray
BLANK_RANGE = 5  # grey levels; an image whose pixels differ by no more, but for a hundredth at each end, is blank
PREPROCESSING = (
    f"grey as RGB by its own value range, upright, JPEG reduced to >= {REDUCED_DECODING}x, bilinear, [-1, 1]"
)
PATCH_SIZE = 2  # latent pixels, the side of a transformer's token: the paper's, of U-ViT and prior


def read_pixels(path: str | Path | Image.Image | np.ndarray, size: int, refuse_blank: bool = False) -> torch.Tensor:
    """An image file => pixels, (3, size, size) float32 in [-1, 1]. ValueError names a file that cannot be read.

    In place of a file also what Pillow has opened, or its values, (H, W) uint8 or uint16 or (H, W, 3) uint8.

    refuse_blank: whether a blank image counts as one, as it does wherever images are learned from or evaluated.
    """
    try:
        with open_image(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a JPEG with previews; its first frame is the image
                raise ValueError(f"it has {frames} frames")
            if min(image.size) < SMALLEST_SIDE:
                sides = f"{image.width} x {image.height} pixels; an X-ray has {SMALLEST_SIDE} a side at least"
                raise ValueError(f"it has {sides}")
            image.draft("L", (REDUCED_DECODING * size, REDUCED_DECODING * size))
            small = to_grey(image).resize((size, size), Image.Resampling.BILINEAR)
            with suppress(Exception):  # a damaged EXIF block: the pixels may still be right
                small = ImageOps.exif_transpose(small)
        grey = np.asarray(small, dtype=np.float32)  # 0..255
        if refuse_blank and np.ptp(np.percentile(grey, (1, 99))) <= BLANK_RANGE:
            raise ValueError(f"it is blank: its pixels are all about {grey.mean():.0f} of 255")
    except InputError:
        raise
    except Exception as error:  # decoders raise errors of any type for a broken file
        where = path if isinstance(path, str | Path) else f"({type(path).__name__})"
        raise ValueError(f"unreadable image {where}: {reason(error)}") from error
    return torch.from_numpy(grey / 127.5 - 1).expand(3, size, size)  # 0..255 => [-1, 1]


def read_grey(path: str | Path | Image.Image | np.ndarray, size: int, refuse_blank: bool = False) -> np.ndarray:
    """An image => (size, size) uint8, read by `read_pixels`; ValueError as there."""
    return read_pixels(path, size, refuse_blank)[0].add(1).mul(127.5).round().byte().numpy()


@contextmanager
def open_image(path: str | Path | Image.Image | np.ndarray) -> Iterator[Image.Image]:
    """An image file as Pillow opens it; a .dcm file's film is a picture of mode L in the format DICOM.

    Errors are Pillow's, of many types; for a .dcm file OSError and ValueError, and InputError where pydicom is missing.
    """
    if isinstance(path, Image.Image | np.ndarray):
        picture = path if isinstance(path, Image.Image) else Image.fromarray(path)
        picture.load()  # from here on `draft` changes nothing of it
        yield picture
    elif str(path).lower().endswith(".dcm"):
        try:
            picture = _read_dicom(path)
        except (OSError, InputError):
            raise
        except Exception as error:  # pydicom's, of many types
            raise ValueError(reason(error)) from error
        yield picture
    else:
        with open(path, "rb") as file, Image.open(file) as image:  # given a path, Pillow reads a turned TIFF wrongly
            yield image


def to_grey(image: Image.Image) -> Image.Image:
    """An open image of any mode => mode L, or F from 0 (black) to 255 (white) of more than 8 bits.

    White is the largest number of the fewest bits, 8 to 16, that hold all values: of a 12-bit film 4095.
    """
    if image.mode[0] not in "IF":
        return image.convert("L")
    if not image.mode.startswith("I;16") and image.format not in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        raise ValueError("it has 32 bits a pixel and states no range of values; save it with 8 or 16 bits")
    values = np.asarray(image, dtype=np.float32)
    white = 2 ** min(max(int(values.max()).bit_length(), 8), 16) - 1
    grey = (values * (255 / white)).clip(0, 255)
    is_negative = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF's PhotometricInterpretation: white is zero
    picture = Image.fromarray(255 - grey if is_negative else grey)
    picture.info = image.info  # with its EXIF
    return picture


def _read_dicom(path: str | Path) -> Image.Image:
    """The film of a DICOM file as it is to be shown, mode L; ValueError for a file without one film in grey."""
    missing = f'{path} is a DICOM file, which pydicom reads: pip install -e ".[dicom]"'
    with as_input_error(lambda _: missing, ImportError):
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_windowing
    dicom = pydicom.dcmread(path)
    photometric, bits, frames = dicom.PhotometricInterpretation, dicom.BitsStored, int(dicom.get("NumberOfFrames") or 1)
    if frames > 1 or bits > 16 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        film = f"{frames} frames in {photometric} of {bits} bits"
        raise ValueError(f"it has {film}; a film is one, in grey of 16 at most")
    # for each number that the stored bits can be: grey, (2^BitsStored,) uint8, 0 to 255
    values = np.arange(2**bits)
    if dicom.PixelRepresentation:  # two's complement
        values -= len(values) * (values >= len(values) // 2)
    if dicom.get("ModalityLUTSequence"):
        values, low, high = _look_up(dicom.ModalityLUTSequence[0], values)
    else:
        values = apply_modality_lut(values, dicom)  # slope and intercept
        low, high = values.min(), values.max()
    if dicom.get("VOILUTSequence"):
        values, low, high = _look_up(dicom.VOILUTSequence[0], values)
    elif dicom.get("WindowWidth") is not None and dicom.get("WindowCenter") is not None:
        values = apply_windowing(values, dicom)  # from low to high
    grey = ((values - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    codes = dicom.pixel_array.astype(np.uint16) & (2**bits - 1)  # higher bits may hold an overlay
    if dicom.get("BurnedInAnnotation") == "YES":  # Python shows a warning of one text once
        warnings.warn("a DICOM file states that writing is part of its pixels: it may name a patient", stacklevel=2)
    picture = Image.fromarray(grey[codes])
    picture.format = "DICOM"
    return picture


def _look_up(lut, values: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Values through an item of a LUT sequence => (its entries, their smallest and largest possible value).

    pydicom's own way cannot look up more than 256 values in a LUT of 8 bits.
    """
    count, first, bits = lut.LUTDescriptor
    entries = lut.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, np.uint8 if len(entries) == count else "<u2")
    places = np.rint(values).astype(np.int64) - first
    return np.asarray(entries)[places.clip(0, len(entries) - 1)], 0, 2**bits - 1


def load_vae(base_model: str, device: str | torch.device = "cpu") -> AutoencoderKL:
    """The frozen AutoencoderKL in `<base_model>/vae`; base_model is a Stable-Diffusion-like folder or a hub id."""
    way_out = "set BASE_MODEL to a Stable Diffusion folder"
    with as_input_error(lambda error: f"no VAE in {base_model!r}: {error}; {way_out}", InputError):
        vae = load_strictly(AutoencoderKL, base_model, subfolder="vae")
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


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """latents (B, C, h, w), unit variance => images (B, S, S) uint8."""
    unscaled = latents.to(vae.device) / vae.config.scaling_factor
    with torch.no_grad():
        pixels = vae.decode(unscaled.to(vae.decoder.conv_in.weight.dtype)).sample  # (B, 3, S, S), about [-1, 1]
    grey = pixels.float().mean(dim=1).add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


def cache_moments(
    table: pd.DataFrame, vae: AutoencoderKL, image_size: int, cache_dir: str | Path, batch_size: int,
    accelerator: Accelerator, threads: int, keys: list[str | None] | None = None,
) -> tuple[FeatureCache, list[str | None], np.ndarray]:  # fmt: skip
    """The moments of every image of a table, encoded once => (cache, keys, readable).

    keys: the table's `image_keys` if they are known; readable: (len(table),) bool, False for images that cannot be
    decoded (each was named).
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
