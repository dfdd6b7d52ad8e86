"""The sections of an evaluation: each compares a synthetic tree with real images, as rows (dicts) or tables.

A section is a function of an ImageSets and of judges (judges.py), made of measures (metrics.py, agreement.py,
copies.py); report.py writes it down. Beside synthetic images and reports stand floors and ceilings (baselines.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import agreement, copies, judges, metrics, text_metrics
from evaluation.baselines import label_only_report, matched_draws, nearest_by_labels, reported, shuffled
from evaluation.images import Images, ImageSets
from evaluation.judges import Extractor, Judge, selector_patients
from utils.csv_files import read_csv
from utils.errors import InputError, say
from utils.findings import FINDINGS, PRESENT
from utils.folders import SYNTHETIC_TREE, WRITTEN_REPORTS, read_manifest
from utils.seeds import draw_rows

FLOOR = "real, unseen by the judge (floor)"  # with the labels of the requests, as many as synthetic ones
SHUFFLED = "shuffled reports"  # the synthetic images with each other's reports
COPYING = "nearest training image (copying)"  # a training image of the nearest labels for each synthetic image
SELECTED = "random training pairs, selected in the same way"  # see `baselines.selected_floor`
CONSTANT = "constant normal report"
CHOSEN = "random training reports, chosen in the same way"  # where a report is the best of several
FURTHER = {"reconstruction": "BART's reconstruction of the real report (ceiling)", "floor": CHOSEN}  # columns => rows
FLOOR_DRAWS = 8  # draws of unseen images, for the mean and deviation of the floor
NEIGHBOURS = 5  # of precision, recall, density and coverage
DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM


def image_quality(sets: ImageSets, extractors: list[Judge | Extractor]) -> list[dict]:
    """For each extractor a row for the synthetic images, the floor and copying; all against the same real images.

    The floor: mean and deviation of FLOOR_DRAWS draws of unseen (else training) images; "FID / floor": the ratio to it.
    """
    unseen, rows = sets.unseen or sets.train, []
    draws = matched_draws(sets.synthetic.codes(), unseen.codes(), FLOOR_DRAWS, sets.seed)
    for extractor in extractors:
        real = sets.real.encode(extractor)[0]
        features = {  # (draws, N, D)
            "synthetic": sets.synthetic.encode(extractor)[0][None],
            FLOOR: unseen.encode(extractor, draws)[0],
            COPYING: sets.train.encode(extractor, sets.copies[None])[0],
        }
        distances = {name: _distances(real, drawn, sets.seed) for name, drawn in features.items()}
        for name, values in distances.items():
            what = {"images": name, "extractor": f"{extractor.name}, D = {extractor.width}"}
            ratio = values["FID"] / distances[FLOOR]["FID"]
            rows.append(what | {"N": len(sets.synthetic), "N real": len(real), "FID / floor": ratio} | values)
    return rows


def _distances(real_features, draws, seed):
    """The measures of draws of images (draws, N, D) against real ones: means, and deviations of FID and KID."""
    rows = []
    for features in draws:
        kid, deviation = metrics.kernel_distance(real_features, features, seed)
        row = {"FID": metrics.frechet_distance(real_features, features), "KID": kid, "KID deviation": deviation}
        rows.append(row | metrics.neighbourhood_metrics(real_features, features, NEIGHBOURS))
    rows = pd.DataFrame(rows)
    if len(draws) > 1:  # of a single one it is over KID's own subsets
        rows["KID deviation"] = rows["KID"].std()
    means = rows.mean().to_dict()
    return {"FID": means.pop("FID"), "FID deviation": float(rows["FID"].std()), **means}


def diversity(sets: ImageSets) -> list[dict]:
    """MS-SSIM of image pairs with the same findings present, which are those of both rows: synthetic and real."""
    rows, size, both = [], sets.real.loading.image_size, {"synthetic": sets.synthetic, "real": sets.real}
    pairs_of_both = metrics.label_set_pairs([images.table for images in both.values()], DIVERSITY_PAIRS, sets.seed)
    for (name, images), pairs in zip(both.items(), pairs_of_both):
        value = metrics.diversity(judges.file_reader(images.table["image_path"].tolist(), size, size), pairs)
        rows.append({"images": name, "pairs": len(pairs), "scales": metrics.ms_ssim_scales(size), "MS-SSIM": value})
    return rows


def clinical_efficacy(sets: ImageSets, classifier: Judge | Extractor) -> dict[str, pd.DataFrame]:
    """AUROC per finding of asked findings on synthetic images and on baselines, and of real findings on real images."""
    asked, present = metrics.positives(sets.synthetic.table), metrics.positives(sets.real.table)
    measured = {"synthetic": (asked, sets.synthetic, None)}
    if sets.floor is not None:
        measured[SELECTED] = asked, sets.train, sets.floor
    measured |= {COPYING: (asked, sets.train, sets.copies), "real": (present, sets.real, None)}
    tables = {}
    for name, (labels, images, rows) in measured.items():
        probabilities, subjects = images.encode(classifier, rows)[1], images.subjects(rows)
        tables[name] = metrics.auroc_table(labels, probabilities, classifier.known, sets.seed, subjects)
    return tables


@dataclass(frozen=True)
class Reports:
    """Reports to evaluate."""

    name: str
    table: pd.DataFrame  # one row a report, in the column report
    references: list[str]  # the real report that each is compared with, "" where there is none
    further: dict[str, list[str]] = field(default_factory=dict)  # floors and ceilings, {name: a report for each row}


def synthetic_reports(sets: ImageSets, real_table: pd.DataFrame, written: pd.DataFrame | None) -> Reports:
    """Reports of synthetic images, each with its source's report in real_table; written: the tree's `read_written`."""
    has_report = (sets.synthetic.table["report"] != "").to_numpy()
    table = sets.synthetic.table[has_report].reset_index(drop=True)
    real_reports = real_table.drop_duplicates("dicom_id").set_index("dicom_id")["report"]
    further = _further(table, written)
    if sets.floor is not None:
        further[SELECTED] = sets.train.table["report"].iloc[sets.floor[has_report]].tolist()
    return Reports("synthetic", table, table["source"].map(real_reports).fillna("").tolist(), further)


def written_reports(images: Images, written: pd.DataFrame) -> Reports:
    """Reports written for real images (see `read_written`), each with the image's own report."""
    table = images.table[images.table["dicom_id"].isin(written.index)].reset_index(drop=True)
    new_reports = table["dicom_id"].map(written["report"])
    references = table["report"].tolist()
    return Reports("written for real images", table.assign(report=new_reports), references, _further(table, written))


