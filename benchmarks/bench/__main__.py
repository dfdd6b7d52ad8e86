"""How many times quicker is this code than the same recipe done naively? Both are measured in turns, in one run.

    python -m benchmarks.bench
    python -m benchmarks.bench --DEVICE cuda --SIZES paper
    python -m benchmarks.bench --SIZES paper --SECTIONS training, --TRAINERS uvit, --BATCH_SIZE 2

    training    an optimiser step of each trainer, with the frozen encoders in it or before it
    images      sampling: PNDM in float32, DPM-Solver++, or a student
    reports     BART without a cache, or with a cache and an end

The module of each section (benchmarks/bench/) says what its naive recipe is. Figures are medians; they hold for one
machine, and their ratios travel better. The networks are the demo's, or networks of the paper's sizes with random
weights: quality is not measured here.

Writes: benchmarks/results/bench-SECTION-PROCESSOR-SIZES.json for each section
Prints: the tables
"""

import re
from functools import partial

import pandas as pd

from benchmarks.bench import images, reports, trainers
from benchmarks.bench.clock import COLUMNS, Clock
from benchmarks.bench.networks import Networks
from benchmarks.record import processor, write_record
from utils.constants import override_constants
from utils.devices import make_accelerator
from utils.errors import run, say

SECTIONS = ("training", "images", "reports")  # what is measured (each training, images or reports)
SIZES = "demo"  # of the networks (demo or paper; demo: minutes of 2 cores; paper: for a GPU)
DEVICE = "cpu"  # where it runs (cpu or cuda)
PRECISION = "auto"  # of ours (auto, no, bf16 or fp16; auto: bf16 where the device has it)
TURNS = 5  # of each variant (1 or more)
ENOUGH = 20.0  # seconds of turns, after which a comparison begins no further round (0 or more; 0: one round)
TRAINERS = ("uvit", "unet", "bart", "prior")  # whose steps are measured (each uvit, unet, bart or prior)
BATCH_SIZE = 0  # images of a step of the vision module (0 or more; 0: its script's)
REPORT_TOKENS = 128  # of a report, what bart-base's tokenizer makes of about 90 words (2 to 255)
NAIVE_TOKENS = 512  # that the naive loop writes, as far as BART has places (1 or more)
REPORT_BATCHES = (1, 8, 64)  # reports that are written at a time (each 1 or more)
IMAGES = 8  # that are sampled at a time (1 or more)

_TITLES = {"training": "Training", "images": "Sampling images", "reports": "Writing reports"}


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    networks, clock = Networks(accelerator.device, paper=SIZES == "paper"), Clock(TURNS, ENOUGH)
    measures = {
        "training": partial(trainers.measure, networks, accelerator, clock, TRAINERS, BATCH_SIZE, REPORT_TOKENS),
        "images": partial(images.measure, networks, accelerator, clock, IMAGES),
        "reports": partial(reports.measure, networks, clock, REPORT_BATCHES, REPORT_TOKENS, NAIVE_TOKENS),
    }
    machine = re.sub(r"[^a-z0-9]+", "-", processor(DEVICE).lower()).strip("-")
    for section in SECTIONS:
        rows = []
        for row in measures[section]():
            rows.append(row)
            say(f"{section}: {' | '.join(str(cell) for cell in row)}")
        title, table = f"{_TITLES[section]}, networks of the {SIZES}'s sizes", pd.DataFrame(rows, columns=COLUMNS)
        write_record(f"bench-{section}-{machine}-{SIZES}", title, table, constants, device=DEVICE)


if __name__ == "__main__":
    run(main)
