import gzip
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_data import CANONICAL, REPORT

from phantom import draw_tree
from utils import mimic_cxr
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import ONE_STUDY, image_file, read_table, write_tree

KINDS = ("metadata", "chexpert", "split")


def make_rows():
    """Five images of four studies of four patients, in no sorted order."""
    rows = pd.DataFrame(
        [
            ("d5", 19000005, 50000005, "PA", "train"),
            ("d1", 10000001, 50000001, "PA", "train"),
            ("d2", 10000001, 50000001, "LATERAL", "train"),
            ("d3", 11000003, 50000003, "AP", "validate"),
            ("d4", 12000004, 50000004, "PA", "test"),
        ],
        columns=["dicom_id", "subject_id", "study_id", "view", "split"],
    )
    rows["report"] = CANONICAL
    labels = np.random.default_rng(0).choice([1, -1, -2, 0], (5, len(FINDINGS))).astype(np.int8)
    labels[2] = labels[1]
    return pd.concat([rows, pd.DataFrame(labels, columns=list(FINDINGS))], axis=1)


def draw_images(root, rows, size=(8, 6)):
    for row in rows.itertuples():
        path = image_file(root, row.subject_id, row.study_id, row.dicom_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 99).save(path)


@pytest.fixture
def rows():
    return make_rows()


@pytest.fixture
def tree(tmp_path, rows):
    """The rows as a tree written by hand, in PhysioNet's coding, plain CSVs."""
    root = tmp_path / "tree"
    draw_images(root, rows)
    for subject, study in {(row.subject_id, row.study_id) for row in rows.itertuples()}:
        (root / f"files/p{str(subject)[:2]}/p{subject}/s{study}.txt").write_text(REPORT)
    rows.rename(columns={"view": "ViewPosition"})[["dicom_id", "subject_id", "study_id", "ViewPosition"]].to_csv(
        root / "mimic-cxr-2.1.0-metadata.csv", index=False
    )
    rows[["dicom_id", "study_id", "subject_id", "split"]].to_csv(root / "mimic-cxr-2.0.0-split.csv", index=False)
    words = {1: "1.0", -1: "0.0", -2: "-1.0", 0: ""}
    lines = [",".join(["subject_id", "study_id", *FINDINGS])]
    for _, row in rows.drop_duplicates("study_id").iterrows():
        lines.append(",".join([str(row.subject_id), str(row.study_id), *(words[row[name]] for name in FINDINGS)]))
    (root / "mimic-cxr-2.0.0-chexpert.csv").write_text("\n".join(lines) + "\n")
    return root


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# ---- reading


def test_table_is_the_rows_in_their_order(tree, rows):
    table = read_table(tree)
    assert list(table.columns) == list(mimic_cxr.TABLE_COLUMNS)
    pd.testing.assert_frame_equal(table.drop(columns="image_path"), rows, check_dtype=False)
    assert (table[list(FINDINGS)].dtypes == np.int8).all()
    assert table["image_path"][0] == str(image_file(tree, 19000005, 50000005, "d5"))


def test_gzipped_csvs(tree):
    expected = read_table(tree)
    for path in tree.glob("*.csv"):
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()
    pd.testing.assert_frame_equal(read_table(tree), expected)


def test_filters_keep_and_say_what_they_drop(tree, capsys):
    table = read_table(tree, views=("PA",), splits=("train",))
    assert table["dicom_id"].tolist() == ["d5", "d1"]
    printed = capsys.readouterr().out
    assert "views PA: 3 of 5 images kept (2 of other views dropped: 1 LATERAL, 1 AP)" in printed
    assert "splits train: 2 of 3 images kept (1 of other splits dropped: 1 test)" in printed


