"""Synthetic trees: planned before they are made, made with one set of settings, and whole whatever ends a run."""

import copy
import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderTiny
from running import CSVS, contents, kill, pictures, provenance, sample, says
from tiny_models import WIDTH

from models.diffusion import PromptedDenoiser, sampling_scheduler
from sampling import plan
from sampling import tree as trees
from sampling.images import ImageSampler
from sampling.reference_pool import ReferencePool
from utils.checkpoints import weights_fingerprint
from utils.errors import InputError
from utils.findings import FINDINGS, to_physionet
from utils.folders import SYNTHETIC_TREE, making, read_manifest
from utils.latents import load_vae
from utils.mimic_cxr import image_file, read_table
from utils.pixels import read_pixels
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.references import References
from utils.seeds import keyed_seed


@pytest.fixture(scope="module")
def made(config, runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "tree"
    assert sample("clipUViT", config, runs, root, SPLIT="validate") == 0
    return root


@pytest.fixture
def killed(made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "killed"))
    kill(root, images_left=2)
    return root


# ---- what is written into


def test_a_tree_that_a_selector_chose_is_not_added_to(config, runs, made, tmp_path):
    """Samplers of earlier versions chose among candidates; a tree of theirs is read, and stays as it is."""
    root = Path(shutil.copytree(made, tmp_path / "chosen"))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest[SYNTHETIC_TREE] |= {"candidates": 6, "keep": "all", "selector": "of half the patients"}
    (root / "manifest.json").write_text(json.dumps(manifest))
    next(root.rglob("*.jpg")).unlink()
    before = contents(root)
    message = sample("clipUViT", config, runs, root, SPLIT="validate")
    says(message, str(root), "candidates = 6", "OUTPUT_ROOT")
    assert contents(root) == before


def test_a_real_tree_is_left_as_it_is(config, runs, tree, tmp_path):
    root = Path(shutil.copytree(tree, tmp_path / "real"))
    (root / "manifest.json").unlink()
    before = contents(root)
    for data in (root, tree):
        for output in (root, root / "files", tmp_path):
            says(sample("clipUViT", config, runs, output, SPLIT="validate", DATA_ROOT=data), str(output), "name a")
        says(sample("clipUViT", config, runs, root / "new", SPLIT="validate", DATA_ROOT=data), "lies inside")
    assert contents(root) == before
    says(sample("clipUViT", config, runs, tree, SPLIT="validate"), "drawn tree, and no synthetic tree")


def test_a_tree_of_an_earlier_version(config, runs, made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "earlier"))
    (root / "manifest.json").unlink()
    (root / "plan.csv").unlink()
    says(sample("clipUViT", config, runs, root, SPLIT="validate"), "no manifest.json", "name a new folder")


def test_an_output_that_is_a_file(config, runs, tmp_path):
    (tmp_path / "file").write_text("")
    says(sample("clipUViT", config, runs, tmp_path / "file", SPLIT="validate"), "is a file")


