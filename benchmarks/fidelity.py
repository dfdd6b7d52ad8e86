"""Where is quality lost, and which guidance costs least? Parts of the image module, each replaced by the truth.

    python -m benchmarks.fidelity --CHECKPOINT demo/runs/clipUViT/best --SPLIT validate

All rows of the table have the same rows of SPLIT, with their prompts, references and seeds:

    real images             as they are: what a perfect module could reach, and the floor of every distance
    through the VAE         encoded and decoded: what the latents keep
    sampled                 for each of VARIANTS, from noise

All are compared with images of the train split, on which the judge is trained as well.

Reads:  CHECKPOINT (of either backbone), DATA_ROOT, the frozen encoders that the checkpoint names
Writes: OUTPUT/fidelity.png (the first 16 images of each row), benchmarks/results/RECORD.json
Prints: the table: network calls an image; FID, KID, recall and coverage for each of FEATURES; AUROC of the requested
        findings with its 95 % interval; MS-SSIM of images with the same findings (lower: more diverse)
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.record import write_record
from evaluation.judges import JudgeSettings, extract, image_judge, images_to_pixels, load_extractor, pixel_reader
from evaluation.metrics import auroc_table, diversity, feature_distances, label_set_pairs, positives
from evaluation.report import markdown
from models.diffusion import ALL_NOISE, PromptedDenoiser
from sampling.images import ImageSampler, check_settings
from sampling.plan import label_vectors, plan_requests, real_rows
from sampling.reference_pool import ReferencePool
from utils.checkpoints import read_training
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import InputError, replacing, run, say, writing
from utils.latents import (
    decode_latents,
    encode_moments,
    load_vae,
    mean_latents,
    read_grey,
    read_pixels,
)
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.seeds import draw_rows

CHECKPOINT = "demo/runs/clipUViT/best"  # of either denoiser
DATA_ROOT = ""  # the CXR tree; empty: the one trained on
OUTPUT = "demo/fidelity"  # folder of the picture (a folder to write)
RECORD = "fidelity"  # name of the table under benchmarks/results
SPLIT = "validate"  # whose rows (train, validate or test)
IMAGES = 0  # rows at most, drawn at random (0 or more; 0: all)
COMPARED = 2000  # images of the train split at most that they are compared with (2 or more)
VARIANTS = (  # condition, guidance, and its lowest and highest noise level where it has limits
    "text 1", "reference 1", "both 1", "both 2", "both 3.5", "both 3.5 0.3 5"
)  # fmt: skip
SCHEDULER = "DPMSolverMultistep"  # of all rows
STEPS = 25  # denoising steps (1 to 1000)
BATCH_SIZE = 32  # images at a time (1 to 65536)
CACHE_DIR = "demo/cache"  # of the judge, pixels and references (a folder to write)
JUDGE_MODEL = "test_resnet"  # any timm classifier
JUDGE_IMAGE_SIZE = 64  # pixels (32 to 4096)
JUDGE_STEPS = 300  # optimiser steps (1 to 1000000)
JUDGE_LEARNING_RATE = 5e-3  # of AdamW (above 0, 1 at most)
FEATURES = ("judge",)  # whose features (each judge, imagenet, inception, torchxrayvision or rad-dino)
SEED = 1234  # of noise, references, draws and the judge (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
PRECISION = "no"  # of the arithmetic (auto, no, bf16 or fp16)
NUM_WORKERS = 0  # threads that decode images (0 to 256)

_NEIGHBOURS = 5  # of recall and coverage
_DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM
_PICTURED = 16  # images of each row in the picture


class Module:
    """The image module of a checkpoint, and the real rows of one split that every row of the table is made for."""

    def __init__(self, constants: dict, accelerator: Accelerator):
        """constants: of this script."""
        checkpoint, seed = constants["CHECKPOINT"], constants["SEED"]
        self.batch_size, self.accelerator = constants["BATCH_SIZE"], accelerator
        device = accelerator.device
        self.model = PromptedDenoiser.from_pretrained(checkpoint).to(device).eval()
        trained = read_training(checkpoint)["constants"]
        self.image_size = trained["IMAGE_SIZE"]
        self.vae = load_vae(trained["BASE_MODEL"], device)
        pooled = type(self.model.denoiser).__name__ == "UViT"
        self.text_encoder = TextEncoder(trained["BASE_MODEL"], pooled, device, trained["TEXT_ENCODER"])
        self.table = real_rows(trained, constants["DATA_ROOT"], "", with_prompts=True)
        self.pool = ReferencePool(
            self.table, ReferenceEncoder(trained["REFERENCE_ENCODER"], device), self.model.fusion,
            constants["CACHE_DIR"], self.batch_size, accelerator,
        )  # fmt: skip
        self.settings = {
            "steps": constants["STEPS"], "scheduler": constants["SCHEDULER"], "checkpoint_sha256": "",
            "image_size": self.image_size,
        }  # fmt: skip
        vectors = label_vectors(
            self.table, seed, trained["PROMPT"], split=constants["SPLIT"], limit=constants["IMAGES"]
        )
        settings = {**self.settings, **guidance_settings("both 1")}
        self.requests, _ = plan_requests(vectors, 1, self.pool, settings, "", seed, "")
        self.pool.prepare(self.requests["reference_dicom_id"])
        self.rows = self.table.set_index("dicom_id").loc[self.requests["source"]].reset_index()

    def sample(self, variant: str) -> tuple[np.ndarray, float]:
        """Images (N, S, S) uint8 and network calls an image."""
        settings = {**self.settings, **guidance_settings(variant)}
        check_settings(settings, self.model.schedule)
        sampler = ImageSampler(self.model, self.vae, self.text_encoder, settings, self.pool, self.accelerator)
        images, calls = [], []
        counter = self.model.register_forward_hook(lambda model, inputs, output: calls.append(len(output)))
        for start in range(0, len(self.requests), self.batch_size):
            batch = self.requests.iloc[start : start + self.batch_size]
            images.append(sampler.decode(sampler.draw(batch)))
        counter.remove()
        return np.concatenate(images), sum(calls) / len(self.requests)

    def through_the_vae(self) -> np.ndarray:
        """The real images, encoded and decoded: (N, S, S) uint8."""
        starts = range(0, len(self.rows), self.batch_size)
        return np.concatenate([decode_latents(self.vae, self._true_latents(start)) for start in starts])

    def read(self, table: pd.DataFrame) -> np.ndarray:
        """The real images of a table at the module's size, (N, S, S) uint8."""
        return np.stack([read_grey(path, self.image_size) for path in table["image_path"]])

    def _true_latents(self, start):
        """The posterior's mean for the batch of real images that begins at `start`, (B, C, h, w), unit variance."""
        paths = self.rows["image_path"].iloc[start : start + self.batch_size]
        moments = encode_moments(self.vae, torch.stack([read_pixels(path, self.image_size) for path in paths]))
        return mean_latents(moments, self.vae.config.scaling_factor)


