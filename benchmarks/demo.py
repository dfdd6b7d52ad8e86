"""Records what `make demo` measured as one table: of all pairs that were drawn, then of the selected ones.

    python -m benchmarks.demo --RECORD demo-epyc-1234 --TITLE "The demo on an EPYC"

Reads:  EVALUATION/{clipUViT,clipSD}{,-selected}/evaluation.json, whose `headline` it takes
Writes: benchmarks/results/RECORD.json
"""

import json
from pathlib import Path

import pandas as pd

from benchmarks.record import spread, write_record
from utils.constants import override_constants
from utils.errors import InputError, run

EVALUATION = "demo/evaluation"  # folder with the evaluations of both backbones, of all pairs and of the selected ones
RECORD = "demo"  # name of the record
TITLE = "The demo"  # of the table

_BACKBONES = {"clipUViT": "U-ViT", "clipSD": "U-Net"}
_NOTES = (
    "The first rows are of all pairs that were drawn: three images for each of 160 label vectors, one report an image. "
    "Of these `select_pairs.py` kept one a label vector, by a judge of other patients than the evaluation's: three "
    "pairs are drawn for one that is kept; the floor is random training pairs, selected in the same way. Floor: what "
    "needs no generator; for a distance (FID, KID) its best value, of unseen patients with the labels of the requests, "
    "mean and deviation of several draws. Ceiling: real images, reports or pairs, or BART's reconstructions. `to` "
    "spans the two backbones where each has a floor or a ceiling of its own."
)


def main():
    constants = override_constants(globals())
    rows = []
    for suffix, prefix in (("", ""), ("-selected", "selected: ")):
        made = [_headline(Path(EVALUATION) / f"{name}{suffix}" / "evaluation.json") for name in _BACKBONES]
        for measure in dict.fromkeys(measure for rows_of_one in made for measure in rows_of_one):
            found = [rows_of_one.get(measure, {}) for rows_of_one in made]
            beside = [spread([row.get(name, "") for row in found]) for name in ("floor", "ceiling")]
            rows.append([prefix + measure, *(row.get("value", "–") for row in found), *beside])
    if not rows:
        raise InputError(f"{EVALUATION} holds no evaluation of the demo: run make demo first, or set EVALUATION")
    table = pd.DataFrame(rows, columns=["", *_BACKBONES.values(), "floor", "ceiling"])
    write_record(RECORD, TITLE, table, constants, _NOTES)


def _headline(path):
    """{measure: its row} of an evaluation.json; {} where it is missing."""
    if not path.exists():
        return {}
    return {row["measure"]: row for row in json.loads(path.read_text(encoding="utf-8"))["headline"]}


if __name__ == "__main__":
    run(main)
