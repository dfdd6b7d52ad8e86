"""The training of a denoiser that all of its trainers share, and pictures of what it generates meanwhile."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import default_collate

from models.diffusion import Guidance, PromptedDenoiser, Prompts, sample_latents, sampling_scheduler
from training.examples import DiffusionExamples, DiffusionFeatures
from training.loop import fit, random_batch, try_training
from utils.errors import InputError, say
from utils.latents import decode_latents, latent_shape
from utils.mimic_cxr import table_fingerprint
from utils.prompts import NULL_PROMPT
from utils.seeds import keyed_seed

IMAGES = 8  # a picture
STEPS = 25  # denoising steps
GUIDANCE = 3.0  # of text and reference


def train_denoiser(
    model: PromptedDenoiser, compute_loss: Callable, table: pd.DataFrame, encoders: tuple, constants: dict, accelerator,
    num_timesteps: int, facts: dict | None = None, **sampling,
) -> None:  # fmt: skip
    """Tries the training, computes what the frozen encoders make of the table, and trains by `fit`.

    encoders: VAE, text encoder and reference encoder; constants: the script's; num_timesteps: of which an example draws
    one; facts: further ones for training.json; sampling: arguments of `Preview`. InputError as of `try_training`.
    """
    image_size, dropout = constants["IMAGE_SIZE"], constants["PROMPT_DROPOUT"]
    vae, text_encoder, reference_encoder = encoders
    if len(dropout) != 3 or sum(dropout) > 1:
        form = "three probabilities, of no text, no reference and neither, that sum up to 1 at most"
        raise InputError(f"PROMPT_DROPOUT {dropout} has to be {form}")
    latents, text = latent_shape(vae, image_size), tuple(text_encoder.encode([NULL_PROMPT])[0].shape)
    shapes = {"latents": latents, "noise": latents, "timesteps": (), "text": text}
    shapes["reference"] = (reference_encoder.width,)
    try_training(model, compute_loss, partial(random_batch, shapes), table, constants, accelerator)
    threads = constants["NUM_WORKERS"]
    features = DiffusionFeatures(table, *encoders, image_size, constants["CACHE_DIR"], threads, accelerator)
    examples = DiffusionExamples(features, "train", num_timesteps, dropout, constants.get("TIMESTEPS", "uniform"))
    validation = DiffusionExamples(features, "validate", num_timesteps)
    say(f"references of the training rows: {examples.references.count_kinds(examples.table)}")
    preview = Preview(validation, vae, model.schedule, constants["SEED"], **sampling)
    facts = {"encoders": features.encoders, "data": table_fingerprint(features.table), **(facts or {})}
    fit(model, examples, validation, compute_loss, constants, accelerator, preview, facts)


class Preview:
    """A picture at each checkpoint: real validation images above, images for their prompts below, of the same noise."""

    def __init__(self, validation, vae, schedule, seed, steps=STEPS, guidance=GUIDANCE, scheduler="DPMSolverMultistep"):
        self.vae, self.schedule, self.scheduler = vae, schedule, scheduler
        self.steps, self.guidance = steps, guidance
        # drawn at random: the first rows are all of the first patient group
        rows = np.random.default_rng(keyed_seed(seed, "preview")).permutation(len(validation))[:IMAGES].tolist()
        self.seeds = [keyed_seed(seed, "preview", row) for row in rows]
        batch = default_collate([validation[row, image_seed] for row, image_seed in zip(rows, self.seeds)])
        self.real, self.text, self.reference = (batch[name] for name in ("latents", "text", "reference"))
        self.null_text = torch.from_numpy(validation.features.null_text)

    def __call__(self, model, path: Path) -> None:
        scheduler = sampling_scheduler(self.scheduler, self.schedule)
        prompts = Prompts(self.text, self.reference, self.null_text)
        guidance = Guidance(self.guidance, self.guidance)
        generated = sample_latents(model, scheduler, prompts, guidance, self.seeds, self.real.shape[1:], self.steps)
        self.vae.to(generated.device)
        rows = [np.concatenate(list(decode_latents(self.vae, latents)), axis=1) for latents in (self.real, generated)]
        self.vae.to("cpu")
        Image.fromarray(np.concatenate(rows)).save(path.with_suffix(".png"))