def guidance_settings(variant: str) -> dict:
    """A variant such as "both 3.5 0.3 5" as the settings of a sampler."""
    words = variant.split()
    try:
        guidance, low, high = [*map(float, words[1:]), *(0.0, ALL_NOISE)[: 4 - len(words)]]
    except ValueError as error:
        raise InputError(
            f"{variant!r} of VARIANTS is no condition, guidance, lowest and highest noise level"
        ) from error
    return {
        "condition": words[0], "text_guidance": guidance, "reference_guidance": guidance, "guidance_low": low,
        "guidance_high": high,
    }  # fmt: skip


class Measures:
    """The columns of the table, for images of the module's rows."""

    def __init__(self, module: Module, constants: dict):
        """constants: of this script."""
        self.seed, self.batch_size = constants["SEED"], constants["BATCH_SIZE"]
        self.device, self.threads = module.accelerator.device, constants["NUM_WORKERS"]
        train, validation = (module.table[module.table["split"] == split] for split in ("train", "validate"))
        train, validation = train.reset_index(drop=True), validation.reset_index(drop=True)
        settings = JudgeSettings(
            constants["JUDGE_MODEL"], constants["JUDGE_IMAGE_SIZE"], constants["JUDGE_STEPS"],
            learning_rate=constants["JUDGE_LEARNING_RATE"], seed=self.seed,
        )  # fmt: skip
        self.judge = image_judge(train, validation, settings, constants["CACHE_DIR"], module.accelerator, self.threads)
        compared = module.read(train.iloc[draw_rows(len(train), constants["COMPARED"], self.seed, "compared")])
        self.features_of_truth = []  # (extractor, its features of the compared images)
        for name in constants["FEATURES"]:
            extractor = self.judge if name == "judge" else load_extractor(name, self.device)
            self.features_of_truth.append((extractor, self._extract(extractor, compared)[0]))
        self.requested = positives(module.rows)
        (self.pairs,) = label_set_pairs([module.rows], _DIVERSITY_PAIRS, self.seed)

    def row(self, name: str, images: np.ndarray, calls: float = 0) -> dict:
        """{column: value}; calls: of the network, an image."""
        features, probabilities = self._extract(self.judge, images)
        row = {"images": name, "calls": round(calls, 1)}
        for extractor, true in self.features_of_truth:
            own = features if extractor is self.judge else self._extract(extractor, images)[0]
            suffix = "" if extractor is self.judge else f", {extractor.name}"
            distances = feature_distances(true, own, _NEIGHBOURS, self.seed)
            row |= {f"{measure}{suffix}": distances[measure] for measure in ("FID", "KID", "recall", "coverage")}
        mean = auroc_table(self.requested, probabilities, self.judge.known, seed=self.seed).loc["mean"]
        row["AUROC"] = f"{mean['auroc']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
        row["MS-SSIM"] = diversity(pixel_reader(images, range(len(images))), self.pairs)
        return row

    def _extract(self, extractor, images):
        def read(row):
            return images_to_pixels(images[row : row + 1], extractor.image_size)[0]

        return extract(extractor, read, len(images), self.device, self.batch_size, self.threads)


def main():
    constants = override_constants(globals())
    module = Module(constants, make_accelerator(DEVICE, PRECISION))
    measures = Measures(module, constants)
    rows, pictures = [], []

    def add(name, images, calls=0):
        rows.append(measures.row(name, images, calls))
        pictures.append(np.concatenate(list(images[:_PICTURED]), axis=1))
        say(" ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in rows[-1].values()))

    add("real images", module.read(module.rows))
    add("through the VAE", module.through_the_vae())
    for variant in VARIANTS:
        add(f"sampled, {variant}", *module.sample(variant))
    with writing("the picture", OUTPUT), replacing(Path(OUTPUT) / "fidelity.png") as temporary:
        Image.fromarray(np.concatenate(pictures)).save(temporary, format="PNG")
    title = f"Image module {CHECKPOINT}: {len(module.rows)} images of the split {SPLIT}"
    write_record(
        RECORD, title, list(rows[0]), [list(row.values()) for row in rows], constants, device=module.accelerator.device
    )
    print(markdown(pd.DataFrame(rows)))


if __name__ == "__main__":
    run(main)
