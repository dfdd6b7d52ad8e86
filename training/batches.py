"""What `fit` trains on: data sets of examples, which of them make up a batch, and how batches are loaded."""

import os
import signal
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.seeds import keyed_seed


class Examples(Dataset):
    """A data set of dicts of tensors: `examples[position, seed]`; all that is random in one follows from its seed."""

    collate = staticmethod(default_collate)  # a list of examples => a batch

    def order(self, generator: np.random.Generator, head: int) -> np.ndarray:
        """The positions of one epoch, shuffled. The first `head` of them complete the last epoch's last batch."""
        return generator.permutation(len(self))

    def count_terms(self, batch: dict[str, torch.Tensor]) -> int:
        """How many terms the loss of a batch is a mean over: its examples."""
        return len(next(iter(batch.values())))


class Batches:
    """The batch sampler of one process: yields, pass by pass, the (position, seed) of each example."""

    def __init__(self, examples, batch_size, accumulation, seed, first_step, last_step, process=0, processes=1):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.passes, self.process, self.processes = accumulation, process, processes
        self.steps = range(first_step, last_step)
        self._epoch, self._order = -1, None

    def __iter__(self):
        share = self.batch_size // (self.passes * self.processes)
        for step in self.steps:
            batch = self.step(step)
            for part in range(self.passes):
                start = (part * self.processes + self.process) * share
                yield batch[start : start + share]

    def step(self, step: int) -> list[tuple[int, int]]:
        """All BATCH_SIZE (position, seed) of one step. An epoch begins in the batch in which the last one ends."""
        count = len(self.examples)
        batch = []
        for place in range(self.batch_size):
            epoch, index = divmod(step * self.batch_size + place, count)
            if epoch != self._epoch:
                generator = np.random.default_rng(keyed_seed(self.seed, "order", epoch))
                head = min(-epoch * count % self.batch_size, count)
                self._epoch, self._order = epoch, self.examples.order(generator, head).tolist()
            batch.append((self._order[index], keyed_seed(self.seed, "training", step, place)))
        return batch


def make_loader(data: Examples, batches, workers: int, device: torch.device, ended) -> DataLoader:
    """A loader of batches in `workers` processes. ended: a multiprocessing.Event, set when the run ends."""
    return DataLoader(
        data, batch_sampler=batches, num_workers=workers, worker_init_fn=partial(_ignore_sigterm, ended),
        pin_memory=device.type == "cuda", collate_fn=data.collate,
    )  # fmt: skip


def _ignore_sigterm(ended, _):
    """A job's SIGTERM reaches the loaders, too, whose batches the step still needs; after the run it ends them."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ended.is_set() else None)
