"""What benchmarks/ compares: both recipes make the same, figures are what they say, and what is run by hand still runs."""

import importlib
import json
import math
import re
import time

import numpy as np
import pytest
import torch

from benchmarks import (
    bench_clock,
    bench_data,
    bench_profile,
    bench_reports,
    bench_startup,
    bench_trainers,
    bench_training,
)
from benchmarks.bench_parts import ASSETS, Parts, constants_of
from models.report_autoencoder import ReportAutoencoder
from phantom import draw_tree
from training.examples import DiffusionFeatures
from utils.latents import load_vae
from utils.mimic_cxr import read_table
from utils.prompts import ReferenceEncoder, TextEncoder
from utils.report_text import clean_report

ROWS, IMAGE_SIZE = 40, 32


@pytest.fixture
def stretched(base_model, reference_encoder_name, make_table, accelerator, tmp_path, monkeypatch):
    """40 rows that share 3 images, in shards of 16, and the encoders."""
    monkeypatch.setattr(bench_data, "SHARD_ROWS", 16)
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)
    table = make_table(np.zeros((3, 14)), [1, 2, 3])
    features = DiffusionFeatures(table, *encoders, IMAGE_SIZE, tmp_path / "cache", 0, accelerator)
    vectors = bench_data.draw_vectors(3)
    return bench_data.Stretched(features, ROWS, vectors, encoders[1], tmp_path / "cache", accelerator), encoders


def test_naive_and_cached_samples_are_the_same(stretched):
    features, encoders = stretched
    dropout, places = (0.2, 0.2, 0.2), [(row, 7 * row) for row in range(ROWS)]
    ours = bench_data.CachedExamples(features, 1000, dropout, "cpu").batch(places)
    naive = bench_data.NaiveExamples(features.table, *encoders, IMAGE_SIZE, 1000, dropout).batch(places)
    assert ours.keys() == naive.keys()
    for name, value in ours.items():
        assert value.dtype == naive[name].dtype
        torch.testing.assert_close(value, naive[name], atol=1e-2 if name == "latents" else 1e-5, rtol=1e-3)
    assert 0 < (ours["reference"] == 0).all(dim=1).sum() < ROWS  # some lost their reference


def test_shards_are_links_to_one_and_each_row_has_its_film(stretched):
    features, _ = stretched
    shards = list(features.moments.cache.folder.glob("*.npy"))
    assert len(shards) == 3 and len({path.stat().st_ino for path in shards}) == 2  # 16, 16 and 8 rows
    for row in range(ROWS):
        assert (features.moments[row] == features.moments[row % 16 % 3]).all()
    assert features.table["dicom_id"].is_unique and len(features.prompts) == ROWS


def test_the_larger_tree_has_links_and_a_cache_that_misses_nothing(
    base_model, reference_encoder_name, accelerator, tmp_path, monkeypatch
):
    monkeypatch.setattr(bench_startup, "SHARD_ROWS", 16)
    encoders = load_vae(base_model), TextEncoder(base_model, pooled=True), ReferenceEncoder(reference_encoder_name)

    def features_of(tree):
        table = read_table(tree, splits=("train", "validate"), with_reports=False)
        return DiffusionFeatures(table, *encoders, IMAGE_SIZE, tmp_path / "cache", 0, accelerator)

    draw_tree(tmp_path / "tree", 12, IMAGE_SIZE)
    drawn = features_of(tmp_path / "tree")
    bench_startup.enlarge(tmp_path / "tree", tmp_path / "cache", tmp_path / "large", ROWS)
    shards = set((tmp_path / "cache").rglob("*.npy"))
    large = features_of(tmp_path / "large")
    assert set((tmp_path / "cache").rglob("*.npy")) == shards
    assert len(large.table) == large.table["subject_id"].nunique() == ROWS > len(drawn.table) > 1
    for row, name in enumerate(large.table["dicom_id"]):
        place = int(name.removeprefix("row-")) % len(drawn.table)
        assert (large.moments[row] == drawn.moments[place]).all()
        assert (large.embeddings[row] == drawn.embeddings[place]).all()


