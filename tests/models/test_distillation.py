"""A teacher's steps are those of diffusers' sampler, and one step of diffusers' DDIM with its target arrives there."""

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from models.diffusion import (
    Guidance,
    PromptedDenoiser,
    Prompts,
    noise_schedule,
    sample_latents,
    sampling_scheduler,
)
from models.distillation import Teacher, begin_student, distillation_loss, student_settings
from utils.errors import InputError
from utils.prompts import PooledFusion
from uvit.model import UViT

SHAPE = (4, 8, 8)
BACKBONES = ("uvit_model", "unet_model")
PLAIN = Guidance()


def random_prompts(model, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (16,) if type(model.denoiser).__name__ == "UViT" else (77, 16)
    text = torch.randn(count, *shape, generator=generator)
    return Prompts(text, torch.randn(count, 16, generator=generator), torch.randn(shape, generator=generator))


def batch_of(model, segments, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompts = random_prompts(model, len(segments))
    latents, noise = torch.randn(2, len(segments), *SHAPE, generator=generator)
    return {
        "latents": latents, "noise": noise, "timesteps": torch.tensor(segments), "text": prompts.text,
        "reference": prompts.reference,
    }  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("guidance", [PLAIN, Guidance(3.0, 2.0), Guidance(2.0, 2.0, 0.2, 2.0)])
def test_the_teachers_way_is_that_of_the_sampler(name, guidance, request, tmp_path):
    """From noise alone through the whole schedule, as one segment: DPM-Solver++ with trailing timesteps."""
    model, seeds = request.getfixturevalue(name), [3, 4]
    prompts = random_prompts(model, 2)
    noise = torch.cat([torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    teacher = Teacher(model, prompts.null_text, guidance, student_steps=1, teacher_steps=5)
    first, last = teacher.edges(torch.zeros(2, dtype=torch.long))
    assert first.tolist() == [999, 999] and last.tolist() == [-1, -1]
    found = teacher.solve(noise, first, last, prompts)

    model.save_pretrained(tmp_path)
    scheduler = sampling_scheduler("DPMSolverMultistep", begin_student(tmp_path).schedule)
    wanted = sample_latents(model, scheduler, prompts, guidance, seeds, SHAPE, 5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_of_ddim_with_the_target_arrives_where_the_teacher_does(name, request, tmp_path):
    model = request.getfixturevalue(name)
    prompts = random_prompts(model, 4)
    teacher = Teacher(model, prompts.null_text, Guidance(3.0, 3.0), student_steps=4, teacher_steps=3)
    model.save_pretrained(tmp_path)
    scheduler = sampling_scheduler("DDIM", begin_student(tmp_path).schedule)
    scheduler.set_timesteps(4)
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    first, last = teacher.edges(torch.arange(4))
    assert first.tolist() == scheduler.timesteps.tolist() == [999, 749, 499, 249]
    arrived = teacher.solve(noisy, first, last, prompts)
    target = teacher.target_x0(noisy, first, last, prompts)
    scheduler.config.prediction_type = "sample"  # the target is the clean latents
    for row in range(4):
        step = scheduler.step(target[row], int(first[row]), noisy[row]).prev_sample
        torch.testing.assert_close(step, arrived[row], rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_touch_each_other(uvit_model):
    prompts = random_prompts(uvit_model, 4)
    teacher = Teacher(uvit_model, prompts.null_text, Guidance(3.0, 2.0, 0.3, 2.0), student_steps=4, teacher_steps=3)
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    first, last = teacher.edges(torch.tensor([3, 0, 2, 1]))
    together = teacher.solve(noisy, first, last, prompts)
    for row in range(4):
        own = slice(row, row + 1)
        own_prompts = Prompts(prompts.text[own], prompts.reference[own], prompts.null_text)
        alone = teacher.solve(noisy[own], first[own], last[own], own_prompts)
        torch.testing.assert_close(together[own], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_teacher_of_one_step_without_guidance_has_nothing_to_teach(name, request):
    model = request.getfixturevalue(name)
    null_text = random_prompts(model, 1).null_text
    loss = distillation_loss(model, batch_of(model, [0, 1, 2, 3]), Teacher(model, null_text, PLAIN, 4, 1))
    assert loss.item() < 1e-9
    guided = Teacher(model, null_text, Guidance(30.0, 30.0), 4, 1)
    assert distillation_loss(model, batch_of(model, [0, 1, 2, 3]), guided).item() > 1e-6


def test_an_error_of_x0_is_weighted_by_the_truncated_signal_to_noise_ratio(base_model):
    """Of 50 segments the first begins at alpha^2 / sigma^2 = 0.005 (weight 1), the last at 69 (weight 69)."""
    schedule = noise_schedule(base_model, "epsilon")

    class KnowsX0(nn.Module):
        """Predicts the noise of a latent as if the clean latents were x0 everywhere."""

        def __init__(self, x0):
            super().__init__()
            self.x0, self.schedule, self.holder = x0, schedule, nn.Parameter(torch.zeros(1))

        def forward(self, noisy, timesteps, text, reference):
            alpha_squared = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            return (noisy - alpha_squared.sqrt() * self.x0) / (1 - alpha_squared).sqrt()

    student, batch = KnowsX0(0.5), {"text": torch.zeros(1, 16), "reference": torch.zeros(1, 16)}
    batch["latents"], batch["noise"] = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    teacher = Teacher(KnowsX0(0.2), torch.zeros(16), PLAIN, 50, 1)
    for segment, timestep in ((0, 999), (49, 19)):
        ratio = schedule.alphas_cumprod[timestep] / (1 - schedule.alphas_cumprod[timestep])
        assert ratio < 0.01 if segment == 0 else ratio > 50
        loss = distillation_loss(student, batch | {"timesteps": torch.tensor([segment])}, teacher)
        assert loss.item() == pytest.approx(max(1, ratio.item()) * 0.3**2, rel=0.01)


def test_guidance_up_to_all_noise_holds_for_a_schedule_that_ends_in_pure_noise(base_model):
    """Its last noise level is infinite; ALL_NOISE stands for it, in the teacher as in the sampler."""
    schedule = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    uvit = UViT(img_size=8, embed_dim=16, depth=2, num_heads=2)
    model = PromptedDenoiser(uvit, PooledFusion(16, 16, 16), schedule)
    prompts, noisy, last = random_prompts(model, 1), torch.randn(1, *SHAPE), torch.tensor([999])
    predicted = [
        Teacher(model, prompts.null_text, guidance, 4, 1).predict_x0(noisy, last, prompts)
        for guidance in (Guidance(5.0, 5.0, 3.0), Guidance(5.0, 5.0), Guidance(5.0, 5.0, 3.0, 900.0), PLAIN)
    ]
    assert torch.equal(predicted[0], predicted[1]) and torch.equal(predicted[2], predicted[3])
    assert not torch.allclose(predicted[0], predicted[2])


def test_the_first_step_begins_with_noise_alone(uvit_model):
    teacher = Teacher(uvit_model, random_prompts(uvit_model, 1).null_text, Guidance(2.0, 2.0), 4, 2)
    batch = batch_of(uvit_model, [0, 0])
    other = {**batch, "latents": torch.randn_like(batch["latents"])}
    assert torch.equal(distillation_loss(uvit_model, batch, teacher), distillation_loss(uvit_model, other, teacher))
    later = {"timesteps": torch.tensor([1, 1])}
    assert distillation_loss(uvit_model, batch | later, teacher) != distillation_loss(
        uvit_model, other | later, teacher
    )


def test_a_student_learns_and_its_teacher_stays(uvit_model, tmp_path):
    uvit_model.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in uvit_model.state_dict().items()}
    teacher = Teacher(uvit_model, random_prompts(uvit_model, 1).null_text, Guidance(4.0, 4.0), 4, 3)
    student = begin_student(tmp_path)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    batch, losses = batch_of(uvit_model, [0, 1, 2, 3] * 2), []
    for _ in range(30):
        losses.append(distillation_loss(student, batch, teacher))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in uvit_model.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_student_is_a_checkpoint_of_its_own_schedule(name, request, tmp_path):
    model = request.getfixturevalue(name)
    model.save_pretrained(tmp_path / "teacher")
    begin_student(tmp_path / "teacher").save_pretrained(tmp_path / "student")
    student = PromptedDenoiser.from_pretrained(tmp_path / "student")
    for schedule in (student.schedule, diffusers.DDIMScheduler.from_pretrained(tmp_path / "student/scheduler")):
        assert schedule.config.timestep_spacing == "trailing"
        assert schedule.config.prediction_type == model.schedule.config.prediction_type
    assert schedule.final_alpha_cumprod == 1.0  # plain diffusers, too, leaves no noise
    scheduler = sampling_scheduler("DDIM", student.schedule)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249] and scheduler.final_alpha_cumprod == 1.0
    plain = sampling_scheduler("DDIM", model.schedule)
    assert plain.config.timestep_spacing == "leading"  # no other checkpoint is sampled in another way


def test_more_steps_than_the_schedule_has_are_refused(uvit_model):
    with pytest.raises(InputError, match="STUDENT_STEPS 50 x TEACHER_STEPS 21 are more than the 1000"):
        Teacher(uvit_model, None, PLAIN, 50, 21)


def test_what_a_sampler_takes_of_a_student(capsys):
    assert student_settings({"constants": {}}) == {}
    found = student_settings({"student": {"teacher": "abcdef", "steps": 4, "guidance_text": 2.0}})
    assert (found["steps"], found["scheduler"]) == (4, "DDIM")
    assert found["text_guidance"] == found["reference_guidance"] == 1
    assert "abcdef" in found["student"] and "4 steps of DDIM" in capsys.readouterr().out
