"""Images a second of the vision module, from noise to pixels.

naive     PNDM, the paper's 50 steps, with guidance, in float32
ours      DPM-Solver++ (2M), 25 steps, with guidance, in the precision of sample_diffusion_*.py
student   4 steps of DDIM without guidance, as a student of distill_diffusion.py is sampled

The quality of the images is measured by benchmarks.fidelity, not here. Prompts and references are random numbers. As in
the samplers, the VAE decodes in the network's precision, and a GPU replays the network from CUDA graphs.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.bench.clock import Clock, plain_float32, precision_of, speed_row
from benchmarks.bench.networks import Networks
from models.diffusion import Guidance, PromptedDenoiser, Prompts, sample_latents, sampling_scheduler
from models.graphs import replay
from utils.latents import decode_in, decode_latents

GUIDANCE = 7.5  # for text and reference, the paper's
BACKBONES = {"U-ViT": "train_diffusion_clipUViT", "SD's U-Net": "train_diffusion_clipSD"}
OURS = {  # row => scheduler, steps, guidance
    "DPM-Solver++ 25": ("DPMSolverMultistep", 25, GUIDANCE),
    "a student's 4 steps": ("DDIM", 4, 1.0),
}


@dataclasses.dataclass
class Sampler:
    """Draws a batch of images in one way; after a call, `calls` holds the network's evaluations for an image."""

    model: PromptedDenoiser
    vae: nn.Module
    prompts: Prompts
    shape: tuple[int, int, int]  # of the latents, (C, h, w)
    precision: Callable  # returns the network's context manager; the VAE has its own precision
    recipe: tuple[str, int, float]  # scheduler, steps, guidance
    calls: float = 0

    def __call__(self) -> None:
        name, steps, guidance = self.recipe
        seeds = range(len(self.prompts.text))
        evaluated = []
        counter = self.model.register_forward_pre_hook(lambda _, inputs: evaluated.append(len(inputs[0])))
        with self.precision():
            scheduler, guidances = sampling_scheduler(name, self.model.schedule), Guidance(guidance, guidance)
            latents = sample_latents(self.model, scheduler, self.prompts, guidances, seeds, self.shape, steps)
        counter.remove()
        decode_latents(self.vae, latents)
        self.calls = sum(evaluated) / len(seeds)


def measure(networks: Networks, accelerator: Accelerator, clock: Clock, images: int) -> Iterator[list]:
    """Yields rows for both backbones; images: the size of a batch."""
    vae = copy.deepcopy(networks.vae)
    decode_in(vae, accelerator.mixed_precision)
    for title, script in BACKBONES.items():
        model = networks.vision(script).eval()
        ours = copy.deepcopy(model)
        replay(ours, accelerator)
        null = networks.text_encoder(pooled=not script.endswith("SD")).encode([""])[0]
        text = null + torch.randn(images, *null.shape, device=null.device)
        reference = torch.randn(images, networks.references.width, device=null.device)
        prompts, shape = Prompts(text, reference, null), networks.shape
        samplers = {"naive": Sampler(model, networks.vae, prompts, shape, nullcontext, ("PNDM", 50, GUIDANCE))}
        for name, recipe in OURS.items():
            samplers[name] = Sampler(ours, vae, prompts, shape, accelerator.autocast, recipe)
        seconds = clock.seconds({**samplers, "naive": plain_float32()(samplers["naive"])})
        for name in OURS:
            calls = f"{samplers['naive'].calls:.0f} and {samplers[name].calls:.0f} network calls an image"
            note = f"batches of {images}; {calls}; float32 and {precision_of(accelerator)}"
            yield speed_row(f"{title}, {name}", "images/s", images / seconds["naive"], images / seconds[name], note)
