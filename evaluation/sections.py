"""The sections of an evaluation: the images of three tables, compared, as rows and tables of numbers.

real         the real images to compare with
synthetic    the images to evaluate, and their reports
train        the real images that judges and generators learn from: searched for copies, drawn from for baselines
baselines    what costs no model: other real images (the floor), copies of training images and reports, a report that
             only says the labels, one report for everybody, the right reports for the wrong images

Each section is one function from these to rows (dicts) or DataFrames. The judges are evaluation/judges.py's, the measures
evaluation/metrics.py's, and evaluation/report.py writes down what comes out.
"""

import time
from collections import ChainMap
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from evaluation import judges, metrics
from evaluation.judges import selector_patients
from utils.errors import InputError, say
from utils.findings import ABSENT, FINDINGS, PRESENT, UNCERTAIN
from utils.folders import WRITTEN_REPORTS, read_manifest
from utils.latents import cache_moments, load_vae, mean_latents
from utils.references import References
from utils.seeds import draw_rows, keyed_generator

FLOOR = "real train (floor)"  # other real images, as many as synthetic ones
SHUFFLED = "shuffled reports"  # the floor of pairs: right images, right reports, wrong pairs
COPYING = "nearest training image (copying)"  # for each synthetic image a training image of the nearest labels


class Stopwatch:
    """Seconds a section, in `seconds`; each is printed as it ends."""

    def __init__(self):
        self.seconds = {}
        self._start = time.perf_counter()

    def lap(self, name):
        """Ends the section that ran since the last lap."""
        now = time.perf_counter()
        self.seconds[name], self._start = round(now - self._start, 1), now
        say(f"{name}: {self.seconds[name]} s")


# ---- the images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loading:
    """How images are read, and where what was computed from them is kept."""

    cache_dir: str
    image_size: int  # pixels at which they are compared, a generator's: it can draw nothing finer
    batch_size: int  # images at a time
    threads: int  # that decode images
    accelerator: Accelerator


class Images:
    """The images of one table that can be read, at the judge's size, and what the judge sees in them.

    Attributes: table, without the unreadable rows; keys and cache, of their pixels; unreadable, how many were left out.
    """

    def __init__(self, table, name, judge_size, loading):
        self.loading, self.device = loading, loading.accelerator.device
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

    def count(self):
        return {"N": len(self), "unreadable": self.unreadable}

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
                read = judges.file_reader(paths.tolist(), extractor.image_size, self.loading.image_size)
            count = len(self) if some is None else len(some)
            self._seen[key] = judges.extract(
                extractor, read, count, self.device, self.loading.batch_size, self.loading.threads
            )
        found = self._seen[key]
        return found if some is not None or rows is None else tuple(values[rows] for values in found)


# ---- image quality and diversity -----------------------------------------------------------------------------------


def image_quality(extractors, real, synthetic, train, copies, neighbours, seed):
    """For each extractor a row for the synthetic images, the floor and copying; all against the same real rows.

    copies: for each synthetic image the training row that a copier would give (`nearest_by_labels`).
    """
    floor = draw_rows(len(train), len(synthetic), seed, "floor")
    used, place = np.unique(np.concatenate([floor, copies]), return_inverse=True)
    rows = []
    for extractor in extractors:
        used_features = train.see(extractor, used)[0][place]
        sets = {
            "synthetic": synthetic.see(extractor)[0],
            FLOOR: used_features[: len(floor)],
            COPYING: used_features[len(floor) :],
        }
        compared = real.see(extractor)[0]
        rows += [
            _distances(name, features, compared, extractor, len(synthetic), neighbours, seed)
            for name, features in sets.items()
        ]
    return rows


