"""The prior: an image's VAE latents => the latent of its report, by a vision transformer (CXR-IRGen, section 3.3).

    latents          (C, h, w) one draw of the VAE's posterior, unit variance
    report latents   (D,) pooled BART latents; the network works on them standardised, dimension by dimension, with the
                     mean and standard deviation of the training rows, which are kept in its checkpoint

Two kinds: "regression", the paper's, predicts the mean of all reports that an image allows; "flow" (models/flow.py) draws
one of them. Either may have a readout beside its head, which names the findings that the image shows: of several reports
drawn for it the one can be kept that says the same (evaluation/selection.py). Neither the VAE nor BART runs in training: both
ends come from the cache.
"""

from functools import partial

import timm
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.flow import ReportFlow
from utils.checkpoints import load_strictly
from utils.errors import InputError, reason, say
from utils.findings import FINDINGS
from utils.seeds import keyed_generator

KINDS = ("regression", "flow")
POOLERS = ("linear", "tanh")
SMALLEST_STD = 1e-6  # a dimension that varies less is constant
STEEPEST = 0.99  # of a tanh, the largest value at which its tangent is taken
SIZES = (  # that two priors have to share, for the one to go on from the other
    "kind", "latent_channels", "latent_side", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "report_dim",
    "flow_width", "flow_depth",
)  # fmt: skip
FLOW_STEPS = 25  # of Euler's method
RIDGE = 0.02  # penalty on the squared weights of the head's start, in units of the class tokens' mean variance


