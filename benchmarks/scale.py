"""What grows with the number of images: the plan of a synthetic tree, its CSVs, its references, the index of a cache.

    python -m benchmarks.scale

For each size in ROWS, in a process of its own: as many requests as there are rows in a table are planned, listed and read
again, as a sampler does that is started, ends, and is started again. There are no networks, and up to IMAGES rows tiny
JPEGs; above that the tables are written as if all images were there (1 x 1 pixel), and none is opened.

Prints a table: seconds a step, a column a size; the last line is the peak memory of the process.
Writes:  in a temporary folder under OUTPUT, which is removed
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.bench_data import draw_vectors
from evaluation.selection import Selection
from sampling import images as synthesis
from sampling.plan import label_vectors, plan_requests, save_plan
from utils import mimic_cxr
from utils.cache import SHARD_ROWS, FeatureCache
from utils.constants import override_constants
from utils.errors import run
from utils.findings import FINDINGS
from utils.mimic_cxr import read_table
from utils.references import References
from utils.seeds import keyed_generator

ROWS = (10_000, 100_000, 1_000_000)  # sizes (each 1 to 1000000)
IMAGES = 10_000  # rows up to which the images are there (0 or more)
LABEL_SETS = 500  # distinct label vectors; MIMIC-CXR has some thousands (1 to 100000)
LOOK_UPS = 10_000  # of a cache's keys, at random (1 or more)
OUTPUT = ""  # where the temporary folder lies (a folder to write or empty; empty: the system's)

_SETTINGS = {"condition": "both", "steps": 25, "scheduler": "DPMSolverMultistep", "checkpoint_sha256": "0" * 64}


class Clock:
    """Seconds a step, {title: seconds}, in their order."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, title, function):
        start = time.perf_counter()
        result = function()
        self.seconds[title] = time.perf_counter() - start
        return result


def make_table(rows, label_sets):
    """The table of a tree with so many training rows, two a patient; the k-th label vector 1/k as often as the first."""
    rng, vectors = np.random.default_rng(0), draw_vectors(label_sets)
    weights = 1 / np.arange(1, len(vectors) + 1)
    table = pd.DataFrame(vectors[rng.choice(len(vectors), rows, p=weights / weights.sum())], columns=[*FINDINGS])
    table["dicom_id"] = [f"{a:08x}-{b:08x}-{c:08x}-{d:08x}-{a:08x}" for a, b, c, d in rng.integers(0, 2**32, (rows, 4))]
    return table.assign(subject_id=10_000_000 + np.arange(rows) // 2, split="train", view="PA")


class Drawn:
    """The part of a ReferencePool that draws, and encodes nothing."""

    def __init__(self, table):
        self.names, self.references = table["dicom_id"].to_numpy(), References(table)

    def draw(self, requests):
        keys = [keyed_generator(seed, "reference") for seed in requests["seed"]]
        return self.names[self.references.draw_for(requests, keys)]


def write_images(plan):
    """The smallest JPEG there is, for each row."""
    for path in map(Path, plan["image_path"]):
        path.parent.mkdir(parents=True)
        Image.new("L", (1, 1)).save(path)


def measure_tree(clock, table, output, with_images):
    """Plans, lists and reads a synthetic tree of so many images as the table has rows."""
    selection = Selection(1, "all", None, None)
    pool = clock("references: sorted by labels", lambda: Drawn(table))
    clock("references: counted", lambda: pool.references.count_kinds(table))
    vectors = clock("label vectors and prompts", lambda: label_vectors("", "", table, "train", 0, 0))

    def plan_all():
        return plan_requests(vectors, 1, pool, _SETTINGS, "runs/best", 0, output)[1]

    plan = clock("plan, references drawn", plan_all)
    clock("plan.csv written", lambda: save_plan(output, plan))
    clock("the same planned again", plan_all)
    if with_images:
        write_images(plan)
        clock("look at each image", lambda: synthesis._look_at(plan, selection))
    there = pd.Series([selection.read_comment({})] * len(plan), index=plan.index, dtype=object)
    look, size = mock.patch.object(synthesis, "_look_at", lambda *_: there), mock.patch.object
    with look, size(mimic_cxr, "_image_size", lambda _: (1, 1)):
        for title in ("four CSVs written", "the same, a second time"):
            made, listed = clock(title, lambda: synthesis._list_images(output, plan, selection))
            assert made == listed == len(table)
    again = clock("the tree read, no images", lambda: read_table(output, with_reports=False, check_images=False))
    assert sorted(again["dicom_id"]) == sorted(plan["dicom_id"])


def measure_cache(clock, table, folder, look_ups):
    """The index of a cache with as many keys as the table has rows: its values are one number each."""
    keys = [f"{name} {size} {name[:16]}" for size, name in enumerate(table["dicom_id"], 100_000)]
    cache = FeatureCache(folder, {"feature": "numbers"})
    for start in range(0, len(keys), SHARD_ROWS):
        part = keys[start : start + SHARD_ROWS]
        cache.append(part, np.arange(start, start + len(part), dtype=np.float32)[:, None])
    cache = clock("a cache opened", lambda: FeatureCache(folder, {"feature": "numbers"}))
    assert clock("each key asked for", lambda: all(key in cache for key in keys))
    rows = np.random.default_rng(1).integers(0, len(keys), look_ups)
    assert clock(f"{look_ups:,} values read", lambda: [float(cache[keys[row]][0]) for row in rows]) == rows.tolist()


def measure(rows, images, label_sets, look_ups, folder):
    """One size => {step: seconds} and the process's peak memory, GiB."""
    clock, table = Clock(), make_table(rows, label_sets)
    measure_tree(clock, table, Path(folder) / "tree", rows <= images)
    measure_cache(clock, table, Path(folder) / "cache", look_ups)
    return clock.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB => GiB


def main():
    override_constants(globals())
    found = {}
    for rows in ROWS:
        with (
            tempfile.TemporaryDirectory(dir=OUTPUT or None) as folder,
            multiprocessing.get_context("spawn").Pool(1) as pool,  # a process each, for its peak memory
        ):
            seconds, peak = pool.apply(measure, (rows, IMAGES, LABEL_SETS, LOOK_UPS, folder))
        found[f"{rows:,}"] = {**seconds, "peak memory, GiB": peak}
        print(f"{rows:,} rows: {sum(seconds.values()):.0f} s", flush=True)
    print(pd.DataFrame(found).to_string(float_format="{:.2f}".format, na_rep="-"))


if __name__ == "__main__":
    run(main)
