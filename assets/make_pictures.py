"""Makes the README's picture of pairs from what `make demo` left.

    make demo && python -m assets.make_pictures

Reads:  DATA_ROOT (a finished demo): its drawn tree and a synthetic tree with reports
Writes: FOLDER/pairs.jpg, small
"""

from utils.constants import check_command_line, override_constants

check_command_line(__name__, __file__)  # answers --help at once: the imports below take seconds

import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from utils.errors import run, say
from utils.mimic_cxr import PROVENANCE_FILE, read_table

DATA_ROOT = "demo"  # the folder that `make demo` filled
BACKBONE = "clipUViT"  # whose images are shown (clipUViT or clipSD)
FOLDER = "docs/pictures"  # where the picture goes (a folder to write)
PAIRS = 5  # rows of the picture of pairs: the first requests of the tree, none chosen (1 to 20)
QUALITY = 85  # of the JPEG (1 to 95)


def draw_pairs(tree: Path, references: pd.DataFrame, count: int, path: Path) -> None:
    """Request and reference => image and report, in four columns; a row each of the first image of a request."""
    table = read_table(tree).set_index("dicom_id")
    made = pd.read_csv(Path(tree) / PROVENANCE_FILE, dtype=str, keep_default_na=False).set_index("dicom_id")
    images = references.set_index("dicom_id")["image_path"]
    table = table[~made.loc[table.index, ["source", "prompt"]].duplicated().to_numpy()]
    figure = Figure(figsize=(10, 2.1 * count), layout="constrained")
    grid = figure.subplots(count, 4, squeeze=False, gridspec_kw={"width_ratios": (1, 1, 1, 1.7)})
    for title, axes in zip(("request", "reference", "image", "report"), grid[0]):
        axes.set_title(title, fontsize=10)
    for axes, (dicom_id, row) in zip(grid, table.head(count).iterrows()):
        reference = made.loc[dicom_id, "reference_dicom_id"]
        for place, image_path in ((1, images.get(reference)), (2, row["image_path"])):
            if image_path:
                axes[place].imshow(Image.open(image_path), cmap="gray", vmin=0, vmax=255)
        request = made.loc[dicom_id, "prompt"]
        report = row["report"].replace(" IMPRESSION: ", "\n\nIMPRESSION: ")
        for place, text, width in ((0, request, 27), (3, report, 52)):
            lines = "\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n"))
            axes[place].text(0, 0.98, lines, va="top", fontsize=7, transform=axes[place].transAxes)
        for one in axes:
            one.axis("off")
    figure.savefig(path, dpi=110, pil_kwargs={"quality": QUALITY})


def main():
    override_constants(globals())
    demo, folder = Path(DATA_ROOT), Path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    draw_pairs(demo / "synthetic" / BACKBONE, read_table(demo / "phantom"), PAIRS, folder / "pairs.jpg")
    say(f"{folder / 'pairs.jpg'}: {(folder / 'pairs.jpg').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run(main)
