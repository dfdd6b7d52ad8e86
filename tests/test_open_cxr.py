"""Open sets as they are downloaded => CXR trees: small drawn copies of each layout, bad rows included."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils import kermany, openi
from utils.constants import REPOSITORY
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.labeler import label_report
from utils.manifest import OPEN_TREE, read_manifest
from utils.mimic_cxr import read_table
from utils.open_tree import PROVENANCE_FILE, make_tree, to_grey

SETTINGS = {"images": "link", "validate_share": 0.2, "test_share": 0.2, "seed": 1}


def draw(path, mode="L", size=(40, 48), key=0):
    """Writes an image of random blobs, in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([key, *path.name.encode()])
    blobs = rng.integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


def make(output, source, read, root, threads=2, **settings):
    """A tree of what a source's `read` says of a folder => (its table, its provenance by dicom_id)."""
    settings = {**SETTINGS, "source": source, "root": str(root.resolve()), **settings}
    make_tree(output, read(root), settings, threads)
    provenance = pd.read_csv(output / PROVENANCE_FILE, dtype=str, keep_default_na=False).set_index("dicom_id")
    return read_table(output).set_index("dicom_id", drop=False), provenance


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- Kermany's children --------------------------------------------------------------------------------------------

CHILDREN = {
    "train/NORMAL": ["IM-0115-0001", "IM-0115-0001-0002", "NORMAL2-IM-0115-0001", "NORMAL2-IM-0440-0001"],
    "train/PNEUMONIA": ["person1_bacteria_1", "person1_bacteria_2", "person1_virus_6", "person1685_virus_3_1"],
    "val/PNEUMONIA": [f"person{number}_bacteria_{number}" for number in range(200, 260)],
    "test/NORMAL": ["IM-0001-0001", "NORMAL2-IM-0441-0001"],
    "test/PNEUMONIA": ["person1_virus_7"],
}


@pytest.fixture
def children(tmp_path):
    root = tmp_path / "kermany"
    for folder, names in CHILDREN.items():
        for name in names:
            draw(root / "chest_xray" / folder / f"{name}.jpeg", "RGB")
    twin = root / "chest_xray/test/NORMAL/NORMAL2-IM-0441-0001.jpeg"  # the same file under the number of another child
    twin.write_bytes((root / "chest_xray/train/NORMAL/NORMAL2-IM-0440-0001.jpeg").read_bytes())
    return root


def test_kermany(children, tmp_path, capsys):
    table, provenance = make(tmp_path / "tree", "kermany", kermany.read, children)
    assert sorted(table["dicom_id"]) == sorted(name for names in CHILDREN.values() for name in names)
    assert (table["view"] == "AP").all() and (table["report"] == "").all()
    assert set(table["split"]) == {"train", "validate", "test"}
    normal = table.index.str.contains("IM-")
    assert (table.loc[normal, ["No Finding", "Pneumonia"]] == [1, -1]).all(axis=None)
    assert (table.loc[~normal, ["No Finding", "Pneumonia"]] == [0, 1]).all(axis=None)
    assert not table.drop(columns=["No Finding", "Pneumonia"]).loc[:, "Atelectasis":].any(axis=None)
    assert provenance["series"]["person1_virus_6"] == "virus" and provenance["part"]["IM-0001-0001"] == "test"
    assert provenance["file"]["IM-0001-0001"] == "chest_xray/test/NORMAL/IM-0001-0001.jpeg"
    assert provenance["patient_id"]["NORMAL2-IM-0441-0001"] == "441"
    said = capsys.readouterr().out
    assert "71 images; 5856 were published" in said and "71 linked, JPEG RGB" in said


def test_one_child_is_one_patient_in_one_split(children, tmp_path, capsys):
    table, _ = make(tmp_path / "tree", "kermany", kermany.read, children)
    together = [
        ["person1_bacteria_1", "person1_virus_6", "person1_virus_7", "IM-0001-0001"],  # 1, in three series
        ["IM-0115-0001", "IM-0115-0001-0002", "NORMAL2-IM-0115-0001"],
        ["NORMAL2-IM-0440-0001", "NORMAL2-IM-0441-0001"],  # an identical file
    ]
    for names in together:
        assert table.loc[names, ["subject_id", "split"]].drop_duplicates().shape[0] == 1
    assert table["subject_id"].nunique() == 60 + len(together) + 1
    assert table["study_id"].is_unique
    assert "1 images are of a child with another number" in capsys.readouterr().out


