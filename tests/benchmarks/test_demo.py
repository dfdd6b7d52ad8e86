"""The record of a finished demo, and the README's table that is rendered from such records."""

import json

import pytest

from benchmarks import demo, record, render
from evaluation.sections import FLOOR, SHUFFLED
from utils.errors import InputError

EVALUATION = {
    "auroc": {
        "synthetic": {"mean": {"auroc": 0.95, "low": 0.9, "high": 0.99}},
        "real": {"mean": {"auroc": 0.97, "low": 0.9, "high": 0.99}},
    },
    "image_quality": [
        {"images": "synthetic", "FID": 5.5, "FID deviation": None, "KID": 0.1},
        {"images": FLOOR, "FID": 4.5, "FID deviation": 0.25},
    ],
    "reports": [{"reports": "synthetic", "clinical F1 micro": 0.7, "clinical F1 macro": 0.6, "ROUGE-L": None}],
    "written_details": [{"detail": "side", "share": 0.54, "chance": 0.51}, {"detail": "zone", "share": 0.6}],
    "complete_agreement": [
        {"pairs": "synthetic", "all three": 0.3},
        {"pairs": SHUFFLED, "all three": 0.1},
        {"pairs": "random training pairs, selected in the same way", "all three": 0.2},
    ],
}
SELECTION = {"candidates a kept pair": 3.0, "floor": {"candidates a kept pair": 3.5}}


@pytest.fixture
def measure(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    places = ["--EVALUATION", str(tmp_path / "evaluation"), "--SYNTHETIC", str(tmp_path / "synthetic")]
    monkeypatch.setattr("sys.argv", ["demo", *places])

    def run(**trees):
        for name, (file, content) in trees.items():
            path = tmp_path / file.format(name.replace("_", "-"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        demo.main()
        return record.read_record(tmp_path / "results" / "demo.json")

    return run


def test_all_drawn_pairs_come_first_each_with_ceiling_and_floor(measure):
    read = "evaluation/{}/evaluation.json"
    trees = {name: (read, EVALUATION) for name in ("clipUViT", "clipSD", "clipUViT_selected")}
    rows = measure(**trees)["rows"]
    selected = [row[0].startswith("selected: ") for row in rows]
    assert selected == sorted(selected) and any(selected)
    cells = {row[0].split(" (")[0]: row[1:] for row in rows}
    auroc = "mean AUROC of the requested findings"
    interval = "[0.900, 0.990]"
    assert cells[auroc] == [f"0.950 {interval}", f"0.950 {interval}", f"0.970 {interval}", ""]
    assert cells["FID, judge's features"] == ["5.500", "5.500", "4.500 ± 0.250", ""]
    assert cells["KID"] == ["0.100", "0.100", "", ""]  # the unseen images have none
    assert cells["pairs that agree on every finding"] == ["0.300", "0.300", "", "0.100"]
    assert cells["selected: pairs that agree on every finding"] == ["0.300", "", "", "0.200"]
    f1, rouge = (next(cells[name] for name in cells if name.startswith(start)) for start in ("clinical", "ROUGE"))
    assert f1[0] == "0.700 / 0.600" and rouge == [""] * 4
    assert cells["side in reports written for real images"] == ["", "", "0.540", "0.510"]
    assert cells["selected: KID"] == ["0.100", "", "", ""]


def test_the_cost_of_a_selection_stands_beside_that_of_its_floor(measure):
    trees = {"clipUViT": ("evaluation/{}/evaluation.json", EVALUATION)}
    rows = measure(**trees, clipUViT_selected=("synthetic/{}/selection.json", SELECTION))["rows"]
    assert ["selected: candidates a pair that is kept", "3.000", "", "", "3.500"] in rows


def test_without_a_demo_there_is_no_record(measure):
    with pytest.raises(InputError, match="make demo"):
        measure()


def test_the_readmes_table_spans_the_records():
    columns = ["", "U-ViT"]
    records = [
        {"name": "demo-1", "columns": columns, "rows": [["F1", "0.7 / 0.61 [0.6, 0.7]"], ["KID", "−0.02"]]},
        {"name": "demo-2", "columns": columns, "rows": [["F1", "0.7 / 0.59 [0.5, 0.6]"], ["KID", ""]]},
        {"name": "other", "columns": ["x"], "rows": [["1"]]},
    ]
    assert render.demo_table(records).splitlines()[2:] == ["| F1 | 0.7 / 0.59 to 0.61 |", "| KID | −0.02 |"]
