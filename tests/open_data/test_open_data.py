"""Open sets as they are downloaded => CXR trees: small drawn copies of each layout, bad rows included."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import flags, run_script

from evaluation.labeler import label_report
from open_data import chexpert, kermany, nih, openi
from open_data.tree import PROVENANCE_FILE, make_tree
from training.reports import reported_rows
from utils.constants import REPOSITORY
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.folders import OPEN_TREE, read_manifest
from utils.mimic_cxr import read_table

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


def test_identical_files_join_children_in_chains(children):
    """501 and 502 share a file, and so do 502 and 503: all three are 501, whatever their order."""
    folder = children / "chest_xray/train/PNEUMONIA"
    for key, names in enumerate(
        (("person501_virus_1", "person502_virus_2"), ("person502_virus_3", "person503_virus_4"))
    ):
        draw(folder / f"{names[0]}.jpeg", key=key)
        (folder / f"{names[1]}.jpeg").write_bytes((folder / f"{names[0]}.jpeg").read_bytes())
    table = kermany.read(children)
    assert table["patient"][table["patient_id"].isin([501, 502, 503])].tolist() == [501] * 4


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
    assert "dropped 2 of 72 whose name numbers no child" in said and "person7_virus_1" not in table.index
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


def test_bad_rows_of_kaggles_form(kaggle, tmp_path, capsys):
    edit(kaggle / "indiana_projections.csv", "Lateral", "Oblique")
    edit(kaggle / "indiana_projections.csv", "2,2_IM", "8,2_IM")
    edit(kaggle / "indiana_projections.csv", "6_IM-2192-1001", "cover")
    table, _ = make(tmp_path / "tree", "openi", openi.read, kaggle)
    said = capsys.readouterr().out
    assert "dropped 1 of 12 rows that say neither Frontal nor Lateral, e.g. Oblique" in said
    assert "dropped 1 of 11 whose name" in said and "e.g. cover.dcm.png" in said
    assert "dropped 1 of 10 whose report is not there" in said and len(table) == 9
    edit(kaggle / "indiana_reports.csv", "\n2,", "\n3,")
    with pytest.raises(InputError, match="has 1 repeated rows, e.g. for uid 3; keep one"):
        openi.read(kaggle)
    edit(kaggle / "indiana_reports.csv", "\n3,", "\nthree,")
    with pytest.raises(InputError, match="data row 2: uid 'three'"):
        openi.read(kaggle)


def test_a_caption_tells_the_view_of_a_single_image_only(library, tmp_path):
    name = "CXR3_IM-1384-2001"
    draw(library / f"NLMCXR_png/{name}.png")
    edit(library / "ecgen-radiology/3.xml", "</eCitation>", IMAGE.format(name=name, caption=PORTABLE) + "</eCitation>")
    table, _ = make(tmp_path / "tree", "openi", openi.read, library)
    assert table["view"]["CXR3_IM-1384-1001"] == table["view"][name] == ""


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
    with pytest.raises(InputError, match="there is no .*indiana_projections.csv"):
        openi.read(kaggle)
    for path in (library / "NLMCXR_png").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="none of the 12 images is in .*library"):
        make(tmp_path / "tree", "openi", openi.read, library)
    assert not (tmp_path / "tree").exists()
    for path in (library / "ecgen-radiology").iterdir():
        path.write_text("")
    with pytest.raises(InputError, match="none of the 7 XMLs .* fetch NLMCXR_reports.tgz"):
        openi.read(library)


# ---- ChestX-ray14 --------------------------------------------------------------------------------------------------

ENTRIES = [  # image, labels, follow-up, patient, age, sex, view
    ("00000001_000.png", "Cardiomegaly|Emphysema", 0, 1, 58, "M", "PA"),
    ("00000001_001.png", "Hernia", 1, 1, 58, "M", "AP"),
    ("00000002_000.png", "No Finding", 0, 2, 81, "M", "PA"),
    ("00000003_000.png", "Mass|Nodule|Effusion", 0, 3, 74, "F", "PA"),
    ("00000003_001.png", "Infiltration|Pleural_Thickening", 0, 3, 75, "F", "PA"),
    *((f"{patient:08d}_000.png", "No Finding", 0, patient, 50, "F", "PA") for patient in range(4, 24)),
]
HEADER = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
]
TEST_PATIENTS = (3, 5, 6)


@pytest.fixture
def chestxray14(tmp_path):
    root = tmp_path / "nih"
    for row, (name, *_) in enumerate(ENTRIES):
        draw(root / f"images_{1 + row % 2:03d}" / "images" / name)
    frame = pd.DataFrame(ENTRIES, columns=HEADER).assign(
        **{"OriginalImage[Width": 2682, "Height]": 2749, "Unnamed: 11": ""}
    )
    frame.to_csv(root / "Data_Entry_2017.csv", index=False)
    test = frame["Patient ID"].isin(TEST_PATIENTS)
    (root / "test_list.txt").write_text("\n".join(frame["Image Index"][test]))
    (root / "train_val_list.txt").write_text("\n".join(frame["Image Index"][~test]) + "\n")
    return root


def test_nih(chestxray14, tmp_path, capsys):
    table, provenance = make(tmp_path / "tree", "nih", nih.read, chestxray14)
    found = {name: {column for column in FINDINGS if row[column] == 1} for name, row in table.iterrows()}
    assert found["00000001_000"] == {"Cardiomegaly"} and found["00000001_001"] == set()
    assert found["00000003_000"] == {"Lung Lesion", "Pleural Effusion"}
    assert found["00000003_001"] == {"Lung Opacity", "Pleural Other"} and found["00000002_000"] == {"No Finding"}
    assert table[list(FINDINGS)].isin([0, 1]).all(axis=None)
    assert table["view"]["00000001_001"] == "AP" and table["view"].drop("00000001_001").eq("PA").all()
    assert set(provenance["patient_id"][table["split"] == "test"]) == {str(patient) for patient in TEST_PATIENTS}
    assert set(table["split"]) == {"train", "validate", "test"}
    assert provenance["labels"]["00000001_001"] == "Hernia" and provenance["sex"]["00000003_000"] == "F"
    assert provenance["file"]["00000001_001"] == "images_002/images/00000001_001.png"
    said = capsys.readouterr().out
    assert "25 images of 23 patients; 112120 of 30805 patients were published" in said
    assert "labels: dropped Emphysema of 1, Hernia of 1 images; 1 images have no other label" in said


def test_the_edition_of_2020_and_flat_images(chestxray14, tmp_path):
    one, _ = make(tmp_path / "one", "nih", nih.read, chestxray14)
    frame = pd.read_csv(chestxray14 / "Data_Entry_2017.csv").rename(columns={"Patient Gender": "Patient Sex"})
    frame.drop(columns="Unnamed: 11").to_csv(chestxray14 / "Data_Entry_2017_v2020.csv", index=False)
    (chestxray14 / "Data_Entry_2017.csv").unlink()
    (chestxray14 / "images").mkdir()
    for path in chestxray14.glob("images_*/images/*.png"):
        path.rename(chestxray14 / "images" / path.name)
    other, provenance = make(tmp_path / "other", "nih", nih.read, chestxray14)
    pd.testing.assert_frame_equal(one.drop(columns="image_path"), other.drop(columns="image_path"))
    assert provenance["sex"]["00000003_000"] == "F" and provenance["file"]["00000003_000"] == "images/00000003_000.png"


def test_nih_without_lists_draws_the_test_patients(chestxray14, tmp_path, capsys):
    for path in chestxray14.glob("*_list.txt"):
        path.unlink()
    table, _ = make(tmp_path / "tree", "nih", nih.read, chestxray14)
    assert set(table["split"]) == {"train", "validate", "test"}
    assert "has no train_val_list.txt and no test_list.txt: the test patients are drawn" in capsys.readouterr().out


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TEST_LIST, OTHER_LIST, CSV = "test_list.txt", "train_val_list.txt", "Data_Entry_2017.csv"


def move_to_the_other_list(root):
    edit(root / TEST_LIST, "00000003_001.png", "")
    edit(root / OTHER_LIST, "\n", "\n00000003_001.png\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / TEST_LIST).unlink(), "has train_val_list.txt and no test_list.txt: fetch it"),
        (lambda root: edit(root / OTHER_LIST, "00000002_000.png", "00000003_000.png"), "1 images stand in both"),
        (lambda root: edit(root / CSV, "Hernia", "Hernia|Rickets"), "'Rickets' in Finding Labels"),
        (lambda root: edit(root / CSV, "00000002_000.png", "00000003_002.png"), "data row 3: Image Index"),
        (lambda root: edit(root / CSV, "00000001_001.png", "00000001_000.png"), "stands there twice"),
        (lambda root: edit(root / CSV, "Patient ID", "Patient"), "no column 'Patient ID'"),
        (lambda root: (root / CSV).unlink(), r"no Data_Entry_2017\*.csv\* in it; name the folder"),
        (
            move_to_the_other_list,
            "1 patients have more than one split.*00000003_000.png and .*00000003_001.png; .* mend",
        ),
    ],
)
def test_bad_lists_of_nih_are_one_sentence(chestxray14, tmp_path, damage, message):
    damage(chestxray14)
    with pytest.raises(InputError, match=message):
        make(tmp_path / "tree", "nih", nih.read, chestxray14)
    assert not (tmp_path / "tree").exists()


def test_nih_names_what_it_leaves_out(chestxray14, tmp_path, capsys):
    edit(chestxray14 / "train_val_list.txt", "00000002_000.png", "")
    edit(chestxray14 / "Data_Entry_2017.csv", "M,AP", "M,")
    (chestxray14 / "images_001/images/00000003_001.png").unlink()
    draw(chestxray14 / "images_002/images/00000001_000.png", key=1)
    table, provenance = make(tmp_path / "tree", "nih", nih.read, chestxray14)
    said = capsys.readouterr().out
    assert "dropped 1 of 25 images that stand in no list, e.g. 00000002_000.png" in said
    assert "1 images have a view that is neither PA nor AP" in said and table["view"]["00000001_001"] == ""
    assert "dropped 1 of 24 rows whose image is not there, e.g. images/00000003_001.png" in said
    assert "1 stand in an earlier folder too and are not read, e.g. images_002/images/00000001_000.png" in said
    assert provenance["file"]["00000001_000"] == "images_001/images/00000001_000.png" and len(table) == 23


# ---- CheXpert ------------------------------------------------------------------------------------------------------

FILMS = {  # list => (path below the folder, side, position, codes on disk of its study)
    "train.csv": [
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", {"No Finding": 1.0, "Pneumothorax": 0.0}),
        ("train/patient00002/study1/view1_frontal.jpg", "Frontal", "PA", {"Edema": 1.0, "Pneumonia": -1.0}),
        ("train/patient00002/study1/view2_lateral.jpg", "Lateral", "", {"Edema": 1.0, "Pneumonia": -1.0}),
        ("train/patient00002/study11/view1_frontal.jpg", "Frontal", "LL", {}),
        *((f"train/patient{n:05d}/study1/view1_frontal.jpg", "Frontal", "AP", {"Edema": 1.0}) for n in range(3, 23)),
    ],
    "valid.csv": [("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "AP", dict.fromkeys(FINDINGS, 0.0))],
    "test.csv": [("test/patient64741/study1/view1_frontal.jpg", "", "", dict.fromkeys(FINDINGS, 0.0))],
}


@pytest.fixture
def films(tmp_path):
    root = tmp_path / "CheXpert-v1.0-small"
    for name, rows in FILMS.items():
        frame = pd.DataFrame([codes for *_, codes in rows], columns=sorted(FINDINGS, key=len))
        frame.insert(0, "Path", [f"CheXpert-v1.0-small/{path}" for path, *_ in rows])
        if name != "test.csv":
            sides, positions = zip(*((side, position) for _, side, position, _ in rows))
            frame = frame.assign(**{"Sex": "Female", "Age": 60, "Frontal/Lateral": sides, "AP/PA": positions})
        for path, *_ in rows:
            draw(root / path)
        frame.to_csv(root / name, index=False)
    return root


def test_chexpert(films, tmp_path, capsys):
    table, provenance = make(tmp_path / "tree", "chexpert", chexpert.read, films)
    assert len(table) == 26 and table["subject_id"].nunique() == 24 and table["study_id"].nunique() == 25
    first, second = table.loc["patient00001_study1_view1_frontal"], table.loc["patient00002_study1_view2_lateral"]
    assert (first["No Finding"], first["Pneumothorax"], first["Edema"]) == (1, -1, 0)
    assert (second["Edema"], second["Pneumonia"], second["view"]) == (1, -2, "LATERAL")
    assert table["view"]["patient00002_study1_view1_frontal"] == "PA" and first["view"] == "AP"
    blank = ["patient00002_study11_view1_frontal", "patient64741_study1_view1_frontal"]
    assert (table.loc[blank, "view"] == "").all() and (table["view"] == "").sum() == 2
    assert set(provenance["list"][table["split"] == "test"]) == {"valid.csv", "test.csv"}
    assert set(table["split"][provenance["list"] == "train.csv"]) == {"train", "validate"}
    assert provenance["patient_id"]["patient00001_study1_view1_frontal"] == "patient00001"
    said = capsys.readouterr().out
    assert "24 images; 223414 were published" in said and "1 frontal images are neither PA nor AP" in said
    assert all(os.path.islink(path) for path in table["image_path"])


def test_chexpert_in_batches_and_as_png(films, tmp_path, capsys):
    one, _ = make(tmp_path / "one", "chexpert", chexpert.read, films)
    (films / "test.csv").unlink()
    first = films / "CheXpert-v1.0 batch 1 (validate & csv)"
    first.mkdir()
    for name in ("train.csv", "valid.csv", "valid"):
        (films / name).rename(first / name)
    for number, patients in ((2, "patient0000*"), (3, "patient000[12]*")):
        batch = films / f"CheXpert-v1.0 batch {number} (train {number - 1})"
        batch.mkdir()
        for folder in sorted((films / "train").glob(patients)):
            folder.rename(batch / folder.name)
    jpeg = next(films.glob("*(train 1)/patient00001/study1/*.jpg"))
    draw(jpeg.with_suffix(".png"))
    jpeg.unlink()
    other, provenance = make(tmp_path / "other", "chexpert", chexpert.read, films)
    assert len(other) == 25
    pd.testing.assert_frame_equal(one.loc[other.index].drop(columns="image_path"), other.drop(columns="image_path"))
    file = provenance["file"]["patient00001_study1_view1_frontal"]
    assert file == "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.png"
    said = capsys.readouterr().out
    assert "has no test.csv\n" in said and "1 converted from PNG L" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "train/patient00001",
            "valid/patient64541",
            "1 repeated rows, e.g. for dicom_id patient64541_study1_view1_frontal",
        ),
        ("train/patient00003", "valid/patient64541/study2/x/", "data row 5: Path .* names no image, such as CheXpert"),
        ("patient00003/study1", "patient64741/study2", "1 patients have more than one split, e.g. 64741: .*; mend"),
        ("Edema", "Oedema", "has no column 'Edema'"),
        ("60", "60,7.0", "cannot be read as a CSV: its rows have more cells than its header"),
    ],
)
def test_bad_lists_of_chexpert_are_one_sentence(films, tmp_path, old, new, message):
    edit(films / "train.csv", old, new)
    draw(films / "train/patient64741/study2/view1_frontal.jpg")
    with pytest.raises(InputError, match=message):
        make(tmp_path / "tree", "chexpert", chexpert.read, films)
    assert not (tmp_path / "tree").exists()


def test_a_study_with_two_sets_of_labels_is_refused(films, tmp_path):
    frame = pd.read_csv(films / "train.csv")
    frame.loc[2, "Edema"] = 0.0
    frame.to_csv(films / "train.csv", index=False)
    with pytest.raises(
        InputError, match=r"1 studys? have more than one set of labels, e.g. .*view1_frontal.jpg and .*view2"
    ):
        make(tmp_path / "tree", "chexpert", chexpert.read, films)


def test_chexpert_half_downloaded(films, tmp_path, capsys):
    (films / "valid.csv").unlink()
    (films / "test.csv").unlink()
    for path in (films / "train/patient00005").rglob("*.jpg"):
        path.unlink()
    table, _ = make(tmp_path / "tree", "chexpert", chexpert.read, films)
    said = capsys.readouterr().out
    assert "has no valid.csv and no test.csv; the test patients are drawn" in said and "test" in set(table["split"])
    assert "dropped 1 of 24 rows whose image is not there, e.g. train/patient00005/study1/view1_frontal.jpg" in said


# ---- what all sources share ----------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_adds_what_came(children, tmp_path):
    root, late = tmp_path / "tree", children / "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg"
    picture = late.read_bytes()
    late.unlink()
    before, _ = make(root, "kermany", kermany.read, children)
    first = contents(root)
    make(root, "kermany", kermany.read, children)
    assert contents(root) == first
    late.write_bytes(picture)
    after, provenance = make(root, "kermany", kermany.read, children)
    assert set(after.index) - set(before.index) == {"person1_bacteria_1"} == set(provenance.index) - set(before.index)
    columns = ["subject_id", "study_id", "split"]  # which depend on nothing else in the download
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
    root = tmp_path / "tree"
    make(root, "kermany", kermany.read, children)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="seed = 1.* 2; set OUTPUT"):
        make(root, "kermany", kermany.read, children, seed=2)
    with pytest.raises(InputError, match=r"manifest.json.*OUTPUT"):
        make(children, "kermany", kermany.read, children)
    with pytest.raises(InputError, match="lies inside the CXR tree"):
        make(root / "files" / "p99", "kermany", kermany.read, children)
    assert contents(tmp_path) == before
    assert read_manifest(root)[OPEN_TREE]["source"] == "kermany"


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
    with pytest.raises(InputError, match="has no image whose name numbers a child"):
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


@pytest.mark.parametrize(
    ("folder", "source", "view", "count", "finding", "values"),
    [
        ("children", kermany, "AP", 71, "Pneumonia", {0.0, 1.0}),
        ("library", openi, "PA", 3, "Edema", {0.0, np.nan}),
        ("chestxray14", nih, "PA", 24, "Effusion", {0.0, 1.0, np.nan}),  # 0.0: of No Finding, by their rule
        ("films", chexpert, "AP", 22, "Pneumothorax", {0.0, np.nan}),
    ],
)
def test_torchxrayvision_reads_an_open_tree(request, tmp_path, folder, source, view, count, finding, values):
    datasets = pytest.importorskip("torchxrayvision.datasets")
    root = tmp_path / "tree"
    make(root, source.__name__.removeprefix("open_data."), source.read, request.getfixturevalue(folder))
    dataset = datasets.MIMIC_Dataset(
        imgpath=str(root / "files"),
        csvpath=str(root / "mimic-cxr-2.0.0-chexpert.csv.gz"),
        metacsvpath=str(root / "mimic-cxr-2.0.0-metadata.csv.gz"),
        views=[view],
        unique_patients=False,
    )
    assert len(dataset) == count and {dataset[row]["img"].shape for row in range(count)} == {(1, 48, 40)}
    assert set(map(str, dataset.labels[:, dataset.pathologies.index(finding)])) == set(map(str, values))


def test_a_tree_without_reports_trains_and_samples_images(children, tmp_path, config, capfd):
    root, run = tmp_path / "tree", tmp_path / "run"
    make(root, "kermany", kermany.read, children)
    constants = {"DATA_ROOT": root, "CACHE_DIR": tmp_path / "cache", "RUN_DIR": run, "MAX_STEPS": 2}
    assert run_script("train_diffusion_clipUViT", "--config", config, *flags(**constants)) == 0
    constants = {"CHECKPOINT": run / "best", "OUTPUT_ROOT": tmp_path / "made", "SPLIT": "test", "MAX_LABELS": 2}
    assert run_script("sample_diffusion_clipUViT", "--config", config, *flags(DATA_ROOT=root, **constants)) == 0
    made = read_table(tmp_path / "made")
    assert len(made) == 2 and set(made["Pneumonia"]) <= {1, -1}
    refused = run_script("train_bart", "--config", config, *flags(DATA_ROOT=root, RUN_DIR=tmp_path / "bart"))
    assert "REPORTS_ROOT" in refused and "0 of 71 studies have one" in capfd.readouterr().out
    with pytest.raises(InputError, match="REPORTS_ROOT"):
        reported_rows(read_table(root))


def test_the_command(children, tmp_path):
    fixed = ["--SOURCE", "kermany", "--OUTPUT", str(tmp_path / "tree")]
    command = [sys.executable, "-m", "open_data", *fixed, "--ROOT", str(children)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "64 patients, 71 studies, 71 images" in done.stdout, done.stderr
    assert len(read_table(tmp_path / "tree", splits=("train",), views=("AP",))) > 30
    for arguments, message in (
        (("--ROOT", str(tmp_path)), "name that as ROOT"),
        ((), "ROOT is empty"),
        (("--SOURCE", "mimic"), "'mimic' is none of openi, nih, kermany, chexpert"),
    ):
        refused = run_script("open_data/__main__", *fixed, *arguments)
        assert message in refused and "\n" not in refused
