"""Writes an evaluation down: tables, plots, evaluation.md, evaluation.json, and the main numbers for the page.

`result` is what evaluate_pairs.py gathers, section by section, in the order of evaluation.json.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation import metrics
from evaluation.images import ImageSets
from evaluation.sections import COPYING, SHUFFLED, Nearest
from utils.errors import say, writing
from utils.latents import read_pixels

CLOSEST = 8  # closest pairs of each space in the picture
PICTURE_SIZE = 256  # pixels a side of an image in it, at most
PAGE_IMAGES = 5000  # synthetic images on the gallery page, at most


class Stopwatch:
    """Seconds a section, in `seconds`; each is printed as it ends."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the section that ran since the last lap."""
        now = time.perf_counter()
        self.seconds[name], self._start = round(now - self._start, 1), now
        say(f"{name}: {self.seconds[name]} s")


def write_evaluation(
    output: Path, result: dict, sets: ImageSets, findings_of_pairs: pd.DataFrame, spaces: dict[str, Nearest]
) -> str:
    """Writes the files of an evaluation into a folder => the text of evaluation.md.

    findings_of_pairs: see `sections.pairs`, for agreement.csv.gz; spaces: see `sections.memorisation`.
    """
    with writing("the evaluation", output):
        draw_auroc(result["auroc"], output / "auroc.png")
        draw_distances(spaces, output / "memorisation.png")
        size = min(sets.synthetic.loading.image_size, PICTURE_SIZE)
        draw_closest(spaces, sets.synthetic.table, sets.train.table, size, output / "closest.png")
        findings_of_pairs.to_csv(output / "agreement.csv.gz", index=False)
        text = as_markdown(result)
        (output / "evaluation.md").write_text(text, encoding="utf-8")
        (output / "evaluation.json").write_text(json.dumps(as_json(result), indent=2, allow_nan=False) + "\n")
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


def summary(result: dict) -> list[tuple[str, str]]:
    """The main numbers as (name, value) pairs for the page."""
    rows = []
    for row in result["image_quality"]:
        warning = f" — {row['warning']}" if row["warning"] else ""
        rows.append((f"FID, {row['images']}", f"{row['FID']:.2f} (N = {row['N']}, {row['extractor']}{warning})"))
    for name, table in result["auroc"].items():
        mean = table.loc["mean"]
        value = _with_interval(mean["auroc"], mean["low"], mean["high"]) if mean["counted"] else "too few positives"
        rows.append((f"mean AUROC, {name}", f"{value} ({result['classifier']})"))
    for row in [*result.get("reports", []), *result.get("written_reports", [])[:1]]:
        value = f"{row['clinical F1 micro']:.3f} / {row['clinical F1 macro']:.3f} (N = {row['N']})"
        rows.append((f"clinical F1 of reports, micro / macro, {row['reports']}", value))
    pairs = {row["pairs"]: row for row in result["complete_agreement"]}
    if SHUFFLED in pairs:  # else there are no reports
        row, real, floor = pairs["synthetic"], pairs["real"]["all three"], pairs[SHUFFLED]["all three"]
        value = f"{row['all three']:.1%} [{row['low']:.1%}, {row['high']:.1%}] (N = {row['N']}"
        value += f"; real pairs {real:.1%}, shuffled reports {floor:.1%})"
        rows.append(("pairs whose request, image and report agree on every finding", value))
    for row in result.get("agreement_with_sides", [])[:1]:
        value = f"{_with_interval(row['and every side'], row['low'], row['high'])} ({row['of the real share']:.2f} of "
        rows.append(("the same, and on every side", f"{value}the real share)"))
    for row in result["memorisation"]:
        rows.append((f"copies, {row['space']}", f"{row['share']:.1%} (of unseen real images {row['quantile']:.0%})"))
    return rows


def _with_interval(value, low, high):
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


# ---- evaluation.md -------------------------------------------------------------------------------------------------


