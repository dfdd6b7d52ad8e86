"""audit_privacy.py on drawn patients: a copier is caught, films of nobody are not, and bad input is one sentence."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import contents, flags, run_script, says
from tiny_models import make_autoencoder

from phantom import draw_tree
from utils.findings import FINDINGS
from utils.mimic_cxr import ONE_STUDY, read_table, write_tree

GROUPS = tuple(f"p{number}" for number in range(13, 20))
FIXED = {
    "VIEWS": "()", "HOLD_OUT": (*GROUPS, ONE_STUDY), "ATTACKER": GROUPS[3:], "VERIFIER_MODEL": "test_resnet",
    "VERIFIER_IMAGE_SIZE": 32, "VERIFIER_STEPS": 60, "VERIFIER_LEARNING_RATE": 5e-3, "DEVICE": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    root = tmp_path_factory.mktemp("patients") / "tree"
    draw_tree(root, studies=400, image_size=32, seed=3, studies_per_patient=4)
    return root


@pytest.fixture
def audit(patients, tmp_path):
    """A function: constants => what audit_privacy.py ended with; all runs share one cache, so one attacker."""

    def run(**constants):
        places = {"DATA_ROOT": patients, "CACHE_DIR": patients.parent / "cache", "OUTPUT": tmp_path / "audit"}
        return run_script("audit_privacy", *flags(**FIXED | places | {"SYNTHETIC": tmp_path / "made"} | constants))

    return run


def make_films(root, requests, films, first=90_000_000):
    """Writes a synthetic tree, or adds to it: for each request (a row) the image and report of a row of films."""
    films = films.assign(source=requests["dicom_id"].to_numpy(), study_id=first + np.arange(len(films)))
    films = films.assign(dicom_id=[f"made-{number}" for number in films["study_id"]], subject_id=films["study_id"])
    for row in films.itertuples():
        path = root / "files" / "p90" / f"p{row.subject_id}" / f"s{row.study_id}" / f"{row.dicom_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(row.image_path).read_bytes())
    write_tree(root, films, films[["dicom_id", "source"]])


def test_a_copier_is_caught_and_films_of_nobody_are_not(audit, patients, tmp_path, capsys):
    assert audit(SYNTHETIC="") == 0
    assert f"make films with LABELS_CSV {tmp_path / 'audit'}/requests.csv" in capsys.readouterr().out
    requests = pd.read_csv(tmp_path / "audit" / "requests.csv", dtype={"dicom_id": str})
    assert {*FINDINGS} < {*requests} and requests["subject_id"].is_unique
    members = requests[requests["role"] == "member"]
    assert len(members) == len(requests) / 2 >= 20

    everybody = read_table(patients)
    trained = read_table(patients, hold_out=FIXED["HOLD_OUT"], splits=("train",))
    assert {*members["dicom_id"]} <= {*trained["dicom_id"]}
    rest = requests[requests["role"] == "held out"]
    groups = ("p" + rest["subject_id"].astype(str).str[:2]).unique()
    assert {*groups} <= {*GROUPS[:3]} and not {*rest["subject_id"]} & {*trained["subject_id"]}

    nobody = everybody[~everybody["subject_id"].isin(requests["subject_id"])].iloc[: len(requests)]
    make_films(tmp_path / "made", requests, nobody)
    before = contents(tmp_path / "made")
    assert audit() == 0
    found = json.loads((tmp_path / "audit" / "evaluation.json").read_text())
    films, *reports = found["audits"].values()
    assert not films["leak"] and found["attacker"]["AUC"] > 0.8 and len(reports) == 2
    kinds = [row["copies"] for row in films["power"]]
    assert kinds[0] == "exact" and "mirrored" in kinds and kinds[-1] == "another film of the patient"
    assert [row["films for"] for row in found["copies"]] == ["member", "held out"]
    assert contents(tmp_path / "made") == before
    assert (tmp_path / "audit" / "power.png").stat().st_size > 0

    first = requests.head(3)
    make_films(tmp_path / "made", first, nobody.tail(3), first=90_900_000)  # further films of three members alone
    assert audit() == 0
    assert f"{len(requests)} of {len(requests)} requests have films" in (said := capsys.readouterr().out)
    assert "1 of each are compared" in said
    assert json.loads((tmp_path / "audit" / "evaluation.json").read_text())["audits"]["films"] == films

    own = everybody.set_index("dicom_id", drop=False).loc[members["dicom_id"]]
    make_films(tmp_path / "copied", requests, pd.concat([own, nobody.iloc[len(own) :]], ignore_index=True))
    capsys.readouterr()
    assert audit(SYNTHETIC=tmp_path / "copied") == 0
    assert "Films: a leak" in capsys.readouterr().out
    found = json.loads((tmp_path / "audit" / "evaluation.json").read_text())
    assert all(part["leak"] for part in found["audits"].values()) and found["copies"][0]["share"] == 1
    assert found["headline"][0]["measure"].startswith(f"films: AUC, {len(members)} trained on against {len(members)}")


def test_canaries_are_audited_of_the_report_model_of_the_same_hold_out(audit, tokenizer, tmp_path):
    root, bart = tmp_path / "canaries", tmp_path / "bart"
    draw_tree(root, studies=400, image_size=32, seed=3, studies_per_patient=4, canaries=0.6)
    make_autoencoder(tokenizer).save_pretrained(bart)
    training = {"constants": {"HOLD_OUT": FIXED["HOLD_OUT"]}, "step": 1}
    (bart / "training.json").write_text(json.dumps(training))
    assert audit(DATA_ROOT=root, SYNTHETIC="") == 0
    requests = pd.read_csv(tmp_path / "audit" / "requests.csv", dtype={"dicom_id": str})
    everybody = read_table(root)
    others = everybody[~everybody["subject_id"].isin(requests["subject_id"])]
    make_films(tmp_path / "made", requests, others.iloc[: len(requests)].assign(report=""))
    asked = {"DATA_ROOT": root, "BART_CHECKPOINT": bart, "CANARY": r"Reference \d{6}\."}
    assert audit(**asked) == 0
    canaries = json.loads((tmp_path / "audit" / "evaluation.json").read_text())["audits"]["reports, canaries"]
    assert canaries["members"] >= 10 and not canaries["leak"] and canaries["mean of members"] < 3
    says(audit(**asked | {"CANARY": "Number \\d"}), "0 members and 0 held-out patients", "CANARY")
    (bart / "training.json").write_text(json.dumps({**training, "constants": {"HOLD_OUT": ["p19"]}}))
    says(audit(**asked), "BART_CHECKPOINT", "was trained with ('p19',) held out")


def test_bad_input_is_one_sentence(audit, patients, tmp_path):
    says(audit(HOLD_OUT=GROUPS), "'one study'", "HOLD_OUT")
    says(audit(ATTACKER=GROUPS), "some, but not all, teach the attacker")
    says(audit(ATTACKER=("p10",)), "ATTACKER ('p10',)")
    says(audit(ATTACKER="()"), "some, but not all")
    says(audit(HOLD_OUT=(*GROUPS, "p10", "p11", "p12", ONE_STUDY)), "0 members and 60 held-out patients", "VIEWS")
    says(audit(CANARY="("), "CANARY '(' is no pattern")
    says(audit(), "made has no synthetic.csv")
    assert audit(SYNTHETIC="") == 0
    says(audit(SEED=7), "requests of other patients", "another OUTPUT")
    requests = pd.read_csv(tmp_path / "audit" / "requests.csv", dtype={"dicom_id": str})
    make_films(tmp_path / "made", requests.head(5), read_table(patients).iloc[:5])
    says(audit(), "5 members and 0 held-out patients", "have films", "LABELS_CSV")
    assert not (tmp_path / "audit" / "evaluation.json").exists()
