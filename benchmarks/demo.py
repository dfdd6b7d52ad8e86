"""Records what `make demo` measured as one table: of all pairs that were drawn, then of the selected ones.

    python -m benchmarks.demo --RECORD demo-epyc-1234 --TITLE "The demo on an EPYC"

Reads:  EVALUATION/{clipUViT,clipSD}{,-selected}/evaluation.json, SYNTHETIC/{clipUViT,clipSD}-selected/selection.json;
        a figure that is not there is an empty cell
Writes: benchmarks/results/RECORD.json
"""

import json
from pathlib import Path

import pandas as pd

from benchmarks.record import write_record
from evaluation.sections import FLOOR, SELECTED, SHUFFLED
from utils.constants import override_constants
from utils.errors import InputError, run

EVALUATION = "demo/evaluation"  # folder with the evaluations of both backbones, of all pairs and of the selected ones
SYNTHETIC = "demo/synthetic"  # folder with the selected trees
RECORD = "demo"  # name of the record
TITLE = "The demo"  # of the table

_BACKBONES = {"clipUViT": "U-ViT", "clipSD": "U-Net"}

_UNSEEN = ("image_quality", FLOOR)  # real images of patients whom the judge does not know, with the requests' labels
_WRITTEN = ("written_reports", "written for real images")
_MEASURES = (  # row; columns; where they stand in evaluation.json, as `figure` reads it: synthetic, real, floor
    ("mean AUROC of the requested findings", ("auroc",), ("auroc", "synthetic", "mean"), ("auroc", "real", "mean"),
     None),
    ("FID, judge's features (real: unseen patients)", ("FID",), ("image_quality", "synthetic"), _UNSEEN, None),
    ("FID, as a multiple of that", ("FID / floor",), ("image_quality", "synthetic"), None, None),
    ("KID (real: unseen patients)", ("KID",), ("image_quality", "synthetic"), _UNSEEN, None),
    ("recall (real: unseen patients)", ("recall",), ("image_quality", "synthetic"), _UNSEEN, None),
    ("coverage (real: unseen patients)", ("coverage",), ("image_quality", "synthetic"), _UNSEEN, None),
    ("MS-SSIM of images with the same findings", ("MS-SSIM",), ("diversity", "synthetic"), ("diversity", "real"), None),
    ("clinical F1 of the reports, micro / macro (floor: shuffled)", ("clinical F1 micro", "clinical F1 macro"),
     ("reports", "synthetic"), _WRITTEN, ("reports", "shuffled among images")),
    ("ROUGE-L of the reports (floor: constant report)", ("ROUGE-L",), ("reports", "synthetic"), _WRITTEN,
     ("reports", "constant normal report")),
    ("pairs that agree on every finding (floor: shuffled reports)", ("all three",), ("complete_agreement", "synthetic"),
     ("complete_agreement", "real"), ("complete_agreement", SHUFFLED)),
    ("the same, and on every side", ("and every side",), ("agreement_with_sides", "synthetic"),
     ("agreement_with_sides", "real"), ("agreement_with_sides", SHUFFLED)),
    ("side that a report names and its image shows (floor: chance)", ("share",), ("image_details", "synthetic"),
     ("image_details", "real"), ("image_details", "synthetic", "chance")),
    ("side in reports written for real images (floor: chance)", ("share",), None, ("written_details", "side"),
     ("written_details", "side", "chance")),
)  # fmt: skip
_COST = {  # row => column of selection.json
    "candidates a pair that is kept": "candidates a kept pair",
    "share of the candidates that agree": "share that agrees",
}
_NOTES = (
    "The first rows are of all pairs that were drawn. Of the selected ones a judge of other patients kept those that "
    "agree with their request; their floor is random training pairs, selected in the same way. Real: test images, and "
    "the reports written for them; for FID, KID, recall and coverage images of unseen patients with the labels of the "
    "requests, the mean and deviation of several draws: the best that can be reached."
)


def main():
    constants = override_constants(globals())
    drawn = [_read(Path(EVALUATION) / name / "evaluation.json") for name in _BACKBONES]
    selected = [_read(Path(EVALUATION) / f"{name}-selected" / "evaluation.json") for name in _BACKBONES]
    if not any(drawn):
        raise InputError(f"{EVALUATION} holds no evaluation of the demo: run make demo first, or set EVALUATION")
    rows = []
    for name, columns, synthetic, real, floor in _MEASURES:
        cells = [figure(result, synthetic, columns) for result in drawn]
        rows.append([name, *cells, *(figure(drawn[0], path, columns) for path in (real, floor))])
    for name, columns, synthetic, real, _ in _MEASURES if any(selected) else ():
        if synthetic:
            name, floor = name.split(" (floor")[0], (synthetic[0], SELECTED, *synthetic[2:])
            cells = [figure(result, synthetic, columns) for result in selected]
            cells.append(figure(selected[0], real, columns) or figure(drawn[0], real, columns))
            rows.append([f"selected: {name}", *cells, figure(selected[0], floor, columns)])
    costs = [_read(Path(SYNTHETIC) / f"{name}-selected" / "selection.json") for name in _BACKBONES]
    for name, column in _COST.items() if any(costs) else ():
        cells = [figure(cost, (), (column,)) for cost in costs]
        rows.append([f"selected: {name}", *cells, "", figure(costs[0], ("floor",), (column,))])
    table = pd.DataFrame(rows, columns=["", *_BACKBONES.values(), "real (drawn) images", "floor"])
    write_record(RECORD, TITLE, table, constants, _NOTES)


def figure(result: dict, path: tuple[str, ...] | None, columns: tuple[str, ...]) -> str:
    """Figures of the line at a path, "0.903 / 0.881 [0.861, 0.902]" or "4.604 ± 0.211"; "" where there is none.

    path: keys of result; in a list of lines, the first value of one; perhaps to a number itself.
    """
    line = {} if path is None else result
    for key in path or ():
        if isinstance(line, list):
            line = next((row for row in line if next(iter(row.values())) == key), {})
        else:
            line = {} if line.get(key) is None else line[key]
    if isinstance(line, float):
        line = {columns[0]: line}
    values = [line.get(column) for column in columns]
    if None in values:
        return ""
    deviation, interval = line.get(f"{columns[0]} deviation"), (line.get("low"), line.get("high"))
    text = " / ".join(f"{value:.3f}" for value in values)
    text += "" if deviation is None else f" ± {deviation:.3f}"
    return text if None in interval else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _read(path):
    """A JSON file, {} where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    run(main)
