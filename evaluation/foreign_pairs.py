"""Other people's image-report pairs: a CSV of images and prompts => a table; reports and references => the CSVs of others.

read     a CSV with a column of images and one of prompts, and perhaps reports, the 14 findings, and the dicom_id of the real
         image that a prompt came from: CheXGenBench's prompt_INFO.csv (`prompt`, `img_savename`), RoentGen-v2's (`image_id`,
         `text`, the findings). Columns are known by their names, whatever their case; which ones are read is printed.
written  radeval.csv (`reference`, `hypothesis`), as RadEval's documentation reads one; rexrank_references.csv and
         rexrank_predictions.csv (`study_id`, `report`), as ReXrank scores them
"""

from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.labeler import labels_of_prompt
from utils.csv_files import csv_header, drop_blank, parse_csv
from utils.errors import InputError, replacing, say, writing
from utils.findings import FINDINGS, from_physionet
from utils.report_text import join_sections, report_sections, report_text

IMAGES = (  # names of the column of images, the first that a CSV has
    "img_savename", "image_path", "img_path", "image_filename", "image_file", "image_name", "filename", "file_name",
    "filepath", "file_path", "path", "image", "image_id",
)  # fmt: skip
PROMPTS = (  # of prompts
    "prompt", "text_prompt", "prompt_text", "prompt_variation", "annotated_prompt", "caption", "text", "impression",
    "impression_short",
)  # fmt: skip
REPORTS = ("report", "generated_report", "report_text", "hypothesis")
SOURCES = ("source", "dicom_id")  # of the real image whose words, or labels, a prompt has
_AUTHORS = {"label", "split", "image_path"}  # a CSV with these is the CXR-IRGen authors', and read as a tree is
_ENDINGS = ("", ".jpg", ".jpeg", ".png", "_0.jpg", "_0.png")  # of a file, which a CSV may leave out


def is_foreign(path):
    """Whether a path is of a CSV of somebody else's pairs: neither a tree nor the authors' CSV."""
    names = csv_header(path)
    return bool(names) and not names >= _AUTHORS


def read_pairs(path, images_root=""):
    """A CSV of somebody else's pairs => a table (see utils/mimic_cxr.py) with the columns prompt and source, a row an image.

    images_root: the folder of its images; "": the CSV's own. The labels are the CSV's where it has PhysioNet's 14 columns,
    else those that a prompt asks for, by rules where it is no sentence of findings. Each image counts as a patient and a
    study of its own, of the view PA. InputError for a CSV without the two columns, and where none of its images is there;
    prints which columns were read, and what was dropped.
    """
    path = Path(path)
    columns = _columns(path)
    frame = parse_csv(path, dtype=str, keep_default_na=False)
    stated = {*FINDINGS} <= {*frame}
    codes = from_physionet(frame, path) if stated else None
    frame = drop_blank(frame, [columns["images"], columns["prompts"]], path)
    folder = Path(images_root or path.parent)
    frame = frame.assign(image_path=[_find(folder, name) for name in frame[columns["images"]]])
    found = frame["image_path"] != ""
    if not found.all():
        lost = frame[columns["images"]][~found]
        told = f"{len(lost)} of {len(frame)} images that {path} names are not in {folder}, e.g. {lost.iloc[0]}"
        if not found.any():
            raise InputError(f"{told}: set IMAGES_ROOT to the folder that its column `{columns['images']}` starts from")
        say(f"{told}: dropped")
    if frame.empty:
        raise InputError(f"{path} has no rows with an image and a prompt")
    frame = frame[found]
    prompts = frame[columns["prompts"]]
    if codes is None:
        labels = {prompt: labels_of_prompt(prompt) for prompt in prompts.unique()}
        codes = pd.DataFrame([labels[prompt] for prompt in prompts], columns=FINDINGS, index=frame.index)
    numbers = np.arange(1, len(frame) + 1)
    table = pd.DataFrame({
        "dicom_id": [f"{number}-{Path(name).stem}"[:100] for number, name in zip(numbers, frame["image_path"])],
        "subject_id": numbers, "study_id": numbers, "view": "PA", "split": "test",
        "image_path": frame["image_path"].to_numpy(), "report": _reports(frame, columns),
        "prompt": prompts.to_numpy(), "source": frame[columns["sources"]].to_numpy() if columns["sources"] else "",
    })  # fmt: skip
    _say_columns(path, columns, stated, len(table))
    return pd.concat([table, codes.loc[frame.index].reset_index(drop=True)], axis=1)


