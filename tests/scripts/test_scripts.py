"""The real scripts, run for a few steps on tiny models and a drawn tree, the whole chain; and bad input."""

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch._dynamo.utils
from accelerate.state import AcceleratorState
from running import (
    BACKBONES,
    ROOT,
    assert_same_weights,
    flags,
    launch_each,
    pictures,
    run_script,
    sample,
    says,
    train,
    weights,
)

from models.weights import load_vision
from utils.checkpoints import weights_fingerprint
from utils.findings import FINDINGS, to_prompt
from utils.mimic_cxr import read_table


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_leaves_checkpoints_metrics_and_pictures(backbone, runs):
    run = runs / backbone
    for name in ("last", "best"):
        assert json.loads((run / name / "config.json").read_text())["_class_name"] == BACKBONES[backbone]
        assert (run / name / "raw" / "diffusion_pytorch_model.safetensors").exists()
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics.step.tolist() == [2, 4] and metrics.validation_loss.notna().all()
    assert (run / "loss.png").exists() and len(list((run / "previews").glob("*.png"))) == 2
    assert json.loads((run / "constants.json").read_text())["BATCH_SIZE"] == 4


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sampling_writes_a_tree_for_a_split(backbone, config, runs, tree, tmp_path):
    assert sample(backbone, config, runs, tmp_path / "made", SPLIT="validate") == 0
    made, real = read_table(tmp_path / "made"), read_table(tree, splits=("validate",))
    assert sorted(map(tuple, made[list(FINDINGS)].to_numpy())) == sorted(map(tuple, real[list(FINDINGS)].to_numpy()))
    assert made.subject_id.is_unique and made.dicom_id.str.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}").all()
    told = pd.read_csv(tmp_path / "made" / "synthetic.csv").merge(made, on="dicom_id")
    assert len(told) == len(made)
    assert (told.prompt == [to_prompt(row) for row in told[list(FINDINGS)].to_numpy()]).all()
    train = read_table(tree, splits=("train",))
    assert set(told.reference_dicom_id) <= set(train.dicom_id)
    for name in (
        "seed",
        "text_guidance",
        "reference_guidance",
        "steps",
        "scheduler",
        "checkpoint",
        "checkpoint_sha256",
    ):
        assert told[name].notna().all()
    assert all((tmp_path / "made" / "latents" / f"{name}.npy").exists() for name in made.dicom_id)


def test_sampling_in_words_and_a_second_run_adds_what_is_missing(config, runs, tmp_path):
    asked = {"FINDINGS": "cardiomegaly, edema, not pneumothorax", "SPLIT": ""}
    assert sample("clipUViT", config, runs, tmp_path / "made", IMAGES_PER_LABEL=2, **asked) == 0
    first = pictures(tmp_path / "made")
    assert len(first) == 2
    assert sample("clipUViT", config, runs, tmp_path / "made", IMAGES_PER_LABEL=3, **asked) == 0
    second = pictures(tmp_path / "made")
    assert len(second) == 3 and first.keys() < second.keys()

    table = read_table(tmp_path / "made")
    lost = table.iloc[0]
    Path(lost.image_path).unlink()
    assert sample("clipUViT", config, runs, tmp_path / "made", IMAGES_PER_LABEL=3, **asked) == 0
    again = pictures(tmp_path / "made")
    np.testing.assert_array_equal(again[lost.dicom_id], second[lost.dicom_id])
    assert set(table.prompt if "prompt" in table else [to_prompt(row) for row in table[list(FINDINGS)].to_numpy()]) == {
        "A chest X ray image with cardiomegaly and edema, without pneumothorax"
    }