def test_two_samplers_at_once(config, runs, made):
    before = contents(made)
    with making(SYNTHETIC_TREE, made, read_manifest(made)[SYNTHETIC_TREE]):
        says(sample("clipUViT", config, runs, made, SPLIT="test"), str(made))
    assert contents(made) == before


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"GUIDANCE_INTERVAL": (5.0, 2.0)}, ["GUIDANCE_INTERVAL", "5.0, 2.0"]),
        ({"GUIDANCE_INTERVAL": (0.0, 1001.0)}, ["GUIDANCE_INTERVAL", "1001"]),
        ({"SCHEDULER": "Nothing"}, ["SCHEDULER", "Nothing"]),
    ],
)
def test_settings_that_make_no_image_begin_no_tree(config, runs, tmp_path, constants, words):
    says(sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", **constants), *words)
    assert not (tmp_path / "made").exists()


@pytest.fixture
def quick_decoder(tmp_path):
    """A function: sizes => the folder of an untrained AutoencoderTiny."""

    def save(levels=3, channels=4):
        sizes = {"encoder_block_out_channels": (8,) * levels, "decoder_block_out_channels": (8,) * levels}
        blocks = {"num_encoder_blocks": (1,) * levels, "num_decoder_blocks": (1,) * levels}
        AutoencoderTiny(**sizes, **blocks, latent_channels=channels).save_pretrained(tmp_path / "quick")
        return tmp_path / "quick"

    return save


def test_another_decoder_makes_the_images_of_the_same_latents(config, runs, made, tmp_path, quick_decoder):
    root, constants = tmp_path / "made", {"SPLIT": "validate", "DECODER": quick_decoder()}
    assert sample("clipUViT", config, runs, root, **constants) == 0
    stated, other = (json.loads((tree / "manifest.json").read_text())[SYNTHETIC_TREE] for tree in (root, made))
    assert stated == {**other, "decoder": weights_fingerprint(AutoencoderTiny.from_pretrained(tmp_path / "quick"))}
    latents = [sorted(np.load(path).tobytes() for path in (tree / "latents").iterdir()) for tree in (root, made)]
    images = [sorted(path.read_bytes() for path in tree.rglob("*.jpg")) for tree in (root, made)]
    assert latents[0] == latents[1] and not set(images[0]) & set(images[1])
    says(sample("clipUViT", config, runs, made, SPLIT="validate", DECODER=tmp_path / "quick"), str(made), "decoder")


@pytest.mark.parametrize(("sizes", "words"), [({"levels": 2}, "1/2 of the side"), ({"channels": 8}, "8 channels")])
def test_a_decoder_of_other_latents_is_refused(config, runs, tmp_path, quick_decoder, sizes, words):
    message = sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", DECODER=quick_decoder(**sizes))
    says(message, str(tmp_path / "quick"), words, "4 and 1/4")
    says(sample("clipUViT", config, runs, tmp_path / "made", DECODER=tmp_path / "no"), "DECODER", "madebyollin/taesd")
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
        ("GUIDANCE_INTERVAL", (0.5, 1000.0)),
    ],
)
def test_a_killed_tree_goes_on_with_its_own_settings_only(config, runs, killed, name, value):
    before = contents(killed)
    message = sample("clipUViT", config, runs, killed, SPLIT="validate", **{name: value})
    key, stated = ("guidance_low", 0.5) if name == "GUIDANCE_INTERVAL" else (name.lower(), value)
    says(message, f"{key} = ", f"this run has {stated!r}", "OUTPUT_ROOT")
    assert contents(killed) == before


def test_what_a_manifest_states(made):
    """Keys and their order, on which a tree's first number depends: a tree of an older version is added to."""
    assert list(read_manifest(made)[SYNTHETIC_TREE]) == [
        "condition", "text_guidance", "reference_guidance", "guidance_low", "guidance_high", "steps", "scheduler",
        "checkpoint_sha256", "image_size", "precision", "vae", "text_encoder", "reference_encoder",
    ]  # fmt: skip


def test_another_checkpoint_is_another_experiment(config, runs, killed, tmp_path):
    checkpoint = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "other"))
    model = PromptedDenoiser.from_pretrained(checkpoint)
    with torch.no_grad():
        model.fusion.text_embed.bias += 1
    model.save_pretrained(checkpoint)
    says(sample("clipUViT", config, runs, killed, SPLIT="validate", CHECKPOINT=checkpoint), "checkpoint_sha256 = ")


def test_a_killed_tree_becomes_the_one_that_was_not_killed(config, runs, made, killed):
    assert sample("clipUViT", config, runs, killed, SPLIT="validate") == 0
    one, other = contents(made), contents(killed)
    for run in (one, other):  # where they lie
        del run[Path("constants.json")]
    assert one == other


def test_a_killed_run_leaves_no_orphans_when_others_are_asked_for(config, runs, made, killed):
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


def test_a_damaged_image_is_named_and_made_again(config, runs, made, tmp_path, capsys):
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
        (lambda text: text.replace("\n", "\n../", 1), ["dicom_id '../", "cannot name"]),
    ],
)
def test_a_damaged_plan_is_named(config, runs, killed, spoil, words):
    path = killed / "plan.csv"
    path.write_text(spoil(path.read_text()))
    before = contents(killed)
    says(sample("clipUViT", config, runs, killed, SPLIT="validate"), str(path), *words)
    assert contents(killed).keys() - before.keys() <= {Path("constants.json")}


