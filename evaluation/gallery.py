"""A CXR tree => one page to look at: image, prompt, reference and report, with filters that need no server.

    python -m evaluation.gallery --TREES '("demo/synthetic/clipUViT",)' --DATA_ROOT demo/phantom

Several trees stand side by side: images with the same prompt, reference and seed (the request's, where an image was
chosen among candidates) share a card.

Reads:  one or more CXR trees (a synthetic one with its synthetic.csv), and the tree that the references come from.
Writes: PAGE, and <its name>_files/ beside it with small JPEG copies of those images that lie outside PAGE's folder.
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import hashlib
import html
import json
import os
import shutil
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from PIL import Image
from tqdm import tqdm

from utils import findings
from utils.errors import InputError, run, writing
from utils.mimic_cxr import PICTURE_FILE, PROVENANCE_FILE, read_table

TREES = ("demo/synthetic/clipUViT",)  # roots of the CXR trees to show side by side, each under its folder's name
DATA_ROOT = ""  # the tree that the reference images come from; empty: references are not shown
PAGE = ""  # the page, .html (a file to write or empty; empty: index.html in the folder that holds the first tree)
MAX_IMAGES = 0  # cards on the page, one image of each tree on a card (0 or more; 0: all)

_TEMPLATE = Path(__file__).with_suffix(".html")
_COPY_SIDE = 512  # pixels; the longer side of a copied image
_PICTURE_SIDE = 2048  # pixels; the longer side of a copied picture of first images
_ASKED = ("prompt", "seed", "reference_dicom_id")  # columns that synthetic.csv must have
_MADE_WITH = (  # and may have
    "checkpoint", "scheduler", "steps", "condition", "text_guidance", "reference_guidance", "guidance_low", "guidance_high",
    "start",
)  # fmt: skip


def write_page(page, trees, references=None, title="Chest X-rays", agreement=None, summary=(), max_images=0):
    """Writes the page and copies what it needs; returns the page's path.

    page: the .html file to write; every address in it is relative and stays inside the page's folder.
    trees: {column title: root of a CXR tree, or a table with a column `prompt`}; a tree without synthetic.csv is shown with
        its labels' prompt.
    references: the table (utils.mimic_cxr.read_table) in which reference_dicom_id is looked up; None: not shown.
    agreement: DataFrame with dicom_id, finding, asked, image, report (True, False, or NaN where it cannot be told),
        or {column title: such a DataFrame} where trees share dicom_ids.
    summary: (name, value) pairs in plain text, e.g. metrics, shown at the top.
    max_images: the first so many cards, one image of each tree on a card; 0: all.
    InputError for no tree, a tree without images, or a synthetic.csv without its columns.
    """
    page = Path(page)
    if not trees:
        raise InputError("there is no tree to show: name at least one CXR tree, e.g. --TREES '(\"demo/phantom\",)'")
    tables = {column: _read_tree(root) for column, root in trees.items()}
    rows = _side_by_side(tables)
    if max_images and len(rows) > max_images:
        print(f"{page}: the first {max_images} of {len(rows)} cards are shown (MAX_IMAGES)")
        rows = rows[:max_images]
    with writing("the page", page.parent):
        page.parent.mkdir(parents=True, exist_ok=True)

    lookup = _reference_rows(references, rows)
    marks = _marks(agreement, trees)
    made = {column: _made_with(table) for column, table in tables.items()}
    unreadable, shown_references, cards = [], {}, []
    for row_of_each_tree in tqdm(rows, desc="page", unit="card", leave=False, disable=None):
        pictures = []
        for column, row in zip(trees, row_of_each_tree):
            image = row and _place(row["image_path"], page, unreadable)
            told = row and marks[column].get(row["dicom_id"], [])
            pictures.append(image and {**image, **_caption(row, made[column]), "marks": told})
        if any(pictures):
            row = next(row for row, picture in zip(row_of_each_tree, pictures) if picture)
            name = row["reference_dicom_id"]
            if name in lookup and name not in shown_references:
                image = _place(lookup[name]["image_path"], page, unreadable)
                shown_references[name] = image and {**image, "prompt": findings.to_prompt(_labels(lookup[name]))}
            words = {"prompt": row["prompt"], "labels": _labels(row), "seed": row["seed"], "reference": name}
            cards.append({**words, "pictures": pictures})
    _say_what_is_absent(page, cards, lookup, references, unreadable)

    content = {
        "title": title,
        "findings": findings.FINDINGS,
        "trees": [
            {
                "title": column,
                "images": sum(card["pictures"][index] is not None for card in cards),
                "reports": sum(bool((card["pictures"][index] or {}).get("report")) for card in cards),
                "first": _first_picture(trees[column], page, unreadable),
                "made": {
                    key: ", ".join(values[:4]) + ", …" * (len(values) > 4) for key, values in made[column].items()
                },
            }
            for index, column in enumerate(trees)
        ],
        "summary": [[str(name), str(value)] for name, value in summary],
        "showReferences": references is not None and any(card["reference"] for card in cards),
        "references": {name: image for name, image in shown_references.items() if image},
        "cards": cards,
    }
    # "<" cannot stand in the data, or a report's "</script>" would end it; everything is shown as text, never as HTML
    data = json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    text = _TEMPLATE.read_text(encoding="utf-8").replace("@TITLE@", html.escape(title)).replace("@DATA@", data)
    with writing("the page", page.parent):
        page.write_text(text, encoding="utf-8", errors="replace")
    return page


def _first_picture(root, page, unreadable):
    """The picture of the first images of a tree, as `_place` has it; None where there is none."""
    path = None if isinstance(root, pd.DataFrame) else Path(root) / PICTURE_FILE
    return _place(path, page, unreadable, _PICTURE_SIDE) if path and path.exists() else None


def _say_what_is_absent(page, cards, lookup, references, unreadable):
    """Prints which images and references are not on the page; InputError when no image is."""
    if not cards:
        raise InputError(f"none of the images for {page} can be read, e.g. {unreadable[0]}, so no page was made")
    if unreadable:
        print(f"{page}: left out {len(unreadable)} images that cannot be read, e.g. {unreadable[0]}")
    missing = {card["reference"] for card in cards} - {"", *lookup}
    if missing and references is not None:
        print(f"{page}: {len(missing)} references are not in the tree of references, e.g. {min(missing)}")


def _labels(row):
    return [int(row[name]) for name in findings.FINDINGS]


def _caption(row, made):
    """What is written with an image: its name, its report, and the settings in which it differs from its tree-mates."""
    settings = [f"{key.replace('_', ' ')}: {row[key]}" for key, values in made.items() if len(values) > 1 and row[key]]
    report = row["report"].replace(" IMPRESSION: ", "\nIMPRESSION: ")
    return {"id": row["dicom_id"], "view": row["view"], "report": report, "settings": settings}


def _read_tree(root):
    """A tree's table with synthetic.csv's columns as text; images it does not name have their labels' prompt."""
    if isinstance(root, pd.DataFrame):
        return root.assign(**dict.fromkeys(("seed", "reference_dicom_id", *_MADE_WITH), ""))
    table = read_table(root)
    if table.empty:
        raise InputError(f"the tree {root} holds no images, so there is nothing to show")
    made = pd.DataFrame("", index=table["dicom_id"], columns=[*_ASKED, *_MADE_WITH])
    source = Path(root) / PROVENANCE_FILE
    if source.is_file():
        synthetic = pd.read_csv(source, dtype=str, keep_default_na=False)
        absent = [name for name in ("dicom_id", *_ASKED) if name not in synthetic]
        if absent:
            raise InputError(f"{source} has no column {absent[0]!r}; write the tree again with one of the samplers")
        if "checkpoint" in synthetic and "checkpoint_sha256" in synthetic:
            synthetic["checkpoint"] += " " + synthetic["checkpoint_sha256"].str[:8]
        if "request_seed" in synthetic:  # a candidate's own seed says nothing of which request it was made for
            synthetic["seed"] = synthetic["request_seed"].where(synthetic["request_seed"] != "", synthetic["seed"])
        synthetic = synthetic.drop_duplicates("dicom_id", keep="last").set_index("dicom_id")
        made = synthetic.reindex(index=table["dicom_id"], columns=made.columns, fill_value="")
    for name in made:
        table[name] = made[name].to_numpy()
    unnamed = table["prompt"] == ""
    table.loc[unnamed, "prompt"] = [
        findings.to_prompt(labels) for labels in table.loc[unnamed, list(findings.FINDINGS)].to_numpy()
    ]
    return table


