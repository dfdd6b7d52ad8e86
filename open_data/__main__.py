"""An open set of chest X-rays, as it is downloaded => a CXR tree, which every script here reads.

    python -m open_data --SOURCE kermany --ROOT downloads/kermany --OUTPUT data/kermany

docs/open-data.md says where each set comes from, what its licence allows, and what is dropped.

Reads:  ROOT, the files exactly as they are downloaded and unpacked
Writes: OUTPUT, a CXR tree with manifest.json, and provenance.csv: the file of each image, and what its source says of
        it; a second run adds what has been downloaded meanwhile
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

from pathlib import Path

from open_data import chexpert, kermany, nih, openi
from open_data.tree import make_tree
from utils.errors import InputError, run

SOURCE = "kermany"  # which set it is (openi, nih, kermany or chexpert)
ROOT = ""  # the folder as downloaded
OUTPUT = "data/open"  # the CXR tree (a folder to write; new, or made with the same settings)
IMAGES = "link"  # what becomes of JPEGs; links are relative, from OUTPUT to ROOT (link or copy)
VALIDATE_SHARE = 0.1  # of the patients whose split the source does not give (0 to 0.5)
TEST_SHARE = 0.1  # of the patients, where the source names none for the test (0 to 0.4)
SEED = 1234  # of the splits (0 or more)
NUM_WORKERS = 4  # threads that read and convert images (0 to 256)

_READERS = {"openi": openi, "nih": nih, "kermany": kermany, "chexpert": chexpert}


def main():
    override_constants(globals())
    if not ROOT:
        raise InputError("ROOT is empty: name the folder as downloaded")
    settings = {
        "source": SOURCE, "root": str(Path(ROOT).resolve()), "images": IMAGES, "validate_share": VALIDATE_SHARE,
        "test_share": TEST_SHARE, "seed": SEED,
    }  # fmt: skip
    make_tree(OUTPUT, _READERS[SOURCE].read(ROOT), settings, NUM_WORKERS)


if __name__ == "__main__":
    run(main)