@pytest.mark.parametrize("script", bench_trainers.TRAINERS)
def test_naive_and_our_steps_train_on_the_same_kind_of_batch(script, accelerator):
    trainer = bench_trainers.make_trainer(script, Parts("demo", "cpu"), accelerator, report_tokens=24)
    naive, ours = trainer.encode(trainer.raw[0]), trainer.cached[0]
    assert naive.keys() == ours.keys()
    for name, value in ours.items():
        assert value.dtype == naive[name].dtype
        if script == "train_bart" and value.ndim == 2 and name != "noise":
            assert naive[name].shape == (len(value), trainer.model.max_tokens) and value.shape[1] < 50
        else:
            assert value.shape == naive[name].shape
    if script == "train_bart":  # padding changes no loss
        trainer.model.eval()
        with torch.no_grad():
            losses = [trainer.loss(trainer.model, batch).item() for batch in (naive, ours)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    if script == "train_prior_model":
        before = trainer.model.head.weight.clone()
        trainer.naive()
        between = trainer.model.head.weight.clone()
        trainer.ours()
        assert (before != between).any() and (between != trainer.model.head.weight).any()
        assert trainer.operations() > 0 and trainer.resident("naive") > trainer.resident("ours") > 0


def test_the_naive_loop_writes_what_generate_writes():
    autoencoder = ReportAutoencoder.from_pretrained(ASSETS / "bart", "mean").eval()
    latents = torch.randn(6, autoencoder.width, generator=torch.Generator().manual_seed(0))
    naive = bench_reports.write_naively(autoencoder, latents, 6)
    bench_reports.fix_length(autoencoder, 6)
    ours = autoencoder.generate(latents, max_tokens=6)
    unended = [row for row in range(6) if autoencoder.bart.config.eos_token_id not in naive[row]]
    assert naive.shape == (6, 6) and unended
    for row in unended:
        assert clean_report(autoencoder.tokenizer.decode(naive[row], skip_special_tokens=True)) == ours[row]


def test_drawn_reports_have_about_the_tokens_that_are_asked_for():
    tokenizer = ReportAutoencoder.from_pretrained(ASSETS / "bart", "mean").tokenizer
    lengths = [len(tokenizer(report).input_ids) for report in bench_trainers.draw_reports(20, 40, tokenizer)]
    assert min(lengths) >= 15 and max(lengths) <= 65


def test_networks_of_the_papers_sizes():
    """Without content: which takes no memory, and no time."""
    parts = Parts("paper", "meta")
    assert parts.shape == (4, 32, 32) and parts.image_size == 256
    assert parts.references.width == parts.pooled_texts.width == 768
    unet, uvit = parts.vision("train_diffusion_clipSD"), parts.vision("train_diffusion_clipUViT")
    assert unet.denoiser.num_parameters() == 859_520_964  # of Stable Diffusion v1.4
    assert uvit.denoiser.config.embed_dim == 1024 and uvit.denoiser.config.depth == 20
    bart = parts.autoencoder().bart
    bart.tie_weights()  # transformers 5.0 does not tie what has no content
    assert bart.num_parameters() == 139_420_416  # of bart-base
    assert parts.prior(768).config.depth == 12


def test_trainings_that_are_measured():
    every = list(bench_training.ways(bench_training.SCRIPTS, 0))
    assert len(every) == 5 and {script for script, *_ in every} == set(bench_trainers.TRAINERS)
    small = {"BATCH_SIZE": 2}
    assert list(bench_training.ways(("unet", "prior"), 2)) == [
        ("train_diffusion_clipSD", "", small), ("train_prior_model", "", {})
    ]  # fmt: skip


def test_constants_are_the_scripts_or_the_demos():
    assert constants_of("train_bart", "paper")["BATCH_SIZE"] == 8
    assert constants_of("train_bart", "demo")["BATCH_SIZE"] == 16
    assert {constants_of("train_prior_model", sizes)["PRIOR"] for sizes in ("demo", "paper")} == {"regression"}


# ---- the clock -----------------------------------------------------------------------------------------------------


def test_variants_take_turns():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in ("naive", "ours")}
    seconds = bench_clock.take_turns(variants, 3, "cpu", warm_up=2)
    assert order == ["naive", "ours"] * 5 and {len(values) for values in seconds.values()} == {3}
    assert len(bench_clock.take_turns(variants, 3, "cpu", enough=0)["ours"]) == 1


def test_medians_and_ratios():
    less = bench_clock.result("data", "a sample", "ms", ours=[1, 2, 9], naive=[10, 30, 20])
    assert (less["naive"], less["ours"], less["ratio"]) == (20, 2, 10)
    more = bench_clock.result("sampling", "images", "images/s", [20, 30, 10], [5, 5, 5], more_is_better=True)
    assert (more["naive"], more["ours"], more["ratio"]) == (5, 20, 4)
    assert bench_clock.speeds(8, [2.0, 4.0]) == [4.0, 2.0]
    assert math.isnan(bench_clock.result("training", "ceiling", "%", [100.0])["ratio"])


