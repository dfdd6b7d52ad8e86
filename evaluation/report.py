"""Writes an evaluation down: tables, plots, evaluation.md, evaluation.json, and the main numbers for the page.

`result` is what evaluate_pairs.py gathers, section by section, in the order of evaluation.json.
"""

import json
import re
import time
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation import metrics
from evaluation.copies import COPY_QUANTILE
from evaluation.images import ImageSets
from evaluation.sections import CHOSEN, CONSTANT, COPYING, FLOOR, FLOOR_DRAWS, FURTHER, SELECTED, SHUFFLED
from utils.errors import say, writing
from utils.pixels import read_pixels

CLOSEST = 8  # closest pairs in the picture
PICTURE_SIZE = 256  # pixels a side of an image in it, at most
PAGE_IMAGES = 5000  # synthetic images on the gallery page, at most
OPTIONAL = {  # tables without which a section of report.md is left out
    "reports", "report_f1", "written_reports", "written_report_f1", "texts", "written_details", "image_details",
    "agreement_with_sides", "counterfactuals",
}  # fmt: skip


class Stopwatch:
    """Seconds a section, in `seconds`; each is printed as it ends."""

    def __init__(self):
        self.seconds, self._start = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the section that ran since the last lap."""
        now = time.perf_counter()
        self.seconds[name], self._start = round(now - self._start, 1), now
        say(f"{name}: {self.seconds[name]} s")


def write_evaluation(output: Path, result: dict, sets: ImageSets, pair_findings: pd.DataFrame, nearest: tuple) -> str:
    """Writes the files => evaluation.md's text; pair_findings: of `sections.pairs`; nearest: of its `memorisation`."""
    with writing("the evaluation", output):
        size = min(sets.synthetic.loading.image_size, PICTURE_SIZE)
        draw_closest(nearest, sets.synthetic.table, sets.train.table, size, output / "closest.png")
        pair_findings.to_csv(output / "agreement.csv.gz", index=False)
        text = as_markdown(result)
        (output / "evaluation.md").write_text(text, encoding="utf-8")
        stated = as_json({"headline": headline(result), **result})
        (output / "evaluation.json").write_text(json.dumps(stated, indent=2, allow_nan=False) + "\n")
    return text


def as_json(value):
    """A value with tables, arrays and NaN as one that JSON can hold."""
    if isinstance(value, pd.DataFrame):
        return as_json(value.to_dict("index"))
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def headline(result: dict) -> list[dict]:
    """The main numbers, a row each: measure, value, floor (without a generator; for a distance, its best value) and
    ceiling (of real images, reports or pairs). Of a tree of films and their twins: what differs between these."""
    if "counterfactuals" in result:
        return _twin_numbers(result)
    return [*_image_numbers(result), *_report_numbers(result), *_pair_numbers(result)]


def summary(result: dict) -> list[tuple[str, str]]:
    """The main numbers as (name, value) pairs for the page, after whether its pairs are selected."""
    rows = [("selection", result["selected"])]
    for row in headline(result):
        beside = [f"{name}: {row[name]}" for name in ("floor", "ceiling") if row[name] != "–"]
        rows.append((row["measure"], f"{row['value']} ({'; '.join(beside)})" if beside else row["value"]))
    return rows


def number(measure: str, value: str, floor: str = "–", ceiling: str = "–") -> dict:
    """A row of a `headline`."""
    return {"measure": measure, "value": value, "floor": floor, "ceiling": ceiling}


def _image_numbers(result):
    rows = []
    floors = {row["extractor"]: row for row in result["image_quality"] if row["images"] == FLOOR}
    for row in (row for row in result["image_quality"] if row["images"] == "synthetic"):
        real = floors[row["extractor"]]
        where = f"{row['extractor']}, N = {row['N']}"
        value = f"{row['FID']:.2f}, {row['FID / floor']:.2f} times the floor"
        rows.append(number(f"FID ({where})", value, f"{real['FID']:.2f} ± {real['FID deviation']:.2f}"))
        rows.append(number("KID", f"{row['KID']:.3f}", f"{real['KID']:.3f} ± {real['KID deviation']:.3f}"))
        for name in ("recall", "coverage"):
            rows.append(number(name, f"{row[name]:.3f}", ceiling=f"{real[name]:.3f}"))
    made, real = (f"{row['MS-SSIM']:.3f}" for row in result["diversity"])
    rows.append(number("MS-SSIM of images with the same findings", made, ceiling=real))
    auroc = {name: _auroc(table.loc["mean"]) for name, table in result["auroc"].items()}
    floor = f"0.5; {SELECTED}: {auroc[SELECTED]}" if SELECTED in auroc else "0.5"
    name = f"mean AUROC of the asked findings in images ({result['classifier']})"
    return [*rows, number(name, auroc["synthetic"], floor, auroc["real"])]


