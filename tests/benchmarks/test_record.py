"""The records that docs/results.md is rendered from."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from benchmarks import record
from utils.constants import REPOSITORY


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    rows = [["real images", np.float64(0.51349), np.int64(3)], ["sampled", float("nan"), 12345.6]]
    table = pd.DataFrame(rows, columns=["images", "FID", "calls"])
    return record.write_record("trial", "A trial", table, {"SEED": 1}, notes="drawn")


def test_a_record_says_what_was_run_and_is_read_again(path):
    read = json.loads(path.read_text(encoding="utf-8"))
    assert "date" in read and "columns" in read
    assert read["rows"] == [["real images", "0.513", "3"], ["sampled", "–", "12,346"]]
    assert (read["title"], read["constants"], read["notes"]) == ("A trial", {"SEED": 1}, "drawn")
    assert read["command"].startswith("python") and "cores" in read["processor"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    assert read["commit"] == (head or "unknown")
