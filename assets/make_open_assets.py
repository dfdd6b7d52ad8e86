"""Makes assets/open: a small VAE of real chest films, and beside it the demo's text encoder, for open.toml.

    python -m assets.make_open_assets --DATA_ROOTS open/kermany,open/nih
    python -m assets.make_open_assets --DATA_ROOTS open/kermany,open/nih --DEVICE cuda --BATCH_SIZE 64

Reads:  ASSETS, and the training images of CXR trees whose licences allow this (docs/open-data.md)
Writes: FOLDER/base_model (vae, and copies of ASSETS' text_encoder, tokenizer and scheduler)
Prints: the PSNR of held-out films after encoding and decoding
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL

from assets.autoencoder import make_vae, refine_decoder, save_half, to_pixels
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import run, say
from utils.latents import decode_latents, encode_moments, mean_latents
from utils.mimic_cxr import read_table
from utils.pixels import read_grey

DATA_ROOTS = ("open/kermany", "open/nih")  # CXR trees whose training images it is trained on
VIEWS = ()  # ViewPosition of the images; () for all
HOLD_OUT = ()  # patient groups that are never trained on
FOLDER = "assets/open"  # where the parts go (a folder to write)
ASSETS = "assets/demo"  # where the text encoder comes from
IMAGE_SIZE = 128  # pixels (32 to 4096)
CHANNELS = (24, 48, 96, 128)  # of the VAE's levels: 128 pixels <=> 4 x 16 x 16 latents (each 8 to 4096)
BATCH_SIZE = 16  # films an optimiser step (1 to 4096)
LEARNING_RATE = 2e-3  # of AdamW, the highest of one cycle (above 0, 1 at most)
VAE_STEPS = 6000  # optimiser steps of encoder and decoder (2 to 1000000)
DECODER_STEPS = 4000  # after them, of the decoder alone (2 to 1000000)
CRITIC_FROM = 500  # of these steps, from which on the decoder has a critic (0 or more)
CRITIC_WEIGHT = 0.05  # of the decoder's critic against the error of the pixels (0 or more)
SEED = 1234  # of the weights and of the training (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)


def read_films(table: pd.DataFrame, image_size: int) -> np.ndarray:
    """The films of a table, (N, S, S) uint8; those that cannot be read are printed and left out."""
    films = []
    for path in table["image_path"]:
        try:
            films.append(read_grey(path, image_size))
        except ValueError as error:
            say(str(error))
    return np.stack(films)


def psnr(vae: AutoencoderKL, films: np.ndarray) -> float:
    """Of films (N, S, S) uint8 after encoding and decoding, in dB."""
    moments = torch.cat(
        [encode_moments(vae, to_pixels(films[start : start + 16])) for start in range(0, len(films), 16)]
    )
    latents = mean_latents(moments, vae.config.scaling_factor)
    again = np.concatenate([decode_latents(vae, latents[start : start + 16]) for start in range(0, len(films), 16)])
    return 10 * np.log10(255**2 / np.square(again.astype(float) - films).mean())


def main():
    override_constants(globals())
    device = make_accelerator(DEVICE, "auto").device
    torch.manual_seed(SEED)
    table = pd.concat(
        [read_table(root, views=VIEWS, hold_out=HOLD_OUT, with_reports=False) for root in DATA_ROOTS], ignore_index=True
    )
    films = {split: read_films(table[table["split"] == split], IMAGE_SIZE) for split in ("train", "validate")}
    folder = Path(FOLDER) / "base_model"
    shutil.copytree(
        Path(ASSETS) / "base_model", folder, ignore=shutil.ignore_patterns("unet", "vae"), dirs_exist_ok=True
    )
    vae = make_vae(films["train"], CHANNELS, VAE_STEPS, BATCH_SIZE, LEARNING_RATE, SEED, device)
    save_half(vae, folder / "vae")
    say(f"PSNR of {len(films['validate'])} films of other patients: {psnr(vae, films['validate']):.1f} dB")
    refine_decoder(vae, films["train"], DECODER_STEPS, CRITIC_FROM, CRITIC_WEIGHT, BATCH_SIZE, SEED)
    save_half(vae, folder / "vae")
    say(f"PSNR with the critic's decoder: {psnr(vae, films['validate']):.1f} dB")


if __name__ == "__main__":
    run(main)
