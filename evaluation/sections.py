"""The sections of an evaluation: each compares a synthetic tree with real images, as rows (dicts) or tables.

A section is a function of an ImageSets and judges (evaluation/judges.py), made of measures (evaluation/metrics.py);
evaluation/report.py writes them down. Beside the synthetic images and reports stand baselines without a generator:
other real images (the floor), copies of training images and reports, a report that only lists the labels, one report
for all images, and shuffled reports.
"""

from collections import ChainMap
from dataclasses import dataclass

import numpy as np
import pandas as pd
from diffusers import AutoencoderKL

from evaluation import judges, metrics
from evaluation.images import THREADS, Images, ImageSets
from evaluation.judges import Extractor, Judge, selector_patients
from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, PRESENT, UNCERTAIN
from utils.folders import WRITTEN_REPORTS, read_manifest
from utils.latents import cache_moments, mean_latents, read_pixels
from utils.references import References
from utils.seeds import draw_rows, keyed_generator

FLOOR = "real train (floor)"  # other real images, as many as synthetic ones
SHUFFLED = "shuffled reports"  # the synthetic images with each other's reports
COPYING = "nearest training image (copying)"  # a training image of the nearest labels for each synthetic image
NEIGHBOURS = 5  # of precision, recall, density and coverage
DIVERSITY_PAIRS = 500  # pairs of images with the same findings for MS-SSIM
# ---- image quality and diversity -----------------------------------------------------------------------------------


def image_quality(sets: ImageSets, extractors: list[Judge | Extractor]) -> list[dict]:
    """For each extractor a row for the synthetic images, the floor and copying; all against the same real images."""
    count = len(sets.synthetic)
    floor = draw_rows(len(sets.train), count, sets.seed, "floor")
    used, place = np.unique(np.concatenate([floor, sets.copies]), return_inverse=True)
    rows = []
    for extractor in extractors:
        train_features = sets.train.encode(extractor, used)[0][place]
        real_features = sets.real.encode(extractor)[0]
        for name, features in (
            ("synthetic", sets.synthetic.encode(extractor)[0]),
            (FLOOR, train_features[: len(floor)]),
            (COPYING, train_features[len(floor) :]),
        ):
            rows.append({
                "images": name,
                "extractor": f"{extractor.name}, D = {extractor.width}",
                "N": len(features),
                "N real": len(real_features),
                **metrics.feature_distances(real_features, features, NEIGHBOURS, sets.seed),
                "warning": _size_warning(min(len(features), len(real_features)), extractor.width, len(features), count),
            })  # fmt: skip
    return rows


def _size_warning(smaller, width, count, synthetic_count):
    """What makes a row of image_quality hard to compare, "" if nothing does."""
    warnings = []
    if smaller < width:
        warnings.append(f"FID from fewer images ({smaller}) than feature dimensions ({width})")
    if count != synthetic_count:
        warnings.append(f"not the same N as the synthetic images ({synthetic_count})")
    return "; ".join(warnings)


def diversity(sets: ImageSets) -> list[dict]:
    """MS-SSIM of pairs of images with the same findings present, a row each for synthetic and real.

    The findings of the pairs are the same in both rows.
    """
    rows, both = [], {"synthetic": sets.synthetic, "real": sets.real}
    pairs_of_both = metrics.label_set_pairs([images.table for images in both.values()], DIVERSITY_PAIRS, sets.seed)
    for (name, images), pairs in zip(both.items(), pairs_of_both):
        value, scales = metrics.diversity(_file_reader(images), pairs), metrics.ms_ssim_scales(images.loading.image_size)
        rows.append({"images": name, "pairs": len(pairs), "scales": scales, "MS-SSIM": value})
    return rows


def _file_reader(images):
    paths = images.table["image_path"].tolist()
    return lambda row: read_pixels(paths[row], images.loading.image_size)[:1]


# ---- clinical efficacy and downstream utility ----------------------------------------------------------------------


