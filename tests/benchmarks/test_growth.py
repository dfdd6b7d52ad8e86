"""benchmarks.growth and benchmarks.startup: each measurement runs, and a run leaves its record."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import growth, record, startup
from utils.constants import REPOSITORY


@pytest.mark.parametrize("prepare", growth._SIZES, ids=lambda prepare: prepare.__name__)
def test_each_measurement_runs(prepare, tmp_path):
    assert prepare(40, tmp_path)() is not None or any(tmp_path.iterdir()), "it did nothing"


def test_growth_is_recorded_with_its_slopes(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(growth, "REPOSITORY", tmp_path)
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    monkeypatch.setattr(growth, "_SIZES", {growth.caching: (64, 6400)})
    growth.main()
    [(what, sizes, seconds, slope, memory, _)] = json.loads((tmp_path / "scale-growth.json").read_text())["rows"]
    assert what == "Fills a cache of 1 KB an image" and sizes == "64, 6,400"
    assert 0 < float(slope) < 1.5 and len(seconds.split(", ")) == len(memory.split(", ")) == 2
    assert (tmp_path / "docs" / "pictures" / "growth.png").stat().st_size > 0


def test_startup_has_a_row_for_each_script(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["startup.py", "--TURNS", "1"])
    ran = []
    monkeypatch.setattr(startup, "subprocess", SimpleNamespace(run=lambda command, **_: ran.append(command[-1])))
    startup.main()
    rows = json.loads((tmp_path / "scale-startup.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["import torch", *sorted(path.stem for path in REPOSITORY.glob("*.py"))]
    assert rows[0][2] == "1" and len(ran) == 2 * len(rows) and ran[1].endswith("disable(); import app")