def _side_by_side(tables):
    """[[row of the first tree or None, row of the second or None, ...], ...], a list for each card."""
    cards = {}
    for index, table in enumerate(tables.values()):
        # a real image is paired by its own name; of those that differ in their settings alone, the nth with the nth
        keys = table[["prompt", "reference_dicom_id", "seed"]].copy()
        keys["name"] = table["dicom_id"].where(table["seed"] == "", "")
        keys["nth"] = keys.groupby(list(keys.columns)).cumcount()
        for key, row in zip(keys.itertuples(index=False, name=None), table.to_dict("records")):
            cards.setdefault(key, [None] * len(tables))[index] = row
    return list(cards.values())


def _reference_rows(references, rows):
    """{dicom_id: row} of the references that the cards name."""
    if references is None:
        return {}
    named = {row["reference_dicom_id"] for card in rows for row in card if row}
    wanted = references[references["dicom_id"].isin(named)].drop_duplicates("dicom_id")
    return {row["dicom_id"]: row for row in wanted.to_dict("records")}


def _marks(agreement, trees):
    """{column title: {dicom_id: [[index of the finding, asked, image, report], ...]}}, each True, False or None.

    A finding that nobody sees present says nothing and is left out.
    """
    tables = agreement if isinstance(agreement, dict) else dict.fromkeys(trees, agreement)
    marks = {column: {} for column in trees}
    for column in trees:
        if tables.get(column) is None:
            continue
        told = tables[column][["dicom_id", "finding", "asked", "image", "report"]]
        for dicom_id, finding, *values in told.itertuples(index=False, name=None):
            values = [None if pd.isna(value) else bool(value) for value in values]
            if any(values):
                marks[column].setdefault(dicom_id, []).append([findings.finding_index(finding), *values])
    return marks


