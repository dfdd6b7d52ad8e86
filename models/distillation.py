"""A student that draws an image in a few network calls, with its teacher's guidance built in.

The noise schedule is cut into as many segments as the student has steps. For each segment the student learns to do in
one step of DDIM, with one call, what its teacher does in several guided steps of DPM-Solver++ (2M; Lu et al. 2022): the
progressive distillation of Salimans & Ho (2022) and the guidance distillation of Meng et al. (2023) in one round. The
student is then sampled with plain DDIM, "trailing" timesteps and no guidance.

Notation: a noisy latent is x_t = alpha_t x0 + sigma_t noise, with alpha_t^2 + sigma_t^2 = 1; s is the timestep that
follows t. One step of DDIM goes, with the prediction of x0, to

    x_s = alpha_s x0 + sigma_s noise = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from models.diffusion import ALL_NOISE, Guidance, PromptedDenoiser, Prompts, guided_prediction
from utils.errors import InputError, say

STUDENT_SCHEDULER = "DDIM"


def begin_student(folder: str | Path) -> PromptedDenoiser:
    """A student with the weights of its teacher, which is read from the teacher's checkpoint folder."""
    student = PromptedDenoiser.from_pretrained(folder)
    config = {**student.schedule.config, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    student.schedule = DDPMScheduler.from_config(config)
    return student


def student_settings(training: dict) -> dict:
    """The sampler's settings that a student needs, by its training.json; {} for any other checkpoint."""
    if "student" not in training:
        return {}
    facts = training["student"]
    say(f"a student of {facts['teacher'][:12]}: {facts['steps']} steps of {STUDENT_SCHEDULER}, its guidance built in")
    return {
        "text_guidance": 1.0, "reference_guidance": 1.0, "guidance_low": 0.0, "guidance_high": ALL_NOISE,
        "steps": facts["steps"], "scheduler": STUDENT_SCHEDULER, "student": json.dumps(facts),
    }  # fmt: skip


class Teacher:
    """A trained denoiser with its guidance: solves each segment in several steps, and makes the student's targets."""

    def __init__(
        self, model: PromptedDenoiser, null_text: torch.Tensor, guidance: Guidance, student_steps: int,
        teacher_steps: int,
    ):  # fmt: skip
        """null_text: (D,) or (77, D); student_steps: segments of the schedule; teacher_steps: in each of them."""
        self.schedule = model.schedule
        longest = self.schedule.config.num_train_timesteps
        if student_steps * teacher_steps > longest:
            product = f"STUDENT_STEPS {student_steps} x TEACHER_STEPS {teacher_steps}"
            raise InputError(f"{product} are more than the {longest} steps of the noise schedule: lower one of them")
        self.model, self.guidance = model.eval().requires_grad_(False), guidance
        self.student_steps, self.teacher_steps = student_steps, teacher_steps
        device = next(model.parameters()).device
        self.null_text = null_text.to(device)
        # by timestep; the last one stands at -1, for the end of the schedule: all image, no noise
        alpha_squared = torch.cat([self.schedule.alphas_cumprod, torch.ones(1)]).to(device)
        self.alpha, self.sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    def edges(self, segment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and the last timestep of segments, (B,) int64 each: those of DDIM with "trailing" timesteps."""
        length = self.schedule.config.num_train_timesteps / self.student_steps
        first = torch.round((self.student_steps - segment) * length).long() - 1
        last = torch.round((self.student_steps - segment - 1) * length).long() - 1
        return first, last

    def alpha_sigma(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma at timesteps (B,), (B, 1, 1, 1) each."""
        return self.alpha[timesteps][:, None, None, None], self.sigma[timesteps][:, None, None, None]

    def to_x0(self, prediction: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """A network's prediction => the clean latents x0 that follow from it.

        (x_t - sigma noise) / alpha, or alpha x_t - sigma v where the network predicts the velocity v.
        """
        alpha, sigma = self.alpha_sigma(timesteps)
        if self.schedule.config.prediction_type == "v_prediction":
            return alpha * noisy - sigma * prediction
        return (noisy - sigma * prediction) / alpha

    def predict_x0(self, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """The teacher's guided prediction of the clean latents, (B, C, h, w)."""
        noise_levels = (self.sigma / self.alpha)[timesteps].clamp(max=ALL_NOISE)
        guided = (self.guidance.low <= noise_levels) & (noise_levels <= self.guidance.high)
        prediction = torch.empty_like(noisy)
        for rows, *scales in ((guided, self.guidance.text, self.guidance.reference), (~guided, 1, 1)):
            if rows.any():
                own = Prompts(prompts.text[rows], prompts.reference[rows], prompts.null_text)
                prediction[rows] = guided_prediction(self.model, noisy[rows], timesteps[rows], own, *scales)
        return self.to_x0(prediction, noisy, timesteps)

    @torch.no_grad()
    def solve(self, noisy: torch.Tensor, first: torch.Tensor, last: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Latents at the timesteps `first` => latents at `last`, by the teacher's steps of DPM-Solver++ (2M).

        With lambda = log(alpha / sigma) and h the length of a step in lambda, a step from t to s is DDIM's with

            x0_t + h / h_before (x0_t - x0_before) / 2    in place of x0_t

        (Lu et al. 2022, algorithm 2), but for the first step, and for the one that ends without noise (h is infinite).
        """
        x0_before, h_before = None, None
        for step in range(self.teacher_steps):
            now = torch.round(first + (last - first) * step / self.teacher_steps).long()
            following = torch.round(first + (last - first) * (step + 1) / self.teacher_steps).long()
            (alpha, sigma), (alpha_next, sigma_next) = self.alpha_sigma(now), self.alpha_sigma(following)
            x0 = self.predict_x0(noisy, now, prompts)
            h = (alpha_next / sigma_next).log() - (alpha / sigma).log()
            corrected = x0
            if x0_before is not None:
                corrected = torch.where(torch.isfinite(h), x0 + (x0 - x0_before) * h / h_before / 2, x0)
            noisy = sigma_next / sigma * noisy + (alpha_next - alpha * sigma_next / sigma) * corrected
            x0_before, h_before = x0, h
        return noisy

    def target_x0(self, noisy: torch.Tensor, first: torch.Tensor, last: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """The x0 that a student has to predict at `first`: with it one step of DDIM arrives where the teacher does."""
        arrived = self.solve(noisy, first, last, prompts)
        (alpha, sigma), (alpha_next, sigma_next) = self.alpha_sigma(first), self.alpha_sigma(last)
        return (arrived - sigma_next / sigma * noisy) / (alpha_next - alpha * sigma_next / sigma)


def distillation_loss(student: PromptedDenoiser, batch: dict[str, torch.Tensor], teacher: Teacher) -> torch.Tensor:
    """The squared error of the student's x0, weighted by max(1, alpha^2 / sigma^2): Salimans & Ho's "truncated SNR".

    batch: as `DiffusionExamples` makes it, but its `timesteps` are segments, (B,); segment 0 begins with pure noise.
    """
    first, last = teacher.edges(batch["timesteps"])
    noisy = teacher.schedule.add_noise(batch["latents"], batch["noise"], first)
    from_noise = (batch["timesteps"] == 0)[:, None, None, None]  # a sampler begins with noise alone
    noisy = torch.where(from_noise, batch["noise"], noisy)
    prompts = Prompts(batch["text"], batch["reference"], teacher.null_text)
    target = teacher.target_x0(noisy, first, last, prompts)
    x0 = teacher.to_x0(student(noisy, first, prompts.text, prompts.reference).float(), noisy, first)
    alpha, sigma = teacher.alpha_sigma(first)
    error = F.mse_loss(x0, target, reduction="none").mean(dim=(1, 2, 3))
    return (error * (alpha / sigma).square().clamp(min=1)[:, 0, 0, 0]).mean()
