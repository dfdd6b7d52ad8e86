"""What an evaluation found, written down: tables, plots, evaluation.md, evaluation.json, and the page's main numbers.

`result` is what evaluate_pairs.py gathers, section by section, in the order in which it stands in evaluation.json.
"""

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation import metrics
from evaluation.sections import COPYING, SHUFFLED
from utils.errors import writing
from utils.latents import read_pixels


def write_evaluation(output, result, seconds, told, found, synthetic, train, closest, image_size):
    """Writes the folder `output` => the text of evaluation.md.

    seconds: {section: seconds}; told: what request, image and report say of each finding, for agreement.csv.gz;
    found: {space: Nearest}; closest: how many pairs of each space are shown, of image_size pixels at most.
    """
    with writing("the evaluation", output):
        output.mkdir(parents=True, exist_ok=True)
        draw_auroc(result["auroc"], output / "auroc.png")
        draw_distances(found, output / "memorisation.png")
        draw_closest(found, synthetic.table, train.table, closest, image_size, output / "closest.png")
        told.to_csv(output / "agreement.csv.gz", index=False)
        text = as_markdown(result)
        (output / "evaluation.md").write_text(text, encoding="utf-8")
        whole = as_json({**result, "seconds": seconds})
        (output / "evaluation.json").write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n")
    return text


def as_json(value):
    """Tables, arrays and NaN as what JSON can hold."""
    if isinstance(value, pd.DataFrame):
        return as_json(value.to_dict("index"))
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def summary(result):
    """The main numbers, (name, value) pairs for the page."""
    rows = []
    for row in result["image_quality"]:
        warning = f" — {row['warning']}" if row["warning"] else ""
        rows.append((f"FID, {row['images']}", f"{row['FID']:.2f} (N = {row['N']}, {row['extractor']}{warning})"))
    for name, table in result["auroc"].items():
        mean = table.loc["mean"]
        value = (
            f"{mean['auroc']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" if mean["counted"] else "too few positives"
        )
        rows.append((f"mean AUROC, {name}", f"{value} ({result['classifier']})"))
    for row in [*result.get("reports", []), *result.get("written_reports", [])[:1]]:
        value = f"{row['clinical F1 micro']:.3f} / {row['clinical F1 macro']:.3f} (N = {row['N']})"
        rows.append((f"clinical F1 of reports, micro / macro, {row['reports']}", value))
    rows += _complete_agreement_line(result["complete_agreement"])
    for row in result["memorisation"]:
        rows.append((f"copies, {row['space']}", f"{row['share']:.1%} (of unseen real images {row['quantile']:.0%})"))
    return rows


def _complete_agreement_line(rows):
    """One (name, value) pair of the pairs that agree on every finding; none where no report was read."""
    shares = {row["pairs"]: row for row in rows}
    synthetic, real, floor = (shares.get(name) for name in ("synthetic", "real", SHUFFLED))
    if floor is None:
        return []
    told = f"{synthetic['all three']:.1%} [{synthetic['low']:.1%}, {synthetic['high']:.1%}] (N = {synthetic['N']}"
    told += f"; real pairs {real['all three']:.1%}, shuffled reports {floor['all three']:.1%})"
    return [("pairs whose request, image and report agree on every finding", told)]


# ---- evaluation.md -------------------------------------------------------------------------------------------------


def as_markdown(result):
    """evaluation.md."""
    parts = [*_trees(result), *_images(result), *_reports(result), *_texts(result), *_pairs(result)]
    parts += [*_selection(result), *_memorisation(result)]
    return "\n\n".join(parts) + "\n"


def _trees(result):
    real, synthetic, train = (result[name] for name in ("real", "synthetic", "train"))
    return [
        "# Evaluation",
        f"Synthetic: {synthetic['tree']}, N = {synthetic['N']} ({synthetic['unreadable']} unreadable, left out).  \n"
        f"Real: {real['tree']}, split {real['split']}, N = {real['N']} ({real['unreadable']} unreadable, left out).  \n"
        f"Training rows: {train['tree']}, N = {train['N']} ({train['unreadable']} unreadable, left out).",
        *(f"**Note:** {note}." for note in result["notes"]),
    ]