def _twin_numbers(result):
    made, *others = result["counterfactuals"]
    groups = [made, others[2] if len(others) > 2 else {}, *others[:2]]
    rows = []
    for measure, *names in (
        (f"the finding changes (N = {made['N']})", "flip"), ("the same, taken away / added", "taken away", "added"),
        ("another finding changes", "drift"),
        ("of the change, inside the true difference, taken away / added", "inside, taken away", "inside, added"),
        ("SSIM outside of it", "SSIM outside"), ("SSIM", "SSIM"),
        ("the reports differ in that finding only", "reports differ in it alone"),
    ):  # fmt: skip
        figures = (" / ".join(f"{group.get(name, np.nan):.3f}" for name in names) for group in groups)
        value, ceiling, *floors = (text.replace("nan", "–") for text in figures)
        if value.strip("– /"):
            rows.append(number(measure, value, f"film's findings: {floors[0]}; twin's: {floors[1]}", ceiling))
    return rows


def _report_numbers(result):
    rows = []
    for prefix, what in (("", "reports"), ("written_", "reports written for real images")):
        lines = result.get(f"{prefix}reports", [])
        if not lines:
            continue
        line = {row["reports"]: row for row in lines}
        ceiling = line.get(FURTHER["reconstruction"], {} if prefix else line.get("real reports of the same labels", {}))
        floor = f"shuffled: {_f1(line['shuffled among images'])}"
        for name in (SELECTED, CHOSEN):
            floor += f"; {name}: {_f1(line[name])}" if name in line else ""
        name = f"F1 of the findings in {what}, micro / macro ({result['text_judge']}, N = {lines[0]['N']})"
        rows.append(number(name, _f1(lines[0]), floor, _f1(ceiling)))
        if "ROUGE-L" in lines[0]:
            floor = f"{CONSTANT}: {line[CONSTANT]['ROUGE-L']:.3f}"
            kept = line.get(FURTHER["reconstruction"])
            ceiling = f"{kept['ROUGE-L']:.3f}" if kept else "–"
            rows.append(number(f"ROUGE-L of {what}", f"{lines[0]['ROUGE-L']:.3f}", floor, ceiling))
    return rows


def _pair_numbers(result):
    rows = []
    for part, share, what in (
        ("complete_agreement", "all three", "pairs that agree on every finding (N = {})"),
        ("agreement_with_sides", "and every side", "the same, and on every side"),
    ):
        pairs = {row["pairs"]: row for row in result.get(part, [])}
        if SHUFFLED in pairs:  # else there are no reports
            shares = {name: _percent(row[share], row["low"], row["high"]) for name, row in pairs.items()}
            floor = "; ".join(f"{name}: {shares[name]}" for name in (SHUFFLED, SELECTED) if name in shares)
            rows.append(number(what.format(pairs["synthetic"]["N"]), shares["synthetic"], floor, shares["real"]))
    for row in result.get("written_details", []):
        ceiling = "–" if np.isnan(row["ceiling"]) else f"{row['ceiling']:.3f}"
        value = with_interval(row["share"], row["low"], row["high"])
        name = f"{row['detail']} in reports written for real images (N = {row['N']})"
        rows.append(number(name, value, f"chance: {row['chance']:.3f}; shuffled: {row['shuffled']:.3f}", ceiling))
    made, *planted = result["memorisation"]
    shares = [row["share"] for row in planted if row["images"].startswith("planted")]
    found = f"planted copies: {min(shares):.0%} of the hardest kind"
    copied = _percent(made["share"], made["low"], made["high"])
    name = f"copies of training images (N = {made['N']})"
    return [*rows, number(name, copied, f"unseen real: {COPY_QUANTILE:.0%}", found)]


def _f1(row):
    return f"{row['clinical F1 micro']:.3f} / {row['clinical F1 macro']:.3f}" if row else "–"


def _auroc(row):
    return with_interval(row["auroc"], row["low"], row["high"]) if row["counted"] else "too few"


def with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _percent(share, low, high):
    return f"{share:.1%} [{low:.1%}, {high:.1%}]"


