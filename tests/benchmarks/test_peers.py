"""benchmarks.peers: both sides come to the same, what differs is refused, and a run leaves its record."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import networks, peers, record
from benchmarks.networks import Networks
from models.report_autoencoder import ReportAutoencoder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    tiny = {"_PNDM": ("PNDM", 2, 7.5), "_DPM": ("DPMSolverMultistep", 2, 7.5), "_REPORTS": (2,), "_TOKENS": 8}
    for name, value in {**tiny, "_ENOUGH": 0, "_IMAGES": 2, "_STEPS": 1}.items():
        monkeypatch.setattr(peers, name, value)


@pytest.fixture(scope="module")
def demo():
    return Networks("cpu")


def test_the_calls_take_turns_after_a_warm_up(monkeypatch):
    monkeypatch.setattr(peers, "_ENOUGH", 1e6)
    order = []
    row = peers.compare("a", "b", "c/s", 7, lambda: order.append("theirs"), lambda: order.append("ours"), "d")
    assert order == ["theirs", "ours"] * 6
    assert len(row) == len(peers._COLUMNS) and row[5] == pytest.approx(row[4] / row[3])


@pytest.mark.parametrize(
    ("section", "setting", "rows"), [("images", "U-ViT", 2), ("images", "U-Net", 3), ("training", "U-ViT", 1)]
)
def test_a_section_compares_what_is_equal(demo, section, setting, rows):
    assert len(list(getattr(peers, section)(demo, setting))) == rows


@pytest.mark.parametrize("side", ["theirs", "ours"])
def test_both_sides_train_the_model(demo, monkeypatch, side):
    models = []
    monkeypatch.setattr(
        Networks, "vision", lambda self, name, of=Networks.vision: models.append(of(self, name)) or models[-1]
    )
    case = next(peers.training(demo, "U-Net"))
    before = [weights.detach().clone() for weights in models[0].parameters()]
    case[4 if side == "theirs" else 5]()
    assert all((old != new).any() for old, new in zip(before, models[0].parameters()))


def test_other_images_losses_and_texts_are_refused(demo, monkeypatch):
    sample_latents, compute_loss = peers.diffusion.sample_latents, peers.train_diffusion_clipUViT.compute_loss
    monkeypatch.setattr(peers.diffusion, "sample_latents", lambda *args: sample_latents(*args) + 0.1)
    monkeypatch.setattr(
        peers.train_diffusion_clipUViT, "compute_loss", lambda *a, **k: compute_loss(*a, **k) + torch.rand(())
    )
    monkeypatch.setattr(ReportAutoencoder, "generate", lambda *_, **__: ["Another report."] * 2)
    for section, setting in (("images", "U-Net"), ("training", "U-ViT"), ("reports", 2)):
        with pytest.raises(AssertionError):
            list(getattr(peers, section)(demo, setting))


def test_other_scores_are_refused(demo, monkeypatch):
    pytest.importorskip("prdc")
    pytest.importorskip("torch_fidelity")
    for name, value in {"KID_SUBSETS": 2, "KID_SUBSET_SIZE": 60}.items():
        monkeypatch.setattr(peers.metrics, name, value)
    assert len(list(peers.scores(demo, 16))) == 3
    monkeypatch.setattr(peers.metrics, "frechet_distance", lambda *_: 1.0)
    with pytest.raises(AssertionError):
        next(peers.scores(demo, 16))


def test_other_codes_are_refused(demo, monkeypatch):
    pytest.importorskip("negspacy")
    assert next(peers.labels(demo, 20))[:4] == ("labels", "negspacy", "reports/s", 20)
    monkeypatch.setattr(peers, "label_reports", lambda texts: np.zeros((len(texts), 14), dtype=np.int8))
    with pytest.raises(AssertionError):
        next(peers.labels(demo, 20))


def test_networks_of_the_papers_sizes(monkeypatch):
    """Made without content, which takes no memory and no time."""
    monkeypatch.setattr(networks, "make_accelerator", lambda *_: SimpleNamespace(device=torch.device("meta")))
    paper = Networks("meta", paper=True)
    assert paper.shape == (4, 32, 32) and paper.tower.tower.image_size == (224, 224)
    assert paper.texts["U-ViT"].width == paper.tower.tower.ln_post.normalized_shape[0] == 768
    assert paper.vision("U-Net").denoiser.num_parameters() == 859_520_964  # of Stable Diffusion v1.4
    assert paper.vision("U-ViT").denoiser.config.embed_dim == 1024
    assert sum(weights.numel() for weights in paper.vae.parameters()) == 83_653_863  # of Stable Diffusion v1.4
    bart = paper.autoencoder().bart
    bart.tie_weights()  # transformers 5.0 does not tie what has no content
    assert bart.num_parameters() == 139_420_416  # of bart-base


def test_a_run_writes_its_record_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(sys.modules, "prdc", None)
    monkeypatch.setattr("sys.argv", ["peers", "--SECTIONS", "reports,scores"])
    peers.main()
    written = json.loads((tmp_path / "bench-cpu-demo.json").read_text(encoding="utf-8"))
    assert written["columns"] == list(peers._COLUMNS)
    assert [row[:3] for row in written["rows"]] == [["reports", "transformers", "reports/s"]]
    assert "pip install prdc" in capsys.readouterr().out
