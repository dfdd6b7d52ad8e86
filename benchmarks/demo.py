"""Records what `make demo`, or another target, measured as one table: of all pairs, then of the selected ones.

    python -m benchmarks.demo --RECORD demo-epyc-1234 --TITLE "The demo on an EPYC"
    python -m benchmarks.demo --EVALUATION demo/evaluation/counterfactuals --RECORD counterfactual-twins --TITLE Twins
    python -m benchmarks.demo --EVALUATION demo/privacy --COLUMNS exchanged,few --RECORD privacy-controls --TITLE Few

Reads:  EVALUATION/<column>{,-selected}/evaluation.json, whose `headline` it takes
Writes: benchmarks/results/RECORD.json
"""

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.record import spread, write_record
from utils.constants import override_constants
from utils.errors import InputError, run

EVALUATION = "demo/evaluation"  # folder with the evaluations of both backbones, of all pairs and of the selected ones
COLUMNS = ("clipUViT", "clipSD")  # folders of EVALUATION, a column each
RECORD = "demo"  # name of the record
TITLE = "The demo"  # of the table

_NAMES = {"clipUViT": "U-ViT", "clipSD": "U-Net"}
_NOTES = tomllib.loads(Path(__file__).with_name("notes.toml").read_text(encoding="utf-8"))


def main():
    constants = override_constants(globals())
    rows = []
    for suffix, prefix in (("", ""), ("-selected", "selected: ")):
        paths = [Path(EVALUATION) / f"{name}{suffix}" / "evaluation.json" for name in COLUMNS]
        evaluations = [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in paths]
        made = [{row["measure"]: row for row in evaluation.get("headline", ())} for evaluation in evaluations]
        for measure in dict.fromkeys(measure for rows_of_one in made for measure in rows_of_one):
            found = [rows_of_one.get(measure, {}) for rows_of_one in made]
            beside = [spread([row.get(name, "") for row in found]) for name in ("floor", "ceiling")]
            rows.append([prefix + measure, *(row.get("value", "–") for row in found), *beside])
        flips = [{row["finding"]: row for row in each.get("counterfactual_findings", ())} for each in evaluations]
        for name in sorted(set.intersection(*map(set, flips))):
            same = [of[name] for of in flips]
            cells = [f"{row['flip']:.2f} of {row['N']}" for row in same]
            rows.append([f"{name} changes", *cells, "", f"{same[0].get('exact twins: flip', np.nan):.2f}"])
    if not rows:
        raise InputError(f"{EVALUATION} holds no evaluation of the demo: run make demo first, or set EVALUATION")
    table = pd.DataFrame(rows, columns=["", *(_NAMES.get(name, name) for name in COLUMNS), "floor", "ceiling"])
    write_record(RECORD, TITLE, table, constants, _NOTES.get(Path(EVALUATION).name, _NOTES["evaluation"]))


if __name__ == "__main__":
    run(main)
