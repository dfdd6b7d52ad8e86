"""Other people's pairs: their CSVs are read and evaluated, and reports are written as others read them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from running import by, says
from small_data import generated_tree

from evaluation.foreign_pairs import is_foreign, read_pairs
from evaluation.labeler import label_report
from utils.errors import InputError
from utils.findings import FINDINGS, to_physionet, to_prompt
from utils.mimic_cxr import read_table
from utils.report_text import report_sections


def save_pairs(folder, frame, names):
    """A CSV, and an image for each of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
    frame.to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


PROMPTS = ["Large left pleural effusion.", "A chest X ray image with edema, without pneumothorax", "Normal chest."]


def test_a_benchmarks_csv_of_prompts_and_names(tmp_path, capsys):
    frame = pd.DataFrame({"prompt": PROMPTS, "img_savename": ["a.png", "sub/b.jpg", "c.jpeg"]})
    table = read_pairs(save_pairs(tmp_path, frame, frame.img_savename))
    assert [*table][:7] == ["dicom_id", "subject_id", "study_id", "view", "split", "image_path", "report"]
    assert table.image_path.tolist() == [str(tmp_path / name) for name in frame.img_savename]
    assert table.prompt.tolist() == PROMPTS and set(table.source) == set(table.report) == {""}
    assert table.dicom_id.tolist() == ["1-a", "2-b", "3-c"] and table.study_id.is_unique
    wanted = [label_report(PROMPTS[0]), [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0], label_report(PROMPTS[2])]
    assert (table[list(FINDINGS)].to_numpy() == wanted).all()
    assert to_prompt(wanted[0]) == "A chest X ray image with pleural effusion"
    says(capsys.readouterr().out.strip(), "3 images", "images in `img_savename`", "prompts in `prompt`", "no reports")


def test_a_data_sets_csv_with_labels_of_its_own_and_names_without_an_ending(tmp_path):
    codes = pd.DataFrame([label_report("Severe edema."), label_report("Normal chest.")], columns=FINDINGS)
    frame = pd.DataFrame({"image_id": ["x1", "x2"], "text": ["50 year old female. " + PROMPTS[0], "40 year old male."]})
    frame = pd.concat([frame.assign(view="PA", impression="Effusion."), to_physionet(codes)], axis=1)
    table = read_pairs(save_pairs(tmp_path, frame, ["x1.jpg", "x2_0.png"]))
    assert (table[list(FINDINGS)].to_numpy() == codes.to_numpy()).all()
    assert table.image_path.tolist() == [str(tmp_path / name) for name in ("x1.jpg", "x2_0.png")]
    assert table.prompt.tolist() == frame["text"].tolist()


@pytest.mark.parametrize(
    ("columns", "report"),
    [
        ({"Report": "Clear lungs."}, "FINDINGS: Clear lungs."),
        ({"report": "IMPRESSION: No edema."}, "IMPRESSION: No edema."),
        ({"findings": "Clear.", "impression": "Normal."}, "FINDINGS: Clear. IMPRESSION: Normal."),
        ({"generated_report": ""}, ""),
    ],
)
def test_reports_beside_the_prompts(tmp_path, columns, report):
    frame = pd.DataFrame({"Prompt": ["edema"], "PATH": ["a.png"], "dicom_id": ["r-1"], **columns})
    table = read_pairs(save_pairs(tmp_path, frame, ["a.png"]))
    assert table.report.tolist() == [report] or table.report.tolist() == [report.removeprefix("FINDINGS: ")]
    assert table.source.tolist() == ["r-1"]


def test_images_that_are_not_there_are_named_and_counted(tmp_path, capsys):
    frame = pd.DataFrame({"prompt": [*PROMPTS, "x", ""], "img_savename": ["a.png", "b.png", "c.png", "", "a.png"]})
    path = save_pairs(tmp_path, frame, ["a.png"])
    table = read_pairs(path)
    assert table.dicom_id.tolist() == ["1-a"] and table.prompt.tolist() == PROMPTS[:1]
    out = capsys.readouterr().out
    assert "3 of 5 rows kept" in out and "1 without prompt" in out and "1 without img_savename" in out
    assert f"2 of 3 images of {path} are not in {tmp_path}, e.g. b.png: dropped" in out
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError) as refused:
        read_pairs(path)
    says(str(refused.value), "3 of 3 images", "put the CSV into the folder", "`img_savename`")


def test_what_is_no_csv_of_pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    for content, words in (
        ("prompt,b\nx,y\n", ["no column of images, such as img_savename", "its columns are b, prompt"]),
        ("path,b\nx,y\n", ["no column of prompts, such as prompt"]),
        ("path,prompt\n", ["no rows"]),
        ("path,prompt\n,\n", ["no rows"]),
        (",".join(["path", "prompt", *FINDINGS]) + "\na,b" + 14 * ",7" + "\n", ["'7' is not a label"]),
    ):
        path.write_text(content)
        assert is_foreign(path)
        with pytest.raises(InputError) as refused:
            read_pairs(path)
        says(str(refused.value), str(path), *words)
    path.write_text("label,ViewPosition,split,image_path,text\n")
    assert not is_foreign(path) and not is_foreign(tmp_path) and not is_foreign(tmp_path / "absent.csv")


def own_scores(found):
    """Of an evaluation.json, what does not depend on draws by the names of the images."""
    by_name = by(found["image_quality"], "images"), by(found["reports"], "reports"), found["auroc"], found["report_f1"]
    return [rows["synthetic"] for rows in by_name]


def test_a_foreign_csv_is_evaluated_as_a_tree_with_the_same_images_is(real, evaluate, tmp_path):
    made = generated_tree(tmp_path / "tree", real, ("test",))
    ours = evaluate(SYNTHETIC=tmp_path / "tree")
    table = read_table(tmp_path / "tree").set_index("dicom_id").loc[made.dicom_id].reset_index()
    told = pd.read_csv(tmp_path / "tree" / "synthetic.csv").set_index("dicom_id").loc[table.dicom_id]
    codes = table[list(FINDINGS)].to_numpy()
    names = [str(path)[len(str(tmp_path)) + 1 :] for path in table.image_path]
    frame = pd.DataFrame({"prompt": map(to_prompt, codes), "img_savename": names, "report": table.report})
    frame.assign(source=told.source.to_numpy()).to_csv(tmp_path / "prompt_INFO.csv", index=False)
    theirs = evaluate(SYNTHETIC=tmp_path / "prompt_INFO.csv")
    assert own_scores(theirs) == own_scores(ours)
    assert theirs["synthetic"] == {**ours["synthetic"], "tree": str(tmp_path / "prompt_INFO.csv")}
    assert frame.prompt[0] in (tmp_path / "prompt_INFO.html").read_text()


def test_a_csv_without_reports_is_evaluated_by_its_images(real, evaluate, tmp_path):
    table = read_table(real, splits=("test",))
    frame = pd.DataFrame({"prompt": [report_sections(text)[1] for text in table.report], "path": table.image_path})
    frame.to_csv(tmp_path / "theirs.csv", index=False)
    found = evaluate(SYNTHETIC=tmp_path / "theirs.csv")
    assert found["synthetic"]["N"] == len(table) and "reports" not in found
    made, own = (
        {finding: row["auroc"] for finding, row in found["auroc"][name].items()} for name in ("synthetic", "real")
    )
    assert made == own  # drawn impressions name all that is present; each image of a CSV is a patient of its own
