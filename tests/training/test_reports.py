import numpy as np
import pandas as pd
import pytest
import torch
from small_data import CANONICAL, REPORT, REPORTS

import train_bart
from training.reports import ReportExamples, is_report_list, read_report_list, study_reports
from utils.errors import InputError


def test_a_report_list(tmp_path):
    path = tmp_path / "reports.csv"
    frame = pd.DataFrame(
        {"uid": range(1000), "findings": "Clear  lungs.", "impression": "Normal.", "problems": "normal"}
    )
    frame.loc[1, "findings"], frame.loc[2, "impression"] = None, None
    frame.loc[3, ["findings", "impression"]] = None
    frame.to_csv(path, index=False)
    assert is_report_list(path) and is_report_list(str(path))
    table = read_report_list(path)
    assert table["report"].tolist()[:4] == [
        "FINDINGS: Clear lungs. IMPRESSION: Normal.", "IMPRESSION: Normal.", "FINDINGS: Clear lungs.", "",
    ]  # fmt: skip
    shares = table["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.8, abs=0.05) and shares["test"] == pytest.approx(0.1, abs=0.04)
    frame.iloc[500:].to_csv(path, index=False)  # a row's split is its own
    assert read_report_list(path)["split"].tolist() == table["split"].tolist()[500:]


def test_what_is_no_report_list(tmp_path):
    path = tmp_path / "reports.csv"
    assert not is_report_list(path) and not is_report_list(tmp_path)
    path.write_text("image_path,findings,impression\n")
    assert not is_report_list(path)
    path.write_text("findings,impression\nClear.,Normal.\n")
    with pytest.raises(InputError, match="has no column 'uid'"):
        read_report_list(path)
    path.write_text("uid,findings,impression\n")
    with pytest.raises(InputError, match="has no rows"):
        read_report_list(path)
    path.write_text("uid,findings,impression\n7,Clear.,Normal.\n7,Clear.,Normal.\n")
    with pytest.raises(InputError, match=r"repeated rows, e\.g\. for uid 7"):
        read_report_list(path)


def test_the_authors_list_of_reports(tmp_path, capsys):
    path = tmp_path / "lm.csv.gz"
    frame = pd.DataFrame(
        {"split": ["train", "validate", "test", "train", " "], "text": [REPORT, "none", REPORT, "", REPORT]}
    )
    frame.to_csv(path, index=False)
    assert is_report_list(path)
    table = read_report_list(path)
    assert table["report"].tolist() == [CANONICAL, "", CANONICAL, ""]
    assert table["split"].tolist() == ["train", "validate", "test", "train"] and table["study_id"].is_unique
    printed = capsys.readouterr().out
    assert "4 of 5 rows kept (1 without split dropped)" in printed
    assert "2 train, 1 validate, 1 test reports; it names no view and no patient" in printed

    frame.assign(split=["train", "validate", "test", " ", "dev"]).to_csv(path, index=False)
    with pytest.raises(InputError, match="data row 5: unknown split 'dev'"):
        read_report_list(path)
    frame.assign(split="").to_csv(path, index=False)
    with pytest.raises(InputError, match="has no rows"):
        read_report_list(path)
    frame.assign(image_path="p10/p10000001/s50000001/d1.jpg").to_csv(path, index=False)
    assert not is_report_list(path)


def test_copies_of_a_report_share_a_split(tmp_path):
    path = tmp_path / "reports.csv"
    uids = [f"train/patient{number:05d}/study{study}/view1.jpg" for number in range(60) for study in (1, 2)]
    uids += [f"hospital/{number}/{view}" for number in range(60) for view in "ab"]
    pd.DataFrame({"uid": uids, "findings": "Clear lungs.", "impression": ""}).to_csv(path, index=False)
    splits = read_report_list(path)["split"]
    assert splits.nunique() == 3
    assert splits.groupby([uid.split("/")[1] for uid in uids]).nunique().max() == 1


def test_near_copies_of_a_report_share_a_split(tmp_path, capsys):
    path = tmp_path / "reports.csv"
    marks = ("XXXX", "___", "[**2101-3-4**]", "3/4/2101")
    names = [f"{a}{b}{c}" for a in "bcdf" for b in "aeiou" for c in "ghkl"]
    rows = [
        (number, f"The {name} is stable  since {mark}, {10 + place} mm.".upper() if place == 1 else
         f"The {name} is stable since {mark}, {10 + place} mm.", None if place == 2 else "")
        for number, (name, place, mark) in enumerate((name, *copy) for name in names for copy in enumerate(marks))
    ]  # fmt: skip
    pd.DataFrame(rows, columns=["uid", "findings", "impression"]).to_csv(path, index=False)
    splits = read_report_list(path)["split"]
    assert "240 reports are near-copies of another" in capsys.readouterr().out
    assert splits.nunique() == 3 and splits.groupby(np.repeat(names, 4)).nunique().max() == 1


def test_copies_join_patients_in_chains(tmp_path):
    """A report in two patients' names joins these; one that stands for most of the list is trained on."""
    path = tmp_path / "reports.csv"
    finding = ("There is a mass in the lung.", "There is a fracture of the rib.")
    uids = [f"train/patient{number}/study{study}/view1.jpg" for number in range(400) for study in (1, 2)]
    texts = [f"Case of {number // 4 * 'a'}: {finding[study]}" for number in range(400) for study in (0, 1)]
    pd.DataFrame({"uid": uids, "findings": texts, "impression": ""}).to_csv(path, index=False)
    splits = read_report_list(path)["split"]
    assert splits.nunique() == 3 and splits.groupby(np.arange(800) // 8).nunique().max() == 1
    pd.DataFrame({"uid": uids, "findings": finding * 400, "impression": ""}).to_csv(path, index=False)
    assert set(read_report_list(path)["split"]) == {"train"}


def test_studies_count_once_and_lose_what_is_empty(capsys):
    table = pd.DataFrame(
        {
            "dicom_id": list("abcdef"),
            "subject_id": [1, 1, 1, 2, 2, 3],
            "study_id": [10, 10, 11, 20, 21, 30],
            "split": ["train"] * 4 + ["test", "train"],
            "report": ["FINDINGS: Clear lungs."] * 2 + ["", "   ", "IMPRESSION: No edema.", "FINDINGS: ___."],
        }
    )
    studies = study_reports(table)
    assert studies["study_id"].tolist() == [10, 21]
    assert "2 of 5 studies have one; cleaning left no sentence of 1" in capsys.readouterr().out
    with pytest.raises(InputError, match="REPORTS_ROOT"):
        study_reports(table[table["report"].str.strip() == ""])


def test_long_and_foreign_reports(autoencoder, capsys):
    reports = ["IMPRESSION: " + "effusion " * 3000, "IMPRESSION: Épanchement pleural 中.", "A."]
    examples = ReportExamples(reports, autoencoder, batch_size=2)
    assert "1 of 3 reports cut at 64" in capsys.readouterr().out
    assert examples.lengths.max() == 64 and examples.tokens[0][-1] == 2
    batch = examples.collate([examples[row, row] for row in range(3)])
    assert batch["input_ids"].shape == (3, 64) and batch["noise"].shape == (3, 16)
    assert torch.isfinite(train_bart.compute_loss(autoencoder, batch, latent_noise=0.1))
    assert autoencoder.tokenizer.decode(examples.tokens[1], skip_special_tokens=True) == reports[1]


def test_noise_of_an_example_follows_from_its_seed(autoencoder):
    examples = ReportExamples(REPORTS, autoencoder, batch_size=2)
    assert torch.equal(examples[0, 5]["noise"], examples[1, 5]["noise"])
    assert not torch.equal(examples[0, 5]["noise"], examples[0, 6]["noise"])


def test_batches_hold_reports_of_a_like_length(autoencoder):
    rng = np.random.default_rng(0)
    reports = ["effusion " * int(count) for count in rng.integers(1, 40, size=400)]
    examples = ReportExamples(reports, autoencoder, batch_size=8)
    order = examples.order(np.random.default_rng(1))
    assert sorted(order) == list(range(400))
    for head in (0, 3):  # whether or not the epoch before ended with a batch
        odd = ReportExamples(reports[:397], autoencoder, batch_size=8).order(np.random.default_rng(1), head)
        assert sorted(odd) == list(range(397))
        whole = odd[head : head + (397 - head) // 8 * 8].reshape(-1, 8)
        assert np.ptp(examples.lengths[whole], axis=1).mean() < 3
    spread = np.ptp(examples.lengths[order].reshape(-1, 8), axis=1)
    assert spread.mean() < 3 < np.ptp(examples.lengths)
    assert not np.array_equal(order, examples.order(np.random.default_rng(2)))