def _images(result):
    parts = [
        "## Image quality",
        "Each row against the same real images. The floor is what other real images get at the same N; copying needs "
        "no model. The judge was trained on the images of these two rows and knows them better than unseen ones, which "
        "makes its floor a little too high.",
        markdown(pd.DataFrame(result["image_quality"])),
        "Diversity: MS-SSIM of pairs with the same findings (1: all alike; to be read beside the real images'):",
        markdown(pd.DataFrame(result["diversity"])),
        "## Clinical efficacy of images",
        f"Classifier: {result['classifier']}. Asked findings on synthetic images; the last columns are the "
        f"classifier's own AUROC on real ones. Fewer than {metrics.MINIMUM_POSITIVES} positives: too few, and no part "
        "of the mean.",
        markdown(auroc_columns(result["auroc"])),
        "![AUROC](auroc.png)",
    ]
    if "downstream" in result:
        tested = f"The judge's network, tested on {result['real']['N']} real images, mean AUROC:"
        parts += ["## Downstream utility", tested, markdown(pd.DataFrame(result["downstream"]))]
    return parts


def _reports(result):
    parts = []
    for rows, per_finding, title in (
        ("reports", "report_f1", "Reports"),
        ("written_reports", "written_report_f1", "Reports written for real images"),
    ):
        if rows in result:
            parts += [
                f"## {title}",
                f"Clinical F1 by the {result['text_judge']} against the asked findings; the other scores against the "
                f"real report of the image that the label vector came from.{_wording(result)}",
                markdown(pd.DataFrame(result[rows])),
                markdown(f1_columns(result[per_finding])),
            ]
    return parts


def _wording(result):
    if "TF-IDF" not in result.get("text_judge", ""):
        return ""
    return (
        " The TF-IDF judge reads the wording of the training reports and no other, which the label-only reports show."
    )


def _texts(result):
    if "texts" not in result:
        return []
    table = pd.DataFrame(result["texts"])
    for name in ("marks", "contradictions", "stuttering"):
        table[name] = [f"{count} of {total}" for count, total in zip(table[name], table["N"])]
    return [
        "## Reports as texts",
        "Reports with a de-identification mark (`___`, `XXXX`); that contradict themselves: one sentence calls a finding "
        "present and another absent, by rules that tell no sides apart, so that some real reports do; that stutter: a "
        "word or a few stand three times in a row. `distinct` is the share of different texts, which falls with N; "
        "`different` that of the pairs of reports of two patients with the same findings that are not the same text.",
        markdown(table.drop(columns="N")),
    ]


def _pairs(result):
    means = pd.concat({name: table.loc[["mean"]] for name, table in result["pairs"].items()}).droplevel(1)
    return [
        "## Pairs",
        "Agreement between request, image (image judge) and report (text judge), mean over findings:",
        markdown(means.rename_axis("pairs").reset_index()),
        "Per finding, synthetic:",
        markdown(result["pairs"]["synthetic"].rename_axis("finding").reset_index()),
        "The share of pairs that agree on every finding which both judges know, those aside that the request leaves "
        "uncertain, with its 95 % bootstrap interval over pairs, and beside the share of the real pairs, which shows how "
        "far the judges themselves get; the last columns are the shares in which each two agree on all of them. The "
        f"judges have learnt from the images and reports that the row of copies shows.{_wording(result)}",
        markdown(complete_agreement_columns(result["complete_agreement"])),
    ]


def _selection(result):
    if "selection" not in result:
        return []
    return [
        "## Selection",
        "The images were chosen by a selector, a judge of other patients than the image judge's. Does its score say what "
        "the image judge sees? The images in five groups, from the lowest score to the highest, and the share of each in "
        "which the image judge finds every finding as it was asked:",
        markdown(pd.DataFrame(result["selection"]["calibration"])),
        "Images that show every finding as asked by the selector, and how many of these, and of the others, do so by the "
        "image judge:",
        markdown(pd.DataFrame([result["selection"]["acceptance"]])),
    ]


