"""--CHECK true: every script says that nothing stands in its way, or what does; nothing is written, nothing long begun."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import BACKBONES, flags, launch, run_script, says
from tiny_models import make_autoencoder

from training.preflight import BYTES_A_PARAMETER
from utils.findings import prompts_of
from utils.mimic_cxr import read_table

CHECKED = "checked: nothing was found that would end this run"


@pytest.fixture(scope="module")
def bart(tokenizer, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("bart") / "bart"
    make_autoencoder(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def check(config, runs, bart, tree, tmp_path, capsys):  # noqa: F811
    """A function: script, constants => what it printed, or the sentence that it ended with. Its places are new ones."""
    places = {name: tmp_path / name for name in ("RUN_DIR", "CACHE_DIR", "OUTPUT_ROOT", "OUTPUT")}
    sizes = {"EMBED_DIM": 16, "DEPTH": 1, "NUM_HEADS": 2}
    needs = {
        **{f"train_diffusion_{backbone}": ["RUN_DIR", "CACHE_DIR"] for backbone in BACKBONES},
        **{f"sample_diffusion_{backbone}": ["OUTPUT_ROOT", "CACHE_DIR"] for backbone in BACKBONES},
        "train_bart": ["RUN_DIR"],
        "train_prior_model": ["RUN_DIR", "CACHE_DIR"],
        "sample_prior_model": ["OUTPUT_ROOT"],
        "evaluate_pairs": ["OUTPUT", "CACHE_DIR"],
    }
    others = {
        **{f"sample_diffusion_{name}": {"CHECKPOINT": runs / name / "best", "SPLIT": "validate"} for name in BACKBONES},
        "train_bart": {"INITIAL_WEIGHTS": bart},
        "train_prior_model": {"BART_CHECKPOINT": bart, "PRETRAINED": "", **sizes},
        "sample_prior_model": {"DATA_ROOT": tree, "VIEWS": "()", "HOLD_OUT": "()", "MAX_TOKENS": 5},
        "evaluate_pairs": {
            "REAL": tree, "SYNTHETIC": tree, "PAGE": tmp_path / "page.html", "JUDGE_MODEL": "test_resnet",
            "JUDGE_IMAGE_SIZE": 32, "JUDGE_BATCH_SIZE": 4,
        },
    }  # fmt: skip

    def run(script, **constants):
        own = {name: places[name] for name in needs[script]}
        constants = {"CHECK": True, **own, **others.get(script, {}), **constants}
        capsys.readouterr()
        ended = run_script(script, "--config", config, *flags(**constants))
        return ended or capsys.readouterr().out

    return run


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "script",
    [
        *(f"{kind}_diffusion_{backbone}" for kind in ("train", "sample") for backbone in BACKBONES),
        "train_bart",
        "train_prior_model",
        "sample_prior_model",
        "evaluate_pairs",
    ],
)
def test_nothing_in_the_way_and_nothing_written(script, check, checkpoints, tree, tmp_path):  # noqa: F811
    before = files(tmp_path), files(tree)
    constants = {"CHECKPOINT": checkpoints[0]} if script == "sample_prior_model" else {}
    said = check(script, **constants)
    assert said.rstrip().splitlines()[-1].startswith(CHECKED), said
    assert "MB at most, 0.0 MB there; free: " in said and "device: 1 x cpu" in said
    assert (files(tmp_path), files(tree)) == before


def test_what_it_says_of_a_training(check, config, tree):  # noqa: F811
    table = read_table(tree)
    counts = {split: f"{(table['split'] == split).sum()}" for split in ("train", "validate")}
    said = check("train_diffusion_clipUViT")
    assert f"examples: {counts['train']} train, {counts['validate']} validate; " in said
    assert "one pass of 4 examples: its loss is " in said and ": a new run" in said
    parameters = int(said.split(" validate; ")[1].split(" ")[0].replace(",", ""))
    # twice `last` (16 bytes a parameter), best and KEEP_CHECKPOINTS = 1 others (8)
    assert f"RUN_DIR: {(2 * 16 + 2 * 8) * parameters / 1e6:.1f} MB at most" in said
    rows = table[table["split"].isin(counts)]
    # an image: 2 x 4 x 8 x 8 float16 moments and 16 float32 of a reference; a prompt: 16 float32
    wanted = len(rows) * (1024 + 64) + len(set(prompts_of(rows))) * 64
    assert f"CACHE_DIR: {wanted / 1e6:.1f} MB at most" in said


def test_a_checkpoint_is_as_large_as_it_says(check, runs):  # noqa: F811
    parameters = int(check("train_diffusion_clipUViT").split(" validate; ")[1].split(" ")[0].replace(",", ""))
    for folder, wanted in BYTES_A_PARAMETER.items():
        place = runs / "clipUViT" / ("best" if folder == "checkpoint" else folder)
        found = sum(path.stat().st_size for path in files(place) if path.suffix in (".safetensors", ".pt"))
        assert wanted * parameters <= found <= 1.5 * wanted * parameters  # tiny tensors have large headers


def test_a_run_to_go_on_with_and_another_experiment(check, runs, config, tmp_path):  # noqa: F811
    run = shutil.copytree(runs / "clipUViT", tmp_path / "run")
    assert f"to go on from {run / 'last'}" in check("train_diffusion_clipUViT", RUN_DIR=run)
    says(check("train_diffusion_clipUViT", RUN_DIR=run, RESUME=False), "RESUME", str(run))
    says(check("train_diffusion_clipUViT", RUN_DIR=run, SEED=9), "SEED", "another experiment")
    (run / "last" / "optimizer.pt").unlink()
    says(check("train_diffusion_clipUViT", RUN_DIR=run), "optimizer.pt")


def test_two_processes(config, tmp_path):  # noqa: F811
    constants = flags(CHECK=True, RUN_DIR=tmp_path / "run", CACHE_DIR=tmp_path / "cache")
    said = launch("train_diffusion_clipUViT", config, *constants)
    assert said.count(CHECKED) == 1 and "one pass of 2 examples" in said and "device: 2 x cpu" in said
    assert not files(tmp_path)


def test_what_would_go_wrong_later(check, config, tree, runs, tmp_path):  # noqa: F811
    says(check("train_diffusion_clipUViT", DROP_TEXT=0.6, DROP_BOTH=0.6), "DROP_TEXT", "sum")
    says(check("train_diffusion_clipUViT", RUN_DIR="/proc/nowhere/run"), "cannot write", "/proc/nowhere/run")
    says(check("sample_diffusion_clipUViT", OUTPUT_ROOT=tree), "drawn tree, and no synthetic tree")
    says(check("sample_diffusion_clipUViT", SCHEDULER="Unheard"), "SCHEDULER")
    says(check("evaluate_pairs", WRITTEN=tmp_path), "reports.csv", "cannot be read")
    says(check("evaluate_pairs", BASE_MODEL=tmp_path / "none"), "no VAE", "none")
    says(check("evaluate_pairs", JUDGE_MODEL="unheard"), "SELECTOR_MODEL 'unheard'")


def test_an_empty_split(check, tree, tmp_path):  # noqa: F811
    table = read_table(tree)
    rows = table[table["split"] != "validate"]
    csv = pd.DataFrame(
        {
            "label": [json.dumps([0] * 14)] * len(rows),
            "ViewPosition": rows["view"],
            "split": rows["split"],
            "image_path": [str(Path(path).relative_to(tree)) for path in rows["image_path"]],
            "text": "FINDINGS: Clear.",
        }
    )
    csv.to_csv(tmp_path / "authors.csv", index=False)
    shutil.copytree(tree / "files", tmp_path / "files")
    says(check("train_diffusion_clipUViT", DATA_ROOT=tmp_path / "authors.csv"), "validate", "authors.csv")


def test_images_that_cannot_be_read(check, tree, tmp_path):  # noqa: F811
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    says(check("train_diffusion_clipUViT", DATA_ROOT=root), "none of 16 images tried can be read", str(root))


def test_a_disk_that_is_too_small(check, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("training.preflight.disk_usage", lambda folder: usage(10_000, 5_000, 5_000))
    says(check("train_diffusion_clipSD"), "RUN_DIR", "free", "this run may write")


def test_weights_that_are_no_numbers(check, runs, tmp_path):  # noqa: F811
    from safetensors.numpy import load_file, save_file

    broken = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "broken"))
    path = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: np.full_like(values, np.nan) for name, values in tensors.items()}, path)
    says(check("train_diffusion_clipUViT", INITIAL_WEIGHTS=broken), str(broken), "NaN")
