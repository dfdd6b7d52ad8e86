"""The statistics of a privacy audit: planted leaks are seen, exchangeable patients are not told apart."""

import numpy as np
import pytest

from evaluation import privacy
from utils.findings import FINDINGS


@pytest.fixture(scope="module")
def scores():
    """Scores of 300 patients of whom there is no copy, and of the same with a copy of 80 % of them."""
    rng = np.random.default_rng(3)
    nobody = rng.normal(size=300)
    return nobody, np.where(rng.random(300) < 0.8, 6.0, nobody)


def test_a_few_copied_patients_are_seen_where_the_area_does_not_move(scores):
    nobody, copied = scores
    members = nobody.copy()
    members[:15] = copied[:15]
    threshold = np.quantile(nobody, 0.99)
    found, none = privacy.compare(members, nobody, threshold), privacy.compare(nobody, nobody, threshold)
    assert found["leak"] and found["AUC"] < 0.55 and found["members found"] > 4 * found["held out found"]
    assert not none["leak"] and none["AUC"] == pytest.approx(0.5) and none["p"] == 1


def test_a_weak_leak_of_all_patients_is_seen_by_the_area():
    rng = np.random.default_rng(1)
    members, held_out = rng.normal(0.5, 1, size=300), rng.normal(size=300)
    assert privacy.compare(members, held_out, threshold=9.0)["leak"]
    assert not privacy.compare(held_out, members, threshold=9.0)[
        "leak"
    ]  # found better because they were not trained on


def test_power_grows_with_the_share_and_false_alarms_stay_below_the_level(scores):
    nobody, copied = scores
    missing = np.full(300, np.nan)
    seen, nothing = privacy.power(nobody, {"exact": copied, "none": missing}, np.quantile(nobody, 0.99), seed=1)
    assert seen["0%"] <= 0.1 and seen["1%"] < seen["5%"] <= seen["10%"] == 1
    assert privacy.smallest_share(seen) in ("2%", "5%") and nothing == {"copies": "none"}
    same = privacy.power(nobody, {"no copy": nobody}, np.quantile(nobody, 0.99), seed=1)[0]
    assert same["10%"] <= 0.1 and privacy.smallest_share(same) == ""


def test_the_verdict_says_leak_none_or_that_it_cannot_tell(scores):
    nobody, copied = scores
    threshold = np.quantile(nobody, 0.99)
    parts = {
        "a leak": privacy.audit(copied, nobody, {"exact": copied}, 1, threshold),
        "no leak was seen": privacy.audit(nobody, nobody, {"exact": copied, "weak": nobody}, 1, threshold),
        "cannot tell": privacy.audit(nobody, nobody, {"exact": nobody}, 1),
    }
    for words, part in parts.items():
        assert words in privacy.verdict(part)
    told = privacy.verdict(parts["no leak was seen"])
    assert (
        f"exact: {privacy.smallest_share(parts['no leak was seen']['power'][0])}" in told
        and "weak: more than 10%" in told
    )
    area = parts["a leak"]["AUC"]
    assert area["low"] < area["value"] < area["high"] and parts["a leak"]["members"] == 300
    rows = privacy.headline({"films": parts["cannot tell"]})
    assert rows[0]["value"].startswith("0.500 [0.4") and rows[1]["floor"].startswith("held out: 0.0")
    assert rows[2]["measure"] == "films: seen, exact of 1%, 2%, 5%, 10% of members" and rows[2]["value"].count(",") == 3


def test_scores_are_deviations_from_strangers_of_the_most_alike_requests(monkeypatch):
    monkeypatch.setattr(privacy, "STRANGERS", 2)
    labels = np.zeros((4, len(FINDINGS)), dtype=np.int8)
    labels[3, :5] = 1  # the last request is like no other one
    similarities = np.array([[0.9, 0.1, 0.3, 5.0], [0.1, 0.9, 0.3, 5.0], [0.1, 0.3, 0.9, 5.0], [0.2, 0.4, 0.6, 0.3]])
    score, threshold = privacy.stranger_scores(similarities, labels)
    assert score(np.diagonal(similarities))[:3] == pytest.approx([7, 7, 7])  # mean 0.2, deviation 0.1, without the 5.0
    assert -1 <= threshold <= 1  # of strangers
    assert privacy.verification(similarities) == {"patients": 4, "AUC": pytest.approx(32.5 / 48), "rank-1": 0.0}


def test_runs_and_rare_phrases_of_reports_are_counted():
    common = "There is no pneumothorax and the heart is not enlarged."
    reports = [
        f"{common} A bullet lies behind the third rib.",
        f"{common} The stomach is in the chest on the right side.",
    ]
    made = [f"Clear lungs. {common}", "A bullet lies behind the third rib. Clear lungs."]
    found = privacy.report_scores(reports, made)
    assert found["longest common run"][0].tolist() == [10, 10] and found["longest common run"][1].tolist() == [17, 20]
    rare, copied = found["rare phrases"]
    assert rare.tolist() == [3, 0] and copied.tolist() == [7, 10]  # some runs reach over two sentences


def test_a_canary_that_a_model_knows_is_exposed_and_one_that_it_does_not_is_not():
    known = "Clear lungs. Reference 123."
    reports = [known, "Clear lungs. Reference 456.", "Clear lungs."]

    def losses(texts):
        return [0.0 if text == known else 1 + int(text[-4:-1]) / 1000 for text in texts]

    found = privacy.exposures(reports, r"Reference \d+\.", losses, seed=1)
    assert found[0] == 7 and 0 < found[1] < 3 and np.isnan(found[2])
    many = [f"Reference {number:03d}." for number in range(1000)]
    losses_of = dict(zip(many, np.random.default_rng(0).permutation(1000)))
    nobody = privacy.exposures(
        many[:300], r"Reference \d+\.", lambda texts: [losses_of[text] for text in texts], seed=1
    )
    assert nobody.mean() == pytest.approx(1 / np.log(2), abs=0.25)  # where all ranks are equally likely
