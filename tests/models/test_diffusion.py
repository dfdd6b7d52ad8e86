import inspect
import json
import shutil
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from models.diffusion import (
    UNUSABLE_SCHEDULERS,
    Guidance,
    PromptedDenoiser,
    Prompts,
    load_unet,
    noise_level,
    noise_schedule,
    sample_latents,
    sampling_scheduler,
    training_target,
)
from utils.errors import InputError
from utils.findings import to_prompt
from utils.prompts import NULL_PROMPT, PooledFusion, TextEncoder
from uvit.model import UViT

SHAPE = (4, 8, 8)
EDEMA = to_prompt([0, 0, 0, 1] + [0] * 10)


# --- schedule and target -----------------------------------------------------------------------------------------


def test_the_schedule_is_stable_diffusions(base_model):
    schedule = noise_schedule(base_model, "epsilon")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod, torch.cumprod(1 - betas, 0))
    with pytest.raises(InputError, match="'noise', not epsilon or v_prediction"):
        noise_schedule(base_model, "noise")
    with pytest.raises(InputError, match="no scheduler in '/absent'"):
        noise_schedule("/absent", "epsilon")


def test_a_prediction_that_is_not_the_base_models_is_named(base_model, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(f"{base_model}/scheduler", base / "scheduler")
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    assert noise_schedule(base).config.prediction_type == "v_prediction"  # as the base model says
    assert noise_schedule(base_model).config.prediction_type == "epsilon"
    assert capsys.readouterr().out == ""
    assert noise_schedule(base, "epsilon").config.prediction_type == "epsilon"
    printed = capsys.readouterr().out
    assert "PREDICTION" in printed and "epsilon" in printed and f"{base} was trained with v_prediction" in printed


def test_targets(base_model):
    latents, noise, timesteps = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE), torch.tensor([0, 500, 999])
    assert torch.equal(training_target(noise_schedule(base_model, "epsilon"), latents, noise, timesteps), noise)
    schedule = noise_schedule(base_model, "v_prediction")
    alpha = schedule.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(training_target(schedule, latents, noise, timesteps), velocity)


# --- sampling ----------------------------------------------------------------------------------------------------


class LinearStub(nn.Module):
    """Predicts 2 text + 3 reference + 5 text * reference, constant over the latents; counts evaluations."""

    def __init__(self):
        super().__init__()
        self.device_holder = nn.Parameter(torch.zeros(1))
        self.schedule = DDPMScheduler()
        self.evaluations = 0

    def forward(self, latents, timesteps, text, reference):
        self.evaluations += len(latents)
        reference = torch.zeros_like(text) if reference is None else reference
        value = 2 * text[:, 0] + 3 * reference[:, 0] + 5 * text[:, 0] * reference[:, 0]
        return value.view(-1, 1, 1, 1).expand_as(latents)


class OneStep:
    """A scheduler whose only step returns the guided prediction."""

    timesteps, init_noise_sigma = torch.tensor([999]), 1.0

    def set_timesteps(self, steps, device):
        pass

    def scale_model_input(self, latents, timestep):
        return latents

    def step(self, prediction, timestep, latents):
        return SimpleNamespace(prev_sample=prediction)


@pytest.mark.parametrize(
    ("text_guidance", "reference_guidance", "evaluations"),
    [(1, 1, 1), (3, 3, 2), (7.5, 7.5, 2), (3, 1, 2), (0, 1, 1), (0, 0, 1), (0, 2, 2), (3, 2, 3), (1, 2, 3)],
)
def test_guidance_is_the_formula_and_evaluates_no_more_than_it_needs(text_guidance, reference_guidance, evaluations):
    model, text, reference, null = LinearStub(), torch.tensor([[7.0], [1.0]]), torch.tensor([[11.0], [2.0]]), 0.5
    prompts, guidance = Prompts(text, reference, torch.tensor([null])), Guidance(text_guidance, reference_guidance)
    out = sample_latents(model, OneStep(), prompts, guidance, [0, 1], SHAPE, 1)

    def e(text, reference):
        return 2 * text + 3 * reference + 5 * text * reference

    expected = (
        e(null, 0)
        + reference_guidance * (e(null, reference) - e(null, 0))
        + text_guidance * (e(text, reference) - e(null, reference))
    )
    torch.testing.assert_close(out, expected.view(2, 1, 1, 1).expand(2, *SHAPE))
    assert model.evaluations == 2 * evaluations


