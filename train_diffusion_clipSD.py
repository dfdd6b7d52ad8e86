"""Trains the vision module on Stable Diffusion's U-Net: X-ray latents, prompted by CLIP text and a reference image.

    python train_diffusion_clipSD.py --DATA_ROOT /data/mimic-cxr-jpg --RUN_DIR runs/clipSD
    accelerate launch --num_processes 4 train_diffusion_clipSD.py --config my.toml

Reads:  DATA_ROOT (a CXR tree; for PROMPT impression its reports, too), BASE_MODEL (VAE, text encoder, U-Net),
        REFERENCE_ENCODER, CACHE_DIR (filled on the first run)
Writes: RUN_DIR/{last,best} (checkpoints), RUN_DIR/{metrics.csv,loss.png,previews,constants.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from functools import partial

import torch
import torch.nn.functional as F

from models.diffusion import PromptedDenoiser, load_unet, noise_schedule, training_target
from models.graphs import compiling
from models.weights import start_from
from training.denoiser import train_denoiser
from utils.devices import make_accelerator
from utils.errors import run
from utils.findings import with_prompts
from utils.latents import load_vae
from utils.mimic_cxr import read_table
from utils.prompts import ReferenceEncoder, TextEncoder, TokenFusion

# data
DATA_ROOT = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV; PROMPT impression: with mimic-cxr-reports.zip in it
VIEWS = ("PA",)  # ViewPosition of the images; () for all
HOLD_OUT = ("p19",)  # patient groups that are never trained on (they count as the split "test")
IMAGE_SIZE = 256  # pixels, the side of the square image (8 to 4096)
CACHE_DIR = "cache"  # where the frozen encoders' features are kept (a folder to write)
# frozen encoders
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # folder or hub id: its vae, text_encoder, tokenizer, scheduler and unet
TEXT_ENCODER = ""  # folder or hub id of another CLIP, or a BERT, with its tokenizer; empty: BASE_MODEL's text_encoder
REFERENCE_ENCODER = "ViT-B-32-quickgelu/openai"  # open_clip image tower: architecture/weights, or local-dir:FOLDER
# the denoiser
INITIAL_WEIGHTS = ""  # a checkpoint folder, or the authors' .ckpt; empty: from BASE_MODEL's U-Net
COMPILE = False  # True: torch.compile the denoiser, for a GPU; up to two minutes before the first step
# the noise and the prompt
PROMPT = "findings"  # findings, or the impression of the report (findings or impression; paper: findings)
PREDICTION = ""  # what the network predicts (empty, epsilon or v_prediction; empty: as BASE_MODEL; paper: epsilon)
TIMESTEPS = "uniform"  # how a training timestep is drawn (uniform or logit-normal; paper: uniform)
PROMPT_DROPOUT = (0.05, 0.05, 0.05)  # probabilities of no text, no reference, neither (each 0 to 1; paper: 0)
# optimisation
BATCH_SIZE = 32  # images an optimiser step, over all processes (1 to 65536; a multiple of ACCUMULATION)
ACCUMULATION = 1  # passes an optimiser step: more passes need less memory (1 to 65536)
EPOCHS = 10  # passes over the training rows (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
LR_SCHEDULE = "constant_with_warmup"  # of the learning rate (constant_with_warmup, linear or cosine; paper: constant)
WARMUP_STEPS = 500  # optimiser steps of linear warm-up (0 or more; paper: 0)
EMA_DECAY = 0.9999  # of the averaged weights, which are the ones sampled (0 or more, below 1; paper: no average)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
SEED = 1234  # of data order, noise, references and dropout (0 or more)
# running
RUN_DIR = "runs/clipSD"  # checkpoints, metrics and pictures; a run in it is resumed (a folder to write)
CHECKPOINT_EVERY = 1000  # optimiser steps between checkpoints, each with validation and preview (1 or more)
LOG_WITH = ""  # a tracker (empty, aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio or wandb)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images, and processes that load batches (0 to 256)


def compute_loss(model, batch, schedule):
    """The mean squared error of the predicted noise (Ho et al. 2020, equation 14) or velocity.

    batch: latents and noise (B, 4, h, w), timesteps (B,), text (B, 77, D), reference (B, R).
    """
    noisy = schedule.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    target = training_target(schedule, batch["latents"], batch["noise"], batch["timesteps"])
    prediction = model(noisy, batch["timesteps"], batch["text"], batch["reference"])
    return F.mse_loss(prediction.float(), target)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION, LOG_WITH, RUN_DIR)
    device = accelerator.device

    splits, reads_reports = ("train", "validate"), PROMPT == "impression"
    table = with_prompts(read_table(DATA_ROOT, "", VIEWS, splits, HOLD_OUT, with_reports=reads_reports), PROMPT)
    vae = load_vae(BASE_MODEL, device)
    text_encoder = TextEncoder(BASE_MODEL, pooled=False, device=device, name=TEXT_ENCODER)
    reference_encoder = ReferenceEncoder(REFERENCE_ENCODER, device)
    encoders = vae, text_encoder, reference_encoder

    torch.manual_seed(SEED)  # of the initial weights
    denoiser = load_unet(BASE_MODEL, text_encoder.width, TEXT_ENCODER)
    fusion = TokenFusion(text_encoder.width, reference_encoder.width, token_dim=denoiser.config.cross_attention_dim)
    schedule = noise_schedule(BASE_MODEL, PREDICTION)
    constants["PREDICTION"] = schedule.config.prediction_type
    model = PromptedDenoiser(denoiser, fusion, schedule)
    if INITIAL_WEIGHTS:
        start_from(model, INITIAL_WEIGHTS)
    if COMPILE:
        denoiser.compile(**compiling(denoiser, ACCUMULATION, accelerator))

    loss = partial(compute_loss, schedule=schedule)
    train_denoiser(model, loss, table, encoders, constants, accelerator, schedule.config.num_train_timesteps)


if __name__ == "__main__":
    run(main)
