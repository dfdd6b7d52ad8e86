"""Trains the report autoencoder: BART that writes a report from one pooled latent of it.

    python train_bart.py --DATA_ROOT /data/mimic-cxr-jpg --REPORTS_ROOT /data/mimic-cxr-reports.zip --RUN_DIR runs/bart
    accelerate launch --num_processes 4 train_bart.py --config my.toml

Reads:  DATA_ROOT (a CXR tree, of which only the tables, or a list of reports without images), REPORTS_ROOT (the tree's
        reports), INITIAL_WEIGHTS (BART and its tokenizer)
Writes: RUN_DIR/{last,best} (checkpoints: BART folders with their tokenizer),
        RUN_DIR/{metrics.csv,loss.png,previews,constants.json}, RUN_DIR/{reconstructions.txt,evaluation.json}
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from functools import partial
from pathlib import Path

from torch.nn import functional

from evaluation.details import detail_flags
from evaluation.text_metrics import constant_report, rouge_l
from models.report_autoencoder import ReportAutoencoder, reconstruct, write_evaluation, write_pairs
from training.loop import fit, try_training
from training.reports import ReportExamples, is_report_list, read_report_list, study_reports
from utils.devices import make_accelerator
from utils.errors import run
from utils.mimic_cxr import read_table, split_rows, table_fingerprint
from utils.seeds import draw_rows

# data
DATA_ROOT = "data/mimic-cxr-jpg"  # a CXR tree, the authors' CSV, or one of uid, findings, impression or of split, text
REPORTS_ROOT = ""  # where the reports are, a folder or PhysioNet's mimic-cxr-reports.zip; empty: in the tree
VIEWS = ("PA",)  # ViewPosition that a study must have an image of; () for all (the authors' code: all)
HOLD_OUT = ("p19",)  # patient groups never trained on: they count as the split "test" (the authors' code: none)
# the autoencoder
INITIAL_WEIGHTS = "facebook/bart-base"  # folder or hub id of a BART and its tokenizer
POOLING = "mean"  # of the encoder's states into the latent (mean, bos, eos or sentences; paper: mean)
DETAILS_WEIGHT = 0.0  # of the loss of a readout of findings, sides ... from the latent (0 or more; 0: none; paper: 0)
FREEZE_ENCODER = False  # True: the decoder alone is trained, and latents stay as they are
LATENT_NOISE = 0.0  # noise on the latent in training, in its standard deviations (0 to 100; 0: none, as in the paper)
# optimisation
BATCH_SIZE = 8  # reports an optimiser step, over all processes (1 to 65536; a multiple of ACCUMULATION)
ACCUMULATION = 1  # passes an optimiser step: more passes need less memory (1 to 65536)
EPOCHS = 20  # passes over the training reports (1 to 1000000)
MAX_STEPS = 0  # optimiser steps at most (0 or more; 0: as EPOCHS says)
LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
WEIGHT_DECAY = 0.01  # of the optimiser (0 or more)
LR_SCHEDULE = "constant_with_warmup"  # of the learning rate (constant_with_warmup, linear or cosine; paper: constant)
WARMUP_STEPS = 500  # optimiser steps of linear warm-up (0 or more; paper: 0)
EMA_DECAY = 0.999  # of the averaged weights, which are the ones used (0 or more, below 1; paper: no average)
PRECISION = "auto"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
SEED = 1234  # of data order, noise and dropout (0 or more)
# running
RUN_DIR = "runs/bart"  # checkpoints, metrics and examples; a run in it is resumed (a folder to write)
CHECKPOINT_EVERY = 2000  # optimiser steps between checkpoints, each with validation and preview (1 or more)
VALIDATION_ROWS = 1000  # validation reports a validation (0 or more; 0: all of them)
EVALUATION_REPORTS = 300  # test reports reconstructed at the end, and scored (0 or more; 0: none)
LOG_WITH = ""  # a tracker (empty, aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio or wandb)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 0  # processes that load batches; reports are tokenised before, so 0 is fast enough (0 to 256)

_PREVIEW_REPORTS = 8  # validation reports that a preview reconstructs


def compute_loss(model, batch, latent_noise, details_weight=0.0):
    """Cross-entropy of each token given the latent and the tokens before it, a mean over the tokens, without padding.

    batch: input_ids and attention_mask (B, L), noise (B, D), standard normal, and other_ids and other_mask (B, L'), of
    other reports, by which the noise is measured. details_weight: of the summed cross-entropy of flags (B, K), 0 or 1.
    """
    noise = latent_noise * batch["noise"] if latent_noise else None
    others = batch["other_ids"], batch["other_mask"]
    logits, flags = model(batch["input_ids"], batch["attention_mask"], noise, others)  # (B, L, V), (B, K)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    if details_weight:
        each = functional.binary_cross_entropy_with_logits(flags.float(), batch["flags"], reduction="none")
        loss = loss + details_weight * each.sum(dim=1).mean()
    return loss


def evaluate(autoencoder, reports, training_reports, batch_size, run_dir):
    """Held-out reports from their own latents: ROUGE-L, and that of the one report that is best for all of them."""
    written = reconstruct(autoencoder, reports, batch_size)
    constant, seen = constant_report(training_reports), set(training_reports)
    scores = {
        "held-out reports": len(reports),
        "of them word for word in training": sum(report in seen for report in reports),
        "reconstructed word for word": sum(report == again for report, again in zip(reports, written)),
        "ROUGE-L of the reconstructions": rouge_l(reports, written),
        "ROUGE-L of the constant report": rouge_l(reports, [constant] * len(reports)),
    }
    write_evaluation(run_dir, "reconstructions.txt", {"report": reports, "again ": written}, scores)
    print(f"the constant report: {constant}")


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION, LOG_WITH, RUN_DIR)

    if is_report_list(DATA_ROOT):
        table = read_report_list(DATA_ROOT)
    else:
        table = read_table(DATA_ROOT, REPORTS_ROOT, views=VIEWS, hold_out=HOLD_OUT, check_images=False)
    studies = study_reports(table)
    for split in ("train", "validate"):
        split_rows(studies, split, DATA_ROOT)  # InputError for an empty one
    reports = {split: studies["report"][studies["split"] == split].tolist() for split in ("train", "validate", "test")}
    model = ReportAutoencoder.from_pretrained(INITIAL_WEIGHTS, POOLING)

    flags = {"train": None, "validate": None}
    if DETAILS_WEIGHT:
        names, flags["train"] = detail_flags(reports["train"])
        flags["validate"] = detail_flags(reports["validate"], names)[1]
        model.add_readout(names, flags["train"].mean(axis=0))
    elif not FREEZE_ENCODER:
        model.readout = None  # one of INITIAL_WEIGHTS is not trained on
    if FREEZE_ENCODER:
        model.freeze_encoder()
    loss = partial(compute_loss, latent_noise=LATENT_NOISE, details_weight=DETAILS_WEIGHT)
    examples = ReportExamples(reports["train"], model, BATCH_SIZE, flags["train"])
    validation = ReportExamples(reports["validate"], model, BATCH_SIZE, flags["validate"])
    shown = reports["validate"][:_PREVIEW_REPORTS]

    def preview(model, path):
        write_pairs(path.with_suffix(".txt"), {"report": shown, "again ": reconstruct(model, shown, BATCH_SIZE)})

    try_training(model, loss, examples.longest, studies, constants, accelerator)
    fit(model, examples, validation, loss, constants, accelerator, preview, {"data": table_fingerprint(studies)})

    if accelerator.is_main_process and EVALUATION_REPORTS:
        best = ReportAutoencoder.from_pretrained(Path(RUN_DIR) / "best").eval().to(accelerator.device)
        held_out = reports["test"] or reports["validate"]
        held_out = [held_out[row] for row in draw_rows(len(held_out), EVALUATION_REPORTS, SEED, "evaluation")]
        evaluate(best, held_out, reports["train"], BATCH_SIZE, Path(RUN_DIR))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