def _distances(name, features, compared, extractor, wanted, neighbours, seed):
    """One row: features (N, D) against those of the real images (M, D); wanted: N of the synthetic images."""
    smaller = min(len(features), len(compared))
    warnings = []
    if smaller < extractor.width:
        warnings.append(f"FID from fewer images ({smaller}) than feature dimensions ({extractor.width})")
    if len(features) != wanted:
        warnings.append(f"not the same N as the synthetic images ({wanted})")
    return {
        "images": name,
        "extractor": f"{extractor.name}, D = {extractor.width}",
        "N": len(features),
        "N real": len(compared),
        **metrics.feature_distances(compared, features, neighbours, seed),
        "warning": "; ".join(warnings),
    }


def diversity(synthetic, real, count, seed):
    """MS-SSIM of up to `count` pairs of images with the same findings present, a row each for synthetic and real.

    The findings of the pairs are the same in both rows.
    """
    rows, sets = [], (synthetic, real)
    found = metrics.label_set_pairs([images.table for images in sets], count, seed)
    for name, images, pairs in zip(("synthetic", "real"), sets, found):
        read = judges.file_reader(images.table["image_path"].tolist(), images.loading.image_size)
        rows.append({"images": name, "pairs": len(pairs), "MS-SSIM": metrics.diversity(read, pairs)})
    return rows


# ---- clinical efficacy and downstream utility ----------------------------------------------------------------------


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


def downstream_utility(judge, real, synthetic, train, rows, replicates):
    """The judge's network trained on real, synthetic, and both kinds of images, tested on real ones: AUROC.

    judge: the one that the real images, these rows of train, trained; the two others are trained in the same way.
    """
    settings, labels = judge.settings, metrics.positives(real.table)
    asked, present = metrics.positives(synthetic.table), metrics.positives(train.table)[rows]
    real_keys = [train.keys[row] for row in rows]
    sets = {
        "synthetic": (synthetic.keys, asked),
        "real and synthetic": (real_keys + synthetic.keys, np.concatenate([present, asked])),
    }
    pixels = ChainMap(synthetic.cache, train.cache)
    scores = {"real": (len(rows), real.see(judge)[1])}
    for name, (keys, targets) in sets.items():
        model = judges.train_classifier(pixels, keys, targets, settings, real.device)
        other = judges.Judge(model, settings, judge.thresholds, judge.known)
        read = judges.pixel_reader(real.cache, real.keys)
        _, probabilities = judges.extract(other, read, len(real), real.device, real.loading.batch_size)
        scores[name] = len(keys), probabilities
    rows = []
    for name, (trained_on, probabilities) in scores.items():
        mean = metrics.auroc_table(labels, probabilities, judge.known, replicates, settings.seed).loc["mean"]
        rows.append({"trained on": name, "N": trained_on, **mean[["auroc", "low", "high"]]})
    return rows


# ---- reports -------------------------------------------------------------------------------------------------------


def text_judge_for(synthetic, train, name, ready=None):
    """Who reads the reports of `name` => (the judge that is ready, else one of the training reports; notes).

    ready: a text judge that needs no training, or None. (None, notes) where there are no reports to read, or none to
    learn and to copy from: the baselines are made of training reports whoever reads them.
    """
    if not (synthetic.table["report"] != "").any():
        return None, [f"{name} has no reports: images are evaluated, reports and pairs are not"]
    studies = train.table[train.table["report"] != ""].drop_duplicates("study_id")
    if studies.empty:
        return None, ["the training rows have no reports to learn or to copy from: reports and pairs are not evaluated"]
    notes = []
    if not metrics.has_wordnet():
        notes.append(
            "METEOR is left out: NLTK's WordNet is not here (pip install nltk, then python -m nltk.downloader wordnet)"
        )
    silent = int((synthetic.table["report"] == "").sum())
    if silent:
        notes.append(f"{silent} synthetic images have no report, and no part in its scores")
    return ready or judges.TextJudge(studies["report"].tolist(), metrics.positives(studies)), notes


