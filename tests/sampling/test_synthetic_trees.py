"""Synthetic trees: planned before they are made, made with one set of settings, and whole whatever ends a run."""

import gzip
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts import config, pictures, runs, sample, says, tree  # noqa: F401
from tiny_models import WIDTH

from models.diffusion import Guidance, PromptedDenoiser, Prompts, sample_latents, sampling_scheduler
from sampling import images as synthesis
from sampling import plan
from sampling.reference_pool import ReferencePool
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.folders import SYNTHETIC_TREE, making, read_manifest
from utils.latents import encode_moments, latent_shape, load_vae, mean_latents, read_pixels
from utils.mimic_cxr import image_file, read_table
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.references import References
from utils.seeds import keyed_seed

CSVS = ("synthetic.csv", *(f"mimic-cxr-2.0.0-{kind}.csv.gz" for kind in ("metadata", "chexpert", "split")))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def provenance(root):
    return pd.read_csv(root / "synthetic.csv", keep_default_na=False).set_index("dicom_id")


def kill(root, images_left):
    """Leaves a tree as SIGKILL does: some images and their latents, the manifest and the plan, but no CSV."""
    for name in CSVS:
        (root / name).unlink()
    for path in sorted(root.rglob("*.jpg"))[images_left:]:
        path.unlink()
        (root / "latents" / f"{path.stem}.npy").unlink()


@pytest.fixture(scope="module")
def made(config, runs, tmp_path_factory):  # noqa: F811
    root = tmp_path_factory.mktemp("made") / "tree"
    assert sample("clipUViT", config, runs, root, SPLIT="validate") == 0
    return root


@pytest.fixture
def killed(made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "killed"))
    kill(root, images_left=2)
    return root


# ---- what is written into


def test_a_real_tree_is_left_as_it_is(config, runs, tree, tmp_path):  # noqa: F811
    root = Path(shutil.copytree(tree, tmp_path / "real"))
    (root / "manifest.json").unlink()
    before = contents(root)
    for data in (root, tree):
        for output in (root, root / "files", tmp_path):
            says(sample("clipUViT", config, runs, output, SPLIT="validate", DATA_ROOT=data), str(output), "name a")
        says(sample("clipUViT", config, runs, root / "new", SPLIT="validate", DATA_ROOT=data), "lies inside")
    assert contents(root) == before
    says(sample("clipUViT", config, runs, tree, SPLIT="validate"), "drawn tree, and no synthetic tree")


def test_a_tree_of_an_earlier_version(config, runs, made, tmp_path):  # noqa: F811
    root = Path(shutil.copytree(made, tmp_path / "earlier"))
    (root / "manifest.json").unlink()
    (root / "plan.csv").unlink()
    says(sample("clipUViT", config, runs, root, SPLIT="validate"), "no manifest.json", "name a new folder")


def test_an_output_that_is_a_file(config, runs, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("")
    says(sample("clipUViT", config, runs, tmp_path / "file", SPLIT="validate"), "is a file")


def test_two_samplers_at_once(config, runs, made):  # noqa: F811
    before = contents(made)
    with making(SYNTHETIC_TREE, made, read_manifest(made)[SYNTHETIC_TREE]):
        says(sample("clipUViT", config, runs, made, SPLIT="test"), str(made))
    assert contents(made) == before


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"STEPS": 0}, ["STEPS", "0"]),
        ({"STEPS": -3}, ["STEPS", "-3"]),
        ({"STEPS": 2000}, ["STEPS", "2000"]),
        ({"TEXT_GUIDANCE": "1e999"}, ["TEXT_GUIDANCE", "inf"]),
        ({"REFERENCE_GUIDANCE": "1e999"}, ["REFERENCE_GUIDANCE", "inf"]),
        ({"GUIDANCE_LOW": 5.0, "GUIDANCE_HIGH": 2.0}, ["GUIDANCE_LOW 5.0", "GUIDANCE_HIGH 2.0"]),
        ({"SCHEDULER": "Nothing"}, ["SCHEDULER", "Nothing"]),
        ({"CONDITION": "words"}, ["CONDITION", "words"]),
    ],
)
def test_settings_that_make_no_image_begin_no_tree(config, runs, tmp_path, constants, words):  # noqa: F811
    says(sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", **constants), *words)
    assert not (tmp_path / "made").exists()


# ---- killed runs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEXT_GUIDANCE", 5.0),
        ("REFERENCE_GUIDANCE", 5.0),
        ("STEPS", 4),
        ("SCHEDULER", "DDIM"),
        ("CONDITION", "text"),
    ],
)
def test_a_killed_tree_goes_on_with_its_own_settings_only(config, runs, killed, name, value):  # noqa: F811
    before = contents(killed)
    message = sample("clipUViT", config, runs, killed, SPLIT="validate", **{name: value})
    says(message, f"{name.lower()} = ", f"this run has {value!r}", "OUTPUT_ROOT")
    assert contents(killed) == before


