"""A student learns where its teacher's way leads to: the way is diffusers', and one step of diffusers' DDIM gets there."""

import diffusers
import pytest
import torch

from models.diffusion import ALL_NOISE, PromptedDenoiser, sample_latents, sampling_scheduler
from models.distillation import Guidance, Teacher, begin_student, distillation_loss, student_settings
from utils.errors import InputError

SHAPE = (4, 8, 8)
BACKBONES = ("uvit_model", "unet_model")
PLAIN = Guidance(1, 1, 0.0, ALL_NOISE)


def prompts(model, count, seed=0):
    """(text, reference, the empty prompt) of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (16,) if type(model.denoiser).__name__ == "UViT" else (77, 16)
    text = torch.randn(count, *shape, generator=generator)
    return text, torch.randn(count, 16, generator=generator), torch.randn(shape, generator=generator)


def batch_of(model, segments, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text, reference, _ = prompts(model, len(segments))
    latents, noise = torch.randn(2, len(segments), *SHAPE, generator=generator)
    return {
        "latents": latents, "noise": noise, "timesteps": torch.tensor(segments), "text": text, "reference": reference
    }  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("guidance", [PLAIN, Guidance(3.0, 2.0, 0.0, ALL_NOISE), Guidance(2.0, 2.0, 0.2, 2.0)])
def test_the_teachers_way_is_that_of_the_sampler(name, guidance, request, tmp_path):
    """From noise alone through the whole schedule, as one segment: DPM-Solver++ with trailing timesteps."""
    model, seeds = request.getfixturevalue(name), [3, 4]
    text, reference, null_text = prompts(model, 2)
    noise = torch.cat([torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    teacher = Teacher(model, null_text, guidance, student_steps=1, teacher_steps=5)
    first, last = teacher.edges(torch.zeros(2, dtype=torch.long))
    assert first.tolist() == [999, 999] and last.tolist() == [-1, -1]
    found = teacher.solve(noise, first, last, text, reference)

    model.save_pretrained(tmp_path)
    scheduler = sampling_scheduler("DPMSolverMultistep", begin_student(tmp_path).schedule, 5)
    wanted = sample_latents(
        model, scheduler, text, reference, null_text, seeds, SHAPE, 5, *guidance[:2], guided=guidance[2:]
    )
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_one_step_of_ddim_with_the_target_arrives_where_the_teacher_does(name, request, tmp_path):
    model = request.getfixturevalue(name)
    text, reference, null_text = prompts(model, 4)
    teacher = Teacher(model, null_text, Guidance(3.0, 3.0, 0.0, ALL_NOISE), student_steps=4, teacher_steps=3)
    model.save_pretrained(tmp_path)
    scheduler = sampling_scheduler("DDIM", begin_student(tmp_path).schedule, 4)
    scheduler.set_timesteps(4)
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    first, last = teacher.edges(torch.arange(4))
    assert first.tolist() == scheduler.timesteps.tolist() == [999, 749, 499, 249]
    arrived = teacher.solve(noisy, first, last, text, reference)
    target = teacher.target(noisy, first, last, text, reference)
    scheduler.config.prediction_type = "sample"  # the target is the clean latents
    for row in range(4):
        step = scheduler.step(target[row], int(first[row]), noisy[row]).prev_sample
        torch.testing.assert_close(step, arrived[row], rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_touch_each_other(uvit_model):  # noqa: F811
    text, reference, null_text = prompts(uvit_model, 4)
    teacher = Teacher(uvit_model, null_text, Guidance(3.0, 2.0, 0.3, 2.0), student_steps=4, teacher_steps=3)
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    first, last = teacher.edges(torch.tensor([3, 0, 2, 1]))
    together = teacher.solve(noisy, first, last, text, reference)
    for row in range(4):
        own = slice(row, row + 1)
        alone = teacher.solve(noisy[own], first[own], last[own], text[own], reference[own])
        torch.testing.assert_close(together[own], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_teacher_of_one_step_without_guidance_has_nothing_to_teach(name, request):
    model = request.getfixturevalue(name)
    null_text = prompts(model, 1)[2]
    loss = distillation_loss(model, batch_of(model, [0, 1, 2, 3]), Teacher(model, null_text, PLAIN, 4, 1))
    assert loss.item() < 1e-9
    guided = Teacher(model, null_text, Guidance(30.0, 30.0, 0.0, ALL_NOISE), 4, 1)
    assert distillation_loss(model, batch_of(model, [0, 1, 2, 3]), guided).item() > 1e-6


def test_the_first_step_begins_with_noise_alone(uvit_model):  # noqa: F811
    teacher = Teacher(uvit_model, prompts(uvit_model, 1)[2], Guidance(2.0, 2.0, 0.0, ALL_NOISE), 4, 2)
    batch = batch_of(uvit_model, [0, 0])
    other = {**batch, "latents": torch.randn_like(batch["latents"])}
    assert torch.equal(distillation_loss(uvit_model, batch, teacher), distillation_loss(uvit_model, other, teacher))
    later = {"timesteps": torch.tensor([1, 1])}
    assert distillation_loss(uvit_model, batch | later, teacher) != distillation_loss(
        uvit_model, other | later, teacher
    )


def test_a_student_learns_and_its_teacher_stays(uvit_model, tmp_path):  # noqa: F811
    uvit_model.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in uvit_model.state_dict().items()}
    teacher = Teacher(uvit_model, prompts(uvit_model, 1)[2], Guidance(4.0, 4.0, 0.0, ALL_NOISE), 4, 3)
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
    scheduler = sampling_scheduler("DDIM", student.schedule, 4)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249] and scheduler.final_alpha_cumprod == 1.0
    plain = sampling_scheduler("DDIM", model.schedule, 4)
    assert plain.config.timestep_spacing == "leading"  # no other checkpoint is sampled in another way


def test_more_steps_than_the_schedule_has_are_refused(uvit_model):  # noqa: F811
    with pytest.raises(InputError, match="STUDENT_STEPS 50 x TEACHER_STEPS 21 are more than the 1000"):
        Teacher(uvit_model, None, PLAIN, 50, 21)


def test_what_a_sampler_takes_of_a_student(capsys):
    assert student_settings({"constants": {}}) == {}
    found = student_settings({"student": {"teacher": "abcdef", "steps": 4, "guidance_text": 2.0}})
    assert (found["steps"], found["scheduler"]) == (4, "DDIM")
    assert found["text_guidance"] == found["reference_guidance"] == 1
    assert "abcdef" in found["student"] and "4 steps of DDIM" in capsys.readouterr().out
    for damaged in ([], {}, {"steps": "four", "teacher": "abcdef"}, {"steps": 4}):
        with pytest.raises(InputError, match="damaged"):
            student_settings({"student": damaged})
