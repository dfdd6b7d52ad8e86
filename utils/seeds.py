"""Keyed randomness: each random choice has a seed of its own, made from what the choice is for.

So neither the batch size, nor the number of processes, nor an interruption changes any of them.
"""

import hashlib

import numpy as np


def keyed_seed(*key):
    """A 63-bit seed from numbers and texts, e.g. keyed_seed(SEED, "training", step, position)."""
    key = tuple(part.item() if isinstance(part, np.generic) else part for part in key)  # np.int64(3) is 3
    return _seed(repr(key))


def _seed(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numbered_seeds(name, count, *texts):
    """keyed_seed(name, 0, *texts) to keyed_seed(name, count - 1, *texts), a list, in less than half of their time."""
    rest = ", ".join(map(repr, texts)) + ")"
    return [_seed(f"({name!r}, {number}, {rest}") for number in range(count)]


def keyed_generator(*key):
    """A CPU torch.Generator seeded by `keyed_seed`."""
    import torch  # takes seconds, and what only asks for seeds (drawing chests, the gallery) needs none

    return torch.Generator().manual_seed(keyed_seed(*key))


def draw_rows(count, wanted, *key):
    """`wanted` of `count` rows (all where there are fewer), drawn without repetition by a key, in their order, (n,)."""
    import torch

    return np.sort(torch.randperm(count, generator=keyed_generator(*key))[:wanted].numpy())
