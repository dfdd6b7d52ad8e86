"""The frozen encoders' features of a table, computed once, and the training examples made of them.

DiffusionFeatures => DiffusionExamples    VAE moments, prompts and reference embeddings: for the denoisers
PriorFeatures     => PriorExamples        VAE moments and report latents: for the prior
"""

import hashlib
from itertools import compress

import numpy as np
import torch
from tqdm import tqdm

from training.batches import Examples
from utils.cache import FeatureCache, image_keys
from utils.checkpoints import encoder_fingerprints, weights_fingerprint
from utils.errors import InputError, say
from utils.findings import FINDINGS, prompts_of
from utils.latents import cache_moments, draw_posterior, mean_latents
from utils.mimic_cxr import split_rows
from utils.prompts import NULL_PROMPT
from utils.references import NONE, References

ENCODE_BATCH_SIZE = 64  # images, or reports, at a time through the frozen encoders
TIMESTEP_MEAN = -0.7  # of logit-normal timesteps, whose deviation is 1; below 0: more of them with little noise
DROP_IMAGE = 0.1  # probability that an example of a flow loses its image, for IMAGE_GUIDANCE
FLOW_DRAWS = 4  # of noise and time for each example of a flow
STATISTICS_ROWS = 4096  # report latents read at a time for their mean and standard deviation


class Column:
    """One cached feature of each row of a table: column[row] => array; stack(rows) => (n, *shape)."""

    def __init__(self, cache, keys):
        self.cache, self.keys = cache, keys

    def __getitem__(self, row):
        return self.cache[self.keys[row]]

    def stack(self, rows):
        return self.cache.stack([self.keys[row] for row in rows])


def _readable_rows(table, *features):
    """The rows whose image every encoder could read, and a Column for each of features, (cache, keys, readable)."""
    readable = np.logical_and.reduce([readable for _, _, readable in features])
    if not readable.all():
        say(f"unreadable images: {(~readable).sum()} of {len(table)} rows dropped (named above)")
    if not readable.any():
        raise InputError("not one image of the table can be read")
    columns = (Column(cache, [*compress(keys, readable)]) for cache, keys, _ in features)
    return table[readable].reset_index(drop=True), *columns


class _Rows(Examples):
    """The rows of one split of some features, each by its position."""

    def __init__(self, features, split):
        self.features, self.rows = features, split_rows(features.table, split)

    def __len__(self):
        return len(self.rows)


class DiffusionFeatures:
    """The frozen encoders' features of each row of a table; rows with an unreadable image are dropped.

    Attributes: table (the rows that are left), the columns `moments`, `embeddings` (of the row's own image as a
    reference) and `texts` (of the row's prompt), `null_text`, and `encoders`, the fingerprints of the frozen models.
    """

    def __init__(self, table, vae, text_encoder, reference_encoder, image_size, cache_dir, threads, accelerator):
        keys = image_keys(table)
        moments = cache_moments(table, vae, image_size, cache_dir, ENCODE_BATCH_SIZE, accelerator, threads, keys)
        embeddings = reference_encoder.cache(table, cache_dir, accelerator, ENCODE_BATCH_SIZE, threads, keys)
        self.table, self.moments, self.embeddings = _readable_rows(table, moments, embeddings)
        texts, text_keys = text_encoder.cache(prompts_of(self.table), cache_dir, accelerator)
        self.texts, self.null_text = Column(texts, text_keys), np.array(texts[NULL_PROMPT])
        self.scaling_factor = vae.config.scaling_factor
        self.encoders = encoder_fingerprints(vae, text_encoder, reference_encoder)
        for model in (vae, text_encoder.model, reference_encoder.tower):
            model.to("cpu")  # the training gets the GPU's memory


class DiffusionExamples(_Rows):
    """Training examples of one split, for a denoiser.

    prompt_dropout: probabilities that an example loses its text, its reference, and both, which trains the predictions
    that guidance needs (Ho & Salimans 2022; two conditions as in Brooks et al. 2023).
    timesteps: "uniform", or "logit-normal" (Esser et al. 2024) with TIMESTEP_MEAN and deviation 1.
    """

    def __init__(self, features, split, num_timesteps, prompt_dropout=(0.0, 0.0, 0.0), timesteps="uniform"):
        super().__init__(features, split)
        self.table = features.table.iloc[self.rows]
        self.train_rows = split_rows(features.table, "train")
        self.references = References(features.table.iloc[self.train_rows])
        self.labels = features.table[list(FINDINGS)].to_numpy(dtype=np.int8)
        self.subject_ids = features.table.subject_id.to_numpy()
        self.num_timesteps, self.timesteps = num_timesteps, timesteps
        self.dropout_edges = np.cumsum(prompt_dropout)

    def __getitem__(self, row_and_seed):
        position, seed = row_and_seed
        row, features = self.rows[position], self.features
        generator = torch.Generator().manual_seed(seed)
        latents = draw_posterior(features.moments[row], generator, features.scaling_factor)
        noise = torch.randn(latents.shape, generator=generator)
        if self.timesteps == "uniform":
            timestep = torch.randint(self.num_timesteps, (), generator=generator)
        else:
            share = (TIMESTEP_MEAN + torch.randn((), generator=generator)).sigmoid()  # of the schedule, 0 to 1
            timestep = (share * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)
        reference_row = self.references.draw(self.labels[row], self.subject_ids[row], generator)
        drop = np.searchsorted(self.dropout_edges, torch.rand((), generator=generator).item(), side="right")

        text = features.null_text if drop in (0, 2) else features.texts[row]
        reference = features.embeddings[self.train_rows[reference_row]]
        if reference_row == NONE or drop in (1, 2):
            reference = np.zeros_like(reference)
        return {
            "latents": latents,  # (C, h, w), unit variance
            "noise": noise,  # (C, h, w)
            "timesteps": timestep,  # ()
            "text": torch.tensor(text),  # (D,) or (77, D)
            "reference": torch.tensor(reference),  # (R,)
        }


