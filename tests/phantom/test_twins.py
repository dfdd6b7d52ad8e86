"""Exact twins: the film drawn anew with one finding changed, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import phantom
from phantom.twins import _PLACES, draw_twins
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import TWIN_COLUMNS, read_table, read_twins


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "tree"
    phantom.draw_tree(root, studies=30, image_size=32, seed=3)
    return root


def asked(root, rows):
    root.mkdir()
    table = [(f"twin-{number}", "film", *row, "DiffEdit", 0.7) for number, row in enumerate(rows)]
    pd.DataFrame(table, columns=TWIN_COLUMNS).to_csv(root / "counterfactuals.csv", index=False)
    return root


def test_twins_differ_from_their_film_in_one_finding(tree, tmp_path):
    films = read_table(tree)
    ill = films[films["Pleural Effusion"] == 1].iloc[0]
    well = films[films["No Finding"] == 1].iloc[0]
    wanted = [(ill.dicom_id, "Pleural Effusion", "present", "absent"), (well.dicom_id, "Edema", "absent", "present")]
    draw_twins(str(asked(tmp_path / "made", wanted)), str(tree), str(tmp_path / "exact"), 0)
    twins, table = read_twins(tmp_path / "exact"), read_table(tmp_path / "exact").set_index("dicom_id")
    assert twins.groupby("finding").size().to_dict() == {"Pleural Effusion": 1, "Edema": _PLACES}
    for twin in twins.itertuples():
        film, drawn = table.loc[twin.film_dicom_id], table.loc[twin.dicom_id]
        original = films.set_index("dicom_id").loc[twin.source]
        pixels = [np.asarray(Image.open(each.image_path)).astype(int) for each in (original, film, drawn)]
        np.testing.assert_array_equal(pixels[0], pixels[1])
        changed = np.abs(pixels[1] - pixels[2]) > 10
        assert 0 < changed.mean() < 0.6
        differing = [name for name in FINDINGS if film[name] != drawn[name]]
        assert set(differing) <= {twin.finding, "No Finding"} and twin.finding in differing
        assert drawn[twin.finding] == (1 if twin.to == "present" else -1) and drawn.report != film.report
    assert table.loc[twins[twins["finding"] == "Edema"].dicom_id, "No Finding"].eq(0).all()


def test_what_has_no_exact_twins(tree, tmp_path):
    made = asked(tmp_path / "made", [("elsewhere", "Edema", "absent", "present")])
    with pytest.raises(InputError, match="elsewhere.*DATA_ROOT"):
        draw_twins(str(made), str(tree), str(tmp_path / "exact"), 0)
    with pytest.raises(InputError, match="TWINS_OF"):
        draw_twins(str(tree), str(tree), str(tmp_path / "exact"), 0)
    with pytest.raises(InputError, match="no drawn tree"):
        draw_twins(str(made), str(tmp_path), str(tmp_path / "exact"), 0)
    assert not (tmp_path / "exact").exists()
