"""The device and the precision of a script's computations."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from utils.errors import InputError, as_input_error, reason

TIMEOUT = 60  # minutes that processes wait for another one, which may list a million images (NCCL's default: 10)


def make_accelerator(device: str, precision: str, log_with: str = "", folder: str | None = None) -> Accelerator:
    """An Accelerator; InputError for a device on which torch cannot compute here.

    device: "" (the best there is), "cpu", "cuda:1" ...; precision: "no", "bf16", "fp16", or "auto" (bf16 where the
    device supports it). With any other than "no", GPUs multiply the remaining float32 matrices in TF32. log_with: one
    of accelerate's trackers, or ""; folder: where it writes. InputError for a tracker that is not installed.
    """
    failed = f"DEVICE {device!r}: torch {torch.__version__} cannot compute on it here"
    # each backend has errors of its own
    with as_input_error(lambda error: f"{failed}: {reason(error)}; set DEVICE to 'cpu', 'cuda' or ''"):
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA device")
        if device not in ("", "cpu", "cuda"):  # with "cuda" each process of a launch takes a GPU of its own later
            torch.ones(1, device=device).item()
    if log_with and log_with not in map(str, get_available_trackers()):
        raise InputError(f"LOG_WITH {log_with!r} is not installed here: install it, or leave LOG_WITH empty")
    if device not in ("", "cpu"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    if precision == "auto":
        cuda = device != "cpu" and torch.cuda.is_available()
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    torch.set_float32_matmul_precision("highest" if precision == "no" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "no"
    gradients = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # saves one copy of the gradients
    timeout = InitProcessGroupKwargs(timeout=timedelta(minutes=TIMEOUT))
    return Accelerator(
        cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[gradients, timeout],
        log_with=log_with or None, project_dir=folder,
    )  # fmt: skip
