"""Trains the vision module on a U-ViT: chest X-ray latents, prompted by a fusion of CLIP text and a reference image.

    python train_diffusion_clipUViT.py --DATA_ROOT /data/mimic-cxr-jpg --RUN_DIR runs/clipUViT
    accelerate launch --num_processes 4 train_diffusion_clipUViT.py --config my.toml

Reads:  DATA_ROOT (a CXR tree; for PROMPT impression its reports, too), BASE_MODEL (VAE, text encoder), REFERENCE_ENCODER,
        INITIAL_WEIGHTS (ImageNet's U-ViT), CACHE_DIR (filled on the first run)
Writes: RUN_DIR/{last,best,step-*} (checkpoints), RUN_DIR/{metrics.csv,loss.png,previews,constants.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from functools import partial

import torch
import torch.nn.functional as F

from models.diffusion import (
    PromptedDenoiser,
    noise_schedule,
    training_target,
)
from models.graphs import compiling
from models.weights import start_from
from training.examples import DiffusionExamples, DiffusionFeatures, check_dropout, diffusion_needs, set_aside
from training.loop import fit
from training.preflight import check_training, made_up, split_counts
from training.preview import Preview
from utils.devices import make_accelerator
from utils.errors import run, say
from utils.latents import latent_shape, load_vae
from utils.mimic_cxr import read_table, table_fingerprint
from utils.prompt_text import with_prompts
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder
from uvit.model import UViT

# data
DATA_ROOT = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where its reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p19",)  # patient groups that are never trained on (they count as the split "test")
IMAGE_SIZE = 256  # pixels, the side of the square image (8 to 4096)
CACHE_DIR = "cache"  # where the frozen encoders' features are kept (a folder to write)
ENCODE_BATCH_SIZE = 32  # images at a time through the frozen encoders (1 to 65536)
# frozen encoders
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # folder or hub id: its vae, text_encoder, tokenizer and scheduler
TEXT_ENCODER = ""  # folder or hub id of another CLIP, or a BERT, with its tokenizer; empty: BASE_MODEL's text_encoder
REFERENCE_ENCODER = "ViT-B-32-quickgelu/openai"  # open_clip image tower: architecture/weights, or local-dir:FOLDER
# the denoiser
INITIAL_WEIGHTS = "imagenet256_uvit_large.pth"  # an official U-ViT, a checkpoint folder or authors' .ckpt; "": random
PATCH_SIZE = 2  # latent pixels, the side of a token's patch (1 to 512; has to divide the latents' side)
EMBED_DIM = 1024  # width of a token (2 to 16384; a multiple of NUM_HEADS)
DEPTH = 20  # blocks: half of them in, half out, one in the middle (1 to 256)
NUM_HEADS = 16  # attention heads (1 to 1024)
GRADIENT_CHECKPOINTING = False  # True: less memory, about a third more time
COMPILE = False  # True: torch.compile the denoiser, for a GPU; half a minute before the first step
# the noise and the prompt
PROMPT = "findings"  # what prompts an image (findings or impression; impression: of its own report; paper: findings)
PREDICTION = "epsilon"  # what is predicted (epsilon or v_prediction; v: better from random weights; paper: epsilon)
TIMESTEPS = "uniform"  # how a training timestep is drawn (uniform or logit-normal; paper: uniform)
TIMESTEP_MEAN = -0.7  # of logit-normal ones, whose deviation is 1; below 0: more of little noise (-10 to 10)
DROP_TEXT = 0.05  # probability that an example loses its text (0 to 1; paper: 0, so its guidance was never trained)
DROP_REFERENCE = 0.05  # probability that it loses its reference (0 to 1; paper: 0)
DROP_BOTH = 0.05  # probability that it loses both (0 to 1; paper: 0)
# optimisation
BATCH_SIZE = 32  # images an optimiser step, over all processes (1 to 65536; a multiple of ACCUMULATION)
ACCUMULATION = 1  # passes an optimiser step: more need less memory (1 to 65536)
EPOCHS = 10  # passes over the training rows (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
OPTIMIZER = "adamw"  # of the weights (adamw or muon; muon: half the steps from random weights; paper: adamw)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
WEIGHT_DECAY = 0.01  # of the optimiser (0 or more)
LR_SCHEDULE = "constant_with_warmup"  # of the learning rate (constant_with_warmup, linear or cosine; paper: constant)
WARMUP_STEPS = 500  # optimiser steps of linear warm-up (0 or more; paper: 0)
CLIP_NORM = 1.0  # largest norm of the gradient (0 or more; 0: not clipped, as the paper)
EMA_DECAY = 0.9999  # of the averaged weights, which are the ones sampled (0 or more, below 1; paper: no average)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
SEED = 1234  # of data order, noise, references and dropout (0 or more)
# running
RUN_DIR = "runs/clipUViT"  # checkpoints, metrics and pictures (a folder to write)
CHECK = False  # True: only try what the run needs, and say what would end it
RESUME = True  # go on from RUN_DIR/last where there is one
CHECKPOINT_EVERY = 1000  # optimiser steps between checkpoints, each with validation and preview (1 or more)
KEEP_CHECKPOINTS = 2  # step-* folders that are kept, the newest (0 or more; 0: last and best only)
VALIDATION_ROWS = 512  # validation images a validation (0 or more; 0: all of them)
PREVIEW_STEPS = 25  # denoising steps of the preview pictures (1 to 1000)
PREVIEW_GUIDANCE = 3.0  # text and reference guidance of the preview pictures (0 to 100; 1: none)
LOG_EVERY = 50  # optimiser steps a row of metrics.csv (1 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images, and processes that load batches (0 to 256)


def compute_loss(model, batch, schedule):
    """The mean squared error of the predicted noise (Ho et al. 2020, equation 14) or velocity.

    batch: latents and noise (B, 4, h, w), timesteps (B,), text (B, D), reference (B, R).
    """
    noisy = schedule.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    target = training_target(schedule, batch["latents"], batch["noise"], batch["timesteps"])
    prediction = model(noisy, batch["timesteps"], batch["text"], batch["reference"])
    return F.mse_loss(prediction.float(), target)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device = accelerator.device
    check_dropout(DROP_TEXT, DROP_REFERENCE, DROP_BOTH)

    table = read_table(
        DATA_ROOT, REPORTS_ROOT, VIEWS, ("train", "validate"), HOLD_OUT, with_reports=PROMPT == "impression"
    )
    table = with_prompts(table, PROMPT)
    vae = load_vae(BASE_MODEL, device)
    text_encoder = TextEncoder(BASE_MODEL, pooled=True, device=device, name=TEXT_ENCODER)
    reference_encoder = ReferenceEncoder(REFERENCE_ENCODER, device)

    torch.manual_seed(SEED)  # of the initial weights
    channels, side, _ = latent_shape(vae, IMAGE_SIZE, PATCH_SIZE)
    denoiser = UViT(side, PATCH_SIZE, channels, EMBED_DIM, DEPTH, NUM_HEADS)
    fusion = PooledFusion(text_encoder.width, reference_encoder.width, EMBED_DIM)
    schedule = noise_schedule(BASE_MODEL, PREDICTION)
    model = PromptedDenoiser(denoiser, fusion, schedule)
    if INITIAL_WEIGHTS:
        start_from(model, INITIAL_WEIGHTS)
    if GRADIENT_CHECKPOINTING:
        denoiser.enable_gradient_checkpointing()
    if COMPILE:
        denoiser.compile(**compiling(denoiser, ACCUMULATION, accelerator))

    if CHECK:
        shapes, cache_bytes = diffusion_needs(table, vae, text_encoder, reference_encoder, IMAGE_SIZE)
        loss, make_batch = partial(compute_loss, schedule=schedule), partial(made_up, shapes)
        return check_training(
            model, loss, make_batch, split_counts(table), constants, accelerator, table.image_path, cache_bytes
        )
    features = DiffusionFeatures(
        table, vae, text_encoder, reference_encoder, IMAGE_SIZE, CACHE_DIR, ENCODE_BATCH_SIZE, NUM_WORKERS, accelerator
    )
    set_aside(vae, text_encoder.model, reference_encoder.tower)

    steps = schedule.config.num_train_timesteps
    mean = TIMESTEP_MEAN if TIMESTEPS == "logit-normal" else None
    examples = DiffusionExamples(features, "train", steps, DROP_TEXT, DROP_REFERENCE, DROP_BOTH, mean)
    validation = DiffusionExamples(features, "validate", steps, 0, 0, 0)
    say(f"references of the training rows: {examples.references.count_kinds(examples.table)}")
    preview = Preview(validation, vae, schedule, PREVIEW_STEPS, PREVIEW_GUIDANCE, SEED)
    fit(
        model,
        examples,
        validation,
        partial(compute_loss, schedule=schedule),
        constants,
        accelerator,
        preview,
        facts={"encoders": features.encoders, "data": table_fingerprint(features.table)},
    )


if __name__ == "__main__":
    run(main)