def test_kermany_leaves_out_what_it_does_not_know_and_says_so(children, tmp_path, capsys):
    draw(children / "chest_xray/val/NORMAL/.IM-0117-0001.jpeg")
    draw(children / "chest_xray/val/NORMAL/person7_virus_1.jpeg")  # no name of a normal one
    draw(children / "chest_xray/val/PNEUMONIA/person1_virus_7.jpeg")  # stands in test/ as well
    cut = children / "chest_xray/val/PNEUMONIA/person200_bacteria_200.jpeg"
    cut.write_bytes(cut.read_bytes()[:400])
    for path in (children / "chest_xray/test/NORMAL").iterdir():
        path.unlink()
    (children / "chest_xray/test/NORMAL").rmdir()
    table, _ = make(tmp_path / "tree", "kermany", kermany.read, children)
    said = capsys.readouterr().out
    assert "has no test/NORMAL: is the download whole?" in said
    assert "dropped 2 whose name tells no child" in said and "person7_virus_1" not in table.index
    assert "dropped 1 of 70 whose name stands in an earlier folder too, e.g. chest_xray/test/PNEUMONIA" in said
    assert "dropped 1 of 69 that cannot be read, e.g. chest_xray/val/PNEUMONIA/person200_bacteria_200" in said
    assert len(table) == 68


# ---- Indiana University's reports ----------------------------------------------------------------------------------