class Prior(ModelMixin, ConfigMixin):
    """A vision transformer on VAE latents, with a head on its class token, to standardised report latents.

    Args:
        latent_channels, latent_side: C and h = w of the latents. patch_size: side of a token's patch.
        embed_dim, depth, num_heads: of the transformer; the defaults are ViT-Base.
        report_dim: D, the width of a report latent.
        pooler: "linear"; or "tanh" behind the linear layer, which cannot reach beyond -1 and 1.
        layer_norm_epsilon: timm's ViTs have 1e-6, Hugging Face's ViTModel 1e-12.
        mlp_ratio: hidden width of a block's MLP, in units of embed_dim.
        kind: "regression", with a linear head; or "flow", with a head of flow_width, flow_depth and flow_dropout, as
            models.flow.ReportFlow has them.
        reads_findings: whether it has a readout, linear on the class token.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        latent_side: int = 32,
        patch_size: int = 2,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        report_dim: int = 768,
        pooler: str = "linear",
        layer_norm_epsilon: float = 1e-6,
        mlp_ratio: float = 4.0,
        kind: str = "regression",
        flow_width: int = 0,
        flow_depth: int = 0,
        flow_dropout: float = 0.0,
        reads_findings: bool = False,
    ):
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"the kind of prior {kind!r} is none of {', '.join(KINDS)}")
        if pooler not in POOLERS:
            raise InputError(f"the pooler {pooler!r} is none of {', '.join(POOLERS)}")
        if latent_side % patch_size or embed_dim % num_heads:
            raise InputError(
                f"PATCH_SIZE {patch_size} has to divide the latents' side {latent_side}, and NUM_HEADS {num_heads} "
                f"EMBED_DIM {embed_dim}"
            )
        self.vit = VisionTransformer(
            img_size=latent_side,
            patch_size=patch_size,
            in_chans=latent_channels,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=layer_norm_epsilon),
        )
        if kind == "flow":
            self.head = ReportFlow(embed_dim, report_dim, flow_width, flow_depth, flow_dropout)
        else:
            self.head = nn.Linear(embed_dim, report_dim)
        self.readout = nn.Linear(embed_dim, len(FINDINGS)) if reads_findings else None
        self.register_buffer("report_mean", torch.zeros(report_dim))
        self.register_buffer("report_std", torch.ones(report_dim))

    def forward(self, images, *flowing, read=False):
        """Latents (B, C, h, w), unit variance => standardised report latents (B, D); of a flow, velocities.

        images: these latents, or (B, embed_dim), the class tokens that the transformer made of them.
        flowing: noisy report latents, times and dropped images, as `ReportFlow.forward` has them. read: the logits of the
        findings as well, (B, 14), as the second of two results; of a prior with a readout.
        """
        pooled = images if images.ndim == 2 else self.vit(images)  # the class token after the final layer norm
        predicted = self.head(pooled, *flowing)
        if self.config.pooler == "tanh" and self.config.kind == "regression":
            predicted = predicted.tanh()
        return (predicted, self.readout(pooled)) if read else predicted

    @torch.no_grad()
    def read_findings(self, latents):
        """Latents (B, C, h, w), unit variance => how probably each finding is present, (B, 14); None without a readout."""
        if self.readout is None:
            return None
        return self.readout(self.vit(latents.to(self.device, self.dtype))).float().sigmoid().cpu()

    @torch.no_grad()
    def predict(self, latents, gain=1.0):
        """Latents (B, C, h, w), unit variance => report latents (B, D), as BART's decoder wants them: of a regression.

        gain: what the deviation from the mean report is multiplied with. 1 is the least-squares prediction, a mean over
        all reports that the image allows: it varies less than the latents of real reports, and BART reads it as a
        report that says little. 1 / (spread of the predictions) makes up for that. InputError for what is no number.
        """
        predicted = gain * self(latents.to(self.device, self.dtype)).float()
        return self._report_latents(predicted, f"LATENT_GAIN {gain}")

    @torch.no_grad()
    def draw(self, latents, seeds, guidance=1.0, temperature=1.0, steps=FLOW_STEPS):
        """Latents (B, C, h, w), unit variance, and a seed for each => report latents (B, D), each one draw: of a flow.

        guidance: of the image, 1 for none. temperature: what the noise that a draw begins with is multiplied with; below
        1 reports vary less and are surer of their findings. steps: of Euler's method. InputError for what is no number.
        """
        noise = [
            torch.randn(self.config.report_dim, generator=keyed_generator("report latent", seed)) for seed in seeds
        ]
        tokens = self.vit(latents.to(self.device, self.dtype))
        drawn = self.head.draw(tokens, temperature * torch.stack(noise).to(tokens), steps, guidance)
        return self._report_latents(drawn.float(), f"IMAGE_GUIDANCE {guidance}")

    def sample(self, latents, seeds, gain=1.0, guidance=1.0, temperature=1.0):
        """Report latents (B, D) to decode, of either kind: `predict` with the gain, or `draw` with what is a flow's."""
        if self.config.kind == "flow":
            return self.draw(latents, seeds, guidance, temperature)
        return self.predict(latents, gain)

    def mean(self, latents, seeds, draws):
        """Report latents (B, D), the mean of all that the image allows: of a flow, that of so many unguided draws."""
        if self.config.kind == "flow":
            return sum(self.draw(latents, [(seed, number) for seed in seeds]) for number in range(draws)) / draws
        return self.predict(latents)

    def _report_latents(self, standardised, strength):
        report_latents = standardised * self.report_std.float() + self.report_mean.float()
        if not torch.isfinite(report_latents).all():
            raise InputError(
                f"the prior predicts NaN or infinity with {strength}: its weights are damaged, that is too high, or "
                "PRECISION has to be 'no'"
            )
        return report_latents

    def set_statistics(self, mean, std, covariance=None):
        """What a report latent is standardised with, (D,) each; and for a flow their covariance, (D, D)."""
        self.report_mean.copy_(torch.as_tensor(mean))
        self.report_std.copy_(torch.as_tensor(std).clamp(min=SMALLEST_STD))
        if self.config.kind == "flow":
            scale = self.report_std.double().cpu()
            self.head.set_covariance(torch.as_tensor(covariance) / scale / scale[:, None])

    def standardise(self, report_latents):
        """(..., D) => (..., D), mean 0 and standard deviation 1 in each dimension over the training rows."""
        return (report_latents.to(self.device) - self.report_mean) / self.report_std

    @torch.no_grad()
    def start_head(self, examples, picked, batch_size=256):
        """Sets the head to the ridge regression of report latents on the transformer's class tokens as they are.

        Of a regression only. Linear probing before fine-tuning (Kumar et al. 2022): the gradients of a head that was drawn at
        random would first of all distort what a pretrained transformer knows. picked: a list of (row, seed) of the
        PriorExamples.
        """
        width = self.config.embed_dim
        products = torch.zeros(width + 1, width + 1, dtype=torch.float64)  # of tokens and a one with themselves
        targets = torch.zeros(width + 1, self.config.report_dim, dtype=torch.float64)  # and with report latents
        for start in range(0, len(picked), batch_size):
            batch = [examples[pick] for pick in picked[start : start + batch_size]]
            latents = torch.stack([example["latents"] for example in batch]).to(self.device)
            tokens = nn.functional.pad(self.vit(latents).double().cpu(), (0, 1), value=1.0)  # (B, width + 1)
            products += tokens.T @ tokens
            targets += tokens.T @ torch.stack([example["report_latents"] for example in batch]).double()
        mean = products[-1, :-1] / len(picked)
        variance = (products.diagonal()[:-1] / len(picked) - mean**2).mean()
        penalty = torch.full((width + 1,), RIDGE * len(picked) * variance.item(), dtype=torch.float64)
        penalty[-1] = 0  # of the bias
        solution = torch.linalg.lstsq(products + penalty.diag(), targets).solution  # (width + 1, D)
        self.head.weight.copy_(solution[:-1].T)
        self.head.bias.copy_(solution[-1])

    def start_from(self, folder):
        """Takes the weights of another prior's checkpoint folder, as `take` does."""
        self.take(load_strictly(type(self), folder), folder)

    @torch.no_grad()
    def take(self, other, source):
        """Takes the weights of another Prior, so that it predicts the same report latents, by this one's statistics.

        A head with a tanh, as the authors' has, becomes its tangent at the mean report. source: its name, for the
        InputError when the sizes differ. Set the statistics first.
        """
        sizes = {name: (value, other.config[name]) for name, value in self.config.items() if name in SIZES}
        wrong = [f"{name.upper()} is {own} and its {its}" for name, (own, its) in sizes.items() if own != its]
        if wrong:
            raise InputError(f"INITIAL_WEIGHTS {source} is of another size: {', '.join(wrong)}")
        if self.config.kind == "flow":  # its velocities are those of its own statistics
            self.load_state_dict(other.state_dict(), strict=False)  # the sizes agree: only a readout may be missing
            return say(f"prior: started from {source}, report latents standardised as there")
        self.vit.load_state_dict(other.vit.state_dict())
        if self.readout and other.readout:
            self.readout.load_state_dict(other.readout.state_dict())
        scale, shift = other.report_std, other.report_mean  # report latent = scale * the other's output + shift
        weight, bias = other.head.weight, other.head.bias
        if other.config.pooler == "tanh":  # tanh(x) => at + (1 - at^2) (x - atanh(at)), `at` being the mean report
            at = ((self.report_mean - shift) / scale).clamp(-STEEPEST, STEEPEST)
            slope = 1 - at**2
            weight, bias = slope[:, None] * weight, at + slope * (bias - at.atanh())
        varies = self.report_std > SMALLEST_STD
        self.head.weight.copy_(weight * (varies * scale / self.report_std)[:, None])
        self.head.bias.copy_((bias * scale + shift - self.report_mean) * varies / self.report_std)
        say(f"prior: started from {source}; its head is right for the report latents of the BART it was trained with")

    def load_pretrained(self, name, file=""):
        """Starts the transformer from a timm ViT's weights, resampled by timm to this patch, side and channels.

        name: a timm model such as "vit_base_patch16_224" or "local-dir:FOLDER"; file: its weights on disk, "" for the
        hub or the FOLDER. Prints what was loaded; InputError when it cannot be had, or when it is of another size.
        The head stays as it was drawn.
        """
        config = self.config
        options = {"pretrained_cfg_overlay": {"file": file}} if file else {}
        try:
            source = timm.create_model(
                name,
                pretrained=True,
                img_size=config.latent_side,
                patch_size=config.patch_size,
                in_chans=config.latent_channels,
                num_classes=0,
                **options,
            )
        except Exception as error:  # timm and the hub raise whatever their network layer does
            raise InputError(
                f"cannot load the weights of PRETRAINED {name!r}{' from ' * bool(file)}{file} "
                f"({type(error).__name__}: {reason(error)}); set PRETRAINED_FILE to a copy on "
                "disk, or PRETRAINED to '' for random weights"
            ) from error
        weights, own = source.state_dict(), self.vit.state_dict()
        wrong = sorted(
            key for key in weights.keys() | own.keys()
            if key not in weights or key not in own or weights[key].shape != own[key].shape
        )  # fmt: skip
        if wrong:
            raise InputError(
                f"PRETRAINED {name!r} does not fit EMBED_DIM {config.embed_dim}, DEPTH {config.depth}, NUM_HEADS "
                f"{config.num_heads}: {len(wrong)} tensors differ, e.g. {wrong[0]}"
            )
        self.vit.load_state_dict(weights)
        side = config.latent_side // config.patch_size
        say(
            f"prior: {len(weights)} of {len(own)} tensors of the transformer loaded from {name}, patches resampled to "
            f"{config.patch_size} x {config.patch_size} x {config.latent_channels} and positions to {side} x {side}; "
            "the head is new"
        )
