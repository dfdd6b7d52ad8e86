"""The drawn tree: determinism, layout, and agreement of pictures, labels and reports."""

import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import phantom
from utils import findings as cxr
from utils.errors import InputError
from utils.mimic_cxr import read_table

SEED, STUDIES, IMAGE_SIZE = 7, 320, 32
PATHOLOGIES = [name for name in cxr.FINDINGS if name != "No Finding"]
KEYWORDS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Enlarged Cardiomediastinum": "mediastinum",
    "Fracture": "fracture",
    "Lung Lesion": "nodule|mass",
    "Lung Opacity": "opacity",
    "Pleural Effusion": "effusion",
    "Pleural Other": "thickening|plaque",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Support Devices": "device|pacemaker|tube|central line",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    phantom.draw_tree(root, studies=STUDIES, image_size=IMAGE_SIZE, seed=SEED)
    return root


def read(root, name):
    return pd.read_csv(root / f"mimic-cxr-2.0.0-{name}.csv.gz", dtype={"dicom_id": str})


def digests(root):
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def plain(name, kind="", side="right", zone="mid", extent=0.5):
    return phantom.Finding(name, side, zone, kind, extent, 1.0, 3)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for folder, seed in (("first", 1), ("again", 1), ("other", 2)):
        phantom.draw_tree(tmp_path / folder, studies=12, image_size=IMAGE_SIZE, seed=seed)
    first, again, other = (digests(tmp_path / folder) for folder in ("first", "again", "other"))
    assert first == again
    assert not {path for path in first if path.endswith(".jpg")} & set(other)
    assert not set(first.values()) & set(other.values())


def test_several_processes_draw_the_same_bytes(tree, tmp_path):
    phantom.draw_tree(tmp_path, studies=STUDIES, image_size=IMAGE_SIZE, seed=SEED, processes=2)
    assert digests(tmp_path) == digests(tree)


def test_a_larger_tree_holds_the_files_of_a_smaller_one(tree, tmp_path):
    phantom.draw_tree(tmp_path, studies=9, image_size=IMAGE_SIZE, seed=SEED)
    small, large = digests(tmp_path), digests(tree)
    files = [path for path in small if path.startswith("files")]
    assert len(files) > 9
    assert all(large[path] == small[path] for path in files)


def test_patients_with_four_studies_have_those_that_they_have_without(tree, tmp_path):
    phantom.draw_tree(tmp_path, studies=16, image_size=IMAGE_SIZE, seed=SEED, studies_per_patient=4)
    four, drawn = digests(tmp_path), digests(tree)
    patients = {path.split("/")[2] for path in four if path.startswith("files")}
    known = [path for path in drawn if path.startswith("files") and path.split("/")[2] in patients]
    assert len(patients) == 4 and known and all(four[path] == drawn[path] for path in known)
    assert read_table(tmp_path).groupby("subject_id")["study_id"].nunique().eq(4).all()


def test_layout_and_columns_are_those_of_physionet(tree):
    metadata, chexpert, split = (read(tree, name) for name in ("metadata", "chexpert", "split"))
    assert list(chexpert) == ["subject_id", "study_id", *cxr.FINDINGS]
    assert list(split) == ["dicom_id", "study_id", "subject_id", "split"]
    assert list(metadata) == [
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
        "StudyDate",
        "StudyTime",
        "ProcedureCodeSequence_CodeMeaning",
        "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ]
    assert len(chexpert) == STUDIES and chexpert["study_id"].is_unique
    assert metadata["dicom_id"].is_unique and set(metadata["dicom_id"]) == set(split["dicom_id"])
    assert metadata["dicom_id"].str.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}").all()
    assert set(metadata["study_id"]) == set(chexpert["study_id"])
    for row in metadata.itertuples():
        study = tree / "files" / f"p{str(row.subject_id)[:2]}" / f"p{row.subject_id}" / f"s{row.study_id}"
        assert study.with_suffix(".txt").is_file()
        with Image.open(study / f"{row.dicom_id}.jpg") as image:
            assert image.mode == "L" and image.size == (row.Columns, row.Rows) == (IMAGE_SIZE, IMAGE_SIZE)
    assert len(list(tree.rglob("*.jpg"))) == len(metadata)


