"""Muon (Jordan et al. 2024) for weights that are matrices, and AdamW for all others: `OPTIMIZER = "muon"`.

Adam scales each element of a gradient separately; Muon makes the singular values of a matrix's momentum equal, so that
rare directions move as far as common ones. Its steps are scaled to the size of AdamW's (Liu et al. 2025), so that
LEARNING_RATE and WEIGHT_DECAY mean the same for both.
"""

import torch
from torch import nn

MOMENTUM = 0.95
SMALLEST_SIDE = 32  # of a matrix; thinner ones, as an image's first and last layers, are left to AdamW
ITERATIONS = 5  # of Newton-Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5, an odd polynomial that drives singular values to about 1
ADAMS_SIZE = 0.2  # the root mean square of a typical step of AdamW, in learning rates


def make_optimizer(name: str, model: nn.Module, **settings) -> torch.optim.AdamW:
    """The optimiser of a model's trained parameters. name: "adamw" or "muon"; settings: AdamW's, e.g. lr.

    A step leaves the weights as they are if its attribute `found_inf`, a tensor on their device, is not 0.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(trained, fused=True, **settings)
    chosen = {id(matrix) for matrix in matrices_of(model)}
    groups = [[parameter for parameter in trained if (id(parameter) in chosen) == wanted] for wanted in (True, False)]
    return Muon(*groups, **settings)


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers and convolutions, without thin ones and those tied to an embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = [module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return [
        weight
        for weight in weights
        if weight.requires_grad
        and id(weight) not in embeddings
        and min(len(weight), weight[0].numel()) >= SMALLEST_SIDE
    ]


class Muon(torch.optim.AdamW):
    """Muon for matrices (weights of two or more axes, the outputs first), AdamW for the others."""

    def __init__(self, matrices, others, **settings):
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__([group for group in groups if group["params"]], fused=True, **settings)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is not None:
                    self._move(weight, group["lr"], group["weight_decay"])
                    weight.grad = None  # so that AdamW skips it
        return super().step(closure)

    def _move(self, weight, rate, decay):
        state, grad = self.state[weight], weight.grad.flatten(1)
        if not state:
            state["step"] = torch.zeros((), device=weight.device)  # AdamW.load_state_dict needs it
            state["momentum"] = torch.zeros_like(grad)
        momentum = state["momentum"].lerp(grad, 1 - MOMENTUM)
        direction = orthogonalise(grad.lerp(momentum, MOMENTUM)).view_as(weight)
        length = rate * ADAMS_SIZE * max(grad.shape) ** 0.5
        moved = weight * (1 - rate * decay) - length * direction
        bad = getattr(self, "found_inf", None)
        if bad is not None:  # decided on the device, so that the CPU does not wait
            momentum = torch.where(bad.bool(), state["momentum"], momentum)
            moved = torch.where(bad.bool(), weight, moved)
        state["momentum"].copy_(momentum)
        weight.copy_(moved)


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix (M, N) with its singular values near 1 (0.7 to 1.2), by Newton-Schulz iteration; in bf16 on a GPU."""
    tall = len(matrix) > matrix.shape[1]  # the products below then have the smaller side
    x = (matrix.T if tall else matrix).to(torch.bfloat16 if matrix.is_cuda else matrix.dtype)
    x = x / (x.norm() + 1e-7)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = linear * x + torch.addmm(square, square, square, beta=cubic, alpha=quintic) @ x
    return (x.T if tall else x).to(matrix.dtype)
