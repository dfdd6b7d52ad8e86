"""A synthetic tree is a data set: `datasets`, torchxrayvision and `read_table` find the same rows in it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from running import contents, provenance, read_reports, sample
from small_data import make_tree

from sampling.data_set import save_data_set
from utils.findings import FINDINGS, to_physionet
from utils.mimic_cxr import read_table, write_tree

FILES = ("metadata.csv", "README.md")


@pytest.fixture
def load(tmp_path):
    """A function: what load_dataset is called with => the rows of its only split, with images as arrays."""
    datasets = pytest.importorskip("datasets")

    def load(*arguments, **options):
        splits = datasets.load_dataset(*arguments, **options, cache_dir=str(tmp_path / "cache"))
        assert list(splits) == ["train"]
        return [{**row, "image": np.asarray(row["image"])} for row in splits["train"]]

    return load


def load_all(load, root):
    """The rows of a tree, which are the same where `datasets` looks for files, and where it is given metadata.csv."""
    rows = load("imagefolder", data_dir=str(root))
    np.testing.assert_equal(rows, by_card(load, root))
    return rows


def by_card(load, root):
    """The rows of a tree in the way that its card shows."""
    (call,) = re.findall(r"load_dataset\((.*)\)\[", (root / "README.md").read_text())
    return eval(f"load({call.replace('.', str(root), 1)})", {"load": load})


def agree(rows, root):
    """The rows of `datasets` are those of read_table: images, labels and splits."""
    table = read_table(root)
    assert [row["dicom_id"] for row in rows] == table.dicom_id.tolist()
    assert [row["split"] for row in rows] == table.split.tolist()
    labels = [[row[name] if row[name] is not None else np.nan for name in FINDINGS] for row in rows]
    np.testing.assert_array_equal(labels, to_physionet(table))
    for row, path in zip(rows, table.image_path):
        np.testing.assert_array_equal(row["image"], Image.open(path))
    return table


def test_three_readers_find_the_same_rows(load, tmp_path):
    xrv = pytest.importorskip("torchxrayvision.datasets")
    root = tmp_path / "tree"
    table = make_tree(root, studies=5, reports=(), provenance=True)
    table[[*FINDINGS]] = np.resize([1, -1, -2, 0, 0], (5, len(FINDINGS))).astype("int8")
    table["No Finding"] = 0  # where it is present, torchxrayvision has all others absent
    write_tree(root, table)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(root / "first.png")  # no image of the set
    (root / "latents").mkdir()
    np.save(root / "latents" / f"{table.dicom_id[0]}.npy", np.zeros(3))
    save_data_set(root)
    rows = load_all(load, root)
    assert len(rows) == 5 and all(row["report"] is None for row in rows)
    agree(rows, root)
    files = [str(root / f"mimic-cxr-2.0.0-{kind}.csv.gz") for kind in ("chexpert", "metadata")]
    images = xrv.MIMIC_Dataset(str(root / "files"), *files, views=["PA"])
    assert images.csv.dicom_id.tolist() == [row["dicom_id"] for row in rows]
    for name in ("Edema", "Fracture", "Pneumonia"):
        found = images.labels[:, images.pathologies.index(name)]
        of_xrv = [np.nan if row[name] in (None, -1) else row[name] for row in rows]  # to which uncertain is unknown
        np.testing.assert_array_equal(found, of_xrv)

    texts = ["Clear, as before.", 'A "line",\nand\n\n"another".', "", "One.", "Two."]
    written = table[["dicom_id", "study_id"]].assign(report=texts)
    written.to_csv(root / "reports.csv", index=False)
    save_data_set(root)
    assert [row["report"] or "" for row in load_all(load, root)] == texts
    assert "5 chest X-rays, 4 of them with a report" in " ".join((root / "README.md").read_text().split())


def test_an_image_that_is_gone_is_no_row(load, tmp_path):
    table = make_tree(tmp_path / "tree", studies=3, provenance=True)
    Path(table.image_path[1]).unlink()
    save_data_set(tmp_path / "tree")
    rows = load_all(load, tmp_path / "tree")
    assert [row["dicom_id"] for row in rows] == [table.dicom_id[0], table.dicom_id[2]]


def test_a_name_that_looks_like_a_split_is_read_by_the_card(load, tmp_path):
    """`datasets` takes 1-test-1.jpg for a file of a test split, where it has to look for files."""
    root = tmp_path / "tree"
    table = make_tree(root, studies=2).assign(dicom_id=["1-test-1", "2-test-2"])
    for old, row in zip(table.image_path, table.itertuples()):
        shutil.move(old, Path(old).with_name(f"{row.dicom_id}.jpg"))
    for path in root.glob("*.csv.gz"):
        path.unlink()
    write_tree(root, table, table[["dicom_id"]].assign(prompt=""))
    (root / "manifest.json").write_text('{"synthetic tree": {}}')
    save_data_set(root)
    assert [row["dicom_id"] for row in by_card(load, root)] == table.dicom_id.tolist()


def test_a_real_tree_is_left_as_it_is(tree, tmp_path):
    make_tree(tmp_path / "real")
    for root in (tree, tmp_path / "real"):
        before = contents(root)
        save_data_set(root)
        assert contents(root) == before


def test_samplers_write_it_and_a_second_run_writes_the_same(load, config, runs, write_reports, tmp_path):
    root = tmp_path / "tree"
    assert sample("clipUViT", config, runs, root, SPLIT="validate") == 0
    rows, made = load_all(load, root), provenance(root)
    agree(rows, root)
    assert [row["prompt"] for row in rows] == made.prompt.tolist() and all(row["report"] is None for row in rows)
    assert [row["seed"] for row in rows] == made.seed.tolist()
    card = DatasetCard.load(root / "README.md")
    assert "synthetic" in card.data.tags
    for stated in (made.checkpoint.iloc[0], made.checkpoint_sha256.iloc[0], '"steps": 3', "diagnosis", "PhysioNet"):
        assert stated in card.text

    write_reports(OUTPUT_ROOT=root, DECODING="nucleus")
    rows, reports = load_all(load, root), read_reports(root)
    assert any(reports.values())
    assert {row["dicom_id"]: row["report"] or "" for row in rows} == reports
    assert '"LATENT_GAIN"' in (root / "README.md").read_text()
    before = contents(root)
    for name in FILES:  # as of an earlier version, or of a killed run
        (root / name).unlink()
    write_reports(OUTPUT_ROOT=root, DECODING="nucleus")
    assert contents(root) == before
    for name in FILES:
        (root / name).unlink()
    assert sample("clipUViT", config, runs, root, SPLIT="validate") == 0
    assert contents(root) == before


def test_an_earlier_tree_without_a_prompt_or_a_checkpoint(tmp_path):
    table = make_tree(tmp_path / "tree", provenance=True)
    pd.DataFrame({"dicom_id": table.dicom_id}).to_csv(tmp_path / "tree" / "synthetic.csv", index=False)
    save_data_set(tmp_path / "tree")
    assert len(pd.read_csv(tmp_path / "tree" / "metadata.csv")) == len(table)
