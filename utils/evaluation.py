"""The sections of an evaluation: two trees and their training rows => rows of tables.

Each section is a function of the `Images` compared, and knows nothing of files: `Images` reads them, utils.judges sees
them, utils.metrics measures what was seen, utils.report writes it down.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import Accelerator

from utils import findings, judges, metrics, mimic_cxr
from utils.errors import InputError, say
from utils.latents import cache_moments, load_vae
from utils.mimic_cxr import read_table
from utils.references import References
from utils.seeds import keyed_generator

FLOOR, COPYING = "real train (floor)", "nearest training image (copying)"  # what synthetic images stand beside


@dataclass(frozen=True)
class Loading:
    """How images are read, and where what was computed from them is kept."""

    cache_dir: str
    batch_size: int  # images at a time
    threads: int  # that decode images
    accelerator: Accelerator


class Images:
    """The images of one table that can be read, at the judge's size, and what the judge sees in them."""

    def __init__(self, table, name, judge_size, loading):
        self.name, self.loading, self.device = name, loading, loading.accelerator.device
        self.cache, keys, readable = judges.cache_pixels(
            table, judge_size, loading.cache_dir, loading.accelerator, loading.threads
        )
        self.unreadable = int((~readable).sum())
        if self.unreadable:
            say(f"{name}: {self.unreadable} of {len(table)} images cannot be read and are left out of everything")
        self.table = table[readable].reset_index(drop=True)
        self.keys = [key for key, kept in zip(keys, readable) if kept]
        if len(self.table) < 2:
            raise InputError(f"{name} has {len(self.table)} readable images; an evaluation needs 2 or more")
        self._seen = {}  # (extractor, its rows) => features, probabilities

    def __len__(self):
        return len(self.table)

    def see(self, extractor, rows=None):
        """The features of an extractor, (N, D), or those of some rows only; extracted once, probabilities beside them.

        The judge sees all rows, which other parts need as well; another extractor no more than it is asked for.
        """
        some = None if isinstance(extractor, judges.Judge) else rows
        key = extractor.name, None if some is None else some.tobytes()
        if key not in self._seen:
            if isinstance(extractor, judges.Judge):
                read = judges.pixel_reader(self.cache, self.keys)
            else:
                paths = self.table["image_path"] if some is None else self.table["image_path"].iloc[some]
                read = judges.file_reader(paths.tolist(), extractor.image_size)
            count = len(self) if some is None else len(some)
            self._seen[key] = judges.extract(
                extractor, read, count, self.device, self.loading.batch_size, self.loading.threads
            )
        found = self._seen[key]
        return found if some is not None or rows is None else tuple(values[rows] for values in found)


def read_synthetic(root, reports_root, views, hold_out, split, split_of_real):
    """The table of the synthetic rows, with a column source: the dicom_id of the image that the labels came from, or "".

    Of a real tree the rows of `split_of_real` are taken unless `split` says otherwise; each is its own source.
    """
    provenance = Path(root) / mimic_cxr.PROVENANCE_FILE
    if not provenance.exists():
        table = read_table(root, reports_root, views, splits=(split or split_of_real,), hold_out=hold_out)
        return table.assign(source=table["dicom_id"])
    table = read_table(root, views=views, splits=(split,) if split else ())
    made = pd.read_csv(provenance, dtype=str, keep_default_na=False).set_index("dicom_id")
    source = made["source"] if "source" in made else pd.Series(dtype=str)
    return table.assign(source=table["dicom_id"].map(source).fillna(""))