@pytest.mark.parametrize("backbone", ["clipUViT", "clipSD"])
def test_images_that_begin_with_their_references(backbone, config, runs, tree, tmp_path):  # noqa: F811
    asked = {"SPLIT": "validate", "MAX_LABELS": 3, "START": "reference"}
    for size in (1, 2):
        root = tmp_path / str(size)
        assert sample(backbone, config, runs, root, BATCH_SIZE=size, CACHE_DIR=tmp_path / "cache", **asked) == 0
    one, two = pictures(tmp_path / "1"), pictures(tmp_path / "2")
    assert one.keys() == two.keys()
    assert max(np.abs(one[name] - two[name]).max() for name in one) <= 1  # of 255: rounding
    assert set(provenance(tmp_path / "1").start) == {"reference"}
    encoded = sum(len(np.load(path)) for path in (tmp_path / "cache" / "moments").glob("*.npy"))
    assert encoded == provenance(tmp_path / "1").reference_dicom_id.nunique()  # and no others
    assert sample(backbone, config, runs, tmp_path / "noise", **{**asked, "START": "noise"}) == 0
    noise = pictures(tmp_path / "noise")
    assert one.keys() == noise.keys() and all((one[name] != noise[name]).any() for name in one)
    # as of a tree from before there was a choice
    assert "start" not in read_manifest(tmp_path / "noise")[SYNTHETIC_TREE]
    says(sample(backbone, config, runs, tmp_path / "noise", **asked), "start", "OUTPUT_ROOT")


def test_a_start_without_a_reference_is_refused(config, runs, tmp_path):  # noqa: F811
    message = sample("clipUViT", config, runs, tmp_path / "made", START="reference", CONDITION="text")
    says(message, "START 'reference'", "CONDITION 'text'")
    assert not (tmp_path / "made").exists()


def test_every_setting_of_the_manifest_is_compared(config, runs, killed):  # noqa: F811
    path = killed / "manifest.json"
    whole = json.loads(path.read_text())
    for name in (
        "condition", "text_guidance", "reference_guidance", "guidance_low", "guidance_high", "steps", "scheduler",
        "checkpoint_sha256", "image_size", "precision", "vae", "text_encoder", "reference_encoder",
    ):  # fmt: skip
        path.write_text(json.dumps({SYNTHETIC_TREE: {**whole[SYNTHETIC_TREE], name: "other"}}))
        says(sample("clipUViT", config, runs, killed, SPLIT="validate"), f"begun with {name} = 'other', this run has")
    assert len(whole[SYNTHETIC_TREE]) == 13


def test_another_checkpoint_is_another_experiment(config, runs, killed, tmp_path):  # noqa: F811
    checkpoint = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "other"))
    model = PromptedDenoiser.from_pretrained(checkpoint)
    with torch.no_grad():
        model.fusion.text_embed.bias += 1
    model.save_pretrained(checkpoint)
    says(sample("clipUViT", config, runs, killed, SPLIT="validate", CHECKPOINT=checkpoint), "checkpoint_sha256 = ")


def test_a_killed_tree_becomes_the_one_that_was_not_killed(config, runs, made, killed):  # noqa: F811
    assert sample("clipUViT", config, runs, killed, SPLIT="validate") == 0
    one, other = contents(made), contents(killed)
    for run in (one, other):  # where they lie
        del run[Path("constants.json")]
    assert one == other


