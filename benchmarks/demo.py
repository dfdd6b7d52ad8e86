"""Records what `make demo` measured, as one table.

    python -m benchmarks.demo --RECORD demo-epyc-1234 --TITLE "The demo on an EPYC"

Reads:  EVALUATION/{clipUViT,clipSD}/evaluation.json
Writes: benchmarks/results/RECORD.json
"""

import json
from pathlib import Path

from benchmarks.record import write_record
from evaluation.sections import FLOOR, SHUFFLED
from utils.constants import override_constants
from utils.errors import run

EVALUATION = "demo/evaluation"  # folder with the evaluations of both backbones
RECORD = "demo"  # name of the record
TITLE = "The demo"  # of the table

_AUROC = "mean AUROC of the asked findings (floor: chance)"
_MS_SSIM = "MS-SSIM of images with the same findings"
_F1 = "clinical F1 of the reports, micro / macro (floor: shuffled reports)"
_ROUGE = "ROUGE-L of the reports (floor: constant report)"
_PAIRS = "pairs that agree on every finding (floor: shuffled reports)"
_NOTES = (
    "Selected, as in the first table. The floor of FID and KID is the mean of several draws of real images, of "
    "patients whom the judge does not know, with the labels of the requests."
)


def main():
    constants = override_constants(globals())
    results = [json.loads((Path(EVALUATION) / name / "evaluation.json").read_text()) for name in ("clipUViT", "clipSD")]
    uvit, unet = map(figures, results)
    real, floor = real_figures(results[0]), floors(results[0])
    rows = [[name, uvit[name], unet[name], real.get(name, ""), floor.get(name, "")] for name in uvit]
    columns = ["", "U-ViT", "U-Net", "real (drawn) test images", "floor"]
    print(write_record(RECORD, TITLE, columns, rows, constants, _NOTES))


def figures(result: dict) -> dict[str, str]:
    """The measures of one backbone's pairs, in the order of the table."""
    images, reports = _line(result, "image_quality", "synthetic"), _line(result, "reports", "synthetic")
    return {
        _AUROC: _interval(result["auroc"]["synthetic"]["mean"], "auroc"),
        **_distances(images),
        _MS_SSIM: f"{result['diversity'][0]['MS-SSIM']:.3f}",
        _F1: _f1(reports),
        _ROUGE: f"{reports['ROUGE-L']:.3f}",
        _PAIRS: _interval(_line(result, "complete_agreement", "synthetic"), "all three"),
    }


def real_figures(result: dict) -> dict[str, str]:
    """The same measures of real test images, where there are any."""
    reports = _line(result, "written_reports", "written for real images")
    return {
        _AUROC: _interval(result["auroc"]["real"]["mean"], "auroc"),
        _MS_SSIM: f"{result['diversity'][1]['MS-SSIM']:.3f}",
        _F1: _f1(reports),
        _ROUGE: f"{reports['ROUGE-L']:.3f}",
        _PAIRS: _interval(_line(result, "complete_agreement", "real"), "all three"),
    }


def floors(result: dict) -> dict[str, str]:
    """What the name of each measure promises as its floor."""
    return {
        _AUROC: "0.5",
        **_distances(_line(result, "image_quality", FLOOR)),
        _F1: _f1(_line(result, "reports", "shuffled among images")),
        _ROUGE: f"{_line(result, 'reports', 'constant normal report')['ROUGE-L']:.3f}",
        _PAIRS: f"{_line(result, 'complete_agreement', SHUFFLED)['all three']:.3f}",
    }


def _line(result, section, name):
    """The line of a section whose first column is this name."""
    return next(line for line in result[section] if next(iter(line.values())) == name)


def _distances(line):
    return {
        "FID, judge's features (floor: other real images)": f"{line['FID']:.2f}",
        "KID (floor: other real images)": f"{line['KID']:.3f}",
        "recall (other real images)": f"{line['recall']:.3f}",
        "coverage (other real images)": f"{line['coverage']:.3f}",
    }


def _f1(line):
    return f"{line['clinical F1 micro']:.3f} / {line['clinical F1 macro']:.3f}"


def _interval(line, name):
    return f"{line[name]:.3f} [{line['low']:.3f}, {line['high']:.3f}]"


if __name__ == "__main__":
    run(main)
