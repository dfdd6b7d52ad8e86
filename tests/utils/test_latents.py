import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from utils.errors import InputError
from utils.latents import (
    cache_moments,
    decode_in,
    decode_latents,
    draw_posterior,
    encode_moments,
    latent_shape,
    load_vae,
    mean_latents,
)
from utils.pixels import read_pixels

# pixels (1, 3, 32, 32) of soft blobs
BLOBS = read_pixels(np.random.default_rng(0).integers(64, 192, (8, 8), dtype=np.uint8), 32)[None]


def test_latents_are_a_scaled_draw_of_the_posterior():
    mean, log_variance = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float16)
    moments = np.concatenate((mean, log_variance))
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = (torch.tensor(mean).float() + (0.5 * torch.tensor(log_variance).float()).exp() * noise) * 0.5
    drawn = draw_posterior(moments, torch.Generator().manual_seed(3), 0.5)
    assert torch.equal(drawn, expected)  # the same bits as ever: a model trained before is resumed
    np.testing.assert_array_equal(mean_latents(moments, 0.5), mean * 0.5)
    extreme = np.concatenate((np.zeros((4, 1, 1)), np.full((4, 1, 1), 1e9)))
    assert draw_posterior(extreme, torch.Generator(), 1.0).isfinite().all()


def test_pixels_to_moments_to_latents_to_image(base_model):
    vae = load_vae(base_model)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())
    moments = encode_moments(vae, BLOBS)
    assert moments.shape == (1, 8, 8, 8) and not moments.requires_grad
    assert latent_shape(vae, 32) == (4, 8, 8)

    posterior = vae.encode(BLOBS).latent_dist
    latents = mean_latents(moments, vae.config.scaling_factor)
    torch.testing.assert_close(latents, posterior.mean * vae.config.scaling_factor)

    image = decode_latents(vae, latents)
    assert image.shape == (1, 32, 32) and image.dtype == np.uint8
    grey = (vae.decode(posterior.mean).sample.mean(dim=1) + 1) * 127.5
    assert np.abs(image - grey.clamp(0, 255).detach().numpy()).max() <= 0.51


def test_a_vae_decodes_in_bf16_and_encodes_in_float32(base_model):
    vae = load_vae(base_model)
    moments = encode_moments(vae, BLOBS)
    latents = mean_latents(moments, vae.config.scaling_factor)
    exact = decode_latents(vae, latents).astype(int)
    decode_in(vae, "fp16")
    assert (decode_latents(vae, latents) == exact).all()
    decode_in(vae, "bf16")
    assert torch.equal(encode_moments(vae, BLOBS), moments)
    rounded = decode_latents(vae, latents)
    assert rounded.dtype == np.uint8 and (rounded != exact).any() and np.abs(rounded - exact).max() <= 3
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_vaes_factor_divides_the_image_size(base_model):
    with pytest.raises(InputError, match="IMAGE_SIZE 30 is not a multiple of 4"):
        latent_shape(load_vae(base_model), 30)
    assert latent_shape(load_vae(base_model), 36) == (4, 9, 9)
    with pytest.raises(InputError, match="IMAGE_SIZE 36 is not a multiple of 4, the VAE's .* x PATCH_SIZE 2"):
        latent_shape(load_vae(base_model), 36, 2)


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
