"""A GPU that need not wait for Python: CUDA graphs, whose kernels are asked for one by one once, and from then on by one call.

A training step of 32 images takes an H200 1,700 kernels on a U-ViT-L/2 and 5,400 on Stable Diffusion's U-Net. Most are shorter
than the time that Python needs to ask for one, and what they do is the same from step to step.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import nn

WARM_UPS = 2  # calls before a graph is recorded: in the first ones libraries make their choices, and get their memory


def compiling(denoiser, passes, accelerator):
    """How a denoiser is compiled for training, arguments of torch.compile: what is done element by element becomes few kernels,
    a U-Net's convolutions get the layout that is quickest for them, and on a GPU all of it becomes two graphs, there and back.

    passes: of an optimiser step. Of several, and of several processes, no graphs are made: a graph leaves its gradients where
    its next replay writes, and they have to be added up first.
    """
    graphs = accelerator.device.type == "cuda" and passes == 1 and accelerator.num_processes == 1
    convolutions = isinstance(denoiser, UNet2DConditionModel)
    return {"options": {"force_layout_optimization": convolutions, "triton.cudagraphs": graphs}}


class Replay:
    """Another `forward` of a network, which answers by CUDA graphs, one for each shape of its inputs.

    For a network that is not trained. Its weights are read where they lay at the recording; a graph's memory is its own, and
    what is returned the caller's. The first answer to a shape is a graph's, too: so images do not depend on which were made
    before them in the same run.
    """

    def __init__(self, forward):
        self.forward, self.recorded = forward, {}
        self.memory = torch.cuda.graph_pool_handle()  # of all graphs: one runs at a time

    def __call__(self, *inputs):
        """inputs: tensors on one GPU, or None."""
        given = [value for value in inputs if value is not None]
        key = tuple(value if value is None else (value.shape, value.dtype) for value in inputs)
        with torch.cuda.device(given[0].device):
            if key not in self.recorded:
                self.recorded[key] = self._record(inputs)
            graph, places, output = self.recorded[key]
            for place, value in zip(places, given, strict=True):
                place.copy_(value)
            graph.replay()
            return output.clone()

    def _record(self, inputs):
        """(graph, the places of the tensors that were given, the place of the answer)."""
        for _ in range(WARM_UPS):
            self.forward(*inputs)
        inputs = [value if value is None else value.clone() for value in inputs]
        graph, cached = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # what lies in autocast's cache is gone when a batch is done
        try:
            with torch.cuda.graph(graph, pool=self.memory):
                output = self.forward(*inputs)
        finally:
            torch.set_autocast_cache_enabled(cached)
        return graph, [value for value in inputs if value is not None], output


def replay(model, accelerator):
    """From now on a network that is not trained answers by CUDA graphs on a GPU; elsewhere it stays as it is.

    The weights of its products are kept in the accelerator's precision then, in which autocast would copy them each time:
    its answers are the same.
    """
    if accelerator.device.type != "cuda" or isinstance(model.forward, Replay):
        return
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)
    model.forward = Replay(model.forward)
