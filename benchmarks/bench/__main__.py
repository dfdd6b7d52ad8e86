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
from collections.abc import Iterator

import pandas as pd

from benchmarks.bench import images, reports, training
from benchmarks.bench.clock import COLUMNS, Clock
from benchmarks.bench.networks import Networks, PaperNetworks
from benchmarks.record import processor, write_record
from evaluation.report import markdown
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

_TITLES = {
    "training": "Training",
    "images": "Sampling images",
    "reports": "Writing reports",
}


def main():
    constants = override_constants(globals())
    accelerator = make_accelerator(DEVICE, PRECISION)
    networks = (PaperNetworks if SIZES == "paper" else Networks)(accelerator.device)
    clock = Clock(TURNS, ENOUGH)
    machine = re.sub(r"[^a-z0-9]+", "-", processor(DEVICE).lower()).strip("-")

    def rows_of(section: str) -> Iterator[list]:
        match section:
            case "training":
                return training.measure(networks, accelerator, clock, TRAINERS, BATCH_SIZE, REPORT_TOKENS)
            case "images":
                return images.measure(networks, accelerator, clock, IMAGES)
            case "reports":
                return reports.measure(networks, clock, REPORT_BATCHES, REPORT_TOKENS, NAIVE_TOKENS)

    for section in SECTIONS:
        rows = []
        for row in rows_of(section):
            rows.append(row)
            say(f"{section}: {' | '.join(str(cell) for cell in row)}")
        title = f"{_TITLES[section]}, networks of the {SIZES}'s sizes"
        write_record(f"bench-{section}-{machine}-{SIZES}", title, COLUMNS, rows, constants, device=DEVICE)
        print(f"{title}\n\n{markdown(pd.DataFrame(rows, columns=COLUMNS))}\n")


if __name__ == "__main__":
    run(main)
