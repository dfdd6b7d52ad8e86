"""Where a training step's time goes, by PyTorch's profiler, and what its calls move: what keeps a GPU below its ceiling.

A share of the ceiling is the share of the time that products take, times how near to the ceiling they run meanwhile. The
first is measured here; the second follows.
"""

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.bench_clock import synchronise, timed

STEPS = 3  # that are profiled
PRODUCTS = ("products of matrices", "attention", "convolutions")  # what a ceiling counts
KINDS = {  # kind => what the names of PyTorch's operations, or of a GPU's kernels, of it contain; the first kind that fits
    "optimiser": ("adamw", "_foreach_", "linalg_vector_norm", "multi_tensor_apply"),
    "attention": ("attention", "sdpa", "flash", "cudnn::fusion"),
    "convolutions": ("conv", "fprop", "dgrad", "wgrad"),
    "products of matrices": ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "::_addmm", "nvjet", "gemm"),
    "normalisation": ("_norm", "groupnorm", "rowwisemoments", "gammabeta", "internalgradients"),
    "copies": ("copy", "::cat", "catarray", "memcpy", "memset", "::fill_", "::zero_", "tonhwc", "tonchw"),
}
FUSED = "triton_"  # begins the name of a compiler's kernel, which says what is fused in it or comes before: no products
OTHER = "element by element"  # what fits none: activations, sums, losses; and what a compiler has fused
NOTHING = "nothing"  # the device waits for Python
MOVES_NOTHING = ("aten::_unsafe_view", "aten::empty", "aten::new_empty")  # besides views


def kind_of(name):
    """The kind of an operation or a kernel, by its name: aten::addmm, aten::_fused_adamw_, nvjet_sm90_..., triton_poi_fused_..."""
    kinds = [kind for kind in KINDS if not name.startswith(FUSED) or kind not in PRODUCTS]
    return next((kind for kind in kinds if any(part in name.lower() for part in KINDS[kind])), OTHER)


class Traffic(TorchDispatchMode):
    """Counts the calls of PyTorch's operations, views aside, and the bytes of all tensors of those that are no product."""

    def __init__(self):
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        found = operation(*arguments, **(named or {}))
        name = operation.name()
        if name.startswith("aten::") and not operation.is_view and not name.startswith(MOVES_NOTHING):
            self.calls += 1
            if kind_of(name) not in PRODUCTS:
                tensors = (leaf for leaf in tree_leaves((arguments, named, found)) if isinstance(leaf, torch.Tensor))
                self.bytes += sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
        return found


def where_time_goes(step, seconds, device):
    """{kind: share of the time that a step takes}; they add up to 1.

    seconds: that a step takes without a profiler, which slows the calls, and not what they ask of a GPU, whose kernels are
    counted. On a CPU the calls are the step, and the profiled ones are taken as the whole.
    """
    cuda = torch.device(device).type == "cuda"
    step()
    synchronise(device)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiled:
        wall = sum(timed(step, device) for _ in range(STEPS)) / STEPS
    events = profiled.key_averages()
    spent = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in events:
        if event.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU) and not event.is_user_annotation:
            taken = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[kind_of(event.key)] += taken / 1e6 / STEPS
    spent[NOTHING] = max(0.0, (seconds if cuda else wall) - sum(spent.values()))
    whole = sum(spent.values())
    return {kind: taken / whole for kind, taken in spent.items()}


def told(shares):
    """Shares as a phrase, the largest first, those below half a per cent left out."""
    largest = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in largest if share >= 0.005)
