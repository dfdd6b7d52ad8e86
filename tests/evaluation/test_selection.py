"""Which of several candidates are kept: by a judge's probabilities, and by what reports state."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from evaluation import judges
from evaluation.judges import Judge, JudgeSettings, first_half
from evaluation.selection import candidate_seed, keep_candidates, score_candidates
from utils.errors import InputError
from utils.findings import FINDINGS

# ---- score, agreement, halves


def some(*names):
    return np.isin(FINDINGS, names)


def judge_of(*known, threshold=0.5):
    return SimpleNamespace(thresholds=np.full(14, threshold), known=some(*known))


def test_the_score_is_the_mean_log_probability_of_what_was_asked():
    labels = np.zeros((3, 14), dtype=int)
    labels[0, some("Edema")] = 1
    labels[1, some("Edema")] = -1
    labels[2, some("Edema", "Fracture")] = -2
    probabilities = np.full((3, 14), 0.9)
    probabilities[:, some("Edema")], probabilities[:, some("Fracture")] = 0.8, 0.3
    scores, agrees = score_candidates(judge_of("Edema", "Fracture"), probabilities, labels)
    np.testing.assert_allclose(
        scores, [(np.log(0.8) + np.log(0.7)) / 2, (np.log(0.2) + np.log(0.7)) / 2, 0], rtol=1e-12
    )
    assert agrees.tolist() == [True, False, True]  # the last one asks for nothing that can be told
    assert not score_candidates(judge_of("Edema", threshold=0.81), probabilities, labels)[1][0]


def test_a_certain_error_costs_much_but_not_everything():
    scores, agrees = score_candidates(judge_of("Edema"), np.ones((1, 14)), np.zeros((1, 14)))
    assert scores == pytest.approx(np.log(1e-6)) and not agrees[0]


def test_halves_are_of_patients_and_of_nothing_else():
    table = pd.DataFrame({"subject_id": np.repeat(np.arange(10_000_000, 10_002_000), 2), "split": "train"})
    half = first_half(table)
    assert (half[::2] == half[1::2]).all() and 0.45 < half.mean() < 0.55
    order = np.random.default_rng(0).permutation(len(table))
    assert (first_half(table.iloc[order]) == half[order]).all()


def test_the_first_candidate_has_the_seed_of_its_image():
    seeds = [candidate_seed(seed, number) for seed in (5, 6) for number in range(3)]
    assert seeds[0] == 5 and seeds[3] == 6
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**31 for seed in seeds)


# ---- candidates


class NoNetwork:
    num_features = 1

    def eval(self):
        return self


def test_a_pair_agrees_when_image_and_report_state_what_was_requested():
    judge = Judge(NoNetwork(), JudgeSettings(), np.full(14, 0.5), some("Edema", "Pneumothorax"))
    labels = np.zeros((6, 14), dtype=int)
    labels[:, some("Edema")], labels[:, some("Pneumothorax")], labels[:, some("Fracture")] = 1, -1, -2
    shown = np.where(labels == 1, 0.9, 0.1)
    shown[5] = 0.1
    reports = [
        "FINDINGS: Pulmonary edema. There is no pneumothorax.",
        "FINDINGS: Pulmonary edema and a rib fracture.",
        "FINDINGS: Pulmonary edema. Large right pneumothorax.",
        "FINDINGS: Pulmonary edema. There is no pulmonary edema.",
        "",
        "FINDINGS: Pulmonary edema.",
    ]
    scores, agrees = score_candidates(judge, shown, labels)
    assert agrees.tolist() == [True] * 5 + [False]
    paired, agree = score_candidates(judge, shown, labels, reports)
    assert agree.tolist() == [True, True, False, False, False, False], "an uncertain finding may be stated"
    assert (scores - paired).tolist() == [0, 0, 1, 1, 1, 0]


def test_of_each_request_the_first_that_agrees_is_kept_else_the_best():
    requests = np.array([0, 0, 0, 1, 1, 1, 2])
    scores = np.array([-1.0, -3.0, -2.0, -3.0, -1.0, -2.0, -9.0])
    agrees = np.array([False, True, True, False, False, False, False])
    kept = keep_candidates(requests, scores, agrees, "first")
    assert np.flatnonzero(kept).tolist() == [1, 4, 6]
    order = np.array([6, 3, 0, 4, 1, 5, 2])  # requests need not stand together
    assert sorted(order[keep_candidates(requests[order], scores[order], agrees[order], "first")]) == [1, 4, 6]
    assert np.flatnonzero(keep_candidates(requests, scores, agrees, "agreeing")).tolist() == [1, 2]


def test_a_damaged_selector_csv_is_named(tmp_path):
    (tmp_path / "selector.csv").write_text("subject\n1\n")
    with pytest.raises(InputError, match="selector.csv has no column 'subject_id'"):
        judges.selector_patients(tmp_path)
