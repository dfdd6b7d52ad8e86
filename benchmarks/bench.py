"""How many times quicker is this code than the same recipe done naively? Both are measured in turns, in one run.

    python -m benchmarks.bench
    python -m benchmarks.bench --DEVICE cuda --SIZES paper
    python -m benchmarks.bench --SIZES paper --SECTIONS training, --BACKBONES uvit, --BATCH_SIZE 2

training   examples a second of an optimiser step, without reading files
    naive      the frozen encoders run in every step; float32; AdamW
    ours       features come from the cache; precision, optimiser, clipping and averaging as the script's constants say
images     images a second, from noise to pixels; a GPU replays the network from CUDA graphs, as in the samplers
    naive      PNDM, the paper's 50 steps, with guidance, in float32
    ours       DPM-Solver++ (2M), 25 steps, with guidance; or a student's 4 steps of DDIM without; in our precision
reports    reports a second that BART writes from latents
    naive      as many tokens as BART can write, each from the whole text before it, without a cache, in float32
    ours       greedy, with a cache; an untrained BART ends no report, so it writes _REPORT_TOKENS tokens

Figures are medians; they hold for one machine, and their ratios travel better. The networks are the demo's, or networks
of the paper's sizes with random weights; pixels, prompts and noise are random numbers: quality is not measured here.

Writes: benchmarks/results/bench-SECTION-PROCESSOR-SIZES.json for each section
Prints: the tables
"""

import copy
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property, partial

import open_clip
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.utils.benchmark import timer  # waits for the GPU before it reads the clock
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, CLIPTextConfig, CLIPTextModel
from transformers.modeling_outputs import BaseModelOutput

import train_diffusion_clipSD
import train_diffusion_clipUViT
from benchmarks.record import processor, write_record
from models import diffusion
from models.graphs import replay
from models.report_autoencoder import ReportAutoencoder
from models.weights import start_from
from training.loop import DEFAULTS, Average
from training.trial import random_batch
from utils.constants import REPOSITORY, override_constants
from utils.devices import make_accelerator
from utils.errors import run, say
from utils.latents import PATCH_SIZE, decode_in, decode_latents, encode_moments, latent_shape, load_vae, mean_latents
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder, TokenFusion
from uvit.model import UViT

SECTIONS = ("training", "images", "reports")  # what is measured (each training, images or reports)
SIZES = "demo"  # of the networks (demo or paper; demo: minutes of 2 cores; paper: for a GPU)
DEVICE = "cpu"  # where it runs (cpu or cuda)
BACKBONES = ("uvit", "unet")  # of the vision module (each uvit or unet)
BATCH_SIZE = 0  # images of a training step (0 or more; 0: its script's)

_COLUMNS = ("what", "unit", "naive", "ours", "ratio", "note")
_TURNS, _ENOUGH = 5, 20.0  # turns of each variant at most; seconds, after which no further round of turns begins
_STEPS_A_TURN = 4  # of ours on a GPU, in a row: none waits for the one before
_BACKBONES = {"uvit": ("U-ViT", train_diffusion_clipUViT), "unet": ("SD's U-Net", train_diffusion_clipSD)}
_GUIDANCE = 7.5  # for text and reference, the paper's
_NAIVE_RECIPE = ("PNDM", 50, _GUIDANCE)  # scheduler, steps, guidance
_OUR_RECIPES = {"DPM-Solver++ 25": ("DPMSolverMultistep", 25, _GUIDANCE), "a student's 4 steps": ("DDIM", 4, 1.0)}
_IMAGES = 8  # that are sampled at a time
_REPORTS = (1, 8, 64)  # that are written at a time
_REPORT_TOKENS = 128  # of a report: what bart-base's tokenizer makes of about 90 words
_NAIVE_TOKENS = 512  # as far as BART has places
_ASSETS = REPOSITORY / "assets" / "demo"
_BASE_MODEL = str(_ASSETS / "base_model")