BOTH, PORTABLE, EITHER = "Xray Chest PA and Lateral", "Portable AP chest, single view", "Chest x-XXXX XXXX"
CLEAR = "The lungs are clear. There is no XXXX of an effusion."
REPORTS = {  # number => caption, images, findings, impression
    1: (BOTH, ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"], CLEAR, "Normal chest x-XXXX."),
    2: (BOTH, ["CXR2_IM-0652-1001", "CXR2_IM-0652-2001"], "Cardiomegaly.", "No edema."),
    3: (PORTABLE, ["CXR3_IM-1384-1001"], "", "Left pleural effusion."),
    4: (EITHER, ["CXR4_IM-2050-1001", "CXR4_IM-2050-1002", "CXR4_IM-2050-1003"], CLEAR, ""),
    5: ("CHEST 2V FRONTAL/LATERAL", ["CXR5_IM-2117-1001", "CXR5_IM-2117-2001"], "", ""),
    6: (BOTH, ["CXR6_IM-2192-1001", "CXR6_IM-2192-2001"], CLEAR, ""),
    7: (BOTH, [], "No image of it.", ""),
}
XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
 <AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Cough &amp; fever</AbstractText>
 <AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>Cardiomegaly/mild</major><major>Cicatrix</major>
<automatic>scar</automatic></MeSH>{images}</eCitation>"""
IMAGE = """<parentImage id="{name}"><figureId>F1</figureId><caption> {caption}
</caption></parentImage>"""


@pytest.fixture
def library(tmp_path):
    """The form of the National Library of Medicine."""
    root = tmp_path / "library"
    (root / "ecgen-radiology").mkdir(parents=True)
    for number, (caption, names, findings, impression) in REPORTS.items():
        images = "".join(IMAGE.format(name=name, caption=caption) for name in names)
        text = XML.format(number=number, images=images, findings=findings, impression=impression)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text)
        for name in names:
            draw(root / "NLMCXR_png" / f"{name}.png")
    return root


def write_projections(root):
    """Kaggle's list of views: of two images, the last one is frontal."""
    rows = [(number, name, names) for number, (_, names, *_) in REPORTS.items() for name in names]
    frame = pd.DataFrame(
        {
            "uid": [number for number, *_ in rows],
            "filename": [openi._image_key(name).removeprefix("CXR") + ".dcm.png" for _, name, _ in rows],
            "projection": ["Frontal" if name == names[-1] else "Lateral" for _, name, names in rows],
        }
    )
    root.mkdir(exist_ok=True)
    frame.to_csv(root / "indiana_projections.csv", index=False)
    return frame


@pytest.fixture
def kaggle(tmp_path):
    root = tmp_path / "kaggle"
    for name in write_projections(root)["filename"]:
        draw(root / "images" / "images_normalized" / name)
    columns = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    rows = [
        (number, "Cardiomegaly/mild", "Cardiomegaly", caption, "Cough & fever", "None.", findings, impression)
        for number, (caption, names, findings, impression) in REPORTS.items()
        if names
    ]
    pd.DataFrame(rows, columns=columns).to_csv(root / "indiana_reports.csv", index=False)
    return root


def test_openi(library, tmp_path, capsys):
    table, provenance = make(tmp_path / "tree", "openi", openi.read, library)
    assert len(table) == 12 and table["subject_id"].nunique() == 6 == table["study_id"].nunique()
    assert table["report"]["CXR1_IM-0001-3001"] == f"FINDINGS: {CLEAR} IMPRESSION: Normal chest x-XXXX."
    assert table["report"]["CXR3_IM-1384-1001"] == "IMPRESSION: Left pleural effusion."
    assert table["report"]["CXR5_IM-2117-1001"] == ""
    labels = table[list(FINDINGS)]
    assert (labels.loc["CXR2_IM-0652-1001"] == label_report("Cardiomegaly. No edema.")).all()
    assert (labels.loc["CXR5_IM-2117-1001"] == 0).all()
    views = {1: ["", ""], 2: ["PA", "LATERAL"], 3: ["AP"], 4: ["", "", ""], 5: ["PA", "LATERAL"], 6: ["PA", "LATERAL"]}
    assert table["view"].sort_index().tolist() == [view for number in sorted(views) for view in views[number]]
    how = provenance["view_from"]
    assert how["CXR2_IM-0652-1001"] == "order" and how["CXR3_IM-1384-1001"] == "caption"
    assert how["CXR5_IM-2117-1001"] == "order; PA assumed" and how["CXR5_IM-2117-2001"] == "order"
    first = provenance.loc["CXR1_IM-0001-3001"]
    assert first["file"] == "NLMCXR_png/CXR1_1_IM-0001-3001.png" and first["patient_id"] == "CXR1"
    assert first["mesh_major"] == "Cardiomegaly/mild;Cicatrix" and first["mesh_automatic"] == "scar"
    assert first["indication"] == "Cough & fever" and first["caption"] == BOTH
    written = (tmp_path / "tree").rglob("s20000001.txt")
    words = " ".join(next(written).read_text().split())
    assert words == (
        f"FINAL REPORT INDICATION: Cough & fever COMPARISON: None. FINDINGS: {CLEAR} IMPRESSION: Normal chest x-XXXX."
    )
    said = capsys.readouterr().out
    for line in (
        "7 reports, of 3955", "name 12, of 7470 that were published; 1 reports have none",
        "5 of 12 are not known, 6 by order, 1 by caption; 1 frontal ones count as PA",
        "1 have neither findings nor impression", "12 converted from PNG L",
    ):  # fmt: skip
        assert line in said, line
    with Image.open(table["image_path"]["CXR1_IM-0001-3001"]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (40, 48))


def test_kaggles_form_says_the_same(kaggle, library, tmp_path):
    one, _ = make(tmp_path / "one", "openi", openi.read, library)
    other, provenance = make(tmp_path / "other", "openi", openi.read, kaggle)
    same = ["dicom_id", "subject_id", "study_id", "split", "report", *FINDINGS]
    pd.testing.assert_frame_equal(one[same], other[same])
    views = ["LATERAL PA", "LATERAL PA", "AP", "LATERAL LATERAL PA", "LATERAL PA", "LATERAL PA"]
    assert other["view"].sort_index().tolist() == " ".join(views).split()
    assert set(provenance["view_from"]) == {"projections", "projections; PA assumed"}
    write_projections(library)  # beside the XMLs, it says the views
    third, _ = make(tmp_path / "third", "openi", openi.read, library)
    assert third["view"].equals(other["view"])


def test_openi_names_what_it_leaves_out(library, tmp_path, capsys):
    (library / "ecgen-radiology/6.xml").write_text(XML[:300])
    (library / "ecgen-radiology/8.xml").write_text("<eCitation><uId id='PMC8'/></eCitation>")
    (library / "NLMCXR_png/CXR2_IM-0652-1001.png").unlink()
    draw(library / "NLMCXR_png/CXR9_IM-0001-1001.png")
    cut = library / "NLMCXR_png/CXR4_IM-2050-1001.png"
    cut.write_bytes(cut.read_bytes()[:200])
    Image.fromarray(np.full((40, 48), 4095, dtype=np.uint16)).save(library / "NLMCXR_png/CXR4_IM-2050-1002.png")
    draw(library / "NLMCXR_png/CXR4_IM-2050-1003.png", "RGBA")
    table, _ = make(tmp_path / "tree", "openi", openi.read, library)
    assert len(table) == 8
    said = capsys.readouterr().out
    for line in (
        "dropped 2 of 8 whose XML cannot be read, e.g. 6.xml (",
        "3 PNGs are left out, since no report names them, e.g. NLMCXR_png/CXR6_IM-2192-1001.png",
        "dropped 1 of 10 rows whose image is not there, e.g. NLMCXR_png/CXR2_IM-0652-1001.png",
        "dropped 1 of 9 that cannot be read, e.g. NLMCXR_png/CXR4_IM-2050-1001.png: ",
        "1 converted from PNG I;16", "1 converted from PNG RGBA", "6 converted from PNG L",
    ):  # fmt: skip
        assert line in said, line


def test_openi_half_downloaded_is_one_sentence(library, kaggle, tmp_path):
    (kaggle / "indiana_projections.csv").unlink()
    with pytest.raises(InputError, match="there is no .*indiana_projections.csv, which says whose image is whose"):
        openi.read(kaggle)
    with pytest.raises(
        InputError, match=r"there is no ecgen-radiology/\*.xml in it; it is in .*library: name that as ROOT"
    ):
        openi.read(library / "NLMCXR_png")
    for path in (library / "NLMCXR_png").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="none of the 12 images is in .*library: is the download whole, and unpacked"):
        make(tmp_path / "tree", "openi", openi.read, library)
    assert not (tmp_path / "tree").exists()
    for path in (library / "ecgen-radiology").iterdir():
        path.write_text("")
    with pytest.raises(InputError, match="none of the 7 XMLs in .* is a report: fetch NLMCXR_reports.tgz again"):
        openi.read(library)


