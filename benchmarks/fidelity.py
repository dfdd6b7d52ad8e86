"""Where is quality lost, and which guidance costs least? Parts of the image module, each replaced by the truth.

    python -m benchmarks.fidelity --CHECKPOINT demo/runs/clipUViT/best --SPLIT validate

Each row of the table has the same rows of SPLIT, with their prompts, references and seeds: the real images as they
are; through the VAE, encoded and decoded; and sampled, for each of VARIANTS. All are compared with images of the train
split, on which the judge is trained as well.

Reads:  CHECKPOINT (of either backbone), DATA_ROOT, the frozen encoders that the checkpoint names
Writes: OUTPUT/fidelity.png (the first 16 images of each row), benchmarks/results/RECORD.json
Prints: the table: network calls an image; FID, KID, recall and coverage in the judge's features; AUROC of the requested
        findings with its 95 % interval; MS-SSIM of images with the same findings (lower: more diverse)
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.record import write_record
from evaluation.judges import JudgeSettings, extract, image_judge, images_to_pixels, pixel_reader
from evaluation.metrics import auroc_table, diversity, feature_distances, label_set_pairs, positives
from models.diffusion import ALL_NOISE, PromptedDenoiser
from sampling.images import ImageSampler, check_settings
from sampling.plan import label_vectors, plan_requests, real_rows
from sampling.reference_pool import ReferencePool
from utils.checkpoints import read_training
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import InputError, replacing, run, say, writing
from utils.latents import decode_latents, encode_moments, load_vae, mean_latents, read_grey, read_pixels
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.seeds import draw_rows

CHECKPOINT = "demo/runs/clipUViT/best"  # of either denoiser
DATA_ROOT = ""  # the CXR tree; empty: the one trained on
OUTPUT = "demo/fidelity"  # folder of the picture (a folder to write)
RECORD = "fidelity"  # name of the table under benchmarks/results
SPLIT = "validate"  # whose rows (train, validate or test)
IMAGES = 0  # rows at most, drawn at random (0 or more; 0: all)
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
SEED = 1234  # of noise, references, draws and the judge (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)

_COMPARED = 2000  # images of the train split at most that all rows are compared with
_NEIGHBOURS = 5  # of recall and coverage
_DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM
_PICTURED = 16  # images of each row in the picture


def load_sampler(constants: dict, accelerator: Accelerator) -> tuple[ImageSampler, pd.DataFrame, pd.DataFrame]:
    """CHECKPOINT's sampler, the rows of its tree, and the requests of SPLIT: a row each, with its real image's id."""
    checkpoint, seed, batch_size = constants["CHECKPOINT"], constants["SEED"], constants["BATCH_SIZE"]
    model = PromptedDenoiser.from_pretrained(checkpoint).to(accelerator.device).eval()
    trained = read_training(checkpoint)["constants"]
    vae = load_vae(trained["BASE_MODEL"], accelerator.device)
    pooled = type(model.denoiser).__name__ == "UViT"
    texts = TextEncoder(trained["BASE_MODEL"], pooled, accelerator.device, trained["TEXT_ENCODER"])
    references = ReferenceEncoder(trained["REFERENCE_ENCODER"], accelerator.device)
    table = real_rows(trained, constants["DATA_ROOT"], "", with_prompts=True)
    pool = ReferencePool(table, references, model.fusion, constants["CACHE_DIR"], batch_size, accelerator)
    settings = {
        "steps": constants["STEPS"], "scheduler": constants["SCHEDULER"], "checkpoint_sha256": "",
        "image_size": trained["IMAGE_SIZE"], **guidance_settings("both 1"),
    }  # fmt: skip
    vectors = label_vectors(table, seed, trained["PROMPT"], split=constants["SPLIT"], limit=constants["IMAGES"])
    requests, _ = plan_requests(vectors, 1, pool, settings, "", seed, "")
    pool.prepare(requests["reference_dicom_id"])
    return ImageSampler(model, vae, texts, settings, pool, accelerator), table, requests


def guidance_settings(variant: str) -> dict:
    """A variant such as "both 3.5 0.3 5" as the settings of a sampler."""
    condition, *numbers = (*variant.split(), 0.0, ALL_NOISE)[:4]
    try:
        guidance, low, high = map(float, numbers)
    except ValueError as error:
        raise InputError(f"VARIANTS {variant!r}: write condition, guidance, lowest and highest noise level") from error
    guidances = dict.fromkeys(("text_guidance", "reference_guidance"), guidance)
    return {"condition": condition, **guidances, "guidance_low": low, "guidance_high": high}


def sample(sampler: ImageSampler, variant: str, batches: list[pd.DataFrame]) -> tuple[np.ndarray, float]:
    """Images (N, S, S) uint8 of requests, and network calls an image."""
    sampler = replace(sampler, settings={**sampler.settings, **guidance_settings(variant)})
    check_settings(sampler.settings, sampler.denoiser.schedule)
    calls = []
    counter = sampler.denoiser.register_forward_hook(lambda model, inputs, output: calls.append(len(output)))
    images = np.concatenate([sampler.decode(sampler.draw(batch)) for batch in batches])
    counter.remove()
    return images, sum(calls) / len(images)


def through_the_vae(vae: AutoencoderKL, paths: pd.Series, image_size: int) -> np.ndarray:
    """Images (B, S, S) uint8 of files, encoded to the posterior's mean and decoded."""
    moments = encode_moments(vae, torch.stack([read_pixels(path, image_size) for path in paths]))
    return decode_latents(vae, mean_latents(moments, vae.config.scaling_factor))


