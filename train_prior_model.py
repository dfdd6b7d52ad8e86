"""Trains the prior: a vision transformer from an image's VAE latents to the pooled latent of its report.

It learns the mean of all reports that an image allows (the paper's), or to draw one of them (models/flow.py).

    python train_prior_model.py --DATA_ROOT /data/mimic-cxr-jpg --BART_CHECKPOINT runs/bart/best --RUN_DIR runs/prior
    accelerate launch --num_processes 4 train_prior_model.py --config my.toml

Reads:  DATA_ROOT (a CXR tree), REPORTS_ROOT (its reports), BASE_MODEL (VAE), BART_CHECKPOINT (of train_bart.py),
        INITIAL_WEIGHTS (a prior to go on from) or PRETRAINED (a ViT), CACHE_DIR (filled on the first run)
Writes: RUN_DIR/{last,best,step-*} (checkpoints), RUN_DIR/{metrics.csv,loss.png,constants.json},
        RUN_DIR/{written.txt,evaluation.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from evaluation.metrics import constant_report, rouge_l
from models.prior import Prior
from models.report_autoencoder import write_pairs
from models.weights import load_autoencoder, start_from
from training.examples import PriorExamples, PriorFeatures, prior_needs, reported_rows, set_aside
from training.loop import fit
from training.preflight import check_training, made_up, split_counts
from utils.checkpoints import check_hold_out
from utils.devices import make_accelerator
from utils.errors import run, writing
from utils.findings import PRESENT, UNCERTAIN
from utils.latents import latent_shape, load_vae
from utils.mimic_cxr import read_table, split_rows, table_fingerprint
from utils.seeds import draw_rows

# data
DATA_ROOT = "data/mimic-cxr-jpg"  # a CXR tree, or the authors' CSV
REPORTS_ROOT = ""  # where the reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition of the images; () for all (the authors' code: all)
HOLD_OUT = ("p19",)  # patient groups never trained on: they count as the split "test" (the authors' code: none)
IMAGE_SIZE = 256  # pixels, the side of the square image (8 to 4096)
CACHE_DIR = "cache"  # where the frozen encoders' features are kept (a folder to write)
ENCODE_BATCH_SIZE = 32  # images, or reports, at a time through the frozen encoders (1 to 65536)
# frozen encoders
BASE_MODEL = "CompVis/stable-diffusion-v1-4"  # folder or hub id: its vae
BART_CHECKPOINT = "runs/bart/best"  # the report autoencoder whose latents are learned, or the authors' .ckpt
POOLING = "mean"  # of an authors' BART, whose file does not say it (mean, bos or eos)
TOKENIZER = "facebook/bart-base"  # folder or hub id: the tokenizer of an authors' BART
# the prior
PRIOR = "regression"  # learns the mean of an image's reports, or to draw one (regression or flow; paper: regression)
INITIAL_WEIGHTS = ""  # a prior to go on from, a checkpoint folder or the authors' .ckpt; empty: as PRETRAINED says
PRETRAINED = "vit_base_patch16_224"  # timm ViT, of the sizes below, or local-dir:FOLDER; empty: from random weights
PRETRAINED_FILE = ""  # its weights on disk; empty: from the Hugging Face hub
PATCH_SIZE = 2  # latent pixels, the side of a token's patch (1 to 512; has to divide the latents' side)
EMBED_DIM = 768  # width of a token (2 to 16384; a multiple of NUM_HEADS)
DEPTH = 12  # blocks (1 to 256)
NUM_HEADS = 12  # attention heads (1 to 1024)
COSINE_WEIGHT = 0.01  # of 1 - cosine beside the mean squared error (0 or more)
FREEZE_TRANSFORMER = False  # True: only the head is trained, and the readout
FINDINGS_WEIGHT = 0.0  # of the loss of a readout, by which CANDIDATES are chosen (0 or more; 0: none, as the paper)
LATENT_GAIN = 1.0  # of the reports at the end; try 1 over the spread printed there (0 to 100; paper: 1; not of a flow)
FLOW_WIDTH = 1024  # of a flow's head (2 to 16384)
FLOW_DEPTH = 3  # of its blocks (1 to 256)
FLOW_DROPOUT = 0.1  # of the image's class token, before the head (0 or more, below 1)
FLOW_DRAWS = 4  # of noise and time for each example (1 to 256)
DROP_IMAGE = 0.1  # probability that an example of a flow loses its image, for IMAGE_GUIDANCE (0 to 1)
IMAGE_GUIDANCE = 1.0  # of the reports that a flow writes at the end (0 to 100; 1: none)
FLOW_TEMPERATURE = 1.0  # of the noise that they begin with (0 to 100)
# optimisation
BATCH_SIZE = 16  # images an optimiser step, over all processes (1 to 65536; a multiple of ACCUMULATION)
ACCUMULATION = 1  # passes an optimiser step: more need less memory (1 to 65536)
EPOCHS = 20  # passes over the training rows (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
OPTIMIZER = "adamw"  # of the weights (adamw or muon; paper: adamw)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
WEIGHT_DECAY = 0.01  # of the optimiser (0 or more)
LR_SCHEDULE = "constant_with_warmup"  # of the learning rate (constant_with_warmup, linear or cosine; paper: constant)
WARMUP_STEPS = 500  # optimiser steps of linear warm-up (0 or more; paper: 0)
CLIP_NORM = 1.0  # largest norm of the gradient (0 or more; 0: not clipped, as the paper)
EMA_DECAY = 0.999  # of the averaged weights, which are the ones sampled (0 or more, below 1; paper: no average)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
SEED = 1234  # of data order, posterior draws and initial weights (0 or more)
# running
RUN_DIR = "runs/prior"  # checkpoints, metrics and examples (a folder to write)
CHECK = False  # True: only try what the run needs, and say what would end it
RESUME = True  # go on from RUN_DIR/last where there is one
CHECKPOINT_EVERY = 2000  # optimiser steps between checkpoints, each with validation (1 or more)
KEEP_CHECKPOINTS = 0  # step-* folders that are kept, the newest (0 or more; 0: last and best only)
VALIDATION_ROWS = 1000  # validation images a validation (0 or more; 0: all of them)
EVALUATION_IMAGES = 300  # test images whose reports are written at the end, and scored (0 or more; 0: none)
LOG_EVERY = 50  # optimiser steps a row of metrics.csv (1 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images, and processes that load batches (0 to 256)

MEAN_DRAWS = 16  # of a flow, for the mean of the reports that it thinks an image allows (1 or more)


def compute_loss(model, batch, cosine_weight, findings_weight=0.0):
    """MSE + cosine_weight (1 - cosine) of the standardised report latents (CXR-IRGen, section 3.3).

    batch: latents (B, C, h, w), unit variance; report_latents (B, D), standardised; with a findings_weight, of the readout's
    loss, findings (B, 14), codes.
    """
    predicted, readout_loss = predict(model, batch, findings_weight)
    cosine = functional.cosine_similarity(predicted, batch["report_latents"], dim=1)  # (B,)
    latent_loss = functional.mse_loss(predicted, batch["report_latents"]) + cosine_weight * (1 - cosine).mean()
    return latent_loss + findings_weight * readout_loss


def compute_flow_loss(model, batch, findings_weight=0.0):
    """The mean squared error of the velocity (Lipman et al. 2023, equation 23), of K draws of noise and time a report.

    batch: latents (B, C, h, w), unit variance; report_latents (B, D), standardised; noise (B, K, D); times (B, K) in
    [0, 1]; dropped (B,), whose image is not told; findings as `compute_loss` has them.
    """
    report_latents, times = batch["report_latents"][:, None], batch["times"][..., None]
    noisy = (1 - times) * batch["noise"] + times * report_latents  # (B, K, D)
    velocity, readout_loss = predict(model, batch, findings_weight, noisy, batch["times"], batch["dropped"])
    return functional.mse_loss(velocity, report_latents - batch["noise"]) + findings_weight * readout_loss


def predict(model, batch, findings_weight, *flowing):
    """=> (what the head says, in float32; cross-entropy of the findings that the readout names, 0 without a weight).

    What is not mentioned counts as absent, and what is uncertain not at all.
    """
    images = batch["tokens"] if "tokens" in batch else batch["latents"]
    predicted, logits = model(images, *flowing)
    if not findings_weight:
        return predicted.float(), 0.0
    present, known = batch["findings"] == PRESENT, (batch["findings"] != UNCERTAIN).float()
    each = functional.binary_cross_entropy_with_logits(logits.float(), present.float(), known, reduction="none")
    return predicted.float(), each.sum() / known.sum().clamp(min=1)


def evaluate(prior, autoencoder, examples, training_reports, sampling, mean_draws, batch_size, run_dir):
    """The reports of held-out images, written from their pixels: ROUGE-L, and the explained variance of the latents.

    sampling: of what is decoded, by the names that `Prior.sample` has.
    """
    autoencoder.to(next(prior.parameters()).device)
    rows = [examples[row, row] for row in range(len(examples))]
    truth = torch.stack([row["report_latents"] for row in rows])  # (n, D), standardised
    reports = examples.features.table["report"].iloc[examples.rows].tolist()
    predicted, drawn, written, again = [], [], [], []
    for start in range(0, len(rows), batch_size):
        latents = torch.stack([row["latents"] for row in rows[start : start + batch_size]])
        seeds = range(start, start + len(latents))
        predicted.append(prior.standardise(prior.mean(latents, seeds, mean_draws)).cpu())  # (B, D)
        report_latents = prior.sample(latents, seeds, **sampling)  # (B, D)
        drawn.append(prior.standardise(report_latents).cpu())
        written += autoencoder.generate(report_latents)
        again += autoencoder.generate(autoencoder.encode_reports(reports[start : start + batch_size]))
    constant = constant_report(training_reports)
    predicted, drawn = torch.cat(predicted), torch.cat(drawn)  # (n, D), standardised
    unexplained = (predicted - truth).square().sum() / (truth - truth.mean(dim=0)).square().sum()
    spread = drawn.var(dim=0).mean().sqrt()
    scores = {
        "held-out images": len(rows),
        "explained variance of their report latents": 1 - unexplained.item(),
        "spread of what was decoded (1: of the reports' own latents)": spread.item(),
        "ROUGE-L of the reports written from the images": rouge_l(reports, written),
        "ROUGE-L of the same reports, shuffled": rouge_l(reports, [*written[1:], *written[:1]]),
        "ROUGE-L of the constant report": rouge_l(reports, [constant] * len(reports)),
        "ROUGE-L of the reports from their own latents": rouge_l(reports, again),
    }
    with writing("the evaluation", run_dir):
        write_pairs(run_dir / "written.txt", {"report ": reports, "written": written, "again  ": again})
        (run_dir / "evaluation.json").write_text(json.dumps(scores, indent=2) + "\n")
    print("\n".join(f"{name}: {score:.3g}" for name, score in scores.items()))


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device = accelerator.device

    check_hold_out(HOLD_OUT, BART_CHECKPOINT=BART_CHECKPOINT)
    table = read_table(DATA_ROOT, REPORTS_ROOT, views=VIEWS, hold_out=HOLD_OUT)
    vae = load_vae(BASE_MODEL, device)
    autoencoder = load_autoencoder(BART_CHECKPOINT, POOLING, TOKENIZER).eval().requires_grad_(False).to(device)
    channels, side, _ = latent_shape(vae, IMAGE_SIZE, PATCH_SIZE)
    torch.manual_seed(SEED)
    flow = {"flow_width": FLOW_WIDTH, "flow_depth": FLOW_DEPTH, "flow_dropout": FLOW_DROPOUT} if PRIOR == "flow" else {}
    model = Prior(
        channels, side, PATCH_SIZE, EMBED_DIM, DEPTH, NUM_HEADS, autoencoder.width, kind=PRIOR,
        reads_findings=FINDINGS_WEIGHT > 0, **flow,
    )  # fmt: skip
    if PRETRAINED and not INITIAL_WEIGHTS:
        model.load_pretrained(PRETRAINED, PRETRAINED_FILE)

    model.vit.requires_grad_(not FREEZE_TRANSFORMER)
    loss, draws = partial(compute_loss, cosine_weight=COSINE_WEIGHT, findings_weight=FINDINGS_WEIGHT), 0
    if PRIOR == "flow":
        loss, draws = partial(compute_flow_loss, findings_weight=FINDINGS_WEIGHT), FLOW_DRAWS

    if CHECK:
        if INITIAL_WEIGHTS:
            start_from(model, INITIAL_WEIGHTS)
        table = reported_rows(table)
        shapes, cache_bytes = prior_needs(table, vae, autoencoder, IMAGE_SIZE, draws, FINDINGS_WEIGHT > 0)
        make_batch = partial(made_up, shapes)
        return check_training(
            model, loss, make_batch, split_counts(table), constants, accelerator, table["image_path"], cache_bytes
        )
    features = PriorFeatures(
        table, vae, autoencoder, IMAGE_SIZE, CACHE_DIR, ENCODE_BATCH_SIZE, NUM_WORKERS, accelerator
    )
    set_aside(vae, autoencoder)
    model.set_statistics(*features.statistics("train"))
    if INITIAL_WEIGHTS:
        start_from(model, INITIAL_WEIGHTS)
    examples = PriorExamples(features, "train", model, draws, DROP_IMAGE)
    validation = PriorExamples(features, "validate", model, draws)
    if FREEZE_TRANSFORMER:
        for split in (examples, validation):
            split.freeze(model.to(device).eval(), ENCODE_BATCH_SIZE)

    fit(
        model,
        examples,
        validation,
        loss,
        constants,
        accelerator,
        facts={"encoders": features.encoders, "data": table_fingerprint(features.table)},
    )
    if accelerator.is_main_process and EVALUATION_IMAGES:
        best = Prior.from_pretrained(Path(RUN_DIR) / "best").eval().to(device)
        split = "test" if (features.table["split"] == "test").any() else "validate"
        held_out = PriorExamples(features, split, best)
        held_out.rows = held_out.rows[draw_rows(len(held_out), EVALUATION_IMAGES, SEED, "evaluation")]
        training_reports = features.table["report"].iloc[split_rows(features.table, "train")]
        sampling = {"gain": LATENT_GAIN, "guidance": IMAGE_GUIDANCE, "temperature": FLOW_TEMPERATURE}
        evaluate(best, autoencoder, held_out, training_reports, sampling, MEAN_DRAWS, ENCODE_BATCH_SIZE, Path(RUN_DIR))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
