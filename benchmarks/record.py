"""Records of measurements: one JSON file for each table, under benchmarks/results; and runs of the scripts measured.

A record holds what is needed to repeat the measurement and to render its table:

    title, columns, rows    the table
    command, constants      what was run, with all constants resolved
    commit, processor, date on which code and machine, and when
    notes                   what the reader of the table has to know
"""

import datetime
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from evaluation.report import markdown
from utils.constants import REPOSITORY
from utils.errors import STATUS_WHEN_STOPPED, InputError, write_whole

_FIGURE = r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?![\w.])"  # a number in a text
_RANGE = rf"{_FIGURE}(?: to {_FIGURE})?"
RESULTS = REPOSITORY / "benchmarks" / "results"


def write_record(
    name: str, title: str, table: pd.DataFrame, constants: dict, notes: str = "", device: torch.device | str = "cpu"
) -> Path:
    """Writes a table as `RESULTS/<name>.json` and prints it; returns the path.

    table: of texts and numbers, which are stored as texts of three digits; device: on which the measured code ran.
    """
    head = ["git", "rev-parse", "HEAD"]  # fails outside of a clone
    commit = subprocess.run(head, cwd=REPOSITORY, check=False, capture_output=True, text=True).stdout
    record = {
        "title": title, "command": shlex.join(["python", *sys.orig_argv[1:]]), "commit": commit.strip() or "unknown",
        "processor": processor(device), "date": datetime.date.today().isoformat(), "constants": constants,
        "columns": list(table), "rows": [[_text(cell) for cell in row] for row in table.itertuples(index=False)],
        "notes": notes,
    }  # fmt: skip
    path = RESULTS / f"{name}.json"
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n", "the record")
    print(f"{title}\n\n{markdown(pd.DataFrame(record['rows'], columns=record['columns']))}\n")
    return path


def run_script(*arguments) -> None:
    """Runs `python ARGUMENTS` in the repository; its output goes to the terminal.

    InputError if it fails, or if SIGTERM stops it before it is done.
    """
    command = [sys.executable, *map(str, arguments)]
    print("$", shlex.join(command), flush=True)
    if subprocess.run(command, cwd=REPOSITORY, env={**os.environ, STATUS_WHEN_STOPPED: "1"}, check=False).returncode:
        raise InputError(f"{arguments[0]} failed or was stopped (see above); run the same command again to resume")


def spread(values: list[str]) -> str:
    """Texts that differ in their figures alone => one of them with each figure "lowest to highest", without intervals.

    "" counts for nothing; a figure may be such a range itself. Texts with other numbers of figures follow each other.
    """
    texts = [re.sub(r" \[[^]]*\]", "", value) for value in values if value]
    figures = [re.findall(_RANGE, text) for text in texts]
    if len({len(found) for found in figures}) > 1:
        return "; ".join(dict.fromkeys(texts))
    ranges = []
    for same in zip(*figures):
        bounds = [bound for text in same for bound in text.split(" to ")]
        low, high = (of(bounds, key=lambda bound: float(bound.replace("−", "-"))) for of in (min, max))
        ranges.append(low if low == high else f"{low} to {high}")
    parts = re.split(_RANGE, texts[0]) if texts else []
    return "".join(text + value for text, value in zip(parts, [*ranges, ""]))


def fill(document: str, name: str, text: str) -> str:
    """A document with a text between its comments <!-- name --> and <!-- end -->."""
    parts = re.split(rf"(?s)(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", document)
    return "".join([parts[0], parts[1], text, "\n", *parts[2:]])


def processor(device: torch.device | str = "cpu") -> str:
    """The name of the GPU, or the name of the CPU and its number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # of Linux
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.MULTILINE)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _text(cell):
    """A text as it is, a number with three digits (all of a large one), a dash for none and NaN."""
    if isinstance(cell, str):
        return cell
    if cell is None or math.isnan(cell):
        return "–"
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
