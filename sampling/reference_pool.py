"""The references of a sampler: drawn first, then encoded."""

import numpy as np
import torch

from utils.errors import InputError, say
from utils.latents import cache_moments, mean_latents
from utils.mimic_cxr import split_rows
from utils.references import NONE, References
from utils.seeds import keyed_generator

UNREADABLE_IN_A_ROW = 10  # images that one request may draw and not be able to read


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
