"""The trial before a training: it ends what cannot work before anything is encoded, and changes nothing."""

import shutil

import pytest
import torch
from running import flags, run_script, says
from test_loop import CONSTANTS, Line, Points, metrics, squared_error
from torch import nn

from training.loop import fit, random_batch, try_training
from utils.errors import InputError


class Network(nn.Module):
    """Has what a training can change: weights, buffers, modes, and random numbers drawn in a pass."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.frozen = nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Linear(3, 1)
        self.drop = nn.Dropout(0.5)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.linear(self.drop(self.norm(x))) + self.frozen(x)


def squared(model, batch):
    return (model(batch["x"]) * batch["scale"][:, None]).square().mean()


@pytest.fixture
def attempt(tmp_path, accelerator, make_table):
    """A function: a model, a loss, splits, constants => tries its training."""

    def run(model, compute_loss=squared, splits=("train", "validate"), **constants):
        table = make_table([[0] * 14] * len(splits), list(range(len(splits))), list(splits))
        constants = {**CONSTANTS, "RUN_DIR": str(tmp_path / "run"), "DATA_ROOT": "a/tree", **constants}
        shapes = {"x": (3,), "scale": ()}

        def make_batch(size):
            batch = random_batch(shapes, size)
            return {**batch, "scale": batch["scale"] + 1}

        try_training(model, compute_loss, make_batch, table, constants, accelerator)

    return run


def test_a_trial_leaves_everything_as_it_was(attempt):
    model = Network()
    model.norm.eval()  # the rest is in training mode
    modes = [module.training for module in model.modules()]
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    losses = []

    def compute_loss(model, batch):
        assert model.norm.training and len(batch["x"]) == 4
        losses.append(squared(model, batch))
        return losses[-1]

    attempt(model, compute_loss)
    assert losses[0] > 0 and losses[0].requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_cannot_work_is_refused(attempt, tmp_path):
    with pytest.raises(InputError, match=r"'validate' of a/tree"):
        attempt(Network(), splits=["train", "train"])
    with pytest.raises(InputError, match="BATCH_SIZE 4 .*ACCUMULATION 3"):
        attempt(Network(), ACCUMULATION=3)
    with pytest.raises(InputError, match="first loss is nan.*PRECISION"):
        attempt(Network(), lambda model, batch: squared(model, batch) * float("nan"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write checkpoints under "):
        attempt(Network(), RUN_DIR=str(tmp_path / "file" / "run"))


def test_too_little_memory_is_not_hidden(attempt):
    def compute_loss(model, batch):
        raise MemoryError

    with pytest.raises(MemoryError):
        attempt(Network(), compute_loss)


def test_a_resumed_run_is_compared_and_not_tried(attempt, accelerator, tmp_path):
    constants = {**CONSTANTS, "RUN_DIR": str(tmp_path / "run"), "MAX_STEPS": 2}
    fit(Line(), Points(), Points(7), squared_error, constants, accelerator)
    attempt(Line(), None)
    with pytest.raises(InputError, match="SEED = 5, this run has 6: another experiment"):
        attempt(Line(), None, SEED=6)
    assert len(metrics(tmp_path / "run")) == 2


# ---- the scripts ---------------------------------------------------------------------------------------------------


def refused(script, config, tmp_path, **constants):
    """What a script says that ends before its cache is filled."""
    places = {"RUN_DIR": tmp_path / "run", "CACHE_DIR": tmp_path / "cache"}
    message = run_script(script, "--config", config, *flags(**{**places, **constants}))
    assert not (tmp_path / "cache").exists()
    return message


def test_a_broken_setup_ends_before_anything_is_encoded(config, runs, tmp_path, monkeypatch):
    script = "train_diffusion_clipUViT"
    run = shutil.copytree(runs / "clipUViT", tmp_path / "a")
    says(refused(script, config, tmp_path, RUN_DIR=run, SEED=9), "SEED", "another experiment")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    says(refused(script, config, tmp_path, RUN_DIR=loop), "cannot write", str(loop))
    says(refused(script, config, tmp_path, PROMPT_DROPOUT="0.6,0,0.6"), "PROMPT_DROPOUT")
    forward = "models.diffusion.PromptedDenoiser.forward"
    monkeypatch.setattr(forward, lambda self, latents, *_: latents * float("nan") + self.fusion.text_embed.bias.sum())
    says(refused(script, config, tmp_path), "loss", "nan", "INITIAL_WEIGHTS")
