"""Where is quality lost, and which guidance costs least of it? The parts of the image module, one at a time by the truth.

    python -m benchmarks.fidelity --CHECKPOINT demo/runs/clipUViT/best --SPLIT validate
    python -m benchmarks.fidelity --CHECKPOINT runs/clipUViT/best --JUDGE_MODEL resnet18 --JUDGE_STEPS 8000

The same rows of SPLIT, their prompts, references and seeds, in every line of the table:

    real images             as they are: what a perfect module could reach, and the floor of every distance
    through the VAE         encoded and decoded: what the latents keep
    sampled                 for each of VARIANTS

All are compared with images of the train split, at the same size, IMAGE_SIZE of the checkpoint; on that split the judge is
trained as well, so the first line is no 0.

Reads:  CHECKPOINT (of either backbone), DATA_ROOT, the frozen encoders that the checkpoint names
Writes: OUTPUT/fidelity.md, fidelity.png (the first 16 rows of each line, none chosen)
Prints: the table: network calls an image; FID, KID, recall and coverage in each of FEATURES; AUROC of the asked findings with
        its 95 % interval; MS-SSIM of images with the same findings (lower: more diverse)
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from evaluation.judges import (
    JudgeSettings,
    extract,
    image_judge,
    images_to_pixels,
    load_extractor,
    pixel_reader,
)
from evaluation.metrics import (
    auroc_table,
    diversity,
    feature_distances,
    label_set_pairs,
    positives,
)
from evaluation.report import markdown
from models.diffusion import ALL_NOISE, PromptedDenoiser
from sampling.images import check_settings, draw_batch
from sampling.plan import label_vectors, plan_requests, real_rows
from sampling.reference_pool import ReferencePool
from utils.checkpoints import read_training
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import InputError, replacing, run, say, writing
from utils.latents import (
    decode_in,
    decode_latents,
    encode_moments,
    latent_shape,
    load_vae,
    mean_latents,
    read_grey,
    read_pixels,
)
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.seeds import draw_rows

CHECKPOINT = "demo/runs/clipUViT/best"  # of either denoiser
DATA_ROOT = ""  # the CXR tree; empty: the one trained on
OUTPUT = "demo/fidelity"  # folder of the table and the picture (a folder to write)
SPLIT = "validate"  # whose rows (train, validate or test)
IMAGES = 0  # rows at most, drawn at random (0 or more; 0: all)
COMPARED = 2000  # images of the train split at most that they are compared with (2 or more)
VARIANTS = (  # condition, guidance, where less than all its lowest and highest noise level
    "text 1", "reference 1", "both 1", "both 2", "both 3.5", "both 3.5 0.3 5"
)  # fmt: skip
SCHEDULER = "DPMSolverMultistep"  # of all lines
STEPS = 25  # denoising steps (1 to 1000)
BATCH_SIZE = 32  # images at a time (1 to 65536)
CACHE_DIR = "demo/cache"  # of the judge, pixels and references (a folder to write)
JUDGE_MODEL = "test_resnet"  # any timm classifier
JUDGE_IMAGE_SIZE = 64  # pixels (32 to 4096)
JUDGE_STEPS = 300  # optimiser steps (1 to 1000000)
JUDGE_LEARNING_RATE = 5e-3  # of AdamW (above 0, 1 at most)
FEATURES = ("judge",)  # whose features (each judge, imagenet, inception, torchxrayvision or rad-dino)
NEIGHBOURS = 5  # of recall and coverage (1 or more)
DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM (0 to 1000000)
SEED = 1234  # of noise, references, draws and the judge (0 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
PRECISION = "no"  # of the arithmetic (auto, no, bf16 or fp16)
NUM_WORKERS = 0  # threads that decode images (0 to 256)

_PICTURED = 16  # images of each line in the picture


class Module:
    """The image module of a checkpoint, on the rows of one split: `images` of any line of the table."""

    def __init__(
        self, model, trained, table, split, count, cache_dir, scheduler, steps, batch_size, threads, seed, accelerator
    ):
        """model: PromptedDenoiser; trained: the constants of its training; table: the real rows of all splits."""
        self.accelerator, self.batch_size = accelerator, batch_size
        device = accelerator.device
        self.model = model.to(device).eval()
        self.vae = load_vae(trained["BASE_MODEL"], device)
        decode_in(self.vae, accelerator.mixed_precision)
        pooled = type(self.model.denoiser).__name__ == "UViT"
        self.text_encoder = TextEncoder(trained["BASE_MODEL"], pooled, device, trained["TEXT_ENCODER"])
        encoder = ReferenceEncoder(trained["REFERENCE_ENCODER"], device)
        self.pool = ReferencePool(table, encoder, self.model.fusion, cache_dir, batch_size, threads, accelerator)
        self.image_size = trained["IMAGE_SIZE"]
        self.settings = {"steps": steps, "scheduler": scheduler, "checkpoint_sha256": ""}
        self.shape = latent_shape(self.vae, self.image_size)
        vectors = label_vectors("", "", table, split, count, seed, prompt=trained["PROMPT"])
        settings = {**self.settings, **_guidance("both 1")}
        requests, _ = plan_requests(vectors, 1, self.pool, settings, "", seed, "")
        self.pool.prepare(requests.reference_dicom_id)
        self.requests = requests
        self.rows = table.set_index("dicom_id").loc[requests.source].reset_index()  # the real images of the requests

    def images(self, variant):
        """Images (N, S, S) uint8 and network calls an image."""
        settings = {**self.settings, **_guidance(variant)}
        check_settings(settings, self.model.schedule)
        calls = []
        hook = self.model.register_forward_hook(lambda model, inputs, output: calls.append(len(output)))
        made = []
        for start in range(0, len(self.requests), self.batch_size):
            batch = self.requests.iloc[start : start + self.batch_size]
            latents = draw_batch(
                batch, settings, self.model, self.text_encoder, self.pool, self.shape, self.accelerator
            )
            made.append(decode_latents(self.vae, latents))
        hook.remove()
        return np.concatenate(made), sum(calls) / len(self.requests)

    def latents(self, start):
        """The true latents of one batch of rows, the posterior's mean, (B, C, h, w) at unit variance."""
        paths = self.rows["image_path"].iloc[start : start + self.batch_size]
        moments = encode_moments(self.vae, torch.stack([read_pixels(path, self.image_size) for path in paths]))
        return mean_latents(moments, self.vae.config.scaling_factor)

    def through_the_vae(self):
        starts = range(0, len(self.rows), self.batch_size)
        return np.concatenate([decode_latents(self.vae, self.latents(start)) for start in starts])


