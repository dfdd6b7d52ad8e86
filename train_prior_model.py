"""Trains the prior: a vision transformer from an image's VAE latents to the pooled latent of its report.

It learns the mean of all reports that an image allows (the paper's), or to draw one of them (models/flow.py).

    python train_prior_model.py --DATA_ROOT /data/mimic-cxr-jpg --BART_CHECKPOINT runs/bart/best --RUN_DIR runs/prior
    accelerate launch --num_processes 4 train_prior_model.py --config my.toml

Reads:  DATA_ROOT (a CXR tree), REPORTS_ROOT (its reports), BASE_MODEL (VAE), BART_CHECKPOINT (of train_bart.py),
        INITIAL_WEIGHTS (a prior to start from) or PRETRAINED (a ViT), CACHE_DIR (filled on the first run)
Writes: RUN_DIR/{last,best} (checkpoints), RUN_DIR/{metrics.csv,loss.png,constants.json},
        RUN_DIR/{written.txt,evaluation.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from evaluation.details import detail_flags
from evaluation.text_metrics import constant_report, rouge_l
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder, write_evaluation
from models.weights import start_from
from training.examples import FLOW_DRAWS, PriorExamples, PriorFeatures
from training.loop import fit, random_batch, try_training
from training.reports import reported_rows
from utils.checkpoints import check_hold_out
from utils.devices import make_accelerator
from utils.errors import run
from utils.latents import PATCH_SIZE, latent_shape, load_vae
from utils.mimic_cxr import read_table, split_rows, table_fingerprint
from utils.seeds import draw_rows

# data
DATA_ROOT = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where the reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition of the images; () for all (the authors' code: all)
HOLD_OUT = ("p19",)  # patient groups never trained on: they count as the split "test" (the authors' code: none)
IMAGE_SIZE = 256  # pixels, the side of the square image (8 to 4096)
CACHE_DIR = "cache"  # where the frozen encoders' features are kept (a folder to write)
# frozen encoders
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # folder or hub id: its vae
BART_CHECKPOINT = "runs/bart/best"  # the report autoencoder whose latents are learned
# the prior
PRIOR = "regression"  # learns the mean of an image's reports, or to draw one (regression or flow; paper: regression)
INITIAL_WEIGHTS = ""  # a prior to start from, a checkpoint folder or the authors' .ckpt; empty: from PRETRAINED
PRETRAINED = "vit_base_patch16_224"  # timm ViT, of the sizes below, or local-dir:FOLDER; empty: from random weights
EMBED_DIM = 768  # width of a token (2 to 16384; a multiple of NUM_HEADS)
DEPTH = 12  # blocks (1 to 256)
NUM_HEADS = 12  # attention heads (1 to 1024)
FREEZE_TRANSFORMER = False  # True: only the head is trained, and the readout
DETAILS_WEIGHT = 0.0  # of the loss of a readout of findings, sides ... from the image (0 or more; 0: none; paper: 0)
FLOW_DROPOUT = 0.1  # of the image's class token, before a flow's head (0 or more, below 1)
# optimisation
BATCH_SIZE = 16  # images an optimiser step, over all processes (1 to 65536)
EPOCHS = 20  # passes over the training rows (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
WEIGHT_DECAY = 0.01  # of the optimiser, AdamW (0 or more)
LR_SCHEDULE = "constant_with_warmup"  # of the learning rate (constant_with_warmup, linear or cosine; paper: constant)
WARMUP_STEPS = 500  # optimiser steps of linear warm-up (0 or more; paper: 0)
EMA_DECAY = 0.999  # of the averaged weights, which are the ones sampled (0 or more, below 1; paper: no average)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
SEED = 1234  # of data order, posterior draws and initial weights (0 or more)
# running
RUN_DIR = "runs/prior"  # checkpoints, metrics and examples; a run in it is resumed (a folder to write)
CHECKPOINT_EVERY = 2000  # optimiser steps between checkpoints, each with validation (1 or more)
EVALUATION_IMAGES = 300  # test images whose reports are written at the end, and scored (0 or more; 0: none)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images, and processes that load batches (0 to 256)

_COSINE_WEIGHT = 0.01  # of 1 - cosine beside the mean squared error: the paper's
_FLOW_WIDTH = 1024  # of a flow's head, 4 EMBED_DIM at most
_FLOW_DEPTH = 3  # blocks of a flow's head
_SAMPLING = {"guidance": 1.5, "temperature": 0.5}  # of the reports that a flow writes at the end
_MEAN_DRAWS = 16  # of a flow, for the mean of the reports that an image allows
_EVALUATION_BATCH = 64  # images at a time


def compute_loss(model, batch, details_weight=0.0, cosine_weight=_COSINE_WEIGHT):
    """MSE + cosine_weight (1 - cosine) of the standardised report latents (CXR-IRGen, section 3.3).

    batch: latents (B, C, h, w), unit variance; report_latents (B, D), standardised; with a details_weight, the weight
    of the readout's loss, flags (B, K), 0 or 1.
    """
    predicted, readout_loss = predict(model, batch, details_weight)
    cosine = functional.cosine_similarity(predicted, batch["report_latents"], dim=1)  # (B,)
    latent_loss = functional.mse_loss(predicted, batch["report_latents"]) + cosine_weight * (1 - cosine).mean()
    return latent_loss + details_weight * readout_loss


def compute_flow_loss(model, batch, details_weight=0.0):
    """The mean squared error of the velocity (Lipman et al. 2023, equation 23), of K draws of noise and time a report.

    batch: latents (B, C, h, w), unit variance; report_latents (B, D), standardised; noise (B, K, D); times (B, K) in
    [0, 1]; dropped (B,), whether the head gets no image; flags as in `compute_loss`.
    """
    report_latents, times = batch["report_latents"][:, None], batch["times"][..., None]
    noisy = (1 - times) * batch["noise"] + times * report_latents  # (B, K, D)
    velocity, readout_loss = predict(model, batch, details_weight, noisy, batch["times"], batch["dropped"])
    return functional.mse_loss(velocity, report_latents - batch["noise"]) + details_weight * readout_loss


def predict(model, batch, details_weight, *flow_inputs):  # noisy report latents, times, dropped
    """=> (the head's output, float32; the summed cross-entropy of the readout's flags, 0 without a weight)."""
    images = batch["tokens"] if "tokens" in batch else batch["latents"]
    predicted, flags = model(images, *flow_inputs)
    if not details_weight:
        return predicted.float(), 0.0
    each = functional.binary_cross_entropy_with_logits(flags.float(), batch["flags"], reduction="none")  # (B, K)
    return predicted.float(), each.sum(dim=1).mean()


def evaluate(prior, autoencoder, examples, training_reports, run_dir):
    """Writes the reports of held-out images: their ROUGE-L, and the explained variance of the report latents."""
    autoencoder.to(prior.device)
    rows = [examples[row, row] for row in range(len(examples))]
    truth = torch.stack([row["report_latents"] for row in rows])  # (n, D), standardised
    reports = examples.features.table["report"].iloc[examples.rows].tolist()
    predicted, drawn, written, again = [], [], [], []
    draws = _MEAN_DRAWS if prior.config.kind == "flow" else 1
    for start in range(0, len(rows), _EVALUATION_BATCH):
        latents = torch.stack([row["latents"] for row in rows[start : start + _EVALUATION_BATCH]])
        seeds = range(start, start + len(latents))
        several = (prior.sample(latents, [(seed, number) for seed in seeds]) for number in range(draws))
        predicted.append(prior.standardise(sum(several) / draws).cpu())  # (B, D)
        report_latents = prior.sample(latents, seeds, **_SAMPLING)  # (B, D)
        drawn.append(prior.standardise(report_latents).cpu())
        written += autoencoder.generate(report_latents)
        again += autoencoder.generate(autoencoder.encode_reports(reports[start : start + len(latents)]))
    predicted, drawn = torch.cat(predicted), torch.cat(drawn)  # (n, D), standardised
    unexplained = (predicted - truth).square().sum() / (truth - truth.mean(dim=0)).square().sum()
    scores = {
        "held-out images": len(rows),
        "explained variance of their report latents": 1 - unexplained.item(),
        "spread of what was decoded (1: of the reports' own latents)": drawn.var(dim=0).mean().sqrt().item(),
        "ROUGE-L of the reports written from the images": rouge_l(reports, written),
        "ROUGE-L of the same reports, shuffled": rouge_l(reports, [*written[1:], *written[:1]]),
        "ROUGE-L of the constant report": rouge_l(reports, [constant_report(training_reports)] * len(reports)),
        "ROUGE-L of the reports from their own latents": rouge_l(reports, again),
    }
    write_evaluation(run_dir, "written.txt", {"report ": reports, "written": written, "again  ": again}, scores)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device, flow = accelerator.device, PRIOR == "flow"

    check_hold_out(HOLD_OUT, BART_CHECKPOINT=BART_CHECKPOINT)
    table = reported_rows(read_table(DATA_ROOT, REPORTS_ROOT, views=VIEWS, hold_out=HOLD_OUT))
    vae = load_vae(BASE_MODEL, device)
    autoencoder = ReportAutoencoder.from_pretrained(BART_CHECKPOINT).eval().requires_grad_(False).to(device)

    training_rows, flags = split_rows(table, "train"), []
    if DETAILS_WEIGHT:
        flags, said = detail_flags(table["report"], counted=training_rows)
        table = table.assign(flags=[*said])

    torch.manual_seed(SEED)  # of the initial weights
    channels, side, _ = latent_shape(vae, IMAGE_SIZE, PATCH_SIZE)
    head = {"kind": PRIOR, "flags": flags}
    if flow:
        head |= {"flow_width": min(_FLOW_WIDTH, 4 * EMBED_DIM), "flow_depth": _FLOW_DEPTH, "flow_dropout": FLOW_DROPOUT}
    model = Prior(channels, side, PATCH_SIZE, EMBED_DIM, DEPTH, NUM_HEADS, autoencoder.width, **head)
    if INITIAL_WEIGHTS:
        start_from(model, INITIAL_WEIGHTS)
    elif PRETRAINED:
        model.load_pretrained(PRETRAINED)
    model.vit.requires_grad_(not FREEZE_TRANSFORMER)

    loss = partial(compute_flow_loss if flow else compute_loss, details_weight=DETAILS_WEIGHT)
    shapes = {"latents": latent_shape(vae, IMAGE_SIZE), "report_latents": (autoencoder.width,)}
    shapes |= {"noise": (FLOW_DRAWS, autoencoder.width), "times": (FLOW_DRAWS,), "dropped": ()} if flow else {}
    shapes |= {"flags": (len(flags),)} if flags else {}
    try_training(model, loss, partial(random_batch, shapes), table, constants, accelerator)
    features = PriorFeatures(table, vae, autoencoder, IMAGE_SIZE, CACHE_DIR, NUM_WORKERS, accelerator)
    model.set_statistics(*features.statistics("train"))
    if INITIAL_WEIGHTS:
        start_from(model, INITIAL_WEIGHTS)  # once more: the head depends on the statistics
    said = np.stack(features.table["flags"]) if flags else None
    examples, validation = (PriorExamples(features, split, model, said) for split in ("train", "validate"))
    if FREEZE_TRANSFORMER:
        for split in (examples, validation):
            split.freeze(model.to(device).eval())
    facts = {"encoders": features.encoders, "data": table_fingerprint(features.table)}
    fit(model, examples, validation, loss, constants, accelerator, facts=facts)

    if accelerator.is_main_process and EVALUATION_IMAGES:
        best = Prior.from_pretrained(Path(RUN_DIR) / "best").eval().to(device)
        split = "test" if (features.table["split"] == "test").any() else "validate"
        held_out = PriorExamples(features, split, best)
        held_out.rows = held_out.rows[draw_rows(len(held_out), EVALUATION_IMAGES, SEED, "evaluation")]
        evaluate(best, autoencoder, held_out, table["report"].iloc[training_rows], Path(RUN_DIR))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
