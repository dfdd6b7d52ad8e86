"""What is written down of an evaluation: tables, JSON, plots, and the page's main numbers."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from evaluation import metrics, report
from evaluation.sections import COPYING, SHUFFLED, Nearest
from utils.findings import FINDINGS


def auroc_table():
    """Edema is told perfectly, nothing else is told of."""
    labels = np.zeros((40, len(FINDINGS)), dtype=bool)
    labels[:20, FINDINGS.index("Edema")] = True
    return metrics.auroc_table(labels, labels.astype(float), replicates=20)


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
    assert rows.loc["Edema", ["asked", "real: AUROC [95 %]"]].tolist() == [20, "1.000 [1.000, 1.000]"]
    assert rows.loc["Fracture", "synthetic: AUROC [95 %]"] == "too few"


def complete_rows():
    """Rows of pairs that agree on every finding, as of `evaluation.pairs`, with fewer columns."""
    shares = {"synthetic": (0.4, 0.3, 0.5), SHUFFLED: (0.1, 0.0, 0.2), "real": (0.8, 0.7, 0.9)}
    return [
        {"pairs": name, "N": 9, "findings": 2, "all three": share, "low": low, "high": high, "request-image": 0.6,
         "of the real share": share / 0.8}
        for name, (share, low, high) in shares.items()
    ]  # fmt: skip


def test_the_summary_has_a_line_for_each_main_number():
    result = {
        "image_quality": [{"images": "synthetic", "FID": 1.5, "N": 9, "extractor": "judge, D = 4", "warning": "few"}],
        "auroc": {"synthetic": auroc_table()},
        "classifier": "judge",
        "reports": [{"reports": "label-only", "clinical F1 micro": 0.5, "clinical F1 macro": np.nan, "N": 9}],
        "complete_agreement": complete_rows(),
        "memorisation": [{"space": "VAE latents", "share": 0.25, "quantile": 0.01}],
    }
    assert report.summary(result) == [
        ("FID, synthetic", "1.50 (N = 9, judge, D = 4 — few)"),
        ("mean AUROC, synthetic", "1.000 [1.000, 1.000] (judge)"),
        ("clinical F1 of reports, micro / macro, label-only", "0.500 / nan (N = 9)"),
        (
            "pairs whose request, image and report agree on every finding",
            "40.0% [30.0%, 50.0%] (N = 9; real pairs 80.0%, shuffled reports 10.0%)",
        ),
        ("copies, VAE latents", "25.0% (of unseen real images 1%)"),
    ]
    result["agreement_with_sides"] = [{"and every side": 0.5, "low": 0.4, "high": 0.6, "of the real share": 0.75}]
    assert report.summary(result)[-2] == (
        "the same, and on every side",
        "0.500 [0.400, 0.600] (0.75 of the real share)",
    )
    del result["agreement_with_sides"]
    result["complete_agreement"] = [row for row in complete_rows() if row["pairs"] != SHUFFLED]  # without reports
    assert [name for name, _ in report.summary(result)][-1] == "copies, VAE latents" and len(
        report.summary(result)
    ) == 4


def test_pairs_that_agree_on_every_finding_stand_with_their_interval():
    unread = {**complete_rows()[0], "pairs": "unread", "all three": np.nan, "low": np.nan, "high": np.nan}
    table = report.complete_agreement_columns([*complete_rows(), unread])
    columns = ["pairs", "N", "findings", "all three [95 %]", "of the real share", "request-image"]
    assert list(table.columns) == columns
    assert table["all three [95 %]"].tolist() == [
        "0.400 [0.300, 0.500]", "0.100 [0.000, 0.200]", "0.800 [0.700, 0.900]", "–",
    ]  # fmt: skip


def test_reports_as_texts_are_counted_of_all():
    row = {"reports": "synthetic", "N": 9, "marks": 0, "comparisons": 3, "contradictions": 2, "stuttering": 1}
    row["distinct"] = 0.5
    text = report._reports({"texts": [row]})[-1]
    assert text.splitlines() == [
        "| reports | marks | comparisons | contradictions | stuttering | distinct |",
        "| --- | --- | --- | --- | --- | --- |",
        "| synthetic | 0 of 9 | 3 of 9 | 2 of 9 | 1 of 9 | 0.500 |",
    ]
    assert report._reports({}) == []


def test_the_closest_pairs_are_drawn_closest_first_with_fewer_images_than_asked(tmp_path):
    for number in range(3):
        Image.new("L", (32, 32), 80 * number).save(tmp_path / f"{number}.png")
    table = pd.DataFrame({"image_path": [str(tmp_path / f"{number}.png") for number in range(3)]})
    near = Nearest(np.array([0.3, 0.1, 0.2]), np.array([0.4, 0.5]), np.array([2, 1, 0]), threshold=0.15)
    report.draw_closest({"one": near, "other": near}, table, table, 32, tmp_path / "closest.png")
    report.draw_distances({"one": near}, tmp_path / "distances.png")
    with Image.open(tmp_path / "closest.png") as picture:
        assert picture.width > 3 * 100 and picture.height > 4 * 100  # three columns, two rows a space


def test_the_stopwatch_prints_each_lap(capsys):
    stopwatch = report.Stopwatch()
    stopwatch.lap("trees")
    stopwatch.lap("pairs")
    assert list(stopwatch.seconds) == ["trees", "pairs"] and 0 <= stopwatch.seconds["pairs"] < 60
    assert f"trees: {stopwatch.seconds['trees']} s" in capsys.readouterr().out
