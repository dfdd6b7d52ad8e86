import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from utils.diffusion import (
    DiffusionExamples,
    DiffusionFeatures,
    PromptedDenoiser,
    load_strictly,
    load_unet,
    noise_schedule,
    prompts_of,
    sample_latents,
    sampling_scheduler,
    training_target,
)
from utils.errors import InputError
from utils.findings import FINDINGS, to_prompt
from utils.latents import load_vae
from utils.prompts import NULL_PROMPT, PooledFusion, ReferenceEncoder, TextEncoder, TokenFusion
from uvit.model import UViT

SHAPE = (4, 8, 8)
EDEMA = to_prompt([0, 0, 0, 1] + [0] * 10)


@pytest.fixture
def features(base_model, reference_encoder_name, make_table, tmp_path, accelerator):
    """Eight images of four patients: six to train on, two to validate."""
    labels = np.zeros((8, 14))
    labels[:, 3] = [1, 1, 0, 0, 1, 0, 1, 0]
    table = make_table(labels, [1, 1, 1, 2, 2, 3, 4, 4], ["train"] * 6 + ["validate"] * 2)
    table.loc[5, "Fracture"] = 1
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)
    return DiffusionFeatures(table, *encoders, 32, tmp_path / "cache", 4, 0, accelerator)


@pytest.fixture
def unet_model(base_model):
    """The tiny U-Net with the fusion of tokens."""
    return PromptedDenoiser(
        load_unet(base_model, 16), TokenFusion(16, 16), noise_schedule(base_model, "epsilon")
    ).eval()


@pytest.fixture
def uvit_model(base_model):
    torch.manual_seed(0)
    uvit = UViT(img_size=8, embed_dim=16, depth=2, num_heads=2)
    return PromptedDenoiser(uvit, PooledFusion(16, 16, 16), noise_schedule(base_model, "v_prediction")).eval()


# --- examples ----------------------------------------------------------------------------------------------------


def test_an_example_is_what_the_encoders_say_of_its_row(features):
    examples = DiffusionExamples(features, "validate", 1000, 0, 0, 0)
    assert len(examples) == 2
    example = examples[0, 5]
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "latents": SHAPE, "noise": SHAPE, "timesteps": (), "text": (16,), "reference": (16,)
    }  # fmt: skip
    assert all(
        value.dtype == (torch.int64 if name == "timesteps" else torch.float32) for name, value in example.items()
    )
    np.testing.assert_array_equal(example["text"], features.texts[EDEMA])
    mean = features.moments[features.moment_keys[6]][:4].astype(np.float32) * features.scaling_factor
    draws = torch.stack([examples[0, seed]["latents"] for seed in range(300)])
    assert (draws.mean(0) - torch.from_numpy(mean)).abs().max() < 0.1  # of the posterior, drawn afresh with each seed
    assert draws.std(0).min() > 0.05

    training_references = features.embeddings.stack(features.embedding_keys[:6])
    for seed in range(20):
        reference = examples[0, seed]["reference"].numpy()
        row = np.flatnonzero((training_references == reference).all(axis=1))
        assert len(row) and set(row) <= {0, 1, 4}  # training rows with the same labels


def test_an_example_follows_from_its_seed_alone(features):
    examples = DiffusionExamples(features, "train", 1000, 0.2, 0.2, 0.2)
    one = examples[3, 11]
    torch.manual_seed(7)
    examples[0, 12]
    again = DiffusionExamples(features, "train", 1000, 0.2, 0.2, 0.2)[3, 11]
    other = examples[3, 12]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["noise"], other["noise"]) and not torch.equal(one["latents"], other["latents"])
    timesteps = torch.stack([examples[0, seed]["timesteps"] for seed in range(500)])
    assert timesteps.min() < 20 and timesteps.max() > 980 and timesteps.max() < 1000