def read_written(folder: str | Path) -> pd.DataFrame | None:
    """<folder>/reports.csv, indexed by dicom_id: reports, and perhaps the columns of FURTHER ("" where it has none).

    None without the file; InputError for a file without the columns dicom_id and report.
    """
    path = Path(folder) / "reports.csv"
    if not path.is_file():
        return None
    table = read_csv(path, ("dicom_id",), ("report",), tuple(FURTHER))
    return table.drop_duplicates("dicom_id").set_index("dicom_id")


def _further(table, written):
    """{name: reports} of the columns of FURTHER that hold a report for each row of a table."""
    further = {}
    for column, name in FURTHER.items() if written is not None else ():
        texts = table["dicom_id"].map(written[column]).fillna("")
        if (texts != "").all():
            further[name] = texts.tolist()
        elif (texts != "").any():
            say(f"{column} of reports.csv is left out: {(texts == '').sum()} of {len(texts)} images have none")
    return further


def text_judge_for(sets: ImageSets, name: str, loaded: judges.TextJudge | None) -> tuple:
    """The judge of the reports of the tree `name` => (the loaded one, else one trained on the training reports; notes).

    (None, notes) where there are no reports to evaluate, or no training reports to learn and to copy from.
    """
    without_report = int((sets.synthetic.table["report"] == "").sum())
    if without_report == len(sets.synthetic):
        return None, [f"{name} has no reports: images are evaluated, reports and pairs are not"]
    studies = reported(sets.train.table).drop_duplicates("study_id")
    if studies.empty:
        return None, ["the training rows have no reports to learn or to copy from: reports and pairs are not evaluated"]
    notes = [f"{without_report} synthetic images have no report, and no part in its scores"] if without_report else []
    return loaded or judges.TextJudge(studies["report"].tolist(), metrics.positives(studies)), notes