# ---- what all sources share ----------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_adds_what_came(children, tmp_path):
    tree, late = tmp_path / "tree", children / "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg"
    picture = late.read_bytes()
    late.unlink()
    before, _ = make(tree, "kermany", kermany.read, children)
    first = contents(tree)
    make(tree, "kermany", kermany.read, children)
    assert contents(tree) == first
    late.write_bytes(picture)
    after, provenance = make(tree, "kermany", kermany.read, children)
    assert set(after.index) - set(before.index) == {"person1_bacteria_1"} == set(provenance.index) - set(before.index)
    columns = ["subject_id", "split"]  # neither hangs on what else is there
    pd.testing.assert_frame_equal(after.loc[before.index, columns], before[columns])


def test_splits_hang_on_seed_and_patient_alone(children, tmp_path):
    one, _ = make(tmp_path / "one", "kermany", kermany.read, children)
    other, _ = make(tmp_path / "other", "kermany", kermany.read, children, seed=2)
    whole, _ = make(tmp_path / "whole", "kermany", kermany.read, children, validate_share=0, test_share=0)
    assert (one["subject_id"] == other["subject_id"]).all() and (one["split"] != other["split"]).any()
    assert set(whole["split"]) == {"train"}
    groups = one["subject_id"].astype(str).str[:2]
    assert set(groups) == {str(group) for group in range(10, 20)}