def test_prompts_are_dropped_as_often_as_asked(features):
    examples = DiffusionExamples(features, "train", 1000, 0.2, 0.3, 0.1)
    null, count = torch.tensor(features.texts[NULL_PROMPT]), 2000
    found = {"text": 0, "reference": 0, "both": 0, "none": 0}
    for seed in range(count):
        example = examples[seed % 6, seed]
        no_text, no_reference = torch.equal(example["text"], null), not example["reference"].any()
        found[
            "both" if no_text and no_reference else "text" if no_text else "reference" if no_reference else "none"
        ] += 1
    for name, probability in {"text": 0.2, "reference": 0.3, "both": 0.1, "none": 0.4}.items():
        sigma = (probability * (1 - probability) / count) ** 0.5
        assert abs(found[name] / count - probability) < 4 * sigma, (name, found)


def test_wrong_probabilities_and_empty_splits_are_refused(features):
    for drops in ((0.5, 0.4, 0.2), (-0.1, 0.2, 0)):
        with pytest.raises(InputError, match="they must sum up to 1 at most"):
            DiffusionExamples(features, "train", 1000, *drops)
    with pytest.raises(InputError, match="no rows in the split 'test' after the filters; there are"):
        DiffusionExamples(features, "test", 1000, 0, 0, 0)


def test_unreadable_images_are_dropped_from_all_features(
    base_model, reference_encoder_name, make_table, tmp_path, accelerator, capsys
):
    table = make_table(np.zeros((3, 14)), [1, 2, 3])
    with open(table.image_path[1], "wb") as file:
        file.write(b"no picture")
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)
    features = DiffusionFeatures(table, *encoders, 32, tmp_path / "cache", 4, 0, accelerator)
    assert features.table.dicom_id.tolist() == ["image-0", "image-2"]
    assert [key.split()[0] for key in features.moment_keys] == [key.split()[0] for key in features.embedding_keys]
    assert "1 of 3 rows dropped" in capsys.readouterr().out
    with pytest.raises(InputError, match="not one image of the table can be read"):
        DiffusionFeatures(table.iloc[[1]], *encoders, 32, tmp_path / "cache", 4, 0, accelerator)


def test_prompts_of_a_table(features):
    expected = [to_prompt(row) for row in features.table[list(FINDINGS)].to_numpy()]
    assert prompts_of(features.table) == expected == features.prompts


# --- schedule and target -----------------------------------------------------------------------------------------


def test_the_schedule_is_stable_diffusions(base_model):
    schedule = noise_schedule(base_model, "epsilon")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod, torch.cumprod(1 - betas, 0))
    with pytest.raises(InputError, match="PREDICTION 'noise' is neither"):
        noise_schedule(base_model, "noise")
    with pytest.raises(InputError, match="no scheduler in '/absent'"):
        noise_schedule("/absent", "epsilon")


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
    out = sample_latents(
        model, OneStep(), text, reference, torch.tensor([null]), [0, 1], SHAPE, 1, text_guidance, reference_guidance
    )

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
    out = sample_latents(model, OneStep(), text, None, torch.tensor([0.5]), [0, 1], SHAPE, 1, guidance, 9)
    expected = 2 * 0.5 + guidance * (2 * text - 2 * 0.5)
    torch.testing.assert_close(out, expected.view(2, 1, 1, 1).expand(2, *SHAPE))
    assert model.evaluations == 2 * evaluations


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "PNDM", "DDIM", "EulerAncestralDiscrete"])
@pytest.mark.parametrize("backbone", ["unet_model", "uvit_model"])
def test_same_seed_same_picture_whatever_the_batch(name, backbone, request):
    model = request.getfixturevalue(backbone)
    tokens = (77,) if backbone == "unet_model" else ()
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(4, *tokens, 16, generator=generator)
    null, reference = torch.randn(*tokens, 16, generator=generator), torch.randn(4, 16, generator=generator)

    def sample(rows, scheduler):
        return sample_latents(model, scheduler, text[rows], reference[rows], null, rows, SHAPE, 4, 3.0, 2.0)

    scheduler = sampling_scheduler(name, model.schedule)
    together = sample([0, 1, 2, 3], scheduler)
    alone = torch.cat([sample([row], scheduler) for row in range(4)])
    assert together.shape == (4, *SHAPE) and together.isfinite().all()
    scale = together.abs().max()
    assert (together - alone).abs().max() < 1e-5 * max(scale, 1)
    assert (together[0] - together[1]).abs().max() > 0.1
    again = sample([3, 1], sampling_scheduler(f"{name}Scheduler", model.schedule))
    assert (again - together[[3, 1]]).abs().max() < 1e-5 * max(scale, 1)


