"""The step of each trainer, naively and as the script does it: what benchmarks.bench_training measures.

The frozen encoders run in every step, or have run before. Reading files is not in it (benchmarks.bench_data), so pixels and
features are random numbers; reports are those of drawn chests.
"""

from functools import cached_property, partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_bart
import train_diffusion_clipSD
import train_diffusion_clipUViT
import train_prior_model
from benchmarks.bench_clock import plain_float32
from benchmarks.bench_parts import constants_of
from phantom import random_findings, write_report
from training.examples import ReportExamples
from training.loop import Average
from training.muon import make_optimizer
from training.preflight import made_up
from utils.findings import to_prompt
from utils.latents import draw_latents, encode_moments
from utils.report_text import clean_report

BATCHES_OF_REPORTS = 9  # of which the one of middle length is measured


def draw_reports(count, tokens, tokenizer):
    """Cleaned reports of drawn chests, one after the other, and cut at tokens/2 to 3 tokens/2 tokens."""
    rng, reports = np.random.default_rng(0), []
    for wanted in rng.uniform(0.5, 1.5, count) * tokens:
        text = ""
        while len(tokenizer(text, verbose=False).input_ids) < wanted:
            text = f"{text} {clean_report(write_report(*random_findings(rng), rng))}".strip()
        ids = tokenizer(text, verbose=False).input_ids[1 : int(wanted) - 1]  # without <s>, and with room for </s>
        reports.append(tokenizer.decode(ids))
    return reports


# ---- what each trainer's step is made of ---------------------------------------------------------------------------


class Trainer:
    """One trainer's step, both ways: naive() and ours() each do one optimiser step.

    A child has: `model`; `loss`, of a model and a batch; `raw` and `cached`, the passes of a step before and after the
    frozen encoders, on the CPU; `encode`, of raw tensors on the device => a batch; `encoders`, what it needs for that.
    """

    name, script = "", ""  # what benchmarks.bench calls it
    encoders = ()
    denoiser = None  # what the script's GRADIENT_CHECKPOINTING and COMPILE are about

    def __init__(self, parts, accelerator, **otherwise):
        """otherwise: constants that are not the script's."""
        self.parts, self.accelerator, self.device = parts, accelerator, parts.device
        self.constants = constants_of(self.script, parts.sizes) | otherwise
        self.passes = self.constants["ACCUMULATION"]
        self.size = self.constants["BATCH_SIZE"] // self.passes  # examples a pass

    def _settings(self):
        names = {"lr": "LEARNING_RATE", "betas": "BETAS", "weight_decay": "WEIGHT_DECAY"}
        return {name: self.constants[its] for name, its in names.items()}

    def _trained(self):
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @cached_property
    def _naive_optimizer(self):
        return torch.optim.AdamW(self._trained(), **self._settings())

    @cached_property
    def _our_optimizer(self):
        return make_optimizer(self.constants["OPTIMIZER"], self.model, **self._settings())

    @cached_property
    def _average(self):
        return Average(self._trained(), decay=self.constants["EMA_DECAY"])

    @plain_float32()
    def naive(self):
        self._checkpoint_gradients(False)
        self.model.train()
        for raw in self.raw:
            batch = self.encode({name: self._to_device(value) for name, value in raw.items()})
            (self.loss(self.model, batch) / self.passes).backward()
        self._naive_optimizer.step()
        self._naive_optimizer.zero_grad()

    def ours(self, model=None):
        self._checkpoint_gradients(self.constants.get("GRADIENT_CHECKPOINTING", False))
        self.model.train()
        for cached in self.cached:
            batch = {name: self._to_device(value) for name, value in cached.items()}
            with self.accelerator.autocast():
                loss = self.loss(model or self.model, batch) / self.passes
            self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._trained(), self.constants["CLIP_NORM"] or float("inf"))
        self._our_optimizer.step()
        self._our_optimizer.zero_grad()
        self._average.step(self._trained())

    def _to_device(self, value):
        return value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    def _checkpoint_gradients(self, wanted):
        """Not by the networks' own method: each call of it would make a compiled network be compiled again."""
        for module in self.denoiser.modules() if self.denoiser else ():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = wanted

    def resident(self, recipe):
        """Bytes that lie on the device from step to step."""
        modules = [self.model, *(self.encoders if recipe == "naive" else ())]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        optimizer = self._naive_optimizer if recipe == "naive" else self._our_optimizer
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        tensors += self._average.shadow_params if recipe == "ours" else []
        distinct = {tensor.data_ptr(): tensor for tensor in tensors if tensor.device.type == self.device.type}
        return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())

    def operations(self):
        """Of one of our steps."""
        with FlopCounterMode(display=False) as counter:
            self.ours()
        return counter.get_total_flops()