def test_sampling_from_a_csv(config, runs, tmp_path):
    labels = pd.DataFrame(np.zeros((2, 14)), columns=FINDINGS).replace(0, np.nan)
    labels.loc[0, "Edema"], labels.loc[1, "Fracture"] = 1.0, -1.0
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert sample("clipUViT", config, runs, tmp_path / "made", LABELS_CSV=tmp_path / "labels.csv") == 0
    prompts = set(pd.read_csv(tmp_path / "made" / "synthetic.csv").prompt)
    assert prompts == {"A chest X ray image with edema", "A chest X ray image, and with uncertain fracture"}


@pytest.mark.parametrize("condition", ["text", "reference"])
def test_one_condition_alone(condition, config, runs, tmp_path):
    assert sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", CONDITION=condition) == 0
    told = pd.read_csv(tmp_path / "made" / "synthetic.csv", keep_default_na=False)
    assert ((told.reference_dicom_id == "") == (condition == "text")).all()


def test_batch_size_changes_no_picture(config, runs, tmp_path):
    for size in (1, 16):
        assert sample("clipUViT", config, runs, tmp_path / str(size), SPLIT="validate", BATCH_SIZE=size) == 0
    one, sixteen = pictures(tmp_path / "1"), pictures(tmp_path / "16")
    assert one.keys() == sixteen.keys()
    assert max(np.abs(one[name] - sixteen[name]).max() for name in one) <= 1  # of 255: rounding


def test_a_tree_made_otherwise_is_not_mixed(config, runs, tmp_path):
    assert sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate") == 0
    message = sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", TEXT_GUIDANCE=5.0)
    assert "text_guidance = 2.0" in message and "OUTPUT_ROOT" in message


@pytest.mark.parametrize("backbone", BACKBONES)
def test_resumed_training_is_bit_identical(backbone, config, runs, tmp_path):
    run = flags(RUN_DIR=tmp_path / "run")
    assert run_script(f"train_diffusion_{backbone}", "--config", config, *run, "--MAX_STEPS", "2") == 0
    assert run_script(f"train_diffusion_{backbone}", "--config", config, *run) == 0
    assert_same_weights(tmp_path / "run" / "last", runs / backbone / "last")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_student_is_distilled_resumed_and_sampled_as_what_it_is(backbone, config, runs, tmp_path):
    constants = flags(CHECKPOINT=runs / backbone / "best", STUDENT_STEPS=2, TEACHER_STEPS=2)
    distil = "distill_diffusion", "--config", config, *constants
    assert run_script(*distil, *flags(RUN_DIR=tmp_path / "whole")) == 0
    assert run_script(*distil, *flags(RUN_DIR=tmp_path / "cut", MAX_STEPS=2)) == 0
    assert run_script(*distil, *flags(RUN_DIR=tmp_path / "cut")) == 0
    assert_same_weights(tmp_path / "cut" / "last", tmp_path / "whole" / "last")
    assert (tmp_path / "whole" / "previews" / "step-00000004.png").exists()
    message = run_script(*distil, *flags(RUN_DIR=tmp_path / "cut", TEXT_GUIDANCE=3.0))
    assert "TEXT_GUIDANCE" in message or "student" in message

    student = flags(CHECKPOINT=tmp_path / "whole" / "best", RUN_DIR=tmp_path / "again")
    assert "is a student itself" in run_script("distill_diffusion", "--config", config, *student)

    made = tmp_path / "made"
    best = tmp_path / "whole" / "best"
    assert sample(backbone, config, tmp_path, made, CHECKPOINT=best, SPLIT="validate") == 0
    told = pd.read_csv(made / "synthetic.csv")
    assert len(told) and (told[["text_guidance", "reference_guidance"]] == 1).all(axis=None)
    assert set(told.steps) == {2} and set(told.scheduler) == {"DDIM"}
    facts = json.loads(told.student[0])
    teacher, _ = load_vision(runs / backbone / "best", BACKBONES[backbone])
    assert (facts["guidance_text"], facts["steps"]) == (2.0, 2)
    assert facts["teacher"] == weights_fingerprint(teacher)


