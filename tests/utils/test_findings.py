import numpy as np
import pandas as pd
import pytest

from utils.errors import InputError
from utils.findings import (
    FINDINGS,
    check_labels,
    finding_index,
    from_physionet,
    from_prompt,
    to_physionet,
    to_prompt,
)


def vector(**codes):
    labels = np.zeros(14, dtype=np.int8)
    for name, code in codes.items():
        labels[finding_index(name.replace("_", " "))] = code
    return labels


def test_findings_are_in_the_order_of_the_chexpert_file():
    assert len(FINDINGS) == 14
    assert list(FINDINGS) == sorted(FINDINGS)


@pytest.mark.parametrize(
    ("labels", "prompt"),
    [
        (vector(), "A chest X ray image"),
        (vector(edema=1), "A chest X ray image with edema"),
        (vector(edema=1, pneumothorax=-1), "A chest X ray image with edema, without pneumothorax"),
        (vector(no_finding=1), "A chest X ray image with no finding"),
        (
            vector(edema=1, fracture=1, atelectasis=-1, pneumonia=-1, lung_lesion=-2, pneumothorax=-2),
            "A chest X ray image with edema and fracture, without atelectasis and pneumonia"
            ", and with uncertain lung lesion and pneumothorax",
        ),
        (vector(edema=-2), "A chest X ray image, and with uncertain edema"),
    ],
)
def test_prompt_says_the_labels(labels, prompt):
    assert to_prompt(labels) == prompt
    np.testing.assert_array_equal(from_prompt(prompt), labels)


def test_prompt_round_trip_of_random_labels():
    for labels in np.random.default_rng(0).choice([1, -1, -2, 0], (300, 14)):
        np.testing.assert_array_equal(from_prompt(to_prompt(labels)), labels)


@pytest.mark.parametrize("prompt", ["", "a cat", "A chest X ray image of edema", "A chest X ray image with gout"])
def test_a_text_that_is_no_prompt_of_findings(prompt):
    assert from_prompt(prompt) is None


@pytest.mark.parametrize("labels", [[0] * 13, [0] * 13 + [2], [0.5] + [0] * 13, [[0] * 14]])
def test_check_labels_refuses(labels):
    with pytest.raises(InputError, match="14 codes"):
        check_labels(labels)


def test_physionet_uncertain_is_not_absent():
    frame = pd.DataFrame({name: [1.0, 0.0, -1.0, np.nan] for name in FINDINGS})
    codes = from_physionet(frame, "x.csv")
    assert (codes.dtypes == np.int8).all()
    for name in FINDINGS:
        assert codes[name].tolist() == [1, -1, -2, 0]
    pd.testing.assert_frame_equal(to_physionet(codes), frame)


def test_physionet_text_and_blanks():
    frame = pd.DataFrame({name: ["1.0", "0", " ", ""] for name in FINDINGS})
    assert from_physionet(frame, "x.csv")["Edema"].tolist() == [1, -1, 0, 0]


@pytest.mark.parametrize("wrong", [2.0, "yes", -2])
def test_physionet_names_the_wrong_cell(wrong):
    frame = pd.DataFrame({name: [1.0, np.nan] for name in FINDINGS}).astype(object)
    frame.loc[1, "Edema"] = wrong
    with pytest.raises(InputError, match=r"x\.csv, data row 2, column 'Edema'.*is not a label"):
        from_physionet(frame, "x.csv")