@pytest.mark.parametrize(("guidance", "evaluations"), [(1, 1), (3, 2)])
def test_without_a_reference_guidance_is_the_ordinary_one(guidance, evaluations):
    model, text = LinearStub(), torch.tensor([[7.0], [1.0]])
    prompts = Prompts(text, None, torch.tensor([0.5]))
    out = sample_latents(model, OneStep(), prompts, Guidance(guidance, 9), [0, 1], SHAPE, 1)
    expected = 2 * 0.5 + guidance * (2 * text - 2 * 0.5)
    torch.testing.assert_close(out, expected.view(2, 1, 1, 1).expand(2, *SHAPE))
    assert model.evaluations == 2 * evaluations


def test_a_dropped_reference_of_an_authors_checkpoint_is_its_null_reference():
    model, text, reference = LinearStub(), torch.tensor([[7.0]]), torch.tensor([[11.0]])
    prompts = Prompts(text, reference, torch.tensor([0.5]), torch.tensor([2.0]))
    out = sample_latents(model, OneStep(), prompts, Guidance(0, 0), [0], SHAPE, 1)
    torch.testing.assert_close(out, torch.full((1, *SHAPE), 2 * 0.5 + 3 * 2.0 + 5 * 0.5 * 2.0))


def test_guidance_outside_of_its_noise_levels_is_none_and_costs_no_call(uvit_model):
    """Of four steps, those whose noise level lies in the interval are guided."""
    generator = torch.Generator().manual_seed(0)
    text, null, reference = (torch.randn(size, 16, generator=generator) for size in (2, 1, 2))
    calls = []
    uvit_model.register_forward_hook(lambda model, inputs, output: calls.append(len(output)))

    def sample(guidance, *levels):
        calls.clear()
        scheduler = sampling_scheduler("DDIM", uvit_model.schedule)
        prompts, guidance = Prompts(text, reference, null[0]), Guidance(guidance, guidance, *levels)
        return sample_latents(uvit_model, scheduler, prompts, guidance, [0, 1], SHAPE, 4)

    levels = [noise_level(uvit_model.schedule, step) for step in (751, 501, 251, 1)]  # DDIM's
    plain, full = sample(1.0), sample(3.0)
    middle = sample(3.0, levels[2], levels[1])
    assert calls == [2, 4, 4, 2]
    assert not torch.allclose(middle, plain) and not torch.allclose(middle, full)
    assert torch.equal(sample(3.0, levels[3], levels[0]), full) and calls == [4] * 4
    assert torch.equal(sample(3.0, levels[0] + 1, 1000.0), plain) and calls == [2] * 4
    assert torch.equal(sample(3.0, 0.0, 1000.0), full)


def test_noise_levels_are_the_schedules(base_model):
    schedule = noise_schedule(base_model, "epsilon")
    assert noise_level(schedule, 999) == pytest.approx(14.6146, abs=1e-3)  # of Stable Diffusion
    half = noise_level(schedule, torch.tensor(500.5))
    assert noise_level(schedule, 500) < half < noise_level(schedule, 501)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "PNDM", "DDIM", "EulerAncestralDiscrete"])
@pytest.mark.parametrize("backbone", ["unet_model", "uvit_model"])
def test_same_seed_same_picture_whatever_the_batch(name, backbone, request):
    model = request.getfixturevalue(backbone)
    tokens = (77,) if backbone == "unet_model" else ()
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(4, *tokens, 16, generator=generator)
    null, reference = torch.randn(*tokens, 16, generator=generator), torch.randn(4, 16, generator=generator)

    def sample(rows, scheduler):
        prompts = Prompts(text[rows], reference[rows], null)
        return sample_latents(model, scheduler, prompts, Guidance(3.0, 2.0), rows, SHAPE, 4)

    scheduler = sampling_scheduler(name, model.schedule)
    together = sample([0, 1, 2, 3], scheduler)
    alone = torch.cat([sample([row], scheduler) for row in range(4)])
    assert together.shape == (4, *SHAPE) and together.isfinite().all()
    scale = together.abs().max()
    assert (together - alone).abs().max() < 1e-5 * max(scale, 1)
    assert (together[0] - together[1]).abs().max() > 0.1
    again = sample([3, 1], sampling_scheduler(f"{name}Scheduler", model.schedule))
    assert (again - together[[3, 1]]).abs().max() < 1e-5 * max(scale, 1)