def test_what_is_no_teacher_is_refused(config, tmp_path):
    (tmp_path / "file.ckpt").write_bytes(b"nothing")
    refusals = {"absent": "there is no checkpoint", "file.ckpt": "convert it by python -m models.weights"}
    for place, words in ((tmp_path / name, words) for name, words in refusals.items()):
        message = run_script(
            "distill_diffusion", "--config", config, *flags(CHECKPOINT=place, RUN_DIR=tmp_path / "run")
        )
        assert str(place) in message and words in message
    assert not (tmp_path / "run").exists()


def test_training_goes_on_from_a_checkpoint_of_ones_own(config, runs, tmp_path):
    for backbone in BACKBONES:
        constants = flags(RUN_DIR=tmp_path / backbone, INITIAL_WEIGHTS=runs / backbone / "best", MAX_STEPS=2)
        assert run_script(f"train_diffusion_{backbone}", "--config", config, *constants) == 0


def test_plain_diffusers_opens_a_checkpoint_and_a_pipeline_is_assembled(runs, base_model):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(runs / "clipSD" / "best")
    pipeline = StableDiffusionPipeline.from_pretrained(base_model, unet=unet, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("A chest X ray image with edema", num_inference_steps=2, height=32, width=32).images[0]
    assert image.size == (32, 32)


TRAININGS = {  # what differs from the test's constants
    "train_diffusion_clipUViT": {},
    "train_diffusion_clipSD": {},
    "train_bart": {
        "INITIAL_WEIGHTS": ROOT / "assets" / "demo" / "bart",  # which has no dropout
        "LATENT_NOISE": 0.4,
        "EVALUATION_REPORTS": 0,
        "ACCUMULATION": 2,
    },
    "train_prior_model": {
        "PRETRAINED": "",
        "EMBED_DIM": 16,
        "DEPTH": 2,
        "NUM_HEADS": 2,
        "EVALUATION_IMAGES": 0,
    },
}

# weights of BART that a softmax cancels: their gradient is nothing but rounding, of which Adam makes steps
CANCELLED = r"k_proj\.bias|encoder_attn\.[qk]_proj"


def test_two_processes_do_what_one_does(config, runs, tmp_path):
    def arguments(script, processes):
        folder = tmp_path / processes
        constants = {"RUN_DIR": folder / script, **TRAININGS[script]}
        if script != "train_bart":
            constants["CACHE_DIR"] = folder / "cache"
        if script == "train_prior_model":
            constants["BART_CHECKPOINT"] = folder / "train_bart" / "best"
        return [config, *flags(**constants)]

    constants = {"CHECKPOINT": runs / "clipUViT" / "best", "SPLIT": "validate", "OUTPUT_ROOT": tmp_path / "made-by-two"}
    said = launch_each(
        *((script, *arguments(script, "two")) for script in TRAININGS),
        ("sample_diffusion_clipUViT", config, *flags(**constants)),
    )
    assert said.count("on 2 x cpu") == len(TRAININGS)
    one_process = {f"train_diffusion_{backbone}": runs / backbone for backbone in BACKBONES}
    for script in TRAININGS:
        if script not in one_process:
            assert run_script(script, "--config", *arguments(script, "one")) == 0
        one, two = one_process.get(script, tmp_path / "one" / script), tmp_path / "two" / script
        columns = ["loss", "validation_loss", "gradient_norm"]
        measured = [pd.read_csv(folder / "metrics.csv")[columns] for folder in (one, two)]
        np.testing.assert_allclose(*measured, rtol=1e-4, err_msg=script)
        one, two = weights(one / "last"), weights(two / "last")
        for file in one:
            for name in one[file]:
                if not re.search(CANCELLED, name):  # the sum of the gradients is taken in another order
                    np.testing.assert_allclose(
                        one[file][name], two[file][name], rtol=0, atol=2e-6, err_msg=f"{script}, {file}: {name}"
                    )

    assert sample("clipUViT", config, runs, tmp_path / "made-by-one", SPLIT="validate") == 0
    one, two = pictures(tmp_path / "made-by-one"), pictures(tmp_path / "made-by-two")
    assert one.keys() == two.keys()
    for name in one:  # each batch is made by one process
        np.testing.assert_array_equal(one[name], two[name])


@pytest.fixture
def fresh_accelerator():
    """No Accelerator has been made in this process, whose precision would be the only one allowed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("backbone", "compiler"), [("clipUViT", "aot_eager"), ("clipSD", "eager")])
def test_what_a_gpu_run_has_by_default(backbone, compiler, config, tmp_path, monkeypatch, fresh_accelerator):
    """bf16, processes that load, passes of a step and a compiled denoiser, all at once."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compile_module(module, backend=compiler))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    constants = {
        "PRECISION": "bf16",
        "NUM_WORKERS": 2,
        "ACCUMULATION": 2,
        "COMPILE": True,
    }
    run = flags(RUN_DIR=tmp_path / "run", MAX_STEPS=2, **constants)
    assert run_script(f"train_diffusion_{backbone}", "--config", config, *run) == 0
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(metrics[["loss", "validation_loss", "gradient_norm"]]).all(axis=None)
    for tensors in weights(tmp_path / "run" / "last").values():
        assert all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="on a CPU nothing is compiled into CUDA graphs")