def test_a_killed_run_leaves_no_orphans_when_others_are_asked_for(config, runs, made, killed):  # noqa: F811
    assert sample("clipUViT", config, runs, killed, SPLIT="test") == 0
    table, told = read_table(killed), provenance(killed)
    assert sorted(table.image_path) == sorted(map(str, killed.rglob("*.jpg")))
    assert table.dicom_id.tolist() == told.index.tolist() and table.study_id.is_unique
    first = provenance(made)
    kept = told[told.index.isin(first.index)]
    assert len(kept) == 2  # what the killed run had made
    pd.testing.assert_frame_equal(kept, first.loc[kept.index])
    assert sample("clipUViT", config, runs, killed, SPLIT="validate") == 0
    pd.testing.assert_frame_equal(provenance(killed).loc[first.index], first)


def test_a_damaged_image_is_named_and_made_again(config, runs, made, tmp_path, capsys):  # noqa: F811
    root = Path(shutil.copytree(made, tmp_path / "tree"))
    victim = sorted(root.rglob("*.jpg"))[1]
    victim.write_bytes(b"")
    assert sample("clipUViT", config, runs, root, SPLIT="validate") == 0
    assert f"damaged: {victim}" in capsys.readouterr().out
    assert victim.read_bytes() == (made / victim.relative_to(root)).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: "", ["cannot be read as a CSV"]),
        (lambda text: text.replace("Edema", "Oedema"), ["no column 'Edema'"]),
        (lambda text: text + text.splitlines()[-1] + "\n", ["wrong dicom_id"]),
        (lambda text: re.sub(r",9\d{7},", ",10000000,", text, count=1), ["wrong subject_id"]),
        (lambda text: text.replace("\n", "\n../", 1), ["dicom_id '../", "cannot name"]),
        (lambda text: text[:-3] + "77\n", ["wrong label"]),
    ],
)
def test_a_damaged_plan_is_named(config, runs, killed, spoil, words):  # noqa: F811
    path = killed / "plan.csv"
    path.write_text(spoil(path.read_text()))
    before = contents(killed)
    says(sample("clipUViT", config, runs, killed, SPLIT="validate"), str(path), *words)
    assert contents(killed).keys() - before.keys() <= {Path("constants.json")}


