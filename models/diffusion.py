"""Latent diffusion with a fused prompt: noise schedule, the denoiser, guided sampling. One code for both backbones."""

import inspect
import json
from functools import lru_cache
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from utils.checkpoints import check_config, load_strictly, load_weights, why_unloaded
from utils.errors import InputError, reason, say
from utils.prompts import PooledFusion, TokenFusion
from uvit.model import UViT

TRIAL_STEPS = 3  # in which every scheduler has to arrive
TRIAL_ERROR = 0.2  # at most from a picture of -2 to 2: the noise of a last step is 0.12 at most, of a wrong noise 0.3
_GOOD_SCHEDULERS = (
    "e.g. 'DPMSolverMultistep', 'PNDM', 'DDIM', 'UniPCMultistep', 'EulerDiscrete', 'EulerAncestralDiscrete'"
)
DENOISERS = {"UViT": UViT, "UNet2DConditionModel": UNet2DConditionModel}
PREDICTIONS = ("epsilon", "v_prediction")  # what a denoiser may predict
ALL_NOISE = 1000.0  # a noise level that stands for all above it, too: SD's schedule ends at 14.6
EVERYWHERE = (0.0, ALL_NOISE)  # noise levels of guidance, as in the paper
FUSIONS = {"PooledFusion": PooledFusion, "TokenFusion": TokenFusion}


def noise_schedule(base_model, prediction_type):
    """The noise schedule of `<base_model>/scheduler`, for training.

    SD v1.4's: betas scaled-linear from 0.00085 to 0.012, 1000 steps. prediction_type: "epsilon" (the paper's: the
    network predicts the noise) or "v_prediction" (Salimans & Ho 2022: the velocity).
    """
    if prediction_type not in PREDICTIONS:
        raise InputError(f"PREDICTION {prediction_type!r} is neither 'epsilon' nor 'v_prediction'")
    return _load_schedule(base_model, prediction_type=prediction_type, clip_sample=False)


def training_target(schedule, latents, noise, timesteps):
    """What the network has to predict: the noise, or the velocity sqrt(a) noise - sqrt(1 - a) latents."""
    if schedule.config.prediction_type == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    return noise


class PromptedDenoiser(nn.Module):
    """A denoiser and the fusion that makes its prompt tokens: everything that the vision module trains.

    As a folder: the denoiser as diffusers saves it, so that plain diffusers opens the folder; the fusion in `fusion/`,
    the noise schedule in `scheduler/`.
    """

    def __init__(self, denoiser, fusion, schedule):
        super().__init__()
        self.denoiser = denoiser
        self.fusion = fusion
        self.schedule = schedule

    def forward(self, latents, timesteps, text, reference):
        """latents (B, C, h, w), timesteps (B,), text (B, D) or (B, 77, D), reference (B, R) or None => like latents."""
        output = self.denoiser(latents, timesteps, self.fusion(text, reference))
        return getattr(output, "sample", output)

    def check_fits(self, text_width, shape):
        """InputError unless texts of this width and latents of this shape, (C, h, w), are what it was trained with."""
        if text_width != self.fusion.config.text_dim:
            raise InputError(
                f"the checkpoint was trained with texts of width {self.fusion.config.text_dim}, and this text encoder "
                f"makes {text_width}: set BASE_MODEL and TEXT_ENCODER to those it was trained with"
            )
        config = self.denoiser.config
        if isinstance(self.denoiser, UViT):
            wanted = (config.in_chans, config.img_size, config.img_size)
        else:
            wanted = (config.in_channels, *shape[1:])
        if tuple(shape) != wanted:
            raise InputError(
                f"the checkpoint was trained on latents of the shape {wanted}, and the VAE of BASE_MODEL makes "
                f"{tuple(shape)} of its images: set it to the one it was trained with"
            )

    def save_pretrained(self, folder):
        self.denoiser.save_pretrained(folder)
        self.fusion.save_pretrained(Path(folder) / "fusion")
        self.schedule.save_pretrained(Path(folder) / "scheduler")

    def start_from(self, folder):
        """Takes the weights of another checkpoint folder, of the denoiser and, where the folder has it, of the fusion."""
        for module, place in ((self.denoiser, Path(folder)), (self.fusion, Path(folder) / "fusion")):
            if module is self.fusion and not place.exists():
                continue
            other = load_strictly(type(module), place)
            for name in ("num_heads", "attention_head_dim"):  # which no weight's shape tells
                own, its = module.config.get(name), other.config.get(name)
                if own != its:
                    raise InputError(
                        f"INITIAL_WEIGHTS {place} has {name} {its}, and this model {own}: set it to the same"
                    )
            loaded = other.state_dict()
            load_weights(module, loaded, f"INITIAL_WEIGHTS {place}", "set the constants to its sizes")
            say(f"{place}: {len(loaded)} tensors, {sum(tensor.numel() for tensor in loaded.values()):,} parameters")

    @classmethod
    def from_pretrained(cls, folder, denoiser=""):
        """Loads a folder that `save_pretrained` wrote; denoiser: the class name it has to be of (empty: either).

        InputError when it is no such folder, of another denoiser, or when its weights do not fit its configuration.
        """
        folder = Path(folder)
        if not folder.exists():
            raise InputError(f"there is no checkpoint {folder}: set CHECKPOINT to a folder such as runs/clipUViT/best")
        found = _class_name(folder, DENOISERS)
        if denoiser and found != denoiser:
            raise InputError(
                f"the checkpoint {folder} is a {found}, not a {denoiser}: use the scripts of that backbone"
            )
        return cls(
            load_strictly(DENOISERS[found], folder),
            load_strictly(FUSIONS[_class_name(folder / "fusion", FUSIONS)], folder / "fusion"),
            _load_schedule(folder),
        )


