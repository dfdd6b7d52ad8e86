"""The records that docs/results.md is rendered from."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from benchmarks import record
from utils.constants import REPOSITORY
from utils.errors import InputError


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    rows = [["real images", np.float64(0.51349), np.int64(3)], ["sampled", float("nan"), 12345.6]]
    table = pd.DataFrame(rows, columns=["images", "FID", "calls"])
    return record.write_record("trial", "A trial", table, {"SEED": 1}, notes="drawn")


def test_a_record_says_what_was_run_and_is_read_again(path):
    read = record.read_record(path)
    assert tuple(read) == record.FIELDS
    assert read["rows"] == [["real images", "0.513", "3"], ["sampled", "–", "12,346"]]
    assert (read["title"], read["constants"], read["notes"]) == ("A trial", {"SEED": 1}, "drawn")
    assert read["command"].startswith("python") and "cores" in read["processor"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    assert read["commit"] == (head or "unknown")


def test_another_file_is_refused(path):
    content = json.loads(path.read_text())
    del content["commit"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no commit"):
        record.read_record(path)
    with pytest.raises(InputError, match="absent.json is no record"):
        record.read_record(path.with_name("absent.json"))