def test_hold_out_moves_patients_to_test(tree, capsys):
    table = read_table(tree, hold_out=("p19", "p12"))
    assert dict(zip(table["dicom_id"], table["split"])) == {
        "d5": "test", "d1": "train", "d2": "train", "d3": "validate", "d4": "test"
    }  # fmt: skip
    assert "hold-out p19, p12: 2 images are test, 1 of them moved there" in capsys.readouterr().out
    assert read_table(tree, hold_out=("p19",), splits=("train",))["dicom_id"].tolist() == ["d1", "d2"]


def test_one_study_of_each_patient_who_has_several_is_left_out(tmp_path, capsys):
    draw_tree(tmp_path, studies=9, image_size=32, seed=3, studies_per_patient=4)
    whole, kept = (read_table(tmp_path, hold_out=groups) for groups in ((), (ONE_STUDY, "p10")))
    last = whole.groupby("subject_id")["study_id"].max()  # two patients of four studies, the third has one
    left_out = whole[~whole["dicom_id"].isin(kept["dicom_id"])]
    assert {*left_out["study_id"]} == {*last.iloc[:2]} and {*kept["study_id"]} == {*whole["study_id"]} - {
        *last.iloc[:2]
    }
    assert f"hold-out one study: {len(kept)} of {len(whole)} images kept" in capsys.readouterr().out
    assert (kept.loc[kept["subject_id"] // 1_000_000 == 10, "split"] == "test").all()


def test_only_the_first_process_prints(tree, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    read_table(tree, views=("PA",))
    assert capsys.readouterr().out == ""


def test_absent_image_is_dropped_and_named(tree, capsys):
    gone = image_file(tree, 11000003, 50000003, "d3")
    gone.unlink()
    assert "d3" not in read_table(tree)["dicom_id"].tolist()
    assert f"dropped 1 of 5 rows whose image is not on disk, e.g. {gone}" in capsys.readouterr().out
    assert len(read_table(tree, check_images=False)) == 5


def test_study_without_labels_or_split_is_dropped_and_counted(tree, capsys):
    lines = (tree / "mimic-cxr-2.0.0-chexpert.csv").read_text().splitlines()
    (tree / "mimic-cxr-2.0.0-chexpert.csv").write_text(
        "\n".join(line for line in lines if not line.startswith("10000001,")) + "\n"
    )
    change(tree / "mimic-cxr-2.0.0-split.csv", "d4,50000004,12000004,test\n", "")
    assert read_table(tree)["dicom_id"].tolist() == ["d5", "d3"]
    printed = capsys.readouterr().out
    assert "labels: 3 of 5 images kept (2 of studies not in mimic-cxr-2.0.0-chexpert.csv dropped)" in printed
    assert "splits: 2 of 3 images kept (1 not in mimic-cxr-2.0.0-split.csv dropped)" in printed


@pytest.mark.parametrize("place", ["second root", "groups", "zip", "zip's folder", "zip in the tree"])
def test_reports_elsewhere(tree, tmp_path, place):
    other = tmp_path / "reports"
    files = other / ("" if place == "groups" else "files")
    for path in list(tree.glob("files/**/*.txt")):
        target = files / path.relative_to(tree / "files")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    reports_root = other
    if "zip" in place:
        folder = tree if place == "zip in the tree" else tmp_path
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
            for path in other.glob("files/**/*.txt"):
                archive.write(path, path.relative_to(other))
        reports_root = {"zip": tmp_path / "mimic-cxr-reports.zip", "zip's folder": tmp_path, "zip in the tree": ""}[
            place
        ]
    assert read_table(tree, reports_root)["report"].tolist() == [CANONICAL] * 5


def test_absent_reports_are_blank_and_counted(tree, capsys):
    (tree / "files/p11/p11000003/s50000003.txt").unlink()
    (tree / "files/p12/p12000004/s50000004.txt").write_text(" FINAL REPORT\n INDICATION: cough.\n")
    assert read_table(tree)["report"].tolist() == [CANONICAL] * 3 + ["", ""]
    assert "reports: 2 of 4 studies have one (1 without a file" in capsys.readouterr().out
    assert (read_table(tree, with_reports=False)["report"] == "").all()


def test_report_bytes_that_are_not_text(tree):
    (tree / "files/p12/p12000004/s50000004.txt").write_bytes(b" FINDINGS: a\x00b caf\xe9.\r\n")
    assert read_table(tree)["report"].iloc[4] == "FINDINGS: ab caf\ufffd."


# ---- bad input: one sentence that names it


def test_no_such_root(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_table(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"there is no .*nothing.csv"):
        read_table(tmp_path / "nothing.csv")


def test_missing_csvs_are_named(tree):
    for kind in ("metadata", "split"):
        next(tree.glob(f"*{kind}.csv")).unlink()
    expected = r"is not a CXR tree: there is no mimic-cxr-2\.\*-metadata\.csv\[\.gz\] and no mimic-cxr-2\.\*-split"
    with pytest.raises(InputError, match=expected):
        read_table(tree)


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("metadata", "ViewPosition", "View", "metadata.csv has no column 'ViewPosition'"),
        ("chexpert", "Edema", "Oedema", "chexpert.csv has no column 'Edema'"),
        ("split", "split", "part", "split.csv has no column 'split'"),
        ("split", "validate", "valid", "data row 4: unknown split 'valid'"),
        ("metadata", "d2,", "d1,", "repeated rows, e.g. for dicom_id d1"),
        ("metadata", "11000003", "abc", "data row 4: subject_id 'abc' is not a whole number"),
        ("metadata", "11000003", "", "data row 4: subject_id 'nan' is not a whole number"),
        ("chexpert", "19000005,50000005,", "19000005,50000005,7", "data row 1, column 'Atelectasis'"),
        ("chexpert", "11000003,50000003", "10000001,50000001", "subject_id 10000001, study_id 50000001"),
    ],
)
def test_bad_cell_is_named(tree, kind, old, new, message):
    change(next(tree.glob(f"*{kind}.csv")), old, new)
    with pytest.raises(InputError, match=message):
        read_table(tree)


def test_damaged_files(tree):
    path = tree / "mimic-cxr-2.0.0-split.csv"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    (tree / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"split.csv.gz cannot be read"):
        read_table(tree)


def test_damaged_zip(tree, tmp_path):
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match=r"mimic-cxr-reports.zip cannot be read as a zip file"):
        read_table(tree, tmp_path)
    with pytest.raises(InputError, match="REPORTS_ROOT"):
        read_table(tree, tmp_path / "nowhere")


def test_nothing_left(tree):
    with pytest.raises(InputError, match=r"views LL: empty.*3 PA, 1 LATERAL, 1 AP"):
        read_table(tree, views=("LL",))
    with pytest.raises(InputError, match=r"splits validate: empty.*2 train, 1 test"):
        read_table(tree, views=("PA",), splits=("validate",))
    with pytest.raises(InputError, match=r"splits val: empty.*1 validate"):
        read_table(tree, splits=("val",))
    with pytest.raises(InputError, match="'19' in hold_out is not a patient group"):
        read_table(tree, hold_out=("19",))
    for path in tree.glob("files/**/*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match="none of the 5 images is on disk"):
        read_table(tree)


# ---- the authors' CSV


@pytest.fixture
def authors_csv(tree, rows):
    path = tree / "mimic.csv"
    paths = [image_file("", row.subject_id, row.study_id, row.dicom_id) for row in rows.itertuples()]
    pd.DataFrame(
        {
            "label": [str(labels) for labels in rows[list(FINDINGS)].values.tolist()],
            "ViewPosition": rows["view"],
            "split": rows["split"],
            "image_path": paths,
            "text": REPORT,
        }
    ).to_csv(path, index=False)
    return path


def test_authors_csv_gives_the_table_of_the_tree(tree, authors_csv):
    pd.testing.assert_frame_equal(read_table(authors_csv, views=("PA",)), read_table(tree, views=("PA",)))
    assert (read_table(authors_csv, with_reports=False)["report"] == "").all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("files/p11", "../p11", "data row 4: image_path .* has to lie in the CSV"),
        ("s50000003/d3", "d3", "data row 4: image_path .*to end like p10000032"),
        (",validate,", ",val,", "data row 4: unknown split 'val'"),
        ("image_path", "path", "has no column 'image_path'"),
        ('"[', '"[5, ', r"data row 1: label '\[5, .* is no list of 14 codes"),
        ('"[', '"[[', "data row 1: label .* is no list of 14 codes"),
        ("p11000003", f"p{'1' * 30}", "data row 4: subject_id '1{30}' is not a whole number from 1 to"),
        ("s50000003/d3", "s50000003/.d3", "data row 4: dicom_id '.d3' cannot name an image's file"),
        ("p11000003", "p10000001", r"1 subject_ids have more than one split, e\.g\. 10000001: train and validate"),
        ("s50000003", "s50000001", r"1 study_ids have more than one label, e\.g\. 50000001: d\d and d\d"),
    ],
)
def test_bad_authors_csv(authors_csv, old, new, message):
    change(authors_csv, old, new)
    with pytest.raises(InputError, match=message):
        read_table(authors_csv)


