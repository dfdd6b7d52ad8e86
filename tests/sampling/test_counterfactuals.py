"""Counterfactual twins by the script: which are made, what joins them to their films, and what stays the same."""

import shutil

import numpy as np
import pandas as pd
import pytest
from running import BACKBONES, contents, flags, launch, pictures, provenance, read_reports, run_script, says

from sampling.counterfactuals import twins_of
from utils.errors import InputError
from utils.findings import FINDINGS, with_code
from utils.mimic_cxr import read_table, read_twins


def twins(config, runs, root, backbone="clipUViT", **constants):
    constants = {"CHECKPOINT": runs / backbone / "best", "OUTPUT_ROOT": root, "SPLIT": "validate", **constants}
    return run_script("sample_counterfactuals", "--config", config, *flags(**constants))


@pytest.fixture(scope="module")
def made(config, runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("twins") / "tree"
    assert twins(config, runs, root, MAX_TWINS=9, LEAST_CHANGE=0.0) == 0
    return root


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_tree_of_real_films_and_their_twins(backbone, config, runs, tree, tmp_path):
    assert twins(config, runs, tmp_path / "made", backbone, TOGGLE="edema", LEAST_CHANGE=0.0) == 0
    table, real = read_table(tmp_path / "made").set_index("dicom_id"), read_table(tree).set_index("dicom_id")
    images, joined = pictures(tmp_path / "made"), read_twins(tmp_path / "made")
    sources = real[real["split"] == "validate"]
    assert set(joined["source"]) == set(sources.index[sources["Edema"] != -2])
    for twin in joined.itertuples():
        film, other, original = table.loc[twin.film_dicom_id], table.loc[twin.dicom_id], real.loc[twin.source]
        assert (film[list(FINDINGS)] == original[list(FINDINGS)]).all() and twin.finding == "Edema"
        differing = [name for name in FINDINGS if film[name] != other[name]]
        assert "Edema" in differing and set(differing) <= {"Edema", "No Finding"}
        assert (twin.to == "present") == (other["Edema"] == 1) != (film["Edema"] == 1)
        assert images[twin.dicom_id].std() > 0
    told = provenance(tmp_path / "made")
    both = told.loc[joined["film_dicom_id"]], told.loc[joined["dicom_id"]]
    assert (both[0]["checkpoint"] == "").all() and (both[1]["checkpoint"] != "").all()
    assert both[0]["seed"].tolist() == both[1]["seed"].tolist() and (both[1]["reference_dicom_id"] == "").all()
    assert (tmp_path / "made" / "counterfactuals.png").exists()
    card = (tmp_path / "made" / "README.md").read_text()
    assert f"**{joined['film_dicom_id'].nunique()} are copies of films" in card and "no image was taken" not in card
    changed = [(images[a] != images[b]).any() for a, b in zip(joined["film_dicom_id"], joined["dicom_id"])]
    assert np.mean(changed) > 0.5


@pytest.mark.parametrize("constants", [{"STRENGTH": 0.0}, {"LEAST_CHANGE": 255.0}])
def test_an_edit_of_nothing_is_the_film(constants, config, runs, tmp_path):
    assert twins(config, runs, tmp_path / "made", TOGGLE="edema", **constants) == 0
    images, joined = pictures(tmp_path / "made"), read_twins(tmp_path / "made")
    assert len(joined)
    for twin in joined.itertuples():
        assert np.abs(images[twin.dicom_id] - images[twin.film_dicom_id]).max() <= 4  # of 255: a JPEG of a JPEG


def test_films_of_a_synthetic_tree_and_a_split_that_has_none(made, config, runs, tmp_path):
    says(twins(config, runs, tmp_path / "again", FILMS=made, SPLIT="test"), "no rows in the split 'test'", str(made))
    assert not (tmp_path / "again").exists()
    assert twins(config, runs, tmp_path / "again", FILMS=made, SPLIT="", MAX_TWINS=3) == 0
    assert set(read_twins(tmp_path / "again")["source"]) <= set(read_table(made)["dicom_id"])


def test_a_killed_run_of_other_films_is_not_in_the_way(config, runs, tmp_path):
    root, asked = tmp_path / "made", {"TOGGLE": "edema", "SPLIT": ""}
    assert twins(config, runs, root, FINDINGS="edema", **asked) == 0
    for path in root.rglob("*.jpg"):
        path.unlink()  # killed before its first film
    assert twins(config, runs, root, FINDINGS="edema, fracture", **asked) == 0
    assert len(read_twins(root)) == 1
    assert twins(config, runs, root, TOGGLE="edema", MAX_TWINS=2) == 0  # of real films, into the same tree
    told = provenance(root)
    assert (told["checkpoint"] == "").sum() == 2 and (told.loc[told["source"] == "findings", "checkpoint"] != "").all()


def test_films_made_for_a_request(config, runs, tmp_path):
    asked = {"FINDINGS": "edema, not pneumothorax", "TOGGLE": "edema", "SPLIT": ""}
    assert twins(config, runs, tmp_path / "made", IMAGES_PER_LABEL=2, **asked) == 0
    told, joined = provenance(tmp_path / "made"), read_twins(tmp_path / "made")
    assert len(told) == 4 and len(joined) == 2 and (told["checkpoint"] != "").all()
    assert set(told.loc[joined["film_dicom_id"], "prompt"]) == {"A chest X ray image with edema, without pneumothorax"}
    assert set(told.loc[joined["dicom_id"], "prompt"]) == {
        "A chest X ray image with no finding, without edema and pneumothorax"
    }


def test_a_run_that_was_killed_goes_on_and_a_longer_one_keeps_what_is_there(made, config, runs, tmp_path):
    root = tmp_path / "killed"
    shutil.copytree(made, root)
    joined, before = read_twins(root), pictures(root)
    for twin in joined.itertuples():
        for name in (twin.dicom_id, twin.film_dicom_id)[: 1 + (twin.Index % 2)]:
            for path in root.rglob(f"{name}.jpg"):
                path.unlink()
    for name in ("synthetic.csv", "counterfactuals.csv"):
        (root / name).unlink()
    assert twins(config, runs, root, MAX_TWINS=9, LEAST_CHANGE=0.0) == 0
    again, was = contents(root), contents(made)
    same = [name for name in was if name.suffix in (".jpg", ".csv", ".gz")]
    assert [again[name] for name in same] == [was[name] for name in same]
    assert twins(config, runs, root, MAX_TWINS=12, LEAST_CHANGE=0.0) == 0
    longer = pictures(root)
    assert len(read_twins(root)) == 12 and all((longer[name] == before[name]).all() for name in before)


def test_two_processes_make_the_same_tree(made, config, runs, tmp_path):
    own = flags(CHECKPOINT=runs / "clipUViT" / "best", SPLIT="validate", MAX_TWINS=9, LEAST_CHANGE=0.0)
    launch("sample_counterfactuals", config, *own, *flags(OUTPUT_ROOT=tmp_path / "made"))
    one, two = pictures(made), pictures(tmp_path / "made")
    assert one.keys() == two.keys() and max(np.abs(one[name] - two[name]).max() for name in one) <= 1
    assert (tmp_path / "made" / "counterfactuals.csv").read_bytes() == (made / "counterfactuals.csv").read_bytes()


def test_reports_of_twins_share_their_films_noise(made, config, runs, checkpoints, write_reports, tmp_path):
    root = tmp_path / "written"
    shutil.copytree(made, root)
    joined = read_twins(root)
    twin = joined.iloc[0]
    images = read_table(root).set_index("dicom_id")["image_path"]
    shutil.copyfile(images[twin.film_dicom_id], images[twin.dicom_id])  # the same image ...
    write_reports(OUTPUT_ROOT=root, DECODING="nucleus", TEMPERATURE=5.0)
    written = read_reports(root)
    assert written[twin.dicom_id] == written[twin.film_dicom_id]  # ... has the same report, however it is drawn
    assert len({written[name] for name in joined["film_dicom_id"]}) > 1


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"TOGGLE": "no finding"}, ["TOGGLE", "No Finding"]),
        ({"TOGGLE": "flu"}, ["unknown finding 'flu'"]),
        ({"FINDINGS": "uncertain edema", "TOGGLE": "edema"}, ["no film has a twin", "uncertain"]),
        ({"STRENGTH": 1.5}, ["STRENGTH", "1.5"]),
        ({"FILMS": "/nowhere"}, ["/nowhere"]),
        ({"CHECKPOINT": "/nowhere"}, ["/nowhere"]),
    ],
)
def test_what_cannot_be_changed_begins_no_tree(constants, words, config, runs, tmp_path):
    says(twins(config, runs, tmp_path / "made", **constants), *words)
    assert not (tmp_path / "made").exists()


