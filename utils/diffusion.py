"""Latent diffusion with a fused prompt: noise schedule, training examples, guided sampling. One code for both backbones."""

import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from torch.utils.data import Dataset

from utils.cache import weights_fingerprint
from utils.errors import InputError, reason
from utils.findings import FINDINGS, to_prompt
from utils.latents import cache_moments, draw_latents
from utils.prompts import NULL_PROMPT, PooledFusion, TokenFusion
from utils.references import NONE, References
from uvit.model import UViT

DENOISERS = {"UViT": UViT, "UNet2DConditionModel": UNet2DConditionModel}
FUSIONS = {"PooledFusion": PooledFusion, "TokenFusion": TokenFusion}


def noise_schedule(base_model, prediction_type):
    """The noise schedule of `<base_model>/scheduler`, for training.

    SD v1.4's: betas scaled-linear from 0.00085 to 0.012, 1000 steps. prediction_type: "epsilon" (the paper's: the
    network predicts the noise) or "v_prediction" (Salimans & Ho 2022: the velocity).
    """
    if prediction_type not in ("epsilon", "v_prediction"):
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

    def save_pretrained(self, folder):
        self.denoiser.save_pretrained(folder)
        self.fusion.save_pretrained(Path(folder) / "fusion")
        self.schedule.save_pretrained(Path(folder) / "scheduler")

    def start_from(self, folder):
        """Takes the weights of another checkpoint folder, of the denoiser and, where the folder has it, of the fusion."""
        for module, place in ((self.denoiser, Path(folder)), (self.fusion, Path(folder) / "fusion")):
            if module is self.fusion and not place.exists():
                continue
            loaded = load_strictly(type(module), place).state_dict()
            try:
                module.load_state_dict(loaded)
            except RuntimeError as error:
                raise InputError(
                    f"INITIAL_WEIGHTS {place} is of another architecture: {' '.join(str(error).split())[:200]} ..."
                ) from error
            print(f"{place}: {len(loaded)} tensors, {sum(tensor.numel() for tensor in loaded.values()):,} parameters")

    @classmethod
    def from_pretrained(cls, folder, denoiser=""):
        """Loads a folder that `save_pretrained` wrote; denoiser: the class name it has to be of (empty: either).

        InputError when it is no such folder, of another denoiser, or when its weights do not fit its configuration.
        """
        folder = Path(folder)
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


def load_strictly(model_class, folder, **options):
    """`model_class.from_pretrained(folder)`, but a missing, left-over or misshapen weight is an InputError."""
    try:
        model, info = model_class.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=Path(folder).exists(), **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot load a {model_class.__name__} from {folder}: {' '.join(str(error).split())[:300]}"
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise InputError(
                f"the weights in {folder} are not of the architecture in its config.json: "
                f"{len(info[problem])} {problem.replace('_', ' ')}, e.g. {sorted(map(str, info[problem]))[:3]}"
            )
    return model


def load_unet(base_model, text_width):
    """The U-Net of a Stable-Diffusion-like folder or hub id; InputError unless it attends to texts of text_width."""
    unet = load_strictly(UNet2DConditionModel, base_model, subfolder="unet")
    if unet.config.cross_attention_dim != text_width:
        raise InputError(
            f"the U-Net of BASE_MODEL {base_model!r} attends to tokens of width {unet.config.cross_attention_dim}, but its "
            f"text encoder makes {text_width}: they are not of one model"
        )
    return unet


def _load_schedule(folder, **options):
    try:
        return DDPMScheduler.from_pretrained(folder, subfolder="scheduler", **options)
    except (OSError, ValueError) as error:
        raise InputError(f"no scheduler in {str(folder)!r}: {reason(error)}") from error


def _class_name(folder, known):
    try:
        name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError):
        name = None
    if name not in known:
        raise InputError(
            f"{folder} is no checkpoint of this project (no config.json of a {' or '.join(known)} in it): "
            "set CHECKPOINT to a folder such as runs/clipUViT/best"
        )
    return name


