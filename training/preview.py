"""Pictures of what a denoiser generates while it is trained."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from models.diffusion import Guidance, Prompts, sample_latents, sampling_scheduler
from utils.latents import decode_latents
from utils.prompts import NULL_PROMPT
from utils.seeds import keyed_seed

IMAGES = 8  # a picture
STEPS = 25  # denoising steps
GUIDANCE = 3.0  # of text and reference


class Preview:
    """A picture at each checkpoint: real validation images above, images for their prompts below, of the same noise."""

    def __init__(self, validation, vae, schedule, seed, steps=STEPS, guidance=GUIDANCE, scheduler="DPMSolverMultistep"):
        self.vae, self.schedule, self.scheduler = vae, schedule, scheduler
        self.steps, self.guidance = steps, guidance
        count = min(IMAGES, len(validation))
        # drawn at random: the first rows are all of the first patient group
        rows = np.random.default_rng(keyed_seed(seed, "preview")).permutation(len(validation))[:count].tolist()
        self.seeds = [keyed_seed(seed, "preview", row) for row in rows]
        batch = default_collate([validation[row, image_seed] for row, image_seed in zip(rows, self.seeds)])
        self.real, self.text, self.reference = (batch[name] for name in ("latents", "text", "reference"))
        self.null_text = torch.from_numpy(np.array(validation.features.texts[NULL_PROMPT]))

    def __call__(self, model, path: Path) -> None:
        scheduler = sampling_scheduler(self.scheduler, self.schedule)
        prompts = Prompts(self.text, self.reference, self.null_text)
        guidance = Guidance(self.guidance, self.guidance)
        generated = sample_latents(model, scheduler, prompts, guidance, self.seeds, self.real.shape[1:], self.steps)
        self.vae.to(generated.device)
        rows = [np.concatenate(list(decode_latents(self.vae, latents)), axis=1) for latents in (self.real, generated)]
        self.vae.to("cpu")
        Image.fromarray(np.concatenate(rows)).save(path.with_suffix(".png"))