def clinical_efficacy(sets: ImageSets, classifier: Judge | Extractor) -> dict[str, pd.DataFrame]:
    """AUROC per finding of asked findings on synthetic images, on copied ones, and of real findings on real images."""
    asked, present = metrics.positives(sets.synthetic.table), metrics.positives(sets.real.table)
    used, place = np.unique(sets.copies, return_inverse=True)
    return {
        name: metrics.auroc_table(labels, probabilities, classifier.known, seed=sets.seed)
        for name, labels, probabilities in (
            ("synthetic", asked, sets.synthetic.encode(classifier)[1]),
            (COPYING, asked, sets.train.encode(classifier, used)[1][place]),
            ("real", present, sets.real.encode(classifier)[1]),
        )
    }


def downstream_utility(sets: ImageSets, judge: Judge, rows: np.ndarray) -> list[dict]:
    """Classifiers trained on real, on synthetic, and on both kinds of images, tested on real ones: mean AUROC.

    The first is the judge, which these rows of sets.train trained; the two others are trained in the same way.
    """
    real, synthetic, train, settings = sets.real, sets.synthetic, sets.train, judge.settings
    asked, present = metrics.positives(synthetic.table), metrics.positives(train.table)[rows]
    real_keys = [train.keys[row] for row in rows]
    pixels = ChainMap(synthetic.cache, train.cache)
    measured = {"real": (len(rows), real.encode(judge)[1])}  # training images, probabilities
    for name, keys, labels in (
        ("synthetic", synthetic.keys, asked),
        ("real and synthetic", real_keys + synthetic.keys, np.concatenate([present, asked])),
    ):
        model = judges.train_classifier(pixels, keys, labels, settings, real.device)
        other = Judge(model, settings, judge.thresholds, judge.known)
        read = judges.pixel_reader(real.cache, real.keys)
        _, probabilities = judges.extract(other, read, len(real), real.device, real.loading.batch_size)
        measured[name] = len(keys), probabilities
    table = []
    for name, (count, probabilities) in measured.items():
        efficacy = metrics.auroc_table(metrics.positives(real.table), probabilities, judge.known, seed=settings.seed)
        table.append({"trained on": name, "N": count, **efficacy.loc["mean", ["auroc", "low", "high"]]})
    return table


# ---- reports -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reports:
    """Reports to evaluate."""

    name: str
    table: pd.DataFrame  # one row a report, in the column report
    references: list[str]  # the real report that each is compared with, "" where there is none


def synthetic_reports(images: Images, real_table: pd.DataFrame) -> Reports:
    """The reports of synthetic images, each with the real report of its source in real_table."""
    table = _reported(images.table).reset_index(drop=True)
    real_reports = real_table.set_index("dicom_id")["report"]
    return Reports("synthetic", table, table["source"].map(real_reports).fillna("").tolist())


def written_reports(images: Images, written: dict[str, str]) -> Reports:
    """Reports written for real images, {dicom_id: report}, each with the image's own report."""
    table = images.table[images.table["dicom_id"].isin(written)].reset_index(drop=True)
    new_reports = table["dicom_id"].map(written)
    return Reports("written for real images", table.assign(report=new_reports), table["report"].tolist())


def text_judge_for(sets: ImageSets, name: str, loaded: judges.TextJudge | None) -> tuple:
    """The judge of the reports of the tree `name` => (the loaded one, else one trained on the training reports; notes).

    (None, notes) where there are no reports to evaluate, or no training reports to learn and to copy from.
    """
    if not (sets.synthetic.table["report"] != "").any():
        return None, [f"{name} has no reports: images are evaluated, reports and pairs are not"]
    studies = _reported(sets.train.table).drop_duplicates("study_id")
    if studies.empty:
        return None, ["the training rows have no reports to learn or to copy from: reports and pairs are not evaluated"]
    notes = []
    if not metrics.has_wordnet():
        notes.append(
            "METEOR is left out: NLTK's WordNet is not here (pip install nltk, then python -m nltk.downloader wordnet)"
        )
    without_report = int((sets.synthetic.table["report"] == "").sum())
    if without_report:
        notes.append(f"{without_report} synthetic images have no report, and no part in its scores")
    return loaded or judges.TextJudge(studies["report"].tolist(), metrics.positives(studies)), notes


