"""Latent diffusion with a fused prompt: noise schedule, denoiser, guided sampling; the same code for both backbones."""

import inspect
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from utils.checkpoints import check_config, load_strictly, load_weights, why_unloaded
from utils.errors import InputError, as_input_error, reason, say
from utils.prompts import PooledFusion, TokenFusion
from uvit.model import UViT

DENOISERS = {"UViT": UViT, "UNet2DConditionModel": UNet2DConditionModel}
FUSIONS = {"PooledFusion": PooledFusion, "TokenFusion": TokenFusion}
PREDICTIONS = ("epsilon", "v_prediction")  # what a denoiser may predict
ALL_NOISE = 1000.0  # the highest noise level; it stands for all above it. SD's schedule ends at 14.6
UNUSABLE_SCHEDULERS = {  # of those that diffusers calls compatible
    "EDMEuler",  # expects a schedule of its own: it does not arrive at an image
    "DPMSolverSDE",  # its noise does not follow from the images' seeds, and it needs torchsde
}


def noise_schedule(base_model: str, prediction_type: str = "") -> DDPMScheduler:
    """The noise schedule of `<base_model>/scheduler`; SD v1.4's: betas scaled-linear, 0.00085 to 0.012, 1000 steps.

    prediction_type: "epsilon" (the paper's: the noise), "v_prediction" (Salimans & Ho 2022: the velocity), or "": the
    base model's. Prints one that is not the base model's.
    """
    schedule = _load_schedule(base_model, clip_sample=False)
    if not prediction_type:
        return schedule
    _compare_predictions(prediction_type, schedule, f"BASE_MODEL {base_model}")
    return _load_schedule(base_model, prediction_type=prediction_type, clip_sample=False)


def _compare_predictions(prediction, schedule, what):
    """Prints that weights were trained to predict something else."""
    other = schedule.config.prediction_type
    if other != prediction:
        say(f"PREDICTION is {prediction}, but {what} was trained with {other}: its weights start far from the goal")


def _load_schedule(folder, **options):
    # impossible values fail in whatever uses them
    with as_input_error(lambda error: f"no scheduler in {str(folder)!r}: {why_unloaded(folder, error)}"):
        check_config(folder, "scheduler", "scheduler_config.json")
        schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", **options)
    if schedule.config.prediction_type not in PREDICTIONS:
        prediction = schedule.config.prediction_type
        raise InputError(f"the scheduler in {str(folder)!r} predicts {prediction!r}, not epsilon or v_prediction")
    return schedule


def training_target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network has to predict: the noise, or the velocity, alpha noise - sigma latents."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    return noise


def noise_level(schedule: DDPMScheduler, timestep: Tensor | float) -> float:
    """sigma / alpha, the noise's standard deviation in units of the image's, linear between two timesteps."""
    levels = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt().numpy()  # (num_train_timesteps,)
    return float(np.interp(float(timestep), np.arange(len(levels)), levels))


class PromptedDenoiser(nn.Module):
    """A denoiser and the fusion that makes its prompt tokens: everything that the vision module trains.

    Its folder is the denoiser's, which plain diffusers opens, with `fusion/` and the noise schedule in `scheduler/`.
    """

    def __init__(
        self, denoiser: UViT | UNet2DConditionModel, fusion: PooledFusion | TokenFusion, schedule: DDPMScheduler
    ):
        super().__init__()
        self.denoiser, self.fusion, self.schedule = denoiser, fusion, schedule

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, reference: Tensor | None) -> Tensor:
        """latents (B, C, h, w), timesteps (B,), text (B, D) or (B, 77, D), reference (B, R) or None => like latents."""
        output = self.denoiser(latents, timesteps, self.fusion(text, reference))
        return getattr(output, "sample", output)

    def check_fits(self, text_width: int, shape: tuple[int, int, int]) -> None:
        """InputError unless texts of this width and latents of this shape, (C, h, w), are what it was trained with."""
        config = self.denoiser.config
        if isinstance(self.denoiser, UViT):
            wanted = (config.in_chans, config.img_size, config.img_size)
        else:
            wanted = (config.in_channels, *shape[1:])
        widths, shapes = (self.fusion.config.text_dim, text_width), (wanted, tuple(shape))
        for what, (own, other) in {"texts of width": widths, "latents of the shape": shapes}.items():
            if own != other:
                made = f"{what} {own}, and BASE_MODEL or TEXT_ENCODER makes {other}"
                raise InputError(f"the checkpoint was trained with {made}: set them to those it was trained with")

    def save_pretrained(self, folder: str | Path) -> None:
        self.denoiser.save_pretrained(folder)
        self.fusion.save_pretrained(Path(folder) / "fusion")
        self.schedule.save_pretrained(Path(folder) / "scheduler")

    def start_from(self, folder: str | Path) -> None:
        """Loads a folder's denoiser and, where there is one, its fusion; InputError for another architecture."""
        folder = Path(folder)
        _load_part(self.denoiser, folder)
        if (folder / "scheduler").exists():
            own = self.schedule.config.prediction_type
            _compare_predictions(own, _load_schedule(folder), f"INITIAL_WEIGHTS {folder}")
        if (folder / "fusion").exists():
            _load_part(self.fusion, folder / "fusion")

    @classmethod
    def from_pretrained(cls, folder: str | Path, denoiser: str = "") -> "PromptedDenoiser":
        """Loads a folder of `save_pretrained`, or raises an InputError; denoiser: its class name (empty: either)."""
        folder = Path(folder)
        name = class_name(folder, DENOISERS)
        if denoiser and name != denoiser:
            raise InputError(f"the checkpoint {folder} is a {name}, not a {denoiser}: use the scripts of that backbone")
        fusion = FUSIONS[class_name(folder / "fusion", FUSIONS)]
        parts = load_strictly(DENOISERS[name], folder), load_strictly(fusion, folder / "fusion")
        return cls(*parts, _load_schedule(folder))