# A network that knows the one picture x there is predicts the noise in z = alpha x + sigma noise,
# (z - alpha x) / sigma, exactly. Every sampler then ends at x, but for the noise of its last step.

COMPATIBLE = {scheduler.__name__.removesuffix("Scheduler") for scheduler in DDPMScheduler().compatibles}
ACCEPTED = sorted(COMPATIBLE - UNUSABLE_SCHEDULERS)


class OnePicture(nn.Module):
    def __init__(self, schedule):
        super().__init__()
        self.holder = nn.Parameter(torch.zeros(1))
        self.schedule = schedule
        self.picture = torch.sin(torch.arange(256.0)).view(1, *SHAPE)

    def forward(self, latents, timesteps, text, reference):
        alphas = self.schedule.alphas_cumprod
        levels = np.interp(timesteps.float(), np.arange(len(alphas)), ((1 - alphas) / alphas).sqrt())
        alpha = torch.tensor(1 / (1 + levels**2), dtype=torch.float32).view(-1, 1, 1, 1)
        noise = (latents - alpha.sqrt() * self.picture) / (1 - alpha).sqrt()
        if self.schedule.config.prediction_type == "epsilon":
            return noise
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * self.picture


def error_of(scheduler, schedule, steps):
    """The largest error of two samples from a network that knows the picture."""
    model, prompts = OnePicture(schedule), Prompts(torch.zeros(2, 1), None, torch.zeros(1))
    return (sample_latents(model, scheduler, prompts, Guidance(), [0, 1], SHAPE, steps) - model.picture).abs().max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_every_accepted_scheduler_arrives_at_the_picture(name, prediction, base_model):
    schedule = noise_schedule(base_model, prediction)
    for steps in (3, 25):
        assert error_of(sampling_scheduler(name, schedule), schedule, steps) < 0.2


@pytest.mark.parametrize("name", sorted(UNUSABLE_SCHEDULERS))
def test_an_unusable_scheduler_does_not_arrive_by_the_seeds(name, base_model):
    schedule = noise_schedule(base_model, "epsilon")
    try:
        scheduler = getattr(diffusers, f"{name}Scheduler").from_config(schedule.config)
    except ImportError:
        pytest.skip("its package is not installed")
    takes_seeds = "generator" in inspect.signature(scheduler.step).parameters
    assert not takes_seeds or error_of(scheduler, schedule, 25) > 0.2


@pytest.mark.parametrize("name", ["PNMD", "FlowMatchEulerDiscrete", "DDIMInverseScheduler", "VQDiffusion", "EDMEuler"])
def test_other_schedulers_are_refused_in_a_sentence_that_names_good_ones(name, base_model):
    with pytest.raises(InputError, match=f"SCHEDULER '{name}'.* DDIM, .*DPMSolverMultistep, .*PNDM") as error:
        sampling_scheduler(name, noise_schedule(base_model, "epsilon"))
    assert "EDMEuler" not in str(error.value).split("choose from")[1]


@pytest.mark.parametrize(("name", "steps"), [("DDIM", 2000), ("DPMSolverMultistep", 2000), ("PNDM", 1)])
def test_steps_that_a_scheduler_cannot_do_are_refused(name, steps, base_model):
    """The first cannot be set to so many steps, the second makes NaN, the third would return its noise."""
    schedule = noise_schedule(base_model, "epsilon")
    with pytest.raises(InputError, match=f"STEPS {steps}") as error:
        error_of(sampling_scheduler(name, schedule), schedule, steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "PNDM", "DDIM", "EulerAncestralDiscrete"])
def test_a_saved_schedule_samples_as_the_one_in_memory(name, unet_model, tmp_path):
    unet_model.save_pretrained(tmp_path)
    loaded = PromptedDenoiser.from_pretrained(tmp_path).schedule
    in_memory, from_disk = (sampling_scheduler(name, schedule) for schedule in (unet_model.schedule, loaded))
    in_memory.set_timesteps(7)
    from_disk.set_timesteps(7)
    assert in_memory.timesteps.tolist() == from_disk.timesteps.tolist()


