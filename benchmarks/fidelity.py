"""Where is quality lost, and which guidance costs least? Parts of the image module, each replaced by the truth.

    python -m benchmarks.fidelity --CHECKPOINT demo/runs/clipUViT/best --SPLIT validate

Each row of the table has the same rows of SPLIT, with their prompts, references and seeds: the real images as they
are; through the VAE, encoded and decoded; and sampled, for each of VARIANTS. All are compared with images of the train
split, on which the judge is trained as well, by the measures of evaluate_pairs.py.

Reads:  CHECKPOINT (of either backbone), DATA_ROOT, the frozen encoders that the checkpoint names
Writes: benchmarks/results/RECORD.json
Prints: the table: network calls an image; FID, KID, recall and coverage in the judge's features; AUROC of the requested
        findings with its 95 % interval; MS-SSIM of images with the same findings (lower: more diverse)
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from benchmarks.record import write_record
from evaluation.judges import JudgeSettings, extract, image_judge, images_to_pixels, pixel_reader
from evaluation.metrics import auroc_table, diversity, feature_distances, label_set_pairs, positives
from evaluation.sections import DIVERSITY_PAIRS, NEIGHBOURS
from models.diffusion import ALL_NOISE, PromptedDenoiser
from sampling.images import ImageSampler
from sampling.plan import label_vectors, plan_requests, real_rows
from sampling.reference_pool import ReferencePool
from utils.checkpoints import read_training
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import InputError, run, say
from utils.latents import encode_moments, load_vae, mean_latents, read_grey, read_pixels
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.seeds import draw_rows

CHECKPOINT = "demo/runs/clipUViT/best"  # of either denoiser
DATA_ROOT = ""  # the CXR tree; empty: the one trained on
RECORD = "fidelity"  # name of the table under benchmarks/results
SPLIT = "validate"  # whose rows (train, validate or test)
# condition, guidance, and its lowest and highest noise level where it has limits
VARIANTS = ("text 1", "reference 1", "both 1", "both 2", "both 3.5", "both 3.5 0.3 5")
STEPS = 25  # denoising steps of DPM-Solver++ (1 to 1000)
BATCH_SIZE = 32  # images at a time (1 to 65536)
CACHE_DIR = "demo/cache"  # of the judge, pixels and references (a folder to write)
JUDGE_STEPS = 300  # optimiser steps (1 to 1000000)
SEED = 1234  # of noise, references, draws and the judge (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)

_COMPARED = 2000  # images of the train split at most that all rows are compared with


def load_sampler(constants: dict, accelerator: Accelerator) -> tuple[ImageSampler, pd.DataFrame, pd.DataFrame]:
    """CHECKPOINT's sampler, the rows of its tree, and the requests of SPLIT: a row each, with its real image's id."""
    checkpoint, seed, device = constants["CHECKPOINT"], constants["SEED"], accelerator.device
    model = PromptedDenoiser.from_pretrained(checkpoint).to(device).eval()
    trained, pooled = read_training(checkpoint)["constants"], type(model.denoiser).__name__ == "UViT"
    texts = TextEncoder(trained["BASE_MODEL"], pooled, device, trained["TEXT_ENCODER"])
    references = ReferenceEncoder(trained["REFERENCE_ENCODER"], device)
    table = real_rows(trained, constants["DATA_ROOT"], "", with_prompts=True)
    pool = ReferencePool(table, references, model.fusion, constants["CACHE_DIR"], constants["BATCH_SIZE"], accelerator)
    settings = {"steps": constants["STEPS"], "scheduler": "DPMSolverMultistep", "image_size": trained["IMAGE_SIZE"]}
    vectors = label_vectors(table, seed, trained["PROMPT"], split=constants["SPLIT"])
    requests, _ = plan_requests(vectors, 1, pool, {"checkpoint_sha256": ""}, "", seed, "")
    pool.prepare(requests["reference_dicom_id"])
    vae = load_vae(trained["BASE_MODEL"], device)
    return ImageSampler(model, vae, texts, settings, pool, accelerator), table, requests


def sample(sampler: ImageSampler, variant: str, batches: list[pd.DataFrame]) -> tuple[np.ndarray, float]:
    """Images (N, S, S) uint8 of requests, and network calls an image. variant: such as "both 3.5 0.3 5"."""
    condition, *numbers = (*variant.split(), 0.0, ALL_NOISE)[:4]
    try:
        guidance, low, high = map(float, numbers)
    except ValueError as error:
        raise InputError(f"VARIANTS {variant!r}: write condition, guidance, lowest and highest noise level") from error
    settings = sampler.settings | {"condition": condition, "guidance_low": low, "guidance_high": high}
    settings |= dict.fromkeys(("text_guidance", "reference_guidance"), guidance)
    sampler, calls = replace(sampler, settings=settings), []
    counter = sampler.denoiser.register_forward_hook(lambda model, inputs, output: calls.append(len(output)))
    images = np.concatenate([sampler.decode(sampler.draw(batch)) for batch in batches])
    counter.remove()
    return images, sum(calls) / len(images)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, "no")
    sampler, table, requests = load_sampler(constants, accelerator)
    rows, size = table.set_index("dicom_id").loc[requests["source"]].reset_index(), sampler.settings["image_size"]
    train, validation = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "validate"))
    settings = JudgeSettings("test_resnet", steps=JUDGE_STEPS, seed=SEED)
    judge = image_judge(train, validation, settings, CACHE_DIR, accelerator)
    (pairs,) = label_set_pairs([rows], DIVERSITY_PAIRS, SEED)
    compared = train["image_path"].iloc[draw_rows(len(train), _COMPARED, SEED, "compared")]
    compared, real = (np.stack([read_grey(path, size) for path in paths]) for paths in (compared, rows["image_path"]))
    results = []

    def judged(images):
        pixels = images_to_pixels(images, judge.image_size)
        return extract(judge, lambda row: pixels[row], len(images), accelerator.device)

    def add(name, images, calls=0.0):
        features, probabilities = judged(images)
        distances = feature_distances(real_features, features, NEIGHBOURS, SEED)
        mean = auroc_table(positives(rows), probabilities, judge.known, seed=SEED).loc["mean"]
        measured = {"images": name, "calls": round(calls, 1)}
        measured |= {measure: distances[measure] for measure in ("FID", "KID", "recall", "coverage")}
        measured["AUROC"] = f"{mean['auroc']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
        measured["MS-SSIM"] = diversity(pixel_reader(images, range(len(images))), pairs)
        results.append(measured)
        say(f"measured: {name}")

    def through_the_vae(paths):
        moments = encode_moments(sampler.vae, torch.stack([read_pixels(path, size) for path in paths]))
        return sampler.decode(mean_latents(moments, sampler.vae.config.scaling_factor))

    real_features, _ = judged(compared)
    batches = [slice(start, start + BATCH_SIZE) for start in range(0, len(requests), BATCH_SIZE)]
    add("real images", real)
    add("through the VAE", np.concatenate([through_the_vae(rows["image_path"][batch]) for batch in batches]))
    for variant in VARIANTS:
        add(f"sampled, {variant}", *sample(sampler, variant, [requests[batch] for batch in batches]))
    title = f"Image module {CHECKPOINT}: {len(rows)} images of the split {SPLIT}"
    write_record(RECORD, title, pd.DataFrame(results), constants, device=accelerator.device)


if __name__ == "__main__":
    run(main)
