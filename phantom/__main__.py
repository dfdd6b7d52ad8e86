"""Draws a CXR tree: chests with visible findings, and their reports. No data of patients is used.

    python -m phantom --OUTPUT_ROOT demo/phantom --STUDIES 1500 --IMAGE_SIZE 64
    python -m phantom --TWINS_OF demo/counterfactuals/clipUViT --DATA_ROOT demo/phantom --OUTPUT_ROOT demo/twins

Reads:  nothing; with TWINS_OF its counterfactuals.csv, and the manifest of DATA_ROOT
Writes: OUTPUT_ROOT, a CXR tree in MIMIC-CXR-JPG's layout (three CSVs, JPEGs, reports); with TWINS_OF of drawn films and
        their exact twins (phantom/twins.py), which its counterfactuals.csv joins
"""

from phantom.tree import draw_tree
from phantom.twins import draw_twins
from utils.constants import override_constants
from utils.errors import run

OUTPUT_ROOT = "demo/phantom"  # folder of the tree that is drawn (a folder to write)
STUDIES = 1500  # studies; about 1.3 images and 0.5 patients each (1 to 10000000)
STUDIES_PER_PATIENT = 0  # of each patient (0 to 4; 0: one to four)
CANARIES = 0.0  # share of the patients whose reports end with a number of their own, for audits of privacy (0 to 1)
IMAGE_SIZE = 256  # pixels, height and width (32 to 4096)
SEED = 1234  # same seed, same bytes (0 or more)
NUM_WORKERS = 0  # processes that draw (0 to 256; 0: the script's own only)
TWINS_OF = ""  # a tree of sample_counterfactuals.py: the exact twins of its films are drawn; empty: a tree of STUDIES
DATA_ROOT = ""  # with TWINS_OF: the drawn tree that its films are from


def main():
    override_constants(globals())
    if TWINS_OF:
        draw_twins(TWINS_OF, DATA_ROOT, OUTPUT_ROOT, NUM_WORKERS)
    else:
        draw_tree(OUTPUT_ROOT, STUDIES, IMAGE_SIZE, SEED, NUM_WORKERS, STUDIES_PER_PATIENT, CANARIES)


if __name__ == "__main__":
    run(main)