@pytest.mark.parametrize(
    ("kind", "column", "value", "message"),
    [
        ("metadata", "dicom_id", "../../../../../victim/secret/x", "row 4: dicom_id '../.*' cannot name an image"),
        ("metadata", "dicom_id", "x" * 101, "row 4: dicom_id .* cannot name an image"),
        ("metadata", "subject_id", "1" * 30, "row 4: subject_id '1{30}' is not a whole number from 1 to"),
        ("metadata", "study_id", "5.5", "row 4: study_id '5.5' is not a whole number"),
        ("chexpert", "subject_id", "0", "row 4: subject_id '0' is not a whole number from 1 to"),
    ],
)
def test_ids_that_could_name_another_place(tree, kind, column, value, message):
    path = next(tree.glob(f"*-{kind}.csv"))
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.loc[3, column] = value
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=f"data {message}"):
        read_table(tree)


def test_a_patient_in_two_splits(tree):
    change(tree / "mimic-cxr-2.0.0-split.csv", "d2,50000001,10000001,train", "d2,50000001,10000001,test")
    message = r"1 subject_ids have more than one split, e\.g\. 10000001: train and test; .* give each patient one split"
    with pytest.raises(InputError, match=message):
        read_table(tree, views=("PA",))  # also where the filters would hide it
    assert len(read_table(tree, hold_out=("p10",))) == 5  # a held-out patient is in one split


