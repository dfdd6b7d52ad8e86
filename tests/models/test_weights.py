"""Tiny random files in exactly the layouts of the authors' and of the official U-ViT, against plain computations."""

import json
import math
import os
import pickle
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from running import ROOT as REPOSITORY
from small_data import REPORTS, make_tree
from tiny_models import random_weights, save_lightning, uvit_state
from transformers import BartConfig, BartForConditionalGeneration, ViTConfig, ViTModel

from models.diffusion import PromptedDenoiser, noise_schedule
from models.prior import Prior
from models.report_autoencoder import ReportAutoencoder
from models.weights import (
    load_autoencoder,
    load_prior,
    load_vision,
    read_tensors,
    start_from,
)
from utils.checkpoints import check_encoders, weights_fingerprint
from utils.errors import InputError
from utils.findings import FINDINGS, to_prompt
from utils.mimic_cxr import image_file, write_tree
from utils.pixels import read_pixels
from utils.prompts import PooledFusion, ReferenceEncoder, TextEncoder
from utils.references import NONE, References
from uvit.model import UViT

WIDTH, DEPTH, TEXT = 128, 4, 16  # of the U-ViT: 2 heads of 64; TEXT: of the tiny CLIP


# ---- the vision module: U-ViT --------------------------------------------------------------------------------------


