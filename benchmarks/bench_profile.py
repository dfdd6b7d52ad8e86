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
KINDS = {  # kind => what the names of PyTorch's operations of it contain; the first kind that fits
    "optimiser": ("adamw", "_foreach_", "linalg_vector_norm"),
    "attention": ("attention",),
    "convolutions": ("conv",),
    "products of matrices": ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "::_addmm"),
    "normalisation": ("_norm",),
    "copies": ("copy", "::cat", "memcpy", "::fill_", "::zero_"),
}
OTHER = "element by element"  # what fits none: activations, sums, losses; and what a compiler has fused
NOTHING = "nothing"  # the device waits for Python
MOVES_NOTHING = ("aten::_unsafe_view", "aten::empty", "aten::new_empty")  # besides views


def kind_of(name):
    """The kind of an operation, by its name: aten::addmm, aten::_fused_adamw_, ..."""
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), OTHER)


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

    seconds: that a step takes without a profiler, which slows the calls, and not what they ask of a GPU. On a CPU the calls
    are the step, and the profiled ones are taken as the whole.
    """
    cuda = torch.device(device).type == "cuda"
    step()
    synchronise(device)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiled:
        wall = sum(timed(step, device) for _ in range(STEPS)) / STEPS
    events = profiled.key_averages()
    spent = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in events:
        if event.device_type == DeviceType.CPU:  # of a GPU: what this operation itself has asked of it
            taken = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[kind_of(event.key)] += taken / 1e6 / STEPS
    if cuda:  # kernels that no operation of PyTorch asked for are a compiler's
        kernels = (event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation)
        busy = sum(event.self_device_time_total for event in kernels) / 1e6 / STEPS
        spent[OTHER] += max(0.0, busy - sum(spent.values()))
    spent[NOTHING] = max(0.0, (seconds if cuda else wall) - sum(spent.values()))
    whole = sum(spent.values())
    return {kind: taken / whole for kind, taken in spent.items()}


def told(shares):
    """Shares as a phrase, the largest first, those below half a per cent left out."""
    largest = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in largest if share >= 0.005)
