"""The images of an evaluation: three tables whose files are read once, and their features, each computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from accelerate import Accelerator

from evaluation.judges import Extractor, Judge, cache_pixels, extract, file_reader, pixel_reader
from utils.errors import InputError, say
from utils.findings import FINDINGS


@dataclass(frozen=True)
class Loading:
    """How images are read, and where what was computed from them is kept."""

    cache_dir: str
    image_size: int  # pixels at which images are compared: the generator's, which can draw nothing finer
    batch_size: int  # images at a time
    accelerator: Accelerator


class Images:
    """The readable images of one table, and their features.

    Attributes: table, of these; cache and keys, of their pixels at the judge's size; unreadable, how many are left out.
    """

    def __init__(self, table: pd.DataFrame, name: str, judge_size: int, loading: Loading):
        self.loading, self.device = loading, loading.accelerator.device
        self.cache, self.keys, readable = cache_pixels(table, judge_size, loading.cache_dir, loading.accelerator)
        self.unreadable = int((~readable).sum())
        if self.unreadable:
            say(f"{name}: {self.unreadable} of {len(table)} images cannot be read and are left out of everything")
        self.table = table[readable].reset_index(drop=True)
        if len(self.table) < 2:
            raise InputError(f"{name} has {len(self.table)} readable images; an evaluation needs 2 or more")
        self._encoded = {}  # (extractor, its rows) => features, probabilities

    def __len__(self) -> int:
        return len(self.table)

    def count(self) -> dict[str, int]:
        return {"N": len(self), "unreadable": self.unreadable}

    def codes(self) -> np.ndarray:
        """The codes of the 14 findings, (N, 14)."""
        return self.table[list(FINDINGS)].to_numpy()

    def subjects(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The patients of all images, (N,), or of some rows; several images of one request count as one patient's."""
        subjects, made = self.table["subject_id"].astype(str), self.table.get("source", self.table["dicom_id"])
        if made.nunique() > 1:
            subjects = subjects.mask((made != "") & (made != self.table["dicom_id"]), made)
        return subjects.to_numpy()[slice(None) if rows is None else rows]

    def pixels(self, rows: Sequence[int] | None = None) -> np.ndarray:
        """All images, or those of some rows, at the judge's size, (n, S, S) uint8."""
        return self.cache.stack(self.keys if rows is None else [self.keys[row] for row in rows])

    def encode(self, extractor: Judge | Extractor, rows: np.ndarray | None = None) -> tuple:
        """Features (N, D) and probabilities (N, 14) or None of all images, or of rows, (..., D) and (..., 14).

        Each is computed once. The judge encodes all images, which several sections need; another extractor only rows.
        """
        is_judge, places = isinstance(extractor, Judge), rows
        used = np.arange(len(self))
        if rows is not None and not is_judge:
            used, places = np.unique(rows, return_inverse=True)
            places = places.reshape(rows.shape)
        key = extractor.name, used.tobytes()
        if key not in self._encoded:
            paths, size = self.table["image_path"].iloc[used].tolist(), self.loading.image_size
            read = pixel_reader(self.cache, self.keys) if is_judge else file_reader(paths, size, extractor.image_size)
            self._encoded[key] = extract(extractor, read, len(paths), self.device, self.loading.batch_size)
        if places is None:
            return self._encoded[key]
        return tuple(None if values is None else values[places] for values in self._encoded[key])


@dataclass(frozen=True)
class ImageSets:
    """The images of an evaluation."""

    real: Images  # to compare with
    synthetic: Images  # to evaluate
    train: Images  # real ones that judges and generators learn from: searched for copies, drawn from for baselines
    copies: np.ndarray  # for each synthetic image the row of the training image that a copier would give
    seed: int  # of all draws
    unseen: Images | None = None  # further real images, of patients whom the judge does not know; None: there are none
    ceiling: np.ndarray | None = None  # rows of the real images whose patients set no threshold; None: all
    floor: np.ndarray | None = None  # for each synthetic image the row of a training pair selected in the same way