def report_quality(
    text_judge, reports: Reports, train_table: pd.DataFrame, constant: str, seed: int
) -> tuple[list[dict], dict[str, pd.DataFrame]]:
    """Reports and their baselines, against their references and against the asked findings.

    constant: the report that is written for every image. => (a row a set of reports; {set of reports: F1 per finding}).
    """
    table, made = reports.table, reports.table["report"].tolist()
    copied = nearest_by_labels(table, reported(train_table), seed)
    candidates = {reports.name: made, **reports.further}
    if all(reports.references):
        candidates["real reports of the same labels"] = reports.references
    candidates |= {
        "nearest training report (copying)": train_table["report"].loc[copied].tolist(),
        "label-only": [label_only_report(codes) for codes in table[list(FINDINGS)].to_numpy()],
        CONSTANT: [constant] * len(made),
        "shuffled among images": shuffled(made, seed),
    }
    labels, referenced = metrics.positives(table), [row for row, text in enumerate(reports.references) if text]
    references = [reports.references[row] for row in referenced]
    compared = {name: [texts[row] for row in referenced] for name, texts in candidates.items()}
    rows, f1_tables = [], {}
    for name, texts in candidates.items():
        scores = text_metrics.text_scores(references, compared[name]) if references else {}
        f1_tables[name] = metrics.clinical_f1(labels, text_judge(texts))
        scores |= {f"clinical F1 {mean}": f1_tables[name].loc[mean, "f1"] for mean in ("micro", "macro")}
        rows.append({"reports": name, "N": len(texts), "N with a reference": len(references), **scores})
    return rows, f1_tables


def report_texts(all_reports: list[Reports], train_table: pd.DataFrame, seed: int) -> list[dict]:
    """Properties of reports as texts (`text_habits`), a row each; the last: as many training reports, one a study."""
    tables = {reports.name: reports.table for reports in all_reports}
    studies = reported(train_table).drop_duplicates("study_id")
    tables["real train"] = studies.iloc[draw_rows(len(studies), len(all_reports[0].table), seed, "texts")]
    return [{"reports": name, **text_metrics.text_habits(table["report"].tolist())} for name, table in tables.items()]


def pairs(sets: ImageSets, judge: Judge, text_judge, constant: str) -> tuple[pd.DataFrame, dict]:
    """Whether request, image and report agree => (a row an image and finding; parts of evaluation.json).

    "pairs": agreement per finding, where an uncertain request counts as one that does not ask; "complete_agreement":
    whole pairs and baselines, where an uncertain finding does not count. The real pairs, of patients who set no
    threshold, show how far the judges themselves get. constant: the report that is written for every image. Without a
    text judge, everything is about request and image alone.
    """
    table, train, labels = sets.synthetic.table, sets.train, sets.synthetic.codes()
    image, reports, train_reports = image_reading(judge, sets.synthetic), table["report"], train.table["report"]
    made = {"synthetic": (image, reports)}  # image readings and reports
    if sets.floor is not None:
        made[SELECTED] = image_reading(judge, train, sets.floor), train_reports.iloc[sets.floor]
    copied = sets.copies if text_judge is None else nearest_by_labels(table, reported(train.table), sets.seed)
    made[COPYING] = image_reading(judge, train, copied), train_reports.iloc[copied]
    if text_judge is not None:
        made[SHUFFLED] = image, shuffled(reports, sets.seed)
        made["label-only report"] = image, [label_only_report(codes) for codes in labels]
        made[CONSTANT] = image, [constant] * len(reports)
    counted, subjects = (reports != "").to_numpy(), sets.synthetic.subjects()  # baselines count in the same rows
    groups = {}  # codes of the requests, image readings, report readings or None, patients
    for name, (shows, texts) in made.items():
        groups[name] = labels, shows, report_reading(text_judge, texts, counted), subjects
    rows = np.arange(len(sets.real)) if sets.ceiling is None else sets.ceiling
    texts = sets.real.table["report"].to_numpy()[rows]
    image, report = image_reading(judge, sets.real, rows), report_reading(text_judge, texts, texts != "")
    groups["real"] = sets.real.codes()[rows], image, report, sets.real.subjects(rows)

    per_finding = {
        name: agreement.agreement(labels == PRESENT, image, report)
        for name, (labels, image, report, _) in groups.items()
        if name in ("synthetic", "real", SHUFFLED)
    }
    rows = [{"pairs": name, **agreement.complete_agreement(*pair, sets.seed)} for name, pair in groups.items()]
    real_share = rows[-1]["all three"]
    for row in rows:
        row["of the real share"] = row["all three"] / real_share if real_share else np.nan
    labels, image, report, _ = groups["synthetic"]
    table = pd.DataFrame({
        "dicom_id": np.repeat(sets.synthetic.table["dicom_id"].to_numpy(), len(FINDINGS)),
        "finding": np.tile(FINDINGS, len(labels)),
        "asked": (labels == PRESENT).astype(float).ravel(),
        "image": image.ravel(),
        "report": np.nan if report is None else report.ravel(),
    })  # fmt: skip
    return table, {"pairs": per_finding, "complete_agreement": rows}