def with_references(table, real_table):
    """The rows that have a report, and for each the real report of its source in real_table, "" where there is none."""
    reported = table[table["report"] != ""].reset_index(drop=True)
    real_reports = real_table.set_index("dicom_id")["report"]
    return reported, reported["source"].map(real_reports).fillna("").tolist()


def report_quality(text_judge, table, references, train_table, name, radgraph, seed):
    """The reports of a table and its baselines, against references and against what was asked for.

    references: N real reports, "" where there is none => (rows, one for each set of reports; {set: F1 per finding}).
    """
    labels = metrics.positives(table)
    reported = train_table[train_table["report"] != ""]
    reports = table["report"].tolist()
    copied = nearest_by_labels(table, reported, seed)
    candidates = {
        name: reports,
        "real reports of the same labels": references,
        "nearest training report (copying)": train_table["report"].iloc[copied].tolist(),
        "label-only": [label_only_report(row) for row in table[list(FINDINGS)].to_numpy()],
        "constant normal report": [constant_normal_report(train_table)] * len(reports),
        "shuffled among images": shuffled(reports, seed),
    }
    if not all(references):
        del candidates["real reports of the same labels"]
    per_finding = {which: metrics.clinical_f1(labels, text_judge(texts)) for which, texts in candidates.items()}
    rows = [
        {"reports": which, **_text_scores(texts, references, radgraph), **_mean_f1(per_finding[which])}
        for which, texts in candidates.items()
    ]
    return rows, per_finding


def _text_scores(reports, references, radgraph):
    """How near N reports are to those of N references that are not ""."""
    referenced = [row for row, text in enumerate(references) if text]
    scores = {"N": len(reports), "N with a reference": len(referenced)}
    if referenced:
        texts, wanted = ([source[row] for row in referenced] for source in (reports, references))
        scores |= metrics.text_scores(wanted, texts)
        if radgraph:
            scores["RadGraph F1"] = judges.radgraph_f1(wanted, texts)
    return scores


def _mean_f1(table):
    return {f"clinical F1 {mean}": table.loc[mean, "f1"] for mean in ("micro", "macro")}


def report_texts(tables, train_table, seed):
    """How reports are as texts (`metrics.text_habits`), a row for each of the tables, {name: rows with a report}.

    The last row is as many training reports as the first table has, one a study: what is usual among real ones.
    """
    studies = train_table[train_table["report"] != ""].drop_duplicates("study_id")
    count = len(next(iter(tables.values())))
    tables = {**tables, "real train": studies.iloc[draw_rows(len(studies), count, seed, "texts")]}
    return [
        {
            "reports": name,
            **metrics.text_habits(table["report"].tolist(), metrics.positives(table), table["subject_id"]),
        }
        for name, table in tables.items()
    ]


# ---- baselines -----------------------------------------------------------------------------------------------------


def nearest_by_labels(table, train_table, seed):
    """For each row the index label of a row of train_table with the nearest label vector: what a copier gives."""
    references = References(train_table)
    labels = table[list(FINDINGS)].to_numpy()
    rows = [
        references.draw(row, -1, keyed_generator(seed, "copying", dicom_id))
        for row, dicom_id in zip(labels, table["dicom_id"])
    ]
    return train_table.index.to_numpy()[rows]


def constant_normal_report(train_table):
    """One report for everybody: the best of those of training images without findings, of all where there are none."""
    reported = train_table[train_table["report"] != ""]
    normal = reported[reported["No Finding"] == PRESENT]
    return metrics.constant_report((normal if len(normal) else reported)["report"])


def label_only_report(labels):
    """A report that says a label vector (14 codes) and nothing else: what can be known without an image."""
    words = {PRESENT: "There is {}.", ABSENT: "There is no {}.", UNCERTAIN: "Possible {}."}
    said = [words[label].format(name.lower()) for name, label in zip(FINDINGS, labels) if label in words]
    named = [f"{name.capitalize()}." for name, label in zip(FINDINGS, labels) if label == PRESENT]
    return "FINDINGS: " + (" ".join(said) or "Chest X-ray.") + " IMPRESSION: " * bool(named) + " ".join(named)


