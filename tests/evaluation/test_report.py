"""What is written down of an evaluation: tables, JSON, plots, and the page's main numbers."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from evaluation import metrics, report
from evaluation.sections import CONSTANT, COPYING, FLOOR, FURTHER, SELECTED, SHUFFLED
from utils.findings import FINDINGS


def auroc_table():
    """Edema is told perfectly, nothing else is told of."""
    labels = np.zeros((40, len(FINDINGS)), dtype=bool)
    labels[:20, FINDINGS.index("Edema")] = True
    return metrics.auroc_table(labels, labels.astype(float))


def test_a_markdown_table_shows_nan_as_a_dash_and_floats_with_three_digits():
    frame = pd.DataFrame({"name": ["a", "b"], "N": [1, 2], "value": [0.12345, np.nan]})
    lines = report.markdown(frame).splitlines()
    assert lines == ["| name | N | value |", "| --- | --- | --- |", "| a | 1 | 0.123 |", "| b | 2 | – |"]


def test_tables_arrays_and_nan_as_json():
    frame = pd.DataFrame({"f1": [0.5, np.nan]}, index=["Edema", "mean"])
    value = {"table": frame, "rows": ({"N": np.int64(3), "counted": np.bool_(True)}, np.nan), 7: "text"}
    found = json.loads(json.dumps(report.as_json(value), allow_nan=False))
    table = {"Edema": {"f1": 0.5}, "mean": {"f1": None}}
    assert found == {"table": table, "rows": [{"N": 3, "counted": True}, None], "7": "text"}


def test_auroc_tables_stand_side_by_side_and_say_where_there_are_too_few():
    table = report.auroc_columns({"synthetic": auroc_table(), COPYING: auroc_table(), "real": auroc_table()})
    assert list(table.columns) == [
        "finding", "asked", "synthetic: AUROC [95 %]", f"{COPYING}: AUROC [95 %]", "real: positives",
        "real: AUROC [95 %]",
    ]  # fmt: skip
    rows = table.set_index("finding")
    assert rows.loc["Edema", ["asked", "real: AUROC [95 %]"]].tolist() == [20, "1.000 [0.899, 1.000]"]
    assert rows.loc["Fracture", "synthetic: AUROC [95 %]"] == "too few"


def complete_rows():
    """Rows of pairs that agree on every finding, as of `evaluation.pairs`, with fewer columns."""
    shares = {"synthetic": (0.4, 0.3, 0.5), SHUFFLED: (0.1, 0.0, 0.2), "real": (0.8, 0.7, 0.9)}
    return [
        {"pairs": name, "N": 9, "findings": 2, "all three": share, "low": low, "high": high, "request-image": 0.6,
         "of the real share": share / 0.8}
        for name, (share, low, high) in shares.items()
    ]  # fmt: skip


def result_of_an_evaluation():
    def quality(images, fid):
        row = {"images": images, "extractor": "judge, D = 4", "N": 9, "FID": fid, "FID / floor": fid / 3}
        return row | {
            "FID deviation": 0.2,
            "KID": 0.1,
            "KID deviation": 0.01,
            "recall": 1,
            "coverage": 0.5,
        }

    def report_row(name, f1, rouge):
        return {"reports": name, "N": 9, "clinical F1 micro": f1, "clinical F1 macro": np.nan, "ROUGE-L": rouge}

    def copied(images, share):
        return {"images": images, "N": 9, "share": share, "low": 0, "high": 1}

    return {
        "selected": "not selected",
        "image_quality": [quality("synthetic", 4.5), quality(FLOOR, 3)],
        "diversity": [{"MS-SSIM": 0.71}, {"MS-SSIM": 0.7}],
        "auroc": {"synthetic": auroc_table(), SELECTED: auroc_table(), "real": auroc_table()},
        "classifier": "judge",
        "text_judge": "rules",
        "reports": [report_row("synthetic", 0.5, 0.4), report_row("shuffled among images", 0.1, 0.2)]
        + [report_row(CONSTANT, 0, 0.3), report_row(FURTHER["reconstruction"], 0.9, 0.8)],
        "complete_agreement": complete_rows(),
        "memorisation": [copied("synthetic", 0.25), copied("planted copies: moved", 0.95), copied("real", 0.01)],
    }


def test_each_main_number_stands_beside_its_floor_and_ceiling():
    rows = {
        row.pop("measure").split(" (")[0]: tuple(row.values()) for row in report.headline(result_of_an_evaluation())
    }
    perfect = "1.000 [0.899, 1.000]"
    assert rows == {
        "FID": ("4.50, 1.50 times the floor", "3.00 ± 0.20", "–"),
        "KID": ("0.100", "0.100 ± 0.010", "–"),
        "recall": ("1.000", "–", "1.000"),
        "coverage": ("0.500", "–", "0.500"),
        "MS-SSIM of images with the same findings": ("0.710", "–", "0.700"),
        "mean AUROC of the asked findings in images": (perfect, f"0.5; {SELECTED}: {perfect}", perfect),
        "F1 of the findings in reports, micro / macro": ("0.500 / nan", "shuffled: 0.100 / nan", "0.900 / nan"),
        "ROUGE-L of reports": ("0.400", f"{CONSTANT}: 0.300", "0.800"),
        "pairs that agree on every finding": (
            "40.0% [30.0%, 50.0%]", f"{SHUFFLED}: 10.0% [0.0%, 20.0%]", "80.0% [70.0%, 90.0%]",
        ),
        "copies of training images": (
            "25.0% [0.0%, 100.0%]", "unseen real: 1%", "planted copies: 95% of the hardest kind",
        ),
    }  # fmt: skip


def test_the_summary_begins_with_the_selection_and_goes_without_reports():
    result = result_of_an_evaluation()
    rows = report.summary(result)
    assert rows[0] == ("selection", "not selected")
    assert dict(rows)["KID"] == "0.100 (floor: 0.100 ± 0.010)"
    del result["reports"]
    result["complete_agreement"] = [row for row in complete_rows() if row["pairs"] != SHUFFLED]
    assert len(report.summary(result)) == len(rows) - 3


def test_pairs_that_agree_on_every_finding_stand_with_their_interval():
    unread = {**complete_rows()[0], "pairs": "unread", "all three": np.nan, "low": np.nan, "high": np.nan}
    table = report.share_columns([*complete_rows(), unread])
    columns = ["pairs", "N", "findings", "all three [95 %]", "of the real share", "request-image"]
    assert list(table.columns) == columns
    assert table["all three [95 %]"].tolist() == [
        "0.400 [0.300, 0.500]", "0.100 [0.000, 0.200]", "0.800 [0.700, 0.900]", "–",
    ]  # fmt: skip


def test_reports_as_texts_are_counted_of_all():
    row = {"reports": "synthetic", "N": 9, "marks": 0, "comparisons": 3, "contradictions": 2, "stuttering": 1}
    row["distinct"] = 0.5
    text = report.markdown(report.text_columns([row]))
    assert text.splitlines() == [
        "| reports | marks | comparisons | contradictions | stuttering | distinct |",
        "| --- | --- | --- | --- | --- | --- |",
        "| synthetic | 0 of 9 | 3 of 9 | 2 of 9 | 1 of 9 | 0.500 |",
    ]


def test_the_closest_pairs_are_drawn_closest_first_with_fewer_images_than_asked(tmp_path):
    for number in range(3):
        Image.new("L", (32, 32), 80 * number).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"image_path": [str(tmp_path / f"{number}.png") for number in range(3)]})
    near = np.array([0.3, 0.1, 0.2]), np.array([2, 1, 0])
    report.draw_closest(near, table, table, 32, tmp_path / "closest.png")
    with Image.open(tmp_path / "closest.png") as picture:
        assert picture.width > 3 * 100 and picture.height > 2 * 100  # three columns, two rows


def test_the_stopwatch_prints_each_lap(capsys):
    stopwatch = report.Stopwatch()
    stopwatch.lap("trees")
    stopwatch.lap("pairs")
    assert list(stopwatch.seconds) == ["trees", "pairs"] and 0 <= stopwatch.seconds["pairs"] < 60
    assert f"trees: {stopwatch.seconds['trees']} s" in capsys.readouterr().out