@pytest.mark.parametrize("name", CSVS)
def test_a_damaged_csv_of_the_tree_is_named_before_an_image_is_made(config, runs, made, tmp_path, name):
    root = Path(shutil.copytree(made, tmp_path / "tree"))
    lost = next(root.rglob("*.jpg"))
    lost.unlink()
    (root / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    says(sample("clipUViT", config, runs, root, SPLIT="validate"), str(root / name))
    assert not lost.exists()


# ---- ids, seeds and labels


def test_the_labels_of_two_splits_one_after_the_other(config, runs, tree, made, tmp_path):
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
    vectors = plan.label_vectors(None, 1, findings="edema")
    settings = {**dict.fromkeys(plan.SETTINGS, 1), "checkpoint_sha256": "abc"}

    def first(seed=1, count=2, **changed):
        requests = plan.make_requests(vectors, count, seed, {**settings, **changed}["checkpoint_sha256"])
        requests, _ = plan.plan_requests(requests, None, {**settings, **changed}, "best", tmp_path)
        return requests.subject_id.min()

    others = [first(), first(seed=2), first(steps=2), first(text_guidance=3.0), first(checkpoint_sha256="abd")]
    assert len(set(others)) == 5 and first() == others[0] == first(count=3)
    assert all(90_000_000 <= other <= 98_000_000 and other % 10_000 == 0 for other in others)


@pytest.mark.parametrize("label", ["[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0]", "(0,0,0,1,0,0,0,0,0,0,0,0,-1,0,)"])
def test_the_authors_labels_are_read_as_in_a_table_of_theirs(tmp_path, capsys, label):
    path = tmp_path / "labels.csv"
    pd.DataFrame({"label": [label, "", " ", label], "ViewPosition": "PA"}).to_csv(path, index=False)
    vectors = plan.label_vectors(None, 1, labels_csv=str(path))
    assert vectors.Edema.tolist() == [1, 1] and vectors.Pneumothorax.tolist() == [-1, -1]
    assert vectors.source.tolist() == ["labels.csv 0", "labels.csv 3"]
    assert "2 of 4 rows kept (2 without label dropped)" in capsys.readouterr().out


def test_a_labels_csv_names_the_images_of_its_rows_whose_patients_give_no_reference(config, runs, tree, tmp_path):
    asked = read_table(tree, splits=("train",)).iloc[:6]
    labels = pd.concat([asked[["dicom_id", "subject_id"]], to_physionet(asked[[*FINDINGS]])], axis=1)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert sample("clipUViT", config, runs, tmp_path / "made", LABELS_CSV=tmp_path / "labels.csv") == 0
    made = provenance(tmp_path / "made")
    assert sorted(made["source"]) == sorted(asked["dicom_id"])
    patients = read_table(tree).set_index("dicom_id")["subject_id"]
    assert (patients.loc[made["source"]].to_numpy() != patients.loc[made["reference_dicom_id"]].to_numpy()).all()


def test_each_image_of_a_label_vector_has_its_own_noise_and_name(config, runs, tmp_path):
    asked = {"FINDINGS": "edema", "IMAGES_PER_LABEL": 4}
    assert sample("clipUViT", config, runs, tmp_path / "made", **asked) == 0
    assert provenance(tmp_path / "made").seed.is_unique
    images = list(pictures(tmp_path / "made").values())
    assert len(images) == 4 and all(np.abs(images[0] - image).max() > 0 for image in images[1:])


def test_a_labels_csv_that_says_nothing(config, runs, tmp_path):
    path = tmp_path / "labels.csv"
    for content, word in (
        (",".join(FINDINGS) + "\n", "no rows"),
        ("label\n", "no rows"),
        ("", "cannot be read"),
        ('label\n"[1, 2]"\n', "no list of 14 codes"),
        ("label\n" + "[" * 20_000 + "\n", "no list of 14 codes"),
    ):
        path.write_text(content)
        says(sample("clipUViT", config, runs, tmp_path / "made", LABELS_CSV=path, CONDITION="text"), str(path), word)


def test_the_samplers_leave_out_whom_the_training_left_out(config, runs, tree, tmp_path):
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
def parts(runs, base_model):
    """A denoiser that hears its prompt well, and a text encoder."""
    model = PromptedDenoiser.from_pretrained(runs / "clipUViT" / "best").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, TextEncoder(base_model, pooled=True)


class OnePool:
    """References by name: a fixed embedding each."""

    def embeddings(self, names):
        return torch.stack([torch.full((WIDTH,), 3.0 if name == "first" else -3.0) for name in names])


@pytest.fixture
def draw(parts, base_model, accelerator):
    """A function: a prompt, a reference's name, settings => the latents of one image, (1, 4, 8, 8)."""

    def draw(prompt, reference, **settings):
        model, text_encoder = parts
        settings = {
            "condition": "both", "text_guidance": 2.0, "reference_guidance": 3.0, "steps": 3, "scheduler": "DDIM",
            "guidance_low": 0.0, "guidance_high": 1000.0, "image_size": 32, **settings,
        }  # fmt: skip
        sampler = ImageSampler(model, load_vae(base_model), text_encoder, settings, OnePool())
        return sampler.draw(pd.DataFrame({"prompt": [prompt], "reference_dicom_id": [reference], "seed": [7]}))

    return draw


@pytest.mark.parametrize(
    ("condition", "by_text", "by_reference"),
    [("both", True, True), ("text", True, False), ("reference", False, True)],
)
def test_an_image_depends_on_what_its_condition_names_and_on_nothing_else(draw, condition, by_text, by_reference):
    made = draw("A chest X ray image with edema", "first", condition=condition)
    other_text = draw("A chest X ray image with fracture", "first", condition=condition)
    other_reference = draw("A chest X ray image with edema", "second", condition=condition)
    assert torch.equal(made, other_text) != by_text
    assert torch.equal(made, other_reference) != by_reference


def test_a_trial_leaves_the_randomness_as_it_was(parts, base_model, accelerator):
    settings = {
        "condition": "both", "text_guidance": 2.0, "reference_guidance": 3.0, "steps": 999, "scheduler": "none",
        "guidance_low": 0.2, "guidance_high": 4.0, "image_size": 32,
    }  # fmt: skip
    before = torch.get_rng_state()
    ImageSampler(parts[0], load_vae(base_model), parts[1], settings, OnePool()).try_once("edema")
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def guided(model, text_encoder, prompt, reference, seed, text_guidance, reference_guidance, steps=3):
    """Latents by DDIM and equation 3 of Brooks et al. (2023), (1, 4, 8, 8); reference: an embedding, (1, WIDTH)."""
    text, no_text, no_reference = text_encoder.encode([prompt]), text_encoder.encode([""]), torch.zeros_like(reference)
    scheduler = sampling_scheduler("DDIM", model.schedule)
    scheduler.set_timesteps(steps)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(int(seed)))
    for timestep in scheduler.timesteps:
        neither, image, both = (
            model(latents, timestep[None], *prompts)
            for prompts in ((no_text, no_reference), (no_text, reference), (text, reference))
        )
        prediction = neither + reference_guidance * (image - neither) + text_guidance * (both - image)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents


