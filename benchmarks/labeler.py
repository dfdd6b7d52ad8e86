"""How well do the rules read reports? On Indiana's reports beside the MeSH terms of their readers, and on sentences.

    python -m benchmarks.labeler --REPORTS ../shared/iu-reports.csv

Reads:  REPORTS, a CSV with the columns findings, impression and problems (MeSH terms joined by ";");
        benchmarks/labeler_sentences.txt, written by hand after the rules: sentence || what it says of each finding
Writes: OUTPUT/labeler.json, and the tables of DOCUMENT that lie between its <!-- name --> comments
Prints: the tables: precision, recall and F1 of present, absent and uncertain for each finding, and ms a report

MeSH terms name what a film shows. They say nothing of what is absent, and only "borderline" of what is uncertain: so of
the codes absent and uncertain the table counts how many reports have them, and how often MeSH names the finding all the
same. No Finding is MeSH's "normal", which spares neither old granulomas nor a bent spine.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.record import fill
from evaluation.labeler import label_reports
from evaluation.report import markdown
from utils.constants import override_constants
from utils.errors import run
from utils.findings import ABSENT, FINDINGS, PRESENT, UNCERTAIN
from utils.report_text import join_sections

REPORTS = "../shared/iu-reports.csv"  # reports and their MeSH terms (a CSV)
OUTPUT = "benchmarks/results"  # of the record (a folder to write)
DOCUMENT = "docs/labeler.md"  # whose tables are written anew (a file to write)

_SENTENCES = Path(__file__).with_name("labeler_sentences.txt")
_CODES = {"present": PRESENT, "absent": ABSENT, "uncertain": UNCERTAIN}
_SIGNS = {"+": PRESENT, "-": ABSENT, "?": UNCERTAIN}
_SHORT = {  # a finding's name in sentences
    "atelectasis": "Atelectasis", "heart": "Cardiomegaly", "consolidation": "Consolidation", "edema": "Edema",
    "mediastinum": "Enlarged Cardiomediastinum", "fracture": "Fracture", "lesion": "Lung Lesion",
    "opacity": "Lung Opacity", "effusion": "Pleural Effusion", "pleura": "Pleural Other", "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax", "device": "Support Devices",
}  # fmt: skip
_MESH = {  # the terms that name a finding: a heading and the qualifiers that it has to have
    "Atelectasis": ("Pulmonary Atelectasis",), "Consolidation": ("Consolidation",), "Fracture": ("Fractures, Bone",),
    "Lung Lesion": ("Nodule", "Mass"), "No Finding": ("normal",), "Pneumonia": ("Pneumonia",),
    "Cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/enlarged", "Heart/enlarged", "Heart Ventricles/enlarged",
                     "Heart Atria/enlarged"),
    "Edema": ("Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"),
    "Enlarged Cardiomediastinum": ("Mediastinum/enlarged", "Mediastinum/prominent"),
    "Lung Opacity": ("Opacity", "Infiltrate", "Airspace Disease", "Markings", "Density", "Cicatrix/lung",
                     "Lung Diseases, Interstitial"),
    "Pleural Effusion": ("Pleural Effusion", "Hydropneumothorax", "Hemothorax", "Hemopneumothorax"),
    "Pleural Other": ("Thickening/pleura", "Pleura", "Pulmonary Fibrosis", "Fibrosis", "Cicatrix/pleura",
                      "Calcinosis/pleura"),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
    "Support Devices": ("Catheters, Indwelling", "Implanted Medical Device", "Tube, Inserted", "Medical Device"),
}  # fmt: skip


def mesh_codes(problems: str) -> np.ndarray:
    """MeSH terms such as "Opacity/lung;Cardiomegaly/borderline" => (14,) int8: PRESENT, UNCERTAIN (borderline) or 0."""
    codes = np.zeros(len(FINDINGS), dtype=np.int8)
    for heading, *qualifiers in (term.split("/") for term in problems.split(";")):
        code = UNCERTAIN if "borderline" in qualifiers else PRESENT
        for place, name in enumerate(FINDINGS):
            wanted = (term.split("/") for term in _MESH[name])
            if any(heading == first and {*rest} <= {*qualifiers} for first, *rest in wanted):
                codes[place] = codes[place] if codes[place] == PRESENT else code
    return codes


def codes_of(said: str) -> dict[str, int]:
    """ "heart- edema?" => {"Cardiomegaly": ABSENT, "Edema": UNCERTAIN}."""
    return {_SHORT[word[:-1]]: _SIGNS[word[-1]] for word in said.split()}


def scores(found: np.ndarray, wanted: np.ndarray) -> dict:
    """Two boolean arrays => N wanted, precision, recall and F1; None where nothing is found or wanted."""
    hits, said, meant = int((found & wanted).sum()), int(found.sum()), int(wanted.sum())
    precision, recall = hits / said if said else None, hits / meant if meant else None
    f1 = 2 * hits / (said + meant) if said + meant else None
    return {"N": meant, "precision": precision, "recall": recall, "F1": f1}


def score_reports(table: pd.DataFrame) -> tuple[dict, float]:
    """Reports with MeSH terms => ({finding: scores of present, counts of absent and uncertain}, ms a report)."""
    texts = [join_sections(*sections) for sections in zip(table["findings"], table["impression"])]
    begin = time.process_time()
    found = label_reports(texts)
    milliseconds = 1000 * (time.process_time() - begin) / len(texts)
    wanted = np.array([mesh_codes(problems) for problems in table["problems"]])
    rows = {}
    for place, name in enumerate(FINDINGS):
        named = wanted[:, place] == PRESENT
        rows[name] = scores(found[:, place] == PRESENT, named)
        for word in ("absent", "uncertain"):
            said = found[:, place] == _CODES[word]
            rows[name] |= {word: int(said.sum()), f"{word}, yet named": int((said & named).sum())}
    return rows, milliseconds


def score_sentences() -> dict:
    """The hand-written sentences => {finding, or "all of them": scores of present, absent and uncertain}."""
    lines = [line.split("||") for line in _SENTENCES.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts, others = [sentence.strip() for sentence, _ in lines], [name for name in FINDINGS if name != "No Finding"]
    wanted = pd.DataFrame([codes_of(said) for _, said in lines], columns=others).fillna(0).to_numpy(np.int8)
    found, rows = pd.DataFrame(label_reports(texts), columns=FINDINGS)[others].to_numpy(), {}
    for place, name in enumerate([*others, "all of them"]):
        columns = place if name in others else slice(None)
        of_codes = {
            word: scores(found[:, columns] == code, wanted[:, columns] == code) for word, code in _CODES.items()
        }
        rows[name] = {f"{word} {measure}": value for word, row in of_codes.items() for measure, value in row.items()}
    return {"sentences": len(texts), "right": int((found == wanted).all(axis=1).sum()), "findings": rows}


def main():
    override_constants(globals())
    table = pd.read_csv(REPORTS, dtype=str, keep_default_na=False)
    (reports, milliseconds), sentences = score_reports(table), score_sentences()
    record = {"command": "python -m benchmarks.labeler", "constants": {"REPORTS": Path(REPORTS).name}}
    record |= {"reports": len(table), "ms a report": round(milliseconds, 2), "MeSH": reports, "sentences": sentences}
    Path(OUTPUT, "labeler.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    document = Path(DOCUMENT).read_text(encoding="utf-8")
    for name, rows, digits in (("MeSH", reports, 3), ("sentences", sentences["findings"], 2)):
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("finding").reset_index()
        shown = markdown(frame.fillna(np.nan), digits)
        print(shown)
        document = fill(document, name, shown)
    right = f"{sentences['right']} of {sentences['sentences']} sentences right in every finding"
    document = fill(document, "figures", f"{len(table):,} reports in {milliseconds:.1f} ms each on one core; {right}.")
    Path(DOCUMENT).write_text(document, encoding="utf-8")


if __name__ == "__main__":
    run(main)
