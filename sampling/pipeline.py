"""CXR-IRGen as one diffusers pipeline: findings or a text => images with their reports; any film => its report.

    prompt            => requests   a row an image, with its own seed, as the image samplers plan them
    requests          => latents    by sampling/images.py, with references out of the pool that travels as embeddings
    latents           => images     by the VAE
    latents, float16  => reports    by the prior and BART, as sample_prior_model.py writes them for kept latents

So an image and its report are those of the scripts for the same seed, in float32, for as many threads and BATCH_SIZE.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pandas as pd
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import BartForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from models.diffusion import DENOISERS, FUSIONS, PromptedDenoiser
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from sampling.images import ImageSampler, batches_to_draw
from sampling.pipeline_folder import DEFAULT_CARD, complete_folder
from sampling.plan import label_vectors, make_requests
from sampling.reference_pool import ReferenceEmbeddings, ReferencePool
from utils.checkpoints import load_strictly, why_unloaded
from utils.errors import InputError, as_input_error
from utils.findings import FINDINGS
from utils.folders import MANIFEST_FILE
from utils.latents import decode_latents, draw_latents
from utils.pixels import read_pixels
from utils.prompts import PooledFusion, ReferenceTower, TextEncoder, TokenFusion
from utils.seeds import keyed_seed

OWN = {**DENOISERS, **FUSIONS, **{kind.__name__: kind for kind in (Prior, ReferenceTower, ReferenceEmbeddings)}}
LARGEST_GUIDANCE, MOST_STEPS, MOST_IMAGES, LARGEST_SEED = 100.0, 1000, 1_000_000, 2**63 - 1  # as in the samplers


@dataclass
class ImageReportPairs(BaseOutput):
    """What a pipeline returns for n images."""

    images: list[Image.Image]  # grey, S x S pixels
    reports: list[str]  # their texts, "" each without a prior
    labels: pd.DataFrame  # the 14 requested codes of each (authors' coding)
    prompts: list[str]
    seeds: list[int]  # of their noise


class CXRIRGenPipeline(DiffusionPipeline):
    """Images with reports, by the models that the scripts train.

    Args:
        vae, text_encoder, tokenizer, scheduler: the frozen models of the denoiser's training, and its noise schedule.
        denoiser, fusion: a U-ViT or a U-Net, a student's too, and what makes its prompt tokens.
        prior, bart, bart_tokenizer: of the reports; None: images alone.
        reference_encoder, references: the reference's image tower, and the embeddings of training images that
            references are drawn from; None: no image can be given, and none is drawn.
        image_settings: what a synthetic tree's manifest states, with batch_size, and trained_on, the training's PROMPT.
        report_settings: {"prior": arguments of `Prior.sample`, "decoding": those of `ReportAutoencoder.generate`}.
    """

    _optional_components = ("prior", "bart", "bart_tokenizer", "reference_encoder", "references")

    def __init__(
        self, vae: AutoencoderKL, text_encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
        scheduler: DDPMScheduler, denoiser: ModelMixin, fusion: PooledFusion | TokenFusion,
        prior: Prior | None = None, bart: BartForConditionalGeneration | None = None,
        bart_tokenizer: PreTrainedTokenizerBase | None = None, reference_encoder: ReferenceTower | None = None,
        references: ReferenceEmbeddings | None = None, image_settings: dict | None = None,
        report_settings: dict | None = None,
    ):  # fmt: skip
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, denoiser=denoiser,
            fusion=fusion, prior=prior, bart=bart, bart_tokenizer=bart_tokenizer, reference_encoder=reference_encoder,
            references=references,
        )  # fmt: skip
        self.register_to_config(image_settings=image_settings, report_settings=report_settings)
        vae.to(memory_format=torch.channels_last)  # as `load_vae` has it: the layout changes how sums are rounded
        for part in self.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        self._model, pooled = PromptedDenoiser(denoiser, fusion, scheduler), isinstance(fusion, PooledFusion)
        self._texts = TextEncoder("", pooled, text_encoder.device, loaded=(tokenizer, text_encoder))
        self._pool = ReferencePool.from_embeddings(references, fusion.config.prompting) if references else None
        self._autoencoder = ReportAutoencoder(bart, bart_tokenizer, bart.config.pooling).eval() if bart else None

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None) -> "CXRIRGenPipeline":
        """A folder of `save_pretrained`, or a hub id, whose code is not run; InputError for any other folder."""
        folder, way_out = Path(folder), "make one by pipeline.py"
        # a broken file fails in whatever reads it
        with as_input_error(lambda error: f"no pipeline in {str(folder)!r}: {why_unloaded(folder, error)}; {way_out}"):
            if not folder.exists():
                folder = Path(snapshot_download(str(folder)))
            index = json.loads((folder / cls.config_name).read_text(encoding="utf-8"))
            if cls.__name__ not in index["_class_name"]:
                raise ValueError(f"it is a {index['_class_name']}")
            parts = {name: value for name, value in index.items() if name[0] != "_" and isinstance(value, list)}
            parts = {name: _load_part(folder / name, *value) for name, value in parts.items() if value[0] is not None}
            pipeline = cls(**parts, **{name: index[name] for name in ("image_settings", "report_settings")})
        return pipeline.to(torch_dtype or torch.float32)

    def to(self, *args, **kwargs) -> "CXRIRGenPipeline":
        """diffusers' own; the VAE stays in float32: in float16 the decoders of some overflow."""
        moved = super().to(*args, **kwargs)
        self.vae.float()
        return moved

    def push_to_hub(self, *args, **kwargs):
        """Not offered: what a folder holds has to be looked at before it is published."""
        raise InputError("write the folder by save_pretrained, read its card, then use huggingface_hub.upload_folder")

    @torch.no_grad()
    def __call__(
        self, prompt: str | Sequence[str], num_images: int = 1, seed: int | None = None,
        generator: torch.Generator | None = None, reference: str | Path | Image.Image | np.ndarray | None = None,
        guidance_scale: float | None = None, reference_guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ) -> ImageReportPairs:  # fmt: skip
        """Makes num_images images of each prompt, and their reports.

        prompt: findings such as "cardiomegaly, edema, not pneumothorax", or a text, for a denoiser that was trained on
            impressions. seed: of noise and references; None: drawn from the generator, or at random.
        reference: an image in place of the drawn ones. guidance_scale: of the text, and of the reference unless
            reference_guidance_scale is given. InputError for what a sampler's script refuses.
        """
        _check_range("num_images", num_images, 1, MOST_IMAGES)
        settings = self._settings(guidance_scale, reference_guidance_scale, num_inference_steps)
        if seed is None:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device if generator else "cpu"))
        _check_range("seed", seed, 0, LARGEST_SEED)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(text.strip() for text in prompts):
            raise InputError("a prompt is empty: name findings, such as 'edema, not pneumothorax', or write a text")
        trained_on, digest = settings["trained_on"], settings["checkpoint_sha256"]
        kind = "findings" if trained_on == "findings" else "text"
        vectors = [label_vectors(None, seed, trained_on, **{kind: text}) for text in prompts]
        vectors = pd.concat(vectors, ignore_index=True)
        requests = make_requests(vectors.drop_duplicates("prompt"), num_images, seed, digest)
        pool = self._pool
        if reference is not None:
            if self.reference_encoder is None:
                raise InputError("this pipeline has no reference encoder: leave `reference` out")
            with self._autocast():
                pixels = _pixels(reference, self.reference_encoder.tower.image_size[0])[None].to(self.device)
                given = self.reference_encoder(pixels)[0].float().cpu()  # (R,)
            pool = SimpleNamespace(draw=lambda _: "given", embeddings=lambda names: given.expand(len(names), -1))
        if pool is None:
            settings["condition"] = "text"
        elif reference is not None and settings["condition"] == "text":
            settings["condition"] = "both"
        requests["reference_dicom_id"] = pool.draw(requests) if pool else ""
        sampler = ImageSampler(self._model, self.vae, self._texts, settings, pool, self._autocast, self.progress_bar)
        images, reports = {}, {}
        for batch in batches_to_draw(requests, {*requests.dicom_id}, settings["batch_size"], sampler):
            latents = sampler.draw(batch)  # (B, C, h, w)
            images.update(zip(batch.index, map(Image.fromarray, decode_latents(self.vae, latents))))
            kept = latents.half().float()  # as a tree keeps them
            reports.update(zip(batch.index, self._write(kept, batch.dicom_id, seed)))
        rows = [row for prompt in vectors.prompt for row in requests.index[requests.prompt == prompt]]
        made, requests = ([images[row] for row in rows], [reports[row] for row in rows]), requests.loc[rows]
        labels = requests[[*FINDINGS]].reset_index(drop=True)
        return ImageReportPairs(*made, labels, requests.prompt.tolist(), requests.seed.tolist())

    @torch.no_grad()
    def report(self, image: str | Path | Image.Image | np.ndarray, seed: int = 1234) -> str:
        """The report of a film: a file that Pillow reads, a DICOM file, what Pillow has opened, or its values.

        seed: of the VAE's posterior and of the prior. InputError for an image that cannot be read or is blank.
        """
        return self._write(self._encode(image, seed), [_name(image)], seed)[0]

    @torch.no_grad()
    def read(self, image: str | Path | Image.Image | np.ndarray, seed: int = 1234) -> dict[str, float]:
        """What the prior's readout predicts of a film: {flag, such as a finding: probability}; {} without one."""
        latents = self._encode(image, seed)
        with self._autocast():
            flags = self.prior.read_flags(latents)
        return {} if flags is None else dict(zip(self.prior.config.flags, flags[0].tolist()))

    def save_pretrained(self, save_directory: str | Path, references: bool = True, card: str = DEFAULT_CARD, **options):
        """Writes the components, the code that loads them without this project, and a model card.

        references: whether the embeddings of training images go with it, which a data set's agreement may forbid.
        card: what the model card says of data and evaluation. options: diffusers' own.
        """
        if options.get("push_to_hub"):
            self.push_to_hub()
        kept, folder = self.references, Path(save_directory)
        others = {path.name for path in folder.glob("*")} - {MANIFEST_FILE, ".lock"}
        if others and not (folder / self.config_name).exists():
            raise InputError(f"{folder} is not empty and no pipeline's folder: name a new one")
        self.register_modules(references=kept if references else None)
        try:
            super().save_pretrained(str(folder), **options)
            complete_folder(folder, self, card)
        finally:
            self.register_modules(references=kept)

    def _settings(self, guidance_scale, reference_guidance_scale, num_inference_steps) -> dict:
        """The sampler's settings: those of this pipeline, where none are given."""
        given = {
            "text_guidance": guidance_scale, "steps": num_inference_steps,
            "reference_guidance": guidance_scale if reference_guidance_scale is None else reference_guidance_scale,
        }  # fmt: skip
        given = {name: value for name, value in given.items() if value is not None}
        if given and "student" in self.config.image_settings:
            raise InputError("guidance and steps are built into this student: leave them out")
        settings = {**self.config.image_settings, **given}
        _check_range("guidance_scale", settings["text_guidance"], 0, LARGEST_GUIDANCE)
        _check_range("reference_guidance_scale", settings["reference_guidance"], 0, LARGEST_GUIDANCE)
        _check_range("num_inference_steps", settings["steps"], 1, MOST_STEPS)
        return settings

    def _autocast(self):
        """The context in which parts of a lower precision compute with float32 inputs."""
        dtype = self.denoiser.dtype
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)

    def _write(self, latents, dicom_ids, seed) -> list[str]:
        """Latents (B, C, h, w) => their reports, by the names of their images."""
        if self.prior is None or self._autoencoder is None:
            return [""] * len(latents)
        seeds, settings = [keyed_seed(seed, dicom_id) for dicom_id in dicom_ids], self.config.report_settings
        with self._autocast():
            drawn = self.prior.sample(latents, seeds, **settings["prior"])
            return self._autoencoder.generate(drawn, seeds=seeds, **settings["decoding"])

    def _encode(self, image, seed) -> torch.Tensor:
        """A film => its latents (1, C, h, w), a draw of the posterior."""
        if self.prior is None or self._autoencoder is None:
            raise InputError("this pipeline has no prior, so it writes no reports: take a tree with written reports")
        pixels = _pixels(image, self.config.image_settings["image_size"])
        return draw_latents(self.vae, pixels, seed, _name(image))[None]


def _pixels(image, size) -> torch.Tensor:
    """(3, size, size) in [-1, 1]; InputError for an image that cannot be read."""
    with as_input_error(lambda error: f"{error}: give a chest film", ValueError):
        return read_pixels(image, size, refuse_blank=True)


def _name(image) -> str:
    """The name that an image's random numbers follow from: of a file as in a tree its dicom_id, else ""."""
    return Path(image).stem if isinstance(image, str | Path) else ""


def _check_range(name, value, low, high):
    kind = Real if isinstance(high, float) else Integral
    if not isinstance(value, kind) or not low <= value <= high:
        raise InputError(f"{name} {value!r} is not a {'' if kind is Real else 'whole '}number from {low} to {high}")


def _load_part(folder, library, class_name):
    """A component of a pipeline's folder, by the name of its class."""
    kind = OWN.get(class_name) or getattr(transformers if library == "transformers" else diffusers, class_name)
    return load_strictly(kind, folder) if issubclass(kind, ModelMixin) else kind.from_pretrained(folder)
