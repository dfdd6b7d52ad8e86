"""What is measured of films and their twins, on pictures whose changes are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import counterfactuals
from evaluation.counterfactuals import CEILING, FLOORS, Twins, true_differences
from evaluation.images import Images, ImageSets, Loading
from evaluation.judges import RulesJudge
from utils.errors import InputError
from utils.findings import FINDINGS
from utils.mimic_cxr import TWIN_COLUMNS, image_file, write_tree

SIDE = 32
JUDGE = SimpleNamespace(thresholds=np.full(14, 0.5), known=np.ones(14, dtype=bool), image_size=SIDE, name="stand-in")
PLACES = {"Edema": (slice(4, 12), slice(4, 12)), "Fracture": (slice(20, 28), slice(20, 28))}


def picture(shown, shift=0):
    """A gradient, with a bright square where each shown finding lies."""
    pixels = np.add.outer(2 * np.arange(SIDE), 2 * np.arange(SIDE)).astype(np.uint8) + shift
    for finding in shown:
        pixels[PLACES[finding]] = 250
    return pixels


class ByPixels(Images):
    """Images whose findings a judge reads off the squares."""

    def encode(self, judge, rows=None):
        seen = np.zeros((len(self), 14))
        for row, path in enumerate(self.table["image_path"]):
            pixels = np.asarray(Image.open(path))
            for finding, place in PLACES.items():
                seen[row, FINDINGS.index(finding)] = pixels[place].mean() > 240
        return None, seen if rows is None else seen[rows]


def save_tree(root, films, twins=()):
    """films: {dicom_id: (label vector as a dict, shown findings, report)}; twins: rows of counterfactuals.csv."""
    rows = []
    for number, (name, (labels, shown, report)) in enumerate(films.items()):
        ids = {"dicom_id": name, "subject_id": 10_000_000 + number, "study_id": 50_000_000 + number}
        path = image_file(root, ids["subject_id"], ids["study_id"], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(shown)).save(path, quality=95)
        codes = {finding: labels.get(finding, 0) for finding in FINDINGS}
        rows.append({**ids, **codes, "view": "PA", "split": "train", "report": report, "image_path": str(path)})
    table = pd.DataFrame(rows)
    write_tree(root, table)
    if twins:
        pd.DataFrame(twins, columns=TWIN_COLUMNS).to_csv(root / "counterfactuals.csv", index=False)
    return table


RULES = RulesJudge()
EDEMA, NORMAL = {"Edema": 1}, {"Edema": -1, "No Finding": 1}
CLEAR, ILL = "No edema. No fracture.", "There is edema. No fracture."


def row(twin, film, source, finding="Edema", before="present", after="absent"):
    return twin, film, source, finding, before, after, "DiffEdit", 0.7


@pytest.fixture
def evaluated(tmp_path, accelerator, monkeypatch):
    """evaluated(exact=True) => the parts of an evaluation of three twins, of which one is as it should be."""
    monkeypatch.setattr(counterfactuals, "Images", ByPixels)
    loading = Loading(str(tmp_path / "cache"), SIDE, 4, accelerator)
    films = {
        "film-a": (EDEMA, ["Edema"], ILL), "right": (NORMAL, [], CLEAR),
        "film-b": (EDEMA, ["Edema"], ILL), "kept": (NORMAL, ["Edema"], ILL),
        "film-c": (EDEMA, ["Edema"], ILL), "drifted": (NORMAL, ["Fracture"], "No edema. There is a fracture."),
    }  # fmt: skip
    twins = [row("right", "film-a", "a"), row("kept", "film-b", "b"), row("drifted", "film-c", "c")]
    synthetic = save_tree(tmp_path / "made", films, twins)
    train = save_tree(tmp_path / "train", {"ill": (EDEMA, ["Edema"], ILL), "well": (NORMAL, [], CLEAR)})
    exact = {name: (EDEMA, ["Edema"], ILL) for name in ("e-a", "e-c")} | {
        name: (NORMAL, [], CLEAR) for name in ("x-a", "x-c")
    }
    save_tree(tmp_path / "exact", exact, [row("x-a", "e-a", "a"), row("x-c", "e-c", "c")])

    def run(exact=True, text_judge=RULES):
        images, trained = (ByPixels(table, "these", SIDE, loading) for table in (synthetic, train))
        copies = np.array([0, 1] * 3)
        sets = ImageSets(trained, images, trained, copies, seed=3)
        tree = str(tmp_path / "exact") if exact else ""
        return counterfactuals.evaluate(sets, JUDGE, text_judge, str(tmp_path / "made"), tree)

    return run


def test_flips_drift_places_and_reports(evaluated):
    found = evaluated()
    rows = {each.pop("twins"): each for each in found["counterfactuals"]}
    assert list(rows) == ["synthetic", *FLOORS, CEILING]
    made = rows["synthetic"]
    assert made["N"] == 3 and made["flip"] == made["taken away"] == pytest.approx(2 / 3) and np.isnan(made["added"])
    assert made["drift"] == pytest.approx(1 / (3 * 12))  # the fracture, of 12 others each
    assert made["reports differ in it alone"] == pytest.approx(1 / 3)
    assert made["inside, taken away"] == pytest.approx(0.75, abs=0.1)  # of two films with an exact twin: 1 and a half
    ceiling = rows[CEILING]
    assert made["SSIM outside"] < ceiling["SSIM outside"] - 0.1 and made["SSIM"] < 1
    assert ceiling["N"] == 2 and ceiling["flip"] == 1 and ceiling["drift"] == 0 and ceiling["inside, taken away"] > 0.99
    assert ceiling["reports differ in it alone"] == 1
    assert rows[FLOORS[0]]["flip"] == 0 and rows[FLOORS[1]]["flip"] == 1
    (by_finding,) = found["counterfactual_findings"]
    assert (
        by_finding["finding"] == "Edema" and by_finding["flip"] == made["flip"] and by_finding["exact twins: flip"] == 1
    )


def test_without_exact_twins_nothing_is_claimed_about_places(evaluated):
    rows = evaluated(exact=False, text_judge=None)["counterfactuals"]
    assert [each["twins"] for each in rows] == ["synthetic", *FLOORS]
    assert all(np.isnan(each["inside, taken away"]) and np.isnan(each["SSIM outside"]) for each in rows)
    assert 0 < rows[0]["SSIM"] < 1 and "reports differ in it alone" not in rows[0]


def test_exact_twins_of_other_films_are_refused(tmp_path):
    save_tree(tmp_path / "exact", {"e": (EDEMA, [], "")}, [row("x", "e", "elsewhere")])
    twins = pd.DataFrame([row("x", "f", "a")], columns=TWIN_COLUMNS)
    for tree, asked in ((tmp_path / "exact", twins), (tmp_path, twins), (tmp_path / "exact", None)):
        with pytest.raises(InputError, match="no exact twins of these films.*TWINS"):
            counterfactuals.read_exact(str(tree), asked)


def test_the_nearest_of_several_exact_twins_counts():
    table = pd.DataFrame(
        [row(f"x-{k}", "f", "a", "Edema", "absent", "present") for k in range(2)], columns=TWIN_COLUMNS
    )
    film, one, other = picture([]), picture(["Edema"]), picture(["Fracture"])
    pixels = np.stack([[film, film], [one, other]])
    labels = np.zeros((2, 2, 14), dtype=int)
    labels[1, :, FINDINGS.index("Edema")] = 1
    drawn = Twins(table, labels, labels.astype(float), None, pixels)
    truth = true_differences(table.iloc[:1], drawn)
    assert truth[0].shape == (2, SIDE, SIDE)
    assert truth[0][0][1:15, 1:15].all() and not truth[0][0][16:, 16:].any()  # 8 pixels a side, widened by 3
    made = Twins(table.iloc[:1], labels[:, :1], labels[:, :1].astype(float), None, np.stack([[film], [other]]))
    assert counterfactuals._row(made, truth, 1)["inside, added"] == 1
    assert true_differences(table.iloc[:1].assign(source="z"), drawn)[0].shape[0] == 0


def test_a_tree_without_twins_has_no_such_section(tmp_path):
    assert counterfactuals.evaluate(None, JUDGE, None, str(tmp_path), "") == {}
