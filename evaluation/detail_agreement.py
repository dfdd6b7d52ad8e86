"""Whether reports name the side, zone, degree and kind of their findings that others name, or that an image shows.

Details are {detail: (N, 14) texts}, as `evaluation.details.read_details` returns them. A detail of a finding *counts*
where both sides name it, and is right where they name the same: "bilateral" is not "left". Beside each share stand
chance, shuffled (what a report that knows the findings of an image, and nothing else of it, gets) and the ceiling, see
report.md. Images are read by a judge that learns sides and zones from the reports of real training images.
"""

from collections.abc import Sequence
from itertools import chain, product

import numpy as np
import pandas as pd

from evaluation import metrics, sections
from evaluation.agreement import pairs_that_agree, share_interval
from evaluation.baselines import reported, shuffled
from evaluation.details import APPLIES, DETAILS, joined, read_details
from evaluation.images import Images, ImageSets
from evaluation.judges import Judge, image_judge
from evaluation.labeler import label_reports
from evaluation.metrics import mean_or_nan
from utils.findings import FINDINGS, PRESENT, UNCERTAIN

PLACES = {"side": ("left", "right"), "zone": ("upper", "middle", "lower")}  # what the judge of details can tell apart
TARGETS = [
    (detail, finding, value)
    for detail, values in PLACES.items() for finding in FINDINGS if finding in APPLIES[detail] for value in values
]  # fmt: skip


def evaluate(sets: ImageSets, judge: Judge, text_judge, rows: np.ndarray, written: pd.DataFrame | None) -> dict:
    """The parts of evaluation.json about details: "written_details", and those of `image_details`, where there are any.

    rows: those of sets.train that trained the image judge; written: see `sections.read_written`, of real images, or
    None. Empty without a text judge: there are no reports.
    """
    if text_judge is None:
        return {}
    result, train = {}, read_details(reported(sets.train.table).drop_duplicates("study_id")["report"])
    if written is not None:
        result["written_details"] = written_details(sections.written_reports(sets.real, written), train, sets.seed)
    places = place_judge(sets.train, rows, judge)
    return result if places is None else result | image_details(sets, judge, places, text_judge, train)


def agreement_rows(
    details: dict, references: dict, subjects: Sequence, train: dict, seed: int, ceiling: dict | None = None
) -> list[dict]:
    """How far details agree with those of references, a row a detail that they name.

    details, references and ceiling are of the same N rows; subjects (N,): their patients; train: of training reports.
    N: details that count; of: those that the references name; share, with its 95 % interval over patients; chance,
    shuffled and ceiling: shares as report.md describes them, NaN where there is none.
    """
    rows, subjects = [], pd.factorize(np.asarray(subjects))[0]
    for detail in (name for name in DETAILS if name in details):
        given, wanted = details[detail], references[detail]
        named = wanted != ""
        counts = named & (given != "")
        right = counts & (given == wanted)
        row = {"detail": detail, "N": int(counts.sum()), "of": int(named.sum()), "share": mean_or_nan(right[counts])}
        row["low"], row["high"] = share_interval(right.sum(axis=1), counts.sum(axis=1), subjects, seed)
        columns = np.nonzero(counts)[1]
        row["chance"] = pd.Series([_chance(train[detail][:, column]) for column in columns], dtype=float).mean()
        others = (_others(given[:, column], wanted[:, column], subjects) for column in np.unique(columns))
        row["shuffled"] = pd.Series([*chain(*others)], dtype=float).mean()
        kept = np.full_like(wanted, "") if ceiling is None else ceiling[detail]
        row["ceiling"] = mean_or_nan((kept == wanted)[named & (kept != "")])
        rows.append(row)
    return rows


def _chance(values):
    """The probability that two draws of what training reports say of one detail of a finding are the same."""
    counts = np.unique(values[values != ""], return_counts=True)[1]
    return float(((counts / counts.sum()) ** 2).sum()) if len(counts) else np.nan


def _others(given, wanted, subjects):
    """For each row that counts, of one finding, the share of other patients' details that equal its reference."""
    named = given != ""
    for row in np.flatnonzero(named & (wanted != "")):
        others = named & (subjects != subjects[row])
        if others.any():
            yield float((given[others] == wanted[row]).mean())


def written_details(reports: sections.Reports, train: dict, seed: int) -> list[dict]:
    """`agreement_rows` of reports written for real images against the images' own reports."""
    details, references = read_details(reports.table["report"]), read_details(reports.references)
    made = reports.further.get(sections.FURTHER["reconstruction"])
    return agreement_rows(details, references, reports.table["subject_id"], train, seed, made and read_details(made))


