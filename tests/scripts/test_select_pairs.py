"""Pairs are selected from a finished tree and from another project's CSV: by a judge that reads planted images."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from running import contents, flags, read_reports, run_script, says
from small_data import make_tree

from evaluation import judges
from evaluation.judges import Judge, JudgeSettings, first_half
from evaluation.sections import check_apart, label_only_report
from utils.cache import save_array
from utils.errors import InputError
from utils.findings import ABSENT, FINDINGS, PRESENT
from utils.folders import MANIFEST_FILE, SYNTHETIC_TREE, WRITTEN_REPORTS
from utils.mimic_cxr import image_file, read_table, write_tree

EDEMA, EFFUSION, FRACTURE = (FINDINGS.index(name) for name in ("Edema", "Pleural Effusion", "Fracture"))
NONE = []  # findings of an image or a request
FIXED = {"VIEWS": "()", "HOLD_OUT": "()", "JUDGE_MODEL": "test_resnet", "JUDGE_IMAGE_SIZE": 32, "DEVICE": "cpu"}


class Network(torch.nn.Identity):
    num_features = 1


class PlantedJudge(Judge):
    """Reads what `plant` drew: finding n is present where the nth of 16 squares is bright."""

    def __init__(self):
        super().__init__(Network(), JudgeSettings(image_size=32), np.full(14, 0.5), np.ones(14, dtype=bool))

    def encode(self, pixels):
        squares = torch.nn.functional.avg_pool2d(pixels, 8).flatten(1)  # (B, 16) in [-1, 1]
        return squares[:, :1], squares[:, :14].add(1).div(2)


def plant(path, findings):
    squares = np.full(16, 25, dtype=np.uint8)
    squares[findings], squares[15] = 230, 60  # an image of one grey counts as blank
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.kron(squares.reshape(4, 4), np.ones((8, 8), dtype=np.uint8))).save(path, quality=95)


def codes_of(findings):
    return np.where(np.isin(np.arange(14), findings), PRESENT, ABSENT)


def planted_tree(root, shown, requested=None, reports=None, first=10_000_000, split="train", **provenance):
    """A tree with an image for each list of findings; requested, reports: findings of its label vector and its text."""
    requested, reports = requested or shown, reports or shown
    table = pd.DataFrame([codes_of(findings) for findings in requested], columns=FINDINGS).astype("int8")
    table["dicom_id"] = [f"{first:x}-{number}" for number in range(len(shown))]
    table["subject_id"] = table["study_id"] = first + np.arange(len(shown))
    table = table.assign(view="PA", split=split, report=[label_only_report(codes_of(findings)) for findings in reports])
    for row, findings in zip(table.itertuples(), shown):
        plant(image_file(root, row.subject_id, row.study_id, row.dicom_id), findings)
    if provenance:
        made = table[["dicom_id"]].assign(seed=1, reference_dicom_id="", **provenance)
        write_tree(root, table, made)
        (root / MANIFEST_FILE).write_text(json.dumps({SYNTHETIC_TREE: {"steps": 3}, WRITTEN_REPORTS: {"SEED": 1}}))
        table[["dicom_id", "study_id", "report"]].to_csv(root / "reports.csv", index=False)
        for name in table["dicom_id"]:
            save_array(root / "latents" / f"{name}.npy", np.zeros(3))
    else:
        write_tree(root, table)
    return table


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """40 training patients: every fourth has nothing, an edema, an effusion, or both."""
    root = tmp_path_factory.mktemp("select") / "real"
    planted_tree(root, [[NONE, [EDEMA], [EFFUSION], [EDEMA, EFFUSION]][number % 4] for number in range(40)])
    return root


# two requests of three candidates each: an edema, an effusion
REQUESTED = [[EDEMA]] * 3 + [[EFFUSION]] * 3
SHOWN = [[EFFUSION], [EDEMA], [EDEMA], [EDEMA, FRACTURE], [EDEMA, EFFUSION], NONE]
WRITTEN = [[EDEMA], [EFFUSION], [EDEMA], [EFFUSION], [EFFUSION], [EFFUSION]]


@pytest.fixture
def made(tmp_path):
    provenance = {"source": ["r1"] * 3 + ["r2"] * 3, "prompt": "asked", "checkpoint": ""}
    planted_tree(tmp_path / "made", SHOWN, REQUESTED, WRITTEN, first=90_000_000, **provenance)
    return tmp_path / "made"


@pytest.fixture
def select(real, tmp_path, monkeypatch):
    """A function: name under tmp_path, constants => what select_pairs.py ended with; the judge reads planted images."""
    monkeypatch.setattr(judges, "image_judge", lambda *_: PlantedJudge())

    def run(name, **constants):
        fixed = {**FIXED, "SYNTHETIC": tmp_path / "made", "DATA_ROOT": real, "CACHE_DIR": tmp_path / "cache"}
        return run_script("select_pairs", *flags(**fixed | {"OUTPUT_ROOT": tmp_path / name} | constants))

    return run


def kept(root):
    """The places of the kept candidates in the tree that they are from."""
    return [int(name.split("-")[-1]) for name in read_table(root)["dicom_id"]]


def assert_data_set(root, table):
    """metadata.csv lists the pairs of a tree's table, with their reports."""
    rows = pd.read_csv(root / "metadata.csv")
    assert rows[["dicom_id", "report"]].values.tolist() == table[["dicom_id", "report"]].values.tolist()