def load_unet(base_model, text_width, text_encoder=""):
    """The U-Net of a Stable-Diffusion-like folder or hub id.

    InputError unless it attends to texts of text_width; those of another text_encoder (TEXT_ENCODER) the fusion projects.
    """
    unet = load_strictly(UNet2DConditionModel, base_model, subfolder="unet")
    attended = unet.config.cross_attention_dim
    if text_encoder and isinstance(attended, int):
        if attended != text_width:
            say(
                f"texts of width {text_width} are projected to {attended}, which the U-Net attends to, by what is learned"
            )
    elif attended != text_width:
        raise InputError(
            f"the U-Net of BASE_MODEL {base_model!r} attends to tokens of width {unet.config.cross_attention_dim}, but its "
            f"text encoder makes {text_width}: they are not of one model"
        )
    return unet


def _load_schedule(folder, **options):
    try:
        check_config(folder, "scheduler", "scheduler_config.json")
        schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", **options)
    except Exception as error:  # impossible values fail in whatever uses them
        raise InputError(f"no scheduler in {str(folder)!r}: {why_unloaded(folder, error)}") from error
    alphas = schedule.alphas_cumprod  # (num_train_timesteps,) what is left of the image's variance
    if len(alphas) < 2 or not (alphas.min() >= 0 and alphas.max() <= 1 and (alphas.diff() < 0).all()):
        raise InputError(f"the scheduler in {str(folder)!r} adds no noise from step to step: its betas are impossible")
    if schedule.config.prediction_type not in PREDICTIONS:
        raise InputError(
            f"the scheduler in {str(folder)!r} has the prediction_type {schedule.config.prediction_type!r}, which is none "
            f"of {', '.join(PREDICTIONS)}"
        )
    return schedule


def _class_name(folder, known):
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):  # absent, no JSON, or JSON of another form
        name = None
    if not isinstance(name, str) or name not in known:
        raise InputError(
            f"{folder} is no checkpoint of this project (no config.json of a {' or '.join(known)} in it): "
            "set CHECKPOINT to a folder such as runs/clipUViT/best"
        )
    return name