def report_quality(text_judge, reports: Reports, train_table: pd.DataFrame, radgraph: bool, seed: int) -> tuple:
    """Reports and their baselines, against their references and against the asked findings.

    => (rows, one for each set of reports; {set of reports: F1 per finding}).
    """
    table, texts = reports.table, reports.table["report"].tolist()
    copied = nearest_by_labels(table, _reported(train_table), seed)
    candidates = {reports.name: texts}
    if all(reports.references):
        candidates["real reports of the same labels"] = reports.references
    candidates |= {
        "nearest training report (copying)": train_table["report"].iloc[copied].tolist(),
        "label-only": [label_only_report(codes) for codes in table[list(FINDINGS)].to_numpy()],
        "constant normal report": [constant_normal_report(train_table)] * len(texts),
        "shuffled among images": shuffled(texts, seed),
    }
    labels, referenced = metrics.positives(table), [row for row, text in enumerate(reports.references) if text]
    references = [reports.references[row] for row in referenced]
    rows, f1_tables = [], {}
    for name, texts in candidates.items():
        row = {"reports": name, "N": len(texts), "N with a reference": len(referenced)}
        if referenced:
            compared = [texts[index] for index in referenced]
            row |= metrics.text_scores(references, compared)
            if radgraph:
                row["RadGraph F1"] = judges.radgraph_f1(references, compared)
        f1_tables[name] = metrics.clinical_f1(labels, text_judge(texts))
        rows.append(row | {f"clinical F1 {mean}": f1_tables[name].loc[mean, "f1"] for mean in ("micro", "macro")})
    return rows, f1_tables


def report_texts(all_reports: list[Reports], train_table: pd.DataFrame, seed: int) -> list[dict]:
    """Properties of reports as texts (`metrics.text_habits`), a row each.

    The last row is as many training reports as the first set has, one a study: what is usual among real reports.
    """
    tables = {reports.name: reports.table for reports in all_reports}
    studies = _reported(train_table).drop_duplicates("study_id")
    tables["real train"] = studies.iloc[draw_rows(len(studies), len(all_reports[0].table), seed, "texts")]
    return [
        {
            "reports": name,
            **metrics.text_habits(table["report"].tolist(), metrics.positives(table), table["subject_id"]),
        }
        for name, table in tables.items()
    ]


def _reported(table):
    return table[table["report"] != ""]


# ---- baselines -----------------------------------------------------------------------------------------------------


def nearest_by_labels(table: pd.DataFrame, train_table: pd.DataFrame, seed: int) -> np.ndarray:
    """For each row the index label of a row of train_table with the nearest label vector, drawn among equals."""
    references = References(train_table)
    rows = [
        references.draw(codes, -1, keyed_generator(seed, "copying", dicom_id))
        for codes, dicom_id in zip(table[list(FINDINGS)].to_numpy(), table["dicom_id"])
    ]
    return train_table.index.to_numpy()[rows]


def constant_normal_report(train_table: pd.DataFrame) -> str:
    """The best single report for all images, out of those of training images without findings, else out of all."""
    reported = _reported(train_table)
    normal = reported[reported["No Finding"] == PRESENT]
    return metrics.constant_report((normal if len(normal) else reported)["report"])


def label_only_report(codes: np.ndarray) -> str:
    """A report that lists 14 codes and nothing else: what can be known without an image."""
    sentences = {PRESENT: "There is {}.", ABSENT: "There is no {}.", UNCERTAIN: "Possible {}."}
    findings = [sentences[code].format(name.lower()) for name, code in zip(FINDINGS, codes) if code in sentences]
    report = "FINDINGS: " + (" ".join(findings) or "Chest X-ray.")
    present = [f"{name.capitalize()}." for name, code in zip(FINDINGS, codes) if code == PRESENT]
    return f"{report} IMPRESSION: {' '.join(present)}" if present else report


def shuffled(reports: list[str], seed: int) -> list[str]:
    """The reports in another order, none in its own place."""
    order = np.random.default_rng(seed).permutation(len(reports))
    sources = np.empty(len(reports), dtype=int)
    sources[order] = np.roll(order, 1)
    return [reports[row] for row in sources]


