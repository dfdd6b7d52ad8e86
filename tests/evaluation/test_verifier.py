"""The verifier learns whose films are whose, is trained once, and does not mind changed copies."""

import numpy as np
import pytest
import torch

from evaluation import verifier
from evaluation.images import Images, Loading
from evaluation.judges import JudgeSettings
from evaluation.privacy import verification
from phantom import draw_tree
from utils.errors import InputError
from utils.mimic_cxr import read_table

SETTINGS = JudgeSettings("test_resnet", 32, steps=60, batch_size=32, learning_rate=5e-3, seed=1)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films") / "tree"
    draw_tree(root, studies=400, image_size=32, seed=9, studies_per_patient=4)
    return read_table(root, with_reports=False)


def images_of(table, folder, accelerator):
    return Images(table, "films", 32, Loading(str(folder), 32, 64, accelerator))


def test_films_of_a_patient_are_more_alike_than_those_of_strangers(films, tmp_path, accelerator, monkeypatch):
    patients = films["subject_id"].unique()
    known, others = (films[films["subject_id"].isin(ids)] for ids in (patients[:60], patients[60:]))
    attacker = verifier.verifier_of(images_of(known, tmp_path, accelerator), SETTINGS)
    first = others.drop_duplicates("subject_id")
    last = others.drop_duplicates("subject_id", keep="last")
    pixels = [images_of(table, tmp_path, accelerator).pixels(range(len(table))) for table in (first, last)]
    one, other = (verifier.embed(attacker, each, "cpu") for each in pixels)
    assert one.shape == (40, 2 * verifier.WIDTH)
    alike = verifier.similarities(one[:, : verifier.WIDTH], other)  # (40, 40)
    assert verification(alike)["AUC"] > 0.75
    mirrored = verifier.embed(attacker, pixels[1][..., ::-1].copy(), "cpu")
    np.testing.assert_allclose(verifier.similarities(one[:, : verifier.WIDTH], mirrored), alike, atol=1e-5)
    # a second run loads it
    monkeypatch.setattr(verifier, "_train", None)
    again = verifier.verifier_of(images_of(known, tmp_path, accelerator), SETTINGS)
    np.testing.assert_array_equal(verifier.embed(again, pixels[0], "cpu"), one)


def test_changes_are_within_reach_and_keyed():
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, same, other = (verifier.changed(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.shape == images.shape


def test_patients_with_one_study_teach_nothing(films, tmp_path, accelerator):
    single = films.drop_duplicates("subject_id").head(5)
    with pytest.raises(InputError, match="0 patients have two or more studies: set ATTACKER"):
        verifier.verifier_of(images_of(single, tmp_path, accelerator), SETTINGS)
