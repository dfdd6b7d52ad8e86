"""docs/bad-input.md: what is said there is what is said."""

import re
import shlex
import sys

import numpy as np
import pytest
import torch

from utils import constants
from utils.constants import override_constants
from utils.errors import InputError, run

TABLE = constants.REPOSITORY / "docs" / "bad-input.md"
ROWS = re.findall(r"^\| `(\w+\.py) (.*)` \| (.*) \|$", TABLE.read_text(), re.MULTILINE)


def test_the_table_is_read():
    assert len(ROWS) >= 40


@pytest.mark.parametrize(("script", "arguments", "said"), ROWS, ids=[f"{script} {text}" for script, text, _ in ROWS])
def test_the_sentence_is_the_documented_one(script, arguments, said, monkeypatch):
    monkeypatch.chdir(constants.REPOSITORY)
    with pytest.raises(InputError) as refused:
        override_constants({"__file__": str(constants.REPOSITORY / script)}, shlex.split(arguments))
    assert str(refused.value) == said


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**50), lambda: np.empty(2**60, dtype=np.uint8)])
def test_memory_that_is_not_there(ask, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_bart.py"])
    with pytest.raises(SystemExit) as ended:
        run(ask)
    assert re.match(r"train_bart.py: not enough memory \(.*\); lower BATCH_SIZE", ended.value.code)
    assert "\n" not in ended.value.code


def test_other_errors_of_torch_are_not_hidden():
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(lambda: torch.ones(2) + torch.ones(3))
