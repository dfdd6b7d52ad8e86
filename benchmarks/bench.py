"""How many times quicker is this code than the same recipe done naively? Both made of its own parts, taking turns.

    python -m benchmarks.bench
    python -m benchmarks.bench --DEVICE cuda --SIZES paper
    python -m benchmarks.bench --SIZES paper --SECTIONS data,training --TRAINERS uvit, --BATCH_SIZE 2

    data       a training sample of the vision module: everything computed anew, or cached    benchmarks/bench_data.py
    training   a step of each trainer: encoders inside, or before; memory                     benchmarks/bench_training.py
    sampling   images: PNDM 50 in float32, or DPM-Solver++ 25, or a student's 3 or 4 steps    benchmarks/bench_sampling.py
    reports    BART without and with a cache and an end                                       benchmarks/bench_reports.py
    startup    until a script answers, and until a run goes on                                benchmarks/bench_startup.py

Each of them says what is naive. All figures are medians of turns that alternate, after a warm-up, and a GPU is waited for
before a clock is read. They hold for the machine they were taken on; the ratios travel better. Networks are the demo's, or
of the paper's sizes with random weights: no quality is measured here.

Writes: OUTPUT/<machine>.json and .md, after each line; a temporary folder
Prints: the table
"""

import platform
import tempfile
from functools import partial

import torch
import transformers

from benchmarks import bench_data, bench_reports, bench_sampling, bench_startup, bench_training
from benchmarks.bench_clock import machine, save
from benchmarks.bench_parts import Parts
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import run, say

SECTIONS = ("data", "training", "sampling", "reports", "startup")  # (each data, training, sampling, reports or startup)
SIZES = "demo"  # networks (demo or paper; demo: minutes of 2 cores; paper: wants a GPU)
DEVICE = "cpu"  # where it runs (empty, cpu, cuda, cuda:N or mps; empty: the best there is)
PRECISION = "auto"  # of ours (auto, no, bf16 or fp16; auto: bf16 where the device has it)
OUTPUT = "benchmarks/results"  # of the figures (a folder to write)
TURNS = 5  # of each variant (1 or more)
ENOUGH = 20.0  # seconds of turns, after which a comparison begins no further round (0 or more; 0: one round)
# data
ROWS = (1_000, 10_000, 100_000, 377_000)  # of the table (each 2 or more; MIMIC-CXR has 377,110 images)
STUDIES = 24  # drawn, whose films all rows share (1 or more)
FILM_SIZE = 2048  # pixels; MIMIC-CXR-JPG's films are about 2,500 x 3,000 (32 to 16384)
LABEL_SETS = 2000  # distinct label vectors (1 to 10000)
NAIVE_SAMPLES = 8  # of a naive turn, encoded together (1 or more)
OUR_SAMPLES = 512  # of a turn of ours (1 or more)
# training, sampling, reports
TRAINERS = ("uvit", "unet", "bart", "prior")  # whose steps (each uvit, unet, bart or prior)
BATCH_SIZE = 0  # images of a step of the vision module (0 or more; 0: as its script has it, and in other ways)
REPORT_TOKENS = 128  # of a report, what bart-base's tokenizer makes of about 90 words (2 to 255)
NAIVE_TOKENS = 512  # that the naive loop writes, as far as BART has places (1 or more)
REPORT_BATCHES = (1, 8, 64)  # reports at a time (each 1 or more)
IMAGES = 8  # at a time (1 or more)
GUIDANCE_LOW = 0.2  # noise level, sigma, down to which the limited guidance acts (0 to 1000)
GUIDANCE_HIGH = 4.0  # noise level up to which it does (0 to 1000)
# startup
STEPS = 2  # of the run that is resumed (1 or more)
STARTUP_ROWS = 100_000  # of the tree on which a run begins with a full cache (100 or more)


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    parts = Parts(SIZES, accelerator.device)
    samples = {"naive": NAIVE_SAMPLES, "ours": OUR_SAMPLES}
    about = {
        "machine": machine(accelerator.device),
        "sizes": SIZES,
        "precision": PRECISION,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    results, text = [], ""
    with tempfile.TemporaryDirectory() as folder:
        sections = {
            "data": partial(
                bench_data.measure, parts, folder, accelerator, ROWS, STUDIES, FILM_SIZE, LABEL_SETS, samples, TURNS, ENOUGH
            ),
            "training": partial(
                bench_training.measure, parts, accelerator, TRAINERS, BATCH_SIZE, REPORT_TOKENS, TURNS, ENOUGH
            ),
            "sampling": partial(
                bench_sampling.measure, parts, accelerator, IMAGES, (GUIDANCE_LOW, GUIDANCE_HIGH), TURNS, ENOUGH
            ),
            "reports": partial(
                bench_reports.measure, parts, REPORT_BATCHES, REPORT_TOKENS, NAIVE_TOKENS, TURNS, ENOUGH
            ),
            "startup": partial(bench_startup.measure, f"{folder}/startup", STEPS, STARTUP_ROWS, TURNS, ENOUGH),
        }  # fmt: skip
        for name in SECTIONS:
            say(f"{name} ...")
            for one in sections[name]():
                results.append(one)
                text = save(results, {**about, "constants": constants}, OUTPUT)
    print(text)


if __name__ == "__main__":
    run(main)