class DiffusionFeatures:
    """What the frozen encoders say of each row of a table, computed once; rows with an unreadable image are dropped.

    Attributes: table (its rows have an image that could be read), prompts, and the caches of moments, texts and
    reference embeddings with their keys, a row each.
    """

    def __init__(
        self, table, vae, text_encoder, reference_encoder, image_size, cache_dir, batch_size, threads, accelerator
    ):
        moments, moment_keys, readable = cache_moments(
            table, vae, image_size, cache_dir, batch_size, accelerator, threads
        )
        embeddings, embedding_keys, readable_again = reference_encoder.cache(
            table, cache_dir, accelerator, batch_size, threads
        )
        readable &= readable_again
        if not readable.all():
            accelerator.print(f"unreadable images: {(~readable).sum()} of {len(table)} rows dropped (named above)")
        if not readable.any():
            raise InputError("not one image of the table can be read")
        self.table = table[readable].reset_index(drop=True)
        self.moments, self.moment_keys = moments, [key for key, kept in zip(moment_keys, readable) if kept]
        self.embeddings, self.embedding_keys = embeddings, [key for key, kept in zip(embedding_keys, readable) if kept]
        self.prompts = prompts_of(self.table)
        self.texts = text_encoder.cache(self.prompts, cache_dir, accelerator)
        self.scaling_factor = vae.config.scaling_factor
        self.encoders = encoder_fingerprints(vae, text_encoder, reference_encoder)

    def rows(self, split):
        """The row numbers of one split; InputError if there are none."""
        rows = np.flatnonzero(self.table.split == split)
        if not len(rows):
            found = self.table.split.value_counts().to_dict()
            raise InputError(f"no rows in the split {split!r} after the filters; there are {found}")
        return rows


def encoder_fingerprints(vae, text_encoder, reference_encoder):
    """Which frozen encoders a checkpoint was trained with; kept in it and compared when it is sampled."""
    return {
        "vae": weights_fingerprint(vae),
        "text_encoder": text_encoder.fingerprint(),
        "reference_encoder": reference_encoder.fingerprint(),
    }


def prompts_of(table):
    """The prompt of each row of a table, a list of texts."""
    vectors, inverse = np.unique(table[list(FINDINGS)].to_numpy(dtype=np.int8), axis=0, return_inverse=True)
    sentences = [to_prompt(vector) for vector in vectors]
    return [sentences[index] for index in inverse.ravel()]