def read_images(paths: pd.Series, image_size: int) -> np.ndarray:
    """Images (N, S, S) uint8 of files."""
    return np.stack([read_grey(path, image_size) for path in paths])


class Measures:
    """The columns of the table, for images of the same real rows."""

    def __init__(self, table: pd.DataFrame, rows: pd.DataFrame, size: int, constants: dict, accelerator: Accelerator):
        """table: the judge's training and validation rows; size: of the images, pixels; constants: of this script."""
        train, validation = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "validate"))
        settings = JudgeSettings(
            constants["JUDGE_MODEL"], constants["JUDGE_IMAGE_SIZE"], constants["JUDGE_STEPS"], seed=constants["SEED"]
        )
        self.judge = image_judge(train, validation, settings, constants["CACHE_DIR"], accelerator)
        self.seed, self.batch_size, self.device = constants["SEED"], constants["BATCH_SIZE"], accelerator.device
        compared = train["image_path"].iloc[draw_rows(len(train), _COMPARED, self.seed, "compared")]
        self.true_features, _ = self._judge(read_images(compared, size))
        self.requested = positives(rows)
        (self.pairs,) = label_set_pairs([rows], _DIVERSITY_PAIRS, self.seed)

    def row(self, name: str, images: np.ndarray, calls: float) -> dict:
        """{column: value} of images (N, S, S) uint8; calls: of the network, an image."""
        features, probabilities = self._judge(images)
        distances = feature_distances(self.true_features, features, _NEIGHBOURS, self.seed)
        mean = auroc_table(self.requested, probabilities, self.judge.known, seed=self.seed).loc["mean"]
        return {
            "images": name,
            "calls": round(calls, 1),
            **{measure: distances[measure] for measure in ("FID", "KID", "recall", "coverage")},
            "AUROC": f"{mean['auroc']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]",
            "MS-SSIM": diversity(pixel_reader(images, range(len(images))), self.pairs),
        }

    def _judge(self, images):
        """Features and probabilities of images (N, S, S) uint8."""

        def read(row):
            return images_to_pixels(images[row : row + 1], self.judge.image_size)[0]

        return extract(self.judge, read, len(images), self.device, self.batch_size)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    sampler, table, requests = load_sampler(constants, accelerator)
    rows, size = table.set_index("dicom_id").loc[requests["source"]].reset_index(), sampler.settings["image_size"]
    measures = Measures(table, rows, size, constants, accelerator)
    batches = [requests.iloc[start : start + BATCH_SIZE] for start in range(0, len(requests), BATCH_SIZE)]
    paths = [rows["image_path"].iloc[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
    results, pictures = [], []

    def add(name, images, calls=0):
        results.append(measures.row(name, images, calls))
        pictures.append(np.concatenate(list(images[:_PICTURED]), axis=1))
        say(f"measured: {name}")

    add("real images", read_images(rows["image_path"], size))
    add("through the VAE", np.concatenate([through_the_vae(sampler.vae, batch, size) for batch in paths]))
    for variant in VARIANTS:
        add(f"sampled, {variant}", *sample(sampler, variant, batches))
    with writing("the picture", OUTPUT), replacing(Path(OUTPUT) / "fidelity.png") as temporary:
        Image.fromarray(np.concatenate(pictures)).save(temporary, format="PNG")
    title = f"Image module {CHECKPOINT}: {len(rows)} images of the split {SPLIT}"
    write_record(RECORD, title, pd.DataFrame(results), constants, device=accelerator.device)


if __name__ == "__main__":
    run(main)
