"""A prior that samples: noise => one of the report latents that an image allows, by flow matching.

A mean over all reports that an image allows is the latent of no report. Here a small network on the image's class token
(as the diffusion head of Li et al. 2024, "Autoregressive image generation without vector quantization") learns the
velocity of straight paths from noise to report latents (Lipman et al. 2023):

    x_t = (1 - t) noise + t latent,  t in [0, 1]      v(x_t, t, image) ~ latent - noise      dx / dt = v

If report latents were Gaussian, with the covariance of the training reports and independent of the image, the velocity
would be known in closed form; the network learns only the difference to it. So an untrained network draws from that
Gaussian, and directions in which reports hardly differ cost no training.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from uvit.model import timestep_embedding

SMALLEST_VARIANCE = 1e-6  # of a direction; a standardised dimension has 1
_FREQUENCIES = 64  # of the time's embedding


class _Block(nn.Module):
    """A residual MLP, shifted, scaled and gated by the condition (adaLN-Zero, Peebles & Xie 2023)."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x, condition):
        shift, scale, gate = self.modulation(functional.silu(condition)).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class ReportFlow(nn.Module):
    """The velocity of standardised report latents, for the class token of an image or for no image.

    Args:
        token_dim: width of the class token. report_dim: D. width, depth: of the network; MAR's are 1024 and 3.
        dropout: of the token's numbers in training, so that no image is recognised by its token.
    """

    def __init__(self, token_dim: int, report_dim: int, width: int, depth: int, dropout: float):
        super().__init__()
        self.no_image = nn.Parameter(torch.zeros(token_dim))
        self.token = nn.Sequential(nn.Dropout(dropout), nn.Linear(token_dim, width))
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.begin = nn.Linear(report_dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.end = nn.Linear(width, report_dim)
        for layer in (self.end, *(block.modulation for block in self.blocks)):  # untrained: the Gaussian's velocity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("directions", torch.eye(report_dim))  # principal axes of the reports, one a column
        self.register_buffer("variances", torch.ones(report_dim))  # along each of them

    @torch.no_grad()
    def set_covariance(self, covariance: Tensor) -> None:
        """covariance: (D, D) of the standardised report latents of the training rows."""
        variances, directions = torch.linalg.eigh(covariance.double())
        self.directions.copy_(directions)
        self.variances.copy_(variances.clamp(min=SMALLEST_VARIANCE))

    def forward(self, tokens: Tensor, noisy: Tensor, times: Tensor, dropped: Tensor) -> Tensor:
        """Class tokens (B, E), x_t (B, K, D), times (B, K) in [0, 1], dropped (B,) bool => velocities (B, K, D).

        dropped: which rows get `no_image`. In float32 whatever the precision: near t = 1 small errors of x_t matter.
        """
        with torch.autocast(noisy.device.type, enabled=False):
            tokens, noisy, times = tokens.float(), noisy.float(), times.float()
            tokens = torch.where(dropped[:, None].bool(), self.no_image, tokens)
            embedding = timestep_embedding(1000 * times, 2 * _FREQUENCIES)  # (B, K, 128)
            condition = self.token(tokens)[:, None] + self.time(embedding)
            rotated, time = noisy @ self.directions, times[..., None]  # x_t along the principal axes
            variance = time**2 * self.variances + (1 - time) ** 2  # of x_t along each axis, (B, K, D)
            gaussian = (time * self.variances - (1 - time)) / variance * rotated  # E[latent - noise | x_t]
            x = self.begin(rotated / variance.sqrt())
            for block in self.blocks:
                x = block(x, condition)
            difference = self.end(self.norm(x)) * (self.variances / variance).sqrt()
            return (gaussian + difference) @ self.directions.T

    @torch.no_grad()
    def draw(self, tokens: Tensor, noise: Tensor, steps: int, guidance: float = 1.0) -> Tensor:
        """Class tokens (B, E), noise (B, D) of unit variance or less => standardised report latents (B, D).

        steps: of Euler's method. guidance: classifier-free (Ho & Salimans 2022), 1 for none.
        """
        with_image = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        x = noise[:, None]  # (B, 1, D)
        for step in range(steps):
            times = torch.full((len(tokens), 1), step / steps, device=tokens.device)
            velocity = self(tokens, x, times, with_image)
            if guidance != 1:
                without = self(tokens, x, times, ~with_image)
                velocity = without + guidance * (velocity - without)
            x = x + velocity / steps
        return x[:, 0]
