"""The picture that a sampler leaves: the first images of a run beside real ones with the same findings, none chosen."""

from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import replacing, writing
from utils.latents import read_grey
from utils.mimic_cxr import PICTURE_FILE
from utils.plan import NOBODY
from utils.references import NONE, References
from utils.seeds import keyed_generator

COUNT, ACROSS = 16, 4  # images of each kind, and how many of them stand in a row


def picture_first(requests, table, output_root, image_size, seed):
    """Writes PICTURE_FILE: the images of the first COUNT requests at the left, and as many real images at the right.

    requests: from `plan_requests`; table: real rows; for each request one is drawn that has the same labels, or else the
    nearest ones (None: no real images). Without a request there is no picture. An image that cannot be read stays black.
    """
    if requests.empty:
        return
    first = requests.iloc[:COUNT]
    blocks = [first.image_path.tolist()]
    if table is not None:
        generators = [keyed_generator(seed, "beside", dicom_id) for dicom_id in first.dicom_id]
        rows = References(table).draw_for(first.assign(subject_id=NOBODY), generators)
        blocks.append(["" if row == NONE else table.image_path.iloc[row] for row in rows])
    gap = np.full((-(-len(first) // ACROSS) * image_size, image_size // 8), 255, dtype=np.uint8)
    parts = [part for paths in blocks for part in (gap, _block(paths, image_size))][1:]
    with writing(PICTURE_FILE, output_root), replacing(Path(output_root) / PICTURE_FILE) as temporary:
        Image.fromarray(np.concatenate(parts, axis=1)).save(temporary, format="PNG")


def _block(paths, image_size):
    """Images in rows of ACROSS, (rows S, ACROSS S) uint8."""
    block = np.zeros((-(-len(paths) // ACROSS) * image_size, ACROSS * image_size), dtype=np.uint8)
    for place, path in enumerate(paths):
        y, x = (image_size * number for number in divmod(place, ACROSS))
        block[y : y + image_size, x : x + image_size] = _grey(path, image_size)
    return block


def _grey(path, image_size):
    try:
        return read_grey(path, image_size)
    except ValueError:  # missing or damaged, and named by whoever needed it
        return np.zeros((image_size, image_size), dtype=np.uint8)