def image_reading(judge: Judge, images: Images, rows: np.ndarray | None = None) -> np.ndarray:
    """What the judge reads in all images, or in rows (see evaluation/agreement.py), (N, 14)."""
    present = images.encode(judge, rows)[1] >= judge.thresholds
    return np.where(judge.known, present.astype(float), np.nan)


def report_reading(text_judge, texts: Sequence[str], counted: np.ndarray) -> np.ndarray | None:
    """What the text judge reads in N reports, (N, 14), where counted (N,), else NaN; None without a judge."""
    if text_judge is None:
        return None
    present = text_judge(np.where(counted, texts, "").tolist())
    return np.where(text_judge.known & counted[:, None], present.astype(float), np.nan)


def judge_rows(table: pd.DataFrame, patients: str) -> np.ndarray:
    """Which rows of the training images train the image judge; patients: "all", or "second half"."""
    return np.flatnonzero(~judges.first_half(table)) if patients == "second half" else np.arange(len(table))


def check_apart(tree: str, judge_table: pd.DataFrame, text_judge: str, written: str = "") -> None:
    """InputError if a judge would evaluate what it, or a judge trained on the same patients, has selected.

    judge_table: the training rows of the image judge; text_judge: its name; written: another folder of reports, or "".
    """
    if shared := set(judge_table["subject_id"].tolist()) & selector_patients(tree):
        patients = f"{len(shared)} of {judge_table['subject_id'].nunique()} training patients of the judge"
        way_out = "set JUDGE_PATIENTS to 'second half', or TRAIN to a tree of other patients"
        chose = f"also trained the selector that chose the images of {tree}"
        raise InputError(f"{patients}, e.g. {min(shared)}, {chose}: {way_out}")
    for folder in filter(None, (tree, written)):
        manifest = read_manifest(folder)
        several = manifest.get(WRITTEN_REPORTS, {}).get("CANDIDATES", 1) > 1
        if text_judge == "rules" and (several or manifest.get(SYNTHETIC_TREE, {}).get("by") == "pair"):
            way_out = "set TEXT_JUDGE to tfidf or chexbert"
            raise InputError(f"the reports in {folder} were chosen by the rules that would judge them: {way_out}")


def memorisation(sets: ImageSets) -> tuple[list[dict], tuple[np.ndarray, np.ndarray]]:
    """How many synthetic images, and how many planted copies of training images, are found to be copies.

    The threshold is the COPY_QUANTILE of the real images' distances, which were not trained on. Besides: the distances
    of the synthetic images to their nearest training images, and the rows of these, (N,) each.
    """
    train = sets.train
    real, _ = copies.search(sets.real.pixels(), train)
    nearest = copies.search(sets.synthetic.pixels(), train)
    planted = copies.plant_copies(train.pixels(draw_rows(len(train), copies.PLANTED, sets.seed, "planted copies")))
    distances = {"synthetic": nearest[0]}
    distances |= {f"planted copies: {kind}": copies.search(images, train)[0] for kind, images in planted.items()}
    distances["real (these set the threshold)"] = real
    threshold = float(np.quantile(real, copies.COPY_QUANTILE))
    return [{"images": name, **copies.copied_share(each, threshold)} for name, each in distances.items()], nearest
