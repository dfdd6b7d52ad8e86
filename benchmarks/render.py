"""Renders docs/results.md, the tables of OWN_PAGES in docs and the README's of the demo from benchmarks/results.

    python -m benchmarks.render

A record is one table with its command, commit, processor, date and constants (benchmarks/record.py writes it). No
figure of these tables is written by hand; a test fails when they differ from the records.

Reads:  benchmarks/results/*.json
Writes: docs/results.md; between marks README.md and OWN_PAGES
"""

import json
from pathlib import Path

import pandas as pd

from benchmarks.record import RESULTS, fill, spread
from evaluation.report import markdown
from utils.constants import REPOSITORY

PAGE, README = REPOSITORY / "docs" / "results.md", REPOSITORY / "README.md"
# how the names of their records begin
OWN_PAGES = {
    "counterfactuals.md": ("counterfactual", "shortcut"), "privacy.md": ("privacy",),
    "scale.md": ("scale", "bench-h200"), "free-text.md": ("text",),
}  # fmt: skip
MARK = "rendered from benchmarks/results by python -m benchmarks.render"  # of the README's table of the demo
SPEED = "bench-cpu-demo"  # a record, and the mark of the README's table of it
HEADER = """# Results

Everything on this page was measured on drawn chests with tiny models, or with random weights, unless a table says
otherwise. Nothing was measured on MIMIC-CXR or with the published weights. `python -m benchmarks.render` makes this
page from the records in [benchmarks/results](../benchmarks/results); each record names its command, commit, processor
and constants. Results differ from processor to processor: the same command gives other figures in the second digit.
Test figures choose nothing, validation images do; once, the demo's U-ViT kept patches of 2 beside test figures.
"""
README_ROWS = (
    "FID", "mean AUROC of the asked findings in images", "F1 of the findings in reports, micro / macro",
    "F1 of the findings in reports written for real images, micro / macro", "side in reports written for real images",
    "pairs that agree on every finding", "the same, and on every side",
    "selected: pairs that agree on every finding", "selected: the same, and on every side",
)  # fmt: skip
# records whose names begin so, in this order; further ones follow
ORDER = ("demo", "latent", "pairs", "guidance", "fidelity", "ablation", "students", "utility", "bench")


def read_records(folder: Path = RESULTS) -> list[dict]:
    """All records in the order of the page, each with its file's stem as `name`.

    labeler.json is left out: its tables stand in docs/labeler.md.
    """
    paths = [path for path in folder.glob("*.json") if path.stem != "labeler"]
    records = [{"name": path.stem, **json.loads(path.read_text(encoding="utf-8"))} for path in paths]

    def place(record):
        return [record["name"].startswith(start) for start in (*ORDER, "")].index(True), record["name"]

    return sorted(records, key=place)


def page(records: list[dict]) -> str:
    """The text of docs/results.md, a section for each record but those of OWN_PAGES."""
    elsewhere = sum(OWN_PAGES.values(), ())
    own = (record for record in records if not record["name"].startswith(elsewhere))
    return "\n\n".join([HEADER.strip(), *(f"## {record['title']}\n\n{section(record)}" for record in own)]) + "\n"


def section(record: dict) -> str:
    """A record's table, what was run, and its notes."""
    about = f"*`{record['command']}`, commit {record['commit']}, {record['processor']}, {record['date']}.*"
    parts = markdown(pd.DataFrame(record["rows"], columns=record["columns"])), about, record["notes"]
    return "\n\n".join(part for part in parts if part)


def own_page(name: str, records: list[dict]) -> str:
    """The text of one of OWN_PAGES with its records, each between its own marks."""
    text = (PAGE.parent / name).read_text()
    for record in records:
        if record["name"].startswith(OWN_PAGES[name]):
            text = fill(text, record["name"], section(record))
    return text


def demo_table(records: list[dict]) -> str:
    """The README's table: README_ROWS of the demo over all records of it, from the lowest to the highest figure."""
    demos = [record for record in records if record["name"].startswith("demo")]
    found = [{row[0].split(" (")[0]: row[1:] for row in record["rows"]} for record in demos]
    names = [name for name in README_ROWS if name in found[0]]
    cells = [[rows[name] for rows in found if name in rows] for name in names]
    rows = [[name, *map(spread, zip(*rows))] for name, rows in zip(names, cells)]
    return markdown(pd.DataFrame(rows, columns=demos[0]["columns"]))


def speed_table(records: list[dict]) -> str:
    """The README's table of SPEED: what was compared with which package, and the ratio."""
    [record] = [record for record in records if record["name"] == SPEED]
    table = pd.DataFrame(record["rows"], columns=record["columns"])[["what", "peer", "ratio"]]
    return markdown(table[~table["peer"].str.startswith("PNDM")])


def main():
    records = read_records()
    PAGE.write_text(page(records))
    for name in OWN_PAGES:
        (PAGE.parent / name).write_text(own_page(name, records))
    readme = fill(README.read_text(), MARK, demo_table(records))
    README.write_text(fill(readme, SPEED, speed_table(records)))


if __name__ == "__main__":
    main()