class Networks:
    """The networks on a device: frozen ones are made once, in evaluation mode, trained ones at each call.

    paper: False for those of demo.toml with their pretrained parts; True for those of the scripts' own constants
    (Stable Diffusion v1.4's VAE, text encoder and U-Net, U-ViT-L/2, CLIP ViT-B/32 and bart-base) with random weights
    and the demo's tokenizers: the time depends on how many tokens there are, not on which. Nothing is downloaded.
    """

    def __init__(self, device: torch.device | str, paper: bool = False):
        self.device, self.paper = torch.device(device), paper
        self.image_size = self.constants_of("train_diffusion_clipUViT")["IMAGE_SIZE"]
        torch.manual_seed(0)  # for random weights

    def constants_of(self, script: str) -> dict:
        """The constants of a trainer and of training/, {name: value}."""
        arguments = [] if self.paper else ["--config", str(REPOSITORY / "demo.toml")]
        return {**DEFAULTS, **override_constants({"__file__": str(REPOSITORY / f"{script}.py")}, arguments)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents, (C, h, w)."""
        return latent_shape(self.vae, self.image_size)

    @cached_property
    def vae(self) -> AutoencoderKL:
        if not self.paper:
            return load_vae(_BASE_MODEL, self.device)
        with self.device:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            )  # fmt: skip
        return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # as load_vae returns it

    @cached_property
    def references(self) -> ReferenceEncoder:
        references = ReferenceEncoder(f"local-dir:{_ASSETS / 'reference_encoder'}", self.device)
        if self.paper:
            with self.device:
                tower = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device=self.device).visual
            tower.proj = None
            references.tower = tower.eval().requires_grad_(False)
            references.image_size, references.width = tower.image_size[0], tower.ln_post.normalized_shape[0]
        return references

    @cache  # noqa: B019 (kept as long as the process runs)
    def text_encoder(self, pooled: bool) -> TextEncoder:
        texts = TextEncoder(_BASE_MODEL, pooled, self.device)
        if self.paper:
            ends = dict.fromkeys(("eos_token_id", "pad_token_id"), texts.tokenizer.eos_token_id)
            sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
            config = CLIPTextConfig(**sizes, **ends, bos_token_id=texts.tokenizer.bos_token_id)
            with self.device:
                texts.model = CLIPTextModel(config).eval().requires_grad_(False)
            texts.width = config.hidden_size
        return texts

    def vision(self, script: str) -> diffusion.PromptedDenoiser:
        """The model that a script of the vision module trains."""
        constants, is_uvit = self.constants_of(script), script == "train_diffusion_clipUViT"
        text, reference = self.text_encoder(pooled=is_uvit).width, self.references.width
        channels, side, _ = self.shape
        with self.device:
            if is_uvit:
                width, depth, heads = (constants[name] for name in ("EMBED_DIM", "DEPTH", "NUM_HEADS"))
                denoiser = UViT(side, PATCH_SIZE, channels, width, depth, heads)
                fusion = PooledFusion(text, reference, width)
            else:
                fusion = TokenFusion(text, reference)
                if self.paper:
                    denoiser = UNet2DConditionModel(sample_size=side, cross_attention_dim=text, attention_head_dim=8)
                else:
                    denoiser = diffusion.load_unet(_BASE_MODEL, text)
        schedule = diffusion.noise_schedule(_BASE_MODEL, constants["PREDICTION"])
        model = diffusion.PromptedDenoiser(denoiser, fusion, schedule).to(self.device)
        if is_uvit and not self.paper:
            start_from(model, str(REPOSITORY / constants["INITIAL_WEIGHTS"]))
        return model

    def autoencoder(self) -> ReportAutoencoder:
        """The report module's BART, in evaluation mode."""
        if not self.paper:
            return ReportAutoencoder.from_pretrained(_ASSETS / "bart", "mean").to(self.device).eval()
        sizes = {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}
        sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
        with self.device:
            bart = BartForConditionalGeneration(BartConfig(d_model=768, **sizes))
        return ReportAutoencoder(bart, AutoTokenizer.from_pretrained(_ASSETS / "bart"), "mean").to(self.device).eval()


def median_seconds(variants: dict[str, Callable], warm_up: int) -> dict[str, float]:
    """The median duration of each variant, a function without arguments.

    They alternate, so that a slow minute of the machine affects all of them; what counts is the ratio of two variants
    of one run. warm_up: rounds before that do not count.
    """
    for _ in range(warm_up):
        for variant in variants.values():
            variant()
    durations = {name: [] for name in variants}
    end = time.monotonic() + _ENOUGH
    for turn in range(_TURNS):
        if turn and time.monotonic() > end:
            break
        for name, variant in variants.items():
            start = timer()
            variant()
            durations[name].append(timer() - start)
    return {name: statistics.median(values) for name, values in durations.items()}


@contextmanager
def plain_float32() -> Iterator[None]:
    """Float32 as PyTorch has it by default, without TF32 in matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def row_of(what: str, unit: str, count: int, seconds: dict, note: str, ours: str = "ours") -> list:
    """A row of the table, in order of _COLUMNS: how many `count` makes a second, and how many times quicker ours is."""
    row = [what, unit, count / seconds["naive"], count / seconds[ours], seconds["naive"] / seconds[ours], note]
    say(" | ".join(map(str, row)))
    return row


def precisions(accelerator: Accelerator) -> str:
    """Those of naive and ours, in words."""
    return f"float32 and {accelerator.mixed_precision.replace('no', 'float32')}"


class Trainer:
    """A trainer of the vision module: naive() and ours() each do one optimiser step.

    raw and cached: a step's batch before and after the frozen encoders, on the CPU; batch_size: 0 for the script's.
    """

    def __init__(self, networks: Networks, backbone: str, accelerator: Accelerator, batch_size: int = 0):
        _, script = _BACKBONES[backbone]
        constants = networks.constants_of(script.__name__)
        self.networks, self.accelerator = networks, accelerator
        self.batch_size = batch_size or constants["BATCH_SIZE"]
        self.model = networks.vision(script.__name__).train()
        self.loss = partial(script.compute_loss, schedule=self.model.schedule)
        self.texts = networks.text_encoder(pooled=backbone == "uvit")
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        names = ("lr", "LEARNING_RATE"), ("betas", "BETAS"), ("weight_decay", "WEIGHT_DECAY")
        settings = {setting: constants[name] for setting, name in names}
        self.naive_optimizer = torch.optim.AdamW(self.trained, **settings)
        self.our_optimizer = torch.optim.AdamW(self.trained, fused=True, **settings)
        self.average = Average(self.trained, decay=constants["EMA_DECAY"])
        self.clip_norm = constants["CLIP_NORM"] or math.inf
        self.raw = self._draw(self.batch_size)
        self.cached = send_to_device(self.encode(self._on_device(self.raw)), "cpu")
        if networks.device.type == "cuda":
            self.cached = {name: value.pin_memory() for name, value in self.cached.items()}

    def _draw(self, size):
        images, references = self.networks.image_size, self.networks.references.image_size
        shapes = {"pixels": (3, images, images), "reference_pixels": (3, references, references)}
        shapes["noise"] = self.networks.shape
        timesteps = torch.randint(self.model.schedule.config.num_train_timesteps, (size,))
        prompts = [f"prompt {number}" for number in range(size)]  # each is padded to the encoder's length
        return {**random_batch(shapes, size), "timesteps": timesteps, "prompts": prompts}

    def encode(self, raw: dict) -> dict:
        """A raw batch on the device => what compute_loss takes, and the cache holds."""
        vae, references = self.networks.vae, self.networks.references
        return {
            "latents": mean_latents(encode_moments(vae, raw["pixels"]), vae.config.scaling_factor),
            "noise": raw["noise"], "timesteps": raw["timesteps"], "text": self.texts.encode(raw["prompts"]),
            "reference": references.encode(raw["reference_pixels"]),
        }  # fmt: skip

    def _on_device(self, batch):
        return send_to_device(batch, self.networks.device, non_blocking=True)

    @plain_float32()
    def naive(self) -> None:
        self.loss(self.model, self.encode(self._on_device(self.raw))).backward()
        self.naive_optimizer.step()
        self.naive_optimizer.zero_grad()

    def ours(self, steps: int = 1) -> None:
        for _ in range(steps):
            with self.accelerator.autocast():
                loss = self.loss(self.model, self._on_device(self.cached))
            self.accelerator.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
            self.our_optimizer.step()
            self.our_optimizer.zero_grad()
            self.average.step(self.trained)


def measure_training(networks: Networks, accelerator: Accelerator, backbones: tuple, batch_size: int) -> Iterator[list]:
    """Yields a row for each backbone; batch_size: as `Trainer` takes it."""
    steps = _STEPS_A_TURN if networks.device.type == "cuda" else 1
    for backbone in backbones:
        trainer = Trainer(networks, backbone, accelerator, batch_size)
        seconds = median_seconds({"naive": trainer.naive, "ours": partial(trainer.ours, steps)}, warm_up=2)
        seconds["ours"] /= steps
        note = f"batches of {trainer.batch_size}; {precisions(accelerator)}"
        yield row_of(_BACKBONES[backbone][0], "examples/s", trainer.batch_size, seconds, note)


def draw_images(
    model: nn.Module, vae: nn.Module, prompts: diffusion.Prompts, shape: tuple, recipe: tuple, context: Callable
) -> float:
    """Draws an image for each prompt; returns how many times the network is evaluated for one.

    shape: (C, h, w) of the latents; recipe: scheduler, steps, guidance; context: returns the network's context manager.
    """
    name, steps, guidance = recipe
    scheduler = diffusion.sampling_scheduler(name, model.schedule)
    guidances = diffusion.Guidance(guidance, guidance)
    seeds, evaluated = range(len(prompts.text)), []
    counter = model.register_forward_pre_hook(lambda _, inputs: evaluated.append(len(inputs[0])))
    with context():
        latents = diffusion.sample_latents(model, scheduler, prompts, guidances, seeds, shape, steps)
    counter.remove()
    decode_latents(vae, latents)
    return sum(evaluated) / len(seeds)


def measure_images(networks: Networks, accelerator: Accelerator, backbones: tuple[str, ...]) -> Iterator[list]:
    """Yields a row for each backbone and recipe of ours."""
    vae = copy.deepcopy(networks.vae)
    decode_in(vae, accelerator.mixed_precision)
    for title, script in (_BACKBONES[backbone] for backbone in backbones):
        model = networks.vision(script.__name__).eval()
        ours = copy.deepcopy(model)
        replay(ours, accelerator)
        null = networks.text_encoder(pooled=script is train_diffusion_clipUViT).encode([""])[0]
        text = null + torch.randn(_IMAGES, *null.shape, device=null.device)
        reference = torch.randn(_IMAGES, networks.references.width, device=null.device)
        prompts, shape = diffusion.Prompts(text, reference, null), networks.shape
        draw_naively = partial(draw_images, model, networks.vae, prompts, shape, _NAIVE_RECIPE, nullcontext)
        samplers = {"naive": plain_float32()(draw_naively)}
        for name, recipe in _OUR_RECIPES.items():
            samplers[name] = partial(draw_images, ours, vae, prompts, shape, recipe, accelerator.autocast)
        calls = {name: draw() for name, draw in samplers.items()}  # and a warm-up
        seconds = median_seconds(samplers, warm_up=0)
        for name in _OUR_RECIPES:
            counts = f"{calls['naive']:.0f} and {calls[name]:.0f} network calls an image"
            note = f"batches of {_IMAGES}; {counts}; {precisions(accelerator)}"
            yield row_of(f"{title}, {name}", "images/s", _IMAGES, seconds, note, name)


@torch.no_grad()
@plain_float32()
def write_naively(autoencoder: ReportAutoencoder, latents: torch.Tensor, tokens: int) -> torch.Tensor:
    """Latents (B, D) => the numbers of exactly so many tokens, the likeliest each time, (B, tokens)."""
    bart, states = autoencoder.bart, BaseModelOutput(last_hidden_state=latents[:, None])  # (B, 1, D)
    written = torch.full((len(latents), 1), bart.config.decoder_start_token_id, device=latents.device)
    for _ in range(tokens):
        logits = bart(encoder_outputs=states, decoder_input_ids=written, use_cache=False).logits  # (B, L, V)
        written = torch.cat([written, logits[:, -1:].argmax(dim=-1)], dim=1)
    return written[:, 1:]


def measure_reports(networks: Networks) -> Iterator[list]:
    """Yields a row for each size of a batch."""
    autoencoder = networks.autoencoder()
    naive_tokens = min(_NAIVE_TOKENS, autoencoder.max_tokens - 1)
    autoencoder.bart.generation_config.min_new_tokens = _REPORT_TOKENS
    for size in _REPORTS:
        latents = torch.randn(size, autoencoder.width, device=networks.device)
        naive = partial(write_naively, autoencoder, latents, naive_tokens)
        ours = partial(autoencoder.generate, latents, max_tokens=_REPORT_TOKENS)
        write_naively(autoencoder, latents, 8)  # a short warm-up for the long loop
        ours()
        seconds = median_seconds({"naive": naive, "ours": ours}, warm_up=0)
        note = f"naive writes {naive_tokens} tokens, ours is made to end after {_REPORT_TOKENS}"
        yield row_of(f"batches of {size}", "reports/s", size, seconds, note)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "auto")
    networks = Networks(accelerator.device, paper=SIZES == "paper")
    measures = {
        "training": partial(measure_training, networks, accelerator, BACKBONES, BATCH_SIZE),
        "images": partial(measure_images, networks, accelerator, BACKBONES),
        "reports": partial(measure_reports, networks),
    }
    machine = re.sub(r"[^a-z0-9]+", "-", processor(DEVICE).lower()).strip("-")
    for section in SECTIONS:
        table = pd.DataFrame(measures[section](), columns=_COLUMNS)
        title = f"Speed: {section}, networks of the {SIZES}'s sizes"
        write_record(f"bench-{section}-{machine}-{SIZES}", title, table, constants, device=DEVICE)


if __name__ == "__main__":
    run(main)
