"""References of synthetic images: drawn from the training rows; only those that were drawn are encoded."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from utils.errors import InputError, say
from utils.findings import FINDINGS
from utils.mimic_cxr import split_rows
from utils.prompts import PooledFusion, ReferenceEncoder, TokenFusion
from utils.references import NONE, References
from utils.seeds import keyed_generator

DECODING_THREADS = 4  # threads that decode reference images
UNREADABLE_IN_A_ROW = 10  # unreadable images that one request may draw before the run ends


class ReferenceEmbeddings(ModelMixin, ConfigMixin):
    """The training rows of a `ReferencePool` without their images: a component of a pipeline, saved with it."""

    @register_to_config
    def __init__(self, count: int, width: int):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(count, width))  # zeros for an image that cannot be read
        self.register_buffer("labels", torch.zeros(count, len(FINDINGS), dtype=torch.int8))  # the authors' codes
        self.register_buffer("patients", torch.zeros(count, dtype=torch.int32))  # of each row; 0 for the smallest id


class ReferencePool:
    """The training rows of a table, of which references are drawn.

    fusion: the denoiser's. It states the width of a reference, and its `prompting` how references were chosen in
    training: "own" as `References.draw_for` draws them, "authors" the first row with the same labels. InputError for a
    reference encoder of another width, and for a table without training rows. `from_embeddings` needs no images.
    """

    def __init__(
        self, table: pd.DataFrame, reference_encoder: ReferenceEncoder, fusion: PooledFusion | TokenFusion,
        cache_dir: str | Path, batch_size: int, accelerator: Accelerator,
    ):  # fmt: skip
        self.prompting, self.width = fusion.config.prompting, fusion.config.reference_dim
        if reference_encoder.width != self.width:
            made = f"references of width {self.width}, and this REFERENCE_ENCODER makes {reference_encoder.width}"
            raise InputError(f"the checkpoint was trained with {made}: set it to the one it was trained with")
        self._set_table(table.iloc[split_rows(table, "train")].reset_index(drop=True))
        self.reference_encoder, self.cache_dir = reference_encoder, cache_dir
        self.batch_size, self.accelerator = batch_size, accelerator

    def _set_table(self, table: pd.DataFrame):
        self.table, self.references = table, References(table)
        self._embeddings = {}  # dicom_id => embedding, None for an image that cannot be read

    @classmethod
    def from_embeddings(cls, saved: ReferenceEmbeddings, prompting: str) -> "ReferencePool":
        """Rebuilds a pool from its `to_embeddings`; a row's number is its dicom_id."""
        pool = cls.__new__(cls)
        pool.prompting, pool.width = prompting, saved.config.width
        table = pd.DataFrame(saved.labels.cpu().numpy(), columns=FINDINGS)
        ids = {"dicom_id": table.index.astype(str), "subject_id": saved.patients.cpu().numpy(), "image_path": ""}
        pool._set_table(table.assign(**ids))
        embeddings = saved.embeddings.float().cpu().numpy()
        pool._embeddings = {str(row): values if values.any() else None for row, values in enumerate(embeddings)}
        return pool

    def to_embeddings(self) -> ReferenceEmbeddings:
        """Encodes every training image that is not in the cache yet."""
        self._encode(range(len(self.table)))
        kept = ReferenceEmbeddings(len(self.table), self.width)
        kept.labels.copy_(torch.from_numpy(self.table[list(FINDINGS)].to_numpy(np.int8)))
        kept.patients.copy_(torch.from_numpy(np.unique(self.table.subject_id, return_inverse=True)[1]))
        for row, name in enumerate(self.table.dicom_id):
            if self._embeddings[name] is not None:
                kept.embeddings[row] = torch.from_numpy(self._embeddings[name])
        return kept

    def draw(self, requests: pd.DataFrame) -> np.ndarray:
        """The dicom_id of a reference for each request, "" for none; prints how they were chosen.

        Every reference can be read: a request that draws an unreadable image draws again, without those that it drew
        before. No request's reference depends on another request. InputError after UNREADABLE_IN_A_ROW further
        unreadable images: then the disk is broken rather than a file.
        """
        rows = self._draw_rows(self.references, requests)
        self._encode({row for row in rows if row != NONE})
        unreadable = [place for place, row in enumerate(rows) if not self._is_readable(row)]
        for place in unreadable:
            refused = []
            while not self._is_readable(rows[place]):
                refused.append(rows[place])
                if len(refused) > UNREADABLE_IN_A_ROW:
                    example = f"e.g. {self.table.image_path[rows[place]]}: is DATA_ROOT whole?"
                    raise InputError(f"{len(refused)} references in a row cannot be read, {example}")
                rest = np.delete(np.arange(len(self.table)), refused)
                others, request = References(self.table.iloc[rest]), requests.iloc[[place]]
                drawn = self._draw_rows(others, request, attempt=len(refused))[0]
                rows[place] = NONE if drawn == NONE else rest[drawn]
                self._encode({rows[place]} - {NONE})
        if self.prompting == "authors":
            kinds = {"first with the same labels": int((rows != NONE).sum()), "none": int((rows == NONE).sum())}
        else:
            kinds = self.references.count_kinds(requests)
        say(f"references of the {len(requests)} images: {kinds}")
        if unreadable:
            say(f"references: {len(unreadable)} drawn again, because their images cannot be read (named above)")
        return np.where(rows == NONE, "", self.table.dicom_id.to_numpy()[rows])

    def _draw_rows(self, references: References, requests: pd.DataFrame, attempt: int = 0) -> np.ndarray:
        """Rows of the table that `references` was made of, or NONE, one for each request; attempt: 0 for the first."""
        if self.prompting == "authors":
            return references.first_for(requests)
        keys = [(seed, "reference", attempt) if attempt else (seed, "reference") for seed in requests.seed]
        return references.draw_for(requests, [keyed_generator(*key) for key in keys])

    def prepare(self, dicom_ids: pd.Series):
        """Encodes references that may have been drawn in an earlier run; InputError for one that is gone."""
        wanted = sorted({*dicom_ids} - {""})
        self._encode(np.flatnonzero(self.table.dicom_id.isin(wanted)))
        if gone := [name for name in wanted if self._embeddings.get(name) is None]:
            what = f"{len(gone)} references in this tree's plan are no readable training images of DATA_ROOT any more"
            raise InputError(f"{what}, e.g. {gone[0]}: put them back, or name another OUTPUT_ROOT")

    def embeddings(self, dicom_ids: pd.Series) -> torch.Tensor:
        """Embeddings of references, (n, width) float32; zeros for the dicom_id ""."""
        zeros = np.zeros(self.width, dtype=np.float32)
        return torch.from_numpy(np.stack([self._embeddings[name] if name else zeros for name in dicom_ids]))

    def _encode(self, rows):
        """Encodes those of these rows of the table that are not encoded yet."""
        names = self.table.dicom_id
        part = self.table.iloc[sorted(row for row in rows if names[row] not in self._embeddings)]
        if len(part):
            encode = self.reference_encoder.cache
            cache, keys, readable = encode(part, self.cache_dir, self.accelerator, self.batch_size, DECODING_THREADS)
            for name, key, is_readable in zip(part.dicom_id, keys, readable):
                self._embeddings[name] = np.array(cache[key]) if is_readable else None

    def _is_readable(self, row: int) -> bool:
        return row == NONE or self._embeddings[self.table.dicom_id[row]] is not None
