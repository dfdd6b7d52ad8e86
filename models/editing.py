"""Changes a film where two prompts differ, and nowhere else.

1. Where: the network's predictions of the clean film for both prompts, from the film with noise, are compared
   (DiffEdit, Couairon et al. 2023); the mask is where they differ most.
2. What: within the mask the film is drawn anew for the other prompt, from part of the noise (`models.diffusion.Edit`).
3. Where, once more: the comparison is repeated with what was drawn. A finding that is there shows best where it lies,
   and one that is not there could lie anywhere: the film shows what is taken away, the new one what is added.
4. The film keeps every other pixel, and those that hardly change: what the VAE loses is lost nowhere else.
"""

from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy import ndimage

from models.diffusion import PromptedDenoiser, Prompts, guided_prediction
from utils.latents import decode_latents
from utils.seeds import keyed_generator

MASK_TIMES, MASK_DRAWS = (0.35, 0.5), 8  # shares of the noise schedule, and noises of each, that a mask is the mean of
MASK_BLUR = 0.7  # standard deviation, in latent pixels
PEAK = 0.99  # the quantile of a map that thresholds are shares of
SMOOTHING, FEATHER = 3 / 8, 1 / 4  # standard deviations, in latent pixels: of a change, and of the edge of what is kept


@torch.no_grad()
def change_map(
    model: PromptedDenoiser, latents: torch.Tensor, before: Prompts, after: Prompts, seeds: list[int]
) -> np.ndarray:
    """How much the network's prediction of the clean film differs for two prompts, (B, h, w), about 1 on average.

    latents: of B films, (B, C, h, w), unit variance; seeds: each film's own.
    """
    schedule, maps = model.schedule, np.zeros((len(latents), *latents.shape[2:]))
    generators = [keyed_generator(seed, "mask") for seed in seeds]
    for share in MASK_TIMES:
        timestep = torch.tensor(round(share * schedule.config.num_train_timesteps), device=latents.device)
        for _ in range(MASK_DRAWS):
            noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
            noisy = schedule.add_noise(latents, noise.to(latents.device), timestep.expand(len(latents)))
            one, other = (guided_prediction(model, noisy, timestep, prompts, 1, 1) for prompts in (before, after))
            difference = (one - other).abs().mean(dim=1).double().cpu().numpy()
            maps += difference / np.maximum(difference.mean(axis=(1, 2), keepdims=True), 1e-12)
    return ndimage.gaussian_filter(maps / (MASK_DRAWS * len(MASK_TIMES)), (0, MASK_BLUR, MASK_BLUR))


def change_mask(maps: np.ndarray, threshold: float) -> torch.Tensor:
    """Maps (B, h, w) => masks (B, 1, h, w), 0 or 1: where a map exceeds that share of its peak, but where it is 0."""
    peaks = np.quantile(maps, PEAK, axis=(1, 2), keepdims=True)
    return torch.from_numpy(maps > threshold * peaks)[:, None].float()


def paste(
    films: np.ndarray, film_latents: torch.Tensor, latents: torch.Tensor, mask: torch.Tensor, vae: AutoencoderKL,
    least_change: float,
) -> np.ndarray:  # fmt: skip
    """Films with what was drawn anew in them, (B, S, S) uint8.

    films: (B, S, S) uint8; film_latents, latents: theirs before and after, (B, C, h, w); mask: (B, 1, h, w);
    least_change: grey levels that a place has to change by on average, or it keeps the film's pixels.
    """
    before, after = (decode_latents(vae, each).astype(np.float32) for each in (film_latents, latents))
    change, factor = after - before, films.shape[1] // mask.shape[2]
    where = mask[:, 0].cpu().numpy().repeat(factor, axis=1).repeat(factor, axis=2) > 0
    smooth = (0, SMOOTHING * factor, SMOOTHING * factor)
    widen = partial(ndimage.binary_dilation, structure=np.ones((1, 3, 3)))  # by a pixel to each side
    where = widen(where) & widen(ndimage.gaussian_filter(np.abs(change), smooth) > least_change)
    weight = ndimage.gaussian_filter(where.astype(np.float32), (0, FEATHER * factor, FEATHER * factor))
    return np.clip(np.round(films + weight * change), 0, 255).astype(np.uint8)
