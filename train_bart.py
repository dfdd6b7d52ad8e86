"""Trains the report autoencoder: BART that writes a report from one pooled latent of it.

    python train_bart.py --DATA_ROOT /data/mimic-cxr-jpg --REPORTS_ROOT /data/mimic-cxr-reports.zip --RUN_DIR runs/bart
    accelerate launch --num_processes 4 train_bart.py --config my.toml

Reads:  DATA_ROOT (a CXR tree, of which only the tables, or a list of reports without images), REPORTS_ROOT (the tree's
        reports), INITIAL_WEIGHTS (BART and its tokenizer; of the authors' .ckpt the tokenizer is TOKENIZER's)
Writes: RUN_DIR/{last,best,step-*} (checkpoints: BART folders with their tokenizer),
        RUN_DIR/{metrics.csv,loss.png,previews,constants.json}, RUN_DIR/{reconstructions.txt,evaluation.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
from functools import partial
from pathlib import Path

from torch.nn import functional

from evaluation.metrics import constant_report, rouge_l
from models.report_autoencoder import ReportAutoencoder, reconstruct, write_pairs
from models.weights import initial_autoencoder
from training.examples import ReportExamples, study_reports
from training.loop import fit
from training.preflight import check_training
from utils.csv_files import is_report_list, read_report_list
from utils.devices import make_accelerator
from utils.errors import InputError, run, writing
from utils.mimic_cxr import read_table, table_fingerprint
from utils.seeds import draw_rows

# data
DATA_ROOT = "data/mimic-cxr-jpg"  # a CXR tree, the authors' CSV, or one of uid, findings, impression or of split, text
REPORTS_ROOT = ""  # where the reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition that a study must have an image of; () for all (the authors' code: all)
HOLD_OUT = ("p19",)  # patient groups never trained on: they count as the split "test" (the authors' code: none)
# the autoencoder
INITIAL_WEIGHTS = "facebook/bart-base"  # folder or hub id of a BART and its tokenizer, or the authors' .ckpt
TOKENIZER = "facebook/bart-base"  # folder or hub id: the tokenizer of an authors' BART
POOLING = "mean"  # of the encoder's states into the latent (mean, bos or eos)
LATENT_NOISE = 0.0  # noise on the latent in training, in its standard deviations (0 to 100; 0: none, as the paper)
# optimisation
BATCH_SIZE = 8  # reports an optimiser step, over all processes (1 to 65536; a multiple of ACCUMULATION)
ACCUMULATION = 1  # passes an optimiser step: more need less memory (1 to 65536)
EPOCHS = 20  # passes over the training reports (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
OPTIMIZER = "adamw"  # of the weights (adamw or muon; paper: adamw)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
WEIGHT_DECAY = 0.01  # of the optimiser (0 or more)
LR_SCHEDULE = "constant_with_warmup"  # of the learning rate (constant_with_warmup, linear or cosine; paper: constant)
WARMUP_STEPS = 500  # optimiser steps of linear warm-up (0 or more; paper: 0)
CLIP_NORM = 1.0  # largest norm of the gradient (0 or more; 0: not clipped, as the paper)
EMA_DECAY = 0.999  # of the averaged weights, which are the ones used (0 or more, below 1; paper: no average)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
SEED = 1234  # of data order, noise and dropout (0 or more)
# running
RUN_DIR = "runs/bart"  # checkpoints, metrics and examples (a folder to write)
CHECK = False  # True: only try what the run needs, and say what would end it
RESUME = True  # go on from RUN_DIR/last where there is one
CHECKPOINT_EVERY = 2000  # optimiser steps between checkpoints, each with validation and preview (1 or more)
KEEP_CHECKPOINTS = 0  # step-* folders that are kept, the newest (0 or more; 0: last and best only)
VALIDATION_ROWS = 1000  # validation reports a validation (0 or more; 0: all of them)
PREVIEW_REPORTS = 8  # validation reports that a preview writes again (0 or more)
EVALUATION_REPORTS = 300  # test reports written again at the end, and scored (0 or more; 0: none)
LOG_EVERY = 50  # optimiser steps a row of metrics.csv (1 or more)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 0  # processes that load batches; reports are tokenised before, so they wait for nothing (0 to 256)


def compute_loss(model, batch, latent_noise):
    """Cross-entropy of each token given the latent and the tokens before it, a mean over the tokens, without padding.

    batch: input_ids and attention_mask (B, L), noise (B, D), standard normal, and other_ids and other_mask (B, L'), of
    other reports, by which the noise is measured.
    """
    noise = latent_noise * batch["noise"] if latent_noise else None
    others = batch["other_ids"], batch["other_mask"]
    logits = model(batch["input_ids"], batch["attention_mask"], noise, others)  # (B, L, V)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


def count_tokens(batch):
    """What the loss is a mean over: the tokens of a batch, without padding."""
    return batch["attention_mask"].sum().item()


def preview(model, path, reports, batch_size):
    """Held-out reports beside what their latents become again."""
    write_pairs(path.with_suffix(".txt"), {"report": reports, "again ": reconstruct(model, reports, batch_size)})


def evaluate(autoencoder, reports, training_reports, batch_size, run_dir):
    """Held-out reports from their own latents: ROUGE-L against the one report that would do best for everybody."""
    written = reconstruct(autoencoder, reports, batch_size)
    constant = constant_report(training_reports)
    seen = set(training_reports)
    scores = {
        "held-out reports": len(reports),
        "of them word for word in training": sum(report in seen for report in reports),
        "reconstructed word for word": sum(report == again for report, again in zip(reports, written)),
        "ROUGE-L of the reconstructions": rouge_l(reports, written),
        "ROUGE-L of the constant report": rouge_l(reports, [constant] * len(reports)),
    }
    with writing("the evaluation", run_dir):
        write_pairs(run_dir / "reconstructions.txt", {"report": reports, "again ": written})
        (run_dir / "evaluation.json").write_text(json.dumps(scores, indent=2) + "\n")
    print("\n".join(f"{name}: {score:.3g}" for name, score in scores.items()))
    print(f"the constant report: {constant}")


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)

    if is_report_list(DATA_ROOT):
        table = read_report_list(DATA_ROOT)
    else:
        table = read_table(DATA_ROOT, REPORTS_ROOT, views=VIEWS, hold_out=HOLD_OUT, check_images=False)
    studies = study_reports(table)
    reports = {split: studies["report"][studies["split"] == split].tolist() for split in ("train", "validate", "test")}
    for split in ("train", "validate"):
        if not reports[split]:
            raise InputError(f"{DATA_ROOT} has no report in the split {split!r} after the filters")
    model = initial_autoencoder(INITIAL_WEIGHTS, POOLING, TOKENIZER)

    examples = ReportExamples(reports["train"], model, BATCH_SIZE)
    validation = ReportExamples(reports["validate"], model, BATCH_SIZE)
    if CHECK:
        loss = partial(compute_loss, latent_noise=LATENT_NOISE)
        rows = {"train": len(examples), "validate": len(validation)}
        return check_training(model, loss, examples.longest, rows, constants, accelerator)
    fit(
        model,
        examples,
        validation,
        partial(compute_loss, latent_noise=LATENT_NOISE),
        constants,
        accelerator,
        partial(preview, reports=reports["validate"][:PREVIEW_REPORTS], batch_size=BATCH_SIZE),
        collate=examples.collate,
        terms=count_tokens,
        facts={"data": table_fingerprint(studies)},
    )
    if accelerator.is_main_process and EVALUATION_REPORTS:
        best = ReportAutoencoder.from_pretrained(Path(RUN_DIR) / "best").eval().to(accelerator.device)
        held_out = reports["test"] or reports["validate"]
        held_out = [held_out[row] for row in draw_rows(len(held_out), EVALUATION_REPORTS, SEED, "evaluation")]
        evaluate(best, held_out, reports["train"], BATCH_SIZE, Path(RUN_DIR))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