def sampling_scheduler(name, schedule, steps=0):
    """A diffusers scheduler by name ("DPMSolverMultistep" is DPM-Solver++ 2M; "PNDM" is the paper's), for a schedule.

    Every scheduler of diffusers that samples with this schedule will do. The others are refused: those for flows, for
    discrete tokens, for inpainting or inversion, with noise of their own, or whose packages are not installed; and so
    is a number of steps that a scheduler cannot do. steps: how many it will be asked for; 0 where that is not known.
    """
    scheduler_class = getattr(diffusers, f"{name.removesuffix('Scheduler')}Scheduler", None)
    if scheduler_class is None:
        raise InputError(f"SCHEDULER {name!r} is none of diffusers' schedulers; {_GOOD_SCHEDULERS}")
    config = dict(schedule.config)
    if config["timestep_spacing"] == "leading":  # a training schedule's default; each sampler has its own
        del config["timestep_spacing"]
    config["skip_prk_steps"] = True  # PNDM as Stable Diffusion runs it: without the Runge-Kutta steps at the start
    for count, way_out in ((TRIAL_STEPS, _GOOD_SCHEDULERS), (steps or TRIAL_STEPS, "take other STEPS, e.g. 25")):
        why = "it does not arrive at the images"
        try:
            if _distance_missed(scheduler_class, json.dumps(config), count) <= TRIAL_ERROR:
                continue
        except InputError:  # it ended in NaN
            pass
        except Exception as error:  # a scheduler of another kind fails in whatever it does
            why = reason(error)
        raise InputError(
            f"SCHEDULER {name!r} cannot sample what this model predicts in {count} steps: {why}; {way_out}"
        )
    return scheduler_class.from_config(config)


@lru_cache
def _distance_missed(scheduler_class, config, steps):
    """How far from a picture a scheduler ends in so many steps, with predictions that are exactly right.

    config: of the scheduler and of the schedule that the predictions are made for, as JSON.
    """
    config = json.loads(config)
    model = _OnePicture(DDPMScheduler.from_config(config))
    scheduler, nothing = scheduler_class.from_config(config), torch.zeros(1, 1)
    found = sample_latents(model, scheduler, nothing, None, nothing[0], [0], model.picture.shape[1:], steps, 1, 1)
    return (found - model.picture).abs().max().item()


class _OnePicture(nn.Module):
    """What a perfect network predicts when the one picture x is all that there is.

    The noise in a noisy latent z at time t is then (z - sqrt(a) x) / sqrt(1 - a), and every sampler arrives at x, but
    for the little noise of its last step.
    """

    def __init__(self, schedule):
        super().__init__()
        self.picture = nn.Parameter(torch.linspace(-2, 2, 64).view(1, 1, 8, 8), requires_grad=False)
        self.velocity = schedule.config.prediction_type == "v_prediction"
        self.schedule = schedule

    def forward(self, latents, timesteps, text, reference):
        sigma = noise_level(self.schedule, timesteps[0])
        left, added = (1 + sigma**2) ** -0.5, (1 + sigma**-2) ** -0.5  # sqrt(a), sqrt(1 - a)
        noise = (latents - left * self.picture) / added
        return left * noise - added * self.picture if self.velocity else noise


def noise_level(schedule, timestep):
    """Sigma at a step: the noise's standard deviation in units of the image's, sqrt((1 - a) / a); between two steps as
    samplers have it."""
    levels = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt().numpy()  # (num_train_timesteps,)
    return float(np.interp(float(timestep), np.arange(len(levels)), levels))


class Conditions:
    """What the network is asked for at one step, and with which weights the answers are added up."""

    def __init__(self, text, reference, null_text, no_reference, text_guidance, reference_guidance):
        conditions = [
            (1 - reference_guidance, null_text, no_reference),
            (reference_guidance - text_guidance, null_text, reference),
            (text_guidance, text, reference),
        ]
        self.weights, texts, references = zip(*(condition for condition in conditions if condition[0] != 0))
        self.texts = torch.cat(texts)  # (K B, ...), K of 1 to 3
        self.references = None if reference is None else torch.cat(references)

    def predict(self, model, inputs, timestep):
        """inputs (B, C, h, w), a timestep or (B,) of them => the guided prediction, (B, C, h, w)."""
        timesteps = timestep.expand(len(inputs)).repeat(len(self.weights))
        inputs = torch.cat([inputs] * len(self.weights))
        answers = model(inputs, timesteps, self.texts, self.references).float()
        return sum(weight * answer for weight, answer in zip(self.weights, answers.chunk(len(self.weights))))


