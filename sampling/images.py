"""Requests => images: the denoiser draws latents, the VAE decodes them."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from models.diffusion import ALL_NOISE, Edit, Guidance, PromptedDenoiser, Prompts, sample_latents, sampling_scheduler
from sampling.reference_pool import ReferencePool
from utils.latents import decode_latents, latent_shape
from utils.prompts import TextEncoder


@dataclass(frozen=True)
class ImageSampler:
    """A trained denoiser with its frozen models, which draws images; InputError where they do not fit together."""

    denoiser: PromptedDenoiser
    vae: AutoencoderKL | AutoencoderTiny  # or another decoder of its latents
    text_encoder: TextEncoder
    settings: dict  # that it draws with: those of the tree's manifest
    pool: ReferencePool | None  # where references come from; None: images without
    autocast: Callable[[], AbstractContextManager] = nullcontext  # in which the denoiser computes
    progress: Callable[[Iterable], Iterable] = iter  # passes the timesteps on

    def __post_init__(self):
        self.denoiser.check_fits(self.text_encoder.width, self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents."""
        return latent_shape(self.vae, self.settings["image_size"])

    def try_once(self, prompt: str):
        """Draws one image of a prompt in one step, without a reference, and decodes it: what can fail, fails here."""
        one_step = {"steps": 1, "scheduler": "DDIM", "guidance_low": 0.0, "guidance_high": ALL_NOISE}
        request = pd.DataFrame({"prompt": [prompt], "reference_dicom_id": "", "seed": 0})
        decode_latents(self.vae, replace(self, settings={**self.settings, **one_step}).draw(request))

    def make(self, requests: pd.DataFrame) -> tuple[np.ndarray, torch.Tensor | None]:
        """The images (B, S, S) uint8 of B requests, and their latents (B, C, h, w) if these are worth keeping."""
        latents = self.draw(requests)
        return decode_latents(self.vae, latents), latents

    def draw(self, requests: pd.DataFrame, edit: Edit | None = None) -> torch.Tensor:
        """The latents of B requests, (B, C, h, w); edit: of B films that are changed, None: drawn from noise alone."""
        settings = self.settings
        prompts, guidance = self.prompts(requests)
        scheduler, seeds = sampling_scheduler(settings["scheduler"], self.denoiser.schedule), requests.seed.tolist()
        with self.autocast():
            return sample_latents(
                self.denoiser, scheduler, prompts, guidance, seeds, self.shape, settings["steps"], self.progress, edit
            )

    def prompts(self, requests: pd.DataFrame) -> tuple[Prompts, Guidance]:
        """What B requests have to show, and how strongly."""
        fusion, settings = self.denoiser.fusion.config, self.settings
        length = max(self.text_encoder.lengths(requests.prompt)) if fusion.prompting == "authors" else 0
        null_text, null_reference = self.text_encoder.null_prompt(fusion.prompting, length)
        text = self.text_encoder.encode(requests.prompt.tolist(), length)
        text_guidance, reference_guidance = settings["text_guidance"], settings["reference_guidance"]
        if settings["condition"] == "text":
            reference = torch.zeros(len(requests), fusion.reference_dim)
            reference_guidance = text_guidance
        else:
            reference = self.pool.embeddings(requests.reference_dicom_id)
        if settings["condition"] == "reference":
            text, text_guidance = null_text.expand_as(text), reference_guidance
        guidance = Guidance(text_guidance, reference_guidance, settings["guidance_low"], settings["guidance_high"])
        return Prompts(text, reference, null_text, null_reference), guidance


def batches_to_draw(plan: pd.DataFrame, missing: set, batch_size: int, sampler: ImageSampler) -> list[pd.DataFrame]:
    """The batches of a plan that hold a missing image; for the authors' denoisers, each with prompts of one length.

    A batch is always the same rows of the plan, whether their images exist or not: how an image is rounded depends on
    the rest of its batch, and an image that a killed run left out has to equal that of an uninterrupted run.
    """
    lengths = np.zeros(len(plan), dtype=int)
    if sampler.denoiser.fusion.config.prompting == "authors" and len(plan):
        lengths = np.array(sampler.text_encoder.lengths(plan.prompt))
    numbers = plan.groupby(lengths).cumcount().to_numpy() // batch_size
    batches = [batch for _, batch in plan.groupby([lengths, numbers], sort=False)]
    return [batch for batch in batches if batch.dicom_id.isin(missing).any()]