def test_both_guidances_reach_the_images_of_a_tree(config, runs, tree, parts, reference_encoder_name, tmp_path):
    model, text_encoder = copy.deepcopy(parts[0]), parts[1]
    with torch.no_grad():
        model.fusion.text_embed.weight *= 30  # so that a reference changes more than half precision does
    checkpoint = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "best"))
    model.save_pretrained(checkpoint)
    encoder, paths = ReferenceEncoder(reference_encoder_name), read_table(tree).set_index("dicom_id").image_path
    for guidance, other in ((1.0, 3.0), (3.0, 1.0)):
        root = tmp_path / str(guidance)
        constants = {"CHECKPOINT": checkpoint, "SPLIT": "validate", "MAX_LABELS": 2, "SCHEDULER": "DDIM"}
        assert sample("clipUViT", config, runs, root, REFERENCE_GUIDANCE=guidance, TEXT_GUIDANCE=2.0, **constants) == 0
        assert len(provenance(root)) == 2
        for row in provenance(root).itertuples():
            latents = torch.from_numpy(np.load(root / "latents" / f"{row.Index}.npy")).float()
            embedding = encoder.encode(read_pixels(paths[row.reference_dicom_id], encoder.image_size)[None])
            drawn = model, text_encoder, row.prompt, embedding, row.seed
            wanted, wrong = guided(*drawn, 2.0, guidance)[0], guided(*drawn, 2.0, other)[0]
            assert (latents - wanted).abs().max() < 0.25 * (wrong - wanted).abs().max()


