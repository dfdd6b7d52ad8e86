"""A CXR tree => one page to look at: image, prompt, reference and report, with filters that need no server.

    python -m evaluation.gallery --TREES '("demo/synthetic/clipUViT",)' --DATA_ROOT demo/phantom

Several trees stand side by side: images with the same prompt, reference and seed share a card.

Reads:  one or more CXR trees (a synthetic one with its synthetic.csv), and the tree that the references come from.
Writes: PAGE, and <its name>_files/ beside it with small JPEG copies of those images that lie outside PAGE's folder.
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import hashlib
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from tqdm import tqdm

from utils import findings
from utils.csv_files import read_csv
from utils.errors import InputError, run, writing
from utils.mimic_cxr import PROVENANCE_FILE, read_table
from utils.pixels import open_image, to_grey

TREES = ("demo/synthetic/clipUViT",)  # roots of the CXR trees to show side by side, each under its folder's name
DATA_ROOT = ""  # the tree that the reference images come from; empty: references are not shown
PAGE = ""  # the page, .html (a file to write or empty; empty: index.html in the folder that holds the first tree)
MAX_IMAGES = 0  # cards on the page, one image of each tree on a card (0 or more; 0: all)

_TEMPLATE = Path(__file__).with_suffix(".html")
_COPY_SIDE = 512  # pixels; the longer side of a copied image, at most
_REQUEST = ("prompt", "seed", "reference_dicom_id")  # columns that synthetic.csv must have
_SETTINGS = (  # and may have
    "checkpoint", "scheduler", "steps", "condition", "text_guidance", "reference_guidance", "guidance_low",
    "guidance_high",
)  # fmt: skip


def write_page(
    page: str | Path, trees: dict[str, str | Path | pd.DataFrame], references: pd.DataFrame | None = None,
    title: str = "Chest X-rays", agreement: pd.DataFrame | None = None, summary: Sequence[tuple[str, str]] = (),
    max_images: int = 0,
) -> Path:  # fmt: skip
    """Writes the page and copies the images that lie outside its folder; returns the page's path.

    page: the .html file; every address in it is relative and stays inside its folder.
    trees: {column title: root of a CXR tree, or a table with `prompt`}; without synthetic.csv the labels' one is shown.
    references: the table (utils.mimic_cxr.read_table) in which reference_dicom_id is looked up; None: not shown.
    agreement: DataFrame with dicom_id, finding, asked, image, report (1, 0, or NaN where a judge cannot say).
    summary: (name, value) pairs in plain text, e.g. metrics, shown at the top.
    max_images: the first so many cards, one image of each tree on a card; 0: all.
    InputError for no tree, a tree without images, or a synthetic.csv without its columns.
    """
    page = Path(page)
    if not trees:
        raise InputError("there is no tree to show: name at least one CXR tree, e.g. --TREES '(\"demo/phantom\",)'")
    tables = {column: _read_tree(root) for column, root in trees.items()}
    rows = _side_by_side(list(tables.values()))
    if max_images and len(rows) > max_images:
        print(f"{page}: the first {max_images} of {len(rows)} cards are shown")
        rows = rows[:max_images]
    with writing("the page", page.parent):
        page.parent.mkdir(parents=True, exist_ok=True)

    images = _PageImages(page)
    cards = _cards(rows, _marks(agreement), images)
    shown_references = {} if references is None else _references(cards, references, images)
    if not cards:
        raise InputError(f"none of the images for {page} can be read, e.g. {images.unreadable[0]}, so no page was made")
    if images.unreadable:
        print(f"{page}: left out {len(images.unreadable)} images that cannot be read, e.g. {images.unreadable[0]}")
    entries = []
    for place, (column, table) in enumerate(tables.items()):
        reports = [card["pictures"][place]["report"] for card in cards if card["pictures"][place]]
        made = {key: ", ".join(filter(None, table[key].unique())) for key in _SETTINGS}
        entries.append({"title": column, "images": len(reports), "reports": sum(map(bool, reports)), "made": made})
    content = {
        "title": title, "findings": findings.FINDINGS, "trees": entries,
        "summary": [[str(name), str(value)] for name, value in summary],
        "showReferences": references is not None and any(card["reference"] for card in cards),
        "references": shown_references, "cards": cards,
    }  # fmt: skip
    # "<" cannot stand in the data, or a report's "</script>" would end it; everything is shown as text, never as HTML
    data = json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    text = _TEMPLATE.read_text(encoding="utf-8").replace("@TITLE@", html.escape(title)).replace("@DATA@", data)
    with writing("the page", page.parent):
        page.write_text(text, encoding="utf-8", errors="replace")
    return page


class _PageImages:
    """The images of a page; those outside its folder are copied into <page's name>_files/ beside it."""

    def __init__(self, page):
        self.folder = Path(os.path.abspath(page.parent))
        self.copies = self.folder / f"{page.stem}_files"
        self.unreadable = []  # paths

    def add(self, image_path):
        """{"src": the address relative to the page, "width", "height"}, or None for an image that cannot be read."""
        path = Path(os.path.abspath(image_path))
        try:
            with open_image(path) as image:
                width, height = image.size
                if self.folder not in path.parents or image.format == "DICOM":
                    path = self.copies / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.jpg"
                    image.draft("L", (_COPY_SIDE, _COPY_SIDE))
                    copy = to_grey(image).convert("L")
                    copy.thumbnail((_COPY_SIDE, _COPY_SIDE))
                    with writing("the page's images", self.copies):
                        self.copies.mkdir(exist_ok=True)
                        copy.save(path, quality=92)
                    width, height = copy.size
        except (OSError, ValueError):
            self.unreadable.append(image_path)
            return None
        return {"src": quote(Path(os.path.relpath(path, self.folder)).as_posix()), "width": width, "height": height}


