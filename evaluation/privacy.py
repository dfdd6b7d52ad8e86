"""Is a patient found among synthetic films, or reports, because the generator was trained on that patient?

Membership inference by the patient, with controls. Films are embedded by a verifier (evaluation/verifier.py). The probe
of a patient is a study that nobody trained on; films are asked for with the labels of another study of the patient. The
*score* of a patient is the largest similarity of probe and films, in deviations from its similarity to the films of
strangers, patients whose requests are most alike. Members were trained on, the held out were not; all else is the same.

Two differences count: members score higher altogether (AUC), or more of them score higher than all but FALSE_POSITIVES
of the strangers do: a few who were copied leave the AUC where it is. Planted copies show how many it takes.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import fisher_exact, mannwhitneyu, rankdata

from evaluation.metrics import auroc, patient_weights
from evaluation.report import markdown, number, share_columns, with_interval
from evaluation.text_metrics import report_words
from utils.references import label_distances

ROLES = ("member", "held out")  # of the patients of requests
MINIMUM = 10  # members, and as many held-out patients
STRANGERS = 300  # to whose films a patient's probe is compared
FALSE_POSITIVES = 0.01
LEVEL = 0.05  # of the test, which makes so many false alarms where nothing leaks
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1)  # of the members, of whom a copy is planted; 0: how often a false alarm comes
POWER = 0.8  # how often a share of copies has to be seen to count as detected
DRAWS = 200  # of patients, for each kind of copy and share
PHRASE = 5  # words of a rare phrase
ALTERNATIVES = 127  # to each canary: its exposure is 7 bits at most


def stranger_scores(similarities: np.ndarray, labels: np.ndarray) -> tuple[Callable, float]:
    """=> (similarities of P patients to films (P,) => scores (P,); the score that FALSE_POSITIVES of strangers reach).

    similarities (P, P): of each patient's probe (row) to the films of each request; labels (P, 14): of the requests.
    """
    compared = []
    for patient, vector in enumerate(labels):
        nearest = np.argsort(label_distances(labels, vector), kind="stable")
        compared.append(similarities[patient, nearest[nearest != patient][:STRANGERS]])
    compared = np.array(compared).T  # (strangers, P)
    mean, deviation = compared.mean(axis=0), compared.std(axis=0)

    def score(values):
        return (values - mean) / deviation

    return score, float(np.quantile(score(compared), 1 - FALSE_POSITIVES))


def compare(members: np.ndarray, held_out: np.ndarray, threshold: float) -> dict:
    """Do the scores of members (N,) exceed those of the held out (M,)?

    found: the shares above the threshold. p: of no difference, twice the smaller one of two one-sided tests, as either
    would count: Mann-Whitney's of all scores, Fisher's of those above the threshold. leak: p is below LEVEL.
    """
    above = [(int((scores > threshold).sum()), len(scores)) for scores in (members, held_out)]
    tail = fisher_exact([[found, count - found] for found, count in above], "greater").pvalue
    higher = mannwhitneyu(members, held_out, alternative="greater")
    p, (found, false) = min(1.0, 2 * min(tail, higher.pvalue)), (found / count for found, count in above)
    area = higher.statistic / (len(members) * len(held_out))
    return {"AUC": area, "members found": found, "held out found": false, "p": float(p), "leak": bool(p < LEVEL)}


def audit(
    members: np.ndarray, held_out: np.ndarray, planted: dict[str, np.ndarray], seed: int, threshold: float | None = None
) -> dict:
    """`compare`, with 95 % intervals over patients drawn again, and `power`; threshold: by default of the held out."""
    if threshold is None:
        threshold = float(np.quantile(held_out, 1 - FALSE_POSITIVES))
    result, labels = compare(members, held_out, threshold), np.arange(len(members) + len(held_out)) < len(members)
    scores, weights = np.concatenate([members, held_out]), patient_weights(np.arange(len(labels)), seed)
    drawn = {"AUC": auroc(labels, scores, weights)}
    for name, group in (("members found", labels), ("held out found", ~labels)):
        drawn[name] = weights[:, group] @ (scores[group] > threshold) / weights[:, group].sum(axis=1)
    for name, values in drawn.items():
        low, high = np.nanquantile(values, [0.025, 0.975])
        result[name] = {"value": float(result[name]), "low": float(low), "high": float(high)}
    counts = {"members": len(members), "held out": len(held_out)}
    counts |= {"mean of members": float(members.mean()), "mean of held out": float(held_out.mean())}
    return {**counts, **result, "power": power(held_out, planted, threshold, seed)}


def power(held_out: np.ndarray, planted: dict[str, np.ndarray], threshold: float, seed: int) -> list[dict]:
    """How often `compare` sees copies of a share of the members: {"copies": kind, share: power}, a row a kind.

    held_out (M,): scores of patients of whom the generator can have no copy: members and held out are drawn of them,
    with repetition. planted: {kind: their scores (M,) with a copy among the films}, NaN where there is none.
    """
    rng, count, rows = np.random.default_rng(seed), len(held_out), []
    for kind, copied in planted.items():
        row, able = {"copies": kind}, np.flatnonzero(~np.isnan(copied))
        for share in SHARES if len(able) else ():
            seen, number = 0, round(share * count)
            for _ in range(DRAWS):
                members, others = (held_out[rng.integers(count, size=count)] for _ in range(2))
                members[:number] = copied[rng.choice(able, number)]
                seen += compare(members, others, threshold)["leak"]
            row[f"{share:.0%}"] = seen / DRAWS
        rows.append(row)
    return rows


def smallest_share(row: dict) -> str:
    """The smallest share of a row of `power` that is detected, as text; "" for none."""
    return next((name for name in map("{:.0%}".format, SHARES[1:]) if row.get(name, 0) >= POWER), "")


def verdict(part: dict) -> str:
    """What an audit can say; part: of `audit`."""
    if part["leak"]:
        return f"a leak: patients who were trained on are found better than those held out (p = {part['p']:.2g})"
    seen = {row["copies"]: smallest_share(row) for row in part["power"]}
    most = f"{SHARES[-1]:.0%}"
    if not any(seen.values()):
        return f"this audit cannot tell: not even planted copies of {most} of the members would have been seen"
    told = "; ".join(f"{kind}: {share or f'more than {most}'}" for kind, share in seen.items())
    planted = f"Copies of so many members would have been seen, {POWER:.0%} of the time ({told})"
    return f"no leak was seen. {planted}; of fewer copies, and of what is no copy, this audit cannot tell"


def verification(similarities: np.ndarray) -> dict:
    """How well probes find a film of their own patient; similarities (P, P) of probe (row) and film (column)."""
    labels = np.eye(len(similarities), dtype=bool)
    area = auroc(labels.ravel(), similarities.ravel(), np.ones((1, labels.size)))[0]
    first = similarities.argmax(axis=1) == np.arange(len(similarities))
    return {"patients": len(first), "AUC": float(area), "rank-1": float(first.mean())}


def report_scores(reports: Sequence[str], synthetic: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{measure: (scores of N patients' reports by the synthetic ones (N,), the same if each were among these (N,))}.

    Measures: words of the longest run that a report has in common with a synthetic one; its rare phrases that stand in
    one: runs of PHRASE words that no other patient's report has.
    """
    made = [report_words(report) for report in synthetic]
    runs = cache(lambda length: {run for words in made for run in _runs(words, length)})
    written = [report_words(report) for report in reports]
    phrases = [{*_runs(words, PHRASE)} for words in written]
    counts = Counter(phrase for own in phrases for phrase in own)
    rare = [{phrase for phrase in own if counts[phrase] == 1} for own in phrases]
    scores = {
        "longest common run": ([_longest(words, runs) for words in written], [len(words) for words in written]),
        "rare phrases": ([len(own & runs(PHRASE)) for own in rare], [len(own) for own in rare]),
    }
    return {name: tuple(np.array(values, dtype=float) for values in both) for name, both in scores.items()}