def restated(weights, latents, timestep, text, reference):
    """The authors' U-ViT with its prompt, from the equations (Bao et al. 2023, section 3); 2 heads of 64 channels."""

    def linear(name, x):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"uvit.uvit.{name}.weight"] + weights[f"uvit.uvit.{name}.bias"]

    def block(name, x):
        query, key, value = linear(f"uvit.uvit.{name}.attn.qkv", norm(f"{name}.norm1", x)).chunk(3, dim=-1)
        heads = []
        for head in (slice(0, 64), slice(64, 128)):
            scores = query[..., head] @ key[..., head].transpose(1, 2) / 64**0.5
            heads.append(scores.softmax(-1) @ value[..., head])
        x = x + linear(f"uvit.uvit.{name}.attn.proj", torch.cat(heads, -1))
        hidden = linear(f"uvit.uvit.{name}.mlp.fc1", norm(f"{name}.norm2", x))
        return x + linear(f"uvit.uvit.{name}.mlp.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    def skip(name, x, earlier):
        return block(name, linear(f"uvit.uvit.{name}.skip_linear", torch.cat((x, earlier), -1)))

    angles = timestep * torch.tensor([10000 ** (-index / 64) for index in range(64)])
    time = torch.cat((angles.cos(), angles.sin()))
    kernel, bias = weights["uvit.uvit.patch_embed.proj.weight"], weights["uvit.uvit.patch_embed.proj.bias"]
    patches = [
        (latents[:, None, :, y : y + 2, x : x + 2] * kernel).sum((2, 3, 4)) + bias
        for y in (0, 2, 4, 6)
        for x in (0, 2, 4, 6)
    ]
    prompt = linear("uvit.text_embed", (text + reference) / 2)
    x = torch.stack([prompt, time.expand_as(prompt), *patches], 1) + weights["uvit.uvit.pos_embed"]
    first = block("in_blocks.0", x)
    second = block("in_blocks.1", first)
    x = skip("out_blocks.1", skip("out_blocks.0", block("mid_block", second), second), first)
    x = linear("uvit.uvit.decoder_pred", norm("norm", x))[:, 2:]  # (B, 16, 2 * 2 * 4)
    image = torch.stack([
        torch.stack([
            x[:, (row // 2) * 4 + column // 2, (row % 2) * 8 + (column % 2) * 4 :][:, :4] for column in range(8)
        ], -1)
        for row in range(8)
    ], -2)  # fmt: skip
    return F.conv2d(image, weights["uvit.uvit.final_layer.weight"], weights["uvit.uvit.final_layer.bias"], padding=1)


def test_the_authors_uvit_computes_the_equations(uvit_file, base_model, capsys):
    model, training = load_vision(uvit_file, "UViT", base_model)
    config = model.denoiser.config
    assert (config.img_size, config.patch_size, config.in_chans) == (8, 2, 4)
    assert (config.embed_dim, config.depth, config.num_heads, config.mlp_ratio) == (128, 4, 2, 4)
    weights = torch.load(uvit_file, weights_only=True)["state_dict"]
    generator = torch.Generator().manual_seed(1)
    latents, text, reference = (torch.randn(3, *shape, generator=generator) for shape in ((4, 8, 8), (TEXT,), (TEXT,)))
    with torch.no_grad():
        found = model.eval()(latents, torch.full((3,), 333), text, reference)
        expected = restated(weights, latents, 333, text, reference)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    count = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("uvit."))
    assert count == sum(parameter.numel() for parameter in model.parameters())
    printed = capsys.readouterr().out
    assert f"{count:,} parameters; 2 tensors of frozen models (text_encoder, vae) skipped" in printed
    assert "samples as its authors trained it" in printed
    assert training["constants"]["IMAGE_SIZE"] == 256 and training["constants"]["HOLD_OUT"] == ["p19"]
    assert model.schedule.config == noise_schedule(base_model, "epsilon").config


def test_an_authors_file_is_in_memory_once(tmp_path, base_model):
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("the peak of the memory in use can be read on Linux only")
    state = uvit_state(width=512, depth=8)
    path = save_lightning(tmp_path / "large.ckpt", state, optimizer_states=[torch.zeros(30_000_000)])
    size = sum(tensor.numel() for tensor in state.values()) * 4
    del state

    def kilobytes(name):
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

    peak.write_text("5")
    before = kilobytes("VmRSS")
    model, _ = load_vision(path, "UViT", base_model)
    weights_fingerprint(model)  # every number is looked at
    assert size > 100e6
    assert (kilobytes("VmHWM") - before) * 1024 < 1.3 * size


# ---- the vision module: sampling as the authors did ----------------------------------------------------------------

EDEMA, FRACTURE, PNEUMONIA = (
    [1 if name == finding else 0 for name in FINDINGS] for finding in ("Edema", "Fracture", "Pneumonia")
)


@pytest.fixture
def tree(tmp_path):
    """A CXR tree: two training images with an edema and one with a fracture; to sample, an edema and a pneumonia."""
    rows = []
    for number, (labels, split) in enumerate(
        ((FRACTURE, "train"), (EDEMA, "train"), (EDEMA, "train"), (EDEMA, "test"), (PNEUMONIA, "test"))
    ):
        ids = {"dicom_id": f"image-{number}", "subject_id": 10_000_000 + number, "study_id": 50_000_000 + number}
        path = image_file(tmp_path / "tree", ids["subject_id"], ids["study_id"], ids["dicom_id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs = np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)
        Image.fromarray(blobs).resize((32, 32)).save(path)
        rows.append(
            {**ids, "view": "PA", "split": split, "report": "", "image_path": str(path)} | dict(zip(FINDINGS, labels))
        )
    table = pd.DataFrame(rows).astype(dict.fromkeys(FINDINGS, np.int8))
    write_tree(tmp_path / "tree", table)
    return table


@pytest.fixture
def run_script(monkeypatch):
    def run_script(script, **constants):
        arguments = [text for name, value in constants.items() for text in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", [script, *arguments])
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as error:
            raise InputError(str(error)) from error

    return run_script


@pytest.fixture
def sample(run_script, tree, base_model, reference_encoder_name, tmp_path):
    """A function: script, its constants => rows of synthetic.csv, and the latents, by the findings asked for."""

    def sample(script, output, **constants):
        root = tmp_path / output
        run_script(
            script, DATA_ROOT=tmp_path / "tree", CACHE_DIR=tmp_path / "cache", BASE_MODEL=base_model, OUTPUT_ROOT=root,
            REFERENCE_ENCODER=reference_encoder_name, SCHEDULER="PNDM", STEPS=3, TEXT_GUIDANCE=4.0,
            REFERENCE_GUIDANCE=4.0, DEVICE="cpu", **constants,
        )  # fmt: skip
        made = pd.read_csv(root / "synthetic.csv", keep_default_na=False).set_index("prompt").sort_index()
        return made, [torch.from_numpy(np.load(root / "latents" / f"{name}.npy")).float() for name in made.dicom_id]

    return sample


def conditions(tree, base_model, reference_encoder_name):
    """For an edema and a pneumonia: their prompts, and the first edema's embedding and none."""
    encoder = ReferenceEncoder(reference_encoder_name)
    embedding = encoder.encode(read_pixels(tree.image_path[1], encoder.image_size)[None])
    return [(to_prompt(EDEMA), embedding), (to_prompt(PNEUMONIA), torch.zeros_like(embedding))]


def initial_noise(seed):
    return torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(int(seed)))


def test_an_authors_uvit_samples_as_its_authors_did(
    sample, run_script, tree, tmp_path, base_model, reference_encoder_name
):
    path = save_lightning(tmp_path / "clipUViT.ckpt", uvit_state(side=64, depth=2))
    made, latents = sample("sample_diffusion_clipUViT.py", "synthetic", CHECKPOINT=path)
    assert made.reference_dicom_id.tolist() == ["image-1", ""]

    model, _ = load_vision(path, "UViT", base_model)
    text_encoder = TextEncoder(base_model, pooled=True)
    with torch.no_grad():
        ends = torch.full((1, 77), text_encoder.tokenizer.eos_token_id)
        null = model.fusion.text_embed(text_encoder.model(ends).pooler_output)[:, None]
        for (prompt, embedding), found in zip(conditions(tree, base_model, reference_encoder_name), latents):
            token = model.fusion.text_embed((text_encoder.encode([prompt]) + embedding) / 2)[:, None]
            scheduler = PNDMScheduler.from_pretrained(base_model, subfolder="scheduler")
            scheduler.set_timesteps(3)
            expected = initial_noise(made.seed[prompt])
            for timestep in scheduler.timesteps:
                without, guided = (model.denoiser(expected, timestep[None], prompt) for prompt in (null, token))
                expected = scheduler.step(without + 4 * (guided - without), timestep, expected).prev_sample
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected[0], atol=2e-3 * expected.abs().max().item(), rtol=0)

    folder = tmp_path / "converted"
    run_script(
        "models/weights.py",
        CHECKPOINT=path,
        OUTPUT=folder,
        BASE_MODEL=base_model,
        REFERENCE_ENCODER=reference_encoder_name,
    )
    again, same = sample("sample_diffusion_clipUViT.py", "again", CHECKPOINT=folder, BATCH_SIZE=1)
    assert again.dicom_id.tolist() == made.dicom_id.tolist() and again.reference_dicom_id.tolist() == ["image-1", ""]
    for first, second in zip(latents, same):
        torch.testing.assert_close(first, second, atol=2e-3 * first.abs().max().item(), rtol=0)
    with pytest.raises(InputError, match=r"it is for sample_diffusion_clipUViT\.py"):
        sample("sample_diffusion_clipSD.py", "other", CHECKPOINT=path)


def test_an_authors_unet_samples_as_its_authors_did(sample, tree, tmp_path, base_model, reference_encoder_name):
    unet = UNet2DConditionModel.from_pretrained(base_model, subfolder="unet")
    weights = random_weights(unet)
    unet.load_state_dict(weights)
    path = save_lightning(tmp_path / "clipSD.ckpt", {f"unet.{name}": tensor for name, tensor in weights.items()})
    made, latents = sample("sample_diffusion_clipSD.py", "synthetic", CHECKPOINT=path)
    assert made.reference_dicom_id.tolist() == ["image-1", ""]

    pipeline = StableDiffusionPipeline.from_pretrained(
        base_model, unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    for (prompt, embedding), found in zip(conditions(tree, base_model, reference_encoder_name), latents):
        tokens = pipeline.tokenizer([prompt], return_tensors="pt", padding=True, truncation=True).input_ids
        assert tokens.shape[1] < 20
        with torch.no_grad():
            fused = torch.cat((pipeline.text_encoder(tokens)[0], embedding[:, None]), dim=1)
        expected = pipeline(
            prompt_embeds=fused, height=256, width=256, num_inference_steps=3, guidance_scale=4.0, output_type="latent",
            latents=initial_noise(made.seed[prompt]),
        ).images  # fmt: skip
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected[0], atol=2e-3 * expected.abs().max().item(), rtol=0)


def test_the_null_prompt_beside_the_longest_text(base_model):
    encoder = TextEncoder(base_model, pooled=False)
    for length in (9, 76, 77):
        text, reference = encoder.null_prompt("authors", length)
        assert text.shape == (length, TEXT) and reference.shape == (TEXT,)
        tokens = encoder.encode([""])[0]
        torch.testing.assert_close(text, tokens[:length], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(reference, tokens[min(length, 76)], atol=1e-5, rtol=1e-4)


def test_the_first_reference_is_the_authors(make_table):
    table = make_table([FRACTURE, EDEMA, EDEMA, PNEUMONIA], [1, 2, 3, 4])
    references = References(table.iloc[:3])
    assert references.first_for(table).tolist() == [0, 1, 1, NONE]  # its own image too, as in their training


# ---- the official U-ViT --------------------------------------------------------------------------------------------


def test_training_starts_from_the_official_uvit(tmp_path, base_model, capsys):
    weights = {
        name.removeprefix("uvit.uvit."): tensor for name, tensor in uvit_state().items() if "text_embed" not in name
    }
    torch.save({**weights, "label_emb.weight": torch.randn(1001, WIDTH)}, tmp_path / "imagenet.pth")
    torch.manual_seed(0)
    fusion = PooledFusion(TEXT, TEXT, WIDTH)
    drawn = weights_fingerprint(fusion)
    model = PromptedDenoiser(UViT(8, 2, 4, WIDTH, DEPTH, 2), fusion, DDPMScheduler())
    start_from(model, str(tmp_path / "imagenet.pth"))
    assert weights_fingerprint(fusion) == drawn and model.fusion.config.prompting == "own"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.denoiser.state_dict().items())
    assert f"an official U-ViT, {len(weights) + 1} tensors" in capsys.readouterr().out

    torch.save({**weights, "class_emb.weight": torch.randn(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"class_emb\.weight that belong to no model"):
        start_from(model, str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match="set the sizes in the script's constants"):
        start_from(
            PromptedDenoiser(UViT(8, 2, 4, WIDTH, 2, 2), fusion, DDPMScheduler()), str(tmp_path / "imagenet.pth")
        )
    with pytest.raises(InputError, match="it is for INITIAL_WEIGHTS"):
        load_vision(str(tmp_path / "imagenet.pth"), "UViT", base_model)


def test_the_training_script_takes_the_official_uvit(
    tmp_path, tree, run_script, base_model, reference_encoder_name, capsys
):
    weights = {
        name.removeprefix("uvit.uvit."): tensor for name, tensor in uvit_state().items() if "text_em" not in name
    }
    torch.save({**weights, "label_emb.weight": torch.randn(1001, WIDTH)}, tmp_path / "imagenet.pth")
    with pytest.raises(InputError, match="no rows in the split 'validate'"):  # behind the loading
        run_script(
            "train_diffusion_clipUViT.py", DATA_ROOT=tmp_path / "tree", BASE_MODEL=base_model, IMAGE_SIZE=32,
            DEVICE="cpu", REFERENCE_ENCODER=reference_encoder_name, CACHE_DIR=tmp_path / "cache",
 RUN_DIR=tmp_path / "run",
            NUM_WORKERS=0,
            INITIAL_WEIGHTS=tmp_path / "imagenet.pth", EMBED_DIM=WIDTH, DEPTH=DEPTH, NUM_HEADS=2,
        )  # fmt: skip
    assert f"an official U-ViT, {len(weights) + 1} tensors" in capsys.readouterr().out


def test_training_starts_from_an_authors_file(uvit_file, tmp_path, base_model):
    model = PromptedDenoiser(UViT(8, 2, 4, WIDTH, DEPTH, 2), PooledFusion(TEXT, TEXT, WIDTH), DDPMScheduler())
    start_from(model, uvit_file)
    weights = torch.load(uvit_file, weights_only=True)["state_dict"]
    assert torch.equal(model.fusion.text_embed.weight, weights["uvit.text_embed.weight"])
    assert torch.equal(model.denoiser.pos_embed, weights["uvit.uvit.pos_embed"])
    assert model.fusion.config.prompting == "own"


# ---- the prior and BART --------------------------------------------------------------------------------------------

NAMES_OF_2023 = (  # today's transformers => the names in the authors' file
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


@pytest.fixture
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, image_size=8, patch_size=2,
        num_channels=4, layer_norm_eps=1e-12, initializer_range=0.2,
    )  # fmt: skip
    model = ViTModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases and norms too
            torch.nn.init.normal_(parameter, mean=float("layernorm" in name and "weight" in name), std=0.2)
    return model


def save_prior(vit, path):
    state = {}
    for name, tensor in vit.state_dict().items():
        for today, then in NAMES_OF_2023:
            name = name.replace(today, then)
        state[f"prior_model.{name}"] = tensor
    return save_lightning(path, state | {"language_model.model.shared.weight": torch.zeros(3, 3)})


@pytest.fixture
def prior_file(vit, tmp_path):
    return save_prior(vit, tmp_path / "prior.ckpt")


def test_the_authors_prior_is_hugging_faces_vit(vit, prior_file, tmp_path, run_script):
    assert "prior_model.encoder.layer.1.attention.attention.query.bias" in read_tensors(prior_file, "prior")
    prior, training = load_prior(prior_file)
    latents = torch.randn(5, 4, 8, 8)
    with torch.no_grad():
        expected = vit(latents).pooler_output
    assert expected.std() > 0.1
    assert (prior.eval().sample(latents) - expected).abs().max() <= 1e-5
    check_encoders(training, vae="a", bart="b", pooling="mean")  # it says none, so there is nothing to compare

    run_script("models/weights.py", CHECKPOINT=prior_file, OUTPUT=tmp_path / "converted", BART_CHECKPOINT="bart")
    again, training = load_prior(tmp_path / "converted")
    assert isinstance(again, Prior) and weights_fingerprint(again) == weights_fingerprint(prior)
    assert training["constants"]["BART_CHECKPOINT"] == "bart"
    assert (again.eval().sample(latents) - expected).abs().max() <= 1e-5


def small_prior(**others):
    return Prior(4, 8, 2, 128, 2, 2, 128, **others)


def test_a_prior_starts_from_another_and_predicts_what_it_did(prior_file, tmp_path, capsys):
    torch.manual_seed(1)
    latents, (mean, std) = torch.randn(5, 4, 8, 8), (torch.randn(128), torch.rand(128) + 0.5)
    other = small_prior()
    other.set_statistics(torch.randn(128), torch.rand(128) + 0.5)
    other.save_pretrained(tmp_path / "other")
    own = small_prior()
    own.set_statistics(mean, std)
    start_from(own, str(tmp_path / "other"))
    torch.testing.assert_close(own.eval().sample(latents), other.eval().sample(latents), atol=1e-4, rtol=1e-4)
    assert torch.equal(own.report_mean, mean) and "its head fits the report latents" in capsys.readouterr().out

    authors, _ = load_prior(prior_file)
    raw = authors.eval().sample(latents)  # tanh of a linear layer
    own = small_prior(layer_norm_epsilon=1e-12)
    own.set_statistics(raw[0], std)  # where the tangent touches
    start_from(own, prior_file)
    inside = raw[0].abs() < 0.9
    assert inside.sum() > 50 and own.config.pooler == "linear"
    torch.testing.assert_close(own.eval().sample(latents[:1])[0, inside], raw[0, inside], atol=1e-4, rtol=1e-4)
    step = 1e-3 * torch.randn(1, 4, 8, 8)
    moved, expected = (prior.sample(latents[:1] + step)[0, inside] - raw[0, inside] for prior in (own, authors))
    assert (moved - expected).abs().max() < 0.05 * expected.abs().max()

    constant = small_prior()
    constant.set_statistics(mean, torch.zeros(128))
    start_from(constant, prior_file)
    assert constant.head.weight.isfinite().all() and not constant.head.weight.any()


def test_a_prior_of_other_sizes_is_no_start(prior_file, tmp_path):
    small_prior().save_pretrained(tmp_path / "other")
    for source in (prior_file, str(tmp_path / "other")):
        with pytest.raises(InputError, match="is of another size: DEPTH is 1 and its 2"):
            start_from(Prior(4, 8, 2, 128, 1, 2, 128), source)
    with pytest.raises(InputError, match="NUM_HEADS is 4 and its 2"):
        start_from(Prior(4, 8, 2, 128, 2, 4, 128), str(tmp_path / "other"))


@pytest.fixture
def bart(tokenizer):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=128, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=48, max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


@pytest.fixture
def bart_file(bart, tmp_path):
    return save_lightning(
        tmp_path / "bart.ckpt", {f"model.{name}": tensor for name, tensor in bart.state_dict().items()}
    )


@pytest.fixture
def tokenizer_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("pooling", ["mean", "bos", "eos"])
def test_the_authors_bart_is_transformers_bart(pooling, bart, bart_file, tokenizer_folder, tmp_path, run_script):
    assert (
        sum(name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight")) for name in bart.state_dict())
        == 4
    )
    autoencoder = load_autoencoder(bart_file, pooling, tokenizer_folder).eval()
    tokens = autoencoder.tokenizer(REPORTS, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        states = bart.model.encoder(ids, attention_mask=mask).last_hidden_state
        rows = [state[: count.item()] for state, count in zip(states, mask.sum(1))]  # without padding
        pooled = {"mean": lambda row: row.mean(0), "bos": lambda row: row[0], "eos": lambda row: row[-1]}[pooling]
        expected = torch.stack([pooled(row) for row in rows])
        shifted = torch.cat((torch.full((len(ids), 1), 2), ids[:, :-1]), 1)
        decoded = bart.model.decoder(input_ids=shifted, encoder_hidden_states=expected[:, None]).last_hidden_state
        logits = decoded @ bart.model.shared.weight.T + bart.final_logits_bias
        torch.testing.assert_close(autoencoder.encode(ids, mask), expected, atol=1e-5, rtol=1e-4)
        assert logits.std() > 0.1
        torch.testing.assert_close(autoencoder(ids, mask)[0], logits, atol=1e-4, rtol=1e-4)
    shared = autoencoder.bart.model.shared.weight
    assert autoencoder.bart.lm_head.weight is shared and autoencoder.bart.model.decoder.embed_tokens.weight is shared

    run_script(
        "models/weights.py",
        CHECKPOINT=bart_file,
        OUTPUT=tmp_path / "bart",
        POOLING=pooling,
        TOKENIZER=tokenizer_folder,
    )
    again = load_autoencoder(str(tmp_path / "bart"), "mean", "/nowhere")
    assert isinstance(again, ReportAutoencoder) and again.pooling == pooling
    assert again.fingerprint() == autoencoder.fingerprint()


@pytest.fixture
def converted_bart(bart_file, tokenizer_folder, run_script, tmp_path):
    """The authors' BART as a folder, pooled by its last token."""
    folder = tmp_path / "converted"
    run_script("models/weights.py", CHECKPOINT=bart_file, OUTPUT=folder, POOLING="eos", TOKENIZER=tokenizer_folder)
    return folder


def test_a_prior_is_trained_on_the_authors_bart(
    converted_bart, bart_file, tokenizer_folder, base_model, run_script, tmp_path
):
    table = make_tree(tmp_path / "reported")
    table.loc[6:, "split"] = "validate"
    write_tree(tmp_path / "reported", table)
    run_script(
        "train_prior_model.py", DATA_ROOT=tmp_path / "reported", BASE_MODEL=base_model, BART_CHECKPOINT=converted_bart,
        IMAGE_SIZE=32, CACHE_DIR=tmp_path / "cache", RUN_DIR=tmp_path / "run", PRETRAINED="", EMBED_DIM=16, DEPTH=1,
        NUM_HEADS=2, BATCH_SIZE=2, MAX_STEPS=1, EVALUATION_IMAGES=2, DEVICE="cpu", NUM_WORKERS=0,
    )  # fmt: skip
    prior, training = load_prior(str(tmp_path / "run" / "best"))
    assert prior.config.report_dim == 128 and training["encoders"]["pooling"] == "eos"
    autoencoder = load_autoencoder(bart_file, "eos", tokenizer_folder)
    check_encoders(training, bart=autoencoder.fingerprint(), pooling=autoencoder.pooling)


def test_a_prior_is_trained_on_from_the_authors(prior_file, converted_bart, base_model, run_script, tmp_path, capsys):
    table = make_tree(tmp_path / "reported")
    table.loc[6:, "split"] = "validate"
    write_tree(tmp_path / "reported", table)
    before = Path(prior_file).read_bytes()
    run_script(
        "train_prior_model.py", DATA_ROOT=tmp_path / "reported", BASE_MODEL=base_model, BART_CHECKPOINT=converted_bart,
        IMAGE_SIZE=32, CACHE_DIR=tmp_path / "cache", RUN_DIR=tmp_path / "run",
        INITIAL_WEIGHTS=prior_file, EMBED_DIM=128, DEPTH=2, NUM_HEADS=2, BATCH_SIZE=2, MAX_STEPS=1, EVALUATION_IMAGES=2,
        LEARNING_RATE=1e-7, DEVICE="cpu", NUM_WORKERS=0,
    )  # fmt: skip
    assert f"prior: started from {prior_file}" in capsys.readouterr().out
    trained, authors = load_prior(str(tmp_path / "run" / "last"))[0], load_prior(prior_file)[0]
    for name, tensor in authors.vit.state_dict().items():
        torch.testing.assert_close(trained.vit.state_dict()[name], tensor, atol=1e-5, rtol=0)
    assert Path(prior_file).read_bytes() == before


def test_a_bart_is_trained_on_from_the_authors(
    bart_file, converted_bart, tokenizer_folder, run_script, tmp_path, capsys
):
    frame = pd.DataFrame({"split": ["train"] * 6 + ["validate"] * 2 + ["test", ""], "text": (REPORTS * 10)[:10]})
    frame.loc[0, "text"] = "none"
    frame.to_csv(tmp_path / "reports.csv", index=False)
    before = Path(bart_file).read_bytes()
    run_script(
        "train_bart.py", DATA_ROOT=tmp_path / "reports.csv", INITIAL_WEIGHTS=converted_bart, RUN_DIR=tmp_path / "run",
        BATCH_SIZE=2, MAX_STEPS=1, POOLING="eos", LEARNING_RATE=1e-7, DEVICE="cpu", NUM_WORKERS=0,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "9 of 10 rows kept (1 without split dropped)" in printed
    assert "6 train, 2 validate, 1 test reports; it names no view and no patient" in printed
    assert "8 of 9 studies have one" in printed
    trained = load_autoencoder(str(tmp_path / "run" / "last"), "", "/nowhere")
    authors = load_autoencoder(bart_file, "eos", tokenizer_folder)
    assert trained.pooling == "eos" and (authors.bart.config.dropout, authors.bart.config.attention_dropout) == (
        0.1,
        0.1,
    )
    for name, tensor in authors.bart.state_dict().items():
        torch.testing.assert_close(trained.bart.state_dict()[name], tensor, atol=1e-5, rtol=0)
    assert Path(bart_file).read_bytes() == before


def test_image_to_report_with_the_authors_files(
    prior_file, bart_file, tokenizer_folder, tree, run_script, tmp_path, capsys
):
    (tmp_path / "tree" / "latents").mkdir()
    for number, dicom_id in enumerate(tree.dicom_id):
        latents = np.random.default_rng(number).normal(size=(4, 8, 8)).astype("f2")
        np.save(tmp_path / "tree" / "latents" / f"{dicom_id}.npy", latents)
    constants = {"DATA_ROOT": tmp_path / "tree", "OUTPUT_ROOT": tmp_path / "written", "CHECKPOINT": prior_file}
    constants |= {"TOKENIZER": tokenizer_folder, "DEVICE": "cpu", "MAX_TOKENS": 12, "NUM_WORKERS": 0}
    with pytest.raises(InputError, match="set BART_CHECKPOINT"):
        run_script("sample_prior_model.py", **constants)
    run_script("sample_prior_model.py", **constants, BART_CHECKPOINT=bart_file)
    assert len(pd.read_csv(tmp_path / "written" / "reports.csv")) == len(tree)
    assert "taken unchecked" in capsys.readouterr().out


# ---- files that are not what they should be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("uvit.uvit.norm.bias", None, r"uvit\.uvit\.norm\.bias is missing"),
        ("uvit.uvit.pos_embed", None, r"no uvit\.uvit\.pos_embed of 3 dimensions"),
        ("uvit.uvit.extra", torch.zeros(1), r"uvit\.uvit\.extra is .* instead of absent"),
        ("ema.decay", torch.zeros(1), r"ema\.decay that belong to no model known"),
        ("uvit.uvit.norm.bias", torch.zeros(3), r"norm\.bias is \(3,\) instead of \(128,\)"),
        ("uvit.uvit.pos_embed", torch.zeros(3), r"no uvit\.uvit\.pos_embed of 3 dimensions"),
        ("uvit.uvit.norm.bias", torch.full((128,), torch.nan), r"NaN or infinity, e\.g\. norm\.bias"),
        ("uvit.uvit.norm.bias", [0.0], "no dictionary of named tensors"),
    ],
)
def test_tensors_that_cannot_be_placed_are_named(name, tensor, message, tmp_path, base_model):
    state = uvit_state() | {name: tensor}
    if tensor is None:
        del state[name]
    path = save_lightning(tmp_path / "bad.ckpt", state)
    with pytest.raises(InputError, match=message) as error:
        load_vision(path, "UViT", base_model)
    assert "\n" not in str(error.value)


def test_a_file_of_nobody_known_is_refused(tmp_path, base_model):
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"none of the authors' four files .* layer\.weight"):
        load_vision(str(tmp_path / "other.ckpt"), "UViT", base_model)


def test_an_incomplete_prior_is_refused_in_its_own_names(prior_file):
    checkpoint = torch.load(prior_file, weights_only=True)
    del checkpoint["state_dict"]["prior_model.encoder.layer.1.attention.attention.key.bias"]
    torch.save(checkpoint, prior_file)
    with pytest.raises(InputError, match=r"prior_model\.encoder\.layer\.1\.attention\.attention\.key\.bias is missing"):
        load_prior(prior_file)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.system, (f"touch {self.sprung}",)


FORMATS = {
    "zip": torch.save,
    "legacy": partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("form", FORMATS)
def test_no_code_in_a_file_is_run(form, tmp_path, base_model):
    path, sprung = tmp_path / "trap.ckpt", tmp_path / "sprung"
    FORMATS[form]({"state_dict": uvit_state(), "optimizer_states": [Trap(sprung)]}, path)
    with pytest.raises(InputError, match=r"holds code.* nothing of it was run") as error:
        load_vision(str(path), "UViT", base_model)
    assert "\n" not in str(error.value) and not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # the trap works
    assert sprung.exists()


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_file_is_refused(keep, uvit_file, base_model):
    whole = Path(uvit_file).read_bytes()
    Path(uvit_file).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=f"cannot read {uvit_file}: .*; get the file from its authors again") as error:
        load_vision(uvit_file, "UViT", base_model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def tiny_denoiser(heads=2):
    return PromptedDenoiser(UViT(8, 2, 4, WIDTH, DEPTH, heads), PooledFusion(TEXT, TEXT, WIDTH), DDPMScheduler())


def test_weights_that_are_not_there(base_model):
    place = "runs/nowhere/best"
    loaders = [
        ("CHECKPOINT", lambda: load_vision(place, "UViT", base_model)),
        ("CHECKPOINT", lambda: load_prior(place)),
        ("BART_CHECKPOINT", lambda: load_autoencoder(place, "mean", "/nowhere")),
        ("INITIAL_WEIGHTS", lambda: start_from(tiny_denoiser(), place)),
    ]
    for constant, load in loaders:
        with pytest.raises(InputError, match=f"there is no checkpoint {place}: set {constant} to a ") as error:
            load()
        assert "hub" not in str(error.value) and "\n" not in str(error.value)


def test_a_bart_that_is_neither_here_nor_on_the_hub():
    with pytest.raises(InputError, match="no BART with its tokenizer in 'runs/nowhere'"):
        ReportAutoencoder.from_pretrained("runs/nowhere", "mean")


def test_the_papers_start_is_asked_for_before_anything_is_encoded(
    tmp_path, tree, run_script, base_model, reference_encoder_name, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"no checkpoint imagenet256_uvit_large\.pth: .*https://github\.com/baofff/U-ViT; .*'' for"
    ):
        run_script(
            "train_diffusion_clipUViT.py", DATA_ROOT=tmp_path / "tree", BASE_MODEL=base_model, IMAGE_SIZE=32,
            DEVICE="cpu", REFERENCE_ENCODER=reference_encoder_name, CACHE_DIR=tmp_path / "cache",
 RUN_DIR=tmp_path / "run",
            NUM_WORKERS=0,
        )  # fmt: skip
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_an_older_format_loads(uvit_file, tmp_path, base_model):
    torch.save(torch.load(uvit_file), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    old, new = (load_vision(str(path), "UViT", base_model)[0] for path in (tmp_path / "old.ckpt", uvit_file))
    assert weights_fingerprint(old) == weights_fingerprint(new)


def test_a_conversion_says_what_it_wrote(uvit_file, tmp_path, base_model, run_script):
    folder = tmp_path / "converted"
    run_script("models/weights.py", CHECKPOINT=uvit_file, OUTPUT=folder, BASE_MODEL=base_model)
    assert json.loads((folder / "fusion" / "config.json").read_text())["prompting"] == "authors"
    assert json.loads((folder / "training.json").read_text())["constants"]["BASE_MODEL"] == base_model
    assert math.isclose(PromptedDenoiser.from_pretrained(folder).schedule.config.beta_end, 0.012)
    with pytest.raises(InputError, match="has files in it already"):
        run_script("models/weights.py", CHECKPOINT=uvit_file, OUTPUT=folder, BASE_MODEL=base_model)


def test_a_conversion_is_there_as_a_whole_or_not_at_all(uvit_file, tmp_path, base_model, run_script, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("diffusers.DDPMScheduler.save_pretrained", full)  # after the weights
        with pytest.raises(InputError, match=r"cannot write the checkpoint under .*converted: no space left"):
            run_script("models/weights.py", CHECKPOINT=uvit_file, OUTPUT=tmp_path / "converted", BASE_MODEL=base_model)
    assert [path.name for path in tmp_path.iterdir()] == ["clipUViT.ckpt"]
    (tmp_path / "converted").mkdir()  # an empty folder is as good as none
    run_script("models/weights.py", CHECKPOINT=uvit_file, OUTPUT=tmp_path / "converted", BASE_MODEL=base_model)
    assert load_vision(str(tmp_path / "converted"), "UViT")[0].denoiser.config.num_heads == 2


# ---- sizes that no shape tells, and frozen models of another size --------------------------------------------------


def test_heads_of_another_width_are_said_and_never_guessed(tmp_path, base_model, run_script, capsys):
    uvit = UViT(8, 2, 4, 64, 2, num_heads=4)  # 16 channels a head
    weights = random_weights(uvit)
    uvit.load_state_dict(weights)
    state = {f"uvit.uvit.{name}": tensor for name, tensor in weights.items()}
    state |= random_weights(torch.nn.Linear(TEXT, 64), "uvit.text_embed.")
    path = save_lightning(tmp_path / "narrow.ckpt", state)
    with pytest.raises(
        InputError, match=r"a width of 64, which is not two or more .* of 64 channels.*models\.weights --HEAD_W"
    ):
        load_vision(path, "UViT", base_model)
    for wrong in (17, 64):
        with pytest.raises(InputError, match=f"attention heads of {wrong} channels"):
            load_vision(path, "UViT", base_model, head_width=wrong)

    run_script(
        "models/weights.py", CHECKPOINT=path, OUTPUT=tmp_path / "converted", BASE_MODEL=base_model, HEAD_WIDTH=16
    )
    assert "4 attention heads of 16 channels, which the file does not say" in capsys.readouterr().out
    model, _ = load_vision(str(tmp_path / "converted"), "UViT")
    inputs = torch.randn(2, 4, 8, 8), torch.full((2,), 333), torch.randn(2, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser.eval()(*inputs), uvit.eval()(*inputs))


def test_training_starts_only_from_a_checkpoint_of_as_many_heads(uvit_file, tmp_path, base_model, run_script, capsys):
    run_script("models/weights.py", CHECKPOINT=uvit_file, OUTPUT=tmp_path / "converted", BASE_MODEL=base_model)
    start_from(tiny_denoiser(), str(tmp_path / "converted"))
    with pytest.raises(InputError, match="num_heads 2, and this model 4"):
        start_from(tiny_denoiser(heads=4), str(tmp_path / "converted"))
    capsys.readouterr()
    start_from(tiny_denoiser(heads=4), uvit_file)
    assert "4 attention heads of 32 channels, which the file does not say" in capsys.readouterr().out


def test_frozen_models_of_another_size_are_named(sample, tmp_path, base_model, tree, run_script, monkeypatch):
    path = save_lightning(tmp_path / "clipUViT.ckpt", uvit_state(side=64, depth=2))
    tiny_models.save_reference_encoder(tmp_path / "wide", width=24)
    constants = {
        "DATA_ROOT": tmp_path / "tree", "CACHE_DIR": tmp_path / "cache", "OUTPUT_ROOT": tmp_path / "made",
        "CHECKPOINT": path,
        "BASE_MODEL": base_model, "DEVICE": "cpu",
    }  # fmt: skip
    with pytest.raises(InputError, match=f"references of width {TEXT}, and this REFERENCE_ENCODER makes 24"):
        run_script("sample_diffusion_clipUViT.py", **constants, REFERENCE_ENCODER=f"local-dir:{tmp_path / 'wide'}")

    model, _ = load_vision(path, "UViT", base_model)
    model.check_fits(TEXT, (4, 64, 64))
    with pytest.raises(InputError, match=f"texts of width {TEXT}, and BASE_MODEL or TEXT_ENCODER makes 24"):
        model.check_fits(24, (4, 64, 64))
    small = save_lightning(tmp_path / "small.ckpt", uvit_state())
    with pytest.raises(InputError, match=r"latents of the shape \(4, 8, 8\), and BASE_MODEL .* makes \(4, 64, 64\)"):
        run_script(
            "sample_diffusion_clipUViT.py", **constants | {"CHECKPOINT": small}, CONDITION="text", FINDINGS="edema",
            REFERENCE_ENCODER=f"local-dir:{tmp_path / 'wide'}",
        )  # fmt: skip
