"""Images a second of the vision module, from noise to pixels.

naive       PNDM, the paper's 50 steps, guidance at every noise level, float32
ours        DPM-Solver++ (2M), 25 steps, in the precision of sample_diffusion_*.py; the same with guidance only between two
            noise levels; and what students of distill_diffusion.py do, 3 or 4 steps of DDIM without guidance

What an image is worth in each way is not measured here (benchmarks.fidelity does). Prompts and references are random
numbers: encoding them takes as long in each. As in the samplers, the VAE decodes in the network's precision, and a GPU's network
answers by CUDA graphs.
"""

import copy
from contextlib import nullcontext
from functools import partial

import torch

from benchmarks.bench_clock import plain_float32, precision_of, result, speeds, synchronise, take_turns, timed
from models.diffusion import Guidance, Prompts, sample_latents, sampling_scheduler
from models.graphs import replay
from utils.latents import decode_in, decode_latents

GUIDANCE = Guidance(7.5, 7.5)  # the paper's
BACKBONES = {"U-ViT": "train_diffusion_clipUViT", "SD's U-Net": "train_diffusion_clipSD"}


class Sampler:
    """Draws a batch of images in one way; afterwards `decoding` has the seconds of the VAE, `calls` the network's rows."""

    def __init__(self, parts, model, vae, texts, images, scheduler, steps, guidance, precision):
        self.model, self.vae, self.shape = model.eval(), vae, parts.shape
        self.name, self.steps, self.precision = scheduler, steps, precision
        self.guidance = guidance
        self.images, self.device = images, parts.device
        null = texts.encode([""])[0]
        text = null + torch.randn(images, *null.shape, device=null.device)
        self.prompts = Prompts(text, torch.randn(images, parts.references.width, device=null.device), null)
        self.decoding, self.calls = [], 0

    def __call__(self):
        scheduler = sampling_scheduler(self.name, self.model.schedule)
        self.calls = 0
        counter = self.model.register_forward_pre_hook(self._count)
        try:
            with self.precision():
                latents = sample_latents(
                    self.model, scheduler, self.prompts, self.guidance, range(self.images), self.shape, self.steps
                )
        finally:
            counter.remove()
        synchronise(self.device)
        with plain_float32() if self.precision is plain_float32 else nullcontext():
            self.decoding.append(timed(lambda: decode_latents(self.vae, latents), self.device))

    def _count(self, _, inputs):
        self.calls += len(inputs[0])


def measure(parts, accelerator, images, guided, turns, enough):
    """images: of a batch; guided: (lowest, highest) noise level of the limited guidance; yields results, for both backbones."""
    vae = copy.deepcopy(parts.vae)  # of ours
    decode_in(vae, accelerator.mixed_precision)
    yield _layout(vae, images, parts, turns, enough)
    for title, script in BACKBONES.items():
        model = parts.vision(script)
        own = copy.deepcopy(model)
        replay(own, accelerator)
        texts = parts.token_texts if script.endswith("SD") else parts.pooled_texts
        recipes = {
            "naive": ("PNDM", 50, GUIDANCE, plain_float32),
            "DPM-Solver++ 25": ("DPMSolverMultistep", 25, GUIDANCE, accelerator.autocast),
            f"DPM-Solver++ 25, guidance {guided[0]:g} to {guided[1]:g}": (
                "DPMSolverMultistep", 25, Guidance(7.5, 7.5, *guided), accelerator.autocast
            ),
            "a student's 3 steps": ("DDIM", 3, Guidance(), accelerator.autocast),
            "a student's 4 steps": ("DDIM", 4, Guidance(), accelerator.autocast),
        }  # fmt: skip
        samplers = {
            name: Sampler(parts, *((model, parts.vae) if name == "naive" else (own, vae)), texts, images, *recipe)
            for name, recipe in recipes.items()
        }
        seconds = take_turns(samplers, turns, parts.device, enough=enough)
        for name in list(recipes)[1:]:
            calls = [f"{samplers[which].calls / images:.0f}" for which in ("naive", name)]
            note = f"batches of {images}; {' and '.join(calls)} network calls an image; float32 and {precision_of(accelerator)}"
            speed = {which: speeds(images, seconds[which]) for which in ("naive", name)}
            yield result("sampling", f"{title}, {name}", "images/s", speed[name], speed["naive"], True, note)
        # of the last of ours, and of naive; the first turn was the warm-up
        share = {
            which: [100 * part / whole for part, whole in zip(samplers[which].decoding[1:], seconds[which])]
            for which in ("naive", name)
        }
        yield {
            **result("sampling", f"{title}, the VAE's share", "%", share[name], share["naive"]),
            "ratio": float("nan"),
        }


def _layout(vae, images, parts, turns, enough):
    """What the memory layout that `load_vae` chooses is worth: the same VAE, and one that has PyTorch's own."""
    other = copy.deepcopy(vae).to(memory_format=torch.contiguous_format)
    latents = torch.randn(images, *parts.shape, device=parts.device)
    variants = {name: partial(decode_latents, each, latents) for name, each in {"naive": other, "ours": vae}.items()}
    speed = {
        name: speeds(images, seconds)
        for name, seconds in take_turns(variants, turns, parts.device, warm_up=2, enough=enough).items()
    }
    note = f"batches of {images}, {str(vae.decoder.conv_in.weight.dtype).removeprefix('torch.')}"
    return result("sampling", "the VAE, channels last", "images/s", speed["ours"], speed["naive"], True, note)
