"""Milliseconds a training sample of the vision module: everything computed anew, against examples from a filled cache.

naive   reads the film, encodes it with the VAE and its prompt with CLIP, looks through the pandas table for the films of
        other patients with the same labels, draws one, reads it and encodes it with CLIP. The encoders run on the device
        and a batch at a time, which is the best that can be done for them
ours    training.examples.DiffusionExamples

Both make the same batch, on the device, from the same seeds; where no other patient has the same labels, naive has no
reference, and ours the nearest.

The table has as many rows as is said, the disk a few dozen drawn films: row after row has them again. The cache has a
place for each row, in as many shards as at that size, so that look-ups are as many and as far apart; but the shards'
values are links to one file, which the operating system keeps in memory. Labels, 14 small integers, are drawn from a fixed
number of label vectors, the k-th 1/k as often as the first.
"""

import json
import os

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from benchmarks.bench_clock import plain_float32, result, take_turns
from benchmarks.bench_parts import constants_of
from phantom import draw_tree, random_findings
from training.examples import Column, DiffusionExamples, DiffusionFeatures
from utils.cache import SHARD_ROWS, FeatureCache
from utils.findings import FINDINGS, to_prompt
from utils.latents import draw_latents, encode_moments, read_pixels
from utils.mimic_cxr import read_table
from utils.prompts import NULL_PROMPT

DRAWN_SIZE = 256  # pixels at which films are drawn; larger ones are these, enlarged, with grain
GRAIN = 6.0  # grey levels, the standard deviation
SCRIPT = "train_diffusion_clipUViT"


# ---- the data ------------------------------------------------------------------------------------------------------


def draw_films(root, studies, film_size):
    """A drawn CXR tree with films as large as a detector's => its table."""
    draw_tree(root, studies, min(film_size, DRAWN_SIZE))
    table = read_table(root, with_reports=False)
    for number, path in enumerate(table.image_path):
        with Image.open(path) as image:
            large = np.asarray(
                image.convert("L").resize((film_size, film_size), Image.Resampling.BICUBIC), dtype=np.float32
            )
        grain = np.random.default_rng(number).normal(0, GRAIN, large.shape)
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return table


def draw_vectors(count, seed=0):
    """So many distinct label vectors, (count, 14), as drawn chests have them."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        _, labels = random_findings(rng)
        found.setdefault(labels.tobytes(), labels)
    return np.stack(list(found.values()))


class Stretched:
    """The DiffusionFeatures of a table with so many rows, whose films are those of other features, again and again."""

    def __init__(self, features, rows, vectors, text_encoder, cache_dir, accelerator):
        films = np.arange(rows) % SHARD_ROWS % len(features.table)  # each shard begins with the first film
        rng = np.random.default_rng(rows)
        weights = 1 / np.arange(1, len(vectors) + 1)
        self.table = features.table.iloc[films].reset_index(drop=True)
        self.table["dicom_id"] = [f"row-{row}" for row in range(rows)]
        self.table["subject_id"] = 10_000_000 + np.arange(rows) // 2  # two films a patient
        self.table["split"] = "train"
        self.table[list(FINDINGS)] = vectors[rng.choice(len(vectors), rows, p=weights / weights.sum())]
        keys = self.table["dicom_id"].tolist()
        self.moments = Column(link_shards(features.moments, keys, f"{cache_dir}/moments-{rows}"), keys)
        self.embeddings = Column(link_shards(features.embeddings, keys, f"{cache_dir}/embeddings-{rows}"), keys)
        labels = self.table[list(FINDINGS)].to_numpy(dtype=np.int8)
        sentence = {vector.tobytes(): to_prompt(vector) for vector in vectors}
        self.prompts = [sentence[vector.tobytes()] for vector in labels]
        self.texts = text_encoder.cache(list(sentence.values()), cache_dir, accelerator)
        self.scaling_factor = features.scaling_factor


def link_shards(column, keys, folder):
    """A FeatureCache of these keys, whose whole shards are links to one that has a column's values again and again."""
    films = len(column.keys)
    values = column.stack([place % films for place in range(min(SHARD_ROWS, len(keys)))])
    cache = FeatureCache(folder, {"feature": "links"})
    whole = [keys[start : start + SHARD_ROWS] for start in range(0, len(keys), SHARD_ROWS)]
    if len(whole[-1]) < len(values):
        cache.append(whole[-1], values[: len(whole.pop())])
    cache.append(whole[0], values)
    first = next(path for path in cache.folder.glob("*.npy") if len(np.load(path, mmap_mode="r")) == len(values))
    about = json.loads(first.with_suffix(".keys.json").read_text())
    for number, part in enumerate(whole[1:]):
        os.link(first, cache.folder / f"link-{number:06d}.npy")
        (cache.folder / f"link-{number:06d}.keys.json").write_text(json.dumps({**about, "keys": part}))
    cache.refresh()
    return cache