# ---- pairs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Requests, images and reports as codes and readings (see evaluation/metrics.py), (N, 14) each."""

    labels: np.ndarray  # the codes that were asked for
    image: np.ndarray  # the image judge's reading
    report: np.ndarray | None  # the text judge's reading; None without a text judge


def pairs(sets: ImageSets, judge: Judge, text_judge) -> tuple[pd.DataFrame, dict]:
    """Whether request, image and report agree => (a row an image and finding; parts of evaluation.json).

    "pairs": agreement per finding, where an uncertain request counts as one that does not ask; "complete_agreement":
    whole pairs and baselines, where an uncertain finding does not count. The real pairs show how far the judges
    themselves get. Without a text judge, everything is about request and image alone.
    """
    groups = _pairs_and_baselines(sets, judge, text_judge)
    table = _findings_table(sets.synthetic.table["dicom_id"].to_numpy(), groups["synthetic"])
    per_finding = {
        name: metrics.agreement(group.labels == PRESENT, group.image, group.report)
        for name, group in groups.items()
        if name in ("synthetic", "real", SHUFFLED)
    }
    rows = [
        {"pairs": name, **metrics.complete_agreement(group.labels, group.image, group.report, sets.seed)}
        for name, group in groups.items()
    ]
    real_share = rows[-1]["all three"]
    for row in rows:
        row["of the real share"] = row["all three"] / real_share if real_share else np.nan
    return table, {"pairs": per_finding, "complete_agreement": rows}


def _findings_table(dicom_ids, group):
    """Pairs as a table: dicom_id, finding, asked, image, report, a row an image and finding."""
    report = np.full(group.labels.shape, np.nan) if group.report is None else group.report
    return pd.DataFrame({
        "dicom_id": np.repeat(dicom_ids, len(FINDINGS)),
        "finding": np.tile(FINDINGS, len(dicom_ids)),
        "asked": (group.labels == PRESENT).astype(float).ravel(),
        "image": group.image.ravel(),
        "report": report.ravel(),
    })  # fmt: skip


def _pairs_and_baselines(sets, judge, text_judge):
    """{name: Pairs}, the synthetic ones first and the real ones last."""
    labels, real_labels = sets.synthetic.codes(), sets.real.codes()
    image, real_image = _image_reading(judge, sets.synthetic), _image_reading(judge, sets.real)
    if text_judge is None:
        return {
            "synthetic": Pairs(labels, image, None),
            COPYING: Pairs(labels, _image_reading(judge, sets.train, sets.copies), None),
            "real": Pairs(real_labels, real_image, None),
        }
    reports, train_table = sets.synthetic.table["report"], sets.train.table
    copied = nearest_by_labels(sets.synthetic.table, _reported(train_table), sets.seed)
    shuffled_reports = reports.copy()
    shuffled_reports[reports != ""] = shuffled(reports[reports != ""].tolist(), sets.seed)
    groups = {
        "synthetic": (image, reports),
        SHUFFLED: (image, shuffled_reports),
        COPYING: (_image_reading(judge, sets.train, copied), train_table["report"].iloc[copied]),
        "label-only report": (image, [label_only_report(codes) for codes in labels]),
        "constant normal report": (image, [constant_normal_report(train_table)] * len(reports)),
    }
    readings = {}
    for name, (shown, texts) in groups.items():  # an image without a report has none in the baselines either
        texts = np.where(reports != "", texts, "").tolist()
        readings[name] = Pairs(labels, shown, _report_reading(text_judge, texts))
    real_reports = sets.real.table["report"].tolist()
    return readings | {"real": Pairs(real_labels, real_image, _report_reading(text_judge, real_reports))}


def _image_reading(judge, images, rows=None):
    shown = images.encode(judge, rows)[1] >= judge.thresholds
    return np.where(judge.known, shown.astype(float), np.nan)


def _report_reading(text_judge, texts):
    named = text_judge(texts)
    has_text = np.array([bool(text) for text in texts])[:, None]
    return np.where(text_judge.known & has_text, named.astype(float), np.nan)


# ---- the selector ---------------------------------------------------------------------------------------------------