@torch.no_grad()
def sample_latents(
    model,
    scheduler,
    text,
    reference,
    null_text,
    seeds,
    shape,
    steps,
    text_guidance,
    reference_guidance,
    null_reference=None,
    guided=EVERYWHERE,
    start=None,
):
    """Draws latents by guided diffusion; each image's noise comes from its own seed alone.

    With e(t, r) the prediction for a text and a reference, and 0 the dropped one, the guided prediction is

        e(0, 0) + reference_guidance (e(0, r) - e(0, 0)) + text_guidance (e(t, r) - e(0, r))

    (Brooks et al. 2023, equation 3). Equal guidances need two evaluations and are ordinary classifier-free guidance;
    both 1 need one. Outside of `guided`, an interval of noise levels, it is e(t, r) (Kynkäänniemi et al. 2024).

    Args:
        model: PromptedDenoiser, on its device; scheduler: from `sampling_scheduler`.
        text: (B, D) or (B, 77, D); null_text: the empty prompt's encoding, (D,) or (77, D).
        reference: (B, R), zeros for none; or None, and no reference token is made at all.
        seeds: B integers; shape: (C, h, w) of the latents; steps: denoising steps.
        null_reference: (R,), what stands for a dropped reference; None for zeros.
        guided: (lowest, highest) noise level, sigma, at which there is guidance, 0 to ALL_NOISE.
        start: (latents (B, C, h, w), strength), to go on from these with noise of that share of the schedule's steps, 0
            to 1; None: from noise alone.
    Returns latents (B, C, h, w), unit variance, on the model's device. InputError for steps or guidances that draw
    nothing, and when the network predicts what is no number.
    """
    _check_sampling(steps, text_guidance, reference_guidance)
    device = next(model.parameters()).device
    text, null_text = text.to(device), null_text.to(device).expand_as(text)
    no_reference = None
    if reference is None:
        reference_guidance = text_guidance
    else:
        reference = reference.to(device)
        no_reference = torch.zeros_like(reference) + (0 if null_reference is None else null_reference.to(device))
    prompts = text, reference, null_text, no_reference
    plainly, with_guidance = Conditions(*prompts, 1, 1), Conditions(*prompts, text_guidance, reference_guidance)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators]).to(device)
    scheduler.set_timesteps(steps, device=device)
    latents, timesteps = noise * scheduler.init_noise_sigma, scheduler.timesteps
    if start is not None:
        latents, timesteps = _begin_at(scheduler, noise, *start)
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in timesteps:
        inputs = scheduler.scale_model_input(latents, timestep)
        inside = guided == EVERYWHERE or guided[0] <= min(noise_level(model.schedule, timestep), ALL_NOISE) <= guided[1]
        prediction = (with_guidance if inside else plainly).predict(model, inputs, timestep)
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
        if not torch.isfinite(latents).all():
            raise InputError(
                f"sampling made NaN or infinity at timestep {int(timestep)}: the weights are damaged, the guidances "
                f"{text_guidance} and {reference_guidance} too high for {steps} steps, or PRECISION has to be 'no'"
            )
    return latents


def _begin_at(scheduler, noise, latents, strength):
    """The noisy latents at that share of the schedule's steps, and the scheduler's timesteps from there on."""
    first = int((scheduler.timesteps > strength * scheduler.config.num_train_timesteps).sum())
    first = min(first, len(scheduler.timesteps) - 1)
    if hasattr(scheduler, "set_begin_index"):  # the others keep no count
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    return scheduler.add_noise(latents.to(noise.device), noise, timesteps[:1].expand(len(noise))), timesteps


def _check_sampling(steps, *guidances):
    if steps < 1 or not torch.isfinite(torch.tensor(guidances, dtype=torch.float64)).all():
        raise InputError(
            f"{steps} steps with the guidances {guidances[0]} and {guidances[1]} draw no image: STEPS has to be 1 or more, "
            "and the guidances finite"
        )
