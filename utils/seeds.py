"""Keyed randomness: each random choice has a seed of its own, computed from what it is for.

So neither the batch size, nor the number of processes, nor an interruption changes a choice.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and drawings and gallery need seeds only
    import torch


def keyed_seed(*key) -> int:
    """A 63-bit seed from numbers and texts, e.g. keyed_seed(SEED, "training", step, position)."""
    key = tuple(part.item() if isinstance(part, np.generic) else part for part in key)  # np.int64(3) counts as 3
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(*key) -> "torch.Generator":
    """A CPU generator seeded by `keyed_seed`."""
    import torch

    return torch.Generator().manual_seed(keyed_seed(*key))


def draw_rows(count: int, wanted: int, *key) -> np.ndarray:
    """`wanted` of `count` row numbers (all if there are fewer), drawn without repetition by a key => (n,), rising."""
    import torch

    return np.sort(torch.randperm(count, generator=keyed_generator(*key))[:wanted].numpy())
