"""A student that draws an image in a few network calls, its teacher's guidance built in.

The noise schedule is cut into as many segments as the student has steps. In each segment the student learns to do in one
step of DDIM, with one call, what its teacher does in several steps of DPM-Solver++ (2M; Lu et al. 2022) with guidance: the
progressive distillation of Salimans & Ho (2022) and the guidance distillation of Meng et al. (2023), at once and in one
round. What the student then needs is a sampler's plain DDIM, with timesteps that trail ("trailing": from the last one
downwards), without guidance.
"""

import json
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from models.diffusion import ALL_NOISE, Conditions, PromptedDenoiser
from utils.errors import InputError, say

STUDENT_SCHEDULER = "DDIM"


class Guidance(NamedTuple):
    """Guidance and where it is applied, as the samplers' constants have it."""

    text: float
    reference: float
    low: float
    high: float


def begin_student(folder):
    """A student with its teacher's weights, out of the teacher's folder => PromptedDenoiser."""
    student = PromptedDenoiser.from_pretrained(folder)
    config = {**student.schedule.config, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    student.schedule = DDPMScheduler.from_config(config)
    return student


def student_settings(training):
    """What a sampler's settings have to be for a student, a dict to replace others; {} for any other checkpoint.

    training: the checkpoint's training.json.
    """
    facts = training.get("student")
    if facts is None:
        return {}
    right = isinstance(facts, dict) and isinstance(facts.get("steps"), int) and isinstance(facts.get("teacher"), str)
    if not right:
        raise InputError("the checkpoint's training.json is damaged: it does not say what its student is; take another")
    say(
        f"a student of {facts['teacher'][:12]}: {facts['steps']} steps of {STUDENT_SCHEDULER}, guidance is in its weights"
    )
    return {
        "text_guidance": 1.0, "reference_guidance": 1.0, "guidance_low": 0.0, "guidance_high": ALL_NOISE,
        "steps": facts["steps"], "scheduler": STUDENT_SCHEDULER, "student": json.dumps(facts),
    }  # fmt: skip


class Teacher:
    """A trained denoiser with its guidance: where its way from some noise leads to, and what a student has to predict."""

    def __init__(self, model, null_text, guidance, student_steps, teacher_steps):
        """model: PromptedDenoiser, on its device; null_text: the empty prompt's encoding, (D,) or (77, D).

        student_steps: segments of the schedule; teacher_steps: steps of the teacher in each of them.
        """
        self.schedule = model.schedule
        longest = self.schedule.config.num_train_timesteps
        if student_steps * teacher_steps > longest:
            raise InputError(
                f"STUDENT_STEPS {student_steps} x TEACHER_STEPS {teacher_steps} are more than the {longest} steps of the "
                "noise schedule: lower one of them"
            )
        self.model, self.guidance = model.eval().requires_grad_(False), guidance
        self.student_steps, self.teacher_steps = student_steps, teacher_steps
        left = torch.cat([self.schedule.alphas_cumprod, torch.ones(1)])  # at a timestep; at -1, after the last one, all
        device = next(model.parameters()).device
        left, self.null_text = left.to(device), null_text.to(device)
        self.left, self.added = left.sqrt(), (1 - left).sqrt()  # shares of the image and of the noise

    def describe(self, fingerprint):
        """What a student's training.json says of it; fingerprint: of the teacher's weights."""
        return {
            "teacher": fingerprint, "steps": self.student_steps, "teacher_steps": self.teacher_steps,
            **{f"guidance_{name}": value for name, value in self.guidance._asdict().items()},
        }  # fmt: skip

    def edges(self, segment):
        """The first and the last timestep of segments, (B,) int64 each: those of DDIM with "trailing" timesteps."""
        length = self.schedule.config.num_train_timesteps / self.student_steps
        first = torch.round((self.student_steps - segment) * length).long() - 1
        last = torch.round((self.student_steps - segment - 1) * length).long() - 1
        return first, last

    def levels(self, timesteps):
        """What is left of the image and what is added of noise, (B, 1, 1, 1) each."""
        return (level[timesteps][:, None, None, None] for level in (self.left, self.added))

    def clean(self, model_output, noisy, timesteps):
        """What a network's prediction says that the clean latents are."""
        left, added = self.levels(timesteps)
        if self.schedule.config.prediction_type == "v_prediction":
            return left * noisy - added * model_output
        return (noisy - added * model_output) / left

    @torch.no_grad()
    def predict(self, noisy, timesteps, text, reference):
        """The teacher's guided guess of the clean latents, (B, C, h, w)."""
        noise_levels = (self.added / self.left)[timesteps].clamp(max=ALL_NOISE)
        inside = (self.guidance.low <= noise_levels) & (noise_levels <= self.guidance.high)
        output = torch.empty_like(noisy)
        for rows, guidances in ((inside, self.guidance[:2]), (~inside, (1, 1))):
            if rows.any():
                null_text = self.null_text.expand_as(text[rows])
                prompts = text[rows], reference[rows], null_text, torch.zeros_like(reference[rows])
                output[rows] = Conditions(*prompts, *guidances).predict(self.model, noisy[rows], timesteps[rows])
        return self.clean(output, noisy, timesteps)

    @torch.no_grad()
    def solve(self, noisy, first, last, text, reference):
        """Where the teacher's way from `noisy`, at the timesteps `first`, leads to at the timesteps `last`."""
        before, step_before = None, None
        for step in range(self.teacher_steps):
            now, then = (
                torch.round(first + (last - first) * share / self.teacher_steps).long() for share in (step, step + 1)
            )
            (left, added), (left_then, added_then) = self.levels(now), self.levels(then)
            guess = self.predict(noisy, now, text, reference)
            step_length = (left_then / added_then).log() - (left / added).log()  # of the half log signal-to-noise ratio
            direction = guess
            if before is not None:
                direction = guess + (guess - before) * step_length / step_before / 2
                # no second order in the last step of all, whose length has no end
                direction = torch.where(torch.isfinite(step_length), direction, guess)
            noisy = added_then / added * noisy + (left_then - left * added_then / added) * direction
            before, step_before = guess, step_length
        return noisy

    def target(self, noisy, first, last, text, reference):
        """The clean latents that a student has to guess at `first`, so that one step of DDIM brings it to the teacher."""
        arrived = self.solve(noisy, first, last, text, reference)
        (left, added), (left_then, added_then) = self.levels(first), self.levels(last)
        return (arrived - added_then / added * noisy) / (left_then - left * added_then / added)


def distillation_loss(student, batch, teacher):
    """The squared error of the student's guess of the clean latents, weighted by max(1, signal-to-noise ratio).

    (Salimans & Ho 2022, "truncated SNR".) batch: as of `DiffusionExamples`, but that `timesteps` are segments, (B,), the
    first being that of pure noise.
    """
    first, last = teacher.edges(batch["timesteps"])
    noisy = teacher.schedule.add_noise(batch["latents"], batch["noise"], first)
    from_noise = (batch["timesteps"] == 0)[:, None, None, None]  # a sampler begins with noise alone
    noisy = torch.where(from_noise, batch["noise"], noisy)
    target = teacher.target(noisy, first, last, batch["text"], batch["reference"])
    guess = teacher.clean(student(noisy, first, batch["text"], batch["reference"]).float(), noisy, first)
    left, added = teacher.levels(first)
    error = F.mse_loss(guess, target, reduction="none").mean(dim=(1, 2, 3))
    return (error * (left / added).square().clamp(min=1)[:, 0, 0, 0]).mean()