def place_targets(table: pd.DataFrame) -> np.ndarray:
    """What the reports of a table say of TARGETS, (N, K) float: 1 named, 0 not named, NaN where no place is said."""
    details, said = read_details(table["report"]), np.isin(label_reports(table["report"]), (PRESENT, UNCERTAIN))
    targets = np.zeros((len(table), len(TARGETS)))
    for column, (detail, finding, value) in enumerate(TARGETS):
        place = FINDINGS.index(finding)
        named = details[detail][:, place]
        targets[:, column] = [value in text.split(", ") or text == "bilateral" for text in named]
        targets[said[:, place] & (named == ""), column] = np.nan  # of an uncertain finding, or without its place
    return targets


def place_judge(train: Images, rows: np.ndarray, judge: Judge) -> Judge | None:
    """A judge of TARGETS, trained on these rows of the real training images; None where no detail is named often.

    It is trained as `judge` was, and begins with its weights: they know the findings already.
    """
    table = reported(train.table.iloc[rows])
    if not metrics.enough(place_targets(table) == 1).any():
        return None
    settings, loading = judge.settings, train.loading
    places = image_judge(table, table[:0], settings, loading.cache_dir, loading.accelerator, place_targets, judge)
    places.name = f"judge of sides and zones ({settings.model})"
    return places


def read_places(judge: Judge, images: Images) -> dict[str, np.ndarray]:
    """The side and zone of each finding that the judge sees in N images, whether it is there or not, as details.

    All places with a probability of at least half, else the likeliest; "" where the judge knows fewer than two places.
    """
    probabilities = images.encode(judge)[1]
    details = {detail: np.full((len(probabilities), len(FINDINGS)), "", dtype=object) for detail in PLACES}
    for detail, finding in product(PLACES, FINDINGS):
        columns = np.flatnonzero([target[:2] == (detail, finding) for target in TARGETS] & judge.known)
        if len(columns) < 2:
            continue
        likely = probabilities[:, columns]
        shown = (likely >= 0.5) | (likely == likely.max(axis=1, keepdims=True))
        names = np.array([TARGETS[column][2] for column in columns])
        details[detail][:, FINDINGS.index(finding)] = [joined(detail, names[seen]) for seen in shown]
    return details


def image_details(sets: ImageSets, judge: Judge, place_judge: Judge, text_judge, train: dict) -> dict:
    """Sides and zones of images, as the judge sees them, against their reports' => parts of evaluation.json.

    "image_details": `agreement_rows` of the synthetic images, of what their prompts asked for, where these name places,
    and of the real images, which are the judge's own accuracy. train: the details of training reports.
    "agreement_with_sides": pairs in which request, image and report agree on every finding (as in
    `agreement.complete_agreement`), and those that also agree on each side that the report names and the judge knows.
    """
    rows, pairs = [], []
    for name, images in (("synthetic", sets.synthetic), ("real", sets.real)):
        texts = images.table["report"]
        seen, told = read_places(place_judge, images), read_details(texts)
        asked = read_details(images.table.get("prompt", []))
        for what, said in ((name, told), (f"{name}, as asked", asked)):
            stated = {detail: said[detail] for detail in PLACES}
            if said is told or any((named != "").any() for named in stated.values()):  # prompts seldom name a place
                found = agreement_rows(stated, seen, images.subjects(), train, sets.seed)
                rows += [{"images": what, **row} for row in found]
        pairs.append(_pairs_row(name, images, texts, judge, text_judge, seen, sets.seed))
        if name == "synthetic":
            moved = pd.Series(shuffled(texts, sets.seed))
            pairs.append(_pairs_row(sections.SHUFFLED, images, moved, judge, text_judge, seen, sets.seed))
    real = pairs[-1]["and every side"]
    for row in pairs:
        row["of the real share"] = row["and every side"] / real if real else np.nan
    rows = pd.DataFrame(rows).drop(columns=["of", "ceiling"]).to_dict("records")
    return {"image_details": rows, "agreement_with_sides": pairs}


def _pairs_row(name, images, texts, judge, text_judge, seen, seed):
    """One row of agreement_with_sides: the images with these reports."""
    report = sections.report_reading(text_judge, texts, (texts != "").to_numpy())
    counted, agrees = pairs_that_agree(images.codes(), sections.image_reading(judge, images), report)
    kept, side = counted.any(axis=1), read_details(texts)["side"]
    findings = kept & agrees["all three"]
    sides = findings & ((side == seen["side"]) | (side == "") | (seen["side"] == "")).all(axis=1)
    shares = {"every finding": mean_or_nan(findings[kept]), "and every side": mean_or_nan(sides[kept])}
    low, high = share_interval(sides, kept, images.subjects(), seed)
    return {"pairs": name, "N": int(kept.sum()), **shares, "low": low, "high": high}