def test_a_study_of_two_patients(tree):
    for path in tree.glob("*.csv"):
        path.write_text(path.read_text().replace("50000003", "50000001"))
    with pytest.raises(InputError, match=r"1 study_ids have more than one patient, e\.g\. 50000001: .*10000001"):
        read_table(tree, check_images=False)


def test_a_report_that_cannot_be_read(tree):
    path = tree / "files/p11/p11000003/s50000003.txt"
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"s50000003.txt .*repair it"):
        read_table(tree)
    assert len(read_table(tree, with_reports=False)) == 5


@pytest.mark.parametrize(("flags", "method"), [(1, 8), (0, 97), (0, 14)])  # encrypted; unknown compression; damaged
def test_a_report_in_a_zip_that_cannot_be_read(tree, flags, method):
    path = tree / "files/p11/p11000003/s50000003.txt"
    archive = tree / mimic_cxr.REPORTS_ARCHIVE
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("files/p11/p11000003/s50000003.txt", path.read_text())
    path.unlink()
    raw = bytearray(archive.read_bytes())
    central = raw.index(b"PK\x01\x02")
    for start in (6, central + 8):  # flags, then method, of the local and of the central header
        raw[start], raw[start + 2] = flags, method
    archive.write_bytes(raw)
    with pytest.raises(InputError, match=r"s50000003.txt in .*cannot be read .*unpack its zip"):
        read_table(tree)


