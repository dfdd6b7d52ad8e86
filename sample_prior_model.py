"""Writes the report of every image of a CXR tree, a synthetic one first of all: image => prior => BART's decoder.

    python sample_prior_model.py --CHECKPOINT runs/prior/best --OUTPUT_ROOT synthetic/clipUViT
    python sample_prior_model.py --DATA_ROOT /data/mimic-cxr-jpg --VIEWS PA --SPLIT test --OUTPUT_ROOT written/test
    accelerate launch --num_processes 4 sample_prior_model.py --config my.toml

Reads:  CHECKPOINT (of train_prior_model.py), BART_CHECKPOINT, DATA_ROOT (a CXR tree; empty: OUTPUT_ROOT): its kept
        latents (DATA_ROOT/latents) where it has them, else its images, through the VAE that the prior was trained with
Writes: OUTPUT_ROOT/files/pNN/pNNNNNNNN/sNNNNNNNN.txt (a report each study, in MIMIC-CXR's layout),
        OUTPUT_ROOT/{reports.csv,reports.json}; a second run adds what is missing
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from utils.checkpoints import check_encoders, weights_fingerprint
from utils.errors import InputError, replacing, run, say, writing
from utils.latents import draw_posterior, encode_moments, load_vae, read_pixels
from utils.mimic_cxr import PROVENANCE_FILE, image_file, read_table
from utils.report_text import report_file, report_sections
from utils.seeds import keyed_generator, keyed_seed
from utils.training import make_accelerator
from utils.weights import load_autoencoder, load_prior

# what to load and where to write
CHECKPOINT = "runs/prior/best"  # a checkpoint folder of train_prior_model.py, or the authors' .ckpt
BART_CHECKPOINT = ""  # the report autoencoder it was trained with, or the authors' .ckpt; empty: where it was then
POOLING = "mean"  # of an authors' BART, whose file does not say it: mean, bos or eos
TOKENIZER = "facebook/bart-base"  # folder or hub id: the tokenizer of an authors' BART
BASE_MODEL = ""  # whose vae encodes images without kept latents; empty: the one of the prior's training
OUTPUT_ROOT = "synthetic/clipUViT"  # where the reports go: a synthetic CXR tree, or a folder of their own
DATA_ROOT = ""  # the CXR tree whose images get reports; empty: OUTPUT_ROOT, which has to be a synthetic tree then
VIEWS = ()  # ViewPosition of the images; () for all (paper: PA)
SPLIT = ""  # the images of one split; empty: all (paper: test)
HOLD_OUT = ("p19",)  # patient groups that count as the split "test", as in training
# how to write
LATENT_GAIN = 1.0  # of the predicted latents' deviation from the mean report; higher says more (paper: 1)
DECODING = "beam"  # greedy, beam or nucleus (paper: greedy)
BEAMS = 4  # reports followed at a time by beam search
TOP_P = 0.9  # probability that the tokens of a nucleus draw hold together
TEMPERATURE = 1.0  # of a nucleus draw; below 1 likelier tokens are drawn more often
MAX_TOKENS = 512  # tokens a report at most
BATCH_SIZE = 32  # images at a time, a process
SEED = 1234  # of nucleus draws and of the VAE's posterior, for each image its own
# running
PRECISION = "no"  # auto (bf16 where the device has it), no, bf16 or fp16
DEVICE = ""  # cpu, cuda, cuda:1 ...; empty: the best there is
NUM_WORKERS = 4  # threads that decode images

SAVE_EVERY = 1000  # reports between two writings of reports.csv: what a kill can lose


class ImageLatents:
    """The latents that the prior reads, of any image of a tree: the kept ones, else a draw of the VAE's posterior."""

    def __init__(self, tree, table, prior, training, base_model, seed, threads):
        self.folder = Path(tree) / "latents"
        self.shape = (prior.config.latent_channels, prior.config.latent_side, prior.config.latent_side)
        self.image_size, self.seed, self.threads = training["constants"]["IMAGE_SIZE"], seed, threads
        self.vae = None
        kept = sum(self.kept(dicom_id).exists() for dicom_id in table["dicom_id"])
        if kept < len(table):
            self.vae = load_vae(base_model or training["constants"]["BASE_MODEL"], prior.device)
            check_encoders(training, vae=weights_fingerprint(self.vae))
        self.kept_rows = kept

    def kept(self, dicom_id):
        return self.folder / f"{dicom_id}.npy"

    def __call__(self, rows):
        """Rows of the table => (those whose image could be read, their latents (n, C, h, w), unit variance)."""
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            found = list(pool.map(self._read, rows.to_dict("records")))
        latents = []
        for row, (kind, value) in zip(rows.itertuples(), found):
            if kind == "pixels":
                moments = encode_moments(self.vae, value[None])[0].float().cpu()  # (2C, h, w)
                generator = keyed_generator(self.seed, "posterior", row.dicom_id)
                value = draw_posterior(moments, generator, self.vae.config.scaling_factor)
            if kind != "unreadable":
                latents.append(value)
        readable = rows[np.array([kind != "unreadable" for kind, _ in found], dtype=bool)]
        return readable, torch.stack(latents) if latents else torch.zeros(0, *self.shape)

    def _read(self, row):
        path = self.kept(row["dicom_id"])
        try:
            if not path.exists():
                return "pixels", read_pixels(row["image_path"], self.image_size)  # (3, S, S)
            latents = torch.from_numpy(np.load(path).astype(np.float32))
        except (OSError, ValueError) as error:
            tqdm.write(f"left out: {error}")
            return "unreadable", None
        if latents.shape != self.shape:
            raise InputError(
                f"{path} holds latents of the shape {tuple(latents.shape)}, and the prior reads {self.shape}: it was "
                "trained for another image size; take the prior of this size, or remove the folder latents"
            )
        return "latents", latents


