"""Free text as a prompt: the text of a row, requests in words, and the scripts that train and sample by it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from running import BACKBONES, assert_same_weights, flags, pictures, run_script, sample, says

from evaluation.labeler import label_report, labels_of_prompt
from sampling import plan
from sampling.plan import free_requests
from training.examples import DiffusionExamples, DiffusionFeatures
from utils.errors import InputError
from utils.findings import FINDINGS, parse_findings, prompts_of, to_prompt, with_prompts
from utils.latents import load_vae
from utils.mimic_cxr import read_table
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.report_cleaning import clean_report
from utils.report_text import report_sections

EFFUSION = "Large left pleural effusion."


def impressions_of(root):
    """{dicom_id: the impression of its report}."""
    table = read_table(root).set_index("dicom_id")
    return {name: clean_report(report_sections(report)[1]) for name, report in table["report"].items()}


@pytest.fixture(scope="module")
def reported(tree, tmp_path_factory):
    """The drawn tree, two training studies of which have no impression, and one no report."""
    root = Path(shutil.copytree(tree, tmp_path_factory.mktemp("reported") / "tree"))
    table = read_table(root, with_reports=False)
    studies = sorted({*table.study_id[table.split == "train"]})
    paths = [next(root.rglob(f"s{study}.txt")) for study in studies[:3]]
    for path in paths[:2]:
        path.write_text(path.read_text().split("IMPRESSION:")[0])
    paths[2].unlink()
    return root


@pytest.fixture(scope="module")
def read(config, reported, tmp_path_factory):
    """Runs that were trained on impressions, a folder of either backbone."""
    folder = tmp_path_factory.mktemp("read")
    for backbone in BACKBONES:
        constants = flags(RUN_DIR=folder / backbone, PROMPT="impression", DATA_ROOT=reported)
        assert run_script(f"train_diffusion_{backbone}", "--config", config, *constants) == 0
    return folder


def provenance(root):
    return pd.read_csv(root / "synthetic.csv", keep_default_na=False)


# ---- the prompt of a row


def test_a_rows_prompt_is_its_own_impression_without_marks(make_table, capsys):
    table = make_table(np.zeros((5, 14)), range(5))
    table["report"] = [
        "FINDINGS: Clear. IMPRESSION: 1. Edema, worse since ___. 2. No   effusion.",
        "FINDINGS: Clear.",
        "",
        "IMPRESSION: XXXX XXXX.",
        "IMPRESSION: Normal chest.",
    ]
    rows = with_prompts(table, "impression")
    assert rows.dicom_id.tolist() == ["image-0", "image-4"]
    assert prompts_of(rows) == ["1. Edema, worse. 2. No effusion.", "Normal chest."]
    assert capsys.readouterr().out == (
        "impressions: 2 of 5 images have one; dropped 1 without a report, 1 whose report has no impression and 1 of "
        "which de-identification left no sentence\n"
    )
    assert with_prompts(table, "findings") is table and prompts_of(table) == ["A chest X ray image"] * 5
    with pytest.raises(InputError, match=r"not one of 2 images has an impression .* 1 whose .*: set REPORTS_ROOT"):
        with_prompts(table.iloc[1:3], "impression")
    with pytest.raises(InputError, match="PROMPT 'report' is none of findings, impression"):
        with_prompts(table, "report")


def test_what_an_example_hears_is_its_impression_and_its_reference_follows_its_labels(
    base_model, reference_encoder_name, make_table, accelerator, tmp_path
):
    labels = np.zeros((4, 14), dtype=np.int8)
    labels[2:, 3] = 1  # edema
    table = make_table(labels, [1, 2, 3, 4])
    table["report"] = [f"IMPRESSION: {words}" for words in ("Edema", "Pneumonia", "No edema", "Fracture")]
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)
    features = DiffusionFeatures(with_prompts(table, "impression"), *encoders, 32, str(tmp_path), 0, accelerator)
    examples = DiffusionExamples(features, "train", 1000)
    assert "Pneumonia" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))  # no report in the cache
    heard = torch.stack([examples[row, 0]["text"] for row in range(4)])
    torch.testing.assert_close(heard, encoders[1].encode(["Edema", "Pneumonia", "No edema", "Fracture"]))
    for row, other in ((0, 1), (1, 0), (2, 3), (3, 2)):  # the other image with the same labels, whatever its words
        np.testing.assert_array_equal(examples[row, 0]["reference"], features.embeddings[other])


# ---- the tokens of a text


def test_a_sign_that_the_tokenizer_does_not_know_does_not_end_a_text(base_model):
    encoder = TextEncoder(base_model, pooled=True)
    assert encoder.tokenizer(".", add_special_tokens=False).input_ids == [encoder.tokenizer.eos_token_id]
    two = encoder.encode(["1. Edema. 2. Fracture.", "edema fracture", "edema", "edema fracture."])
    torch.testing.assert_close(two[0], two[1])
    torch.testing.assert_close(two[3], two[1])
    assert (two[0] - two[2]).abs().max() > 0.1


def test_what_is_cut_is_counted(base_model, capsys):
    encoder = TextEncoder(base_model, pooled=False)
    long = "edema " * 76
    encoder.print_lengths(["edema", "edema", "edema " * 75, long, "edema; fracture."])
    assert capsys.readouterr().out == ("prompts: 4 distinct, 40 tokens on average; 1 of them cut at 77\n")
    torch.testing.assert_close(encoder.encode([long]), encoder.encode(["edema " * 75]))
    punctuated = encoder.encode(["edema. " * 76])  # cut after what is not read is left out
    torch.testing.assert_close(punctuated, encoder.encode([long]))


# ---- requests in words


def test_the_labels_of_a_free_text_are_those_that_the_rules_read():
    requests = plan.label_vectors(None, 1, "impression", text=EFFUSION)
    assert requests[["prompt", "prompt_kind", "source"]].values.tolist() == [[EFFUSION, "text", "text"]]
    assert to_prompt(requests[list(FINDINGS)].iloc[0]) == "A chest X ray image with pleural effusion"
    given = plan.label_vectors(None, 1, "impression", text=EFFUSION, findings="edema")
    assert given.prompt[0] == EFFUSION and (given[list(FINDINGS)].iloc[0] == parse_findings("edema")).all()
    sentence = "A chest X ray image with edema, without pneumothorax"
    assert (labels_of_prompt(sentence) == parse_findings("edema, not pneumothorax")).all()
    requests = plan.label_vectors(None, 1, text=f" {sentence} ")
    assert requests[["prompt", "prompt_kind"]].values.tolist() == [[sentence, "findings"]]
    assert (requests[list(FINDINGS)].iloc[0] == parse_findings("edema, not pneumothorax")).all()


def test_a_csv_with_a_text_a_row(tmp_path, capsys):
    path = tmp_path / "asked.csv"
    texts = [EFFUSION, "", "Severe edema, compared to ___.", "No pneumothorax."]
    pd.DataFrame({"prompt": texts}).to_csv(path, index=False)
    requests = plan.label_vectors(None, 1, "impression", labels_csv=str(path))
    assert requests.prompt.tolist() == [EFFUSION, "Severe edema.", "No pneumothorax."]
    assert requests.source.tolist() == ["asked.csv 0", "asked.csv 2", "asked.csv 3"]
    assert (requests[list(FINDINGS)].to_numpy() == [label_report(text) for text in requests.prompt]).all()
    out = capsys.readouterr().out
    assert "3 of 4 rows kept (1 without prompt dropped)" in out and "marks removed from 1 of 3" in out

    pd.DataFrame({"prompt": texts, "Edema": [1.0, 0.0, None, -1.0]}).to_csv(path, index=False)  # one label is stated
    stated = plan.label_vectors(None, 1, "impression", labels_csv=str(path))
    assert stated["Edema"].tolist() == [1, 0, -2]
    others = [name for name in FINDINGS if name != "Edema"]
    pd.testing.assert_frame_equal(stated[others], requests[others])

    label = str(parse_findings("fracture").tolist())
    pd.DataFrame({"prompt": texts[:1], "label": [label]}).to_csv(path, index=False)
    own = plan.label_vectors(None, 1, "impression", labels_csv=str(path))
    assert to_prompt(own[list(FINDINGS)].iloc[0]) == "A chest X ray image with fracture" and own.prompt[0] == EFFUSION
    capsys.readouterr()
    asked = plan.label_vectors(None, 1, labels_csv=str(path))  # labels serve a model of findings as well
    assert asked.prompt.tolist() == ["A chest X ray image with fracture"] and set(asked.prompt_kind) == {"findings"}
    assert "its column `prompt` is not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "prompt", "words"),
    [
        ({"text": EFFUSION}, "findings", ["TEXT: 'Large left", "was trained on prompts of findings", "FINDINGS"]),
        ({"text": "   "}, "impression", ["TEXT: '   ' has no word"]),
        ({"text": "___"}, "impression", ["TEXT: '___' has no word"]),
        ({"findings": "edema"}, "impression", ["FINDINGS gives no text", "trained on impressions", "TEXT"]),
        ({"text": EFFUSION, "labels_csv": "a.csv"}, "impression", ["TEXT and LABELS_CSV a.csv", "set only one"]),
        ({"text": EFFUSION}, "report", ["PROMPT 'report' is none of"]),
    ],
)
def test_requests_that_the_model_cannot_read(asked, prompt, words):
    with pytest.raises(InputError) as refused:
        plan.label_vectors(None, 1, prompt, **asked)
    says(str(refused.value), *words)


def test_a_csv_that_the_model_cannot_read(tmp_path):
    path = tmp_path / "asked.csv"
    labels = pd.DataFrame(1.0, columns=FINDINGS, index=range(2))
    for frame, prompt, words in (
        (labels, "impression", ["gives no text", "column `prompt`"]),
        (labels[["Edema"]], "impression", ["column `prompt`, or `label`", "'Atelectasis'"]),
        (pd.DataFrame({"prompt": ["A chest X ray image", EFFUSION]}), "findings", ["data row 2: 'Large", "free text"]),
        (pd.DataFrame({"prompt": ["Edema.", "XXXX"]}), "impression", ["data row 2: 'XXXX' has no word"]),
        (pd.DataFrame({"prompt": []}), "impression", ["no rows"]),
        (pd.DataFrame({"prompt": ["Edema."], "Edema": [7]}), "impression", ["column 'Edema': '7' is not a label"]),
    ):
        frame.to_csv(path, index=False)
        with pytest.raises(InputError) as refused:
            plan.label_vectors(None, 1, prompt, labels_csv=str(path))
        says(str(refused.value), str(path), *words)


def test_a_long_text_is_shortened_in_a_message():
    with pytest.raises(InputError) as refused:
        free_requests(pd.Series(["word " * 500]), ["TEXT"], "findings")
    assert len(str(refused.value)) < 300


# ---- the scripts


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_split_is_asked_for_in_the_words_of_its_reports(backbone, config, read, reported, tmp_path, capsys):
    training = json.loads((read / backbone / "best" / "training.json").read_text())
    assert training["constants"]["PROMPT"] == "impression"
    assert sample(backbone, config, read, tmp_path / "made", SPLIT="validate") == 0
    assert "prompts: " in capsys.readouterr().out
    told, real = provenance(tmp_path / "made"), read_table(reported, splits=("validate",))
    assert set(told.prompt_kind) == {"impression"} and sorted(told.source) == sorted(real.dicom_id)
    impressions = impressions_of(reported)
    assert told.prompt.tolist() == [impressions[name] for name in told.source]
    made = read_table(tmp_path / "made").merge(told[["dicom_id", "source"]], on="dicom_id").set_index("source")
    labels = real.set_index("dicom_id")[list(FINDINGS)]
    pd.testing.assert_frame_equal(made[list(FINDINGS)], labels.loc[made.index], check_names=False)


def test_rows_without_an_impression_are_no_training_rows_and_no_requests(config, read, reported, tmp_path, capsys):
    train = read_table(reported, splits=("train",))
    without, silent = (train.report == "").sum(), [impressions_of(reported)[name] == "" for name in train.dicom_id]
    assert without and sum(silent) > without
    asked = {"SPLIT": "train", "MAX_LABELS": 3, "CONDITION": "text", "DATA_ROOT": reported}
    assert sample("clipUViT", config, read, tmp_path / "made", **asked) == 0
    assert (
        f"impressions: {len(train) - sum(silent)} of {len(train)} images have one; dropped {without} without a report, "
        f"{sum(silent) - without} whose report has no impression and 0 of which"
    ) in capsys.readouterr().out
    assert (provenance(tmp_path / "made").prompt != "").all()


def test_free_text_is_sampled_and_heard(config, read, tmp_path):
    for name, text in (("one", EFFUSION), ("same", EFFUSION), ("other", "Severe pulmonary edema.")):
        asked = {"TEXT": text, "IMAGES_PER_LABEL": 2, "CONDITION": "text"}
        assert sample("clipUViT", config, read, tmp_path / name, **asked) == 0
    told = provenance(tmp_path / "one")
    assert set(told.prompt) == {EFFUSION} and set(told.prompt_kind) == {"text"} and set(told.source) == {"text"}
    table = read_table(tmp_path / "one")
    assert (table["Pleural Effusion"] == 1).all() and (table["Edema"] == 0).all()
    one, same = pictures(tmp_path / "one"), pictures(tmp_path / "same")
    assert one.keys() == same.keys() and all((one[name] == same[name]).all() for name in one)
    assert one.keys().isdisjoint(pictures(tmp_path / "other"))


def test_a_csv_of_texts_is_sampled_and_listed_with_its_labels(config, read, tmp_path):
    path = tmp_path / "asked.csv"
    pd.DataFrame({"prompt": [EFFUSION, "Normal chest."], "Edema": [1.0, None]}).to_csv(path, index=False)
    assert sample("clipUViT", config, read, tmp_path / "made", LABELS_CSV=path) == 0
    told = provenance(tmp_path / "made")
    assert sorted(told.prompt) == sorted([EFFUSION, "Normal chest."])
    effusion, normal = (told.dicom_id[told.prompt == text].item() for text in (EFFUSION, "Normal chest."))
    table = read_table(tmp_path / "made").set_index("dicom_id")
    assert table.loc[effusion, ["Edema", "Pleural Effusion", "No Finding"]].tolist() == [1, 1, 0]
    assert table.loc[normal, ["Edema", "Pleural Effusion", "No Finding"]].tolist() == [0, 0, 1]


def test_other_words_than_the_trainings_are_refused_before_a_tree_is_begun(config, runs, read, tmp_path):
    for folder, asked, words in (
        (runs, {"TEXT": EFFUSION}, "trained on prompts of findings"),
        (read, {"FINDINGS": "edema"}, "trained on impressions"),
    ):
        says(sample("clipUViT", config, folder, tmp_path / "made", **asked), words)
    assert not (tmp_path / "made").exists()


def test_a_tree_without_impressions_trains_nobody(config, tree, tmp_path):
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    for path in root.rglob("*.txt"):
        path.write_text(path.read_text().split("IMPRESSION:")[0])
    constants = {"RUN_DIR": tmp_path / "run", "DATA_ROOT": root, "PROMPT": "impression"}
    message = run_script("train_diffusion_clipUViT", "--config", config, *flags(**constants))
    says(message, "has an impression", "whose report has no impression", "REPORTS_ROOT")
    (tmp_path / "empty").mkdir()
    for path in root.rglob("*.txt"):
        path.unlink()
    says(run_script("train_diffusion_clipUViT", "--config", config, *flags(**constants)), "impression")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_prompt_only(config, read, reported, tmp_path):
    shutil.copytree(read / "clipUViT", tmp_path / "run")
    constants = flags(RUN_DIR=tmp_path / "run", DATA_ROOT=reported, MAX_STEPS=6)
    message = run_script("train_diffusion_clipUViT", "--config", config, *constants)
    says(message, "was trained with", str(tmp_path / "run"))


def test_a_student_hears_what_its_teacher_heard(config, read, tmp_path, capsys):
    student = flags(
        CHECKPOINT=read / "clipUViT" / "best", RUN_DIR=tmp_path / "student", STUDENT_STEPS=2, TEACHER_STEPS=2
    )
    assert run_script("distill_diffusion", "--config", config, *student, "--DATA_ROOT", "") == 0
    assert "impressions: " in capsys.readouterr().out
    training = json.loads((tmp_path / "student" / "best" / "training.json").read_text())
    assert training["constants"]["PROMPT"] == "impression"
    asked = {"CHECKPOINT": tmp_path / "student" / "best", "TEXT": EFFUSION}
    assert sample("clipUViT", config, read, tmp_path / "made", **asked) == 0
    assert set(provenance(tmp_path / "made").prompt) == {EFFUSION}


def test_a_checkpoint_from_before_there_was_free_text(config, runs, tmp_path):
    """It does not say PROMPT: it is of findings, and is gone on with."""
    older = Path(shutil.copytree(runs / "clipUViT", tmp_path / "older"))
    for path in older.rglob("training.json"):
        training = json.loads(path.read_text())
        for name in ("PROMPT", "REPORTS_ROOT"):
            training["constants"].pop(name, None)
        path.write_text(json.dumps(training))
    for folder, name in ((runs, "now"), (tmp_path, "then")):
        checkpoint = folder / ("clipUViT" if folder is runs else "older") / "best"
        assert sample("clipUViT", config, folder, tmp_path / name, CHECKPOINT=checkpoint, SPLIT="validate") == 0
    now, then = pictures(tmp_path / "now"), pictures(tmp_path / "then")
    assert now.keys() == then.keys() and all((now[name] == then[name]).all() for name in now)

    constants = flags(RUN_DIR=older, PROMPT="impression", MAX_STEPS=6)
    says(run_script("train_diffusion_clipUViT", "--config", config, *constants), "trained with", str(older))
    assert run_script("train_diffusion_clipUViT", "--config", config, *flags(RUN_DIR=older)) == 0
    assert_same_weights(older / "last", runs / "clipUViT" / "last")


def test_findings_in_plain_words():
    vector = parse_findings(" Cardiomegaly, edema , not pneumothorax, without fracture,possible pneumonia, ")
    codes = {"Cardiomegaly": 1, "Edema": 1, "Pneumothorax": -1, "Fracture": -1, "Pneumonia": -2}
    assert vector.tolist() == [codes.get(name, 0) for name in FINDINGS]
    for text, codes in (
        ("no finding", {"No Finding": 1}),
        ("not no finding, no edema", {"No Finding": -1, "Edema": -1}),
    ):
        assert parse_findings(text).tolist() == [codes.get(name, 0) for name in FINDINGS]
    assert not parse_findings("").any()
    for text, named in (("edema, gout", "gout"), ("edema, no edema", "Edema"), ("not", "unknown finding")):
        with pytest.raises(InputError, match=named):
            parse_findings(text)