class DiffusionExamples(Dataset):
    """Training examples of one split: `examples[row, seed]`; all that is random in an example follows from its seed.

    drop_text, drop_reference, drop_both: probabilities that an example loses its text, its reference, or both, which
    is what makes guidance possible (Ho & Salimans 2022; two conditions as in Brooks et al. 2023).
    """

    def __init__(self, features, split, num_timesteps, drop_text, drop_reference, drop_both):
        if not 0 <= drop_text + drop_reference + drop_both <= 1 or min(drop_text, drop_reference, drop_both) < 0:
            raise InputError("DROP_TEXT, DROP_REFERENCE and DROP_BOTH are probabilities: they must sum up to 1 at most")
        self.features = features
        self.rows = features.rows(split)
        self.table = features.table.iloc[self.rows]
        self.train_rows = features.rows("train")
        self.references = References(features.table.iloc[self.train_rows])
        self.labels = features.table[list(FINDINGS)].to_numpy(dtype=np.int8)
        self.subject_ids = features.table.subject_id.to_numpy()
        self.num_timesteps = num_timesteps
        self.dropout_edges = np.cumsum([drop_text, drop_reference, drop_both])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row_and_seed):
        position, seed = row_and_seed
        row, features = self.rows[position], self.features
        generator = torch.Generator().manual_seed(seed)
        moments = torch.from_numpy(features.moments[features.moment_keys[row]].astype(np.float32))  # (2C, h, w)
        shape = (moments.shape[0] // 2, *moments.shape[1:])
        posterior_noise = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        timestep = torch.randint(self.num_timesteps, (), generator=generator)
        reference_row = self.references.draw(self.labels[row], self.subject_ids[row], generator)
        drop = np.searchsorted(self.dropout_edges, torch.rand((), generator=generator).item(), side="right")

        text = features.texts[NULL_PROMPT if drop in (0, 2) else features.prompts[row]]
        reference = features.embeddings[features.embedding_keys[self.train_rows[reference_row]]]
        if reference_row == NONE or drop in (1, 2):
            reference = np.zeros_like(reference)
        return {
            "latents": draw_latents(moments, posterior_noise, features.scaling_factor),  # (C, h, w), unit variance
            "noise": noise,  # (C, h, w)
            "timesteps": timestep,  # ()
            "text": torch.tensor(text),  # (D,) or (77, D)
            "reference": torch.tensor(reference),  # (R,)
        }


def sampling_scheduler(name, schedule):
    """A diffusers scheduler by name ("DPMSolverMultistep" is DPM-Solver++ 2M; "PNDM" is the paper's), for a schedule."""
    scheduler_class = getattr(diffusers, f"{name.removesuffix('Scheduler')}Scheduler", None)
    if scheduler_class is None:
        raise InputError(
            f"SCHEDULER {name!r} is none of diffusers' schedulers; e.g. 'DPMSolverMultistep', 'PNDM', 'DDIM'"
        )
    config = dict(schedule.config)
    del config["timestep_spacing"]  # the training schedule's own; each sampler has its default
    config["skip_prk_steps"] = True  # PNDM as Stable Diffusion runs it: without the Runge-Kutta steps at the start
    return scheduler_class.from_config(config)


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
):
    """Draws latents by guided diffusion; each image's noise comes from its own seed alone.

    With e(t, r) the prediction for a text and a reference, and 0 the dropped one, the guided prediction is

        e(0, 0) + reference_guidance (e(0, r) - e(0, 0)) + text_guidance (e(t, r) - e(0, r))

    (Brooks et al. 2023, equation 3). Equal guidances need two evaluations and are ordinary classifier-free guidance;
    both 1 need one.

    Args:
        model: PromptedDenoiser, on its device; scheduler: from `sampling_scheduler`.
        text: (B, D) or (B, 77, D); null_text: the empty prompt's encoding, (D,) or (77, D).
        reference: (B, R), zeros for none; or None, and no reference token is made at all.
        seeds: B integers; shape: (C, h, w) of the latents; steps: denoising steps.
        null_reference: (R,), what stands for a dropped reference; None for zeros.
    Returns latents (B, C, h, w), unit variance, on the model's device.
    """
    device = next(model.parameters()).device
    text, null_text = text.to(device), null_text.to(device).expand_as(text)
    if reference is None:
        no_reference, reference_guidance = None, text_guidance
    else:
        reference = reference.to(device)
        no_reference = torch.zeros_like(reference)
        if null_reference is not None:
            no_reference = no_reference + null_reference.to(device)
    weighted = [
        (1 - reference_guidance, null_text, no_reference),
        (reference_guidance - text_guidance, null_text, reference),
        (text_guidance, text, reference),
    ]
    weighted = [condition for condition in weighted if condition[0] != 0]
    weights = [weight for weight, _, _ in weighted]
    texts = torch.cat([text for _, text, _ in weighted])
    references = None if reference is None else torch.cat([reference for _, _, reference in weighted])

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators]).to(device)
    scheduler.set_timesteps(steps, device=device)
    latents = latents * scheduler.init_noise_sigma
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(latents, timestep)
        inputs = torch.cat([inputs] * len(weights))
        predictions = model(inputs, timestep.expand(len(inputs)), texts, references).float().chunk(len(weights))
        prediction = sum(weight * prediction for weight, prediction in zip(weights, predictions))
        latents = scheduler.step(prediction, timestep, latents, **options).prev_sample
    return latents
