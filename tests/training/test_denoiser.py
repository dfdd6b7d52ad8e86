import numpy as np
import torch
from tiny_models import WIDTH

from training.denoiser import Preview


class Examples:
    """A validation split that remembers which rows were read."""

    class features:
        null_text = np.zeros(WIDTH, dtype=np.float32)

    def __init__(self, count):
        self.count, self.rows = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, row_and_seed):
        self.rows.append(row_and_seed[0])
        return {"latents": torch.zeros(4, 8, 8), "text": torch.zeros(WIDTH), "reference": torch.zeros(WIDTH)}


def test_previews_are_of_drawn_rows_not_of_the_first():
    rows = []
    for count in (100, 100, 5):
        examples = Examples(count)
        Preview(examples, None, None, seed=3)
        rows.append(examples.rows)
    assert rows[0] == rows[1] and len(set(rows[0])) == 8 and max(rows[0]) >= 50 > min(rows[0])
    assert sorted(rows[2]) == [0, 1, 2, 3, 4]