@pytest.mark.parametrize("name", CSVS)
@pytest.mark.parametrize("content", [b"", b"dicom_id\n", b"\xff\xfe", "a folder"])
def test_a_damaged_csv_of_the_tree_is_named_before_an_image_is_made(config, runs, made, tmp_path, name, content):  # noqa: F811
    root = Path(shutil.copytree(made, tmp_path / "tree"))
    lost = next(root.rglob("*.jpg"))
    lost.unlink()
    (root / name).unlink()
    if content == "a folder":
        (root / name).mkdir()
    else:
        (root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    says(sample("clipUViT", config, runs, root, SPLIT="validate"), str(root / name))
    assert not lost.exists()


# ---- ids, seeds and labels


def test_the_labels_of_two_splits_one_after_the_other(config, runs, tree, made, tmp_path):  # noqa: F811
    root = Path(shutil.copytree(made, tmp_path / "tree"))
    assert sample("clipUViT", config, runs, root, SPLIT="test") == 0
    table, first = read_table(root), provenance(made)
    asked = read_table(tree, splits=("validate", "test"))
    assert len(table) == len(asked) and table.study_id.is_unique and table.subject_id.is_unique
    pd.testing.assert_frame_equal(provenance(root).loc[first.index], first)  # its number and its reference too
    labels = asked.set_index("dicom_id")[list(FINDINGS)]
    for row in table.itertuples():
        source = provenance(root).source[row.dicom_id]
        assert [getattr(row, name, None) or table.loc[row.Index, name] for name in FINDINGS] == labels.loc[
            source
        ].tolist()
    # MIMIC's patients are p10 to p19 and its studies s50 to s59: a merged tree joins nobody's
    assert table.subject_id.between(90_000_000, 99_999_999).all() and (table.subject_id == table.study_id).all()
    assert table.subject_id.min() == read_table(made).subject_id.min()
    assert sorted(table.subject_id) == list(range(table.subject_id.min(), table.subject_id.min() + len(table)))


def test_trees_of_other_settings_begin_at_other_numbers(tmp_path):
    vectors = plan.label_vectors("edema", "", None, "", 0, 1)
    settings = {**dict.fromkeys(plan.SETTINGS, 1), "checkpoint_sha256": "abc"}

    def first(seed=1, count=2, **changed):
        requests, _ = plan.plan_requests(vectors, count, None, {**settings, **changed}, "best", seed, tmp_path)
        return requests.subject_id.min()

    others = [first(), first(seed=2), first(steps=2), first(text_guidance=3.0), first(checkpoint_sha256="abd")]
    assert len(set(others)) == 5 and first() == others[0] == first(count=3)
    assert all(90_000_000 <= other <= 98_000_000 and other % 10_000 == 0 for other in others)


def test_a_tree_beyond_the_last_number_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_first_id", lambda *_: plan.LAST_ID - 1)
    vectors = plan.label_vectors("edema", "", None, "", 0, 1)
    settings = {**dict.fromkeys(plan.SETTINGS, 1), "checkpoint_sha256": "abc"}
    plan.plan_requests(vectors, 2, None, settings, "best", 1, tmp_path)
    with pytest.raises(InputError, match="would hold more than 2 images.*name another OUTPUT_ROOT"):
        plan.plan_requests(vectors, 3, None, settings, "best", 1, tmp_path)


@pytest.mark.parametrize("label", ["[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0]", "(0,0,0,1,0,0,0,0,0,0,0,0,-1,0,)"])
def test_the_authors_labels_are_read_as_in_a_table_of_theirs(tmp_path, capsys, label):
    path = tmp_path / "labels.csv"
    pd.DataFrame({"label": [label, "", " ", label], "ViewPosition": "PA"}).to_csv(path, index=False)
    vectors = plan.label_vectors("", str(path), None, "", 0, 1)
    assert vectors.Edema.tolist() == [1, 1] and vectors.Pneumothorax.tolist() == [-1, -1]
    assert vectors.source.tolist() == ["labels.csv 0", "labels.csv 3"]
    assert "2 of 4 rows kept (2 without label dropped)" in capsys.readouterr().out


def test_each_image_of_a_label_vector_has_its_own_noise_and_name(config, runs, tmp_path):  # noqa: F811
    asked = {"FINDINGS": "edema", "IMAGES_PER_LABEL": 4}
    assert sample("clipUViT", config, runs, tmp_path / "made", **asked) == 0
    assert provenance(tmp_path / "made").seed.is_unique
    images = list(pictures(tmp_path / "made").values())
    assert len(images) == 4 and all(np.abs(images[0] - image).max() > 0 for image in images[1:])


def test_a_labels_csv_that_says_nothing(config, runs, tmp_path):  # noqa: F811
    path = tmp_path / "labels.csv"
    for content, word in (
        (",".join(FINDINGS) + "\n", "no rows"),
        ("label\n", "no rows"),
        ("", "cannot read"),
        ('label\n"[1, 2]"\n', "no list of 14 codes"),
        ("label\n" + "[" * 20_000 + "\n", "no list of 14 codes"),
    ):
        path.write_text(content)
        says(sample("clipUViT", config, runs, tmp_path / "made", LABELS_CSV=path, CONDITION="text"), str(path), word)


def test_the_samplers_leave_out_whom_the_training_left_out(config, runs, tree, tmp_path):  # noqa: F811
    checkpoint = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "best"))
    training = json.loads((checkpoint / "training.json").read_text())
    held_out = ["p10", "p11", "p12", "p13", "p14", "p15"]
    training["constants"]["HOLD_OUT"] = held_out
    (checkpoint / "training.json").write_text(json.dumps(training))
    assert sample("clipUViT", config, runs, tmp_path / "made", SPLIT="test", CHECKPOINT=checkpoint) == 0
    told, real = provenance(tmp_path / "made"), read_table(tree, hold_out=tuple(held_out)).set_index("dicom_id")
    assert sorted(told.source) == sorted(real.index[real.split == "test"])
    group = "p" + real.subject_id[told.reference_dicom_id].astype(str).str[:2]
    assert len(group) and not group.isin(held_out).any()


