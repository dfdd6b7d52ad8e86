"""Small KL autoencoders of films, trained from scratch: they replace Stable Diffusion's VAE in the demos.

make_vae          pixels <=> latents of unit variance; the loss is the absolute error of pixels and of their gradients
refine_decoder    trains the decoder alone further, against a critic of patches
distil_decoder    a quicker decoder that imitates it, as TAESD does Stable Diffusion's
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from tqdm import tqdm

KL_WEIGHT = 1e-4  # of the divergence of the latents from the normal distribution, for each number of a latent
SCALING_IMAGES = 512  # whose latents' standard deviation gives the scaling factor


def to_pixels(images: np.ndarray, device="cpu") -> torch.Tensor:
    """(B, S, S) uint8 => (B, 3, S, S) in [-1, 1]."""
    return (torch.from_numpy(images).to(device).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def train(
    parameters, compute_loss: Callable, steps: int, learning_rate: float, name: str, weight_decay: float = 0.01
) -> None:
    """Trains with AdamW and one cycle of the learning rate; compute_loss(step) => scalar."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    progress = tqdm(range(steps), name, mininterval=5)
    for step in progress:
        loss = compute_loss(step)
        _step(optimizer, loss)
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")


def _step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def make_vae(
    images: np.ndarray,
    channels: tuple[int, ...],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device="cpu",
) -> AutoencoderKL:
    """images (N, S, S) uint8 => AutoencoderKL: 4 latent channels, a level of the network for each of `channels`."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=images.shape[1],
        mid_block_add_attention=False,
    ).to(device, memory_format=torch.channels_last)

    def compute_loss(step):
        pixels = _draw(images, batch_size, (seed, step), device)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16, enabled=vae.device.type == "cuda"):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        return F.l1_loss(decoded, pixels) + _edges(decoded - pixels) + KL_WEIGHT * divergence

    train(vae.parameters(), compute_loss, steps, learning_rate, "vae")
    with torch.no_grad():
        latents = vae.encode(to_pixels(images[:SCALING_IMAGES], device)).latent_dist.sample()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def refine_decoder(
    vae: AutoencoderKL,
    images: np.ndarray,
    steps: int,
    critic_from: int,
    critic_weight: float,
    batch_size: int,
    seed: int,
) -> None:
    """Trains the decoder alone further, against a critic of patches; the encoder and the latents stay the same.

    critic_from: the step from which on there is a critic; critic_weight: of the critic against the error of the pixels.

    The absolute error alone blurs what the latents leave open: thin lines, streaks, the film's grain. The critic (hinge
    loss, as in Stable Diffusion's autoencoder; Esser et al. 2021) rewards images that look like films.
    """
    vae.requires_grad_(False).to(memory_format=torch.channels_last)
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    critic = _critic().to(vae.device, memory_format=torch.channels_last)
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=5e-4, betas=(0.5, 0.9), weight_decay=0.01)
        for network in (decoder, critic)
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(one, 5e-4, total_steps=steps, pct_start=0.05, cycle_momentum=False)
        for one in optimizers
    ]
    progress = tqdm(range(steps), "decoder", mininterval=5)
    for step in progress:
        pixels = _draw(images, batch_size, (seed, 1, step), vae.device)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample()
        decoded = vae.decode(latents).sample
        error = decoded - pixels
        pixel_loss = error.abs().mean() + 4 * error.square().mean() + _edges(error)
        if step < critic_from:
            _step(optimizers[0], pixel_loss)
        else:
            critic.requires_grad_(False)
            _step(optimizers[0], pixel_loss - critic_weight * critic(decoded).mean())
            critic.requires_grad_(True)
            _step(optimizers[1], F.relu(1 - critic(pixels)).mean() + F.relu(1 + critic(decoded.detach())).mean())
        for schedule in schedules:
            schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{pixel_loss.item():.4f}")


def distil_decoder(
    vae: AutoencoderKL, images: np.ndarray, channels: int, steps: int, batch_size: int, seed: int
) -> AutoencoderTiny:
    """A decoder with `channels` at every level, trained on what the VAE's own makes of the latents of images.

    Its encoder stays untrained: it is not used.
    """
    levels = len(vae.config.block_out_channels)
    widths, blocks = (channels,) * levels, (1,) * levels
    tiny = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        latent_channels=vae.config.latent_channels,
    ).to(vae.device, memory_format=torch.channels_last)

    def compute_loss(step):
        pixels = _draw(images, batch_size, (seed, 2, step), vae.device)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample()
            wanted = vae.decode(latents).sample
        error = tiny.decode(latents * vae.config.scaling_factor).sample - wanted
        return error.abs().mean() + 4 * error.square().mean() + _edges(error)

    train(tiny.decoder.parameters(), compute_loss, steps, 2e-3, "quick decoder")
    return tiny


def _draw(images, batch_size, key, device):
    rows = np.random.default_rng(key).integers(len(images), size=batch_size)
    return to_pixels(images[rows], device)


def _edges(error):
    """The mean absolute error of the vertical and horizontal gradients of images (B, 3, S, S)."""
    return sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))


def _critic():
    """(B, 3, S, S) => (B, 1, S / 4, S / 4): how much like a film each patch looks."""

    def layer(channels_in, channels_out, kernel, stride):
        convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=1)
        return [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]

    layers = [(3, 32, 3, 1), (32, 32, 4, 2), (32, 64, 3, 1), (64, 64, 4, 2), (64, 64, 3, 1), (64, 1, 3, 1)]
    return nn.Sequential(*[part for sizes in layers for part in layer(*sizes)][:-1])


def save_half(model, folder: str | Path) -> None:
    """Saves a model as half-precision safetensors, half the bytes; loading gives float32."""
    model.half().save_pretrained(folder)
    model.float()