def test_the_table_and_the_json_are_written(tmp_path):
    results = [
        bench_clock.result("data", "a sample", "ms", ours=[0.25], naive=[1250.0], note="drawn"),
        bench_clock.result("training", "ceiling", "%", [100.0]),
    ]
    about = {"machine": "Some GPU 80GB", "sizes": "paper", "precision": "auto", "constants": {"TURNS": 1}}
    text = bench_clock.save(results, about, tmp_path / "results")
    assert "| data | a sample | ms | 1,250 | 0.25 | 5,000x | drawn |" in text
    assert "| training | ceiling | % | – | 100 | – |  |" in text and "TURNS" not in text
    assert (tmp_path / "results" / "some-gpu-80gb.md").read_text() == text
    saved = json.loads((tmp_path / "results" / "some-gpu-80gb.json").read_text())
    assert saved["constants"] == {"TURNS": 1} and saved["results"][1]["naive"] is None
    assert saved["results"][0]["all"] == {"naive": [1250.0], "ours": [0.25]}
    for others in ({"sizes": "demo"}, {"sizes": "demo", "precision": "bf16"}):
        bench_clock.save(results, {**about, **others}, tmp_path / "results")
        assert (tmp_path / "results" / "-".join(["some-gpu-80gb", *others.values()])).with_suffix(".json").exists()


def test_the_memory_of_this_process():
    most, now = (bench_clock.memory_of_this_process(which) for which in ("VmHWM", "VmRSS"))
    assert math.isnan(most) or most >= 0.9 * now > 0


# ---- where a step's time goes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "products of matrices"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::native_group_norm", "normalisation"),
        ("aten::_foreach_norm", "optimiser"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::copy_", "copies"),
        ("aten::gelu_backward", "element by element"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "element by element"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "products of matrices"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x64", "attention"),
        ("void cudnn::fusion::convert_dq_to_16bits<true>(void const*, void*)", "attention"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolutions"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16>(float)", "copies"),
        ("triton_poi_fused__to_copy_7", "copies"),
        ("triton_per_fused__to_copy_add_native_layer_norm_view_19", "normalisation"),
        ("triton_red_fused_convolution_mm_silu_3", "element by element"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>", "optimiser"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert bench_profile.kind_of(name) == kind


def test_the_time_of_a_step_is_shared_out():
    square = torch.randn(500, 500)
    shares = bench_profile.where_time_goes(lambda: square @ square, math.nan, "cpu")
    assert sum(shares.values()) == pytest.approx(1) and shares["products of matrices"] > 0.5
    assert shares["attention"] == shares["convolutions"] == 0
    idle = bench_profile.where_time_goes(lambda: time.sleep(0.01), math.nan, "cpu")
    assert idle["nothing"] > 0.9
    assert bench_profile.told({"attention": 0.2, "copies": 0.001, "nothing": 0.799}) == "nothing 80 %, attention 20 %"


def test_the_bytes_that_calls_move():
    square = torch.randn(10, 10)
    with bench_profile.Traffic() as counter:
        (square @ square).relu().view(100).add_(square.view(100))
    assert counter.calls == 3 and counter.bytes == 4 * (200 + 200)  # of the product nothing; what is in place once


@pytest.mark.parametrize(
    "module, arguments, told",
    [
        ("compute", "--IMAGES 1000", r"U-ViT  +0\.153 x 10\^12(.|\n)*\n1,000 images(.|\n)*clipSD\.py +[\d,]+ calls"),
        ("decode", "--FILM_SIZE 256 --FILMS 1 --SIZES 32,", r"^256 => 32 pixels: mean difference \d\.\d+,"),
        ("read_table", "--STUDIES 300", r"496 images, 300 studies$"),
        (
            "scale",
            "--ROWS 60, --IMAGES 5 --LABEL_SETS 8 --LOOK_UPS 9",
            r"tree read, no images +\d(.|\n)*\n9 values read",
        ),
    ],
    ids=["compute", "decode", "read_table", "scale"],
)
def test_what_is_measured_by_hand_runs(module, arguments, told, tmp_path, monkeypatch, capsys):
    measured = importlib.import_module(f"benchmarks.{module}")
    monkeypatch.setattr("sys.argv", [module, *arguments.split()])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    measured.main()
    assert re.search(told, capsys.readouterr().out.strip())
