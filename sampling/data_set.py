"""A synthetic tree as a data set for others: metadata.csv, which Hugging Face's `datasets` reads, and a card."""

import json
import os
from pathlib import Path

from utils.csv_files import read_csv, write_csv
from utils.errors import write_whole
from utils.findings import FINDINGS, to_physionet
from utils.folders import SYNTHETIC_TREE, WRITTEN_REPORTS, read_manifest
from utils.mimic_cxr import PROVENANCE_FILE, read_table

COLUMNS = ("file_name", "dicom_id", "prompt", *FINDINGS, "report", "split", "seed")  # of metadata.csv
_CARD = Path(__file__).with_name("data_set_card.md").read_text(encoding="utf-8")


def holds_films(manifest: dict[str, dict]) -> bool:
    """Whether a tree is of films and their counterfactual twins, by its manifest."""
    return "strength" in manifest.get(SYNTHETIC_TREE, {})


def save_data_set(root: str | Path) -> None:
    """Writes metadata.csv and README.md of a synthetic tree; of any other folder, or one without images, neither.

    metadata.csv has a row for each image that the tree's CSVs list and that is on disk, with COLUMNS: the path from the
    root, labels in PhysioNet's coding, the report as in reports.csv. InputError for a damaged CSV of the tree.
    """
    root = Path(root)
    manifest, provenance = read_manifest(root), root / PROVENANCE_FILE
    if SYNTHETIC_TREE not in manifest or not provenance.exists():
        return
    written = root / "reports.csv"
    only_files = "by" in manifest[SYNTHETIC_TREE] and not written.exists()  # pairs selected from a CSV
    table = read_table(root, with_reports=only_files, check_images=False)
    texts = ["prompt", "prompt_kind", "seed", "checkpoint", "checkpoint_sha256"]
    made = read_csv(provenance, ["dicom_id"], texts=["dicom_id"], optional=texts)
    rows = table[table["image_path"].map(os.path.isfile)].merge(made, on="dicom_id")
    if rows.empty:
        return
    if written.exists():
        reports = read_csv(written, ["dicom_id", "report"], texts=["dicom_id", "report"])
        rows["report"] = rows["dicom_id"].map(dict(zip(reports["dicom_id"], reports["report"]))).fillna("")
    frame = rows.assign(file_name=rows["image_path"].str.removeprefix(f"{root}/"), **to_physionet(rows))
    write_csv(root / "metadata.csv", frame[[*COLUMNS]], "the data set")

    films = (rows["checkpoint"] == "").sum() if holds_films(manifest) else 0
    origin = "All are generated: no image was taken of a patient, and no report was written by a physician."
    if films:
        whose = "films of another tree, and most pixels of the others, in which one finding is changed, are theirs"
        origin = f"**{films} are copies of {whose}: that tree's agreement holds for this folder.**"
    sources = [
        f"* CXR-IRGen's checkpoint `{place}`, SHA-256 of its weights: {digest}" if place else "* another tree"
        for place, digest in rows[["checkpoint", "checkpoint_sha256"]].drop_duplicates().itertuples(index=False)
    ]
    settings = {part: manifest[part] for part in (SYNTHETIC_TREE, WRITTEN_REPORTS) if part in manifest}
    agreement = " Prompts are impressions of real reports, whose agreement holds for this folder, too."
    text = _CARD.format(
        prompts=agreement if (rows["prompt_kind"] == "impression").any() else "",
        origin=origin, images=len(rows), reports=(rows["report"] != "").sum(),
        sources="\n".join(sources), kind="mimic-cxr-2.0.0-", views=sorted({*rows["view"]}),
        settings=json.dumps(settings, indent=2),
    )  # fmt: skip
    write_whole(root / "README.md", text, "the data set")
