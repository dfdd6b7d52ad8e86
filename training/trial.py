"""A trial before a training: what would end it after hours of encoding ends it in seconds."""

import copy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import send_to_device
from torch import nn

from training.batches import check_batch_size
from training.loop import DEFAULTS
from training.run_folder import compare_with, find_checkpoint
from utils.checkpoints import read_training
from utils.errors import InputError, writing
from utils.mimic_cxr import split_rows


def try_training(
    model: nn.Module, compute_loss: Callable, make_batch: Callable, table: pd.DataFrame, constants: dict, accelerator
) -> None:
    """Tries the first pass of a new run, or compares a resumed one with its checkpoint. Changes nothing.

    make_batch: number of examples => a batch of so many. table: the rows to train on, with a column `split`. The others
    are those of `fit`. InputError for an empty split, a checkpoint in RUN_DIR that is of another experiment, a loss
    that is not finite, and a RUN_DIR that cannot be written; torch's error for too little memory.
    """
    settings, folder = {**DEFAULTS, **constants}, Path(constants["RUN_DIR"])
    for split in ("train", "validate"):
        split_rows(table, split, settings["DATA_ROOT"])
    parts = settings["ACCUMULATION"] * accelerator.num_processes
    check_batch_size(settings["BATCH_SIZE"], settings["ACCUMULATION"], accelerator.num_processes)
    checkpoint = find_checkpoint(folder)
    if checkpoint:
        compare_with(checkpoint, read_training(checkpoint), settings, facts={})
        return
    device, tried = accelerator.device, copy.deepcopy(model)  # a copy is not compiled, which would take minutes
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batch = send_to_device(make_batch(settings["BATCH_SIZE"] // parts), device)
        tried.to(device).train()
        with accelerator.autocast():
            loss = compute_loss(tried, batch)
        loss.backward()
    if not torch.isfinite(loss):
        raise InputError(f"the first loss is {loss.item()}: take other INITIAL_WEIGHTS, or set PRECISION to 'no'")
    with writing("checkpoints", folder):
        folder.mkdir(parents=True, exist_ok=True)


def random_batch(shapes: dict[str, tuple[int, ...]], size: int) -> dict[str, torch.Tensor]:
    """`size` examples of the given shapes: standard normal tensors, and zeros for what is a single number."""
    return {
        name: torch.randn(size, *shape) if shape else torch.zeros(size, dtype=torch.long)
        for name, shape in shapes.items()
    }
