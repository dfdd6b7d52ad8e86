"""Image-report pairs of other projects: a CSV of images and prompts as a table.

It has a column of images and one of prompts, and perhaps reports, the 14 findings, and the dicom_id of the real image
that a prompt came from: CheXGenBench's prompt_INFO.csv (`prompt`, `img_savename`), RoentGen-v2's (`image_id`, `text`,
the findings). Columns are known by their names, in any case; the ones read are printed.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.labeler import labels_of_prompt
from utils.csv_files import csv_header, drop_blank, parse_csv
from utils.errors import InputError, say
from utils.findings import FINDINGS, from_physionet
from utils.report_text import join_sections, report_text

COLUMNS = {  # what a column holds => its possible names, the first that a CSV has
    "images": (
        "img_savename", "image_path", "img_path", "image_filename", "image_file", "image_name", "filename", "file_name",
        "filepath", "file_path", "path", "image", "image_id",
    ),
    "prompts": (
        "prompt", "text_prompt", "prompt_text", "prompt_variation", "annotated_prompt", "caption", "text", "impression",
        "impression_short",
    ),
    "reports": ("report", "generated_report", "report_text", "hypothesis"),
    "sources": ("source", "dicom_id"),  # the real images whose words, or labels, the prompts have
}  # fmt: skip
AUTHORS = {"label", "split", "image_path"}  # a CSV with these is the CXR-IRGen authors', and read as a tree is
ENDINGS = ("", ".jpg", ".jpeg", ".png", "_0.jpg", "_0.png")  # of image files, which a CSV may leave out


def is_foreign(path: str | Path) -> bool:
    """Whether a path is a CSV of another project's pairs: neither a tree nor the authors' CSV."""
    names = csv_header(path)
    return bool(names) and not names >= AUTHORS


def read_pairs(path: str | Path) -> pd.DataFrame:
    """A CSV of another project's pairs => a table (see utils/mimic_cxr.py) with the columns prompt and source.

    Labels are the CSV's where it has PhysioNet's 14 columns, else those that a prompt asks for, by rules where it is
    not a list of findings. Each image counts as a patient and a study of its own, of the view PA. Prints the columns
    read and what was dropped. InputError for a CSV without images or prompts, or with none of its images beside it.
    """
    path = Path(path)
    columns = _columns(path)
    frame = parse_csv(path, dtype=str, keep_default_na=False)
    stated = from_physionet(frame, path) if {*FINDINGS} <= {*frame} else None
    frame = drop_blank(frame, [columns["images"], columns["prompts"]], path)
    if frame.empty:
        raise InputError(f"{path} has no rows with an image and a prompt")

    def find(name):
        paths = (path.parent / f"{name}{ending}" for ending in ENDINGS)
        return next((str(file) for file in paths if file.is_file()), "")

    named = frame[columns["images"]]
    frame = frame.assign(image_path=named.map(find))
    missing = named[frame["image_path"] == ""]
    if len(missing):
        message = f"{len(missing)} of {len(frame)} images of {path} are not in {path.parent}, e.g. {missing.iloc[0]}"
        if len(missing) == len(frame):
            raise InputError(f"{message}: put the CSV into the folder that its column `{named.name}` starts from")
        say(f"{message}: dropped")
    frame = frame[frame["image_path"] != ""]
    prompts = frame[columns["prompts"]]
    if stated is None:
        codes = pd.DataFrame(map(cache(labels_of_prompt), prompts), columns=FINDINGS)
    else:
        codes = stated.loc[frame.index].reset_index(drop=True)
    numbers, reports = np.arange(1, len(frame) + 1), ""
    if columns["reports"]:
        texts = [frame[name] for name in columns["reports"]]  # of two sections, or of whole reports
        whole = (report_text(raw) or " ".join(raw.split()) for raw in texts[0])
        reports = list(map(join_sections, *texts) if len(texts) == 2 else whole)
    table = pd.DataFrame({
        "dicom_id": [f"{number}-{Path(name).stem}"[:100] for number, name in zip(numbers, frame["image_path"])],
        "subject_id": numbers, "study_id": numbers, "view": "PA", "split": "test",
        "image_path": frame["image_path"].to_numpy(), "report": reports,
        "prompt": prompts.to_numpy(), "source": frame[columns["sources"]].to_numpy() if columns["sources"] else "",
    })  # fmt: skip
    parts = [f"{name} in `{'` and `'.join(np.atleast_1d(columns[name]))}`" for name in COLUMNS if columns[name]]
    parts += [f"no {name}" for name in COLUMNS if not columns[name]]
    parts.append("labels by the words of the prompts" if stated is None else "labels in the 14 columns")
    say(f"{path}: {len(table)} images; {', '.join(parts)}")
    return pd.concat([table, codes], axis=1)


def _columns(path):
    """The names of the columns, {"images", "prompts", "sources": a name; "reports": one or, in two sections, two}.

    "" or () for none; InputError without images or prompts.
    """
    names = {name.strip().lower(): name for name in sorted(csv_header(path))}
    columns = {kind: next((names[name] for name in known if name in names), "") for kind, known in COLUMNS.items()}
    for kind in ("images", "prompts"):
        if not columns[kind]:
            other = f"{path} is neither a CXR tree, nor the authors' CSV, nor a CSV of images and prompts"
            lacks = f"it has no column of {kind}, such as {', '.join(COLUMNS[kind][:3])}"
            raise InputError(f"{other}: {lacks}; its columns are {', '.join(names.values())}")
    sections = [names[name] for name in ("findings", "impression") if name in names]
    if columns["reports"] or len(sections) < 2 or columns["prompts"] in sections:
        sections = [columns["reports"]] if columns["reports"] else []
    return columns | {"reports": sections}