def as_markdown(result: dict) -> str:
    """evaluation.md: report.md filled in, without the sections about which the result says nothing."""
    means = {name: table.loc["mean"] for name, table in result["pairs"].items()}
    tables = {
        "headline": headline(result), "auroc": auroc_columns(result["auroc"]),
        "means": [{"pairs": name, **mean, "asked": int(mean["asked"])} for name, mean in means.items()],
        "pairs": result["pairs"]["synthetic"].rename_axis("finding").reset_index(),
    }  # fmt: skip
    plain = ("image_quality", "diversity", "reports", "written_reports", "counterfactual_findings")
    tables |= {name: result[name] for name in plain if name in result}
    for name in ("report_f1", "written_report_f1"):
        if name in result:  # F1 per finding of several sets of reports side by side
            columns = {"positives": next(iter(result[name].values()))["positives"]}
            columns |= {reports: values["f1"] for reports, values in result[name].items()}
            tables[name] = pd.DataFrame(columns).rename_axis("finding").reset_index()
    shares = dict.fromkeys(("memorisation", "written_details", "image_details"), "share")
    shares |= {"complete_agreement": "all three", "agreement_with_sides": "and every side", "counterfactuals": "flip"}
    tables |= {name: share_columns(result[name], share) for name, share in shares.items() if name in result}
    if "texts" in result:
        tables["texts"] = text_columns(result["texts"])
    values = {name: markdown(table) for name, table in tables.items()}  # name in report.md => its text
    for name in ("synthetic", "real", "train"):
        rows = result[name]
        values[name] = f"{rows['tree']}, N = {rows['N']} ({rows['unreadable']} unreadable, left out)"
    values["unseen"] = "no image; the floor is of training images, which it may know"
    if "unseen" in result:
        splits = " and ".join(f"{count} of the split {name}" for name, count in result["unseen"]["splits"].items())
        values["unseen"] = f"N = {result['unseen']['N']} real images of further patients ({splits})"
    judge = result.get("text_judge", "")
    note = " The TF-IDF judge knows the wording of the training reports only, as the label-only reports show."
    values |= {
        "text_judge": judge, "wording": note if "TF-IDF" in judge else "", "split": result["real"]["split"],
        "selected": result["selected"], "classifier": result["classifier"],
        "notes": "\n\n".join(f"**Note:** {note}." for note in result["notes"]), "draws": FLOOR_DRAWS,
        "positives": metrics.MINIMUM_POSITIVES, "copies": f"{COPY_QUANTILE:.0%}",
    }  # fmt: skip

    parts = []
    for section in re.split(r"\n\n(?=## )", Path(__file__).with_name("report.md").read_text(encoding="utf-8").strip()):
        paragraphs = [Template(" ".join(paragraph.splitlines())) for paragraph in section.split("\n\n")]
        named = {name for paragraph in paragraphs for name in paragraph.get_identifiers()}
        if not named & OPTIONAL - values.keys():
            parts += filter(None, (paragraph.substitute(values) for paragraph in paragraphs))
    return "\n\n".join(parts) + "\n"


def markdown(rows: pd.DataFrame | list[dict]) -> str:
    """A DataFrame, or rows, as a Markdown table; NaN is a dash."""
    frame = pd.DataFrame(rows)

    def cell(value):
        if isinstance(value, (float, np.floating)):
            return "–" if np.isnan(value) else f"{value:.3f}"
        return str(value)

    lines = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    lines += [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def auroc_columns(efficacy: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """AUROC tables side by side, with intervals, one row a finding."""
    table = pd.DataFrame({"finding": efficacy["synthetic"].index})
    for name, values in efficacy.items():
        if name not in (COPYING, SELECTED):  # whose positives are those of the synthetic images
            table["asked" if name == "synthetic" else f"{name}: positives"] = values["positives"].tolist()
        table[f"{name}: AUROC [95 %]"] = values.apply(_auroc, axis=1).tolist()
    return table


def share_columns(rows: list[dict], share: str = "all three") -> pd.DataFrame:
    """Rows with the columns low and high => a table with the share and its interval in one column."""
    table = pd.DataFrame(rows)
    intervals = ["–" if np.isnan(row[share]) else with_interval(row[share], row["low"], row["high"]) for row in rows]
    place = table.columns.get_loc(share)
    table.insert(place, f"{share} [95 %]", intervals)
    if "of the real share" in table:
        table.insert(place + 1, "of the real share", table.pop("of the real share"))
    return table.drop(columns=[share, "low", "high"])


def text_columns(rows: list[dict]) -> pd.DataFrame:
    """Rows of `text_habits` => a table with each count out of N."""
    table = pd.DataFrame(rows)
    for name in ("marks", "comparisons", "contradictions", "stuttering"):
        table[name] = [f"{row[name]} of {row['N']}" for row in rows]
    return table.drop(columns="N")


def draw_closest(nearest: tuple, synthetic: pd.DataFrame, train: pd.DataFrame, image_size: int, path: Path) -> None:
    """Draws the CLOSEST synthetic images above their nearest training images; nearest: of `sections.memorisation`."""
    count = min(CLOSEST, len(synthetic))
    figure = Figure(figsize=(1.6 * count, 3.8), layout="constrained")
    upper, lower = figure.subplots(2, count, squeeze=False)
    distances, places = nearest
    for column, row in enumerate(np.argsort(distances, kind="stable")[:count]):
        made, copied = synthetic["image_path"].iloc[row], train["image_path"].iloc[places[row]]
        shown = (upper, made, f"{distances[row]:.3f}"), (lower, copied, "training image")
        for axes, image_path, title in shown:
            axes[column].imshow(read_pixels(image_path, image_size)[0].numpy(), cmap="gray", vmin=-1, vmax=1)
            axes[column].set_title(title, fontsize=8)
            axes[column].set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