def read_written(folder, table):
    """The real rows for which <folder>/reports.csv has a report, with that report; and their real reports."""
    path = Path(folder) / "reports.csv"
    try:
        written = pd.read_csv(path, dtype=str, keep_default_na=False)
        texts = written.drop_duplicates("dicom_id").set_index("dicom_id")["report"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as written reports (columns dicom_id and report): {error}") from error
    reported = table["dicom_id"].map(texts).fillna("")
    rows = table[reported != ""]
    if len(rows) < 2:
        raise InputError(
            f"{path} has reports for {len(rows)} of the {len(table)} real images compared; 2 or more are needed"
        )
    return rows.assign(report=reported).reset_index(drop=True), rows["report"].tolist()


# ---- images -----------------------------------------------------------------------------------------------------------


def image_quality(extractors, real, synthetic, train, copies, neighbours, seed):
    """For each extractor a row for the synthetic images, the floor and copying; all against the same real rows."""
    return [
        row
        for extractor in extractors
        for row in _quality_in(extractor, real, synthetic, train, copies, neighbours, seed)
    ]


def _quality_in(extractor, real, synthetic, train, copies, neighbours, seed):
    """The three rows in one extractor's features."""
    floor = metrics.draw_rows(len(train), len(synthetic), seed, "floor")
    used, place = np.unique(np.concatenate([floor, copies]), return_inverse=True)
    used_features = train.see(extractor, used)[0][place]
    compared = real.see(extractor)[0]
    rows = []
    for name, features in (
        ("synthetic", synthetic.see(extractor)[0]),
        (FLOOR, used_features[: len(floor)]),
        (COPYING, used_features[len(floor) :]),
    ):
        kid, deviation = metrics.kernel_distance(compared, features, seed)
        smaller = min(len(features), len(compared))
        warnings = [f"FID from fewer images ({smaller}) than feature dimensions ({extractor.width})"] * (
            smaller < extractor.width
        )
        if len(features) != len(synthetic):
            warnings.append(f"not the same N as the synthetic images ({len(synthetic)})")
        rows.append(
            {
                "images": name,
                "extractor": f"{extractor.name}, D = {extractor.width}",
                "N": len(features),
                "N real": len(compared),
                "FID": metrics.frechet_distance(compared, features),
                "KID": kid,
                "KID deviation": deviation,
                **metrics.neighbourhood_metrics(compared, features, neighbours),
                "warning": "; ".join(warnings),
            }
        )
    return rows


def diversity(images_by_name, count, image_size, seed):
    """A row for each set of Images: MS-SSIM of up to `count` pairs of images with the same findings present."""
    rows = []
    for name, images in images_by_name.items():
        pairs = metrics.label_set_pairs(images.table, count, seed)
        read = judges.file_reader(images.table["image_path"].tolist(), image_size)
        rows.append({"images": name, "pairs": len(pairs), "MS-SSIM": metrics.diversity(read, pairs)})
    return rows


def clinical_efficacy(classifier, real, synthetic, train, copies, replicates, seed):
    """AUROC per finding of asked findings on synthetic images, on copied ones, and of real findings on real images."""
    asked, present = metrics.positives(synthetic.table), metrics.positives(real.table)
    used, place = np.unique(copies, return_inverse=True)
    return {
        name: metrics.auroc_table(labels, scores, classifier.known, replicates, seed)
        for name, labels, scores in (
            ("synthetic", asked, synthetic.see(classifier)[1]),
            (COPYING, asked, train.see(classifier, used)[1][place]),
            ("real", present, real.see(classifier)[1]),
        )
    }


def downstream_utility(settings, judge, real, synthetic, train, replicates):
    """The judge's network trained on synthetic, real, and both kinds of images, tested on real ones: AUROC."""
    present = metrics.positives(real.table)

    def mean_auroc(scores):
        table = metrics.auroc_table(present, scores, judge.known, replicates, settings.seed)
        return table.loc["mean", ["auroc", "low", "high"]]

    labels = {"synthetic": metrics.positives(synthetic.table), "real": metrics.positives(train.table)}
    pixels = {key: images.cache for images in (synthetic, train) for key in images.keys}
    both = _Pixels(pixels)
    sets = {
        "synthetic": (synthetic.keys, labels["synthetic"]),
        "real and synthetic": (train.keys + synthetic.keys, np.concatenate([labels["real"], labels["synthetic"]])),
    }
    rows = [{"trained on": "real", "N": len(train), **mean_auroc(real.see(judge)[1])}]
    for name, (keys, targets) in sets.items():
        model = judges.train_classifier(both, keys, targets, settings, real.device)
        classifier = judges.Judge(model, settings, np.full(14, 0.5), np.ones(14, bool))
        read = judges.pixel_reader(real.cache, real.keys)
        _, scores = judges.extract(classifier, read, len(real), real.device, real.loading.batch_size)
        rows.append({"trained on": name, "N": len(keys), **mean_auroc(scores)})
    return rows


class _Pixels(dict):
    """{key: the cache that has it}, read as {key: pixels}."""

    def __getitem__(self, key):
        return super().__getitem__(key)[key]


# ---- reports ----------------------------------------------------------------------------------------------------------


def text_judge_of(synthetic, train, loaded, notes):
    """The judge of reports: `loaded`, or one trained on the training rows; None where there is nothing to judge."""
    if not (synthetic.table["report"] != "").any():
        notes.append(f"{synthetic.name} has no reports: images are evaluated, reports and pairs are not")
    elif not (train.table["report"] != "").any():
        notes.append("the training rows have no reports to learn or to copy from: reports and pairs are not evaluated")
    elif loaded:
        return loaded
    else:
        studies = train.table[train.table["report"] != ""].drop_duplicates("study_id")
        return judges.TextJudge(studies["report"].tolist(), metrics.positives(studies))
    return None


def evaluate_reports(text_judge, whole, real, synthetic, train, written, radgraph, seed, notes):
    """The sections on reports, {name in the result: rows or tables}: the synthetic ones, and those written for real images.

    whole: the table of all real images: the reference of a synthetic report is that of the image its labels came from.
    written: a folder with reports.csv, or "".
    """
    if not metrics.meteor():
        notes.append("METEOR is left out: it needs pip install nltk, and python -m nltk.downloader wordnet")
    reported = synthetic.table[synthetic.table["report"] != ""].reset_index(drop=True)
    if len(reported) < len(synthetic):
        notes.append(f"{len(synthetic) - len(reported)} synthetic images have no report, and no part in its scores")
    references = reported["source"].map(whole.set_index("dicom_id")["report"]).fillna("").tolist()
    sections = {"text_judge": text_judge.name}
    sections["reports"], sections["report_f1"] = report_quality(
        text_judge, reported, references, train.table, "synthetic", radgraph, seed
    )
    if written:
        reported, references = read_written(written, real.table)
        sections["written_reports"], sections["written_report_f1"] = report_quality(
            text_judge, reported, references, train.table, "written for real images", radgraph, seed
        )
    return sections


def report_rows(text_judge, candidates, references, labels, radgraph):
    """A row of scores for each set of reports.

    candidates: {name: N reports}; references: N real reports, "" where there is none; labels: (N, 14) bool.
    """
    rows, per_finding = [], {}
    referenced = np.array([bool(text) for text in references])
    for name, reports in candidates.items():
        row = {"reports": name, "N": len(reports), "N with a reference": int(referenced.sum())}
        if referenced.any():
            texts = [reports[index] for index in np.flatnonzero(referenced)]
            wanted = [references[index] for index in np.flatnonzero(referenced)]
            row |= metrics.text_scores(wanted, texts)
            if radgraph:
                row["RadGraph F1"] = judges.radgraph_f1(wanted, texts)
        per_finding[name] = metrics.clinical_f1(labels, text_judge(reports))
        row["clinical F1 micro"], row["clinical F1 macro"] = per_finding[name].loc[["micro", "macro"], "f1"]
        rows.append(row)
    return rows, per_finding


def report_quality(text_judge, table, references, train_table, name, radgraph, seed):
    """The reports of a table and its baselines, against references and against what was asked for."""
    labels = metrics.positives(table)
    normal = train_table[(train_table["No Finding"] == findings.PRESENT) & (train_table["report"] != "")]
    pool = normal if len(normal) else train_table[train_table["report"] != ""]
    reports = table["report"].tolist()
    copied = nearest_by_labels(table, train_table[train_table["report"] != ""], seed)
    copies = train_table["report"].iloc[copied].tolist()
    candidates = {
        name: reports,
        "real reports of the same labels": references,
        "nearest training report (copying)": copies,
        "label-only": [metrics.label_report(row) for row in table[list(findings.FINDINGS)].to_numpy()],
        "constant normal report": [metrics.constant_report(pool["report"])] * len(reports),
        "shuffled among images": shuffled(reports, seed),
    }
    if not all(references):
        del candidates["real reports of the same labels"]
    return report_rows(text_judge, candidates, references, labels, radgraph)


def shuffled(reports, seed):
    """The reports in another order, none in its own place."""
    order = np.random.default_rng(seed).permutation(len(reports))
    moved = np.empty(len(reports), dtype=int)
    moved[order] = np.roll(order, 1)
    return [reports[row] for row in moved]


def nearest_by_labels(table, train_table, seed):
    """For each row the index label, in train_table, of a training row with the nearest label vector: what a copier gives."""
    references = References(train_table)
    labels = table[list(findings.FINDINGS)].to_numpy()
    rows = [
        references.draw(row, -1, keyed_generator(seed, "copying", dicom_id))
        for row, dicom_id in zip(labels, table["dicom_id"])
    ]
    return train_table.index.to_numpy()[rows]


# ---- pairs and copies -------------------------------------------------------------------------------------------------


def pairs(judge, text_judge, images):
    """What request, image and report say of each finding; without a text judge, request and image only."""
    asked, table = metrics.positives(images.table), images.table
    image = metrics.only_known(images.see(judge)[1] >= judge.thresholds, judge.known)
    report = None
    if text_judge:
        has_report = (table["report"] != "").to_numpy()
        report = metrics.only_known(text_judge(table["report"].tolist()), text_judge.known)
        report[~has_report] = np.nan
    return metrics.pair_table(table["dicom_id"], asked, image, report)


def agreements(judge, text_judge, told, synthetic, real, seed):
    """{name: agreement per finding} of the synthetic pairs, and with a text judge of real and of shuffled pairs."""
    tables = {"synthetic": metrics.agreement(told)}
    if text_judge:
        tables["real"] = metrics.agreement(pairs(judge, text_judge, real))
        told_by_reports = told["report"].to_numpy().reshape(len(synthetic), -1)
        mixed = told.assign(report=np.array(shuffled(list(told_by_reports), seed)).ravel())
        tables["shuffled reports"] = metrics.agreement(mixed)
    return tables


def memorisation(spaces, real, synthetic, train, quantile):
    """Distances to the nearest training image in each space => (rows of the table, {space: distances and pairs})."""
    rows, found = [], {}
    for name, (values_real, values_synthetic, read_train) in spaces.items():
        near_real, _ = metrics.nearest(values_real, read_train, len(train), real.device)
        near_synthetic, places = metrics.nearest(values_synthetic, read_train, len(train), real.device)
        result = metrics.memorisation(near_synthetic, near_real, quantile)
        rows.append({"space": name, "N": len(synthetic), "N real": len(real), **result})
        found[name] = (near_synthetic, near_real, places, result["threshold"])
    return rows, found


def feature_spaces(judge, real, synthetic, train, base_model, image_size):
    """{name: (real, synthetic: arrays (N, D), read(start, end) => training rows)}, cached latents and judge features.

    Without a base_model there are no latents.
    """
    features = train.see(judge)[0]
    spaces = {
        f"features of the {judge.name}": (
            real.see(judge)[0],
            synthetic.see(judge)[0],
            lambda *rows: features[slice(*rows)],
        )
    }
    if base_model:
        vae, loading = load_vae(base_model, real.device), real.loading
        found = {}
        for images in (real, synthetic, train):
            cache, keys, _ = cache_moments(
                images.table,
                vae,
                image_size,
                loading.cache_dir,
                loading.batch_size,
                loading.accelerator,
                loading.threads,
            )
            found[images] = (cache, keys)

        def latents(images, start, end):
            cache, keys = found[images]
            means = cache.stack(keys[start:end])  # (n, 2C, h, w)
            means = means[:, : means.shape[1] // 2].astype(np.float32) * vae.config.scaling_factor
            return means.reshape(len(means), -1)

        spaces = {
            "VAE latents": (
                latents(real, 0, len(real)),
                latents(synthetic, 0, len(synthetic)),
                lambda start, end: latents(train, start, end),
            ),
            **spaces,
        }
    return spaces