# ---- the two recipes -----------------------------------------------------------------------------------------------


class NaiveExamples:
    """What DiffusionExamples has, with nothing kept: batch([(row, seed), ...]) reads, encodes and looks each up anew."""

    def __init__(self, table, vae, text_encoder, reference_encoder, image_size, num_timesteps, dropout):
        self.table, self.vae, self.text_encoder, self.reference_encoder = table, vae, text_encoder, reference_encoder
        self.image_size, self.num_timesteps, self.edges = image_size, num_timesteps, np.cumsum(dropout)

    @plain_float32()
    def batch(self, places):
        examples = [self._read(row, seed) for row, seed in places]
        pixels, references, kept, prompts, draws, noise, timesteps = (list(column) for column in zip(*examples))
        device = self.vae.device
        moments = encode_moments(self.vae, torch.stack(pixels))
        embeddings = self.reference_encoder.encode(torch.stack(references)) * torch.tensor(kept, device=device)[:, None]
        return {
            "latents": draw_latents(moments, torch.stack(draws).to(device), self.vae.config.scaling_factor),
            "noise": torch.stack(noise).to(device),
            "timesteps": torch.stack(timesteps).to(device),
            "text": self.text_encoder.encode(prompts),
            "reference": embeddings,
        }

    def _read(self, row, seed):
        record = self.table.iloc[row]
        generator = torch.Generator().manual_seed(seed)
        pixels = read_pixels(record.image_path, self.image_size)
        side = self.image_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, side, side)
        draw, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        timestep = torch.randint(self.num_timesteps, (), generator=generator)
        found = self._others_with_the_same_labels(record)
        size, kept = self.reference_encoder.image_size, 0.0
        reference = torch.zeros(3, size, size)
        if len(found):
            choice = int(torch.randint(len(found), (1,), generator=generator))
            reference, kept = read_pixels(found.image_path.iloc[choice], size), 1.0
        drop = np.searchsorted(self.edges, torch.rand((), generator=generator).item(), side="right")
        prompt = NULL_PROMPT if drop in (0, 2) else to_prompt(record[list(FINDINGS)].to_numpy(dtype=np.int8))
        return pixels, reference, 0.0 if drop in (1, 2) else kept, prompt, draw, noise, timestep

    def _others_with_the_same_labels(self, record):
        same = (self.table[list(FINDINGS)] == record[list(FINDINGS)].to_numpy(dtype=np.int8)).all(axis=1)
        return self.table[same & (self.table["subject_id"] != record["subject_id"])]


class CachedExamples:
    """DiffusionExamples as batches on a device."""

    def __init__(self, features, num_timesteps, dropout, device):
        self.examples, self.device = DiffusionExamples(features, "train", num_timesteps, dropout), device

    def batch(self, places):
        batch = default_collate([self.examples[place] for place in places])
        return {name: value.to(self.device) for name, value in batch.items()}


# ---- the section ---------------------------------------------------------------------------------------------------


def measure(parts, folder, accelerator, rows, films, film_size, label_sets, batches, turns, enough):
    """rows: sizes of the table; batches: samples of a turn, {"naive", "ours"}; yields results, one a size."""
    table = draw_films(f"{folder}/films", films, film_size)
    encoders = parts.vae, parts.pooled_texts, parts.references
    cache = f"{folder}/cache"
    features = DiffusionFeatures(table, *encoders, parts.image_size, cache, 0, accelerator)
    vectors = draw_vectors(label_sets)
    dropout, steps = constants_of(SCRIPT, parts.sizes)["PROMPT_DROPOUT"], 1000
    for count in rows:
        stretched = Stretched(features, count, vectors, parts.pooled_texts, cache, accelerator)
        naive = NaiveExamples(stretched.table, *encoders, parts.image_size, steps, dropout)
        ours = CachedExamples(stretched, steps, dropout, parts.device)
        rng = np.random.default_rng(count)

        def places(size, rng=rng, count=count):
            return [(row, row) for row in rng.integers(0, count, size).tolist()]

        variants = {
            "naive": lambda naive=naive, places=places: naive.batch(places(batches["naive"])),
            "ours": lambda ours=ours, places=places: ours.batch(places(batches["ours"])),
        }
        seconds = take_turns(variants, turns, parts.device, enough=enough)
        milliseconds = {name: [1000 * each / batches[name] for each in seconds[name]] for name in variants}
        note = f"films of {film_size} pixels, {label_sets:,} label vectors"
        yield result("data", f"a sample, {count:,} rows", "ms", milliseconds["ours"], milliseconds["naive"], note=note)