# ---- what prompts an image


@pytest.fixture(scope="module")
def parts(runs, base_model):  # noqa: F811
    """A denoiser that hears its prompt well, and a text encoder."""
    model = PromptedDenoiser.from_pretrained(runs / "clipUViT" / "best").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, TextEncoder(base_model, pooled=True)


class OnePool:
    """References by name: a fixed embedding each, and fixed latents."""

    def embeddings(self, names):
        return torch.stack([torch.full((WIDTH,), 3.0 if name == "first" else -3.0) for name in names])

    def latents(self, names, shape):
        return torch.stack([torch.full(shape, 1.0 if name == "first" else -1.0) for name in names])


def draw(parts, accelerator, condition, prompt, reference, **further):
    model, text_encoder = parts
    batch = pd.DataFrame({"prompt": [prompt], "reference_dicom_id": [reference], "seed": [7]})
    settings = {
        "condition": condition, "text_guidance": 2.0, "reference_guidance": 3.0, "steps": 3, "scheduler": "DDIM",
        "guidance_low": 0.0, "guidance_high": 1000.0, **further,
    }  # fmt: skip
    return synthesis.draw_batch(batch, settings, model, text_encoder, OnePool(), (4, 8, 8), accelerator)


@pytest.mark.parametrize(
    ("condition", "hears_text", "hears_reference"),
    [("both", True, True), ("text", True, False), ("reference", False, True)],
)
def test_an_image_hears_what_its_condition_says_and_nothing_else(
    parts, accelerator, condition, hears_text, hears_reference
):
    made = draw(parts, accelerator, condition, "A chest X ray image with edema", "first")
    other_text = draw(parts, accelerator, condition, "A chest X ray image with fracture", "first")
    other_reference = draw(parts, accelerator, condition, "A chest X ray image with edema", "second")
    assert torch.equal(made, other_text) != hears_text
    assert torch.equal(made, other_reference) != hears_reference


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"text_guidance": float("inf")}, {"reference_guidance": float("nan")}, {"broken": True}]
)
def test_what_is_no_number_is_no_image(parts, change):
    model, text_encoder = parts
    arguments = {"steps": 2, "text_guidance": 2.0, "reference_guidance": 2.0, **change}
    steps, guidances = arguments["steps"], (arguments["text_guidance"], arguments["reference_guidance"])
    weight = next(model.denoiser.parameters())
    kept = weight.detach().clone()
    if arguments.pop("broken", False):
        weight.data[0] = torch.nan
    text = text_encoder.encode(["A chest X ray image"])
    with pytest.raises(InputError, match="STEPS|guidances|NaN"):
        prompts = Prompts(text, torch.zeros(1, WIDTH), text[0])
        scheduler = sampling_scheduler("DDIM", model.schedule)
        sample_latents(model, scheduler, prompts, Guidance(*guidances), [1], (4, 8, 8), steps)
    weight.data.copy_(kept)


def test_damaged_weights_make_no_black_images(config, runs, tmp_path):  # noqa: F811
    checkpoint = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "best"))
    model = PromptedDenoiser.from_pretrained(checkpoint)
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(torch.nan)
    model.save_pretrained(checkpoint)
    says(sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", CHECKPOINT=checkpoint), "NaN")
    assert not list(tmp_path.rglob("*.jpg"))


class Examples:
    """A validation split that remembers which rows were asked for."""

    class features:
        texts = {"": np.zeros(WIDTH, dtype=np.float32)}  # noqa: RUF012

    def __init__(self, count):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, row_and_seed):
        self.asked.append(row_and_seed[0])
        return {"latents": torch.zeros(4, 8, 8), "text": torch.zeros(WIDTH), "reference": torch.zeros(WIDTH)}


def test_previews_are_of_drawn_rows_not_of_the_first():
    asked = []
    for count in (100, 100, 5):
        examples = Examples(count)
        synthesis.Preview(examples, None, None, 2, 1.0, seed=3)
        asked.append(examples.asked)
    assert asked[0] == asked[1] and len(set(asked[0])) == 8 and max(asked[0]) >= 50 > min(asked[0])
    assert sorted(asked[2]) == [0, 1, 2, 3, 4]