def judge_rows(table: pd.DataFrame, patients: str) -> np.ndarray:
    """Which rows of the training images train the image judge; patients: "all", or "second half"."""
    return np.flatnonzero(~judges.first_half(table)) if patients == "second half" else np.arange(len(table))


def check_apart(tree: str, judge_table: pd.DataFrame, text_judge: str, written: str = "") -> None:
    """InputError if a judge would evaluate what it, or a judge trained on the same patients, has selected.

    judge_table: the training rows of the image judge; text_judge: its name; written: another folder of reports, or "".
    """
    shared = set(judge_table["subject_id"].tolist()) & selector_patients(tree)
    if shared:
        raise InputError(
            f"{len(shared)} of {judge_table['subject_id'].nunique()} training patients of the judge, e.g. "
            f"{min(shared)}, also trained the selector that chose the images of {tree}: set JUDGE_PATIENTS to 'second "
            "half', or TRAIN to a tree of other patients"
        )
    for folder in filter(None, (tree, written)):
        if text_judge == "rules" and read_manifest(folder).get(WRITTEN_REPORTS, {}).get("CANDIDATES", 1) > 1:
            raise InputError(
                f"the reports in {folder} were chosen by the rules that would judge them: set TEXT_JUDGE to tfidf or "
                "chexbert"
            )


def selection(sets: ImageSets, judge: Judge) -> dict:
    """How far the judge confirms a selector's choices of the images with a score (`metrics.calibration`)."""
    scored = sets.synthetic.table["score"].notna().to_numpy()
    probabilities = sets.synthetic.encode(judge)[1]
    _, judge_agrees = metrics.request_agreement(probabilities, sets.synthetic.codes(), judge.thresholds, judge.known)
    table = sets.synthetic.table[scored]
    rows, acceptance = metrics.calibration(table["score"], table["agrees"] == 1, judge_agrees[scored])
    return {"calibration": rows, "acceptance": acceptance}


# ---- memorisation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nearest:
    """Distances of images to their nearest training image in one space, root mean square differences."""

    synthetic: np.ndarray  # (N,) of the synthetic images
    real: np.ndarray  # (M,) of the real images, which were not trained on
    places: np.ndarray  # (N,) the rows of the synthetic images' nearest training images
    threshold: float  # below it an image counts as a copy


def memorisation(sets: ImageSets, judge: Judge, vae: AutoencoderKL | None) -> tuple[list[dict], dict[str, Nearest]]:
    """Nearest training images in VAE latents, unless vae is None, and judge's features => (rows, {space: Nearest})."""
    readers = {}  # space => for real, synthetic and training images read(start, end) => (end - start, D)
    every = (sets.real, sets.synthetic, sets.train)
    if vae is not None:
        readers["VAE latents"] = [_latent_reader(images, vae) for images in every]
    readers[f"features of the {judge.name}"] = [_feature_reader(images, judge) for images in every]
    rows, spaces = [], {}
    for space, (read_real, read_synthetic, read_train) in readers.items():
        count, device = len(sets.train), sets.real.device
        real, _ = metrics.nearest(read_real(0, len(sets.real)), read_train, count, device)
        synthetic, places = metrics.nearest(read_synthetic(0, len(sets.synthetic)), read_train, count, device)
        measured = metrics.memorisation(synthetic, real)
        rows.append({"space": space, "N": len(synthetic), "N real": len(real), **measured})
        spaces[space] = Nearest(synthetic, real, places, measured["threshold"])
    return rows, spaces


def _feature_reader(images, judge):
    features = images.encode(judge)[0]
    return lambda start, end: features[start:end]


def _latent_reader(images, vae):
    """read(start, end) => the mean latents of these rows, (end - start, C h w) at unit variance, out of the cache."""
    how = images.loading
    cache, keys, _ = cache_moments(
        images.table, vae, how.image_size, how.cache_dir, how.batch_size, how.accelerator, THREADS
    )

    def read(start, end):
        means = mean_latents(cache.stack(keys[start:end]).astype(np.float32), vae.config.scaling_factor)
        return means.reshape(len(means), -1)

    return read