def test_an_unknown_scheduler_is_refused(base_model):
    with pytest.raises(InputError, match="SCHEDULER 'PNMD' is none of diffusers' schedulers"):
        sampling_scheduler("PNMD", noise_schedule(base_model, "epsilon"))


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
    found = sample_latents(
        model, sampling_scheduler(name, model.schedule), text, None, null, [3], SHAPE, 10, guidance, guidance
    )
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


def test_start_from_takes_weights_of_the_same_architecture_only(unet_model, uvit_model, tmp_path):
    for model, name in ((unet_model, "unet"), (uvit_model, "uvit")):
        model.save_pretrained(tmp_path / name)
    other = PromptedDenoiser(UViT(img_size=8, embed_dim=16, depth=2, num_heads=2), PooledFusion(16, 16, 16), None)
    other.start_from(tmp_path / "uvit")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in uvit_model.state_dict().items())
    deeper = PromptedDenoiser(UViT(img_size=8, embed_dim=16, depth=4, num_heads=2), PooledFusion(16, 16, 16), None)
    with pytest.raises(InputError, match="of another architecture"):
        deeper.start_from(tmp_path / "uvit")
    with pytest.raises(InputError):
        deeper.start_from(tmp_path / "unet")

    shutil.rmtree(tmp_path / "uvit" / "fusion")
    other.start_from(tmp_path / "uvit")  # a denoiser alone, pretrained without prompts


def test_no_checkpoint_and_half_a_checkpoint_are_refused(unet_model, tmp_path):
    with pytest.raises(InputError, match="is no checkpoint of this project"):
        PromptedDenoiser.from_pretrained(tmp_path)
    unet_model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="fusion is no checkpoint of this project"):
        PromptedDenoiser.from_pretrained(tmp_path / "fusion")
    shutil.rmtree(tmp_path / "scheduler")
    with pytest.raises(InputError, match="no scheduler in"):
        PromptedDenoiser.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "fusion")
    with pytest.raises(InputError, match="fusion is no checkpoint of this project"):
        PromptedDenoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["unet", "uvit"])
@pytest.mark.parametrize("harm", ["missing", "left over", "misshapen", "cut off", "absent"])
def test_weights_that_do_not_fit_are_refused(harm, name, unet_model, uvit_model, tmp_path):
    model = {"unet": unet_model, "uvit": uvit_model}[name].denoiser
    model.save_pretrained(tmp_path)
    load_strictly(type(model), tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    if harm == "missing":
        del weights[first]
    elif harm == "left over":
        weights["stray.weight"] = torch.zeros(2)
    elif harm == "misshapen":
        weights[first] = torch.zeros(3, 5)
    save_file(weights, file, metadata={"format": "pt"})
    if harm == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    elif harm == "absent":
        file.unlink()
    with pytest.raises(InputError, match=str(tmp_path)):
        load_strictly(type(model), tmp_path)


def test_a_unet_that_attends_to_another_width_is_refused(base_model, tmp_path):
    with pytest.raises(InputError, match="attends to tokens of width 16, but its text encoder makes 768"):
        load_unet(base_model, 768)
    shutil.copytree(base_model, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "unet")
    with pytest.raises(InputError, match="cannot load a UNet2DConditionModel from"):
        load_unet(str(tmp_path / "base"), 16)


def test_a_checkpoint_says_what_it_is(uvit_model, tmp_path):
    uvit_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "UViT" and config["depth"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", "fusion", "scheduler"
    ]  # fmt: skip