def shuffled(reports, seed):
    """The reports in another order, none in its own place."""
    order = np.random.default_rng(seed).permutation(len(reports))
    moved = np.empty(len(reports), dtype=int)
    moved[order] = np.roll(order, 1)
    return [reports[row] for row in moved]


# ---- pairs ---------------------------------------------------------------------------------------------------------


def pairs(judge, text_judge, synthetic, real, train, replicates, seed):
    """Do request, image and report agree? => (told, {"pairs": agreement, "complete_agreement": rows}).

    told: what they say of each finding of the synthetic images (`metrics.pair_table`). agreement: {pairs: table per
    finding}; a request that leaves a finding uncertain counts there, as in `told`, as one that does not ask for it, and in
    the rows not at all. rows, of `metrics.complete_agreement`: the synthetic pairs, what costs no model, and the real
    pairs, which show how far the judges get. Without a text judge, everything is of request and image alone.
    """
    kinds = _kinds_of_pairs(judge, text_judge, synthetic, real, train, seed)
    labels, image, report = kinds["synthetic"]
    told = metrics.pair_table(synthetic.table["dicom_id"], labels == PRESENT, image, report)
    agreement = {
        name: metrics.agreement(metrics.pair_table(range(len(labels)), labels == PRESENT, image, report))
        for name, (labels, image, report) in kinds.items()
        if name in ("synthetic", "real", SHUFFLED)
    }
    rows = [{"pairs": name, **metrics.complete_agreement(*kind, replicates, seed)} for name, kind in kinds.items()]
    most = rows[-1]["all three"]
    rows = [{**row, "of the real share": row["all three"] / most if most else np.nan} for row in rows]
    return told, {"pairs": agreement, "complete_agreement": rows}


def _kinds_of_pairs(judge, text_judge, synthetic, real, train, seed):
    """{pairs: (labels, codes; image and report, True, False or NaN where it cannot be told)}, all (N, 14), real ones last.

    A synthetic image without a report has none in the baselines either. Without a text judge report is None.
    """

    def seen(images, rows=None):
        return metrics.only_known(images.see(judge, rows)[1] >= judge.thresholds, judge.known)

    def said(texts):
        if text_judge is None:
            return None
        found = metrics.only_known(text_judge(texts), text_judge.known)
        found[[not text for text in texts]] = np.nan
        return found

    labels, of_real = (images.table[list(FINDINGS)].to_numpy() for images in (synthetic, real))
    image, reports = seen(synthetic), synthetic.table["report"].tolist()
    has_report = np.array([bool(text) for text in reports])
    pool = train.table[train.table["report"] != ""] if text_judge else train.table
    copied = nearest_by_labels(synthetic.table, pool, seed)
    kinds = {"synthetic": (image, reports)}
    if text_judge:
        moved = iter(shuffled([text for text in reports if text], seed))
        kinds[SHUFFLED] = image, [next(moved) if text else "" for text in reports]
    kinds[COPYING] = seen(train, copied), train.table["report"].iloc[copied].tolist()
    if text_judge:
        kinds["label-only report"] = image, [label_only_report(row) for row in labels]
        kinds["constant normal report"] = image, [constant_normal_report(train.table)] * len(reports)
    found = {}
    for name, (shown, texts) in kinds.items():
        found[name] = labels, shown, said([text if has else "" for text, has in zip(texts, has_report)])
    return found | {"real": (of_real, seen(real), said(real.table["report"].tolist()))}


# ---- the selector ---------------------------------------------------------------------------------------------------


def judge_rows(table, patients):
    """Which rows of a table of training images train the image judge; patients: "all", or "second half"."""
    return np.flatnonzero(~judges.first_half(table)) if patients == "second half" else np.arange(len(table))