def edit(path, change):
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(frame)
    frame.to_csv(path, index=False)


def test_authors_paths_as_they_are(tree, authors_csv, capsys):
    expected = read_table(authors_csv)

    def as_published(frame):
        frame["image_path"] = "/" + frame["image_path"].str.replace(".jpg", ".dcm")

    edit(authors_csv, as_published)
    pd.testing.assert_frame_equal(read_table(authors_csv), expected)
    Path(expected["image_path"][1]).unlink()
    capsys.readouterr()
    assert len(read_table(authors_csv)) == 4
    assert re.search(r"dropped 1 of 5 rows whose image is not on disk, e\.g\. \S+d1\.jpg\n", capsys.readouterr().out)


@pytest.mark.parametrize("root", ["tree", "authors_csv"])
def test_a_dicom_file_is_read_where_there_is_no_jpeg(request, tree, root, capsys):
    root = request.getfixturevalue(root)
    paths = [Path(path) for path in read_table(root)["image_path"]]
    (paths[0].with_suffix(".dcm")).write_bytes(b"")
    for path in paths[1:3]:
        path.rename(path.with_suffix(".dcm"))
    capsys.readouterr()
    found = [Path(path) for path in read_table(root)["image_path"]]
    assert found == [paths[0], *(path.with_suffix(".dcm") for path in paths[1:3]), *paths[3:]]
    assert re.search("2 of 5 are DICOM files.*histogram-equalised", capsys.readouterr().out)
    for path in (paths[0], *paths[3:]):
        path.rename(path.with_suffix(".dcm"))
    assert len(read_table(root)) == 5
    printed = capsys.readouterr().out
    assert "5 of 5 are DICOM files" in printed and "equalised" not in printed


# ---- two codings of labels


def in_authors_codes(tree, rows, codes):
    """Writes codes as they are into the tree's CSV of labels."""
    path = tree / "mimic-cxr-2.0.0-chexpert.csv"
    frame = rows.drop_duplicates("study_id")[["subject_id", "study_id"]]
    pd.concat([frame, pd.DataFrame(codes, frame.index, list(FINDINGS))], axis=1).to_csv(path, index=False)
    return path


def test_labels_in_one_of_two_codings_are_asked_for(tree, rows):
    codes = np.random.default_rng(1).choice([1, 0, -1], (4, len(FINDINGS)))
    path = in_authors_codes(tree, rows, codes)
    with pytest.raises(InputError, match=r"chexpert\.csv .*coding.*physionet.*authors"):
        read_table(tree)
    labels = {}
    for coding in ("authors", "PhysioNet"):
        edit(path, lambda frame, coding=coding: frame.insert(0, "coding", coding) if coding == "authors" else
             frame.update(pd.DataFrame({"coding": [coding] * 4})))  # fmt: skip
        labels[coding] = read_table(tree).drop_duplicates("study_id")[list(FINDINGS)].to_numpy()
    assert (labels["authors"] == codes).all()
    assert (labels["PhysioNet"] == np.select([codes == 0, codes == -1], [-1, -2], codes)).all()
    edit(path, lambda frame: frame.update(pd.DataFrame({"coding": ["mine"]})))
    with pytest.raises(InputError, match=r"coding has mine"):
        read_table(tree)


def test_labels_in_one_coding_are_read_without_a_question(tree, rows):
    filled = np.ones((4, len(FINDINGS)), dtype=int)
    for other, code in ((0, -1), (1, 1)):  # radiologists' labels, say, are 1 and 0 throughout
        codes = filled.copy()
        codes[0, 0] = other
        in_authors_codes(tree, rows, codes)
        assert read_table(tree).iloc[0]["Atelectasis"] == code
    codes[:, 1] = -2
    in_authors_codes(tree, rows, codes)
    with pytest.raises(InputError, match=r"column 'Cardiomegaly': '-2' is not a label.*coding"):
        read_table(tree)


