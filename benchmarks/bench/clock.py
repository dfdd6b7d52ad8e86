"""Two ways of doing the same work, timed in turns."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.utils.benchmark import timer  # waits for the GPU before it reads the clock

COLUMNS = ("what", "unit", "naive", "ours", "ratio", "note")


@dataclasses.dataclass(frozen=True)
class Clock:
    """How long variants, functions without arguments, are measured.

    They alternate, so that a slow minute of the machine affects all of them; what counts is the ratio of two variants
    that were measured in one run.
    """

    turns: int  # of each variant
    enough: float  # seconds, after which no further round of turns begins

    def seconds(self, variants: dict[str, Callable], warm_up: int = 1) -> dict[str, float]:
        """The median duration of each variant. warm_up: rounds before that do not count (caches, lazy imports)."""
        for _ in range(warm_up):
            for variant in variants.values():
                variant()
        durations = {name: [] for name in variants}
        end = time.monotonic() + self.enough
        for turn in range(self.turns):
            if turn and time.monotonic() > end:
                break
            for name, variant in variants.items():
                start = timer()
                variant()
                durations[name].append(timer() - start)
        return {name: statistics.median(values) for name, values in durations.items()}


@contextmanager
def plain_float32() -> Iterator[None]:
    """Float32 as PyTorch has it by default, without TF32 in matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def speed_row(what: str, unit: str, naive: float, ours: float, note: str = "") -> list:
    """A row of the table, in order of COLUMNS, of two speeds: the ratio says how many times quicker ours is."""
    return [what, unit, naive, ours, ours / naive, note]


def precision_of(accelerator: Accelerator) -> str:
    """The precision of an accelerator's arithmetic, in a word."""
    return "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
