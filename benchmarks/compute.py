"""How much arithmetic each step of the paper's setting is, and how many bytes it moves: of what its time is made on any card.

    python -m benchmarks.compute --TFLOPS 750

Counts:  the operations of the real networks at their full size, with torch's FlopCounterMode on tensors without content;
         a training step is three forward passes, four with gradient checkpointing. Epochs and steps are the scripts' own.
         The bytes of a denoiser's training step in bf16, as a GPU's autocast has it (norms in float32): what all calls
         that are no product read and write, each tensor once, as if no kernel did the work of two and no cache helped;
         and what the optimiser, the clipping and the average read and write of each parameter.
Prints:  operations an image, and hours if nothing but arithmetic took time; milliseconds a training step if nothing but
         memory did. Reading files comes on top.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

import sample_diffusion_clipUViT
import train_bart
import train_diffusion_clipSD
import train_diffusion_clipUViT
import train_prior_model
from benchmarks.bench_profile import Traffic
from models.prior import Prior
from utils.constants import override_constants
from utils.errors import run
from uvit.model import UViT

TFLOPS = 100.0  # 10^12 operations a second that a card sustains; a product with its addition is two (0.001 to 1000000)
BANDWIDTH = 4.8  # 10^12 bytes a second of its memory; 4.8 is what NVIDIA states of an H200 (0.001 to 1000)
IMAGES = 96_000  # training images, one report each; MIMIC-CXR has about so many PA films (1 or more)
REPORT_TOKENS = 128  # of a report, what bart-base's tokenizer makes of about 90 words (1 to 1024)
_GUIDED_PASSES = 2  # of the denoiser a sampling step: equal guidances, the default, need no prompt and the whole prompt
_OPTIMISER_BYTES = 4 * (7 + 3 + 3)  # a parameter, float32: AdamW's reads and writes, the clipping's, the average's


def operations(model, *inputs, **named):
    """Operations of one forward pass, in 10^12."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, **named)
    return counter.get_total_flops() / 1e12


def denoisers():
    """The U-ViT and SD's U-Net."""
    script = train_diffusion_clipUViT
    uvit = UViT(img_size=32, embed_dim=script.EMBED_DIM, depth=script.DEPTH, num_heads=script.NUM_HEADS)
    return uvit, UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


def traffic(network, images, prompt):
    """The Traffic of a training step's two passes; network: on no device; prompt: the shape of an image's."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = network.to_empty(device="cpu").train()
        for module in network.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
        latents, timesteps = torch.empty(images, 4, 32, 32), torch.empty(images, dtype=torch.long)
        with Traffic() as counter:
            with torch.autocast("cpu", torch.bfloat16):
                output = network(latents, timesteps, torch.empty(images, *prompt))
            F.mse_loss(getattr(output, "sample", output).float(), latents).backward()
    return counter


def count(uvit, unet):
    """{network: 10^12 operations of one forward pass for one image, or report}."""
    latents, timestep = torch.empty(1, 4, 32, 32), torch.empty(1, dtype=torch.long)
    channels = (128, 256, 512, 512)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels, layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    bart = BartForConditionalGeneration(
        BartConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    tokens = torch.zeros(1, REPORT_TOKENS, dtype=torch.long)
    pooled = BaseModelOutput(last_hidden_state=torch.empty(1, 1, 768))
    return {
        "VAE encoder": operations(vae.encode, torch.empty(1, 3, 256, 256)),
        "VAE decoder": operations(vae.decode, latents),
        "U-ViT": operations(uvit, latents, timestep, torch.empty(1, 1, train_diffusion_clipUViT.EMBED_DIM)),
        "SD's U-Net": operations(unet, latents, timestep, torch.empty(1, 78, 768)),
        "BART": operations(bart.get_encoder(), tokens)
        + operations(bart, encoder_outputs=pooled, decoder_input_ids=tokens),
        "prior": operations(Prior(), latents),
    }


def main():
    override_constants(globals())
    with torch.device("meta"):
        uvit, unet = denoisers()
        forward = count(uvit, unet)
    for name, teraflop in forward.items():
        print(f"{name:<12} {teraflop:.3f} x 10^12 operations a forward pass")
    print(f"\n{IMAGES:,} images, {TFLOPS:g} x 10^12 operations a second:")
    sampled = sample_diffusion_clipUViT.STEPS * _GUIDED_PASSES
    steps = {
        "VAE moments, once": forward["VAE encoder"],
        "train_diffusion_clipUViT.py": 3 * forward["U-ViT"] * train_diffusion_clipUViT.EPOCHS,
        "train_diffusion_clipSD.py": (3 + train_diffusion_clipSD.GRADIENT_CHECKPOINTING)
        * forward["SD's U-Net"] * train_diffusion_clipSD.EPOCHS,
        "train_bart.py": 3 * forward["BART"] * train_bart.EPOCHS,
        "train_prior_model.py": 3 * forward["prior"] * train_prior_model.EPOCHS,
        "as many images from the U-ViT": sampled * forward["U-ViT"] + forward["VAE decoder"],
        "as many images from SD's U-Net": sampled * forward["SD's U-Net"] + forward["VAE decoder"],
    }  # fmt: skip
    for name, teraflop in steps.items():
        print(f"{name:<32} {teraflop:8.1f} x 10^12 an image   {teraflop * IMAGES / TFLOPS / 3600:6.1f} h at least")
    print(f"\na training step, {BANDWIDTH:g} x 10^12 bytes a second:")
    prompts = {
        train_diffusion_clipUViT: (uvit, (1, uvit.config.embed_dim)), train_diffusion_clipSD: (unet, (78, 768))
    }  # fmt: skip
    for script, (network, prompt) in prompts.items():
        counter = traffic(network, script.BATCH_SIZE, prompt)
        weights = _OPTIMISER_BYTES * network.num_parameters()
        between, afterwards = (moved / BANDWIDTH / 1e9 for moved in (counter.bytes, weights))  # milliseconds
        print(
            f"{f'{script.__name__}.py':<32} {counter.calls:,} calls, which move {counter.bytes / 1e9:.1f} x 10^9 bytes outside of the products: "
            f"{between:.1f} ms; and {weights / 1e9:.1f} x 10^9 of weights: {afterwards:.1f} ms"
        )


if __name__ == "__main__":
    run(main)
