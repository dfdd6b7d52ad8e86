"""The choice of reference images.

A reference is an image of the training rows, never of its target's own patient. It is drawn at random among the
training rows with the target's label vector; if no other patient has it, among those with the nearest label vectors; if
there is no other patient at all, there is no reference (NONE; its embedding is the zero vector).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from utils.findings import FINDINGS, PRESENT

NONE = -1  # the row number of "no reference"


def label_distances(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far G label vectors (G, 14) are from one (14,), (G,): by differences in *being present*, then in any code."""
    presence = ((vectors == PRESENT) != (labels == PRESENT)).sum(axis=1)
    return presence * (len(FINDINGS) + 1) + (vectors != labels).sum(axis=1)


class References:
    """Draws references from a table of training rows; which label vectors are near: see `label_distances`."""

    def __init__(self, train_table: pd.DataFrame):
        # (G, 14): a group a label vector
        self.vectors, group_of_row = np.unique(_labels(train_table), axis=0, return_inverse=True)
        group_of_row = group_of_row.ravel()
        self._group = {vector.tobytes(): group for group, vector in enumerate(self.vectors)}
        self.subject_ids = train_table.subject_id.to_numpy()
        # all rows by group and by patient, so that a group is one span of places and a patient's rows one span in it
        self._rows = np.lexsort((self.subject_ids, group_of_row))
        self._subjects = self.subject_ids[self._rows]
        self._bounds = np.searchsorted(group_of_row[self._rows], np.arange(len(self.vectors) + 1))

    def draw(self, labels: np.ndarray, subject_id: int, generator: torch.Generator) -> int:
        """A training row to serve as reference, or NONE; labels: 14 codes; subject_id: the patient to avoid."""
        for groups in self._nearest(np.asarray(labels, dtype=np.int8)):
            spans = [span for group in groups for span in self._spans_of_others(group, subject_id)]
            if count := sum(end - start for start, end in spans):
                choice = int(torch.randint(count, (1,), generator=generator))
                for start, end in spans:
                    if choice < end - start:
                        return int(self._rows[start + choice])
                    choice -= end - start
        return NONE

    def draw_for(self, table: pd.DataFrame, generators: Sequence[torch.Generator]) -> np.ndarray:
        """One reference a row of a table => (len(table),) training rows or NONE. generators: one a row."""
        targets = zip(_labels(table), table.subject_id.to_numpy(), generators)
        return np.array([self.draw(*target) for target in targets], dtype=np.int64)

    def first_for(self, table: pd.DataFrame) -> np.ndarray:
        """The authors' choice: for each row the first training row of the same labels, of any patient, or NONE."""
        groups = [self._group.get(vector.tobytes()) for vector in _labels(table)]
        first = np.minimum.reduceat(self._rows, self._bounds[:-1]) if len(self._rows) else self._rows
        return np.array([NONE if group is None else first[group] for group in groups], dtype=np.int64)

    def count_kinds(self, table: pd.DataFrame) -> dict[str, int]:
        """The number of rows of a table by the kind of their references: "same labels", "nearest labels" or "none"."""
        counts = {"same labels": 0, "nearest labels": 0, "none": 0}
        ends = {self.subject_ids.min(), self.subject_ids.max()} if len(self.subject_ids) else set()
        for vector, subject_id in zip(_labels(table), table.subject_id.to_numpy()):
            group = self._group.get(vector.tobytes())
            spans = [] if group is None else self._spans_of_others(group, subject_id)
            has_same, has_others = any(start < end for start, end in spans), bool(ends - {subject_id})
            counts["same labels" if has_same else "nearest labels" if has_others else "none"] += 1
        return counts

    def _spans_of_others(self, group: int, subject_id: int) -> list[tuple[int, int]]:
        """The places, from start up to end, of a group's rows before and behind those of a patient."""
        first, last = self._bounds[group : group + 2].tolist()
        start, end = first + np.searchsorted(self._subjects[first:last], [subject_id, subject_id + 1])
        return [(first, int(start)), (int(end), last)]

    def _nearest(self, labels: np.ndarray) -> Iterator[list[int]]:
        """Lists of groups: the one with the same labels, then all of the next distance, and so on."""
        group = self._group.get(labels.tobytes())
        if group is not None:
            yield [group]
        distance = label_distances(self.vectors, labels)
        for level in np.unique(distance[distance > 0]):
            yield np.flatnonzero(distance == level).tolist()


def _labels(table: pd.DataFrame) -> np.ndarray:
    return table[list(FINDINGS)].to_numpy(dtype=np.int8)
