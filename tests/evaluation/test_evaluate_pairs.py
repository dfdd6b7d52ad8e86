"""evaluate_pairs.py on drawn trees: known answers, bad input, and that it runs through."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import EVALUATION, by, flags, launch
from small_data import generated_tree

from evaluation import images, judges, sections
from evaluation.judges import first_half
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.folders import MANIFEST_FILE, WRITTEN_REPORTS
from utils.mimic_cxr import image_file, read_table, write_tree


def test_a_tree_against_itself_has_fid_zero_and_the_judges_own_auroc(real, evaluate):
    found = evaluate(SYNTHETIC=real)
    assert by(found["image_quality"], "images")["synthetic"]["FID"] == pytest.approx(0, abs=1e-4)
    assert found["auroc"]["synthetic"] == found["auroc"]["real"]
    assert by(found["image_quality"], "images")[sections.FLOOR]["FID"] > 0
    reports = by(found["reports"], "reports")
    assert reports["synthetic"]["BLEU-4"] == pytest.approx(1) and reports["synthetic"]["ROUGE-L"] == pytest.approx(1)
    assert reports["shuffled among images"]["clinical F1 micro"] < reports["synthetic"]["clinical F1 micro"]
    assert reports["constant normal report"]["ROUGE-L"] < 1
    assert found["pairs"]["synthetic"] == found["pairs"]["real"]
    complete = by(found["complete_agreement"], "pairs")
    assert {**complete["synthetic"], "pairs": "real"} == complete["real"] and complete["real"]["request-report"] > 0.5
    assert complete[sections.SHUFFLED]["request-report"] < complete["synthetic"]["request-report"]


def test_rules_read_any_wording_and_learn_nothing(real, evaluate, tmp_path):
    found = evaluate(SYNTHETIC=real, TEXT_JUDGE="rules")
    rows = by(found["reports"], "reports")
    assert found["text_judge"] == judges.RulesJudge.name
    assert rows["synthetic"]["clinical F1 micro"] > 0.98 and rows["label-only"]["clinical F1 micro"] > 0.98
    assert rows["shuffled among images"]["clinical F1 micro"] < 0.8
    page = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert judges.RulesJudge.name in page and "TF-IDF" not in page


def test_other_real_images_are_at_the_floor(real, evaluate, tmp_path):
    generated_tree(tmp_path / "others", real, ("validate",))
    found = evaluate(SYNTHETIC=tmp_path / "others", JUDGE_PATIENTS="second half")
    rows, train = by(found["image_quality"], "images"), read_table(real, splits=("train",))
    assert 0.5 < rows["synthetic"]["FID / floor"] < 2 and rows[sections.FLOOR]["FID deviation"] >= 0
    assert rows["synthetic"]["N"] == rows[sections.FLOOR]["N"] == rows[sections.COPYING]["N"]
    splits = {"train": int(first_half(train).sum()), "validate": rows["synthetic"]["N"]}
    assert found["unseen"]["splits"] == splits and found["unseen"]["N"] == sum(splits.values())


def test_real_pairs_that_set_thresholds_are_no_ceiling(real, evaluate):
    validation = read_table(real, splits=("validate",))
    found = evaluate(SYNTHETIC=real, SPLIT="validate", TEXT_JUDGE="rules")
    complete = by(found["complete_agreement"], "pairs")
    assert complete["synthetic"]["N"] == len(validation)
    assert complete["real"]["N"] == (~first_half(validation)).sum() < len(validation)


def test_copied_training_images_are_found_and_shown(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "copies", real, ("train",))
    found = evaluate(SYNTHETIC=tmp_path / "copies")
    copied, *planted, others = found["memorisation"]
    assert copied["share"] == 1 and copied["median distance"] < 0.01 < others["median distance"]
    assert len(planted) == 6 and all(row["images"].startswith("planted") for row in planted)
    assert found["synthetic"]["N"] == len(made)
    for name in ("closest.png", "evaluation.md", "constants.json"):
        assert (tmp_path / "evaluation" / name).stat().st_size > 0
    assert (tmp_path / "copies.html").stat().st_size > 0  # beside the tree
    with Image.open(tmp_path / "evaluation" / "closest.png") as picture:
        assert min(picture.size) > 100
    # label vectors of training rows: each has its source's report as reference
    assert by(found["reports"], "reports")["synthetic"]["N with a reference"] == len(made)


def test_a_planted_label_flip_is_in_the_agreement(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "flipped", real, ("test",))
    flipped = made["Pleural Effusion"].to_numpy() == 1
    write_tree(
        tmp_path / "flipped", made.assign(**{"Pleural Effusion": np.where(flipped, 0, made["Pleural Effusion"])})
    )
    evaluate(SYNTHETIC=tmp_path / "flipped")
    told = pd.read_csv(tmp_path / "evaluation" / "agreement.csv.gz", dtype={"dicom_id": str})
    told = told[told["finding"] == "Pleural Effusion"].set_index("dicom_id").loc[made["dicom_id"]]
    assert flipped.any() and (told["asked"][flipped] == 0).all() and (told["report"][flipped] == 1).mean() > 0.5


def test_what_is_wrong_with_reports_as_texts_is_counted(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "odd", real, ("test",))
    reports = made["report"].to_numpy()
    reports[:3] = "FINDINGS: Severe cardiomegaly. No cardiomegaly."
    reports[3:5] = "FINDINGS: No change since ___."
    reports[5] = "FINDINGS: No edema edema edema."
    write_tree(tmp_path / "odd", made.assign(report=reports))
    row, train = evaluate(SYNTHETIC=tmp_path / "odd")["texts"]
    assert [row[name] for name in ("N", "marks", "contradictions", "stuttering")] == [len(made), 2, 3, 1]
    assert row["distinct"] == pytest.approx(len(set(reports)) / len(made))
    assert [train[name] for name in ("marks", "contradictions", "stuttering", "distinct")] == [0, 0, 0, 1]
    text = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert (
        "## Reports as texts" in text
        and f"| synthetic | 2 of {len(made)} | {row['comparisons']} of {len(made)} | 3 of {len(made)} |" in text
    )
    assert "agree on every finding" in (tmp_path / "odd.html").read_text()


def test_a_tree_without_reports_gets_image_metrics_only_and_is_told_so(real, evaluate, tmp_path):
    generated_tree(tmp_path / "silent", real, ("test",), reports=False)
    names = read_table(real, splits=("test",))["dicom_id"]
    pd.DataFrame({"dicom_id": names, "report": "Clear lungs."}).to_csv(tmp_path / "reports.csv", index=False)
    found = evaluate(SYNTHETIC=tmp_path / "silent", WRITTEN=tmp_path)
    assert "written_reports" not in found and f"WRITTEN, {tmp_path}, are not evaluated" in found["notes"][1]
    assert "reports" not in found and "texts" not in found and list(found["pairs"]) == ["synthetic", "real"]
    complete = by(found["complete_agreement"], "pairs")
    assert complete["synthetic"]["request-image"] is not None and complete["synthetic"]["all three"] is None
    assert (
        "has no reports" in found["notes"][0]
        and "has no reports" in (tmp_path / "evaluation/evaluation.md").read_text()
    )
    assert found["auroc"]["synthetic"]["mean"]["auroc"] is not None


def test_unreadable_images_are_named_counted_and_left_out(real, evaluate, tmp_path, capfd):
    made = generated_tree(tmp_path / "torn", real, ("test",))
    row = made.iloc[3]
    torn = image_file(tmp_path / "torn", row["subject_id"], row["study_id"], row["dicom_id"])
    torn.write_bytes(torn.read_bytes()[:200])
    found = evaluate(SYNTHETIC=tmp_path / "torn")
    assert found["synthetic"]["N"] == len(made) - 1 and found["synthetic"]["unreadable"] == 1
    said = "".join(capfd.readouterr())
    assert torn.name in said and f"1 of {len(made)} images cannot be read" in said


def test_written_reports_of_real_images_with_their_ceiling_and_floor(real, evaluate, tmp_path):
    table = read_table(real, splits=("test",))
    more = {"reconstruction": table["report"], "floor": "FINDINGS: No edema."}
    table[["dicom_id", "study_id", "report"]].assign(**more).to_csv(tmp_path / "reports.csv", index=False)
    found = evaluate(SYNTHETIC=real, WRITTEN=tmp_path)
    assert [row["reports"] for row in found["texts"]] == ["synthetic", "written for real images", "real train"]
    synthetic, written, train = found["texts"]
    assert {**synthetic, "reports": ""} == {**written, "reports": ""} and synthetic["N"] == train["N"] == len(table)
    written = by(found["written_reports"], "reports")
    assert written["written for real images"]["ROUGE-L"] == pytest.approx(1)
    assert written["shuffled among images"]["ROUGE-L"] < 0.9
    ceiling, floor = written[sections.FURTHER["reconstruction"]], written[sections.CHOSEN]
    assert ceiling["ROUGE-L"] == pytest.approx(1) and ceiling["clinical F1 micro"] > floor["clinical F1 micro"]
    assert written["written for real images"]["BLEU-1"] > 0.99 > floor["BLEU-1"]
    text = (tmp_path / "evaluation" / "evaluation.md").read_text()
    pairs = pd.read_csv(tmp_path / "evaluation" / "written_radeval.csv")
    assert len(pairs) == written["written for real images"]["N"] and (pairs["reference"] == pairs["hypothesis"]).all()
    assert "## Details of reports written for real images" in text
    side = by(found["written_details"], "detail")["side"]
    assert side["share"] == 1 > side["shuffled"] and side["N"] == side["of"] > 10 and side["ceiling"] == 1
    pairs = by(found["agreement_with_sides"], "pairs")
    assert pairs["synthetic"] == {**pairs["real"], "pairs": "synthetic"}  # the tree is the real one
    assert pairs[sections.SHUFFLED]["every finding"] <= by(found["complete_agreement"], "pairs")["real"]["all three"]
    assert "## Details of reports" in text and "## Sides and zones" in text


SELECTION = {
    "by": "pair", "keep": "first", "requests": 160, "candidates": 480, "kept": 160, "share that agrees": 0.35,
    "floor": {"share that agrees": 0.07},
}  # fmt: skip


def test_a_selected_tree_stands_beside_random_pairs_selected_in_the_same_way(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "selected", real, ("test",))
    train = read_table(real, splits=("train",))
    floor = pd.DataFrame({"dicom_id": made["dicom_id"], "floor_dicom_id": train["dicom_id"][: len(made)].to_numpy()})
    floor.to_csv(tmp_path / "selected" / "floor.csv", index=False)
    (tmp_path / "selected" / "selection.json").write_text(json.dumps(SELECTION))
    found = evaluate(SYNTHETIC=tmp_path / "selected", TEXT_JUDGE="rules")
    assert sections.SELECTED in found["auroc"] and "selected by pair (KEEP first); 35% of" in found["selected"]
    for name, column in (("reports", "reports"), ("complete_agreement", "pairs")):
        assert by(found[name], column)[sections.SELECTED]["N"] == len(made)
    text = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert text.index("**Selection:** 160 of 480 pairs") < text.index("| measure |") < text.index("## Image quality")
    page = (tmp_path / "selected.html").read_text()
    assert page.index("selected by pair (KEEP") < page.index("FID (judge")


def test_the_hold_out_is_that_of_the_images_checkpoint(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "made", real, ("test",))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    told = pd.DataFrame({"dicom_id": made["dicom_id"], "source": "", "checkpoint": str(checkpoint)})
    write_tree(tmp_path / "made", made, told.assign(prompt="", seed=1, reference_dicom_id=""))
    (checkpoint / "training.json").write_text(json.dumps({"constants": {"HOLD_OUT": ["p19"]}, "encoders": {}}))
    with pytest.raises(
        InputError, match=r"HOLD_OUT is \(\), and the checkpoint of .*made, .*trained with \('p19',\) held out"
    ):
        evaluate(SYNTHETIC=tmp_path / "made")
    shutil.rmtree(checkpoint)  # it is not here any more: nobody knows
    evaluate(SYNTHETIC=tmp_path / "made")


def selected_tree(root, real):
    """A tree whose images a selector chose that half of the training patients taught;"""
    made = generated_tree(root, real, ("test", "validate"))
    table = read_table(real, splits=("train",))
    pd.DataFrame({"subject_id": table["subject_id"][first_half(table)].unique()}).to_csv(
        root / "selector.csv", index=False
    )
    return made


def test_who_chose_the_images_does_not_judge_them(real, evaluate, tmp_path):
    made = selected_tree(tmp_path / "chosen", real)
    train = read_table(real, splits=("train",))
    with pytest.raises(
        InputError, match=r"training patients of the judge, e\.g\. 1\d{7}, also trained the selector .* JUDGE_PATIENTS"
    ):
        evaluate(SYNTHETIC=tmp_path / "chosen")
    found = evaluate(SYNTHETIC=tmp_path / "chosen", JUDGE_PATIENTS="second half")
    assert found["train"]["N"] == len(train)  # copies are of all of them
    assert by(found["image_quality"], "images")[sections.FLOOR]["N"] == len(made)


def test_rules_do_not_judge_reports_that_they_chose(tmp_path):
    def written(name, **settings):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_FILE).write_text(json.dumps({WRITTEN_REPORTS: settings}))
        return str(tmp_path / name)

    no_rows = pd.DataFrame({"subject_id": []})
    sections.check_apart(written("one"), no_rows, "rules", written("two", CANDIDATES=1))
    sections.check_apart(written("three", CANDIDATES=4), no_rows, "tfidf")
    with pytest.raises(
        InputError, match="five were chosen by the rules that would judge them: set TEXT_JUDGE to tfidf"
    ):
        sections.check_apart(written("four"), no_rows, "rules", written("five", CANDIDATES=2))


def test_two_processes_and_a_new_cache_find_what_one_process_finds(real, evaluate, tmp_path, monkeypatch):
    generated_tree(tmp_path / "made", real, ("test",))
    constants = {"SYNTHETIC": tmp_path / "made"}
    places = {"REAL": real, "CACHE_DIR": tmp_path / "cache", "OUTPUT": tmp_path / "two"}
    config = tmp_path / "empty.toml"
    config.write_text("")
    said = launch("evaluate_pairs", config, *flags(**{**EVALUATION, **places, **constants}))
    assert said.count("the evaluation: ") == 1
    monkeypatch.undo()  # the number of positives that is enough, which the launched processes have
    one, two = evaluate(**constants), json.loads((tmp_path / "two" / "evaluation.json").read_text())
    for found in (one, two):
        assert found.pop("seconds")
    whole = [pd.DataFrame(found.pop("complete_agreement")) for found in (one, two)]
    certain = ["pairs", "N", "findings", "request-report"]  # a finding may be seen just above or below the threshold
    pd.testing.assert_frame_equal(whole[0][certain], whole[1][certain])
    for name, certain in (("image_details", ["images", "detail"]), ("agreement_with_sides", ["pairs", "N"])):
        rows = [pd.DataFrame(found.pop(name)) for found in (one, two)]
        pd.testing.assert_frame_equal(rows[0][certain], rows[1][certain])
    np.testing.assert_allclose(whole[0]["request-image"], whole[1]["request-image"], atol=0.15)
    pd.testing.assert_frame_equal(pd.json_normalize(one), pd.json_normalize(two), rtol=1e-3)
    assert one["image_quality"][1]["FID"] == pytest.approx(two["image_quality"][1]["FID"], rel=1e-4)


def test_trees_that_share_no_findings(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "unlabelled", real, ("test",))
    write_tree(tmp_path / "unlabelled", made.assign(**dict.fromkeys(FINDINGS, 0)))
    with pytest.raises(InputError, match="share no findings"):
        evaluate(SYNTHETIC=tmp_path / "unlabelled")


def test_fewer_than_two_images(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "one", real, ("test",))
    for row in made.iloc[1:].itertuples():
        image_file(tmp_path / "one", row.subject_id, row.study_id, row.dicom_id).unlink()
    with pytest.raises(InputError, match="has 1 readable images; an evaluation needs 2 or more"):
        evaluate(SYNTHETIC=tmp_path / "one")


def test_what_is_quick_and_can_fail_ends_the_run_before_the_judge_is_trained(real, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(images.Images, "__init__", None)
    for constants, message in (
        ({"JUDGE_MODEL": "unheard_of"}, "'unheard_of'"),
        ({"WRITTEN": tmp_path}, "reports.csv is not there"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(SYNTHETIC=real, **constants)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"CLASSIFIER": "mine"}, "--CLASSIFIER: 'mine' is none of"),
        ({"TEXT_JUDGE": "mine"}, "--TEXT_JUDGE: 'mine' is none of"),
        ({"FEATURES": "clip"}, "--FEATURES: 'clip' is none of"),
        ({"JUDGE_PATIENTS": "first half"}, "--JUDGE_PATIENTS: 'first half' is none of all, second half"),
        ({"SPLIT": "dev"}, "--SPLIT: 'dev' is none of"),
        ({"WRITTEN": "nowhere"}, "nowhere/reports.csv is not there.*WRITTEN"),
        ({"BASE_MODEL": "x"}, "there is no constant '--BASE_MODEL"),
        ({"SYNTHETIC": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_bad_constants_are_one_sentence(real, evaluate, constants, message):
    with pytest.raises(InputError, match=message):
        evaluate(**{"SYNTHETIC": real, **constants})
