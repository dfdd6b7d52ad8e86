"""Writes the report of every image of a CXR tree, a synthetic one first of all: image => prior => BART's decoder.

    python sample_prior_model.py --CHECKPOINT runs/prior/best --OUTPUT_ROOT synthetic/clipUViT
    python sample_prior_model.py --DATA_ROOT /data/mimic-cxr-jpg --VIEWS PA --SPLIT test --OUTPUT_ROOT written/test
    accelerate launch --num_processes 4 sample_prior_model.py --config my.toml

Reads:  CHECKPOINT (of train_prior_model.py), BART_CHECKPOINT, DATA_ROOT (a CXR tree; empty: OUTPUT_ROOT): its kept
        latents (DATA_ROOT/latents) where it has them, else its images, through the VAE that the prior was trained with
Writes: OUTPUT_ROOT/files/pNN/pNNNNNNNN/sNNNNNNNN.txt (a report each study, in MIMIC-CXR's layout),
        OUTPUT_ROOT/{manifest.json,reports.csv,reports.json}; a second run adds what is missing
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from evaluation.selection import check_candidates, requested_findings, write_best
from models.prior import Prior
from models.weights import load_autoencoder, load_prior
from utils.checkpoints import check_encoders, check_hold_out, weights_fingerprint
from utils.csv_files import read_csv
from utils.devices import make_accelerator
from utils.errors import InputError, Stopped, reason, replacing, run, say, stoppable, writing
from utils.findings import FINDINGS
from utils.folders import SYNTHETIC_TREE, WRITTEN_REPORTS, is_same_folder, making
from utils.latents import draw_posterior, encode_moments, load_vae, read_pixels
from utils.mimic_cxr import image_file, read_table
from utils.report_text import report_file, report_sections
from utils.seeds import keyed_generator

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
CANDIDATES = 1  # reports drawn for an image at most, of which one is kept, see evaluation/selection.py (1 to 1000)
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

_SAVE_EVERY = 1000  # reports between two writings of reports.csv: what a kill can lose


class ImageLatents:
    """The latents of a tree's images, which the prior reads: the kept ones, else a draw of the VAE's posterior."""

    def __init__(self, tree: str | Path, prior: Prior, training: dict, base_model: str, seed: int, threads: int):
        self.folder, self.training, self.device = Path(tree) / "latents", training, prior.device
        self.shape = (prior.config.latent_channels, prior.config.latent_side, prior.config.latent_side)
        self.base_model = base_model or training["constants"]["BASE_MODEL"]
        self.image_size, self.seed, self.threads = training["constants"]["IMAGE_SIZE"], seed, threads
        self.vae = None  # loaded when an image has to be encoded

    def load_vae(self):
        """Loads the VAE, if it is not; InputError for another one than the prior was trained with."""
        if self.vae is None:
            self.vae = load_vae(self.base_model, self.device)
            check_encoders(self.training, vae=weights_fingerprint(self.vae))

    def count_kept(self, table: pd.DataFrame) -> int:
        """How many rows of a table have kept latents."""
        return sum(self._file(dicom_id).exists() for dicom_id in table["dicom_id"])

    def __call__(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, torch.Tensor]:
        """Rows => (those whose image can be read, their latents (n, C, h, w), unit variance)."""
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            latents = list(pool.map(self._read_kept, rows["dicom_id"]))
            absent = [place for place, values in enumerate(latents) if values is None]
            images = list(pool.map(self._read_image, rows["image_path"].iloc[absent]))
        for place, pixels in zip(absent, images):
            if pixels is not None:
                latents[place] = self._encode(pixels, rows["dicom_id"].iloc[place])
        readable = rows[np.array([values is not None for values in latents], dtype=bool)]
        found = [values for values in latents if values is not None]
        return readable, torch.stack(found) if found else torch.zeros(0, *self.shape)

    def _encode(self, pixels, dicom_id):
        """pixels (3, S, S) => latents (C, h, w), a draw of the posterior by the image's own seed."""
        self.load_vae()
        moments = encode_moments(self.vae, pixels[None])[0].float().cpu()  # (2C, h, w)
        generator = keyed_generator(self.seed, "posterior", dicom_id)
        return draw_posterior(moments, generator, self.vae.config.scaling_factor)

    def _read_image(self, path):
        """The pixels (3, S, S) of an image; None for one that cannot be read, which is named."""
        try:
            return read_pixels(path, self.image_size, refuse_blank=True)
        except (OSError, ValueError) as error:
            tqdm.write(f"left out: {error}")
            return None

    def _file(self, dicom_id):
        return self.folder / f"{dicom_id}.npy"

    def _read_kept(self, dicom_id):
        """The kept latents (C, h, w) of an image; None where there are none, or damaged ones, which are named."""
        path = self._file(dicom_id)
        try:
            with open(path, "rb") as file:
                latents = torch.from_numpy(np.lib.format.read_array(file).astype(np.float32))
            if not torch.isfinite(latents).all():
                raise ValueError("it holds NaN or infinity")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            tqdm.write(f"damaged: {path} ({reason(error)}); the latents are made again from the image")
            return None
        if latents.shape != self.shape:
            raise InputError(
                f"{path} holds latents of the shape {tuple(latents.shape)}, and the prior reads {self.shape}: it was "
                "trained for another image size; take a prior of this size, or remove the folder latents"
            )
        return latents


