"""Do request, image and report agree? Labels and readings in, shares and Cohen's kappa out.

Labels are codes (N, 14). A *reading* is what a judge says of N images or reports: (N, 14) float, 1 present, 0 absent,
NaN where it cannot say, for a finding that it does not know or where there is no report.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from evaluation import metrics
from utils.findings import FINDINGS, PRESENT, UNCERTAIN


def agreement(asked: np.ndarray, image: np.ndarray, report: np.ndarray | None) -> pd.DataFrame:
    """Agreement of request, image and report per finding => DataFrame indexed by finding and "mean".

    asked (N, 14) bool; image and report: readings (None: NaN throughout). Columns: how many were asked for; the share
    in which all three agree; the shares of the asked ones that image and report show; Cohen's kappa (1960) of each two.
    NaN without readings, or where too few were asked for.
    """
    report, rows = np.full(asked.shape, np.nan) if report is None else report, []
    for wanted, shown, told in zip(*(readings.T.astype(float) for readings in (asked, image, report))):
        both = ~np.isnan(shown) & ~np.isnan(told)
        rows.append({
            "asked": wanted.sum(),
            "all three": metrics.mean_or_nan(((wanted == shown) & (shown == told))[both]),
            "seen in the image": metrics.mean_or_nan(shown[wanted == 1]),
            "told in the report": metrics.mean_or_nan(told[wanted == 1]),
            "kappa request-image": _kappa(wanted, shown), "kappa request-report": _kappa(wanted, told),
            "kappa image-report": _kappa(shown, told),
        })  # fmt: skip
    table = pd.DataFrame(rows, index=list(FINDINGS))
    table.loc[table["asked"] < metrics.MINIMUM_POSITIVES, table.columns != "asked"] = np.nan
    table.loc["mean"] = table.mean()
    table.loc["mean", "asked"] = table["asked"].iloc[:-1].sum()
    return table.astype({"asked": int})


def _kappa(one, other):
    """Cohen's kappa of two columns of readings; NaN where both are NaN throughout, or hold one and the same value."""
    both = ~np.isnan(one) & ~np.isnan(other)
    if not both.any() or len(np.unique([one[both], other[both]])) < 2:
        return np.nan
    return cohen_kappa_score(one[both], other[both])


def complete_agreement(
    labels: np.ndarray, image: np.ndarray, report: np.ndarray | None, subjects: np.ndarray, seed: int
) -> dict:
    """The share of pairs in which request, image and report agree on every finding.

    labels (N, 14): the codes asked for; image and report: readings; subjects (N,): patients. A finding counts in a pair
    where both readings have it and the request does not leave it uncertain; every code other than 1 asks for its
    absence. A pair in which no finding counts is left out.

    N: pairs; findings: how many count in some pair; all three: the share, with its interval (`share_interval`); then
    the shares in which two agree on the same findings. Without `report` only request-image is a number.
    """
    counted, agrees = pairs_that_agree(labels, image, report)
    kept = counted.any(axis=1)
    agrees = {name: values[kept] for name, values in agrees.items()}
    shares = dict.fromkeys(("all three", "low", "high", "request-image", "request-report", "image-report"), np.nan)
    if kept.any():
        shares |= {name: float(values.mean()) for name, values in agrees.items()}
        if "all three" in agrees:
            shares["low"], shares["high"] = share_interval(agrees["all three"], kept[kept], subjects[kept], seed)
    return {"N": int(kept.sum()), "findings": int(counted.any(axis=0).sum()), **shares}


def pairs_that_agree(
    labels: np.ndarray, image: np.ndarray, report: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """=> (which findings count in each pair, (N, 14) bool; which pairs agree on all of these, {name: (N,) bool}).

    See `complete_agreement`, also for the names; without `report` there is only "request-image".
    """
    asked, counted = labels == PRESENT, (labels != UNCERTAIN) & ~np.isnan(image)
    same = {"request-image": asked == image}
    if report is not None:
        counted &= ~np.isnan(report)
        same |= {"request-report": asked == report, "image-report": image == report}
        same["all three"] = same["request-image"] & same["request-report"]
    return counted, {name: (equal | ~counted).all(axis=1) for name, equal in same.items()}


def share_interval(right: np.ndarray, counted: np.ndarray, subjects: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % interval of sum(right) / sum(counted), both (N,) numbers of N rows, by patients drawn again.

    Wilson's, with as many trials as patients, where all are right or none is, which no draw of patients can widen.
    """
    right, counted, subjects = (np.asarray(values)[np.asarray(counted) > 0] for values in (right, counted, subjects))
    if not counted.sum():
        return np.nan, np.nan
    if right.sum() in (0, counted.sum()):
        patients = len(np.unique(subjects))
        interval = binomtest(patients if right.any() else 0, patients).proportion_ci(0.95, "wilson")
        return interval.low, interval.high
    weights = metrics.patient_weights(subjects, seed)
    return tuple(np.quantile(weights @ right / (weights @ counted), (0.025, 0.975)).tolist())