def _guidance(variant):
    """ "both 3.5 0.3 5" => the settings of a sampler."""
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


def main():
    override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    model, trained = PromptedDenoiser.from_pretrained(CHECKPOINT), read_training(CHECKPOINT)["constants"]
    table = real_rows(trained, DATA_ROOT, "", with_prompts=True)
    train, validation = (table[table.split == split].reset_index(drop=True) for split in ("train", "validate"))
    settings = JudgeSettings(JUDGE_MODEL, JUDGE_IMAGE_SIZE, JUDGE_STEPS, learning_rate=JUDGE_LEARNING_RATE, seed=SEED)
    judge = image_judge(train, validation, settings, CACHE_DIR, accelerator, NUM_WORKERS)
    compared = train.iloc[draw_rows(len(train), COMPARED, SEED, "compared")]
    module = Module(
        model, trained, table, SPLIT, IMAGES, CACHE_DIR, SCHEDULER, STEPS, BATCH_SIZE, NUM_WORKERS, SEED, accelerator
    )

    def small(rows):
        return np.stack([read_grey(path, module.image_size) for path in rows.image_path])

    def see(extractor, images):
        def read(row):
            return images_to_pixels(images[row : row + 1], extractor.image_size)[0]

        return extract(extractor, read, len(images), accelerator.device, BATCH_SIZE, NUM_WORKERS)

    extractors = [judge if name == "judge" else load_extractor(name, accelerator.device) for name in FEATURES]
    truth = small(compared)
    truths = [(extractor, see(extractor, truth)[0]) for extractor in extractors]
    asked, (alike,) = positives(module.rows), label_set_pairs([module.rows], DIVERSITY_PAIRS, SEED)
    lines, pictures = [], []

    def line(name, images, calls=0):
        judged = see(judge, images)
        mean = auroc_table(asked, judged[1], judge.known, seed=SEED).loc["mean"]
        lines.append({"images": name, "calls": f"{calls:.1f}"})
        for extractor, true in truths:
            features, _ = judged if extractor is judge else see(extractor, images)
            whose = "" if extractor is judge else f", {extractor.name}"
            found = feature_distances(true, features, NEIGHBOURS, SEED)
            lines[-1] |= {f"{measure}{whose}": found[measure] for measure in ("FID", "KID", "recall", "coverage")}
        lines[-1] |= {
            "AUROC": f"{mean.auroc:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
            "MS-SSIM": diversity(pixel_reader(images, range(len(images))), alike),
        }
        pictures.append(np.concatenate(list(images[:_PICTURED]), axis=1))
        say(" ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in lines[-1].values()))

    line("real images", small(module.rows))
    line("through the VAE", module.through_the_vae())
    for variant in VARIANTS:
        line(f"sampled, {variant}", *module.images(variant))
    text = markdown(pd.DataFrame(lines))
    with writing("the table", OUTPUT):
        Path(OUTPUT).mkdir(parents=True, exist_ok=True)
        (Path(OUTPUT) / "fidelity.md").write_text(text + "\n", encoding="utf-8")
        with replacing(Path(OUTPUT) / "fidelity.png") as temporary:
            Image.fromarray(np.concatenate(pictures)).save(temporary, format="PNG")
    print(text)


if __name__ == "__main__":
    run(main)