class Reports:
    """reports.csv and the .txt files of its studies; a study with several images gets the report of its first one.

    table: the images to write reports for. InputError where the reports.csv of an earlier run is damaged.
    """

    def __init__(self, root: Path, table: pd.DataFrame):
        self.root, self.path = root, root / "reports.csv"
        self.first_images = set(table.drop_duplicates(["subject_id", "study_id"])["dicom_id"])
        self.pending = []  # rows that are not in reports.csv yet
        self.written = pd.DataFrame({"dicom_id": [], "study_id": [], "report": []})
        if self.path.exists():
            self.written = read_csv(self.path, ("dicom_id", "study_id", "report"), texts=("dicom_id", "report"))
            repeated = self.written["dicom_id"].duplicated()
            if repeated.any():
                name = self.written["dicom_id"][repeated.to_numpy().argmax()]
                raise InputError(f"{self.path} is damaged: it has two reports of {name}; remove one of the rows")

    def add(self, rows: list[dict]):
        """rows: with dicom_id, subject_id, study_id and report."""
        self.pending += rows
        if len(self.pending) >= _SAVE_EVERY:
            self.save()

    def save(self):
        """Writes what is pending: the .txt files first, so that each report in reports.csv has its file."""
        if not self.pending:
            return
        new = pd.DataFrame(self.pending)
        with writing("reports", self.root):
            for row in new.itertuples():
                if row.dicom_id in self.first_images and row.report:
                    self._save_file(row)
            rows = pd.concat([self.written, new[["dicom_id", "study_id", "report"]]]).astype({"study_id": int})
            rows = rows.sort_values(["study_id", "dicom_id"], ignore_index=True)
            with replacing(self.path) as temporary:
                rows.to_csv(temporary, index=False, lineterminator="\n")
        self.written, self.pending = rows, []

    def _save_file(self, row):
        path = image_file(self.root, row.subject_id, row.study_id, row.dicom_id).parent.with_suffix(".txt")
        findings, impression = report_sections(row.report)
        if not findings and not impression:  # text without a heading
            findings = row.report
        with replacing(path) as temporary:
            temporary.write_text(report_file(findings, impression), encoding="utf-8")