# ---- references


@pytest.fixture
def pool_of(tree, reference_encoder_name, accelerator, tmp_path):  # noqa: F811
    """A function: root of a tree => a ReferencePool over it, and its cache's folder."""

    def make(root, folder="cache"):
        table = read_table(root, with_reports=False)
        fusion = PromptedDenoiserFusion()
        encoder = ReferenceEncoder(reference_encoder_name)
        return ReferencePool(table, encoder, fusion, tmp_path / folder, 4, 0, accelerator)

    return make


class PromptedDenoiserFusion:
    class config:
        prompting, reference_dim = "own", WIDTH


def targets(tree, count=5):  # noqa: F811
    table = read_table(tree, splits=("test",), with_reports=False).head(count)
    return table.assign(seed=[keyed_seed("target", number) for number in range(len(table))])


def encoded(folder):
    return sum(len(np.load(path)) for path in folder.rglob("*.npy"))


def test_only_drawn_references_are_encoded(pool_of, tree, tmp_path):  # noqa: F811
    pool = pool_of(tree)
    drawn = pool.draw(targets(tree))
    assert encoded(tmp_path / "cache") == len(set(drawn)) < len(pool.table)
    assert pool.embeddings([*drawn, ""]).shape == (6, WIDTH) and (pool.embeddings([""]) == 0).all()


def test_the_latents_of_references(pool_of, tree, base_model):  # noqa: F811
    vae = load_vae(base_model)
    pool = pool_of(tree)
    drawn = pool.draw(targets(tree))
    pool.prepare_latents([*drawn, ""], vae, 32)
    pool.prepare_latents(["", drawn[0]], vae, 32)  # which is there
    shape = latent_shape(vae, 32)
    found = pool.latents([*drawn, ""], shape)
    assert found.shape == (6, *shape) and (found[-1] == 0).all()
    path = pool.table.set_index("dicom_id").image_path[drawn[1]]
    wanted = mean_latents(encode_moments(vae, read_pixels(path, 32)[None]), vae.config.scaling_factor)[0]
    torch.testing.assert_close(found[1], wanted, atol=2e-2, rtol=2e-3)  # kept in half precision

    other = pool_of(tree, "other")
    next(vae.encoder.parameters()).data.fill_(torch.nan)
    with pytest.raises(InputError, match="no latents of 1 references"):
        other.prepare_latents([drawn[0]], vae, 32)


def test_an_unreadable_reference_is_drawn_anew_and_changes_no_other(pool_of, tree, tmp_path, capsys):  # noqa: F811
    drawn = pool_of(tree).draw(targets(tree))
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    for name in {drawn[1], drawn[3]}:
        next(root.rglob(f"{name}.jpg")).write_bytes(b"no picture")
    spoiled = [place for place, name in enumerate(drawn) if name in (drawn[1], drawn[3])]
    again = pool_of(root, "other").draw(targets(tree))
    assert f"{drawn[1]}.jpg" in capsys.readouterr().out
    for place, name in enumerate(again):
        assert (name == drawn[place]) != (place in spoiled)
        assert name and name not in (drawn[1], drawn[3])
        alone = pool_of(root, f"alone {place}").draw(targets(tree).iloc[[place]])
        assert alone.tolist() == [name]


def test_a_tree_whose_references_cannot_be_read(pool_of, tree, tmp_path):  # noqa: F811
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="11 references in a row cannot be read .* is DATA_ROOT whole"):
        pool_of(root).draw(targets(tree, 2))


def test_where_the_last_reference_cannot_be_read_there_is_none(pool_of, tree, tmp_path):  # noqa: F811
    pool = pool_of(tree)
    pool.table = pool.table.head(1)
    pool.references = References(pool.table)
    Path(pool.table.image_path[0]).rename(tmp_path / "kept")
    Path(pool.table.image_path[0]).write_bytes(b"no picture")
    try:
        assert pool.draw(targets(tree, 2)).tolist() == ["", ""]
    finally:
        (tmp_path / "kept").rename(pool.table.image_path[0])


