"""The prior: an image's VAE latents => the latent of its report, by a vision transformer (CXR-IRGen, section 3.3).

    latents          (C, h, w) one draw of the VAE's posterior, unit variance
    report latents   (D,) pooled BART latents; the network works on them standardised, dimension by dimension, with the
                     mean and standard deviation of the training rows, which are kept in its checkpoint

Two kinds: "regression", the paper's, predicts the mean of all reports that an image allows; "flow" (models/flow.py)
draws one of them. Either may have a readout beside its head, which predicts what a report says of the image: findings,
sides, zones ... Of several reports drawn for an image, evaluation/selection.py keeps the one that agrees with it.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.flow import ReportFlow
from utils.checkpoints import load_weights
from utils.errors import InputError, as_input_error, reason, say
from utils.seeds import keyed_generator

SMALLEST_STD = 1e-6  # a dimension that varies less is constant
STEEPEST = 0.99  # the largest value of a tanh at which its tangent is taken
SIZES = (  # that two priors have to share for one to start from the other
    "kind", "latent_channels", "latent_side", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "report_dim", "flow_width", "flow_depth",
)  # fmt: skip
FLOW_STEPS = 25  # of Euler's method


class Prior(ModelMixin, ConfigMixin):
    """A vision transformer on VAE latents, with a head on its class token, to standardised report latents.

    Args:
        latent_channels, latent_side: C and h = w of the latents. patch_size: side of a token's patch.
        embed_dim, depth, num_heads: of the transformer; the defaults are ViT-Base.
        report_dim: D, the width of a report latent.
        pooler: "linear"; or "tanh" behind the linear layer, which cannot reach beyond -1 and 1.
        layer_norm_epsilon: timm's ViTs have 1e-6, Hugging Face's ViTModel 1e-12.
        mlp_ratio: hidden width of a block's MLP, in units of embed_dim.
        kind: "regression", with a linear head; or "flow", with a ReportFlow of flow_width, flow_depth, flow_dropout.
        flags: names, as of `evaluation.details.detail_flags`, of the K flags of a linear readout; none, no readout.
    """

    @register_to_config
    def __init__(
        self, latent_channels: int = 4, latent_side: int = 32, patch_size: int = 2, embed_dim: int = 768,
        depth: int = 12, num_heads: int = 12, report_dim: int = 768, pooler: str = "linear",
        layer_norm_epsilon: float = 1e-6, mlp_ratio: float = 4.0, kind: str = "regression", flow_width: int = 0,
        flow_depth: int = 0, flow_dropout: float = 0.0, flags: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__()
        if latent_side % patch_size or embed_dim % num_heads:
            sides = f"PATCH_SIZE {patch_size} has to divide the latents' side {latent_side}"
            raise InputError(f"{sides}, and NUM_HEADS {num_heads} EMBED_DIM {embed_dim}")
        self.vit = VisionTransformer(
            img_size=latent_side, patch_size=patch_size, in_chans=latent_channels, embed_dim=embed_dim, depth=depth,
            num_heads=num_heads, mlp_ratio=mlp_ratio, num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=layer_norm_epsilon),
        )  # fmt: skip
        if kind == "flow":
            self.head = ReportFlow(embed_dim, report_dim, flow_width, flow_depth, flow_dropout)
        else:
            self.head = nn.Linear(embed_dim, report_dim)
        self.readout = nn.Linear(embed_dim, len(flags)) if flags else None
        self.register_buffer("report_mean", torch.zeros(report_dim))
        self.register_buffer("report_std", torch.ones(report_dim))

    def forward(
        self, images: Tensor, noisy: Tensor | None = None, times: Tensor | None = None, dropped: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """=> (standardised report latents (B, D), of a flow velocities (B, K, D); flags (B, K), logits, or None).

        images: latents (B, C, h, w), unit variance; or the class tokens (B, embed_dim) that `vit` made of them.
        noisy, times, dropped: for a flow, as in `ReportFlow.forward`.
        """
        tokens = images if images.ndim == 2 else self.vit(images)  # the class token after the final layer norm
        if self.config.kind == "flow":
            prediction = self.head(tokens, noisy, times, dropped)
        else:
            prediction = self.head(tokens)
            if self.config.pooler == "tanh":
                prediction = prediction.tanh()
        return prediction, None if self.readout is None else self.readout(tokens)

    @torch.no_grad()
    def read_flags(self, latents: Tensor) -> Tensor | None:
        """Latents (B, C, h, w), unit variance => probabilities of the flags, (B, K); None without a readout."""
        if self.readout is None:
            return None
        return self.readout(self.vit(latents.to(self.device, self.dtype))).float().sigmoid().cpu()

    @torch.no_grad()
    def sample(
        self, latents: Tensor, seeds: Sequence = (), gain: float = 1.0, guidance: float = 1.0, temperature: float = 1.0
    ) -> Tensor:
        """Latents (B, C, h, w), unit variance => report latents (B, D), ready for BART's decoder.

        Of a regression the mean report. gain: what its deviation from that of all images is multiplied with; 1 is the
            least-squares prediction, which varies less than reports do, 1 / (spread of the predictions) corrects that.
        Of a flow one draw by a seed for each image. guidance: of the image, 1 for none. temperature: of the noise;
            below 1 reports vary less.
        InputError for NaN or infinity.
        """
        latents, strength = latents.to(self.device, self.dtype), f"LATENT_GAIN {gain}"
        if self.config.kind == "flow":
            generators = (keyed_generator("report latent", seed) for seed in seeds)
            noise = [torch.randn(self.config.report_dim, generator=generator) for generator in generators]
            tokens, strength = self.vit(latents), f"IMAGE_GUIDANCE {guidance}"
            noise = temperature * torch.stack(noise).to(tokens)
            standardised = self.head.draw(tokens, noise, FLOW_STEPS, guidance).float()
        else:
            standardised = gain * self(latents)[0].float()
        report_latents = standardised * self.report_std.float() + self.report_mean.float()
        if not torch.isfinite(report_latents).all():
            raise InputError(f"the prior predicts NaN or infinity: lower {strength}, or set PRECISION to 'no'")
        return report_latents

    def set_statistics(self, mean, std, covariance=None) -> None:
        """Statistics of the training rows' report latents: mean and std, (D,) each; for a flow covariance, (D, D)."""
        self.report_mean.copy_(torch.as_tensor(mean))
        self.report_std.copy_(torch.as_tensor(std).clamp(min=SMALLEST_STD))
        if self.config.kind == "flow":
            scale = self.report_std.double().cpu()
            self.head.set_covariance(torch.as_tensor(covariance) / scale / scale[:, None])

    def standardise(self, report_latents: Tensor) -> Tensor:
        """(..., D) => (..., D), mean 0 and standard deviation 1 in each dimension over the training rows."""
        return (report_latents.to(self.device) - self.report_mean) / self.report_std

    @torch.no_grad()
    def take(self, other: "Prior", source: str | Path) -> None:
        """Takes the weights of another prior and then predicts the same report latents. Set the statistics first.

        A regression's head is converted to this one's statistics; the authors' tanh becomes its tangent at the mean
        report. source: names the other. InputError when the sizes differ.
        """
        wrong = [name for name in SIZES if self.config[name] != other.config[name]]
        if wrong:
            differences = (f"{name.upper()} is {self.config[name]} and its {other.config[name]}" for name in wrong)
            raise InputError(f"INITIAL_WEIGHTS {source} is of another size: {', '.join(differences)}")
        same_flags = self.readout and [*self.config.flags] == [*other.config.flags]
        if self.config.kind == "flow":  # its velocities are those of its own statistics, which are taken with it
            state = other.state_dict()
            taken = {name: state[name] for name in state if same_flags or not name.startswith("readout.")}
            self.load_state_dict(taken, strict=False)  # the sizes agree: only a readout may be missing
            say(f"prior: started from {source}, report latents standardised as there")
            return
        self.vit.load_state_dict(other.vit.state_dict())
        if same_flags:
            self.readout.load_state_dict(other.readout.state_dict())
        weight, bias = other.head.weight, other.head.bias
        if other.config.pooler == "tanh":  # tanh(x) => at + (1 - at^2) (x - atanh(at)), `at` being the mean report
            at = ((self.report_mean - other.report_mean) / other.report_std).clamp(-STEEPEST, STEEPEST)
            slope = 1 - at**2
            weight, bias = slope[:, None] * weight, at + slope * (bias - at.atanh())
        varies = self.report_std > SMALLEST_STD
        # report latent = other std * output + other mean = own std * standardised + own mean
        self.head.weight.copy_(weight * (varies * other.report_std / self.report_std)[:, None])
        shifted = bias * other.report_std + other.report_mean - self.report_mean
        self.head.bias.copy_(shifted * varies / self.report_std)
        say(f"prior: started from {source}; its head fits the report latents of the BART it was trained with")

    def load_pretrained(self, name: str) -> None:
        """Starts the transformer from a timm ViT or "local-dir:FOLDER", resampled; InputError if it does not fit."""
        config = self.config
        sizes = {"img_size": config.latent_side, "patch_size": config.patch_size, "in_chans": config.latent_channels}
        failed, way_out = f"cannot load PRETRAINED {name!r}", "set it to local-dir:FOLDER, or to '' for random weights"
        with as_input_error(lambda error: f"{failed} ({type(error).__name__}: {reason(error)}); {way_out}"):
            weights = timm.create_model(name, pretrained=True, num_classes=0, **sizes).state_dict()
        load_weights(self.vit, weights, f"PRETRAINED {name!r}", "set EMBED_DIM, DEPTH and NUM_HEADS to its sizes")
        say(f"prior: {len(weights)} tensors of the transformer from {name}, resampled to {sizes}; the head is new")