def write_reports(
    table: pd.DataFrame, image_latents: ImageLatents, write: Callable, reports: Reports, batch_size: int,
    accelerator: Accelerator,
):  # fmt: skip
    """Writes the reports of a table's images, each process its share. Whatever ends this, all reports made are saved.

    write: latents (n, C, h, w) and their n rows => n reports. SIGTERM ends it after the batch (Stopped).
    """
    size = batch_size * accelerator.num_processes
    progress = tqdm(total=len(table), desc="reports", disable=not accelerator.is_main_process)
    with stoppable() as stopped, progress:
        try:
            for start in range(0, len(table), size):
                batch = table.iloc[start : start + size]
                mine, latents = image_latents(batch.iloc[accelerator.process_index :: accelerator.num_processes])
                texts = write(latents, mine) if len(mine) else []
                made = mine[["dicom_id", "subject_id", "study_id"]].assign(report=texts).to_dict("records")
                made, stops = zip(*gather_object([(made, stopped())]))  # of all processes, so that all end together
                if accelerator.is_main_process:
                    reports.add([row for rows in made for row in rows])
                progress.update(len(batch))
                if any(stops):
                    place = reports.root
                    raise Stopped(
                        f"stopped; the reports written so far are in {place}: the same command goes on from there"
                    )
        finally:
            if accelerator.is_main_process:
                reports.save()


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    device = accelerator.device
    output_root, tree = Path(OUTPUT_ROOT), DATA_ROOT or OUTPUT_ROOT
    own = is_same_folder(tree, output_root)

    prior, training = load_prior(CHECKPOINT)
    prior = prior.to(device).eval()
    bart = BART_CHECKPOINT or training["constants"]["BART_CHECKPOINT"]
    autoencoder = load_autoencoder(bart, POOLING, TOKENIZER).to(device).eval()
    check_encoders(training, bart=autoencoder.fingerprint(), pooling=autoencoder.pooling)
    check_hold_out(HOLD_OUT, CHECKPOINT=CHECKPOINT, BART_CHECKPOINT=bart)
    flows = prior.config.kind == "flow"
    check_candidates(CANDIDATES, flows, DECODING)
    settings = {
        "images": "" if own else str(Path(tree).resolve()),
        "prior": weights_fingerprint(prior),
        "bart": autoencoder.fingerprint(),
        **({"IMAGE_GUIDANCE": IMAGE_GUIDANCE, "FLOW_TEMPERATURE": FLOW_TEMPERATURE} if flows else {}),
        "LATENT_GAIN": 1 if flows else LATENT_GAIN,
        **({"CANDIDATES": CANDIDATES} if CANDIDATES > 1 else {}),
        "DECODING": DECODING,
        "BEAMS": BEAMS if DECODING == "beam" else 0,
        "TOP_P": TOP_P if DECODING == "nucleus" else 0,
        "TEMPERATURE": TEMPERATURE if DECODING == "nucleus" else 0,
        "MAX_TOKENS": MAX_TOKENS,
        "SEED": SEED,
        "precision": accelerator.mixed_precision,
    }

    def draw(latents, seeds):
        report_latents = prior.sample(latents, seeds, LATENT_GAIN, IMAGE_GUIDANCE, FLOW_TEMPERATURE)  # (n, D)
        return autoencoder.generate(report_latents, DECODING, BEAMS, TOP_P, TEMPERATURE, MAX_TOKENS, seeds)

    def write(latents, rows):
        with accelerator.autocast():
            wanted = requested_findings(rows) if own else prior.read_findings(latents)
            return write_best(latents, rows["dicom_id"], draw, CANDIDATES, SEED, wanted)

    side = prior.config.latent_side
    made_up = pd.DataFrame(0, index=[0], columns=["dicom_id", *FINDINGS])
    write(torch.zeros(1, prior.config.latent_channels, side, side), made_up)  # what can fail, fails before the manifest

    inside = SYNTHETIC_TREE if own else ""
    with making(WRITTEN_REPORTS, output_root, settings, inside, accelerator.is_main_process):
        splits = (SPLIT,) if SPLIT else ()
        table = read_table(tree, views=VIEWS, splits=splits, hold_out=HOLD_OUT, with_reports=False)
        reports = Reports(output_root, table)
        missing = table[~table["dicom_id"].isin(reports.written["dicom_id"])]
        image_latents = ImageLatents(tree, prior, training, BASE_MODEL, SEED, NUM_WORKERS)
        kept = image_latents.count_kept(missing)
        if kept < len(missing):
            image_latents.load_vae()
        done = len(table) - len(missing)
        say(f"{len(table)} images, {done} with a report already; {kept} of the others have kept latents")
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        if accelerator.is_main_process:
            with writing("reports.json", output_root), replacing(output_root / "reports.json") as temporary:
                temporary.write_text(json.dumps({"constants": constants}, indent=2) + "\n")
        write_reports(missing, image_latents, write, reports, BATCH_SIZE, accelerator)
        empty = (reports.written["report"] == "").sum()
        studies = len(reports.first_images)
        say(f"{output_root}: {len(reports.written)} reports, {empty} of them empty; {studies} studies")
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