def _columns(path):
    """{"images", "prompts", "reports", "sources": the name of a column or None, "sections": those of a report in two}."""
    names = {name.strip().lower(): name for name in sorted(csv_header(path))}
    kinds = {"images": IMAGES, "prompts": PROMPTS, "reports": REPORTS, "sources": SOURCES}
    found = {kind: next((names[name] for name in known if name in names), None) for kind, known in kinds.items()}
    for kind, known in (("images", IMAGES), ("prompts", PROMPTS)):
        if found[kind] is None:
            raise InputError(
                f"{path} is neither a CXR tree, nor the authors' CSV, nor a CSV of images and prompts: it has no column of "
                f"{kind}, such as {', '.join(known[:3])}; its columns are {', '.join(names.values())}"
            )
    whole = (
        found["prompts"] != names.get("impression") and not found["reports"] and {"findings", "impression"} <= {*names}
    )
    return found | {"sections": (names["findings"], names["impression"]) if whole else ()}


def _reports(frame, columns):
    if columns["sections"]:
        return [join_sections(*sections) for sections in zip(*(frame[name] for name in columns["sections"]))]
    if not columns["reports"]:
        return ""
    texts = {raw: report_text(raw) or " ".join(raw.split()) for raw in frame[columns["reports"]].unique()}
    return frame[columns["reports"]].map(texts).to_numpy()


def _find(folder, name):
    """The path of an image that a CSV names, "" where there is none."""
    for ending in _ENDINGS:
        path = folder / f"{name}{ending}"
        if path.is_file():
            return str(path)
    return ""


def _say_columns(path, columns, stated, count):
    parts = [f"images in `{columns['images']}`", f"prompts in `{columns['prompts']}`"]
    reports = columns["sections"] or (columns["reports"],)
    parts.append(f"reports in `{'`, `'.join(reports)}`" if all(reports) else "no reports")
    parts.append("labels in the 14 columns" if stated else "labels as the prompts say them")
    parts.append(f"sources in `{columns['sources']}`" if columns["sources"] else "no sources")
    say(f"{path}: {count} images; {', '.join(parts)}")


def write_for_others(folder, table, references, kind=""):
    """Writes the reports of a table and their references as RadEval and ReXrank read them, into a folder.

    references: a text for each row, "" where there is none; such rows are left out, and so is a second image of a study.
    kind: what the names begin with. Nothing is written where no report has a reference.
    """
    table = table.assign(reference=references)
    kept = table[table["reference"] != ""].drop_duplicates("study_id")
    if kept.empty:
        say("no report has a real one beside it, so there is nothing to write for RadEval and ReXrank")
        return
    in_one = kept.rename(columns={"report": "hypothesis"})[["study_id", "reference", "hypothesis"]]
    apart = {name: kept[["study_id"]].assign(report=kept[column].map(_as_rexrank)) for name, column in _REXRANK.items()}
    folder = Path(folder)
    with writing("the reports for RadEval and ReXrank", folder):
        for name, frame in {"radeval": in_one, **apart}.items():
            with replacing(folder / f"{kind}{name}.csv") as temporary:
                frame.to_csv(temporary, index=False, lineterminator="\n")
    say(f"{folder}: {len(kept)} of {len(table)} reports with their references for RadEval and ReXrank")


_REXRANK = {"rexrank_references": "reference", "rexrank_predictions": "report"}  # file => column


def _as_rexrank(report):
    """A report as ReXrank writes one, its headings not in capitals."""
    findings, impression = report_sections(report)
    return " ".join(f"{name}: {text}" for name, text in (("Findings", findings), ("Impression", impression)) if text)
