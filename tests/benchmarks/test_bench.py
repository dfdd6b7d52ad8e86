"""benchmarks.bench: both recipes make the same, and a run leaves its records."""

import math

import pytest
import torch

from benchmarks import record
from benchmarks.bench import __main__ as bench
from benchmarks.bench import clock, images, reports, trainers
from benchmarks.bench.networks import Networks
from models.report_autoencoder import ReportAutoencoder
from utils.constants import REPOSITORY
from utils.report_cleaning import clean_report


@pytest.fixture
def autoencoder():
    return ReportAutoencoder.from_pretrained(REPOSITORY / "assets/demo/bart", "mean").eval()


@pytest.mark.parametrize("name", ["uvit", "unet", "prior"])
def test_a_trainer_steps_both_ways_on_what_its_encoders_make(name, accelerator):
    trainer = trainers.TRAINERS[name](Networks("cpu"), accelerator, 24, batch_size=4)
    for raw, cached in zip(trainer.raw, trainer.cached, strict=True):
        for key, value in trainer.encode(raw).items():
            torch.testing.assert_close(cached[key], value)
    weights = trainer.trained[-1]
    before = weights.detach().clone()
    trainer.naive()
    between = weights.detach().clone()
    trainer.ours()
    assert (before != between).any() and (between != weights).any()


def test_longer_padding_changes_no_loss_of_bart(accelerator):
    trainer = trainers.TRAINERS["bart"](Networks("cpu"), accelerator, 24)
    naive, ours = trainer.raw[0], trainer.cached[0]
    assert naive["input_ids"].shape[1] == trainer.model.max_tokens > ours["input_ids"].shape[1]
    trainer.model.eval()
    with torch.no_grad():
        losses = [trainer.loss(trainer.model, batch).item() for batch in (naive, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_naive_loop_writes_what_generate_writes(autoencoder):
    latents = torch.randn(6, autoencoder.width, generator=torch.Generator().manual_seed(0))
    naive = reports.write_naively(autoencoder, latents, 6)
    autoencoder.bart.generation_config.min_new_tokens = 6
    ours = autoencoder.generate(latents, max_tokens=6)
    unended = [row for row in range(6) if autoencoder.bart.config.eos_token_id not in naive[row]]
    assert naive.shape == (6, 6) and unended
    for row in unended:
        assert clean_report(autoencoder.tokenizer.decode(naive[row], skip_special_tokens=True)) == ours[row]


def test_drawn_reports_have_about_the_wanted_length(autoencoder):
    tokenizer = autoencoder.tokenizer
    lengths = [len(tokenizer(report).input_ids) for report in trainers.draw_reports(20, 40, tokenizer)]
    assert min(lengths) >= 36 and max(lengths) <= 44


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
    assert networks.prior(768).config.depth == 12


def test_constants_are_the_scripts_or_the_demos():
    assert Networks("cpu", paper=True).constants_of("train_bart")["BATCH_SIZE"] == 8
    assert Networks("cpu").constants_of("train_bart")["BATCH_SIZE"] == 16
    assert Networks("cpu").constants_of("train_prior_model")["PRIOR"] == "regression"


def test_variants_take_turns():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in ("naive", "ours")}
    clock.Clock(turns=3, enough=math.inf).seconds(variants, warm_up=2)
    assert order == ["naive", "ours"] * 5
    order.clear()
    clock.Clock(turns=3, enough=0).seconds(variants, warm_up=0)
    assert order == ["naive", "ours"]


def test_a_run_writes_a_record_of_each_section(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(images, "BACKBONES", {"U-ViT": "train_diffusion_clipUViT"})
    arguments = "--ENOUGH 0 --TRAINERS uvit, --BATCH_SIZE 2 --IMAGES 1 --REPORT_BATCHES 1, --REPORT_TOKENS 8"
    monkeypatch.setattr("sys.argv", ["bench", *arguments.split(), "--NAIVE_TOKENS", "8"])
    bench.main()
    records = [record.read_record(path) for path in sorted(tmp_path.glob("bench-*-demo.json"))]
    assert [len(one["rows"]) for one in records] == [2, 1, 1]
    for one in records:
        assert one["columns"] == list(clock.COLUMNS)
        for _, _, naive, ours, ratio, _ in one["rows"]:
            assert float(ratio) == pytest.approx(float(ours.replace(",", "")) / float(naive.replace(",", "")), rel=0.02)
    calls = [row[-1].split("; ")[1] for row in records[0]["rows"]]
    assert calls == ["102 and 50 network calls an image", "102 and 4 network calls an image"]