def _cards(rows, marks, images):
    """The cards of the page; rows: see `_side_by_side`; marks: {dicom_id: agreement}."""
    cards = []
    for row_of_each_tree in tqdm(rows, desc="page", unit="card", leave=False, disable=None):
        card, pictures = None, [None] * len(row_of_each_tree)
        for index, row in enumerate(row_of_each_tree):
            if row and (image := images.add(row["image_path"])):
                report = row["report"].replace(" IMPRESSION: ", "\nIMPRESSION: ")
                caption = {"id": row["dicom_id"], "view": row["view"], "report": report}
                pictures[index] = image | caption | {"marks": marks.get(row["dicom_id"], [])}
                labels = [int(row[name]) for name in findings.FINDINGS]
                card = card or {"prompt": row["prompt"], "labels": labels, "seed": row["seed"],
                                "reference": row["reference_dicom_id"], "pictures": pictures}  # fmt: skip
        if card:
            cards.append(card)
    return cards


def _references(cards, references, images):
    """{dicom_id: image and prompt} of the references that the cards name; prints how many are missing."""
    names = dict.fromkeys(card["reference"] for card in cards if card["reference"])
    table = references[references["dicom_id"].isin(names)].drop_duplicates("dicom_id")
    if missing := names.keys() - {*table["dicom_id"]}:
        print(f"{len(missing)} references are not in the tree of references, e.g. {min(missing)}")
    shown = {}
    for row in table.to_dict("records"):
        if image := images.add(row["image_path"]):
            shown[row["dicom_id"]] = image | {"prompt": findings.to_prompt([row[name] for name in findings.FINDINGS])}
    return shown


def _read_tree(root):
    """A tree's table with synthetic.csv's columns as text; images it does not name have their labels' prompt."""
    if isinstance(root, pd.DataFrame):
        return root.assign(**dict.fromkeys(("seed", "reference_dicom_id", *_SETTINGS), ""))
    table = read_table(root)
    if table.empty:
        raise InputError(f"the tree {root} holds no images, so there is nothing to show")
    by_labels = pd.Series(findings.prompts_of(table), index=table.index)
    source, made = Path(root) / PROVENANCE_FILE, pd.DataFrame()
    if source.is_file():
        made = read_csv(source, ("dicom_id",), _REQUEST, _SETTINGS).drop_duplicates("dicom_id").set_index("dicom_id")
    made = made.reindex(index=table["dicom_id"], columns=[*_REQUEST, *_SETTINGS], fill_value="")
    table = table.assign(**{name: made[name].to_numpy() for name in made})
    return table.assign(prompt=table["prompt"].mask(table["prompt"] == "", by_labels))


def _side_by_side(tables):
    """[[row of the first tree or None, row of the second or None, ...], ...], a list for each card."""
    cards = {}
    for index, table in enumerate(tables):
        # a real image is paired by its own name; of those that differ in their settings alone, the nth with the nth
        keys = table[["prompt", "reference_dicom_id", "seed"]].copy()
        keys["name"] = table["dicom_id"].where(table["seed"] == "", "")
        keys["nth"] = keys.groupby(list(keys.columns)).cumcount()
        for key, row in zip(keys.itertuples(index=False, name=None), table.to_dict("records")):
            cards.setdefault(key, [None] * len(tables))[index] = row
    return list(cards.values())


def _marks(agreement):
    """{dicom_id: [[index of a finding, asked, image, report], ...]}, these True, False or None, one of them True."""
    marks = {}
    if agreement is not None:
        columns = agreement[["dicom_id", "finding", "asked", "image", "report"]]
        for dicom_id, finding, *values in columns.itertuples(index=False, name=None):
            values = [None if pd.isna(value) else bool(value) for value in values]
            if any(values):
                marks.setdefault(dicom_id, []).append([findings.finding_index(finding), *values])
    return marks


def main() -> None:
    override_constants(globals())
    names = [Path(tree).name for tree in TREES]
    trees = dict(zip(names if len(set(names)) == len(names) else TREES, TREES))
    page = Path(PAGE) if PAGE or not TREES else Path(TREES[0]).parent / "index.html"
    references = read_table(DATA_ROOT) if DATA_ROOT else None
    selected = [name for name, tree in trees.items() if (Path(tree) / "selection.json").exists()]
    notes = [(f"{name} is selected", "see its selection.json") for name in selected]
    write_page(page, trees, references, title=", ".join(trees), summary=notes, max_images=MAX_IMAGES)
    print(f"the page: {page.resolve()}")


if __name__ == "__main__":
    run(main)
