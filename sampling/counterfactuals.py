"""Counterfactual twins of films: one finding changed, everything else the same (models/editing.py changes the film).

A *film* is a real one, copied into the tree, or one that is made for a request. A *twin* is a request whose label
vector differs from its film's in one finding, and in No Finding where that follows; `source` is its film's dicom_id,
and its noise has its film's seed. Prompts name findings; references, which show another patient's, are left out.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from models.diffusion import Edit
from models.editing import change_map, change_mask, paste
from sampling.images import ImageSampler
from sampling.plan import new_dicom_id, save_plan
from sampling.tree import SyntheticTree
from utils import findings as cxr
from utils.cache import load_or_name
from utils.csv_files import write_csv
from utils.errors import InputError, replacing, say, writing
from utils.findings import FINDINGS
from utils.latents import encode_moments, mean_latents
from utils.mimic_cxr import TWIN_COLUMNS, TWINS_FILE
from utils.pixels import read_grey, read_pixels
from utils.seeds import keyed_seed

PICTURE_FILE, PICTURE_TWINS = "counterfactuals.png", 16  # film, twin and difference (grey: none) of the first twins


def readable_films(films: pd.DataFrame, table: pd.DataFrame, image_size: int) -> pd.DataFrame:
    """The requests of films whose images can be read, the others are named; table: where they are, by `source`."""
    read = partial(load_or_name, partial(read_grey, size=image_size, refuse_blank=True))
    paths = films["source"].map(table.set_index("dicom_id")["image_path"])
    kept = [read(path) is not None for path in tqdm(paths, desc="films", disable=None)]
    if not any(kept):
        raise InputError(f"none of {len(films)} films can be read, e.g. {paths.iloc[0]}: is their tree whole?")
    return films[kept]


def twins_of(films: pd.DataFrame, finding: str, limit: int, seed: int, train: pd.DataFrame) -> pd.DataFrame:
    """Requests of films => requests of their twins, in an order in which findings and directions alternate.

    finding: the one that changes, "" for each in turn; limit: so many at most, 0 for all (a larger one keeps those of a
    smaller one). Present becomes absent (or not mentioned, if no row of `train` states its absence), absent or not
    mentioned becomes present; uncertain findings have no twin. InputError where there is no twin at all.
    """
    changed = [cxr.finding_index(finding)] if finding else range(len(FINDINGS))
    no_finding = FINDINGS.index("No Finding")
    if finding and changed[0] == no_finding:
        raise InputError("TOGGLE is No Finding, which follows from the other findings: name one of these")
    twins = []
    for index in changed:
        absent = cxr.ABSENT if (train[FINDINGS[index]] == cxr.ABSENT).any() else cxr.NOT_MENTIONED
        for film in films.to_dict("records") if index != no_finding else ():
            labels = np.array([film[name] for name in FINDINGS], dtype=np.int8)
            if labels[index] == cxr.UNCERTAIN:
                continue
            code = absent if labels[index] == cxr.PRESENT else cxr.PRESENT
            labels = cxr.with_code(labels, index, code)
            own = {"source": film["dicom_id"], "dicom_id": new_dicom_id(film["dicom_id"], FINDINGS[index])}
            rank = keyed_seed(seed, "twin", film["seed"], index)  # the same for every checkpoint
            own |= {"prompt": cxr.to_prompt(labels), "change": (index, code), "rank": rank}
            twins.append(film | own | dict(zip(FINDINGS, labels)))
    if not twins:
        raise InputError(f"no film has a twin: {finding or 'every finding'} is uncertain in all of them; set FINDINGS")
    twins = pd.DataFrame(twins).sort_values("rank")
    order = twins.groupby("change").cumcount().sort_values(kind="stable").index
    return twins.loc[order].drop(columns=["change", "rank"]).head(limit or None).reset_index(drop=True)


@dataclass(frozen=True)
class TwinSampler(ImageSampler):
    """An ImageSampler that draws twins; settings: also those of sample_counterfactuals.py alone, such as strength."""

    films: pd.DataFrame | None = None  # the plan's rows of their films, indexed by dicom_id

    def make(self, requests: pd.DataFrame) -> tuple[np.ndarray, None]:
        """The twins (B, S, S) uint8; their latents are not those of the images, and are not kept."""
        films = self.films.loc[requests.source]
        pixels = torch.stack([read_pixels(path, self.settings["image_size"]) for path in films.image_path])
        latents = mean_latents(encode_moments(self.vae, pixels), self.vae.config.scaling_factor)
        before, after = (self.prompts(rows)[0].to(latents.device) for rows in (films, requests))
        with self.autocast():
            changes = change_map(self.denoiser, latents, before, after, requests.seed.tolist())
        redrawn = change_mask(changes, self.settings["redraw_threshold"]).to(latents.device)
        drawn = self.draw(requests, Edit(latents, redrawn, self.settings["strength"]))
        with self.autocast():
            changes = changes + change_map(self.denoiser, drawn, before, after, requests.seed.tolist())
        kept = redrawn * change_mask(changes, self.settings["mask_threshold"]).to(latents.device)
        grey = pixels[:, 0].add(1).mul(127.5).round().byte().numpy()
        return paste(grey, latents, drawn, kept, self.vae, self.settings["least_change"]), None


def copy_films(tree: SyntheticTree, films: pd.DataFrame, table: pd.DataFrame, size: int, accelerator: Accelerator):
    """Writes the real films that the tree does not have yet; table: where they are, by `source`. All processes call."""
    paths = dict(zip(table["dicom_id"], table["image_path"]))
    missing = films[~tree.exist(films)]
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_plan(tree.root, tree.plan)
        for film in missing.itertuples():
            tree.save(film, read_grey(paths[film.source], size))
    accelerator.wait_for_everyone()


def save_twins(tree: SyntheticTree, strength: float, image_size: int):
    """Writes counterfactuals.csv, a row a twin that exists, and counterfactuals.png of the first of them."""
    there = tree.plan[tree.exist(tree.plan)]
    films = there.set_index("dicom_id")
    rows = []
    for twin in there[there.source.isin(films.index)].to_dict("records"):
        film = films.loc[twin["source"]]
        finding = next(name for name in FINDINGS if film[name] != twin[name] and name != "No Finding")
        values = twin["dicom_id"], twin["source"], film["source"], finding
        rows.append((*values, cxr.CODE_NAMES[film[finding]], cxr.CODE_NAMES[twin[finding]], "DiffEdit", strength))
    rows = pd.DataFrame(rows, columns=TWIN_COLUMNS)
    write_csv(tree.root / TWINS_FILE, rows)
    say(f"{tree.root / TWINS_FILE}: {len(rows)} twins")
    shown = []
    for twin, film in rows[["dicom_id", "film_dicom_id"]].head(PICTURE_TWINS).itertuples(index=False):
        before, after = (read_grey(films["image_path"][name], image_size).astype(int) for name in (film, twin))
        shown.append(np.concatenate([before, after, np.clip(128 + after - before, 0, 255)], axis=1))
    if shown:
        with writing(PICTURE_FILE, tree.root), replacing(tree.root / PICTURE_FILE) as temporary:
            Image.fromarray(np.concatenate(shown).astype(np.uint8)).save(temporary, format="PNG")
