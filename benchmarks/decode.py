"""JPEGs decoded at reduced scale: how close to decoding in full, and how much quicker?

    python -m benchmarks.decode

Draws chests at FILM_SIZE, saves them as JPEGs, and reads each as the encoders do (utils.latents.read_pixels) and in full.
Prints for each picture size the mean and largest difference in grey levels of 255, and the ratio of the times.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import phantom
from utils.constants import override_constants
from utils.errors import run
from utils.latents import read_pixels

FILM_SIZE = 2048  # pixels; MIMIC-CXR-JPG's films are about 2,500 x 3,000 (32 to 16384)
FILMS = 8  # chests drawn (1 or more)
SIZES = (256, 224)  # pixels, of the VAE's and of the reference encoder's input (each 8 to 4096)
SEED = 1  # of the drawing (0 or more)


def read_in_full(path, size):
    """As read_pixels, but with all of the JPEG's frequencies: (size, size), grey levels."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR), dtype=float)


def main():
    override_constants(globals())
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(FILMS)]
        for number, path in enumerate(paths):
            image, *_ = phantom.random_chest(np.random.default_rng((SEED, number)), FILM_SIZE)
            Image.fromarray(image).save(path, quality=95)
        for size in SIZES:
            differences, reduced, full = [], 0.0, 0.0
            for path in paths:
                start = time.perf_counter()
                pixels = read_pixels(path, size)[0].numpy()
                middle = time.perf_counter()
                whole = read_in_full(path, size)
                full += time.perf_counter() - middle
                reduced += middle - start
                differences.append(np.abs((pixels + 1) * 127.5 - whole))
            differences = np.array(differences)
            print(
                f"{FILM_SIZE} => {size} pixels: mean difference {differences.mean():.3f}, largest "
                f"{differences.max():.1f} of 255 grey levels; in full takes {full / reduced:.2f} times as long"
            )


if __name__ == "__main__":
    run(main)