def as_markdown(result: dict) -> str:
    """evaluation.md."""
    real, parts = result["real"], ["# Evaluation"]
    for title, name, which in (
        ("Synthetic", "synthetic", ""),
        ("Real", "real", f", split {real['split']}"),
        ("Training rows", "train", ""),
    ):
        rows = result[name]
        parts.append(f"{title}: {rows['tree']}{which}, N = {rows['N']} ({rows['unreadable']} unreadable, left out).")
    parts += [f"**Note:** {note}." for note in result["notes"]]
    parts += [*_images(result), *_reports(result), *_pairs(result), *_details(result)]
    if "selection" in result:
        parts += [
            "## Selection",
            "A selector, trained on other patients than the image judge, chose the images. Does its score predict what "
            "the image judge finds? Five groups of images, from the lowest score to the highest, and the share of each "
            "in which the image judge finds every finding as it was asked:",
            markdown(result["selection"]["calibration"]),
            "The share of images that show every finding as asked by the selector, and the shares of these, and of the "
            "others, that do so by the image judge:",
            markdown([result["selection"]["acceptance"]]),
        ]
    parts += [
        "## Memorisation",
        "Distance to the nearest training image. Of the real images, which were not trained on, "
        f"{result['memorisation'][0]['quantile']:.0%} lie below the threshold; `share` is that of the synthetic ones.",
        markdown(result["memorisation"]),
        "![distances](memorisation.png)",
        "![closest pairs](closest.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _images(result):
    parts = [
        "## Image quality",
        "Each row against the same real images. The floor is what other real images score at the same N; copying needs "
        "no model. The judge was trained on the images of these two rows, which makes its floor a little too high.",
        markdown(result["image_quality"]),
        "Diversity: MS-SSIM of pairs with the same findings (1: all alike; compare with the real images):",
        markdown(result["diversity"]),
        "## Clinical efficacy of images",
        f"Classifier: {result['classifier']}. Asked findings on synthetic images; the last columns are the "
        f"classifier's own AUROC on real images. A finding with fewer than {metrics.MINIMUM_POSITIVES} positives (too "
        "few) is no part of the mean.",
        markdown(auroc_columns(result["auroc"])),
        "![AUROC](auroc.png)",
    ]
    if "downstream" in result:
        tested = f"The judge's network, tested on {result['real']['N']} real images, mean AUROC:"
        parts += ["## Downstream utility", tested, markdown(result["downstream"])]
    return parts


def _reports(result):
    parts = []
    for prefix, title in (("", "Reports"), ("written_", "Reports written for real images")):
        if f"{prefix}reports" in result:
            parts += [
                f"## {title}",
                f"Clinical F1 by the {result['text_judge']} against the asked findings; the other scores against the "
                f"real report of the image that the label vector came from.{_wording(result)}",
                markdown(result[f"{prefix}reports"]),
                markdown(f1_columns(result[f"{prefix}report_f1"])),
            ]
    if "texts" in result:
        table = pd.DataFrame(result["texts"])
        for name in ("marks", "comparisons", "contradictions", "stuttering"):
            table[name] = [f"{count} of {total}" for count, total in zip(table[name], table["N"])]
        parts += [
            "## Reports as texts",
            "Reports with a de-identification mark (`___`, `XXXX`); with a comparison to an earlier film; with a "
            "contradiction: one sentence calls a finding present and another absent, by rules that do not distinguish "
            "sides, so that some real reports count; with stuttering: a word or a few stand three times in a row. "
            "`distinct`: the share of different texts, which falls with N; `different`: of the pairs of reports of two "
            "patients with the same findings the share whose texts differ.",
            markdown(table.drop(columns="N")),
        ]
    return parts


def _wording(result):
    if "TF-IDF" not in result.get("text_judge", ""):
        return ""
    return " The TF-IDF judge knows the wording of the training reports only, as the label-only reports show."


def _pairs(result):
    means = {name: table.loc["mean"] for name, table in result["pairs"].items()}
    return [
        "## Pairs",
        "Agreement between request, image (image judge) and report (text judge), mean over findings:",
        markdown([{"pairs": name, **mean, "asked": int(mean["asked"])} for name, mean in means.items()]),
        "Per finding, synthetic:",
        markdown(result["pairs"]["synthetic"].rename_axis("finding").reset_index()),
        "The share of pairs that agree on every finding that both judges know and the request does not leave "
        "uncertain, with its 95 % bootstrap interval over pairs; beside it the share of the real pairs, which shows "
        "how far the judges themselves get. In the last columns two of the three agree on all findings. The judges "
        f"were trained on the images and reports of the row of copies.{_wording(result)}",
        markdown(complete_agreement_columns(result["complete_agreement"])),
    ]


def _details(result):
    parts = []
    if "written_details" in result:
        parts += [
            "## Details of reports written for real images",
            "Side, zone, degree and kind of a finding, by rules: the share that is right of those that the written and "
            "the real report both name (N; the real ones name `of`), with its 95 % interval over patients. Chance: two "
            "draws of what training reports name of the same detail of the same finding. Shuffled: other patients' "
            "written reports that name it of the same finding. Ceiling: reconstructions of the real reports by BART.",
            markdown(with_interval_column(result["written_details"], "share")),
        ]
    if "image_details" in result:
        parts += [
            "## Sides and zones of images",
            "What a judge, trained on real images and on the sides and zones that their reports name, sees of the "
            "findings in an image's report, against what the report names. The rows of real images show how far the "
            "judge itself gets. Chance and shuffled reports as above.",
            markdown(with_interval_column(result["image_details"], "share")),
            "Pairs whose request, image and report agree on every finding, and the share of all pairs that also agree "
            "on each side that the report names and the judge can see:",
            markdown(with_interval_column(result["agreement_with_sides"], "and every side")),
        ]
    return parts


# ---- tables --------------------------------------------------------------------------------------------------------


def markdown(rows: pd.DataFrame | list[dict], digits: int = 3) -> str:
    """A DataFrame, or rows, as a Markdown table; NaN is a dash."""
    frame = pd.DataFrame(rows)

    def cell(value):
        if isinstance(value, (float, np.floating)):
            return "–" if np.isnan(value) else f"{value:.{digits}f}"
        return str(value)

    lines = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    lines += [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def auroc_columns(efficacy: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """AUROC tables side by side, with intervals, one row a finding."""
    table = pd.DataFrame({"finding": efficacy["synthetic"].index})
    for name, values in efficacy.items():
        if name != COPYING:  # whose positives are those of the synthetic images
            table["asked" if name == "synthetic" else f"{name}: positives"] = values["positives"].tolist()
        table[f"{name}: AUROC [95 %]"] = [
            _with_interval(row.auroc, row.low, row.high) if row.counted else "too few" for row in values.itertuples()
        ]
    return table


def complete_agreement_columns(rows: list[dict]) -> pd.DataFrame:
    """The rows of `metrics.complete_agreement` with share and interval in one column."""
    table = pd.DataFrame(rows)
    intervals = [
        "–" if np.isnan(row["all three"]) else _with_interval(row["all three"], row["low"], row["high"]) for row in rows
    ]
    place = table.columns.get_loc("all three")
    table.insert(place, "all three [95 %]", intervals)
    table.insert(place + 1, "of the real share", table.pop("of the real share"))
    return table.drop(columns=["all three", "low", "high"])


def with_interval_column(rows: list[dict], name: str) -> pd.DataFrame:
    """Rows with a share, and its interval in `low` and `high`, as a table with these three in one column."""
    table = pd.DataFrame(rows)
    values = [
        "–" if np.isnan(value) else _with_interval(value, low, high)
        for value, low, high in zip(table[name], table["low"], table["high"])
    ]
    table.insert(table.columns.get_loc(name), f"{name} [95 %]", values)
    return table.drop(columns=[name, "low", "high"])


def f1_columns(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Clinical F1 per finding of several sets of reports side by side."""
    first = next(iter(tables.values()))
    table = pd.DataFrame({"finding": first.index, "positives": first["positives"].tolist()})
    return table.assign(**{name: values["f1"].tolist() for name, values in tables.items()})


# ---- plots ---------------------------------------------------------------------------------------------------------


def draw_auroc(efficacy: dict[str, pd.DataFrame], path: Path) -> None:
    """AUROC with its interval per finding, for each of the tables."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for offset, (name, table) in enumerate(efficacy.items()):
        places = np.arange(len(table)) + 0.25 * (offset - 1)
        errors = np.abs(table[["low", "high"]].to_numpy(dtype=float).T - table["auroc"].to_numpy(dtype=float))
        axes.errorbar(table["auroc"], places, xerr=errors, fmt="o", markersize=4, label=name)
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set(yticks=range(len(table)), yticklabels=table.index, xlabel="AUROC, 95 % bootstrap interval")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_distances(spaces: dict[str, Nearest], path: Path) -> None:
    """Histograms of the distances to the nearest training image, real and synthetic images, a plot for each space."""
    figure = Figure(figsize=(4.5 * len(spaces), 3.5), layout="constrained")
    for axes, (space, nearest) in zip(figure.subplots(1, len(spaces), squeeze=False)[0], spaces.items()):
        distances, names = [nearest.real, nearest.synthetic], ["real", "synthetic"]
        bins = np.linspace(0, max(map(np.max, distances)) or 1, 40)
        axes.hist(distances, bins, density=True, histtype="stepfilled", alpha=0.6, label=names)
        axes.axvline(nearest.threshold, color="black", linewidth=0.8, label="copies are left of this")
        axes.set(title=space, xlabel="distance to the nearest training image")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_closest(
    spaces: dict[str, Nearest], synthetic: pd.DataFrame, train: pd.DataFrame, image_size: int, path: Path
) -> None:
    """The CLOSEST pairs of each space, or fewer: the synthetic image above its nearest training image."""
    count = min(CLOSEST, len(synthetic))
    figure = Figure(figsize=(1.6 * count, 3.8 * len(spaces)), layout="constrained")
    grid = figure.subplots(2 * len(spaces), count, squeeze=False)
    for block, (space, nearest) in enumerate(spaces.items()):
        upper, lower = grid[2 * block], grid[2 * block + 1]
        upper[0].set_ylabel(space, fontsize=7)
        for column, row in enumerate(np.argsort(nearest.synthetic, kind="stable")[:count]):
            _show(upper[column], synthetic["image_path"].iloc[row], image_size, f"{nearest.synthetic[row]:.3f}")
            _show(lower[column], train["image_path"].iloc[nearest.places[row]], image_size, "training image")
    figure.savefig(path, dpi=120)


def _show(axes, image_path, image_size, title):
    axes.imshow(read_pixels(image_path, image_size)[0].numpy(), cmap="gray", vmin=-1, vmax=1)
    axes.set_title(title, fontsize=8)
    axes.set(xticks=[], yticks=[])