@pytest.mark.parametrize("name", ["PNDM", "DPMSolverMultistep", "DDIM"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_text_alone_is_stable_diffusions_own_pipeline(base_model, unet_model, tmp_path, name, guidance):
    """The same U-Net, prompt, seed, scheduler and guidance, 77 tokens: the same latents, but for rounding."""
    unet_model.save_pretrained(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(
        base_model,
        unet=UNet2DConditionModel.from_pretrained(tmp_path),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.scheduler = type(sampling_scheduler(name, unet_model.schedule)).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        EDEMA,
        height=32,
        width=32,
        num_inference_steps=10,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images

    encoder = TextEncoder(base_model, pooled=False)
    text, null = encoder.encode([EDEMA]), encoder.encode([NULL_PROMPT])[0]
    model = PromptedDenoiser.from_pretrained(tmp_path).eval()
    scheduler, prompts = sampling_scheduler(name, model.schedule), Prompts(text, None, null)
    found = sample_latents(model, scheduler, prompts, Guidance(guidance, guidance), [3], SHAPE, 10)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["unet_model", "uvit_model"])
def test_a_checkpoint_is_the_model(backbone, request, tmp_path):
    model = request.getfixturevalue(backbone)
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path)
    loaded = PromptedDenoiser.from_pretrained(tmp_path, denoiser=type(model.denoiser).__name__).eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert loaded.schedule.config.prediction_type == model.schedule.config.prediction_type
    assert torch.equal(loaded.schedule.alphas_cumprod, model.schedule.alphas_cumprod)
    assert type(loaded.fusion) is type(model.fusion)
    with pytest.raises(InputError, match=f"is a {type(model.denoiser).__name__}, not a Other"):
        PromptedDenoiser.from_pretrained(tmp_path, denoiser="Other")


def test_plain_diffusers_opens_a_checkpoint(unet_model, tmp_path):
    unet_model.save_pretrained(tmp_path)
    unet, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    inputs = torch.randn(1, *SHAPE), torch.tensor([5]), torch.randn(1, 78, 16)
    torch.testing.assert_close(unet.eval()(*inputs).sample, unet_model.denoiser(*inputs).sample)


def test_start_from_takes_weights_of_the_same_architecture_only(unet_model, uvit_model, tmp_path, capsys):
    schedule = DDPMScheduler()  # which predicts epsilon
    for model, name in ((unet_model, "unet"), (uvit_model, "uvit")):
        model.save_pretrained(tmp_path / name)
    other = PromptedDenoiser(UViT(img_size=8, embed_dim=16, depth=2, num_heads=2), PooledFusion(16, 16, 16), schedule)
    other.start_from(tmp_path / "uvit")
    assert f"INITIAL_WEIGHTS {tmp_path / 'uvit'} was trained with v_prediction" in capsys.readouterr().out
    assert all(torch.equal(other.state_dict()[name], value) for name, value in uvit_model.state_dict().items())
    deeper = PromptedDenoiser(UViT(img_size=8, embed_dim=16, depth=4, num_heads=2), PooledFusion(16, 16, 16), schedule)
    with pytest.raises(InputError, match="of another architecture"):
        deeper.start_from(tmp_path / "uvit")
    with pytest.raises(InputError):
        deeper.start_from(tmp_path / "unet")

    shutil.rmtree(tmp_path / "uvit" / "fusion")
    other.start_from(tmp_path / "uvit")  # a denoiser alone, pretrained without prompts


def test_no_checkpoint_and_half_a_checkpoint_are_refused(unet_model, tmp_path):
    with pytest.raises(InputError, match="is no checkpoint"):
        PromptedDenoiser.from_pretrained(tmp_path)
    unet_model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="fusion is no checkpoint"):
        PromptedDenoiser.from_pretrained(tmp_path / "fusion")
    shutil.rmtree(tmp_path / "scheduler")
    with pytest.raises(InputError, match="no scheduler in"):
        PromptedDenoiser.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "fusion")
    with pytest.raises(InputError, match="fusion is no checkpoint"):
        PromptedDenoiser.from_pretrained(tmp_path)


def test_a_unet_that_attends_to_another_width_is_refused(base_model, tmp_path):
    with pytest.raises(InputError, match="attends to tokens of width 16, but its text encoder makes 768"):
        load_unet(base_model, 768)
    shutil.copytree(base_model, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "unet")
    with pytest.raises(InputError, match="cannot load UNet2DConditionModel from"):
        load_unet(str(tmp_path / "base"), 16)


def test_a_checkpoint_says_what_it_is(uvit_model, tmp_path):
    uvit_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "UViT" and config["depth"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", "fusion", "scheduler"
    ]  # fmt: skip
