"""How benchmarks.bench measures: variants that take turns, medians, peaks of memory, and one table of all that was found.

A *variant* is a function without arguments. A result is a dict, a line of the table; its ratio says how many times better
ours is than naive, whatever the unit is:

    section, what, unit      what was measured
    naive, ours              medians; NaN where there is none
    ratio                    ours over naive where more is better, naive over ours where less is
    all                      {"naive": values, "ours": values}, in the order of their turns
    note                     what the reader has to know
"""

import json
import math
import os
import platform
import re
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from utils.errors import replacing, writing

CEILING_SIDE = 8192  # of the square matrices whose product is the ceiling
CEILING_TURNS = 20


def synchronise(device):
    """Waits for the GPU, whose work goes on after the calls that asked for it have returned."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def timed(variant, device):
    """Seconds that a variant takes, until its device has done all of it."""
    synchronise(device)
    start = time.perf_counter()
    variant()
    synchronise(device)
    return time.perf_counter() - start


@contextmanager
def plain_float32():
    """Float32 as PyTorch has it by itself: no TF32 in products of matrices."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def take_turns(variants, turns, device, warm_up=1, enough=math.inf):
    """{name: variant} => {name: seconds of each turn}; they alternate, so that a slow minute of the machine meets all.

    warm_up: rounds that do not count, for caches, lazy imports and compilation; enough: seconds after which no further
    round begins.
    """
    for _ in range(warm_up):
        for variant in variants.values():
            variant()
    seconds = {name: [] for name in variants}
    end = time.monotonic() + enough
    for turn in range(turns):
        if turn and time.monotonic() > end:
            break
        for name, variant in variants.items():
            seconds[name].append(timed(variant, device))
    return seconds


def result(section, what, unit, ours, naive=(), more_is_better=False, note=""):
    """A line of the table out of lists of values, all in the same unit."""
    middle = {
        name: statistics.median(values) if values else math.nan for name, values in (("naive", naive), ("ours", ours))
    }
    above, below = (middle["ours"], middle["naive"]) if more_is_better else (middle["naive"], middle["ours"])
    ratio = above / below if below else math.nan
    values = {"naive": list(naive), "ours": list(ours)}
    return {"section": section, "what": what, "unit": unit, **middle, "ratio": ratio, "all": values, "note": note}


def speeds(count, seconds):
    """Seconds of turns => how many a second."""
    return [count / each for each in seconds]


def precision_of(accelerator):
    """Of its arithmetic, in a word."""
    return {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)


# ---- the machine ---------------------------------------------------------------------------------------------------


def machine(device):
    """What the figures hold for: the GPU's name, or the CPU's and its cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()}, {os.cpu_count()} cores"


def _cpu():
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(text):
    """A text as the name of a file: "NVIDIA H100 80GB" => "nvidia-h100-80gb"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def memory_of_this_process(which):
    """MiB that this process holds now, "VmRSS", or has held at most, "VmHWM", as Linux counts it; NaN elsewhere."""
    try:
        found = re.search(rf"^{which}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else math.nan


def peak_of_a_step(step, resident, device):
    """MiB of a GPU that a training takes at most: what is resident, and what one step of it adds for a while.

    resident: bytes of its weights, its optimiser and its encoders; other trainings may lie on the GPU beside it.
    """
    synchronise(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronise(device)
    return (resident + torch.cuda.max_memory_allocated(device) - before) / 2**20


def ceiling(device):
    """Operations a second of one large product of bf16 matrices: the most that this GPU was seen to do."""
    one, other = (torch.randn(CEILING_SIDE, CEILING_SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = take_turns({"product": lambda: one @ other}, CEILING_TURNS, device, warm_up=5)["product"]
    return 2 * CEILING_SIDE**3 / statistics.median(seconds)


# ---- what is left --------------------------------------------------------------------------------------------------


def table(results):
    """Results => Markdown."""
    lines = ["| | what | unit | naive | ours | ratio | |", "|---|---|---|---|---|---|---|"]
    for one in results:
        numbers = [number(one["naive"]), number(one["ours"]), number(one["ratio"], "x")]
        lines.append("| " + " | ".join([one["section"], one["what"], one["unit"], *numbers, one["note"]]) + " |")
    return "\n".join(lines)


def number(value, unit=""):
    """Three digits, all of a large number; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def save(results, about, output):
    """Writes OUTPUT/<machine>.json and .md; about: {"machine", "sizes", "precision", "constants", ...}. Returns the Markdown.

    The file's name has the sizes and the precision too, where they are not the paper's and the device's own.
    """
    unusual = [about[key] for key, usual in (("sizes", "paper"), ("precision", "auto")) if about[key] != usual]
    folder, name = Path(output), "-".join([slug(about["machine"]), *unusual])
    said = ", ".join(f"{key} {value}" for key, value in about.items() if key != "constants")
    text = f"{said}\n\n{table(results)}\n"
    plain = [
        {key: None if value != value else value for key, value in one.items()} for one in results
    ]  # JSON has no NaN
    with writing("the results", folder):
        for ending, content in (("json", json.dumps({**about, "results": plain}, indent=2) + "\n"), ("md", text)):
            with replacing(folder / f"{name}.{ending}") as temporary:
                temporary.write_text(content, encoding="utf-8")
    return text