class VisionTrainer(Trainer):
    module = None  # the script

    def __init__(self, parts, accelerator, **otherwise):
        super().__init__(parts, accelerator, **otherwise)
        self.model = parts.vision(self.script)
        self.denoiser = self.model.denoiser
        if hasattr(self.denoiser, "enable_gradient_checkpointing"):
            self.denoiser.enable_gradient_checkpointing()
        self.loss = partial(self.module.compute_loss, schedule=self.model.schedule)
        self.texts = parts.token_texts if self.script == "train_diffusion_clipSD" else parts.pooled_texts
        self.encoders = parts.vae, self.texts.model, parts.references.tower
        rng, side, steps = np.random.default_rng(0), parts.image_size, self.model.schedule.config.num_train_timesteps
        shapes = {"pixels": (3, side, side), "seen": (3, parts.references.image_size, parts.references.image_size)}
        noises = {"noise": parts.shape, "timesteps": ()}
        text = (self.texts.model.config.max_position_embeddings,) * (not self.texts.pooled) + (self.texts.width,)
        features = {"latents": parts.shape, **noises, "text": text, "reference": (parts.references.width,)}
        self.cached = [made_up(features, self.size) for _ in range(self.passes)]
        self.raw = [made_up(shapes | noises | {"draw": parts.shape}, self.size) for _ in range(self.passes)]
        for batch in (*self.cached, *self.raw):
            batch["timesteps"] = torch.from_numpy(rng.integers(0, steps, self.size))
        for batch in self.raw:
            batch["prompts"] = [to_prompt(random_findings(rng)[1]) for _ in range(self.size)]

    def encode(self, raw):
        vae = self.parts.vae
        return {
            "latents": draw_latents(encode_moments(vae, raw["pixels"]), raw["draw"], vae.config.scaling_factor),
            "noise": raw["noise"],
            "timesteps": raw["timesteps"],
            "text": self.texts.encode(raw["prompts"]),
            "reference": self.parts.references.encode(raw["seen"]),
        }


class UViTTrainer(VisionTrainer):
    name, script, module, title = "uvit", "train_diffusion_clipUViT", train_diffusion_clipUViT, "U-ViT"


class UNetTrainer(VisionTrainer):
    name, script, module, title = "unet", "train_diffusion_clipSD", train_diffusion_clipSD, "SD's U-Net"


class BartTrainer(Trainer):
    name, script, title = "bart", "train_bart", "BART"

    def __init__(self, parts, accelerator, report_tokens):
        super().__init__(parts, accelerator)
        self.model = parts.autoencoder()
        self.loss = partial(train_bart.compute_loss, latent_noise=self.constants["LATENT_NOISE"])
        count = self.constants["BATCH_SIZE"] * BATCHES_OF_REPORTS
        examples = ReportExamples(draw_reports(count, report_tokens, self.model.tokenizer), self.model, self.size)
        middle = np.argsort(examples.lengths)[count // 2 - self.size * self.passes // 2 :]
        rows = [middle[start : start + self.size].tolist() for start in range(0, self.size * self.passes, self.size)]
        self.cached = [examples.collate([examples[row, row] for row in batch]) for batch in rows]
        self.note = (
            f"{examples.lengths[np.concatenate(rows)].mean():.0f} tokens, padded to {self.model.max_tokens} and not"
        )
        self.raw = []
        for cached in self.cached:
            own, others = (
                self.model.tokenizer.pad(
                    {"input_ids": cached[f"{name}_ids"], "attention_mask": cached[mask]},
                    padding="max_length",
                    max_length=self.model.max_tokens,
                    return_tensors="pt",
                )
                for name, mask in (("input", "attention_mask"), ("other", "other_mask"))
            )
            batch, beside = dict(own), {"other_ids": others["input_ids"], "other_mask": others["attention_mask"]}
            self.raw.append({**batch, **beside, "noise": cached["noise"]})

    def encode(self, raw):
        return raw  # the one trainer without a frozen encoder


class PriorTrainer(Trainer):
    name, script, title = "prior", "train_prior_model", "prior"

    def __init__(self, parts, accelerator, report_tokens):
        super().__init__(parts, accelerator)
        self.autoencoder = parts.autoencoder().eval().requires_grad_(False)
        self.model = parts.prior(self.autoencoder.width)
        self.loss = partial(train_prior_model.compute_loss, cosine_weight=self.constants["COSINE_WEIGHT"])
        self.encoders = parts.vae, self.autoencoder
        features = {"latents": parts.shape, "report_latents": (self.autoencoder.width,)}
        pixels = {"pixels": (3, parts.image_size, parts.image_size), "draw": parts.shape}
        self.cached = [made_up(features, self.size) for _ in range(self.passes)]
        reports = draw_reports(self.size * self.passes, report_tokens, self.autoencoder.tokenizer)
        examples, most = ReportExamples(reports, self.autoencoder, self.size), self.autoencoder.max_tokens
        self.raw = []
        for start in range(0, len(reports), self.size):
            tokens = {"input_ids": examples.tokens[start : start + self.size]}
            padded = examples.tokenizer.pad(tokens, padding="max_length", max_length=most, return_tensors="pt")
            self.raw.append({**made_up(pixels, self.size), **padded})

    @torch.no_grad()
    def encode(self, raw):
        vae = self.parts.vae
        return {
            "latents": draw_latents(encode_moments(vae, raw["pixels"]), raw["draw"], vae.config.scaling_factor),
            "report_latents": self.autoencoder.encode(raw["input_ids"], raw["attention_mask"]),
        }


TRAINERS = {trainer.script: trainer for trainer in (UViTTrainer, UNetTrainer, BartTrainer, PriorTrainer)}


def make_trainer(script, parts, accelerator, report_tokens, **otherwise):
    """otherwise: constants of the vision module's scripts that are to be other than theirs."""
    kind = TRAINERS[script]
    if issubclass(kind, VisionTrainer):
        trainer = kind(parts, accelerator, **otherwise)
    else:
        trainer = kind(parts, accelerator, report_tokens)
    if trainer.device.type == "cuda":  # as the loader of training.loop
        trainer.cached = [{name: value.pin_memory() for name, value in batch.items()} for batch in trainer.cached]
    return trainer
