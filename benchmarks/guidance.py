"""Do the images show what was asked, and which part of the prompt does it? AUROC for several guidances and conditions.

    python -m benchmarks.guidance --CONFIG demo.toml                                          # the U-ViT of the demo
    python -m benchmarks.guidance --CONFIG demo.toml --SCRIPT sample_diffusion_clipSD

Reads:  CONFIG, the checkpoint that it names for SCRIPT, DATA_ROOT (its train split trains the judge)
Writes: OUTPUT/<condition>-<guidance>, a synthetic tree each; OUTPUT/guidance.md
Prints: the judge's mean AUROC of the asked findings, for each of VARIANTS, for the same label vectors and seeds, and on
        real test images as they are and as the VAE gives them back (what the best sampler could reach)
"""

import subprocess
import sys
from pathlib import Path

import torch

from utils import constants, mimic_cxr
from utils.constants import override_constants
from utils.errors import InputError, run
from utils.judges import JudgeSettings, extract, file_reader, image_judge
from utils.latents import decode_latents, encode_moments, load_vae, read_pixels
from utils.metrics import auroc_table, positives
from utils.training import make_accelerator

CONFIG = "demo.toml"  # the constants of SCRIPT
SCRIPT = "sample_diffusion_clipUViT"  # the sampler (sample_diffusion_clipSD or sample_diffusion_clipUViT)
OUTPUT = "demo/guidance"  # folder of the trees and of the table (a folder to write)
VARIANTS = ("both 1.0", "both 3.5", "text 3.5", "reference 3.5")  # condition and guidance
DATA_ROOT = "demo/phantom"  # real images: train for the judge, test to compare with
BASE_MODEL = "assets/demo/base_model"  # whose vae
IMAGE_SIZE = 64  # pixels (32 to 4096)
CACHE_DIR = "demo/cache"  # of the judge (a folder to write)
JUDGE_MODEL = "test_resnet"  # any timm classifier
JUDGE_STEPS = 300  # optimiser steps (1 to 1000000)
JUDGE_LEARNING_RATE = 5e-3  # of AdamW (above 0, 1 at most)
SEED = 1234  # of the judge (0 or more)


def main():
    override_constants(globals())
    accelerator = make_accelerator("cpu", "no")
    table = mimic_cxr.read_table(DATA_ROOT, with_reports=False)
    train, validation, test = (table[table.split == split] for split in mimic_cxr.SPLITS)
    settings = JudgeSettings(JUDGE_MODEL, IMAGE_SIZE, JUDGE_STEPS, learning_rate=JUDGE_LEARNING_RATE, seed=SEED)
    judge = image_judge(train, validation, settings, CACHE_DIR, accelerator)

    def score(rows, read):
        _, probabilities = extract(judge, read, len(rows), "cpu")
        mean = auroc_table(positives(rows), probabilities, judge.known).loc["mean"]
        return f"{mean.auroc:.3f} [{mean.low:.3f}, {mean.high:.3f}]"

    vae = load_vae(BASE_MODEL)

    def through_the_vae(row):
        moments = encode_moments(vae, read_pixels(test.image_path.iloc[row], IMAGE_SIZE)[None])
        image = decode_latents(vae, moments.chunk(2, dim=1)[0] * vae.config.scaling_factor)
        return torch.from_numpy(image).float().div(127.5).sub(1)

    scores = {
        "real test images": score(test, file_reader(test.image_path.tolist(), IMAGE_SIZE)),
        "the same, through the VAE": score(test, through_the_vae),
    }
    for variant in VARIANTS:
        condition, guidance = variant.split()
        root = Path(OUTPUT) / variant.replace(" ", "-")
        command = [sys.executable, f"{SCRIPT}.py", "--config", CONFIG, "--OUTPUT_ROOT", str(root)]
        command += ["--CONDITION", condition, "--TEXT_GUIDANCE", guidance, "--REFERENCE_GUIDANCE", guidance]
        if subprocess.run(command, cwd=constants.REPOSITORY).returncode:
            raise InputError(f"{SCRIPT}.py failed, see above")
        made = mimic_cxr.read_table(root, with_reports=False)
        scores[f"{condition}, guidance {guidance}"] = score(made, file_reader(made.image_path.tolist(), IMAGE_SIZE))
    lines = ["| images | mean AUROC [95 %] |", "| --- | --- |"]
    text = "\n".join(lines + [f"| {name} | {value} |" for name, value in scores.items()])
    (Path(OUTPUT) / "guidance.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    run(main)