def check_apart(tree, table, text_judge, written=""):
    """InputError if who chose the images or the reports of a synthetic tree would also judge them.

    table: the training rows of the image judge, who has no patient in common with a selector; text_judge: its name;
    written: another folder with reports, or "".
    """
    shared = set(table["subject_id"].tolist()) & selector_patients(tree)
    if shared:
        raise InputError(
            f"{len(shared)} of {table['subject_id'].nunique()} training patients of the judge, e.g. {min(shared)}, trained "
            f"the selector that chose the images of {tree}, so that it would judge its like: set JUDGE_PATIENTS to 'second "
            "half', or TRAIN to a tree of other patients"
        )
    for folder in (tree, written):
        chosen = read_manifest(folder).get(WRITTEN_REPORTS, {}).get("CANDIDATES", 1) > 1 if folder else False
        if chosen and text_judge == "rules":
            raise InputError(
                f"the reports in {folder} were chosen by the rules that would judge them: set TEXT_JUDGE to tfidf or chexbert"
            )


def selection(judge, synthetic):
    """What the judge says of the choices of a tree's selector (`metrics.calibration`); None where no image has a score."""
    scored = synthetic.table["score"].notna().to_numpy()
    if not scored.any():
        return None
    labels = synthetic.table[list(FINDINGS)].to_numpy()
    _, seen = metrics.request_agreement(synthetic.see(judge)[1], labels, judge.thresholds, judge.known)
    told = synthetic.table[scored]
    rows, acceptance = metrics.calibration(told["score"], told["agrees"] == 1, seen[scored])
    return {"calibration": rows, "acceptance": acceptance}


# ---- memorisation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nearest:
    """How near the images of one space lie to the training images, in root mean square differences."""

    synthetic: np.ndarray  # (N,) distance of each synthetic image to its nearest training image
    real: np.ndarray  # (M,) the same of the real images, which were not trained on
    places: np.ndarray  # (N,) the row of that training image
    threshold: float  # copies are nearer than this


def memorisation(judge, real, synthetic, train, base_model, quantile):
    """Distances to the nearest training image in each space => (rows of the table, {space: Nearest})."""
    rows, found = [], {}
    spaces = _spaces(judge, real, synthetic, train, base_model)
    for space, (of_real, of_synthetic, read_train) in spaces.items():
        near_real, _ = metrics.nearest(of_real, read_train, len(train), real.device)
        near_synthetic, places = metrics.nearest(of_synthetic, read_train, len(train), real.device)
        result = metrics.memorisation(near_synthetic, near_real, quantile)
        rows.append({"space": space, "N": len(synthetic), "N real": len(real), **result})
        found[space] = Nearest(near_synthetic, near_real, places, result["threshold"])
    return rows, found


def _spaces(judge, real, synthetic, train, base_model):
    """{space: (real, synthetic: arrays (N, D), read(start, end) => training rows)}: VAE latents and judge features.

    Without a base_model there are no latents.
    """
    spaces = {}
    if base_model:
        vae = load_vae(base_model, real.device)
        readers = [_latent_reader(images, vae) for images in (real, synthetic, train)]
        of_real, of_synthetic, read_train = readers
        spaces["VAE latents"] = of_real(0, len(real)), of_synthetic(0, len(synthetic)), read_train
    features = train.see(judge)[0]
    spaces[f"features of the {judge.name}"] = (
        real.see(judge)[0],
        synthetic.see(judge)[0],
        lambda start, end: features[start:end],
    )
    return spaces


def _latent_reader(images, vae):
    """read(start, end) => the mean latents of these rows, (end - start, C h w) at unit variance, out of the cache."""
    how = images.loading
    cache, keys, _ = cache_moments(
        images.table, vae, how.image_size, how.cache_dir, how.batch_size, how.accelerator, how.threads
    )

    def read(start, end):
        means = mean_latents(cache.stack(keys[start:end]).astype(np.float32), vae.config.scaling_factor)
        return means.reshape(len(means), -1)

    return read