@pytest.mark.parametrize(
    ("by", "keep", "places", "agree"),
    [
        ("image", "first", [1, 4], [1, 0]),  # the first that agrees; of the others the one with one fault
        ("pair", "first", [2, 4], [1, 0]),
        ("image", "agreeing", [1, 2], [1, 1]),
        ("pair", "agreeing", [2], [1]),
    ],
)
def test_the_pairs_that_agree_are_kept(select, made, tmp_path, by, keep, places, agree):
    assert select("kept", BY=by, KEEP=keep) == 0
    root, table = tmp_path / "kept", read_table(tmp_path / "kept")
    assert kept(root) == places
    told = pd.read_csv(root / "synthetic.csv").set_index("dicom_id").loc[table["dicom_id"]]
    assert told["agrees"].tolist() == agree and (told["score"] <= 0).all() and (told["seed"] == 1).all()
    summary = json.loads((root / "selection.json").read_text())
    assert (summary["by"], summary["keep"], summary["requests"], summary["candidates"]) == (by, keep, 2, 6)
    assert summary["kept"] == len(places) and summary["candidates a kept pair"] == 6 / len(places)
    assert summary["share that agrees"] == pytest.approx({"image": 2 / 6, "pair": 1 / 6}[by])


def test_a_kept_pair_is_the_pair_that_it_was(select, made, tmp_path, capsys):
    before = contents(made)
    assert select("kept", BY="pair") == 0
    root, after = tmp_path / "kept", contents(tmp_path / "kept")
    carried = [path for path in after if path.parts[0] in ("files", "latents")]
    assert len(carried) == 2 * 3 and all(after[path] == before[path] for path in carried)
    was, now = read_table(made).set_index("dicom_id"), read_table(root).set_index("dicom_id")
    columns = [name for name in now if name != "image_path"]
    pd.testing.assert_frame_equal(now[columns], was.loc[now.index, columns])
    assert_data_set(root, now.reset_index())
    assert read_reports(root) == now["report"].to_dict(), "and the writer of reports goes on from there"
    manifest = json.loads((root / MANIFEST_FILE).read_text())
    assert manifest[SYNTHETIC_TREE]["by"] == "pair" and manifest[WRITTEN_REPORTS] == {"SEED": 1}
    with pytest.raises(InputError, match="kept were chosen by the rules that would judge them: set TEXT_JUDGE"):
        check_apart(str(root), pd.DataFrame({"subject_id": []}), "rules")
    capsys.readouterr()
    assert select("kept", BY="pair") == 0
    assert "is finished: 2 pairs" in capsys.readouterr().out and contents(root) == after
    assert select("kept", BY="pair") == 0 and contents(root) == after
    (root / "selection.json").unlink()  # as after a kill
    next(root.rglob("*.jpg")).unlink()
    assert select("kept", BY="pair") == 0 and contents(root) == after
    says(select("kept", BY="image"), "by = 'pair'", "OUTPUT_ROOT")
    assert contents(made) == before