class PriorFeatures:
    """Image and report features for each row of a table of `reported_rows`; rows with an unreadable image are dropped.

    Attributes: table (the rows that are left), columns `moments` and `report_latents`, and `encoders`, fingerprints.
    """

    def __init__(self, table, vae, autoencoder, image_size, cache_dir, threads, accelerator):
        moments = cache_moments(table, vae, image_size, cache_dir, ENCODE_BATCH_SIZE, accelerator, threads)
        self.table, self.moments = _readable_rows(table, moments)
        self.scaling_factor = vae.config.scaling_factor
        bart, pooling = autoencoder.fingerprint(), autoencoder.pooling
        self.encoders = {"vae": weights_fingerprint(vae), "bart": bart, "pooling": pooling}
        fingerprint = {"feature": "report latents", "encoder": bart, "pooling": pooling}
        cache = FeatureCache(f"{cache_dir}/report_latents", fingerprint)
        reports = self.table["report"].tolist()
        keys = [hashlib.sha256(report.encode()).hexdigest() for report in reports]  # so the cache holds no report
        served = cache.fill(
            keys, reports.__getitem__, lambda batch: autoencoder.encode_reports(batch).float().cpu().numpy(),
            ENCODE_BATCH_SIZE, accelerator, "report latents",
        )  # fmt: skip
        if not served.all():
            raise InputError(f"the latents of {(~served).sum()} reports are not finite: take another BART_CHECKPOINT")
        self.report_latents = Column(cache, keys)
        for model in (vae, autoencoder):
            model.to("cpu")  # the training gets the GPU's memory

    def statistics(self, split: str = "train") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and standard deviation of the report latents of one split, (D,) float32 each, and covariance, (D, D)."""
        rows = split_rows(self.table, split)
        total, products = 0.0, 0.0
        for start in range(0, len(rows), STATISTICS_ROWS):
            latents = self.report_latents.stack(rows[start : start + STATISTICS_ROWS]).astype(np.float64)  # (n, D)
            total, products = total + latents.sum(axis=0), products + latents.T @ latents
        mean = total / len(rows)
        covariance = products / len(rows) - np.outer(mean, mean)
        std = np.sqrt(np.maximum(covariance.diagonal(), 0))
        return mean.astype(np.float32), std.astype(np.float32), covariance


class PriorExamples(_Rows):
    """Training examples of one split, for a Prior, by whose statistics report latents are standardised.

    flags: what the report of each row says, (N, K) bool, for a readout; or None. An example of a flow also has
    FLOW_DRAWS draws of noise and time, and whether its image is dropped, for guidance. After `freeze` an example has,
    in place of its latents, the class token of a frozen transformer.
    """

    def __init__(self, features, split, prior, flags=None):
        super().__init__(features, split)
        self.mean, self.std = prior.report_mean.cpu().clone(), prior.report_std.cpu().clone()  # (D,) each
        self.flow, self.drop_image = prior.config.kind == "flow", DROP_IMAGE if split == "train" else 0.0
        self.flags, self.tokens = None if flags is None else torch.from_numpy(flags), None

    def __getitem__(self, row_and_seed):
        position, seed = row_and_seed
        row, features = self.rows[position], self.features
        generator = torch.Generator().manual_seed(seed)
        report_latent = torch.from_numpy(features.report_latents[row].astype(np.float32))
        example = {"report_latents": (report_latent - self.mean) / self.std}  # (D,), standardised
        if self.tokens is None:
            example["latents"] = draw_posterior(features.moments[row], generator, features.scaling_factor)  # (C, h, w)
        else:
            example["tokens"] = self.tokens[position]  # (E,)
        if self.flow:
            example |= {
                "noise": torch.randn((FLOW_DRAWS, len(report_latent)), generator=generator),  # (K, D)
                "times": torch.rand(FLOW_DRAWS, generator=generator),  # (K,)
                "dropped": torch.rand((), generator=generator) < self.drop_image,  # ()
            }
        if self.flags is not None:
            example["flags"] = self.flags[row].float()  # (K,)
        return example

    @torch.no_grad()
    def freeze(self, prior) -> None:
        """Computes each row's class token once, from its posterior's mean, by a transformer that is not trained."""
        tokens, features = [], self.features
        for start in tqdm(range(0, len(self), ENCODE_BATCH_SIZE), desc="class tokens", disable=None):
            moments = features.moments.stack(self.rows[start : start + ENCODE_BATCH_SIZE]).astype(np.float32)
            latents = torch.from_numpy(mean_latents(moments, features.scaling_factor))
            tokens.append(prior.vit(latents.to(prior.device)).cpu())
        self.tokens = torch.cat(tokens)  # (n, E)
