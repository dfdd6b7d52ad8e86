"""Training examples a second: an optimiser step of each trainer, naively and as its script does it.

naive    the frozen encoders run in every step; float32; reports are padded to the longest that BART can read; AdamW
ours     features come from the cache; reports are padded to the longest of their batch; the precision, clipping
         and averaging that the script's constants state

Both take the script's own compute_loss, BATCH_SIZE and ACCUMULATION. Reading files is not part of a step: pixels are
random numbers, and reports are those of drawn chests.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device

import train_bart
import train_diffusion_clipSD
import train_diffusion_clipUViT
import train_prior_model
from benchmarks.bench.clock import Clock, plain_float32, precision_of, speed_row
from benchmarks.bench.networks import Networks
from phantom import random_findings, write_report
from training.examples import ReportExamples
from training.loop import Average
from utils.findings import to_prompt
from utils.report_cleaning import clean_report

SHORTEST_REPORT = 15  # tokens of a drawn chest, or more
STEPS_A_TURN = 4  # of ours on a GPU, in a row: none waits for the one before


def draw_reports(count: int, tokens: int, tokenizer) -> list[str]:
    """Cleaned reports of drawn chests, joined and cut to about so many tokens each."""
    rng, reports = np.random.default_rng(0), []
    for _ in range(count):
        parts = [clean_report(write_report(*random_findings(rng), rng)) for _ in range(1 + tokens // SHORTEST_REPORT)]
        ids = tokenizer(" ".join(parts), verbose=False).input_ids
        reports.append(tokenizer.decode(ids[1 : tokens - 1]))  # without <s>, and with room for </s>
    return reports


class Trainer:
    """One trainer: naive() and ours() each do one optimiser step.

    A subclass has `make`, which calls `_set_up` and sets `raw` and `cached`: the batches of a step before and after the
    frozen encoders, on the CPU; and `encode`: a raw batch on the device => what the cache would hold.
    """

    title, script, note = "", None, ""

    def __init__(self, networks: Networks, accelerator: Accelerator, report_tokens: int, batch_size: int = 0):
        """report_tokens: mean length of a report; batch_size: of the vision module, instead of the script's own."""
        self.networks, self.accelerator, self.device = networks, accelerator, networks.device
        self.constants = networks.constants_of(self.script.__name__)
        self.batch_size = batch_size or self.constants["BATCH_SIZE"]
        self.passes = self.constants["ACCUMULATION"]
        self.size = self.batch_size // self.passes  # examples a pass
        self.make(report_tokens)

    def _set_up(self, model, loss):
        self.model, self.loss = model, loss
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        names = {"lr": "LEARNING_RATE", "betas": "BETAS", "weight_decay": "WEIGHT_DECAY"}
        settings = {setting: self.constants[name] for setting, name in names.items()}
        self.naive_optimizer = torch.optim.AdamW(self.trained, **settings)
        self.our_optimizer = torch.optim.AdamW(self.trained, fused=True, **settings)
        self.average = Average(self.trained, decay=self.constants["EMA_DECAY"])

    @plain_float32()
    def naive(self) -> None:
        self.model.train()
        for raw in self.raw:
            batch = self.encode(self._on_device(raw))
            (self.loss(self.model, batch) / self.passes).backward()
        self.naive_optimizer.step()
        self.naive_optimizer.zero_grad()

    def ours(self) -> None:
        self.model.train()
        for cached in self.cached:
            batch = self._on_device(cached)
            with self.accelerator.autocast():
                loss = self.loss(self.model, batch) / self.passes
            self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.trained, self.constants["CLIP_NORM"] or float("inf"))
        self.our_optimizer.step()
        self.our_optimizer.zero_grad()
        self.average.step(self.trained)

    def _fill_cache(self):
        """Encodes the raw batches."""
        self.cached = [send_to_device(self.encode(self._on_device(raw)), "cpu") for raw in self.raw]

    def _on_device(self, batch):
        return send_to_device(batch, self.device, non_blocking=True)


class VisionTrainer(Trainer):
    def make(self, report_tokens):
        model = self.networks.vision(self.script.__name__)
        self._set_up(model, partial(self.script.compute_loss, schedule=model.schedule))
        self.texts = self.networks.text_encoder(pooled=self.script is train_diffusion_clipUViT)
        self.raw = [self._draw(np.random.default_rng(number)) for number in range(self.passes)]
        self._fill_cache()

    def _draw(self, rng):
        size, images, references = self.size, self.networks.image_size, self.networks.references.image_size
        timesteps = rng.integers(0, self.model.schedule.config.num_train_timesteps, size)
        return {
            "pixels": torch.randn(size, 3, images, images),
            "reference_pixels": torch.randn(size, 3, references, references),
            "draw": torch.randn(size, *self.networks.shape),  # of the VAE's posterior
            "noise": torch.randn(size, *self.networks.shape),
            "timesteps": torch.from_numpy(timesteps),
            "prompts": [to_prompt(random_findings(rng)[1]) for _ in range(size)],
        }

    def encode(self, raw):
        return {
            "latents": self.networks.draw_latents(raw["pixels"], raw["draw"]),
            "noise": raw["noise"],
            "timesteps": raw["timesteps"],
            "text": self.texts.encode(raw["prompts"]),
            "reference": self.networks.references.encode(raw["reference_pixels"]),
        }