def test_damaged_weights_begin_no_tree(config, runs, tmp_path):
    """One image is tried first."""
    checkpoint = Path(shutil.copytree(runs / "clipUViT" / "best", tmp_path / "best"))
    model = PromptedDenoiser.from_pretrained(checkpoint)
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(torch.nan)
    model.save_pretrained(checkpoint)
    says(sample("clipUViT", config, runs, tmp_path / "made", SPLIT="validate", CHECKPOINT=checkpoint), "NaN")
    assert not (tmp_path / "made").exists()


# ---- references


@pytest.fixture
def pool_of(tree, reference_encoder_name, accelerator, tmp_path):
    """A function: root of a tree => a ReferencePool over it, and its cache's folder."""

    def make(root, folder="cache"):
        table = read_table(root, with_reports=False)
        fusion = PromptedDenoiserFusion()
        encoder = ReferenceEncoder(reference_encoder_name)
        return ReferencePool(table, encoder, fusion, tmp_path / folder, 4, accelerator)

    return make


class PromptedDenoiserFusion:
    class config:
        prompting, reference_dim = "own", WIDTH


def targets(tree, count=5):
    table = read_table(tree, splits=("test",), with_reports=False).head(count)
    return table.assign(seed=[keyed_seed("target", number) for number in range(len(table))])


def encoded(folder):
    return sum(len(np.load(path)) for path in folder.rglob("*.npy"))


def test_only_drawn_references_are_encoded(pool_of, tree, tmp_path):
    pool = pool_of(tree)
    drawn = pool.draw(targets(tree))
    assert encoded(tmp_path / "cache") == len(set(drawn)) < len(pool.table)
    assert pool.embeddings([*drawn, ""]).shape == (6, WIDTH) and (pool.embeddings([""]) == 0).all()


def test_an_unreadable_reference_is_drawn_anew_and_changes_no_other(pool_of, tree, tmp_path, capsys):
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


def test_a_tree_whose_references_cannot_be_read(pool_of, tree, tmp_path):
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="11 references in a row cannot be read, .* is DATA_ROOT"):
        pool_of(root).draw(targets(tree, 2))


def test_where_the_last_reference_cannot_be_read_there_is_none(pool_of, tree, tmp_path):
    pool = pool_of(tree)
    pool.table = pool.table.head(1)
    pool.references = References(pool.table)
    Path(pool.table.image_path[0]).rename(tmp_path / "kept")
    Path(pool.table.image_path[0]).write_bytes(b"no picture")
    try:
        assert pool.draw(targets(tree, 2)).tolist() == ["", ""]
    finally:
        (tmp_path / "kept").rename(pool.table.image_path[0])


def test_a_planned_reference_that_is_gone_is_named(pool_of, tree):
    pool = pool_of(tree)
    pool.prepare(["", pool.table.dicom_id[0]])
    with pytest.raises(InputError, match=r"1 references .* e\.g\. gone.*OUTPUT_ROOT"):
        pool.prepare(["gone", pool.table.dicom_id[0]])


def test_more_training_images_change_no_planned_reference(config, runs, tree, made, killed, tmp_path):
    """A request that was planned keeps its reference, with which its image was made."""
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
def test_what_ends_a_sampler_loses_no_image(config, runs, tmp_path, monkeypatch, capsys, event, status, batches):
    root, save, calls = tmp_path / "made", trees.save_array, []

    def save_array(*arguments):
        calls.append(1)
        if len(calls) == 3:  # in the second batch of two images
            event()
        save(*arguments)

    monkeypatch.setattr(trees, "save_array", save_array)
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


def test_a_missing_image_is_made_in_the_batch_that_it_was_of(config, runs, tmp_path, monkeypatch):
    """So that the others of its batch round it as they did before."""
    root, draw, batches = tmp_path / "made", ImageSampler.draw, []

    def record(sampler, batch):
        if "dicom_id" in batch:  # not the trial before
            batches.append(batch.dicom_id.tolist())
        return draw(sampler, batch)

    monkeypatch.setattr(ImageSampler, "draw", record)
    assert sample("clipUViT", config, runs, root, SPLIT="test", BATCH_SIZE=3) == 0
    first, before = list(batches), contents(root)
    lost = next(path for path in root.rglob("*.jpg") if path.stem == first[0][1])
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    assert sample("clipUViT", config, runs, root, SPLIT="test", BATCH_SIZE=3) == 0
    assert batches[len(first) :] == [first[0]] and len(first[0]) == 3
    assert contents(root) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())  # the others are left as they are
