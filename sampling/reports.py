"""Reports for the images of a tree: the latents that a prior reads, the reports beside it, and the files written."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from sampling.data_set import save_data_set
from utils.cache import load_or_name
from utils.checkpoints import check_encoders, weights_fingerprint
from utils.csv_files import csv_header, read_csv, write_csv
from utils.errors import InputError, Stopped, reason, say, stoppable, write_whole
from utils.latents import draw_latents, load_vae
from utils.mimic_cxr import image_file, read_table, read_twins
from utils.pixels import read_pixels
from utils.report_cleaning import clean_report
from utils.report_text import report_file, report_sections
from utils.seeds import keyed_seed

SAVE_EVERY = 1000  # reports between two writings of reports.csv: what a kill can lose
RECONSTRUCTION, FLOOR = "reconstruction", "floor"  # further columns of reports.csv, see sample_prior_model.py


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

    def __call__(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, torch.Tensor]:
        """Rows => (those whose image can be read, their latents (n, C, h, w), unit variance); see `noise_names`."""
        names = rows.get("noise_name", rows["dicom_id"])
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            latents = list(pool.map(self._read_kept, rows["dicom_id"]))
            absent = [place for place, values in enumerate(latents) if values is None]
            read = partial(read_pixels, size=self.image_size, refuse_blank=True)
            images = list(pool.map(partial(load_or_name, read), rows["image_path"].iloc[absent]))
        for place, pixels in zip(absent, images):
            if pixels is not None:
                self.load_vae()
                latents[place] = draw_latents(self.vae, pixels, self.seed, names.iloc[place])
        readable = rows[np.array([values is not None for values in latents], dtype=bool)]
        found = [values for values in latents if values is not None]
        return readable, torch.stack(found) if found else torch.zeros(0, *self.shape)

    def _read_kept(self, dicom_id):
        """The kept latents (C, h, w) of an image; None where there are none, or damaged ones, which are named."""
        path = self.folder / f"{dicom_id}.npy"
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
            shapes = f"the shape {tuple(latents.shape)}, and the prior reads {self.shape}"
            way_out = "it was trained for another image size; take a prior of this size, or remove the folder latents"
            raise InputError(f"{path} has {shapes}: {way_out}")
        return latents


class Reports:
    """reports.csv and the .txt files of its studies; a study with several images gets the report of its first one.

    table: the images to write reports for; reconstructs, has_floor: whether this run writes the columns RECONSTRUCTION
    and FLOOR; those of an earlier run stay. InputError where the reports.csv of an earlier run is damaged.
    """

    def __init__(self, root: Path, table: pd.DataFrame, reconstructs: bool = False, has_floor: bool = False):
        self.root, self.path = root, root / "reports.csv"
        wanted, there = {RECONSTRUCTION: reconstructs, FLOOR: has_floor}, csv_header(self.path)
        further = [name for name in wanted if wanted[name] or name in there]
        self.columns = ["dicom_id", "study_id", "report", *further]
        self.first_images = set(table.drop_duplicates(["subject_id", "study_id"])["dicom_id"])
        self.pending = []  # rows that are not in reports.csv yet, with subject_id and its columns
        self.written = pd.DataFrame(columns=self.columns)
        if self.path.exists():
            self.written = read_csv(self.path, self.columns[:3], ("report",), further, key=["dicom_id"])

    def save(self):
        """Writes what is pending: the .txt files first, so that each report in reports.csv has its file."""
        if not self.pending:
            return
        new = pd.DataFrame(self.pending).reindex(columns=["subject_id", *self.columns], fill_value="")
        for row in new.itertuples():
            if row.dicom_id in self.first_images and row.report:
                findings, impression = report_sections(row.report)
                if not findings and not impression:  # text without a heading
                    findings = row.report
                path = image_file(self.root, row.subject_id, row.study_id, row.dicom_id).parent.with_suffix(".txt")
                write_whole(path, report_file(findings, impression), "reports", self.root)
        rows = pd.concat([self.written, new[self.columns]]).astype({"study_id": int})
        rows = rows.sort_values(["study_id", "dicom_id"], ignore_index=True)
        write_csv(self.path, rows, "reports")
        self.written, self.pending = rows, []


def manifest_settings(constants: dict, images: str, prior: Prior, bart: ReportAutoencoder, precision: str) -> dict:
    """What a folder's manifest states of its reports; constants: those of the script, `images`: their tree's path."""
    decoding, several, flows = constants["DECODING"], constants["CANDIDATES"] > 1, prior.config.kind == "flow"
    of_flows = {name: constants[name] for name in ("IMAGE_GUIDANCE", "FLOW_TEMPERATURE") if flows}
    return {
        "images": images, "prior": weights_fingerprint(prior), "bart": bart.fingerprint(), **of_flows,
        "LATENT_GAIN": 1 if flows else constants["LATENT_GAIN"],
        **({"CANDIDATES": constants["CANDIDATES"], "chosen by": "image"} if several else {}),
        **({"RECONSTRUCT": True} if constants["RECONSTRUCT"] else {}),
        "DECODING": decoding, "BEAMS": constants["BEAMS"] if decoding == "beam" else 0,
        "TOP_P": constants["TOP_P"] if decoding == "nucleus" else 0,
        "TEMPERATURE": constants["TEMPERATURE"] if decoding == "nucleus" else 0,
        "MAX_TOKENS": constants["MAX_TOKENS"], "SEED": constants["SEED"], "precision": precision,
    }  # fmt: skip


def sampling_arguments(constants: dict) -> dict[str, dict]:
    """Constants => {"prior": arguments of `Prior.sample`, "decoding": those of `ReportAutoencoder.generate`}."""
    prior = {"gain": "LATENT_GAIN", "guidance": "IMAGE_GUIDANCE", "temperature": "FLOW_TEMPERATURE"}
    decoding = {name.lower(): name for name in ("DECODING", "BEAMS", "TOP_P", "TEMPERATURE", "MAX_TOKENS")}
    parts = {"prior": prior, "decoding": decoding}
    return {part: {name: constants[constant] for name, constant in names.items()} for part, names in parts.items()}


def noise_names(tree: str | Path, table: pd.DataFrame) -> pd.Series:
    """By which name the noise of each image's report is drawn: its dicom_id, of a counterfactual twin its film's."""
    own, twins = table["dicom_id"], read_twins(tree)
    return own if twins is None else own.map(twins.set_index("dicom_id")["film_dicom_id"]).fillna(own)


def training_reports(training: dict) -> list[str]:
    """The cleaned reports of the studies that a prior was trained on; [], and a note, where their tree is not there."""
    trained = training["constants"]
    try:
        table = read_table(
            trained["DATA_ROOT"], trained["REPORTS_ROOT"], trained["VIEWS"], ("train",), trained["HOLD_OUT"],
            check_images=False,
        )  # fmt: skip
    except InputError as error:
        say(f"without random training reports, the column `{FLOOR}`: {error}")
        return []
    reports = table.drop_duplicates("study_id")["report"].map(clean_report)
    return reports[reports != ""].tolist()


def random_reports(reports: list[str], dicom_ids: pd.Series, candidates: int, seed: int) -> list[list[str]]:
    """For each of n images as many random reports as it has candidates, by its dicom_id => candidates lists of n."""
    generators = [np.random.default_rng(keyed_seed(seed, FLOOR, dicom_id)) for dicom_id in dicom_ids]
    rows = np.transpose([generator.integers(len(reports), size=candidates) for generator in generators])
    return [[reports[row] for row in drawn] for drawn in rows]


def reconstruct(autoencoder: ReportAutoencoder, reports: pd.Series, seeds: list[int], decode: Callable) -> list[str]:
    """What BART makes of each of n reports: its latent, decoded again with its seed; "" where there is no report."""
    texts = reports.map(clean_report).tolist()
    if rows := [row for row, text in enumerate(texts) if text]:
        report_latents = autoencoder.encode_reports([texts[row] for row in rows])  # (m, D)
        for row, text in zip(rows, decode(report_latents, [seeds[row] for row in rows])):
            texts[row] = text
    return texts


def write_reports(
    table: pd.DataFrame, image_latents: ImageLatents, write: Callable, reports: Reports, batch_size: int,
    accelerator: Accelerator,
):  # fmt: skip
    """Writes the reports of a table's images, each process its share. Whatever ends this, all reports made are saved.

    write: latents (n, C, h, w) and their n rows => {column of reports.csv: n texts}. Stopped after a batch by SIGTERM.
    """
    size = batch_size * accelerator.num_processes
    progress = tqdm(total=len(table), desc="reports", disable=not accelerator.is_main_process)
    with stoppable() as stopped, progress:
        try:
            for start in range(0, len(table), size):
                batch = table.iloc[start : start + size]
                mine, latents = image_latents(batch.iloc[accelerator.process_index :: accelerator.num_processes])
                texts = write(latents, mine) if len(mine) else {}
                made = mine[["dicom_id", "subject_id", "study_id"]].assign(**texts).to_dict("records")
                made, stops = zip(*gather_object([(made, stopped())]))  # of all processes, so that all end together
                if accelerator.is_main_process:
                    reports.pending += [row for rows in made for row in rows]
                    if len(reports.pending) >= SAVE_EVERY:
                        reports.save()
                progress.update(len(batch))
                if any(stops):
                    raise Stopped(f"stopped; its reports are in {reports.root}: the same command goes on from there")
        finally:
            if accelerator.is_main_process:
                reports.save()
                save_data_set(reports.root)
