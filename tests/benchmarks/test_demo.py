"""The record of a finished demo, and the README's table that is rendered from such records."""

import json

import pytest

from benchmarks import demo, record, render
from utils.errors import InputError


def evaluation(**figures):
    rows = [
        {"measure": name, "value": value, "floor": floor, "ceiling": ceiling}
        for name, (value, floor, ceiling) in figures.items()
    ]
    return {"headline": rows, "notes": []}


@pytest.fixture
def measure(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["demo", "--EVALUATION", str(tmp_path / "evaluation")])

    def run(**trees):
        for name, content in trees.items():
            path = tmp_path / "evaluation" / name.replace("_", "-") / "evaluation.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(content))
        demo.main()
        return json.loads((tmp_path / "results" / "demo.json").read_text(encoding="utf-8"))

    return run


def test_all_drawn_pairs_come_first_each_with_floor_and_ceiling(measure):
    rows = measure(
        clipUViT=evaluation(FID=("5.0", "4.5 ± 0.2", "–"), F1=("0.7 / 0.6", "shuffled: 0.14 / 0.13", "0.9 / 0.9")),
        clipSD=evaluation(FID=("4.0", "4.5 ± 0.2", "–"), F1=("0.8 / 0.7", "shuffled: 0.12 / 0.15", "0.9 / 0.9")),
        clipSD_selected=evaluation(F1=("0.85 / 0.8", "shuffled: 0.1 / 0.1; random: 0.3 / 0.3", "0.9 / 0.9")),
    )["rows"]
    assert rows == [
        ["FID", "5.0", "4.0", "4.5 ± 0.2", "–"],
        ["F1", "0.7 / 0.6", "0.8 / 0.7", "shuffled: 0.12 to 0.14 / 0.13 to 0.15", "0.9 / 0.9"],
        ["selected: F1", "–", "0.85 / 0.8", "shuffled: 0.1 / 0.1; random: 0.3 / 0.3", "0.9 / 0.9"],
    ]


def test_without_a_demo_there_is_no_record(measure):
    with pytest.raises(InputError, match="make demo"):
        measure()


def test_the_readmes_table_spans_the_records(monkeypatch):
    monkeypatch.setattr(render, "README_ROWS", ("F1, micro / macro", "KID"))
    columns = ["", "U-ViT"]
    rows = [
        [["F1, micro / macro (N = 9)", "0.7 / 0.61 [0.6, 0.7]"], ["KID", "−0.02"], ["recall", "1"]],
        [["F1, micro / macro (N = 8)", "0.7 / 0.59 [0.5, 0.6]"], ["selected: KID", "0.1"]],
    ]
    records = [{"name": f"demo-{place}", "columns": columns, "rows": rows[place]} for place in (0, 1)]
    records.append({"name": "other", "columns": ["x"], "rows": [["1"]]})
    assert render.demo_table(records).splitlines()[2:] == [
        "| F1, micro / macro | 0.7 / 0.59 to 0.61 |",
        "| KID | −0.02 |",
    ]


def test_texts_are_spanned_figure_by_figure():
    assert record.spread(["5.1, 1.9 times", "4.2, 2.0 times"]) == "4.2 to 5.1, 1.9 to 2.0 times"
    assert record.spread(["shuffled: 0.13 to 0.14", "shuffled: 0.12"]) == "shuffled: 0.12 to 0.14"
    assert record.spread(["−0.02", "0.1"]) == "−0.02 to 0.1"
    assert record.spread(["37.3% [32%, 41%]", "39.4% [35%, 44%]"]) == "37.3 to 39.4%"
    assert record.spread(["FID-2 (N = 480)", ""]) == "FID-2 (N = 480)"
    assert record.spread(["0.1", "0.1; 0.2"]) == "0.1; 0.1; 0.2" and record.spread(["", ""]) == ""