def test_groups_splits_patients_and_views(tree):
    metadata, split = read(tree, "metadata"), read(tree, "split")
    groups = split.drop_duplicates("subject_id")["subject_id"].astype(str).str[:2].value_counts()
    assert sorted(groups.index) == [str(group) for group in range(10, 20)]
    assert groups.max() - groups.min() <= 1
    assert set(split["split"]) == {"train", "validate", "test"}
    assert (split.groupby("subject_id")["split"].nunique() == 1).all()
    assert set(metadata["ViewPosition"]) == {"PA", "AP"}
    assert metadata.groupby("subject_id").size().max() >= 3
    assert metadata.groupby("subject_id")["study_id"].nunique().max() >= 3


def test_the_splits_hold_80_8_and_12_percent_of_every_25_patients_of_a_group():
    for group in range(10):
        places = [phantom.tree._studies_of(10 * number + group, SEED)[0]["split"] for number in range(25)]
        assert [places.count(name) for name in ("train", "validate", "test")] == [20, 2, 3]


def test_every_finding_is_present_negated_and_uncertain_somewhere(tree):
    chexpert = read(tree, "chexpert")
    for name in PATHOLOGIES:
        assert {1.0, 0.0, -1.0} == set(chexpert[name].dropna()), name
    assert 0.15 < (chexpert["No Finding"] == 1).mean() < 0.4


def test_no_finding_is_present_only_beside_support_devices(tree):
    chexpert = read(tree, "chexpert")
    others = chexpert[[name for name in PATHOLOGIES if name != "Support Devices"]]
    nothing_else = ~others.isin([1.0, -1.0]).any(axis=1) & (chexpert["Support Devices"] != -1.0)
    assert (chexpert["No Finding"].eq(1.0) == nothing_else).all()
    assert set(chexpert["No Finding"].dropna()) == {1.0}


def labels_by_keyword(report):
    """What a reader of keywords makes of a report: name => 1.0, 0.0 or -1.0; contradictions stay as sets of several."""
    said = {}
    body = report.split("FINDINGS:")[1].lower()
    for sentence in re.split(r"[.:\n]", body):
        uncertain = re.search(r"possible|cannot be excluded|may be", sentence)
        negated = re.search(r"\bno\b", sentence)
        label = -1.0 if uncertain else 0.0 if negated else 1.0
        for name, words in KEYWORDS.items():
            if re.search(words, sentence):
                said.setdefault(name, set()).add(label)
    return said


def test_reports_say_exactly_what_the_labels_say(tree):
    chexpert = read(tree, "chexpert").set_index("study_id")
    reports = {int(path.stem[1:]): path.read_text() for path in tree.rglob("s*.txt")}
    assert set(reports) == set(chexpert.index)
    for study_id, report in reports.items():
        expected = {name: {chexpert.loc[study_id, name]} for name in PATHOLOGIES}
        expected = {name: label for name, label in expected.items() if not np.isnan([*label]).any()}
        assert labels_by_keyword(report) == expected, report


def test_reports_have_mimic_headings_few_words_and_varied_wording(tree):
    reports = [path.read_text() for path in tree.rglob("s*.txt")]
    for report in reports:
        assert re.match(r" +FINAL REPORT\n", report)
        findings, impression = report.split("FINDINGS:")[1].split("IMPRESSION:")
        assert 3 <= findings.count(".") <= 8 and impression.strip()
    assert any("___" in report for report in reports)
    words = set(re.findall(r"[a-z]+", " ".join(reports).lower()))
    assert len(words) < 400
    assert len({report.split("FINDINGS:")[1] for report in reports}) > 0.9 * len(reports)


def test_reports_state_side_zone_and_degree_as_drawn():
    labels = np.zeros(len(cxr.FINDINGS), dtype=np.int8)
    labels[cxr.finding_index("Pleural Effusion")] = labels[cxr.finding_index("Consolidation")] = cxr.PRESENT
    drawn = [
        plain("Pleural Effusion", side="left", zone="lower", extent=0.9),
        plain("Consolidation", side="right", zone="upper", extent=0.1),
    ]
    report = phantom.write_report(drawn, labels, np.random.default_rng(0)).lower()
    assert report.count("large left pleural effusion") == 2  # in FINDINGS and in IMPRESSION
    assert report.count("small consolidation in the right upper lung") == 2


