"""Are images copies of training images? Distances that a shift, a mirror, a scale or a re-encoding does not hide.

An image is compared with a training image as it is, mirrored, moved by up to 1/16 of its side, and scaled by up to a
tenth, at two sizes: at COARSE pixels with every training image, at FINE pixels with the CANDIDATES nearest ones. Only
the middle of the picture counts, which stays inside it whatever the movement. Its mean and contrast do not count: the
distance is the root mean square difference of pictures of mean 0 and deviation 1: 0 for a copy, about 1.4 if unrelated.
"""

import io
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import binomtest

from evaluation.images import Images
from evaluation.judges import to_float

PLANTED = 60  # training images, of each of which a copy of each kind is searched
COPY_QUANTILE = 0.01  # a copy is nearer to a training image than all but this share of unseen real images
COARSE, FINE = 16, 32  # pixels a side
CANDIDATES = 32  # training images that are compared at FINE pixels with each image
REACH = {COARSE: 1, FINE: 2}  # pixels; the largest shift
STEPS = {COARSE: 3, FINE: 2}  # shifts a pixel
SCALES = {COARSE: (0.92, 1.0, 1.08), FINE: (0.9, 0.933, 0.967, 1.0, 1.033, 1.067, 1.1)}
MARGIN = 1 / 8  # of the side, which does not count
BLOCK = 4096  # training images at a time


def search_copies(
    queries: torch.Tensor, read: Callable[[np.ndarray], torch.Tensor], count: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `count` training images for each query => (distances (N,), rows (N,)).

    queries (N, 1, S, S) in [-1, 1]; read(rows) => training images (B, 1, S, S), so that they need not fit into memory
    at once: each takes 3 KB. One core takes 7 ms a query and 3 ms for each 1,000 training images: 480 against 1,500 are
    6 s, and 4,000 against 200,000 (MIMIC-CXR) 40 minutes, or 1.1e14 multiplications and additions on a GPU.
    """
    blocks = np.split(np.arange(count), range(BLOCK, count, BLOCK))
    coarse = torch.cat([_middles(read(rows).to(device), COARSE) for rows in blocks])  # (count, D)
    distances, nearest = np.zeros(len(queries)), np.zeros(len(queries), dtype=int)
    for place, query in enumerate(queries[:, None].to(device)):
        correlations = (_variants(query, COARSE) @ coarse.T).amax(dim=0)
        rows = correlations.topk(min(CANDIDATES, count)).indices.cpu().numpy()
        correlations = (_variants(query, FINE) @ _middles(read(rows).to(device), FINE).T).amax(dim=0)
        differences = (2 - 2 * correlations).clamp(min=0).sqrt()
        best = int(differences.argmin())
        distances[place], nearest[place] = float(differences[best]), rows[best]
    return distances, nearest


def search(pixels: np.ndarray, train: Images) -> tuple[np.ndarray, np.ndarray]:
    """`search_copies` for images (N, S, S) uint8 among the training images => (distances (N,), rows (N,))."""
    return search_copies(to_float(pixels), lambda rows: to_float(train.pixels(rows)), len(train), train.device)


def limit_of(unseen: Images, train: Images) -> float:
    """The distance below which an image counts as a copy: COPY_QUANTILE of real images are so near, untrained on."""
    return float(np.quantile(search(unseen.pixels(), train)[0], COPY_QUANTILE))


def _variants(image, size):
    """The descriptors of an image (1, 1, S, S) as it is and mirrored, at every scale and shift; (V, D)."""
    parts = [2 * step / STEPS[size] / size for step in range(STEPS[size])]  # shifts by parts of a pixel
    matrices = [[[scale, 0, x], [0, scale, y]] for scale, x, y in product(SCALES[size], parts, parts)]
    matrices = torch.tensor(matrices, dtype=torch.float32, device=image.device)
    grid = F.affine_grid(matrices, [len(matrices), 1, size, size], align_corners=False)
    images = _resized(image, size).expand(len(matrices), -1, -1, -1)
    moved = F.grid_sample(images, grid, "bicubic", "border", align_corners=False)
    edge, side = round(size * MARGIN) - REACH[size], size - 2 * round(size * MARGIN)
    windows = F.unfold(moved[..., edge:-edge, edge:-edge], side)  # shifts by whole pixels; (P, D, W)
    windows = windows.transpose(1, 2).reshape(-1, 1, side, side)
    return _descriptors(torch.cat([windows, windows.flip(-1)]))


def _resized(images, size):
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _middles(images, size):
    """The descriptors of the middles of images (B, 1, S, S) at a size; (B, D)."""
    margin = round(size * MARGIN)
    return _descriptors(_resized(images, size)[..., margin:-margin, margin:-margin])


def _descriptors(middles):
    """Middles of images (B, 1, s, s) => (B, D), of mean 0 and length 1."""
    middles = middles.flatten(1)
    return F.normalize(middles - middles.mean(dim=1, keepdim=True), dim=1, eps=1e-3)


def plant_copies(images: np.ndarray) -> dict[str, np.ndarray]:
    """Images (B, S, S) uint8 => {kind of copy: copies (B, S, S) uint8}; what a search for copies has to find."""
    side = images.shape[-1]
    size, bicubic, edge = (side, side), Image.Resampling.BICUBIC, side / 16
    shift, inside = (1, 0, side / 32, 0, 1, -side / 32), (edge / 2.5, edge / 2.5, side - edge / 2.5, side - edge / 2.5)
    kinds = {
        "exact": lambda image: image,
        "moved by 1/32 of the side": lambda image: image.transform(size, Image.Transform.AFFINE, shift, bicubic),
        "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "scaled by 5 %": lambda image: image.resize(size, bicubic, inside),
        "cropped at two sides": lambda image: image.resize(size, bicubic, (edge, edge, side, side)),
        "JPEG of quality 50": _as_jpeg,
    }
    originals = [Image.fromarray(image) for image in images]
    return {kind: np.stack([np.asarray(change(image)) for image in originals]) for kind, change in kinds.items()}


def _as_jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file).convert("L")


def copied_share(distances: np.ndarray, threshold: float) -> dict:
    """How many of N images are nearer to a training image than the threshold, with a 95 % Clopper-Pearson interval."""
    copied = int((distances < threshold).sum())
    interval = binomtest(copied, len(distances)).proportion_ci(0.95, "exact")
    share = {"share": copied / len(distances), "low": interval.low, "high": interval.high}
    return {"N": len(distances), "copies": copied, **share, "median distance": float(np.median(distances))}
