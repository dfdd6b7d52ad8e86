import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sampling.tree import save_first_picture
from utils.findings import FINDINGS

SIDE = 16


def table(folder, greys, findings):
    """Rows with an image of one grey each, of patients 1, 2, ...; findings: the one that is present in each."""
    folder.mkdir()
    rows = []
    for number, (grey, finding) in enumerate(zip(greys, findings)):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((SIDE, SIDE), grey, np.uint8)).save(path)
        labels = {name: int(name == finding) for name in FINDINGS}
        rows.append({"dicom_id": f"{folder.name}-{number}", "subject_id": number, "image_path": str(path), **labels})
    return pd.DataFrame(rows)


def blocks(path):
    """The picture's two halves, (rows, 4 SIDE) each, without the white gap between them."""
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] == 8 * SIDE + SIDE // 8 and (picture[:, 4 * SIDE : 4 * SIDE + SIDE // 8] == 255).all()
    return picture[:, : 4 * SIDE], picture[:, -4 * SIDE :]


def test_the_first_sixteen_stand_beside_real_images_of_their_labels(tmp_path):
    names = ["Edema", "Fracture"] * 10
    made = table(tmp_path / "made", range(100, 120), names)
    real = table(tmp_path / "real", [30, 60, 90], ["Fracture", "Edema", "Pneumonia"])
    save_first_picture(made, real, tmp_path, SIDE, seed=1)
    generated, beside = blocks(tmp_path / "first.png")
    assert generated.shape == (4 * SIDE, 4 * SIDE)
    assert generated[::SIDE, ::SIDE].ravel().tolist() == list(range(100, 116))  # in their order, none chosen
    assert beside[::SIDE, ::SIDE].ravel().tolist() == [60, 30] * 8


def test_without_a_match_the_nearest_labels_and_without_an_image_black(tmp_path):
    made = table(tmp_path / "made", [100, 110], ["Edema", "Edema"])
    (tmp_path / "made" / "1.png").unlink()
    real = table(tmp_path / "real", [30], ["Fracture"])
    save_first_picture(made, real, tmp_path, SIDE, seed=1)
    generated, beside = blocks(tmp_path / "first.png")
    assert generated[0, ::SIDE].tolist() == [100, 0, 0, 0] and beside[0, ::SIDE].tolist() == [30, 30, 0, 0]


@pytest.mark.parametrize("count", [1, 5])
def test_where_no_table_was_read_there_are_no_real_images(tmp_path, count):
    made = table(tmp_path / "made", [100] * count, ["Edema"] * count)
    save_first_picture(made, None, tmp_path, SIDE, seed=1)
    assert np.asarray(Image.open(tmp_path / "first.png")).shape == (-(-count // 4) * SIDE, 4 * SIDE)
