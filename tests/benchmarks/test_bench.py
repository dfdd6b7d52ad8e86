"""benchmarks.bench: both recipes make the same, and a run leaves its records."""

import math

import pytest
import torch

from benchmarks import bench, record
from benchmarks.bench import Networks
from models.report_autoencoder import ReportAutoencoder
from utils.constants import REPOSITORY
from utils.report_cleaning import clean_report


@pytest.fixture
def autoencoder():
    return ReportAutoencoder.from_pretrained(REPOSITORY / "assets/demo/bart", "mean").eval()


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_a_trainer_steps_both_ways_on_what_its_encoders_make(backbone, accelerator):
    trainer = bench.Trainer(Networks("cpu"), backbone, accelerator, batch_size=4)
    for key, value in trainer.encode(trainer.raw).items():
        torch.testing.assert_close(trainer.cached[key], value)
    weights = trainer.trained[-1]
    before = weights.detach().clone()
    trainer.naive()
    between = weights.detach().clone()
    trainer.ours()
    assert (before != between).any() and (between != weights).any()


def test_the_naive_loop_writes_what_generate_writes(autoencoder):
    latents = torch.randn(6, autoencoder.width, generator=torch.Generator().manual_seed(0))
    naive = bench.write_naively(autoencoder, latents, 6)
    autoencoder.bart.generation_config.min_new_tokens = 6
    ours = autoencoder.generate(latents, max_tokens=6)
    unended = [row for row in range(6) if autoencoder.bart.config.eos_token_id not in naive[row]]
    assert naive.shape == (6, 6) and unended
    for row in unended:
        assert clean_report(autoencoder.tokenizer.decode(naive[row], skip_special_tokens=True)) == ours[row]


def test_networks_of_the_papers_sizes():
    """Made without content, which takes no memory and no time."""
    networks = Networks("meta", paper=True)
    assert networks.shape == (4, 32, 32) and networks.image_size == 256
    assert networks.references.width == networks.text_encoder(pooled=True).width == 768
    unet, uvit = networks.vision("train_diffusion_clipSD"), networks.vision("train_diffusion_clipUViT")
    assert unet.denoiser.num_parameters() == 859_520_964  # of Stable Diffusion v1.4
    assert uvit.denoiser.config.embed_dim == 1024 and uvit.denoiser.config.depth == 20
    bart = networks.autoencoder().bart
    bart.tie_weights()  # transformers 5.0 does not tie what has no content
    assert bart.num_parameters() == 139_420_416  # of bart-base


def test_constants_are_the_scripts_or_the_demos():
    script = "train_diffusion_clipUViT"
    assert Networks("cpu", paper=True).constants_of(script)["BATCH_SIZE"] == 32
    assert Networks("cpu").constants_of(script)["BATCH_SIZE"] == 16


@pytest.mark.parametrize(("enough", "rounds"), [(math.inf, 5), (0, 1)])
def test_variants_take_turns_after_the_warm_up(monkeypatch, enough, rounds):
    monkeypatch.setattr(bench, "_ENOUGH", enough)
    order = []
    variants = {name: lambda name=name: order.append(name) for name in ("naive", "ours")}
    assert bench.median_seconds(variants, warm_up=2).keys() == variants.keys()
    assert order == ["naive", "ours"] * (2 + rounds)


def test_a_run_writes_a_record_of_each_section(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for name, value in {"_ENOUGH": 0, "_IMAGES": 1, "_REPORTS": (1,), "_REPORT_TOKENS": 8, "_NAIVE_TOKENS": 8}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr("sys.argv", ["bench", "--BACKBONES", "uvit,", "--BATCH_SIZE", "2"])
    bench.main()
    records = [record.read_record(path) for path in sorted(tmp_path.glob("bench-*-demo.json"))]
    assert [len(one["rows"]) for one in records] == [2, 1, 1]
    for one in records:
        assert one["columns"] == list(bench._COLUMNS)
        for _, _, naive, ours, ratio, _ in one["rows"]:
            assert float(ratio) == pytest.approx(float(ours.replace(",", "")) / float(naive.replace(",", "")), rel=0.02)
    calls = [row[-1].split("; ")[1] for row in records[0]["rows"]]
    assert calls == ["102 and 50 network calls an image", "102 and 4 network calls an image"]
