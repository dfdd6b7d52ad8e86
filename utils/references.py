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


class References:
    """Draws references from a table of training rows.

    Two label vectors are nearer the fewer findings differ in *being present*, then the fewer codes differ at all.
    """

    def __init__(self, train_table: pd.DataFrame):
        labels = _labels(train_table)
        self.vectors, group_of_row = np.unique(labels, axis=0, return_inverse=True)  # (G, 14): a group a label vector
        group_of_row = group_of_row.ravel()
        self._group = {vector.tobytes(): group for group, vector in enumerate(self.vectors)}
        self.subject_ids = train_table.subject_id.to_numpy()
        # the rows of each group, sorted by patient, so that the rows of one patient are one interval
        order = np.lexsort((np.arange(len(labels)), self.subject_ids, group_of_row))
        sizes = np.bincount(group_of_row, minlength=len(self.vectors))
        self._rows = np.split(order, np.cumsum(sizes)[:-1])
        self._subjects = [self.subject_ids[rows] for rows in self._rows]

    def draw(self, labels: np.ndarray, subject_id: int, generator: torch.Generator) -> int:
        """A training row whose image may serve as reference, or NONE.

        labels: 14 codes; subject_id: the patient to avoid; generator: the randomness.
        """
        for groups in self._nearest(np.asarray(labels, dtype=np.int8)):
            intervals = [self._own_interval(group, subject_id) for group in groups]
            counts = [len(self._rows[group]) - (end - start) for group, (start, end) in zip(groups, intervals)]
            if sum(counts) == 0:
                continue
            choice = int(torch.randint(sum(counts), (1,), generator=generator))  # among the rows of other patients
            for group, (start, end), count in zip(groups, intervals, counts):
                if choice < count:
                    row = int(self._rows[group][choice if choice < start else choice + end - start])
                    assert self.subject_ids[row] != subject_id, "a reference of the target's own patient"
                    return row
                choice -= count
        return NONE

    def draw_for(self, table: pd.DataFrame, generators: Sequence[torch.Generator]) -> np.ndarray:
        """One reference a row of a table => (len(table),) training rows or NONE. generators: one a row."""
        targets = zip(_labels(table), table.subject_id.to_numpy(), generators)
        return np.array([self.draw(*target) for target in targets], dtype=np.int64)

    def first_for(self, table: pd.DataFrame) -> np.ndarray:
        """The first training row with the same labels for each row of a table, of any patient, or NONE.

        This is the choice of the CXR-IRGen authors.
        """
        groups = [self._group.get(vector.tobytes()) for vector in _labels(table)]
        return np.array([NONE if group is None else self._rows[group].min() for group in groups], dtype=np.int64)

    def count_kinds(self, table: pd.DataFrame) -> dict[str, int]:
        """The number of rows of a table by the kind of their references: "same labels", "nearest labels" or "none"."""
        counts = {"same labels": 0, "nearest labels": 0, "none": 0}
        patients = np.unique(self.subject_ids)
        for vector, subject_id in zip(_labels(table), table.subject_id.to_numpy()):
            group = self._group.get(vector.tobytes())
            if group is not None and self._has_other_patients(group, subject_id):
                counts["same labels"] += 1
            elif len(patients) > 1 or (len(patients) == 1 and patients[0] != subject_id):
                counts["nearest labels"] += 1
            else:
                counts["none"] += 1
        return counts

    def _own_interval(self, group: int, subject_id: int) -> tuple[int, int]:
        """The places, from start up to end, that a patient's own rows have in a group."""
        start, end = np.searchsorted(self._subjects[group], [subject_id, subject_id + 1])
        return start, end

    def _has_other_patients(self, group: int, subject_id: int) -> bool:
        start, end = self._own_interval(group, subject_id)
        return end - start < len(self._rows[group])

    def _nearest(self, labels: np.ndarray) -> Iterator[list[int]]:
        """Lists of groups: the one with the same labels, then all of the next distance, and so on."""
        group = self._group.get(labels.tobytes())
        if group is not None:
            yield [group]
        presence = ((self.vectors == PRESENT) != (labels == PRESENT)).sum(axis=1)
        distance = presence * (len(FINDINGS) + 1) + (self.vectors != labels).sum(axis=1)
        for level in np.unique(distance[distance > 0]):
            yield np.flatnonzero(distance == level).tolist()


def _labels(table: pd.DataFrame) -> np.ndarray:
    return table[list(FINDINGS)].to_numpy(dtype=np.int8)