@pytest.mark.parametrize("constants", [{}, {"ACCUMULATION": 2}])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_compiled_training_on_a_gpu_is_the_same(backbone, constants, config, tmp_path, fresh_accelerator):
    """With validations and previews, which are not compiled, between its steps."""
    torch._dynamo.reset()
    metrics = []
    for compiled in (True, False):
        run = flags(RUN_DIR=tmp_path / str(compiled), DEVICE="cuda", MAX_STEPS=8, COMPILE=compiled)
        assert run_script(f"train_diffusion_{backbone}", "--config", config, *run, *flags(**constants)) == 0
        metrics.append(pd.read_csv(tmp_path / str(compiled) / "metrics.csv"))
    for column in ("loss", "validation_loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[0][column], metrics[1][column], rtol=2e-3, err_msg=column)


# --- bad input: one sentence, no traceback ---------------------------------------------------------------------------


def copy_of(tree, tmp_path):
    return Path(shutil.copytree(tree, tmp_path / "tree"))


def edit_csv(root, kind, edit):
    path = root / f"mimic-cxr-2.0.0-{kind}.csv.gz"
    frame = edit(pd.read_csv(path, dtype=str, keep_default_na=False))
    with gzip.open(path, "wt", newline="") as file:
        frame.to_csv(file, index=False)


def test_a_tree_without_its_csvs(config, tmp_path):
    (tmp_path / "empty").mkdir()
    says(train(config, tmp_path, DATA_ROOT=tmp_path / "empty"), "metadata", str(tmp_path / "empty"))


def test_a_missing_column(config, tree, tmp_path):
    root = copy_of(tree, tmp_path)
    edit_csv(root, "chexpert", lambda frame: frame.drop(columns="Edema"))
    says(train(config, tmp_path, DATA_ROOT=root), "Edema", "chexpert")


def test_a_label_that_is_none(config, tree, tmp_path):
    root = copy_of(tree, tmp_path)
    edit_csv(root, "chexpert", lambda frame: frame.assign(Edema="7"))
    says(train(config, tmp_path, DATA_ROOT=root), "Edema", "7")


def test_an_empty_split(config, tree, tmp_path):
    root = copy_of(tree, tmp_path)
    edit_csv(root, "split", lambda frame: frame.assign(split="train"))
    says(train(config, tmp_path, DATA_ROOT=root), "validate")


def test_a_truncated_image_and_an_absent_one_are_named_and_left_out(config, tree, tmp_path, capfd):
    root = copy_of(tree, tmp_path)
    table = read_table(root, splits=("train",))
    truncated, absent = Path(table.image_path[0]), Path(table.image_path[1])
    truncated.write_bytes(truncated.read_bytes()[:300])
    absent.unlink()
    assert train(config, tmp_path, DATA_ROOT=root) == 0
    output = capfd.readouterr()
    assert truncated.name in output.out + output.err and absent.name in output.out + output.err


def test_an_image_path_that_leaves_its_root(config, tree, tmp_path):
    csv = tmp_path / "authors.csv"
    row = {"label": str([0] * 14), "ViewPosition": "PA", "split": "train", "text": ""}
    pd.DataFrame([{**row, "image_path": "../../etc/p10/p10000000/s50000000/x.jpg"}]).to_csv(csv, index=False)
    says(train(config, tmp_path, DATA_ROOT=csv), "image_path", "authors.csv")


def test_an_unknown_constant(config, tmp_path):
    says(train(config, tmp_path, LERNING_RATE=1), "LERNING_RATE", "LEARNING_RATE")


def test_sizes_that_no_network_has_end_before_anything_is_encoded(config, tmp_path):
    says(train(config, tmp_path, IMAGE_SIZE=36), "IMAGE_SIZE 36", "4", "PATCH_SIZE 2")
    says(train(config, tmp_path, EMBED_DIM=130, NUM_HEADS=4), "EMBED_DIM", "130", "NUM_HEADS", "4")
    says(train(config, tmp_path, BATCH_SIZE=6, ACCUMULATION=4), "BATCH_SIZE", "6", "ACCUMULATION", "4")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_a_name_that_is_taken_while_the_script_runs(config, tmp_path):
    """What the constants' own check cannot see: links that lead nowhere."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent" / "folder")
    for name in ("loop", "nowhere"):
        for constant in ("RUN_DIR", "CACHE_DIR"):
            says(train(config, tmp_path, **{constant: tmp_path / name}), "cannot write", str(tmp_path / name))


def test_a_checkpoint_of_another_architecture(config, runs, tmp_path):
    constants = {"CHECKPOINT": runs / "clipSD" / "best", "OUTPUT_ROOT": tmp_path / "made"}
    message = run_script("sample_diffusion_clipUViT", "--config", config, *flags(**constants))
    says(message, "UNet2DConditionModel", "UViT")
    shutil.copytree(runs / "clipUViT", tmp_path / "run")
    says(train(config, tmp_path, EMBED_DIM=32, MAX_STEPS=8), "EMBED_DIM = 16", "32", "another experiment")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_no_checkpoint(config, tmp_path):
    constants = {"CHECKPOINT": tmp_path, "OUTPUT_ROOT": tmp_path / "made"}
    says(run_script("sample_diffusion_clipUViT", "--config", config, *flags(**constants)), "checkpoint", str(tmp_path))


def test_a_cache_of_another_encoder(config, tmp_path):
    assert train(config, tmp_path, MAX_STEPS=2) == 0
    path = tmp_path / "cache" / "moments" / "fingerprint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder": "another"}))
    shutil.rmtree(tmp_path / "run")
    says(train(config, tmp_path), "encoder", "CACHE_DIR")


def test_a_full_disk_while_caching(config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.cache.np.save", full)
    says(train(config, tmp_path), "no space left", "cache")
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_base_model_without_a_unet_or_with_another_models(config, base_model, tmp_path):
    base = Path(shutil.copytree(base_model, tmp_path / "base"))
    settings = json.loads((base / "unet" / "config.json").read_text())
    shutil.rmtree(base / "unet")
    constants = {"BASE_MODEL": base, "RUN_DIR": tmp_path / "run"}
    says(run_script("train_diffusion_clipSD", "--config", config, *flags(**constants)), str(base))
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_config({**settings, "cross_attention_dim": 24}).save_pretrained(base / "unet")
    says(run_script("train_diffusion_clipSD", "--config", config, *flags(**constants)), "24", "width")
