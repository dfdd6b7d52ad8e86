"""Image files => pixels (3, S, S) float32 in [-1, 1]: grey repeated as RGB, bilinear, upright as EXIF says, any aspect.

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
import torch
from PIL import Image, ImageOps

from utils.errors import InputError, as_input_error, reason

REDUCED_DECODING = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves this many times the wanted size
SMALLEST_SIDE = 8  # pixels; a smaller image is not an X-ray
BLANK_RANGE = 5  # grey levels; an image whose pixels differ by no more, but for a hundredth at each end, is blank
PREPROCESSING = (
    f"grey as RGB by its own value range, upright, JPEG reduced to >= {REDUCED_DECODING}x, bilinear, [-1, 1]"
)


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
    """An open image of any mode => mode L, or F from 0 (black) to 255 (white) of more than 8 bits."""
    if image.mode[0] not in "IF":
        return image.convert("L")
    if not image.mode.startswith("I;16") and image.format not in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        raise ValueError("it has 32 bits a pixel and states no range of values; save it with 8 or 16 bits")
    values = np.asarray(image, dtype=np.float32)
    white = 2 ** min(max(int(values.max()).bit_length(), 8), 16) - 1  # of the fewest bits that hold all: 4095 of 12
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
