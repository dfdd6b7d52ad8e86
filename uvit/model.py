"""UViT: noisy latents + time + prompt tokens => predicted noise.

The backbone of Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (CVPR 2023): every input is a
token (prompt, time, latent patches), and long skip connections join the first half of the blocks with the second.
Written from the paper's equations; parameter names are the official implementation's, so that its published weights
load. It differs in that the prompt arrives as tokens; blocks and patches are timm's, saving and loading diffusers'.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from timm.layers import PatchEmbed
from timm.models import vision_transformer
from torch import nn


def timestep_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids of the diffusion step, cosines first (official U-ViT; Vaswani et al. 2017, section 3.5).

    timesteps: (...,) steps, 0 to 1000 => (..., width) float32 in [-1, 1].
    """
    half = width // 2
    positions = torch.arange(half, device=timesteps.device, dtype=torch.float32)
    frequencies = torch.exp(positions * (-math.log(10000) / half))
    angles = timesteps.float()[..., None] * frequencies  # (..., width / 2), radians
    embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return F.pad(embedding, (0, width % 2))


class Block(vision_transformer.Block):
    """A pre-norm transformer block; with `skip`, its input is first joined with an earlier block's output."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, skip: bool = False):
        super().__init__(width, heads, mlp_ratio, norm_layer=nn.LayerNorm)  # queries, keys and values without a bias
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:  # both (B, L, D)
        return super().forward(x if skip is None else self.skip_linear(torch.cat((x, skip), dim=-1)))


class UViT(ModelMixin, ConfigMixin):
    """The U-ViT denoiser. The defaults are the paper's size, U-ViT-L/2 on 32x32x4 latents: 1 + 1 + 256 tokens.

    Args:
        img_size, patch_size, in_chans: side of the latents, side of a patch, latent channels.
        embed_dim, depth, num_heads, mlp_ratio: token width; depth // 2 blocks in, one in the middle, depth // 2 out.
        mlp_time_embed: pass the time sinusoid through an MLP first (off in the published L/2 model).
        num_prompt_tokens: prompt tokens, already of width embed_dim, that stand before the time token; may be 0.
    """

    @register_to_config
    def __init__(
        self,
        img_size: int = 32, patch_size: int = 2, in_chans: int = 4, embed_dim: int = 1024, depth: int = 20,
        num_heads: int = 16, mlp_ratio: float = 4.0, mlp_time_embed: bool = False, num_prompt_tokens: int = 1,
    ):  # fmt: skip
        super().__init__()
        if img_size % patch_size or embed_dim % num_heads:
            sides = f"patch_size {patch_size} has to divide img_size {img_size}"
            raise ValueError(f"{sides}, and num_heads {num_heads} embed_dim {embed_dim}")
        self.time_embed = nn.Identity()
        if mlp_time_embed:
            hidden = 4 * embed_dim
            self.time_embed = nn.Sequential(nn.Linear(embed_dim, hidden), nn.SiLU(), nn.Linear(hidden, embed_dim))
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)  # a token a patch, row by row
        tokens = num_prompt_tokens + 1 + (img_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim))
        size, half = (embed_dim, num_heads, mlp_ratio), range(depth // 2)
        self.in_blocks = nn.ModuleList(Block(*size) for _ in half)
        self.mid_block = Block(*size)
        self.out_blocks = nn.ModuleList(Block(*size, skip=True) for _ in half)
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, kernel_size=3, padding=1)

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predicts the noise (or velocity) in `latents`.

        latents: (B, in_chans, img_size, img_size); timesteps: (B,); prompt: (B, num_prompt_tokens, embed_dim) or None
        when num_prompt_tokens is 0. Returns a tensor of the latents' shape.
        """
        x = self.patch_embed(latents)  # (B, P, D)
        # under autocast the patches are in half precision; the time token stays in the precision of the weights
        time = timestep_embedding(timesteps, self.config.embed_dim).to(self.pos_embed.dtype)
        prompts = () if prompt is None else (prompt.to(self.pos_embed.dtype),)
        tokens = (*prompts, self.time_embed(time)[:, None], x)
        x = torch.cat(tokens, dim=1) + self.pos_embed  # (B, [prompt, time, patches], D)

        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())

        patches = self.decoder_pred(self.norm(x))[:, self.config.num_prompt_tokens + 1 :]  # (B, P, patch^2 * C)
        size, side = self.config.patch_size, self.config.img_size // self.config.patch_size
        x = patches.view(-1, side, side, size, size, self.config.in_chans)  # (B, row, column, y, x, C)
        return self.final_layer(x.permute(0, 5, 1, 3, 2, 4).reshape(latents.shape))
