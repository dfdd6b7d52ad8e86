"""Which image may serve as whose reference, and the pool of references that a sampler draws from.

A reference comes from the training rows and never from its target's patient. It is drawn at random among the training
rows with the same label vector; where there is none of another patient, among those with the nearest label vector;
where no other patient is left at all, there is no reference (NONE; its embedding is the zero vector).
"""

import numpy as np
import torch

from utils.errors import InputError, say
from utils.findings import FINDINGS, PRESENT
from utils.latents import cache_moments, mean_latents
from utils.mimic_cxr import split_rows
from utils.seeds import keyed_generator

UNREADABLE_IN_A_ROW = 10  # images that one request may draw and not be able to read
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
    """The training rows of a table, out of which references are drawn; then only those that were drawn are encoded.

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
        self.table = table.iloc[split_rows(table, "train")].reset_index(drop=True)
        self.references = References(self.table)
        self._row_of = dict(zip(self.table.dicom_id, range(len(self.table))))
        self._encode = lambda rows: reference_encoder.cache(rows, cache_dir, accelerator, batch_size, threads)
        self._embeddings = {}  # dicom_id => embedding, None for an image that cannot be read
        self._encode_moments = lambda rows, vae, image_size: cache_moments(
            rows, vae, image_size, cache_dir, batch_size, accelerator, threads
        )
        self._moments = {}  # dicom_id => a cache, the key of the image's moments in it, and what scales them

    def draw(self, requests):
        """A reference's dicom_id for each request, "" for none; prints how they were found.

        Each has an image that can be read: where one cannot, the request's next draw is out of the rows without those
        that it drew before, so that no request's reference depends on another request. InputError when one request
        meets UNREADABLE_IN_A_ROW of them: then the disk is broken rather than a file.
        """
        rejected = [()] * len(requests)
        rows = self._draw_rows(self.references, requests, np.arange(len(self.table)), 0)
        while True:
            self._look_at({row for row in rows if row != NONE})
            again = [place for place, row in enumerate(rows) if row != NONE and not self._is_readable(row)]
            if not again:
                break
            for place in again:
                if len(rejected[place]) == UNREADABLE_IN_A_ROW:
                    raise InputError(
                        f"{UNREADABLE_IN_A_ROW + 1} references in a row cannot be read (named above), at last "
                        f"{self.table.image_path[rows[place]]}: is DATA_ROOT whole?"
                    )
                rejected[place] = *rejected[place], rows[place]
                left = np.delete(np.arange(len(self.table)), rejected[place])
                references = References(self.table.iloc[left])
                rows[place] = self._draw_rows(references, requests.iloc[[place]], left, len(rejected[place]))[0]
        if self.prompting == "authors":
            say(
                f"references of the {len(requests)} images: {(rows != NONE).sum()} the first training row with the "
                f"same labels, {(rows == NONE).sum()} none"
            )
        else:
            say(f"references of the {len(requests)} images: {self.references.count_kinds(requests)}")
        replaced = sum(map(bool, rejected))
        if replaced:
            say(f"references: {replaced} drawn anew, for their images cannot be read (named above)")
        return np.where(rows == NONE, "", self.table.dicom_id.to_numpy()[rows])

    def prepare(self, dicom_ids):
        """Encodes the references that were drawn in an earlier run; InputError for one that is not there any more."""
        names = sorted({*dicom_ids} - {""})
        absent = [name for name in names if name not in self._row_of]
        self._look_at({self._row_of[name] for name in names if name not in absent})
        absent += [name for name in names if name not in absent and not self._is_readable(self._row_of[name])]
        if absent:
            raise InputError(
                f"{len(absent)} references of images still to be made, or of their batches, are no readable training images "
                f"of DATA_ROOT any more, e.g. {absent[0]}: put them back, or name another OUTPUT_ROOT"
            )

    def prepare_latents(self, dicom_ids, vae, image_size):
        """Encodes by a VAE, too, what was prepared, at so many pixels; InputError where it makes no numbers of one."""
        names = sorted({*dicom_ids} - {"", *self._moments})
        rows = self.table.iloc[[self._row_of[name] for name in names]]
        cache, keys, whole = self._encode_moments(rows, vae, image_size)
        if not whole.all():
            raise InputError(
                f"the VAE makes no latents of {(~whole).sum()} references (named above): set START to noise"
            )
        scale = vae.config.scaling_factor
        self._moments |= {name: (cache, key, scale) for name, key in zip(names, keys)}

    def embeddings(self, dicom_ids):
        """Embeddings of references, (n, width) float32; zeros for the dicom_id ""."""
        nothing = np.zeros(self.width, dtype=np.float32)
        return torch.from_numpy(np.stack([self._embeddings[name] if name else nothing for name in dicom_ids]))

    def latents(self, dicom_ids, shape):
        """Latents of references, the posterior's mean, (n, *shape) float32, unit variance; zeros for the dicom_id ""."""
        latents = torch.zeros(len(dicom_ids), *shape)
        for place, name in enumerate(dicom_ids):
            if name:
                cache, key, scale = self._moments[name]
                latents[place] = torch.from_numpy(mean_latents(np.asarray(cache[key], dtype=np.float32), scale))
        return latents

    def _draw_rows(self, references, requests, rows, attempt):
        """Rows of the pool's table, or NONE, out of a part of it; rows: where in the table the part's rows stand."""
        if self.prompting == "authors":
            drawn = references.first_for(requests)
        else:
            keys = [(seed, "reference", attempt) if attempt else (seed, "reference") for seed in requests.seed]
            drawn = references.draw_for(requests, [keyed_generator(*key) for key in keys])
        return np.array([NONE if row == NONE else rows[row] for row in drawn], dtype=np.int64)

    def _look_at(self, rows):
        """Encodes those of these rows of the table that were not encoded yet."""
        names = self.table.dicom_id
        part = self.table.iloc[sorted(row for row in rows if names[row] not in self._embeddings)]
        if len(part):
            cache, keys, readable = self._encode(part)
            for name, key, whole in zip(part.dicom_id, keys, readable):
                self._embeddings[name] = np.array(cache[key]) if whole else None

    def _is_readable(self, row):
        return self._embeddings[self.table.dicom_id[row]] is not None