def already_written(output_root, made_by):
    """reports.csv of an earlier run, or an empty one; InputError if other weights or settings wrote it."""
    path, about = output_root / "reports.csv", output_root / "reports.json"
    if not path.exists():
        return pd.DataFrame({"dicom_id": [], "study_id": [], "report": []})
    found = json.loads(about.read_text())["made_by"] if about.exists() else {}
    for name, value in made_by.items():
        if found.get(name) != value:
            raise InputError(
                f"{path} was written with {name} = {found.get(name)!r}, this run has {value!r}; remove reports.csv to "
                "write all reports anew, or set OUTPUT_ROOT to another folder"
            )
    return pd.read_csv(path, dtype={"dicom_id": str, "report": str}, keep_default_na=False)


def save_reports(output_root, reports, new, first_images):
    """Adds new rows to reports.csv, and the .txt of their studies: of a study's first image where it has several."""
    for row in new.itertuples():
        if row.dicom_id in first_images and row.report:
            path = image_file(output_root, row.subject_id, row.study_id, row.dicom_id).parent.with_suffix(".txt")
            findings, impression = report_sections(row.report)
            if not findings and not impression:  # text without a heading
                findings = row.report
            with replacing(path) as temporary:
                temporary.write_text(report_file(findings, impression), encoding="utf-8")
    reports = pd.concat([reports, new[["dicom_id", "study_id", "report"]]]).astype({"study_id": int})
    reports = reports.sort_values(["study_id", "dicom_id"], ignore_index=True)
    with replacing(output_root / "reports.csv") as temporary:
        reports.to_csv(temporary, index=False, lineterminator="\n")
    return reports


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device = accelerator.device
    output_root, tree = Path(OUTPUT_ROOT), DATA_ROOT or OUTPUT_ROOT
    if any(output_root.glob("mimic-cxr-2.*.csv*")) and not (output_root / PROVENANCE_FILE).exists():
        raise InputError(
            f"{output_root} is a CXR tree with reports of its own (there is no synthetic.csv in it), which are not "
            "written over: name it as DATA_ROOT, and a new folder as OUTPUT_ROOT"
        )

    prior, training = load_prior(CHECKPOINT)
    prior = prior.to(device).eval()
    bart = BART_CHECKPOINT or training["constants"]["BART_CHECKPOINT"]
    autoencoder = load_autoencoder(bart, POOLING, TOKENIZER).to(device).eval()
    check_encoders(training, bart=autoencoder.fingerprint(), pooling=autoencoder.pooling)

    splits = (SPLIT,) if SPLIT else ()
    table = read_table(tree, views=VIEWS, splits=splits, hold_out=HOLD_OUT, with_reports=False)
    first_images = set(table.drop_duplicates(["subject_id", "study_id"])["dicom_id"])
    made_by = {
        "prior": weights_fingerprint(prior),
        "bart": autoencoder.fingerprint(),
        "LATENT_GAIN": LATENT_GAIN,
        "DECODING": DECODING,
        "BEAMS": BEAMS if DECODING == "beam" else 0,
        "TOP_P": TOP_P if DECODING == "nucleus" else 0,
        "TEMPERATURE": TEMPERATURE if DECODING == "nucleus" else 0,
        "MAX_TOKENS": MAX_TOKENS,
        "SEED": SEED,
    }
    reports = already_written(output_root, made_by)
    missing = table[~table["dicom_id"].isin(reports["dicom_id"])]
    image_latents = ImageLatents(tree, missing, prior, training, BASE_MODEL, SEED, NUM_WORKERS)
    say(
        f"{len(table)} images, {len(table) - len(missing)} with a report already; {image_latents.kept_rows} of the "
        "others have kept latents"
    )
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if accelerator.is_main_process:
        with writing("reports.json", output_root):
            output_root.mkdir(parents=True, exist_ok=True)
            about = {"made_by": made_by, "constants": constants}
            (output_root / "reports.json").write_text(json.dumps(about, indent=2) + "\n")

    pending = []  # of the main process: rows that are not in reports.csv yet
    progress = tqdm(total=len(missing), desc="reports", disable=not accelerator.is_main_process)
    for start in range(0, len(missing), BATCH_SIZE * accelerator.num_processes):
        batch = missing.iloc[start : start + BATCH_SIZE * accelerator.num_processes]
        mine, latents = image_latents(batch.iloc[accelerator.process_index :: accelerator.num_processes])
        texts = []
        if len(mine):
            seeds = [keyed_seed(SEED, dicom_id) for dicom_id in mine["dicom_id"]]
            with accelerator.autocast():
                report_latents = prior.predict(latents, LATENT_GAIN)  # (n, D)
                texts = autoencoder.generate(report_latents, DECODING, BEAMS, TOP_P, TEMPERATURE, MAX_TOKENS, seeds)
        made = gather_object(mine[["dicom_id", "subject_id", "study_id"]].assign(report=texts).to_dict("records"))
        pending += made if accelerator.is_main_process else []
        progress.update(len(batch))
        last = start + len(batch) == len(missing)
        if accelerator.is_main_process and pending and (last or len(pending) >= SAVE_EVERY):
            with writing("reports", output_root):
                reports = save_reports(output_root, reports, pd.DataFrame(pending), first_images)
            pending = []
    progress.close()
    if accelerator.is_main_process:
        empty = (reports["report"] == "").sum()
        print(f"{output_root}: {len(reports)} reports, {empty} of them empty; {len(first_images)} studies")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
