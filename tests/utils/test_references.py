import numpy as np
import pandas as pd
import pytest
import torch

from utils.findings import FINDINGS
from utils.references import NONE, References
from utils.seeds import keyed_generator


def labels_of(**codes):
    vector = np.zeros(14, dtype=np.int8)
    for name, code in codes.items():
        vector[FINDINGS.index(name.replace("_", " "))] = code
    return vector


def table_of(*rows):
    """Rows of (label vector, subject_id)."""
    table = pd.DataFrame(np.array([labels for labels, _ in rows]), columns=FINDINGS)
    table["subject_id"] = [subject for _, subject in rows]
    return table


EDEMA, FRACTURE, PNEUMONIA = labels_of(Edema=1), labels_of(Fracture=1), labels_of(Pneumonia=1)


def draws(references, labels, subject, count=400):
    return [references.draw(labels, subject, keyed_generator("draw", number)) for number in range(count)]


def test_a_reference_is_never_of_the_targets_patient():
    """A table made to tempt: patient 7 has every edema, most fractures, and rows before and after everyone else's."""
    table = table_of(
        (EDEMA, 7), (FRACTURE, 7), (FRACTURE, 3), (FRACTURE, 7), (EDEMA, 7), (PNEUMONIA, 9), (FRACTURE, 8), (EDEMA, 7)
    )  # fmt: skip
    references = References(table)
    for row in range(len(table)):
        drawn = draws(references, table[list(FINDINGS)].iloc[row], table.subject_id[row], 100)
        assert NONE not in drawn
        assert all(table.subject_id[drawn_row] != table.subject_id[row] for drawn_row in drawn)
    assert set(draws(references, FRACTURE, 7)) == {2, 6}
    assert set(draws(references, FRACTURE, 3)) == {1, 3, 6}
    assert set(draws(references, FRACTURE, -1)) == {1, 2, 3, 6}  # nobody's
    assert references.count_kinds(table) == {"same labels": 4, "nearest labels": 4, "none": 0}


def test_random_tables_never_give_the_own_patient():
    rng = np.random.default_rng(0)
    for _ in range(20):
        count = int(rng.integers(2, 30))
        rows = [(rng.choice([-2, -1, 0, 1], 14) * (rng.random(14) < 0.1), rng.integers(1, 5)) for _ in range(count)]
        table = table_of(*rows)
        generators = [keyed_generator("row", row) for row in range(count)]
        drawn = References(table).draw_for(table, generators)
        kinds = References(table).count_kinds(table)
        alone = table.subject_id.nunique() == 1
        assert (drawn == NONE).sum() == kinds["none"] == (count if alone else 0)
        has = drawn != NONE
        assert (table.subject_id.to_numpy()[drawn[has]] != table.subject_id.to_numpy()[has]).all()
        same = (table[list(FINDINGS)].to_numpy()[drawn] == table[list(FINDINGS)].to_numpy()).all(axis=1) & has
        assert same.sum() == kinds["same labels"]


def test_candidates_are_equally_likely():
    table = table_of((EDEMA, 1), (EDEMA, 1), (EDEMA, 2), (EDEMA, 3), (EDEMA, 4), (EDEMA, 1), (FRACTURE, 5))
    counts = np.bincount(draws(References(table), EDEMA, 2, 3000), minlength=7)
    assert counts[[2, 6]].tolist() == [0, 0]
    expected = 3000 / 5
    chi_square = ((counts[[0, 1, 3, 4, 5]] - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_the_nearest_labels_are_the_nearest_in_what_is_present():
    near = labels_of(Edema=1, Pneumonia=-1, Fracture=-1)  # the same findings present, two codes differ
    nearer = labels_of(Edema=1, Pneumonia=-2)
    far = labels_of(Edema=1, Fracture=1)  # one code differs, but one more finding is present
    references = References(table_of((far, 1), (near, 2), (nearer, 3), (nearer, 4)))
    assert set(draws(references, EDEMA, 9)) == {2, 3}
    assert set(draws(references, EDEMA, 3)) == {3}
    assert set(draws(References(table_of((far, 1), (near, 2), (nearer, 3))), EDEMA, 3)) == {1}
    assert set(draws(References(table_of((far, 1), (nearer, 3))), nearer, 3)) == {0}
    assert references.count_kinds(table_of((EDEMA, 9), (nearer, 3))) == {
        "same labels": 1, "nearest labels": 1, "none": 0
    }  # fmt: skip


def test_equally_near_label_vectors_share_the_draw():
    references = References(table_of((FRACTURE, 1), (PNEUMONIA, 2), (PNEUMONIA, 3)))
    counts = np.bincount(draws(references, EDEMA, 9, 900), minlength=3)
    assert (np.abs(counts - 300) < 90).all()


def test_where_nobody_else_is_left_there_is_no_reference():
    references = References(table_of((EDEMA, 1), (FRACTURE, 1)))
    assert set(draws(references, EDEMA, 1, 20)) == {NONE}
    assert set(draws(references, EDEMA, 2, 20)) == {0}
    targets = table_of((EDEMA, 1), (EDEMA, 2), (PNEUMONIA, 2))
    assert references.count_kinds(targets) == {"same labels": 1, "nearest labels": 1, "none": 1}


def test_a_draw_follows_from_its_generator_alone():
    table = table_of(*[(EDEMA, subject) for subject in range(50)])
    references = References(table)
    first = references.draw_for(table, [keyed_generator(1, row) for row in range(50)])
    again = References(table).draw_for(table, [keyed_generator(1, row) for row in range(50)])
    other = references.draw_for(table, [keyed_generator(2, row) for row in range(50)])
    alone = references.draw(EDEMA, 20, keyed_generator(1, np.int64(20)))
    assert first.tolist() == again.tolist() != other.tolist()
    assert alone == first[20]


@pytest.mark.parametrize("count", [20_000])
def test_large_tables_are_quick(count):
    rng = np.random.default_rng(0)
    table = pd.DataFrame((rng.random((count, 14)) < 0.15).astype(np.int8), columns=FINDINGS)
    table["subject_id"] = rng.integers(10_000_000, 20_000_000, count)
    references, generator = References(table), torch.Generator().manual_seed(0)
    rows = references.draw_for(table.head(2000), [generator] * 2000)
    assert (rows != NONE).all()
