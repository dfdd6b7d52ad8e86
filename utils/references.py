"""Which image may serve as whose reference, and the pool of references that a sampler draws from.

A reference comes from the training rows and never from its target's patient. It is drawn at random among the training
rows with the same label vector; where there is none of another patient, among those with the nearest label vector;
where no other patient is left at all, there is no reference (NONE; its embedding is the zero vector).
"""

import numpy as np
import torch

from utils.errors import InputError, say
from utils.findings import FINDINGS, PRESENT
from utils.mimic_cxr import split_rows
from utils.seeds import keyed_generator

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


class ReferencePool:
    """The training rows of a table whose image can be read: who may be a reference, and each one's embedding.

    fusion: the denoiser's, which says how wide a reference is, and whose prompts it was trained with: "own", a row
    drawn as `References` has it; "authors", the first row with the same labels. InputError for another encoder's width.
    """

    def __init__(self, table, reference_encoder, fusion, cache_dir, batch_size, threads, accelerator):
        self.prompting, self.width = fusion.config.prompting, fusion.config.reference_dim
        if reference_encoder.width != self.width:
            raise InputError(
                f"the checkpoint was trained with references of width {self.width}, and this REFERENCE_ENCODER makes "
                f"{reference_encoder.width}: set it to the one it was trained with"
            )
        if not (table["split"] == "train").any():
            raise InputError("there are no training rows to take references from; set CONDITION to text")
        table = table.iloc[split_rows(table, "train")]
        self.cache, keys, readable = reference_encoder.cache(table, cache_dir, accelerator, batch_size, threads)
        self.table = table[readable]
        self.references = References(self.table)
        self._key_of = dict(zip(table.dicom_id, keys))

    def draw(self, requests):
        """A reference's dicom_id for each request, "" for none; prints how they were found."""
        if self.prompting == "authors":
            rows = self.references.first_for(requests)
            say(
                f"references of the {len(requests)} images: {(rows != NONE).sum()} the first training row with the "
                f"same labels, {(rows == NONE).sum()} none"
            )
        else:
            generators = [keyed_generator(seed, "reference") for seed in requests.seed]
            rows = self.references.draw_for(requests, generators)
            say(f"references of the {len(requests)} images: {self.references.count_kinds(requests)}")
        return np.where(rows == NONE, "", self.table.dicom_id.to_numpy()[rows])

    def embeddings(self, dicom_ids):
        """Embeddings of references, (n, width) float32; zeros for the dicom_id ""."""
        nothing = np.zeros(self.width, dtype=np.float32)
        return torch.from_numpy(np.stack([self.cache[self._key_of[name]] if name else nothing for name in dicom_ids]))
