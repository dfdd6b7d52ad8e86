import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageFile

from utils.errors import InputError
from utils.latents import (
    cache_moments,
    decode_latents,
    draw_latents,
    encode_moments,
    latent_shape,
    load_vae,
    read_pixels,
)


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


def test_latents_are_a_scaled_draw_of_the_posterior():
    mean, log_variance = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noise = torch.randn(2, 4, 8, 8)
    moments = torch.cat((mean, log_variance), dim=1)
    expected = (mean + log_variance.exp().sqrt() * noise) * 0.5
    torch.testing.assert_close(draw_latents(moments, noise, 0.5), expected)
    torch.testing.assert_close(draw_latents(moments[0], noise[0], 0.5), expected[0])
    extreme = torch.cat((torch.zeros(4, 1, 1), torch.full((4, 1, 1), 1e9)))
    assert draw_latents(extreme, torch.ones(4, 1, 1), 1.0).isfinite().all()


def test_pixels_to_moments_to_latents_to_image(base_model, tmp_path):
    vae = load_vae(base_model)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())
    pixels = read_pixels(save_jpeg(tmp_path / "a.jpg", smooth(64, 64)), 32)[None]
    moments = encode_moments(vae, pixels)
    assert moments.shape == (1, 8, 8, 8) and not moments.requires_grad
    assert latent_shape(vae, 32) == (4, 8, 8)

    posterior = vae.encode(pixels).latent_dist
    latents = draw_latents(moments, torch.zeros(1, 4, 8, 8), vae.config.scaling_factor)
    torch.testing.assert_close(latents, posterior.mean * vae.config.scaling_factor)

    image = decode_latents(vae, latents)
    assert image.shape == (1, 32, 32) and image.dtype == np.uint8
    grey = (vae.decode(posterior.mean).sample.mean(dim=1) + 1) * 127.5
    assert np.abs(image - grey.clamp(0, 255).detach().numpy()).max() <= 0.51


def test_the_vaes_factor_divides_the_image_size(base_model):
    with pytest.raises(InputError, match="IMAGE_SIZE 30 is not a multiple of 4"):
        latent_shape(load_vae(base_model), 30)


def test_a_folder_without_a_vae_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no VAE in .*set BASE_MODEL"):
        load_vae(str(tmp_path))


def test_moments_are_cached_and_unreadable_images_named(
    base_model, make_table, tmp_path, accelerator, capsys, monkeypatch
):
    table = make_table(np.zeros((5, 14)), range(5))
    broken = Path(table.image_path[2])
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    vae = load_vae(base_model)
    cache, keys, readable = cache_moments(table, vae, 32, tmp_path / "cache", 2, accelerator, threads=2)
    assert readable.tolist() == [True, True, False, True, True]
    assert "image-2.jpg" in capsys.readouterr().out
    expected = encode_moments(vae, read_pixels(table.image_path[4], 32)[None])[0]
    assert cache[keys[4]].dtype == np.float16
    np.testing.assert_allclose(cache[keys[4]], expected.numpy(), atol=2e-3, rtol=2e-3)

    with pytest.raises(InputError, match="image_size = 32, this run has 16"):
        cache_moments(table, vae, 16, tmp_path / "cache", 2, accelerator, threads=0)
    with pytest.raises(InputError, match="encoder"):
        other = AutoencoderKL.from_config(vae.config)
        cache_moments(table, other, 32, tmp_path / "cache", 2, accelerator, threads=0)

    # a copy of the same weights elsewhere is the same encoder, and computes nothing
    shutil.copytree(f"{base_model}/vae", tmp_path / "copy" / "vae")
    copy = load_vae(str(tmp_path / "copy"))
    monkeypatch.setattr(copy, "encode", None)
    assert cache_moments(table, copy, 32, tmp_path / "cache", 2, accelerator, threads=0)[2].sum() == 4
