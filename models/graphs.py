"""CUDA graphs: a network's kernels are recorded once, and then launched together by one call."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import nn

WARM_UPS = 2  # calls before a recording: the first ones choose algorithms and allocate their memory


def compiling(denoiser: nn.Module, passes: int, accelerator: Accelerator) -> dict:
    """The arguments of torch.compile for training a denoiser.

    A U-Net's convolutions get the fastest memory layout; on a GPU forward and backward become a CUDA graph each, unless
    gradients are summed over several passes or processes: a graph's next replay would overwrite them.
    """
    graphs = accelerator.device.type == "cuda" and passes == 1 and accelerator.num_processes == 1
    convolutions = isinstance(denoiser, UNet2DConditionModel)
    return {"options": {"force_layout_optimization": convolutions, "triton.cudagraphs": graphs}}


class Replay:
    """Replaces the `forward` of a network that is not trained by CUDA graphs, one for each combination of input shapes.

    Results are copies, the first one of a shape too, so that no image depends on the images before it.
    """

    def __init__(self, forward: Callable[..., torch.Tensor]):
        self.forward, self.recorded = forward, {}
        self.memory = torch.cuda.graph_pool_handle()  # shared by all graphs: one runs at a time

    def __call__(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        """inputs: tensors on one GPU, or None."""
        tensors = [value for value in inputs if value is not None]
        key = tuple(value if value is None else (value.shape, value.dtype) for value in inputs)
        with torch.cuda.device(tensors[0].device):
            if key not in self.recorded:
                self.recorded[key] = self._record(inputs)
            graph, places, output = self.recorded[key]
            for place, value in zip(places, tensors, strict=True):
                place.copy_(value)
            graph.replay()
            return output.clone()

    def _record(self, inputs):
        """(the graph, the tensors that it reads its inputs from, the tensor that it writes its output to)."""
        for _ in range(WARM_UPS):
            self.forward(*inputs)
        places = [value if value is None else value.clone() for value in inputs]
        graph, cached = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # autocast's cache is emptied after each batch, the graph stays
        try:
            with torch.cuda.graph(graph, pool=self.memory):
                output = self.forward(*places)
        finally:
            torch.set_autocast_cache_enabled(cached)
        return graph, [place for place in places if place is not None], output


def replay(model: nn.Module, accelerator: Accelerator) -> None:
    """Makes a network that is not trained run by CUDA graphs, its weights cast once; on other devices: nothing."""
    if accelerator.device.type != "cuda" or isinstance(model.forward, Replay):
        return
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)
    model.forward = Replay(model.forward)