class UViTTrainer(VisionTrainer):
    title, script = "U-ViT", train_diffusion_clipUViT


class UNetTrainer(VisionTrainer):
    title, script = "SD's U-Net", train_diffusion_clipSD


class BartTrainer(Trainer):
    title, script = "BART", train_bart

    def make(self, report_tokens):
        loss = partial(train_bart.compute_loss, latent_noise=self.constants["LATENT_NOISE"])
        self._set_up(self.networks.autoencoder(), loss)
        reports = draw_reports(self.batch_size, report_tokens, self.model.tokenizer)
        examples = ReportExamples(reports, self.model, self.size)
        passes = np.arange(self.batch_size).reshape(self.passes, self.size).tolist()
        self.cached = [examples.collate([examples[row, row] for row in rows]) for rows in passes]
        self.raw = [self._pad_to_the_longest(batch, self.model.tokenizer.pad_token_id) for batch in self.cached]
        length = examples.lengths.mean()
        self.note = f"; {length:.0f} tokens a report, of naive padded to {self.model.max_tokens}"

    def _pad_to_the_longest(self, cached, pad):
        raw = {"noise": cached["noise"]}
        for ids, mask in (("input_ids", "attention_mask"), ("other_ids", "other_mask")):
            further = (0, self.model.max_tokens - cached[ids].shape[1])
            raw[ids], raw[mask] = F.pad(cached[ids], further, value=pad), F.pad(cached[mask], further)
        return raw

    def encode(self, raw):
        return raw  # this trainer has no frozen encoder


class PriorTrainer(Trainer):
    title, script = "prior", train_prior_model

    def make(self, report_tokens):
        networks = self.networks
        self.autoencoder = networks.autoencoder().eval().requires_grad_(False)
        self._set_up(networks.prior(self.autoencoder.width), train_prior_model.compute_loss)
        tokenizer, images = self.autoencoder.tokenizer, networks.image_size
        reports, longest = draw_reports(self.batch_size, report_tokens, tokenizer), self.autoencoder.max_tokens
        tokens = tokenizer(reports, return_tensors="pt", padding="max_length", truncation=True, max_length=longest)
        self.raw = []
        for ids, mask in zip(tokens["input_ids"].split(self.size), tokens["attention_mask"].split(self.size)):
            pixels = torch.randn(self.size, 3, images, images)
            draw = torch.randn(self.size, *networks.shape)  # of the VAE's posterior
            self.raw.append({"pixels": pixels, "draw": draw, "input_ids": ids, "attention_mask": mask})
        self._fill_cache()

    @torch.no_grad()
    def encode(self, raw):
        return {
            "latents": self.networks.draw_latents(raw["pixels"], raw["draw"]),
            "report_latents": self.autoencoder.encode(raw["input_ids"], raw["attention_mask"]),
        }


TRAINERS = {"uvit": UViTTrainer, "unet": UNetTrainer, "bart": BartTrainer, "prior": PriorTrainer}


def measure(
    networks: Networks, accelerator: Accelerator, clock: Clock, trainers: tuple[str, ...], batch_size: int, tokens: int
) -> Iterator[list]:
    """Yields a row for each trainer; batch_size and tokens as `Trainer` takes them."""
    cuda = networks.device.type == "cuda"
    steps = STEPS_A_TURN if cuda else 1
    for name in trainers:
        trainer = TRAINERS[name](networks, accelerator, tokens, batch_size if name in ("uvit", "unet") else 0)
        if cuda:
            trainer.cached = [{name: value.pin_memory() for name, value in batch.items()} for batch in trainer.cached]

        def ours(step=trainer.ours):
            for _ in range(steps):
                step()

        seconds = clock.seconds({"naive": trainer.naive, "ours": ours}, warm_up=2)
        size = trainer.batch_size
        note = f"batches of {size} in {trainer.passes} passes; float32 and {precision_of(accelerator)}{trainer.note}"
        yield speed_row(trainer.title, "examples/s", size / seconds["naive"], steps * size / seconds["ours"], note)
