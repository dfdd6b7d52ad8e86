"""Muon: which weights it moves, how far, and that nothing moves when a gradient is no number."""

import copy

import pytest
import torch
from torch import nn

from training import muon
from training.muon import make_optimizer, matrices_of, orthogonalise

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.0}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 40)
        self.thin, self.wide = nn.Linear(4, 40), nn.Linear(40, 96)
        self.convolution = nn.Conv2d(32, 64, 3)
        self.norm, self.frozen = nn.LayerNorm(40), nn.Linear(40, 40).requires_grad_(False)
        self.head = nn.Linear(40, 50, bias=False)
        self.head.weight = self.words.weight


def with_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("shape", [(40, 40), (32, 300), (300, 32)])
def test_singular_values_become_one_and_directions_stay(shape):
    generator, rank = torch.Generator().manual_seed(0), min(shape)
    left, right = (torch.linalg.qr(torch.randn(side, rank, generator=generator)).Q for side in shape)
    found = orthogonalise(left @ torch.diag(torch.logspace(-1, 1, rank)) @ right.T)
    assert found.shape == shape
    seen = left.T @ found @ right
    torch.testing.assert_close(seen, torch.eye(rank), atol=0.35, rtol=0)
    torch.testing.assert_close(seen, seen.diag().diag(), atol=1e-3, rtol=0)
    assert (orthogonalise(torch.zeros(shape)) == 0).all()


def test_matrices_are_those_of_layers_that_are_wide_enough_and_trained():
    model = Network()
    assert [id(matrix) for matrix in matrices_of(model)] == [id(model.wide.weight), id(model.convolution.weight)]


def test_matrices_move_as_far_as_adams_and_the_others_are_adams():
    before, ours, adams = Network(), Network(), Network()
    for model in (ours, adams):
        model.load_state_dict(before.state_dict())
    make_optimizer("muon", with_gradients(ours), **SETTINGS).step()
    make_optimizer("adamw", with_gradients(adams), **SETTINGS).step()
    for name, start in before.named_parameters():
        moved = ours.get_parameter(name) - start
        if name in ("wide.weight", "convolution.weight"):
            size = moved.square().mean().sqrt().item()
            assert size == pytest.approx(muon.ADAMS_SIZE * SETTINGS["lr"], rel=0.35)
        else:
            torch.testing.assert_close(ours.get_parameter(name), adams.get_parameter(name), rtol=0, atol=0)


def test_a_step_of_a_bad_gradient_moves_nothing_and_is_not_remembered():
    model, other = Network(), Network()
    other.load_state_dict(model.state_dict())
    optimizer, straight = (make_optimizer("muon", each, **SETTINGS) for each in (model, other))
    for seed in range(3):
        with_gradients(model, seed)
        bad = seed == 1
        if bad:
            model.wide.weight.grad[0, 0] = float("nan")
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        if not bad:
            with_gradients(other, seed)
            straight.found_inf = torch.tensor(0.0)
            straight.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_what_is_saved_goes_on():
    model = Network()
    optimizer = make_optimizer("muon", with_gradients(model), **SETTINGS)
    optimizer.step()
    again = Network()
    again.load_state_dict(model.state_dict())
    loaded = make_optimizer("muon", again, **SETTINGS)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((model, optimizer), (again, loaded)):
        with_gradients(each, 1)
        its.step()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