def test_a_folder_of_others_is_refused_and_nothing_is_written(children, tmp_path):
    tree = tmp_path / "tree"
    make(tree, "kermany", kermany.read, children)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="was begun with seed = 1, this run has 2; set OUTPUT to another folder"):
        make(tree, "kermany", kermany.read, children, seed=2)
    with pytest.raises(InputError, match=r"is not empty and has no manifest.json.*name a new folder as OUTPUT"):
        make(children, "kermany", kermany.read, children)
    with pytest.raises(InputError, match="lies inside the CXR tree"):
        make(tree / "files" / "p99", "kermany", kermany.read, children)
    assert contents(tmp_path) == before
    assert read_manifest(tree)[OPEN_TREE]["source"] == "kermany"


@pytest.mark.parametrize("level", ["..", "chest_xray", "chest_xray/train"])
def test_a_wrong_level_of_folders_is_named_with_the_right_one(children, level):
    (children / level).mkdir(exist_ok=True)
    with pytest.raises(
        InputError, match=rf"there is no chest_xray/train/NORMAL in it; it is in .*{children.name}.*: name"
    ):
        kermany.read(children / level)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match="there is no folder .*nowhere"):
        kermany.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no chest_xray/train/NORMAL in it; name the folder with what was"):
        kermany.read(tmp_path)
    (tmp_path / "chest_xray/train/NORMAL").mkdir(parents=True)
    with pytest.raises(InputError, match="has no image whose name tells a child"):
        kermany.read(tmp_path)


def test_images_are_linked_or_copied_as_they_are(children, tmp_path):
    linked, _ = make(tmp_path / "linked", "kermany", kermany.read, children)
    copied, _ = make(tmp_path / "copied", "kermany", kermany.read, children, images="copy")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in ("linked", "kermany"):  # links are relative: tree and download may move together
        (tmp_path / folder).rename(moved / folder)
    for name in ("IM-0115-0001", "person1_virus_6"):
        link = moved / linked["image_path"][name].removeprefix(f"{tmp_path}/")
        with open(copied["image_path"][name], "rb") as copy:
            assert link.is_symlink() and copy.read() == link.read_bytes()


def test_torchxrayvision_reads_an_open_tree(children, tmp_path):
    datasets = pytest.importorskip("torchxrayvision.datasets")
    tree = tmp_path / "tree"
    make(tree, "kermany", kermany.read, children)
    dataset = datasets.MIMIC_Dataset(
        imgpath=str(tree / "files"),
        csvpath=str(tree / "mimic-cxr-2.0.0-chexpert.csv.gz"),
        metacsvpath=str(tree / "mimic-cxr-2.0.0-metadata.csv.gz"),
        views=["AP"],
        unique_patients=False,
    )
    assert len(dataset) == 71 and dataset[0]["img"].shape == (1, 48, 40)
    assert set(dataset.labels[:, dataset.pathologies.index("Pneumonia")]) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 128, 255]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], dtype=np.uint16), [0, 128, 255]),  # 12 bits
        (np.array([[0, 32768, 65535]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 100, 65535]], dtype=np.int32), [0, 0, 255]),
        (np.array([[[9, 9, 9, 0], [200, 200, 200, 7]]], dtype=np.uint8), [9, 200]),  # transparency is ignored
        (np.array([[[0, 255]]], dtype=np.uint8), [0]),
        (np.array([[[255, 0, 0]]], dtype=np.uint8), [76]),
    ],
)
def test_any_picture_becomes_eight_bits_of_grey(pixels, expected):
    assert np.asarray(to_grey(Image.fromarray(pixels))).tolist() == [expected]


def test_the_command(children, tmp_path):
    def command(*arguments):
        run = [
            sys.executable,
            "-m",
            "utils.open_cxr",
            "--SOURCE",
            "kermany",
            "--OUTPUT",
            str(tmp_path / "tree"),
            *arguments,
        ]
        return subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True)

    done = command("--ROOT", str(children))
    assert done.returncode == 0 and "64 patients, 71 studies, 71 images" in done.stdout, done.stderr
    assert len(read_table(tmp_path / "tree", splits=("train",), views=("AP",))) > 30
    for arguments, message in (
        (("--ROOT", str(tmp_path)), "name that as ROOT"),
        ((), "ROOT is empty"),
        (("--SOURCE", "mimic"), "'mimic' is none of openi, nih, kermany, chexpert"),
    ):
        refused = command(*arguments)
        assert refused.returncode == 1 and message in refused.stderr and refused.stderr.count("\n") == 1