def _load_part(module, folder):
    source = load_strictly(type(module), folder)
    for name in ("num_heads", "attention_head_dim"):  # the shapes of the weights do not depend on these
        own, other = module.config.get(name), source.config.get(name)
        if own != other:
            raise InputError(f"INITIAL_WEIGHTS {folder} has {name} {other}, and this model {own}: use the same")
    weights = source.state_dict()
    load_weights(module, weights, f"INITIAL_WEIGHTS {folder}", "set the constants to its sizes")
    say(f"{folder}: {len(weights)} tensors, {sum(tensor.numel() for tensor in weights.values()):,} parameters")


def class_name(folder: Path, known: Collection[str]) -> str:
    """The class in a folder's config.json, one of `known`; InputError for a folder that is no checkpoint of one."""
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):  # absent, no JSON, or JSON of another form
        name = None
    if name not in [*known]:  # a list: the file may name anything
        lacks = f"no config.json of a {' or '.join(known)} in it"
        raise InputError(f"{folder} is no checkpoint ({lacks}): set CHECKPOINT to one such as runs/clipUViT/best")
    return name


def load_unet(base_model: str, text_width: int, text_encoder: str = "") -> UNet2DConditionModel:
    """The U-Net of a Stable-Diffusion-like folder or hub id; InputError unless it attends to texts of text_width.

    With another text_encoder (TEXT_ENCODER) the widths may differ: the fusion then learns a projection.
    """
    unet = load_strictly(UNet2DConditionModel, base_model, subfolder="unet")
    attended = unet.config.cross_attention_dim
    if attended == text_width:
        return unet
    if not text_encoder or not isinstance(attended, int):
        widths = f"attends to tokens of width {attended}, but its text encoder makes {text_width}"
        raise InputError(f"the U-Net of BASE_MODEL {base_model!r} {widths}: they are not of one model")
    say(f"texts of width {text_width} are projected to {attended}, the U-Net's width, by a layer that is learned")
    return unet


@dataclass(frozen=True)
class Prompts:
    """What B images have to show."""

    text: Tensor  # (B, D) or (B, 77, D)
    reference: Tensor | None  # (B, R), zeros for none; or None: no reference token is made at all
    null_text: Tensor  # the empty prompt's encoding, (D,) or (77, D)
    null_reference: Tensor | None = None  # (R,), stands for a dropped reference (the authors' checkpoints); None: zeros

    def to(self, device: torch.device) -> "Prompts":
        parts = (self.text, self.reference, self.null_text, self.null_reference)
        return Prompts(*(None if part is None else part.to(device) for part in parts))


@dataclass(frozen=True)
class Guidance:
    """Scales of text and reference (1: none), and the noise levels at which they apply (Kynkäänniemi et al. 2024)."""

    text: float = 1.0
    reference: float = 1.0
    low: float = 0.0
    high: float = ALL_NOISE


def sampling_scheduler(name: str, schedule: DDPMScheduler) -> diffusers.SchedulerMixin:
    """A diffusers scheduler by name, with or without "Scheduler" at its end; InputError if it cannot use the schedule.

    "DPMSolverMultistep" is DPM-Solver++ 2M; "PNDM" is the paper's.
    """
    compatible = {kind.__name__.removesuffix("Scheduler"): kind for kind in schedule.compatibles}
    usable = {kind: compatible[kind] for kind in compatible.keys() - UNUSABLE_SCHEDULERS}
    kind = usable.get(name.removesuffix("Scheduler"))
    if kind is None:
        raise InputError(f"SCHEDULER {name!r} cannot sample from this model; choose from {', '.join(sorted(usable))}")
    config = dict(schedule.config)
    if config["timestep_spacing"] == "leading":  # a training schedule's default; each sampler has its own
        del config["timestep_spacing"]
    config["skip_prk_steps"] = True  # PNDM as Stable Diffusion runs it: without the Runge-Kutta steps at the start
    return kind.from_config(config)


