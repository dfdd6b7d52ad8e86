"""CUDA graphs: they give the network's results, and are made only where they can be."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import WIDTH

from models.diffusion import (
    Guidance,
    PromptedDenoiser,
    Prompts,
    load_unet,
    noise_schedule,
    sample_latents,
    sampling_scheduler,
)
from models.graphs import Replay, compiling, replay
from utils.prompts import PooledFusion, TokenFusion
from uvit.model import UViT

SHAPE = (4, 8, 8)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def accelerator_on(device, precision="bf16", processes=1):
    return SimpleNamespace(device=torch.device(device), mixed_precision=precision, num_processes=processes)


def make_model(backbone, base_model):
    torch.manual_seed(0)
    if backbone == "unet":
        denoiser, fusion = load_unet(base_model, WIDTH), TokenFusion(WIDTH, WIDTH)
    else:
        denoiser, fusion = UViT(8, 2, 4, embed_dim=32, depth=2, num_heads=2), PooledFusion(WIDTH, WIDTH, 32)
    return PromptedDenoiser(denoiser, fusion, noise_schedule(base_model, "epsilon")).eval()


@pytest.mark.parametrize(
    ("device", "passes", "processes", "graphs"),
    [("cuda", 1, 1, True), ("cuda", 2, 1, False), ("cuda", 1, 2, False), ("cpu", 1, 1, False)],
)
def test_graphs_are_compiled_where_no_gradients_are_added_up(device, passes, processes, graphs):
    options = compiling(torch.nn.Identity(), passes, accelerator_on(device, processes=processes))["options"]
    assert options["triton.cudagraphs"] is graphs
    assert options.keys() <= set(torch._inductor.list_options())


def test_without_a_gpu_a_network_stays_as_it_is(base_model):
    model = make_model("uvit", base_model)
    replay(model, accelerator_on("cpu"))
    assert not isinstance(model.forward, Replay)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@needs_gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_a_replayed_network_makes_the_same_images(backbone, precision, base_model):
    """Of several batches, of other sizes, prompts and noise, with and without guidance and a reference."""
    plain, replayed = (make_model(backbone, base_model).to("cuda") for _ in range(2))
    replay(replayed, accelerator_on("cuda", precision))
    replay(replayed, accelerator_on("cuda", precision))  # the second time changes nothing
    texts = (77, WIDTH) if backbone == "unet" else (WIDTH,)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def sample(model, seed, rows, guidance, with_reference=True):
        generator = torch.Generator().manual_seed(seed)
        text, null = torch.randn(rows, *texts, generator=generator), torch.randn(*texts, generator=generator)
        reference = torch.randn(rows, WIDTH, generator=generator) if with_reference else None
        scheduler = sampling_scheduler("PNDM", model.schedule)  # which keeps earlier predictions
        prompts, guidance = Prompts(text, reference, null), Guidance(guidance, guidance)
        with torch.autocast("cuda", half, enabled=half is not None):
            return sample_latents(model, scheduler, prompts, guidance, range(seed, seed + rows), SHAPE, 6)

    settings = [(0, 4, 3.0), (1, 4, 3.0), (2, 3, 1.0), (3, 4, 1.0), (4, 4, 3.0), (5, 4, 1.0, False), (6, 3, 1.0)]
    for setting in settings:
        torch.testing.assert_close(sample(replayed, *setting), sample(plain, *setting), rtol=1e-3, atol=1e-3)
    assert torch.equal(sample(replayed, *settings[0]), sample(replayed, *settings[0]))
    assert isinstance(replayed.forward, Replay) and len(replayed.forward.recorded) == 4
    assert all(parameter.dtype == torch.float32 for parameter in plain.parameters())
