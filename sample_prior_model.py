"""Writes the report of every image of a CXR tree, a synthetic one first of all: image => prior => BART's decoder.

    python sample_prior_model.py --CHECKPOINT runs/prior/best --OUTPUT_ROOT synthetic/clipUViT
    python sample_prior_model.py --DATA_ROOT /data/mimic-cxr-jpg --VIEWS PA --SPLIT test --OUTPUT_ROOT written/test
    accelerate launch --num_processes 4 sample_prior_model.py --config my.toml

Reads:  CHECKPOINT (of train_prior_model.py), BART_CHECKPOINT, DATA_ROOT (a CXR tree; empty: OUTPUT_ROOT): its kept
        latents (DATA_ROOT/latents) where it has them, else its images, through the VAE that the prior was trained with
Writes: OUTPUT_ROOT/files/pNN/pNNNNNNNN/sNNNNNNNN.txt (a report each study, in MIMIC-CXR's layout),
        OUTPUT_ROOT/{manifest.json,reports.csv,reports.json}; a second run adds what is missing. Further columns of
        reports.csv: `reconstruction` with RECONSTRUCT; with CANDIDATES `floor`, a report that was chosen in the same
        way among as many random training reports. A synthetic tree's metadata.csv and README.md get the reports, too.
        A counterfactual twin's report is drawn with its film's noise: what differs between the two is in the images
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
from pathlib import Path

import pandas as pd
import torch

from evaluation.selection import best_reports, write_best
from models.weights import load_autoencoder, load_prior
from sampling import reports
from utils.checkpoints import check_encoders, check_hold_out
from utils.devices import make_accelerator
from utils.errors import InputError, run, say, write_whole
from utils.folders import SYNTHETIC_TREE, WRITTEN_REPORTS, making
from utils.mimic_cxr import read_table
from utils.seeds import keyed_seed

# what to load and where to write
CHECKPOINT = "runs/prior/best"  # a checkpoint folder of train_prior_model.py, or the authors' .ckpt
BART_CHECKPOINT = ""  # the report autoencoder it was trained with, or the authors' .ckpt; empty: where it was then
POOLING = "mean"  # of an authors' BART, whose file does not say it (mean, bos or eos)
TOKENIZER = "facebook/bart-base"  # folder or hub id: the tokenizer of an authors' BART
BASE_MODEL = ""  # folder or hub id whose VAE encodes images without kept latents; empty: the one of the training
OUTPUT_ROOT = "synthetic/clipUViT"  # for the reports (a folder to write; a synthetic CXR tree of ours, or a new one)
DATA_ROOT = ""  # the CXR tree whose images get reports; empty: OUTPUT_ROOT, which has to be a synthetic tree then
VIEWS = ()  # ViewPosition of the images; () for all (the authors' code too)
SPLIT = ""  # the images of one split (train, validate, test or empty; empty: all; paper: test)
HOLD_OUT = ("p19",)  # patient groups that count as the split "test"; those of the trainings, which are compared
# how to write
LATENT_GAIN = 1.0  # of a regression's deviation from the mean report; higher says more (0 to 100; paper: 1)
IMAGE_GUIDANCE = 1.0  # of a flow's draws by the image; higher says more, varies less (0 to 100; 1: none)
FLOW_TEMPERATURE = 1.0  # of the noise that a flow's draws begin with; lower is surer, varies less (0 to 100)
CANDIDATES = 1  # reports drawn for an image, of which one is kept by what is read in the image (1 to 1000)
RECONSTRUCT = False  # also write what BART makes of each image's own report, the ceiling of a written one
DECODING = "beam"  # how tokens are chosen (greedy, beam or nucleus; the authors' code: nucleus with TOP_P 1)
BEAMS = 4  # reports followed at a time by beam search (1 to 64)
TOP_P = 0.9  # probability that the tokens of a nucleus draw hold together (above 0, 1 at most; the authors' code: 1)
TEMPERATURE = 1.0  # of a nucleus draw; below 1 likelier tokens are drawn more often (above 0, 100 at most)
MAX_TOKENS = 512  # tokens a report at most (1 or more)
BATCH_SIZE = 32  # images at a time, a process (1 to 65536)
SEED = 1234  # of nucleus draws and of the VAE's posterior, for each image its own (0 or more)
# running
PRECISION = "no"  # of the arithmetic (auto, no, bf16 or fp16; auto: bf16 where the device has it; paper: no)
DEVICE = ""  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
NUM_WORKERS = 4  # threads that decode images (0 to 256)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device = accelerator.device
    output_root, tree = Path(OUTPUT_ROOT), DATA_ROOT or OUTPUT_ROOT
    own = Path(tree).resolve() == output_root.resolve()
    if own and RECONSTRUCT:
        way_out = "set RECONSTRUCT to False, or name a tree of real images as DATA_ROOT"
        raise InputError(f"the images of {tree} have no reports but those that are written here: {way_out}")

    prior, training = load_prior(CHECKPOINT)
    prior = prior.to(device).eval()
    bart = BART_CHECKPOINT or training["constants"]["BART_CHECKPOINT"]
    autoencoder = load_autoencoder(bart, POOLING, TOKENIZER).to(device).eval()
    check_encoders(training, bart=autoencoder.fingerprint(), pooling=autoencoder.pooling)
    check_hold_out(HOLD_OUT, CHECKPOINT=CHECKPOINT, BART_CHECKPOINT=bart)
    if CANDIDATES > 1 and prior.config.kind != "flow" and DECODING != "nucleus":
        why = f"this prior predicts a mean, and DECODING {DECODING} is not random"
        way_out = "set CANDIDATES to 1, or DECODING to nucleus, or train a prior with PRIOR flow"
        raise InputError(f"{CANDIDATES} CANDIDATES would be the same report: {why}; {way_out}")
    images = "" if own else str(Path(tree).resolve())
    settings = reports.manifest_settings(constants, images, prior, autoencoder, accelerator.mixed_precision)
    random_from = reports.training_reports(training) if CANDIDATES > 1 else []
    arguments = reports.sampling_arguments(constants)

    def decode(report_latents, seeds):
        return autoencoder.generate(report_latents, **arguments["decoding"], seeds=seeds)

    def draw(latents, seeds):
        return decode(prior.sample(latents, seeds, **arguments["prior"]), seeds)

    def write(latents, rows):
        names, texts = rows["noise_name"], {}
        with accelerator.autocast():
            read = prior.read_flags(latents) if CANDIDATES > 1 else None  # what the image shows; never the request
            texts["report"] = write_best(latents, names, draw, CANDIDATES, SEED, read, prior.config.flags)
            if RECONSTRUCT:
                seeds = [keyed_seed(SEED, name) for name in names]
                texts[reports.RECONSTRUCTION] = reports.reconstruct(autoencoder, rows["report"], seeds, decode)
        if random_from:
            drawn = reports.random_reports(random_from, names, CANDIDATES, SEED)
            texts[reports.FLOOR] = best_reports(drawn, read, prior.config.flags)
        return texts

    image_latents = reports.ImageLatents(tree, prior, training, BASE_MODEL, SEED, NUM_WORKERS)
    trial = pd.DataFrame({"noise_name": [""], "report": "Clear lungs."})
    write(torch.zeros(1, *image_latents.shape), trial)  # what can fail, fails before the manifest

    with making(WRITTEN_REPORTS, output_root, settings, SYNTHETIC_TREE if own else "", accelerator.is_main_process):
        table = read_table(tree, "", VIEWS, (SPLIT,) if SPLIT else (), HOLD_OUT, with_reports=RECONSTRUCT)
        table["noise_name"] = reports.noise_names(tree, table)
        has_reports = (table["report"] != "").any()
        if RECONSTRUCT and not has_reports:
            say(f"{tree} has no reports, so none is reconstructed")
        file = reports.Reports(output_root, table, has_reports, bool(random_from))
        missing = table[~table["dicom_id"].isin(file.written["dicom_id"])]
        kept = sum((image_latents.folder / f"{dicom_id}.npy").exists() for dicom_id in missing["dicom_id"])
        if kept < len(missing):
            image_latents.load_vae()
        said = f"{len(table)} images, {len(table) - len(missing)} with a report already"
        say(f"{said}; {kept} of the others have kept latents")
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        if accelerator.is_main_process:
            write_whole(output_root / "reports.json", json.dumps({"constants": constants}, indent=2) + "\n")
        reports.write_reports(missing, image_latents, write, file, BATCH_SIZE, accelerator)
        empty = (file.written["report"] == "").sum()
        say(f"{output_root}: {len(file.written)} reports, {empty} of them empty; {len(file.first_images)} studies")
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