def test_copies_of_training_images_are_left_out(select, made, real, tmp_path, capsys):
    unseen = tmp_path / "real"
    shutil.copytree(real, unseen)
    planted_tree(unseen, [[number] for number in range(14)], first=15_000_000, split="test")
    rng, table = np.random.default_rng(0), read_table(made)
    for path in table["image_path"].iloc[[0, 1, 3, 4, 5]]:  # nothing like any other image
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path, quality=95)
    assert select("kept", DATA_ROOT=unseen, DROP="copies", KEEP="first") == 0
    assert "copies: 1 of 6 candidates are left out" in capsys.readouterr().out
    summary = json.loads((tmp_path / "kept" / "selection.json").read_text())
    assert summary["copies left out"] == 1 and summary["candidates"] == 5
    assert table["dicom_id"].iloc[2] not in set(read_table(tmp_path / "kept")["dicom_id"])
    says(select("kept", DATA_ROOT=unseen, KEEP="first"), "drop", "OUTPUT_ROOT")
    says(select("other", DROP="copies"), "nothing shows what a copy is", "unset DROP")


def test_the_floor_is_of_other_patients_and_selected_in_the_same_way(select, made, real, tmp_path):
    table = read_table(real)
    half = table[first_half(table)]
    shows = table.set_index("dicom_id")[["Edema", "Pleural Effusion"]].eq(PRESENT).apply(tuple, axis=1).to_dict()
    wanted = dict(zip(read_table(made)["dicom_id"], [(True, False)] * 3 + [(False, True)] * 3))
    agree = []
    for seed in range(8):
        assert select(f"kept{seed}", SEED=seed) == 0
        root = tmp_path / f"kept{seed}"
        floor = pd.read_csv(root / "floor.csv")
        assert floor["dicom_id"].tolist() == read_table(root)["dicom_id"].tolist()
        assert not set(floor["floor_dicom_id"]) & set(half["dicom_id"])
        assert pd.read_csv(root / "selector.csv")["subject_id"].tolist() == sorted(set(half["subject_id"]))
        summary = json.loads((root / "selection.json").read_text())["floor"]
        assert (summary["requests"], summary["candidates"], summary["kept"]) == (2, 6, 2)
        agree += [shows[drawn] == wanted[name] for name, drawn in floor.itertuples(index=False)]
    assert len(set(agree)) == 2 and np.mean(agree) > 0.3, "of three random ones a quarter each agrees"
    assert select("agreeing", KEEP="agreeing") == 0
    floor = pd.read_csv(tmp_path / "agreeing" / "floor.csv")
    assert all(shows[drawn] == wanted[name] for name, drawn in floor.itertuples(index=False))