LOOKS = {
    "Fracture": ("rib", "clavicle"),
    "Pleural Other": ("thickening", "cap", "plaque"),
    "Support Devices": ("pacemaker", "lines"),
}


@pytest.mark.parametrize(
    ("name", "kind", "side"),
    [
        (name, kind, side)
        for name in PATHOLOGIES
        for kind in LOOKS.get(name, ("",))
        for side in (
            ("both",) if name in ("Cardiomegaly", "Edema", "Enlarged Cardiomediastinum") else ("right", "left")
        )
    ],
)
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_each_finding_changes_the_picture_visibly_and_on_its_side(name, kind, side, view):
    anatomy = phantom.random_anatomy(np.random.default_rng(5))
    without = phantom.draw_chest(anatomy, [], view, 64, seed=11)
    with_it = phantom.draw_chest(anatomy, [plain(name, kind, side)], view, 64, seed=11)
    change = np.abs(with_it - without)
    region = np.sort(change.ravel())[-12:]  # the area of the smallest nodule
    assert region.mean() > 0.12
    halves = {"right": change[:, :32].sum(), "left": change[:, 32:].sum()}
    if side in halves and name != "Support Devices":
        assert halves[side] > 4 * (sum(halves.values()) - halves[side])


def test_an_uncertain_finding_is_fainter_than_a_present_one():
    anatomy = phantom.random_anatomy(np.random.default_rng(5))
    without = phantom.draw_chest(anatomy, [], "PA", 64, seed=11)
    plainly = plain("Consolidation")
    faint = phantom.Finding("Consolidation", "right", "mid", "", 0.5, 0.25, 3)
    changes = [np.abs(phantom.draw_chest(anatomy, [f], "PA", 64, 11) - without).sum() for f in (faint, plainly)]
    assert 0 < changes[0] < 0.6 * changes[1]


def test_a_wide_heart_is_wider_than_any_normal_one():
    for number in range(5):
        anatomy = phantom.random_anatomy(np.random.default_rng(number))
        for view in ("PA", "AP"):
            normal = phantom.drawing._in_view(anatomy, {}, view).heart_ratio
            wide = phantom.drawing._in_view(
                anatomy, {"Cardiomegaly": plain("Cardiomegaly", extent=0.0)}, view
            ).heart_ratio
            assert normal < 0.49 and wide > 0.55


def test_the_picture_looks_like_a_chest():
    for number in range(4):
        anatomy = phantom.random_anatomy(np.random.default_rng(number))
        image = phantom.draw_chest(anatomy, [], "PA", 64, seed=number)
        assert image.shape == (64, 64) and image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
        right_lung, left_lung, spine, abdomen = image[28, 16], image[28, 48], image[28, 31], image[58, 24]
        assert max(right_lung, left_lung) + 0.2 < min(spine, abdomen)
        assert image[2, 2] < 0.15  # air beside the neck


def test_random_chests_repeat_and_vary():
    image, labels, report = phantom.random_chest(np.random.default_rng(3), 64)
    again = phantom.random_chest(np.random.default_rng(3), 64)
    assert image.shape == (64, 64) and image.dtype == np.uint8 and labels.shape == (14,) and labels.dtype == np.int8
    assert (image == again[0]).all() and (labels == again[1]).all() and report == again[2]
    assert (image != phantom.random_chest(np.random.default_rng(4), 64)[0]).any()


def test_what_cannot_be_drawn_is_refused_in_one_sentence(tmp_path):
    anatomy = phantom.random_anatomy(np.random.default_rng(0))
    with pytest.raises(InputError, match="LATERAL"):
        phantom.draw_chest(anatomy, [], "LATERAL", 64, seed=0)
    with pytest.raises(InputError, match="0 studies"):
        phantom.draw_tree(tmp_path, studies=0)
