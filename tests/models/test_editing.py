"""What an edit changes of a film, and what it leaves."""

import numpy as np
import pytest
import torch

from models.diffusion import Edit, Guidance, Prompts, sample_latents, sampling_scheduler
from models.editing import change_map, change_mask, paste
from utils.latents import decode_latents, load_vae

SHAPE = (4, 8, 8)


@pytest.fixture
def films():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


def prompts(model, number):
    generator = torch.Generator().manual_seed(number)
    width = model.fusion.config.text_dim
    shape = (77, width) if model.fusion.__class__.__name__ == "TokenFusion" else (width,)
    text = torch.randn(2, *shape, generator=generator)
    return Prompts(text, torch.zeros(2, model.fusion.config.reference_dim), torch.zeros(shape))


def edited(model, films, mask, strength, scheduler="DPMSolverMultistep", steps=10):
    scheduler = sampling_scheduler(scheduler, model.schedule)
    edit = Edit(films, mask, strength)
    return sample_latents(model, scheduler, prompts(model, 3), Guidance(2, 2), [5, 6], SHAPE, steps, edit=edit)


@pytest.mark.parametrize("backbone", ["uvit_model", "unet_model"])
def test_an_edit_of_strength_0_is_the_film_and_a_mask_of_nothing_changes_nothing(backbone, films, request):
    model, everywhere = request.getfixturevalue(backbone), torch.ones(2, 1, 8, 8)
    assert torch.equal(edited(model, films, everywhere, 0.0), films)
    assert torch.equal(edited(model, films, 0 * everywhere, 0.8), films)
    assert not torch.equal(edited(model, films, everywhere, 0.8), films)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistep", "DDIM", "EulerDiscrete"])
def test_only_the_mask_changes(uvit_model, films, scheduler):
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    changed = edited(uvit_model, films, mask, 0.7, scheduler)
    assert torch.isfinite(changed).all()
    inside = mask.expand_as(films) > 0
    assert torch.equal(changed[~inside], films[~inside]) and (changed[inside] != films[inside]).all()


def test_a_whole_strength_is_an_image_from_the_same_noise(uvit_model, films):
    scheduler = sampling_scheduler("DPMSolverMultistep", uvit_model.schedule)
    alone = sample_latents(uvit_model, scheduler, prompts(uvit_model, 3), Guidance(2, 2), [5, 6], SHAPE, 10)
    whole = edited(uvit_model, films, torch.ones(2, 1, 8, 8), 1.0)
    assert (whole - alone).abs().max() < 0.2 * (alone - films).abs().max()  # the last step keeps a trace of the film


def test_the_map_compares_the_prompts_by_the_films_own_noise(uvit_model, films):
    one, other = prompts(uvit_model, 3), prompts(uvit_model, 4)
    maps = change_map(uvit_model, films, one, other, [5, 6])
    assert maps.shape == (2, 8, 8) and maps.mean(axis=(1, 2)) == pytest.approx(1, rel=0.1)
    alone = change_map(
        uvit_model, films[:1], *(Prompts(p.text[:1], p.reference[:1], p.null_text) for p in (one, other)), [5]
    )
    np.testing.assert_allclose(alone[0], maps[0], rtol=1e-4)
    same = change_map(uvit_model, films, one, one, [5, 6])
    assert (same == 0).all() and (change_mask(same, 0.0) == 0).all()


def test_a_mask_is_where_the_map_is_near_its_peak():
    maps = np.zeros((1, 8, 8))
    maps[0, 2, 3:6] = 1, 10, 4
    assert change_mask(maps, 0.9)[0, 0].nonzero().tolist() == [[2, 4]]
    assert change_mask(maps, 0.0).sum() == 3


def test_a_film_keeps_its_pixels_where_little_changes(base_model, films):
    vae = load_vae(base_model)
    before = decode_latents(vae, films)
    film = np.random.default_rng(0).integers(0, 256, before.shape, dtype=np.uint8)  # not what the VAE makes of it
    drawn, mask = films.clone(), torch.zeros(2, 1, 8, 8)
    drawn[:, :, 2:4, 2:4] += 3
    mask[:, :, 2:4, 2:4] = 1
    np.testing.assert_array_equal(paste(film, films, films, mask, vae, 1.0), film)
    np.testing.assert_array_equal(paste(film, films, drawn, 0 * mask, vae, 1.0), film)
    np.testing.assert_array_equal(paste(film, films, drawn, mask, vae, 255.0), film)
    changed = paste(film, films, drawn, mask, vae, 0.5) != film
    assert changed[:, 8:16, 8:16].any()
    changed[:, 3:21, 3:21] = False  # a pixel around the mask, and the width of a feather
    assert not changed.any()