def _made_with(table):
    """{column of synthetic.csv: its values in this tree}, of the columns that say how a tree was made."""
    return {key: [value for value in table[key].unique() if value] for key in _MADE_WITH}


def _place(image_path, page, unreadable, side=_COPY_SIDE):
    """An image's address relative to the page, and its size; one outside the page's folder is copied beside the page,
    its longer side no longer than `side`.

    Returns {"src", "width", "height"}, or None for an image that cannot be read, which is added to `unreadable`.
    """
    folder, path = os.path.abspath(page.parent), os.path.abspath(image_path)
    try:
        with Image.open(path) as image:
            if not path.startswith(os.path.join(folder, "")):
                copy = page.parent / f"{page.stem}_files" / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.jpg"
                small = image.format == "JPEG" and max(image.size) <= side
                if not small:
                    image.draft("L", (side, side))
                    image = image.convert("L")
                    image.thumbnail((side, side))
                with writing("the page's images", copy.parent):
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, copy) if small else image.save(copy, quality=92)
                path = os.path.abspath(copy)
            width, height = image.size
    except OSError:
        unreadable.append(image_path)
        return None
    return {"src": quote(Path(os.path.relpath(path, folder)).as_posix()), "width": width, "height": height}


def main():
    override_constants(globals())
    names = [Path(tree).name for tree in TREES]
    trees = dict(zip(names if len(set(names)) == len(names) else TREES, TREES))
    page = Path(PAGE) if PAGE or not TREES else Path(TREES[0]).parent / "index.html"
    references = read_table(DATA_ROOT) if DATA_ROOT else None
    write_page(page, trees, references, title=", ".join(trees), max_images=MAX_IMAGES)
    print(f"the page: {page.resolve()}")


if __name__ == "__main__":
    run(main)