def test_a_csv_of_another_project(select, tmp_path, capsys):
    folder = tmp_path / "others"
    for number, findings in enumerate(SHOWN):
        plant(folder / f"{number}.png", findings)
    prompts = ["A chest X ray image with edema"] * 3 + ["A chest X ray image with pleural effusion"] * 3
    texts = [label_only_report(codes_of(findings)) for findings in WRITTEN]
    frame = pd.DataFrame({"image": [f"{number}.png" for number in range(6)], "prompt": prompts, "report": texts})
    frame.to_csv(folder / "pairs.csv", index=False)
    assert select("kept", SYNTHETIC=folder / "pairs.csv", BY="pair") == 0
    table = read_table(tmp_path / "kept")
    assert table["dicom_id"].tolist() == ["3-2", "5-4"] and table["report"].tolist() == [texts[2], texts[4]]
    assert_data_set(tmp_path / "kept", table)
    for row, number in zip(table.itertuples(), (2, 4)):
        assert Path(row.image_path).read_bytes() == (folder / f"{number}.png").read_bytes()
    frame.drop(columns="report").to_csv(folder / "pairs.csv", index=False)
    assert select("images", SYNTHETIC=folder / "pairs.csv") == 0 and len(read_table(tmp_path / "images")) == 2
    says(select("none", SYNTHETIC=folder / "pairs.csv", BY="pair"), "pairs.csv has no reports", "BY")
    frame.drop_duplicates("prompt").to_csv(folder / "pairs.csv", index=False)
    capsys.readouterr()
    assert select("single", SYNTHETIC=folder / "pairs.csv") == 0 and len(read_table(tmp_path / "single")) == 2
    assert "nothing to choose between" in capsys.readouterr().out


def test_bad_input_is_one_sentence(select, made, real, tmp_path, monkeypatch):
    nobody = planted_tree(tmp_path / "wrong", [NONE] * 4, [[EDEMA]] * 4, source="r", prompt="p", checkpoint="")
    says(select("kept", SYNTHETIC=tmp_path / "wrong", KEEP="agreeing"), "none of the 4 candidates", "KEEP", "first")
    says(select("kept", SYNTHETIC=real), "no synthetic.csv", "SYNTHETIC")
    assert select("kept") == 0, "what was refused before has left nothing that stands in the way"
    says(select("again", SYNTHETIC=tmp_path / "kept"), "selected already", "SYNTHETIC")
    says(select("kept2", KEEP="best"), "KEEP", "best")
    says(select("kept2", BY="report"), "BY", "report")
    pd.concat([nobody, nobody.assign(dicom_id="lost")]).to_csv(tmp_path / "wrong" / "plan.csv", index=False)
    says(select("kept2", SYNTHETIC=tmp_path / "wrong"), "is not finished", "1 of its 5 images")
    make_tree(tmp_path / "mute", studies=20, reports=())
    says(select("kept2", DATA_ROOT=tmp_path / "mute", BY="pair"), "no reports", "REPORTS_ROOT")
    monkeypatch.undo()
    judge = {"JUDGE_STEPS": 1, "DATA_ROOT": tmp_path / "mute", "CACHE_DIR": tmp_path / "cache"}
    says(select("kept2", **judge), "the judge can learn no finding", "DATA_ROOT")
    says(select("kept2", JUDGE_MODEL="unheard"), "JUDGE_MODEL 'unheard'")
    assert not list((tmp_path / "kept2").glob("mimic*"))


def test_a_judge_that_is_trained_here_selects(real, made, tmp_path, monkeypatch):
    constants = {**FIXED, "SYNTHETIC": made, "CACHE_DIR": tmp_path / "cache", "JUDGE_STEPS": 60}
    constants |= {"DATA_ROOT": tmp_path / "real", "OUTPUT_ROOT": tmp_path / "kept", "JUDGE_LEARNING_RATE": 5e-3}
    planted_tree(tmp_path / "real", [[NONE, [EDEMA], [EFFUSION], [EDEMA, EFFUSION]][n % 4] for n in range(120)])
    assert run_script("select_pairs", *flags(**constants)) == 0
    assert kept(tmp_path / "kept")[0] == 1, "of the edema's candidates the first shows an effusion"
    assert json.loads((tmp_path / "kept" / "selection.json").read_text())["judge"]["findings"]


def test_it_is_one_process(select, made, monkeypatch):
    monkeypatch.setattr("utils.devices.make_accelerator", lambda *_: SimpleNamespace(num_processes=2))
    says(select("kept"), "one process", "accelerate launch")