def test_a_planned_reference_that_is_gone_is_named(pool_of, tree):  # noqa: F811
    pool = pool_of(tree)
    pool.prepare(["", pool.table.dicom_id[0]])
    with pytest.raises(InputError, match=r"1 references .* e\.g\. gone"):
        pool.prepare(["gone", pool.table.dicom_id[0]])


def test_more_training_images_change_no_planned_reference(config, runs, tree, made, killed, tmp_path):  # noqa: F811
    """A request that was planned keeps its reference, or the tree would tell of another one than the image was made with."""
    root = Path(shutil.copytree(tree, tmp_path / "larger"))
    table = read_table(tree, splits=("train",))
    for kind in ("metadata", "chexpert", "split"):
        path = root / f"mimic-cxr-2.0.0-{kind}.csv.gz"
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        extra = frame[frame.subject_id.isin(table.subject_id.astype(str))].copy()
        for name, offset in (("subject_id", 500_000), ("study_id", 5_000_000)):
            extra[name] = (extra[name].astype(int) + offset).astype(str)
        if "dicom_id" in extra:
            extra["dicom_id"] = "x" + extra["dicom_id"]
        with gzip.open(path, "wt", newline="") as file:
            pd.concat([frame, extra]).to_csv(file, index=False)
    for row in table.itertuples():
        path = image_file(root, row.subject_id + 500_000, row.study_id + 5_000_000, f"x{row.dicom_id}")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.image_path, path)
    assert sample("clipUViT", config, runs, killed, SPLIT="validate", DATA_ROOT=root) == 0
    pd.testing.assert_frame_equal(provenance(killed), provenance(made))


def interrupt():
    raise KeyboardInterrupt


def full_disk():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("event", "status", "batches"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 0, 2),  # the batch is finished
        (interrupt, 130, 1),
        (full_disk, "no space left", 1),
    ],
)
def test_what_ends_a_sampler_loses_no_image(config, runs, tmp_path, monkeypatch, capsys, event, status, batches):  # noqa: F811
    root, save, calls = tmp_path / "made", synthesis.save_array, []

    def save_array(*arguments):
        calls.append(1)
        if len(calls) == 3:  # in the second batch of two images
            event()
        save(*arguments)

    monkeypatch.setattr(synthesis, "save_array", save_array)
    handler = signal.getsignal(signal.SIGTERM)
    ended = sample("clipUViT", config, runs, root, SPLIT="test", BATCH_SIZE=2)
    assert status in ended if isinstance(status, str) else ended == status
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(read_table(root)) == len(provenance(root)) == 2 * batches == len(list(root.rglob("*.jpg")))
    if status == 0:
        assert f"stopped; the images made so far are in {root}: the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    assert sample("clipUViT", config, runs, root, SPLIT="test", BATCH_SIZE=2) == 0
    assert sample("clipUViT", config, runs, tmp_path / "whole", SPLIT="test", BATCH_SIZE=2) == 0
    one, other = contents(root), contents(tmp_path / "whole")
    for run in (one, other):
        del run[Path("constants.json")]  # the folder's name
    assert one == other


def test_a_missing_image_is_made_in_the_batch_that_it_was_of(config, runs, tmp_path, monkeypatch):  # noqa: F811
    """So that the others of its batch round it as they did before."""
    root, draw, batches = tmp_path / "made", synthesis.draw_batch, []

    def record(batch, *arguments):
        batches.append(batch.dicom_id.tolist())
        return draw(batch, *arguments)

    monkeypatch.setattr(synthesis, "draw_batch", record)
    assert sample("clipUViT", config, runs, root, SPLIT="test", BATCH_SIZE=3) == 0
    first, before = list(batches), contents(root)
    lost = next(path for path in root.rglob("*.jpg") if path.stem == first[0][1])
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    assert sample("clipUViT", config, runs, root, SPLIT="test", BATCH_SIZE=3) == 0
    assert batches[len(first) :] == [first[0]] and len(first[0]) == 3
    assert contents(root) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())  # the others are left as they are
