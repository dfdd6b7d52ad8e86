"""Image files of every kind => pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, TiffImagePlugin

from utils.pixels import read_grey, read_pixels, to_grey


def save_jpeg(path, values, **options):
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path, quality=98, **options)
    return path


def smooth(height, width):
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
    return np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))


def test_pixels_are_grey_square_and_from_minus_one_to_one(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 48, axis=0)
    pixels = read_pixels(save_jpeg(tmp_path / "ramp.jpg", ramp), 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    assert -1 <= pixels.min() < -0.95 and 0.95 < pixels.max() <= 1
    expected = torch.linspace(-1, 1, 32).expand(32, 32)  # left is dark, right is bright, top is as bottom
    assert (pixels[0] - expected).abs().max() < 0.05


def test_a_colour_image_is_read_as_grey(tmp_path):
    colours = np.zeros((32, 32, 3))
    colours[..., 0], colours[..., 1], colours[..., 2] = 200, 100, 50
    pixels = read_pixels(save_jpeg(tmp_path / "colour.jpg", colours), 16)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert (pixels - (grey / 127.5 - 1)).abs().max() < 0.03


def test_reduced_decoding_keeps_the_small_image(tmp_path):
    """A JPEG decoded at 1/8 and resized is the one decoded in full and resized, to two grey levels on average."""
    path = save_jpeg(tmp_path / "large.jpg", smooth(1024, 900))
    with Image.open(path) as image:
        full = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)
    reduced = (read_pixels(path, 32)[0].numpy() + 1) * 127.5
    assert np.abs(reduced - full).mean() < 2


def test_a_truncated_jpeg_is_refused_by_name(tmp_path):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)).save(whole, "JPEG")
    for name, content in {
        "cut": whole.getvalue()[: len(whole.getvalue()) // 2],
        "text": b"not a picture",
        "no": b"",
    }.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=rf"unreadable image .*{name}\.jpg"):
            read_pixels(tmp_path / f"{name}.jpg", 32)
    with pytest.raises(ValueError, match=r"unreadable image .*absent\.jpg"):
        read_pixels(tmp_path / "absent.jpg", 32)


RAMP = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, axis=0)  # dark on the left
DEEP = RAMP.astype(np.uint16) * 257
WHITE_IS_ZERO = TiffImagePlugin.ImageFileDirectory_v2()
WHITE_IS_ZERO[262] = 0
PICTURES = {  # name => (the picture, how it is saved), all of them RAMP
    "grey.png": (Image.fromarray(RAMP), {}),
    "colour.png": (Image.fromarray(RAMP).convert("RGB"), {}),
    "transparent.png": (Image.fromarray(RAMP).convert("RGBA"), {}),
    "palette.png": (Image.fromarray(RAMP).convert("P"), {}),
    "16-bit.png": (Image.fromarray(DEEP), {}),
    "16-bit.tif": (Image.fromarray(DEEP), {}),
    "16-bit.jp2": (Image.fromarray(DEEP), {}),
    "12-bit.tif": (Image.fromarray(DEEP >> 4), {}),
    "white-is-zero.tif": (Image.fromarray(65535 - DEEP), {"tiffinfo": WHITE_IS_ZERO}),
}


def test_every_depth_is_read_by_its_own_range(tmp_path):
    for name, (picture, options) in PICTURES.items():
        picture.save(tmp_path / name, **options)
        pixels = read_pixels(tmp_path / name, 32)
        assert (pixels[0] - torch.linspace(-1, 1, 32)).abs().max() < 0.05, name


def test_a_pgm_of_any_depth_is_read_by_its_own_range(tmp_path):
    for largest, values in ((65535, DEEP), (4095, DEEP >> 4)):
        path = tmp_path / f"{largest}.pgm"
        path.write_bytes(b"P5 64 48 %d\n" % largest + values.astype(">u2").tobytes())
        assert (read_pixels(path, 32)[0] - torch.linspace(-1, 1, 32)).abs().max() < 0.05


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(RAMP > 127).save(tmp_path / "bit.png")
    pixels = read_pixels(tmp_path / "bit.png", 32)[0]
    assert (pixels[:, :14] == -1).all() and (pixels[:, 18:] == 1).all()


@pytest.mark.parametrize(("kind", "depth"), [("jpg", 8), ("png", 8), ("png", 16), ("tif", 8), ("tif", 16)])
def test_a_picture_is_turned_as_its_exif_says(kind, depth, tmp_path):
    rng = np.random.default_rng(0)
    upright = np.asarray(Image.fromarray(rng.integers(0, 255, (4, 4), dtype=np.uint8)).resize((40, 24)))
    turns = {  # orientation => what was done to the upright picture before it was saved
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, 3),
    }  # fmt: skip
    for orientation, turn in turns.items():
        saved = np.ascontiguousarray(turn(upright))
        saved = saved if depth == 8 else saved.astype(np.uint16) * 257
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{kind}"
        Image.fromarray(saved).save(path, exif=exif, **({"quality": 98} if kind == "jpg" else {}))
        expected = np.asarray(Image.fromarray(upright).resize((16, 16), Image.Resampling.BILINEAR)) / 127.5 - 1
        assert np.abs(read_pixels(path, 16)[0].numpy() - expected).max() < 0.08, orientation


def test_an_exif_block_of_noise_does_not_matter(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=b"Exif\0\0noise", quality=98)
    assert (read_pixels(tmp_path / "a.jpg", 32)[0] - torch.linspace(-1, 1, 32)).abs().max() < 0.05


def test_no_picture_of_a_film_is_refused_by_name(tmp_path):
    """Each in one ValueError that names the file: what `fill` counts as unreadable."""
    grey = Image.fromarray(RAMP)
    header = struct.pack(">II5B", 20_000, 20_000, 8, 0, 0, 0, 0)  # 400 megapixels
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT" + bytes(8))
    Image.new("L", (1, 1)).save(tmp_path / "pixel.png")
    Image.new("L", (100, 3)).save(tmp_path / "line.png")
    grey.save(tmp_path / "film.gif", save_all=True, append_images=[grey.rotate(90), grey])
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey.rotate(90)])
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "unknown.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "unknown-whole.tif")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "text.jpg").write_text("not a picture")
    whole = io.BytesIO()
    grey.save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:60])
    said = {
        "bomb.png": "exceeds limit", "pixel.png": "it has 1 x 1 pixels", "line.png": "it has 100 x 3 pixels",
        "film.gif": "it has 3 frames", "pages.tif": "it has 2 frames", "unknown.tif": "states no range",
        "unknown-whole.tif": "states no range",
        "folder.jpg": "directory", "cut.png": "", "text.jpg": "cannot identify image",
    }  # fmt: skip
    for name, words in said.items():
        with pytest.raises(ValueError, match=rf"^unreadable image .*{name}: .*{words}"):
            read_pixels(tmp_path / name, 32)


def test_twelve_bits_in_a_sixteen_bit_file_are_black_to_white(tmp_path):
    ramp = np.add.outer(np.arange(64), np.arange(64)) * 4095 // 126
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "film.png")
    grey = read_grey(tmp_path / "film.png", 32)
    assert grey.min() < 5 and grey.max() > 250


def test_a_blank_image_is_refused_by_name(tmp_path):
    marked = np.zeros((200, 200), dtype=np.uint8)
    marked[8:16, 8:14] = 255  # a side marker
    noise = np.random.default_rng(0).integers(100, 103, (64, 64), dtype=np.uint8)
    for number, values in enumerate((marked, noise, np.full((64, 64), 255))):
        save_jpeg(tmp_path / f"{number}.jpg", values)
        with pytest.raises(ValueError, match=rf"^unreadable image .*{number}\.jpg: it is blank"):
            read_pixels(tmp_path / f"{number}.jpg", 100, refuse_blank=True)
        read_pixels(tmp_path / f"{number}.jpg", 100)  # to show it
    read_pixels(save_jpeg(tmp_path / "dim.jpg", smooth(64, 64) // 16), 32, refuse_blank=True)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 128, 255]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], dtype=np.uint16), [0, 128, 255]),  # 12 bits
        (np.array([[0, 32768, 65535]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[[9, 9, 9, 0], [200, 200, 200, 7]]], dtype=np.uint8), [9, 200]),  # transparency is ignored
        (np.array([[[0, 255]]], dtype=np.uint8), [0]),
        (np.array([[[255, 0, 0]]], dtype=np.uint8), [76]),
    ],
)
def test_any_picture_becomes_grey(pixels, expected):
    assert np.asarray(to_grey(Image.fromarray(pixels))).round().tolist() == [expected]