def _memorisation(result):
    return [
        "## Memorisation",
        f"Distance to the nearest training image. Of the real images, which were not trained on, "
        f"{result['memorisation'][0]['quantile']:.0%} lie below the threshold; `share` is that of the synthetic ones.",
        markdown(pd.DataFrame(result["memorisation"])),
        "![distances](memorisation.png)",
        "![closest pairs](closest.png)",
    ]


# ---- tables --------------------------------------------------------------------------------------------------------


def markdown(frame, digits=3):
    """A DataFrame as a Markdown table; NaN is a dash."""

    def cell(value):
        if isinstance(value, (float, np.floating)):
            return "–" if np.isnan(value) else f"{value:.{digits}f}"
        return str(value)

    lines = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    lines += [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def auroc_columns(efficacy):
    """The AUROC tables side by side, with intervals, one row a finding."""
    table = pd.DataFrame({"finding": efficacy["synthetic"].index})
    for name, values in efficacy.items():
        if name != COPYING:  # has the positives of the synthetic images
            table["asked" if name == "synthetic" else f"{name}: positives"] = values["positives"].tolist()
        table[f"{name}: AUROC [95 %]"] = [
            f"{row.auroc:.3f} [{row.low:.3f}, {row.high:.3f}]" if row.counted else "too few"
            for row in values.itertuples()
        ]
    return table


def complete_agreement_columns(rows):
    """The rows of `metrics.complete_agreement` with the interval in one column, and without columns that say nothing."""
    table = pd.DataFrame(rows)
    intervals = [
        "–" if np.isnan(row["all three"]) else f"{row['all three']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for row in rows
    ]
    for name, values in (("all three [95 %]", intervals), ("of the real share", table.pop("of the real share"))):
        table.insert(table.columns.get_loc("low"), name, values)
    return table.drop(columns=["all three", "low", "high"])


def f1_columns(tables):
    """Clinical F1 per finding of several sets of reports side by side."""
    first = next(iter(tables.values()))
    table = pd.DataFrame({"finding": first.index, "positives": first["positives"].tolist()})
    for name, values in tables.items():
        table[name] = values["f1"].tolist()
    return table


# ---- plots ---------------------------------------------------------------------------------------------------------


def draw_auroc(efficacy, path):
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


def draw_distances(found, path):
    """Histograms of the distances to the nearest training image, {space: Nearest}, real ones and synthetic ones."""
    figure = Figure(figsize=(4.5 * len(found), 3.5), layout="constrained")
    for axes, (space, near) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        bins = np.linspace(0, max(near.synthetic.max(), near.real.max()) or 1, 40)
        distances, names = [near.real, near.synthetic], ["real", "synthetic"]
        axes.hist(distances, bins, density=True, histtype="stepfilled", alpha=0.6, label=names)
        axes.axvline(near.threshold, color="black", linewidth=0.8, label="copies are left of this")
        axes.set(title=space, xlabel="distance to the nearest training image")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_closest(found, synthetic_table, train_table, count, image_size, path):
    """The `count` closest pairs of each space: the synthetic image above its nearest training image."""
    count = min(count, len(synthetic_table))
    figure = Figure(figsize=(1.6 * count, 3.8 * len(found)), layout="constrained")
    grid = figure.subplots(2 * len(found), count, squeeze=False)
    for block, (space, near) in enumerate(found.items()):
        for column, row in enumerate(np.argsort(near.synthetic, kind="stable")[:count]):
            shown = (
                (synthetic_table, row, f"{near.synthetic[row]:.3f}"),
                (train_table, near.places[row], "training image"),
            )
            for below, (table, which, title) in enumerate(shown):
                axes = grid[2 * block + below, column]
                pixels = read_pixels(table["image_path"].iloc[which], min(image_size, 256))[0]
                axes.imshow(pixels.numpy(), cmap="gray", vmin=-1, vmax=1)
                axes.set_title(title, fontsize=8)
                axes.set(xticks=[], yticks=[])
        grid[2 * block, 0].set_ylabel(space, fontsize=7)
    figure.savefig(path, dpi=120)