def guided_prediction(
    model: PromptedDenoiser, noisy: Tensor, timesteps: Tensor, prompts: Prompts, text_scale: float,
    reference_scale: float,
) -> Tensor:  # fmt: skip
    """The network's prediction with guidance, (B, C, h, w) (Brooks et al. 2023, equation 3).

    With e(t, r) the prediction for a text and a reference, and 0 the dropped one, it is

        e(0, 0) + reference_scale (e(0, r) - e(0, 0)) + text_scale (e(t, r) - e(0, r))

    Equal scales need two evaluations and are ordinary classifier-free guidance; both 1 need one.
    noisy: (B, C, h, w); timesteps: one for all, or (B,). Without references only text_scale counts.
    """
    text, reference, null_text = prompts.text, prompts.reference, prompts.null_text.expand_as(prompts.text)
    if reference is None:
        no_reference, reference_scale = None, text_scale
    elif prompts.null_reference is None:
        no_reference = torch.zeros_like(reference)
    else:
        no_reference = prompts.null_reference.expand_as(reference)
    conditions = [
        (1 - reference_scale, null_text, no_reference),
        (reference_scale - text_scale, null_text, reference),
        (text_scale, text, reference),
    ]
    weights, texts, references = zip(*(condition for condition in conditions if condition[0] != 0))
    count = len(weights)  # evaluations an image, 1 to 3
    inputs, timesteps = torch.cat([noisy] * count), timesteps.expand(len(noisy)).repeat(count)
    references = None if reference is None else torch.cat(references)
    predictions = model(inputs, timesteps, torch.cat(texts), references).float()
    return sum(weight * prediction for weight, prediction in zip(weights, predictions.chunk(count)))


@dataclass(frozen=True)
class Edit:
    """Films that are drawn anew in part (blended diffusion, Avrahami et al. 2022; from noise as SDEdit, Meng 2022)."""

    latents: Tensor  # of the films, (B, C, h, w), unit variance
    mask: Tensor  # where they may change, (B, 1, h, w), 0 or 1
    strength: float  # the share of the steps that is done, 0 to 1: at 0 nothing changes, 1 begins with noise alone

    def noised(self, scheduler: diffusers.SchedulerMixin, noise: Tensor, following: Tensor) -> Tensor:
        """The films' latents with the noise of the first of the timesteps that follow; without any where none does."""
        if not len(following):
            return self.latents
        return scheduler.add_noise(self.latents, noise, following[:1].expand(len(noise)))


@torch.no_grad()
def sample_latents(
    model: PromptedDenoiser, scheduler: diffusers.SchedulerMixin, prompts: Prompts, guidance: Guidance,
    seeds: Iterable[int], shape: tuple[int, int, int], steps: int, progress: Callable[[Iterable], Iterable] = iter,
    edit: Edit | None = None,
) -> Tensor:  # fmt: skip
    """Draws latents (B, C, h, w), unit variance, on the model's device; an image's noise comes from its own seed alone.

    shape: (C, h, w); progress: passes the timesteps on; edit: films that are changed, None: all is drawn from noise.
    InputError for steps that the scheduler cannot do, and when the network predicts NaN or infinity.
    """
    device = next(model.parameters()).device
    prompts = prompts.to(device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators]).to(device)
    name = type(scheduler).__name__.removesuffix("Scheduler")
    # each scheduler has its own limits, and its own error
    with as_input_error(lambda error: f"SCHEDULER {name!r} cannot do STEPS {steps}: {reason(error)}; try 25"):
        if name == "PNDM" and steps == 1:
            raise ValueError("its first step leaves the noise as it is")
        scheduler.set_timesteps(steps, device=device)
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents, timesteps = noise * scheduler.init_noise_sigma, scheduler.timesteps
    if edit:
        first = len(timesteps) - round(edit.strength * len(timesteps))
        if hasattr(scheduler, "set_begin_index"):  # not of those that need no index
            scheduler.set_begin_index(first)
        timesteps = timesteps[first:]
        latents = edit.noised(scheduler, noise, timesteps)
    for number, timestep in enumerate(progress(timesteps), 1):
        level = min(noise_level(model.schedule, timestep), ALL_NOISE)
        scales = (guidance.text, guidance.reference) if guidance.low <= level <= guidance.high else (1, 1)
        inputs = scheduler.scale_model_input(latents, timestep)
        prediction = guided_prediction(model, inputs, timestep, prompts, *scales)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
        if not torch.isfinite(latents).all():
            way_out = f"lower the guidances {guidance.text} and {guidance.reference}, or set PRECISION to 'no'"
            raise InputError(f"sampling made NaN or infinity at timestep {int(timestep)} of STEPS {steps}: {way_out}")
        if edit:
            latents = torch.where(edit.mask > 0, latents, edit.noised(scheduler, noise, timesteps[number:]))
    return latents