def exposures(reports: Sequence[str], canary: str, losses: Callable[[list[str]], np.ndarray], seed: int) -> np.ndarray:
    """The exposure (Carlini et al. 2019) of the canary in each of N reports, in bits (N,); NaN where there is none.

    canary: pattern of the planted sentence, whose digits are a patient's own; losses(texts) => (n,), a report model's.
    Log2 of the number of candidates (the canary, and ALTERNATIVES with other digits) over the canary's rank by loss.
    """
    rng, found = np.random.default_rng(seed), np.full(len(reports), np.nan)
    for row, report in enumerate(reports):
        if match := re.search(canary, report):
            drawn = [re.sub(r"\d", lambda _: str(rng.integers(10)), match[0]) for _ in range(ALTERNATIVES)]
            by_loss = np.asarray(losses([report.replace(match[0], text) for text in (match[0], *drawn)]))
            found[row] = np.log2(len(by_loss) / rankdata(by_loss)[0])  # equal losses share a rank
    return found


def _runs(words, length):
    return zip(*(words[start:] for start in range(length)))


def _longest(words, runs):
    """The length of the longest run of words that is in runs(its length): one is there only if its parts are."""
    lengths = range(1, len(words) + 1)
    return bisect_left(lengths, True, key=lambda length: runs(length).isdisjoint(_runs(words, length)))


