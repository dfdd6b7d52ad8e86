"""Where a script computes, and in which precision."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from utils.errors import InputError, reason

PATIENCE = 60  # minutes that processes wait for one of them, which may list a million images (NCCL's default: 10)


def make_accelerator(device, precision):
    """An Accelerator. device: "" (the best there is), "cpu", "cuda:1" ...; precision: "auto" (bf16 where the device has
    it), "no", "bf16" or "fp16". What stays float32 beside bf16 and fp16 is multiplied in TF32 where a GPU has it."""
    if precision not in ("auto", "no", "bf16", "fp16"):
        raise InputError(f"PRECISION {precision!r} is none of 'auto', 'no', 'bf16', 'fp16'")
    try:
        kind = torch.device(device or "cpu")
    except RuntimeError as error:
        raise InputError(f"DEVICE {device!r} is no torch device; e.g. 'cpu', 'cuda' or 'cuda:1'") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"DEVICE {device!r}: torch {torch.__version__} sees no CUDA device here; set DEVICE to 'cpu'")
    try:
        if kind.type != "cuda" or kind.index is not None:  # without a number, each process of a launch has its own
            torch.ones(1, device=kind).item()
    except Exception as error:  # each kind of device says in its own way that it is not here
        raise InputError(
            f"DEVICE {device!r}: torch {torch.__version__} cannot compute on it here ({reason(error)}); set DEVICE to "
            "'cpu', 'cuda' or ''"
        ) from error
    if device and device != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    if precision == "auto":
        cuda = device != "cpu" and torch.cuda.is_available()
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    torch.set_float32_matmul_precision("highest" if precision == "no" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "no"
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # one copy of the gradients less
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=PATIENCE))
    return Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[buckets, patience])
