"""Which image may serve as whose reference.

A reference comes from the training rows and never from its target's patient. It is drawn at random among the training
rows with the same label vector; where there is none of another patient, among those with the nearest label vector;
where no other patient is left at all, there is no reference (NONE; its embedding is the zero vector).
"""

import numpy as np
import torch

from utils.findings import FINDINGS, PRESENT

NONE = -1  # the row number of "no reference"


class References:
    """Draws references from a table of training rows.

    Label vectors are near when few findings differ in *being present*, then when few codes differ at all.
    """

    def __init__(self, train_table):
        labels = train_table[list(FINDINGS)].to_numpy(dtype=np.int8)
        self.vectors, group_of_row = np.unique(labels, axis=0, return_inverse=True)  # (G, 14)
        self._group = {vector.tobytes(): group for group, vector in enumerate(self.vectors)}
        subjects = train_table.subject_id.to_numpy()
        order = np.lexsort((np.arange(len(subjects)), subjects, group_of_row.ravel()))
        sizes = np.bincount(group_of_row.ravel(), minlength=len(self.vectors))
        # a group's rows, sorted by patient, so that one patient's rows are one interval
        self._rows = np.split(order, np.cumsum(sizes)[:-1])
        self._subjects = [subjects[rows] for rows in self._rows]
        self.subject_ids = subjects

    def draw(self, labels, subject_id, generator):
        """A training row whose image may serve as reference, or NONE.

        labels: 14 codes; subject_id: the patient to avoid; generator: torch.Generator, the randomness.
        """
        for groups in self._nearest(np.asarray(labels, dtype=np.int8)):
            pools = [self._others(group, subject_id) for group in groups]
            total = sum(count for count, _ in pools)
            if total:
                choice = int(torch.randint(total, (1,), generator=generator))
                for group, (count, (start, end)) in zip(groups, pools):
                    if choice < count:
                        row = int(self._rows[group][choice if choice < start else choice + end - start])
                        assert self.subject_ids[row] != subject_id, "a reference of the target's own patient"
                        return row
                    choice -= count
        return NONE

    def draw_for(self, table, generators):
        """One reference a row of a table => (len(table),) training rows or NONE. generators: one a row."""
        labels, subjects = table[list(FINDINGS)].to_numpy(dtype=np.int8), table.subject_id.to_numpy()
        rows = np.array([self.draw(*target) for target in zip(labels, subjects, generators)], dtype=np.int64)
        drawn = rows != NONE
        assert (self.subject_ids[rows[drawn]] != subjects[drawn]).all(), "a reference of the target's own patient"
        return rows

    def first_for(self, table):
        """The first training row with the very labels of each row of a table, whoever's it is, or NONE.

        This is how the CXR-IRGen authors took them.
        """
        labels = table[list(FINDINGS)].to_numpy(dtype=np.int8)
        groups = [self._group.get(vector.tobytes()) for vector in labels]
        return np.array([NONE if group is None else self._rows[group].min() for group in groups], dtype=np.int64)

    def count_kinds(self, table):
        """How the rows of a table get their references: {"same labels": n, "nearest labels": n, "none": n}."""
        counts = {"same labels": 0, "nearest labels": 0, "none": 0}
        patients = np.unique(self.subject_ids)
        labels, subjects = table[list(FINDINGS)].to_numpy(dtype=np.int8), table.subject_id.to_numpy()
        for vector, subject_id in zip(labels, subjects):
            group = self._group.get(vector.tobytes())
            if group is not None and self._others(group, subject_id)[0]:
                counts["same labels"] += 1
            elif len(patients) > 1 or (len(patients) == 1 and patients[0] != subject_id):
                counts["nearest labels"] += 1
            else:
                counts["none"] += 1
        return counts

    def _others(self, group, subject_id):
        """How many rows of a group are of other patients, and the interval (start, end) that is the patient's own."""
        subjects = self._subjects[group]
        start, end = np.searchsorted(subjects, [subject_id, subject_id + 1])
        return len(subjects) - (end - start), (start, end)

    def _nearest(self, labels):
        """Lists of groups: the one with these very labels, then group after group of equal distance."""
        group = self._group.get(labels.tobytes())
        if group is not None:
            yield [group]
        presence = ((self.vectors == PRESENT) != (labels == PRESENT)).sum(axis=1)
        distance = presence * (len(FINDINGS) + 1) + (self.vectors != labels).sum(axis=1)
        for level in np.unique(distance[distance > 0]):
            yield np.flatnonzero(distance == level).tolist()