def test_authors_rows_with_a_blank(authors_csv, capsys):
    def blanks(frame):
        frame.loc[0, "label"], frame.loc[1, "image_path"], frame.loc[2, ["split", "image_path"]] = "", "  ", ""

    whole = read_table(authors_csv)
    edit(authors_csv, blanks)
    capsys.readouterr()
    pd.testing.assert_frame_equal(read_table(authors_csv), whole.iloc[3:].reset_index(drop=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert len(lines) == 1 and re.search(r"2 of 5 rows kept \((\d without [a-z_]+(, | dropped\))){3}$", lines[0])
    for column in ("label", "split", "image_path"):
        assert f"1 without {column}" in lines[0]

    change(authors_csv, "s50000004/", "")  # rows keep their numbers
    with pytest.raises(InputError, match="data row 5: image_path"):
        read_table(authors_csv)
    edit(authors_csv, lambda frame: frame.update(pd.DataFrame({"label": [" "] * 5})))
    with pytest.raises(InputError, match=r"mimic\.csv has no rows"):
        read_table(authors_csv)


def test_authors_reports_that_are_none(authors_csv, capsys):
    edit(authors_csv, lambda frame: frame.update(pd.DataFrame({"text": ["none", " None ", "nan", ""]})))
    assert read_table(authors_csv)["report"].tolist() == ["", "", "", "", CANONICAL]
    assert "reports: 1 of 5 images have one" in capsys.readouterr().out


# ---- writing


def test_write_and_read_back(tmp_path, rows):
    draw_images(tmp_path, rows)
    write_tree(tmp_path, rows)
    table = read_table(tmp_path).set_index("dicom_id").drop(columns="image_path")
    pd.testing.assert_frame_equal(table, rows.set_index("dicom_id").sort_index(), check_dtype=False)

    metadata = pd.read_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert list(metadata.columns) == list(mimic_cxr.METADATA_COLUMNS)
    assert set(metadata["Rows"]) == {6} and set(metadata["Columns"]) == {8}
    chexpert = pd.read_csv(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", dtype=str, keep_default_na=False)
    assert list(chexpert.columns) == ["subject_id", "study_id", *FINDINGS] and len(chexpert) == 4
    assert set(chexpert[list(FINDINGS)].values.ravel()) == {"1.0", "0.0", "-1.0", ""}
    split = pd.read_csv(tmp_path / "mimic-cxr-2.0.0-split.csv.gz")
    assert list(split.columns) == ["dicom_id", "study_id", "subject_id", "split"]


def test_bytes_do_not_depend_on_the_order_of_calls(tmp_path, rows):
    provenance = pd.DataFrame({"dicom_id": rows["dicom_id"], "prompt": 'a, "b"', "seed": range(5)})
    contents = []
    for name, parts in {"once": [rows], "twice": [rows[3:], rows[:3]], "again": [rows, rows]}.items():
        root = tmp_path / name
        draw_images(root, rows)
        for part in parts:
            write_tree(root, part, provenance.loc[part.index])
        contents.append({path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert contents[0] == contents[1] == contents[2]
    assert {"synthetic.csv", "mimic-cxr-2.0.0-metadata.csv.gz", "s50000004.txt"} < contents[0].keys()


def test_second_call_replaces_its_own_cells_only(tree, rows):
    metadata = tree / "mimic-cxr-2.1.0-metadata.csv"
    pd.read_csv(metadata).assign(StudyDate=21111016).to_csv(metadata, index=False)
    new = rows.iloc[[3]].assign(report="IMPRESSION: New.", split="train", Edema=np.int8(-2))
    write_tree(tree, new, pd.DataFrame({"dicom_id": ["d3"], "seed": [7]}))
    write_tree(tree, new, pd.DataFrame({"dicom_id": ["d3"], "report_seed": [8]}))
    table = read_table(tree).set_index("dicom_id")
    assert len(table) == 5 and table.loc["d3", ["report", "split", "Edema"]].tolist() == [
        "IMPRESSION: New.",
        "train",
        -2,
    ]
    assert table.loc["d1", "report"] == CANONICAL
    assert set(pd.read_csv(metadata)["StudyDate"]) == {21111016}
    assert (tree / "synthetic.csv").read_text() == "dicom_id,seed,report_seed\nd3,7,8\n"
    assert not list(tree.glob("*.gz")) and not list(tree.glob(".*"))


def test_write_without_reports(tmp_path, rows):
    draw_images(tmp_path, rows)
    write_tree(tmp_path, rows.assign(report=""))
    assert not list(tmp_path.rglob("*.txt"))
    assert (read_table(tmp_path)["report"] == "").all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a CSV"),
        (b"seed\n7\n", "has no column 'dicom_id'"),
        (b"dicom_id,seed\nd1,\xff\n", "cannot be read as a CSV"),
        (b"dicom_id,seed\nd1,7\nd1,8\n", r"1 repeated rows, e\.g\. for dicom_id d1"),
        (b"dicom_id,seed\n../d1,7\n", "dicom_id '../d1' cannot name"),
        (None, "cannot be read as a CSV"),
    ],
)
def test_a_damaged_synthetic_csv_is_named_and_kept(tmp_path, rows, content, message):
    draw_images(tmp_path, rows)
    path = tmp_path / "synthetic.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=f"synthetic.csv.*{message}"):
        write_tree(tmp_path, rows, pd.DataFrame({"dicom_id": rows["dicom_id"], "seed": 1}))
    assert path.is_dir() if content is None else path.read_bytes() == content
    assert not list(tmp_path.glob("*.gz"))


def test_full_disk(tmp_path, rows, monkeypatch):
    draw_images(tmp_path, rows)
    write_tree(tmp_path, rows[:3])
    before = {path: path.read_bytes() for path in tmp_path.glob("*.gz")}

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="no space left on device"):
        write_tree(tmp_path, rows)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.gz")}
    assert len(read_table(tmp_path)) == 3


def test_torchxrayvision_reads_it(tmp_path, rows):
    datasets = pytest.importorskip("torchxrayvision.datasets")
    draw_images(tmp_path, rows, size=(64, 64))
    codes = {"No Finding": 0, "Edema": 1, "Fracture": -1, "Pneumonia": -2, "Pneumothorax": 0}
    rows = rows.assign(**{name: np.int8(code) for name, code in codes.items()})
    write_tree(tmp_path, rows)
    dataset = datasets.MIMIC_Dataset(
        imgpath=str(tmp_path / "files"),
        csvpath=str(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz"),
        metacsvpath=str(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"),
        views=["PA"],
    )
    assert len(dataset) == 3 and dataset[0]["img"].shape[-2:] == (64, 64)
    expected = {"Edema": 1.0, "Fracture": 0.0, "Pneumonia": np.nan, "Pneumothorax": np.nan}
    found = {name: dataset[0]["lab"][dataset.pathologies.index(name)] for name in expected}
    np.testing.assert_equal(found, expected)


def test_a_users_own_split_is_read_beside_the_official_one(tmp_path, capsys):
    root = tmp_path / "tree"
    draw_tree(root, studies=6, image_size=32, seed=1)
    official = root / "mimic-cxr-2.0.0-split.csv.gz"
    pd.read_csv(official).assign(split="test").to_csv(root / "mimic-cxr-2.0.0-split.csv", index=False)
    assert set(read_table(root)["split"]) == {"test"}
    said = f"mimic-cxr-2.0.0-split.csv is read, and not {official.name}"
    assert said in capsys.readouterr().out
    write_tree(root, read_table(root))
    assert capsys.readouterr().out.count(said) == 1  # of the reading
