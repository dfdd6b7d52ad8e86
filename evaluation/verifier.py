"""The attacker of a privacy audit: a siamese verifier, which tells whether two films are of one patient.

A timm network embeds a film; two films are as alike as the cosine of their embeddings. It learns from patients with two
or more studies: of two films of each patient in a batch, from two studies, each has to find the other one among all
(InfoNCE, van den Oord et al. 2018). Every film is moved, turned, scaled and brightened, so that a changed copy is
as good as the film; mirror images are compared besides.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from evaluation.images import Images
from evaluation.judges import Extractor, JudgeSettings, extract, kept_weights, new_classifier, pixel_reader, to_float
from utils.errors import InputError
from utils.seeds import keyed_generator, keyed_seed

WIDTH = 128  # numbers of an embedding
TEMPERATURE = 0.07
# the largest changes of a training film: parts of its side, radians, a part of its size and of its contrast
SHIFT, TURN, SCALE, CONTRAST = 0.06, 0.05, 0.08, 0.2


def verifier_of(images: Images, settings: JudgeSettings) -> Extractor:
    """The verifier that learns from these images, out of `<cache>/verifier`; it is trained first if it is not there.

    It encodes pixels (B, 1, S, S) in [-1, 1] => embeddings (B, 2 WIDTH): the first half is a film's, of length 1, the
    second half that of its mirror image. InputError for fewer than two patients with two or more studies.
    """
    patients = images.table.groupby("subject_id")
    films = [[rows.tolist() for rows in patient.groupby("study_id").groups.values()] for _, patient in patients]
    films = [studies for studies in films if len(studies) > 1]
    if len(films) < 2:
        lacks = f"{len(films)} patients have two or more studies"
        raise InputError(f"the attacker learns from films of one patient in several studies, and {lacks}: set ATTACKER")

    def train():
        with torch.random.fork_rng([images.device] if torch.device(images.device).type == "cuda" else []):
            torch.manual_seed(keyed_seed(settings.seed, "verifier"))
            return _train(images, films, settings).state_dict()

    model, folder = new_classifier(settings.model, WIDTH), Path(images.loading.cache_dir, "verifier")
    model.load_state_dict(kept_weights(folder, [asdict(settings), images.keys, films], "the verifier", train))
    model.eval().to(images.device)

    def encode(pixels):
        return torch.cat([F.normalize(model(each), dim=1) for each in (pixels, pixels.flip(-1))], dim=1), None

    return Extractor(f"verifier ({settings.model})", settings.image_size, 2 * WIDTH, encode)


def embed(verifier: Extractor, pixels: np.ndarray, device: torch.device | str) -> np.ndarray:
    """Images (N, S, S) uint8 => embeddings (N, 2 WIDTH)."""
    return extract(verifier, pixel_reader(pixels, range(len(pixels))), len(pixels), device)[0]


def similarities(probes: np.ndarray, films: np.ndarray) -> np.ndarray:
    """The cosines of probes (..., P, WIDTH) and films (..., F, 2 WIDTH), these as they are or mirrored: the larger."""
    return np.maximum(*(probes @ half.swapaxes(-1, -2) for half in np.split(films, 2, axis=-1)))


def _train(images: Images, films: list[list[list[int]]], settings: JudgeSettings) -> nn.Module:
    """A trained network; films: for each patient, for each study, the rows of its images."""
    device = images.device
    model = new_classifier(settings.model, WIDTH).to(device).train()
    rng, generator = np.random.default_rng(settings.seed), keyed_generator(settings.seed, "films of the verifier")
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
    size = min(settings.batch_size, len(films))
    other = torch.arange(2 * size, device=device).roll(size)  # the place of each film's fellow
    for _ in tqdm(range(settings.steps), desc="verifier", leave=False, disable=None):
        pairs = []  # a row of each of two studies
        for patient in rng.choice(len(films), size, replace=False):
            studies = rng.choice(len(films[patient]), 2, replace=False)
            pairs.append([rng.choice(films[patient][study]) for study in studies])
        batch = changed(to_float(images.pixels(np.transpose(pairs).ravel())), generator).to(device)
        embeddings = F.normalize(model(batch), dim=1)
        alike = (embeddings @ embeddings.T / TEMPERATURE).fill_diagonal_(-1e4)
        loss = F.cross_entropy(alike, other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def changed(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, 1, S, S) in [-1, 1], each changed at random; beside a moved film is black, or its edge repeated."""
    count = len(images)

    def draw(reach):
        return reach * (2 * torch.rand(count, generator=generator) - 1)

    turn, size, x, y = draw(TURN), 1 + draw(SCALE), 2 * draw(SHIFT), 2 * draw(SHIFT)
    rows = [size * turn.cos(), -size * turn.sin(), x, size * turn.sin(), size * turn.cos(), y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(count, 2, 3), list(images.shape), align_corners=False)
    padding = "border" if torch.rand(1, generator=generator) < 0.5 else "zeros"
    images = F.grid_sample(images + 1, grid, "bilinear", padding, align_corners=False) - 1
    return images * (1 + draw(CONTRAST))[:, None, None, None] + draw(CONTRAST / 2)[:, None, None, None]