def test_a_film_that_cannot_be_read_is_named_and_has_no_twin(config, runs, tree, tmp_path, capsys):
    films = tmp_path / "films"
    shutil.copytree(tree, films)
    table = read_table(films, splits=("validate",))
    broken = table[table["Edema"] != -2].iloc[0]
    with open(broken.image_path, "wb") as file:
        file.write(b"no image")
    assert twins(config, runs, tmp_path / "made", TOGGLE="edema", FILMS=films) == 0
    assert broken.dicom_id in "".join(capsys.readouterr())
    assert broken.dicom_id not in set(read_twins(tmp_path / "made")["source"])


def vectors(*rows):
    table = pd.DataFrame([{name: row.get(name, 0) for name in FINDINGS} for row in rows])
    return table.assign(dicom_id=[f"film-{number}" for number in range(len(table))], prompt="", seed=range(len(table)))


def test_which_twins_there_are():
    films = vectors({"Edema": 1}, {"Edema": -1, "Fracture": -2}, {"No Finding": 1})
    train = vectors({"Edema": -1})
    made = twins_of(films, "edema", 0, 1, train).set_index("source")
    assert made["Edema"].to_dict() == {"film-0": -1, "film-1": 1, "film-2": 1}
    assert made["No Finding"].to_dict() == {"film-0": 1, "film-1": 0, "film-2": 0}
    assert twins_of(films, "edema", 0, 1, vectors({})).set_index("source").loc["film-0", "Edema"] == 0  # never stated
    every = twins_of(films, "", 0, 1, train)
    assert len(every) == 3 * 13 - 1  # no twin of what is uncertain
    few = twins_of(films, "", 14, 1, train)
    assert few.equals(every.head(14))
    changed = [
        tuple(name for name in FINDINGS if name != "No Finding" and row[name] == 1) for row in few.to_dict("records")
    ]
    assert len(set(changed)) >= 13  # each finding and direction once, before one comes again
    with pytest.raises(InputError, match="uncertain"):
        twins_of(films.iloc[1:2], "fracture", 0, 1, train)


def test_no_finding_follows_from_the_others():
    labels = vectors({"Edema": 1, "Support Devices": 1})[list(FINDINGS)].to_numpy(dtype=np.int8)[0].copy()
    edema, no_finding = FINDINGS.index("Edema"), FINDINGS.index("No Finding")
    assert with_code(labels, edema, -1)[no_finding] == 1 and with_code(labels, edema, 1)[no_finding] == 0
    blank = np.zeros(14, dtype=np.int8)
    assert with_code(blank, FINDINGS.index("Support Devices"), 1)[no_finding] == 0  # devices say nothing of it
    labels[0] = -2
    assert with_code(labels, edema, -1)[no_finding] == 0 and labels[edema] == 1