def headline(audits: dict[str, dict]) -> list[dict]:
    """The main numbers, with the columns of `report.headline`; audits: {what is compared: of `audit`}."""
    rows = []
    for what, part in audits.items():
        area, found, false = (with_interval(**part[name]) for name in ("AUC", "members found", "held out found"))
        counts = f"{part['members']} trained on against {part['held out']} held out"
        rows.append(number(f"{what}: AUC, {counts}", area, "0.5"))
        rows.append(number(f"{what}: found", found, f"held out: {false}"))
        for row in part["power"]:
            seen = [f"{row[name]:.2f}" for name in map("{:.0%}".format, SHARES) if name in row]
            name = f"{what}: seen, {row['copies']} of {', '.join(map('{:.0%}'.format, SHARES[1:]))} of members"
            rows.append(number(name, ", ".join(seen[1:]) or "–", f"false alarms: {seen[0]}" if seen else "–", "1"))
    return rows


def as_markdown(result: dict) -> str:
    """audit.md; result: of audit_privacy.py."""
    attacker = "The attacker finds a film of {patients} patients by another one: AUC {AUC:.4f}, rank-1 {rank-1:.3f}."
    parts = [f"# Privacy audit of {result['synthetic']}", attacker.format(**result["attacker"])]
    parts += [f"**{what[0].upper()}{what[1:]}: {verdict(part)}.**" for what, part in result["audits"].items()]
    parts += [markdown(result["headline"]), "![power](power.png)"]
    copied = markdown(share_columns(result["copies"], "share"))
    return "\n\n".join([*parts, "Copies of training films, by their pixels (evaluation/copies.py):", copied]) + "\n"


def draw_power(audits: dict[str, dict], path: Path) -> None:
    """The power curves, a panel for each of the audits."""
    figure = Figure(figsize=(5 * len(audits), 4), layout="constrained")
    for axes, (what, part) in zip(figure.subplots(1, len(audits), squeeze=False)[0], audits.items()):
        for row in part["power"]:
            seen = {100 * share: row[f"{share:.0%}"] for share in SHARES if f"{share:.0%}" in row}
            axes.plot([*seen], [*seen.values()], "o-", label=row["copies"])
        for level in (LEVEL, POWER):
            axes.axhline(level, color="grey", linestyle=":")
        axes.set(title=what, xlabel="members of whom there is a copy, %", ylabel="seen", ylim=(-0.02, 1.02))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
