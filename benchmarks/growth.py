"""How seconds and memory grow with the number of images: from reading a tree to evaluating 100,000 of them.

    python -m benchmarks.growth

Ids, labels (of 2,000 vectors), reports and features are made up. Each measurement has a process of its own; memory is
what it uses at most beyond what was there before (Linux only). A slope is the exponent of the growth between the two
largest numbers of images: 0 is flat, 1 linear. Writes: benchmarks/results/scale-growth.json, docs/pictures/growth.png
"""

import multiprocessing
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoTokenizer

from benchmarks.record import write_record
from evaluation import metrics
from evaluation.text_metrics import rouge_l
from sampling.plan import make_requests, plan_requests, save_plan
from sampling.reference_pool import ReferenceEmbeddings, ReferencePool
from sampling.tree import SyntheticTree
from training.batches import Batches
from training.reports import ReportExamples
from utils.cache import FeatureCache
from utils.constants import REPOSITORY
from utils.devices import make_accelerator
from utils.errors import run
from utils.findings import FINDINGS, to_physionet
from utils.mimic_cxr import REPORTS_ARCHIVE, image_files, read_table

_SENTENCES = ("The lungs are clear.", "The heart is enlarged.", "There is a small left effusion.", "No pneumothorax.")


def _table(count):
    """So many images, two a study and four a patient, as `read_table` gives them but for the image_path."""
    rng, rows = np.random.default_rng(0), np.arange(count)
    vectors = rng.choice([0, 1, -1, -2], (2000, len(FINDINGS)), p=(0.7, 0.15, 0.1, 0.05)).astype(np.int8)
    labels = vectors[rng.integers(len(vectors), size=count)][rows // 2]
    texts = rng.choice(_SENTENCES, (count, 6))[rows // 2]
    ids = {"dicom_id": [f"{row:08x}" for row in rows], "subject_id": 10_000_000 + rows // 4 * 90}
    ids |= {"study_id": 50_000_000 + rows // 2, "view": "PA", "split": "train"}
    ids["report"] = [f"FINDINGS: {' '.join(text)}" for text in texts]
    return pd.DataFrame(labels, columns=FINDINGS).assign(**ids)


def _requests(count):
    vectors = _table(count).rename(columns={"dicom_id": "source"})
    return make_requests(vectors.assign(prompt="", prompt_kind="findings"), 1, 1234, "")


def _write_files(paths, content=b""):
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(content)


def reading(count: int, root: Path) -> Callable:
    """Reads a tree with its reports in a zip. Like those below: what prepares so many images, and what it returns."""
    table, ids = _table(count), ["subject_id", "study_id"]
    studies = table.drop_duplicates(ids)
    images = table[["dicom_id", *ids, "split"]].assign(ViewPosition="PA")
    frames = {"metadata": images, "split": images, "chexpert": studies[ids].join(to_physionet(studies))}
    for kind, frame in frames.items():
        frame.to_csv(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", index=False)
    _write_files(image_files(root, table))
    with zipfile.ZipFile(root / REPORTS_ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, report in zip(image_files("", studies), studies["report"]):
            archive.writestr(f"{Path(path).parent}.txt"[1:], report)
    return lambda: read_table(root)


def caching(count: int, root: Path) -> Callable:
    """Fills a cache of 1 KB an image."""
    keys, accelerator = [f"{row:08x}" for row in range(count)], make_accelerator("cpu", "no")
    fill, encode = FeatureCache(root, {}).fill, lambda batch: np.zeros((len(batch), 512), np.float16)
    return lambda: fill(keys, keys.__getitem__, encode, 64, accelerator, "features")


def ordering(count: int, _: Path) -> Callable:
    """Tokenises reports and orders an epoch by their lengths."""
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets" / "demo" / "bart")
    reports, model = _table(count)["report"], SimpleNamespace(tokenizer=tokenizer, max_tokens=512, width=768)
    return lambda: Batches(ReportExamples(reports, model, 8), 8, 1, 1234, 0, 1).step(0)


def planning(count: int, root: Path) -> Callable:
    """Plans synthetic images whose references are drawn from 20,000 others."""
    saved, train = ReferenceEmbeddings(20_000, 1), _table(20_000)
    saved.embeddings.fill_(1)
    saved.labels.copy_(torch.tensor(train[[*FINDINGS]].to_numpy()))
    saved.patients.copy_(torch.tensor(train["subject_id"].to_numpy()))
    requests, pool = _requests(count), ReferencePool.from_embeddings(saved, "own")
    return lambda: save_plan(root, plan_requests(requests, pool, {}, "", root)[1])


def listing(count: int, root: Path) -> Callable:
    """Lists synthetic images in the CSVs of their tree."""
    _, plan = plan_requests(_requests(count), None, {}, "", root)
    Image.new("L", (8, 8)).save(root / "one.jpg")
    _write_files(plan["image_path"], (root / "one.jpg").read_bytes())
    return SyntheticTree(root, plan).list_images


def image_quality(count: int, _: Path) -> Callable:
    """FID, KID, precision, recall, density and coverage of features of width 512."""
    pair = np.random.default_rng(0).normal(size=(2, count, 512)).astype(np.float32)
    kid = partial(metrics.kernel_distance, seed=1)
    return lambda: [of(*pair) for of in (metrics.frechet_distance, kid, metrics.neighbourhood_metrics)]


def agreement(count: int, _: Path) -> Callable:
    """AUROC with its intervals, and ROUGE-L."""
    table, scores = _table(count), np.random.default_rng(0).random((count, len(FINDINGS)))
    labels, reports = metrics.positives(table), table["report"]
    return lambda: (metrics.auroc_table(labels, scores, subjects=table["subject_id"]), rouge_l(reports, reports[::-1]))


_SIZES = {  # 377,110 images are in MIMIC-CXR-JPG
    **dict.fromkeys((reading, caching, ordering), (1_000, 10_000, 100_000, 377_000)),
    **dict.fromkeys((planning, listing), (1_000, 10_000, 100_000, 1_000_000)),
    **dict.fromkeys((image_quality, agreement), (1_000, 10_000, 100_000)),
}


def _memory(name):
    """VmRSS (now) or VmHWM (at most so far) of this process, MiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def _measure(prepare, count, results):
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(count, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # "at most" begins anew
        before, start = _memory("VmRSS"), time.perf_counter()
        work()
        results.put((time.perf_counter() - start, _memory("VmHWM") - before))


def main():
    context, rows, figure = multiprocessing.get_context("spawn"), [], Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    for prepare, sizes in _SIZES.items():
        what, results = prepare.__doc__.split(".")[0], context.Queue()
        for count in sizes:
            process = context.Process(target=_measure, args=(prepare, count, results))
            process.start()
            process.join()
        row = [what, ", ".join(f"{count:,}" for count in sizes)]
        for axis, unit, values in zip(axes, ("seconds", "MiB"), zip(*(results.get() for _ in sizes))):
            slope = np.diff(np.log(values[-2:])) / np.diff(np.log(sizes[-2:]))
            row += [", ".join(f"{value:,.3g}" for value in values), *slope]
            axis.loglog(sizes, values, marker="o", label=f"{what}: {slope.item():.2f}")
            axis.set(xlabel="images", ylabel=unit)
            axis.legend(fontsize="xx-small", title="slopes", loc="upper left", bbox_to_anchor=(0, -0.14))
        rows.append(row)
    figure.savefig(REPOSITORY / "docs" / "pictures" / "growth.png")
    table = pd.DataFrame(rows, columns=["", "images", "seconds", "slope", "memory, MiB", "its slope"])
    write_record("scale-growth", "Growth with the number of images", table, constants={})


if __name__ == "__main__":
    run(main)
