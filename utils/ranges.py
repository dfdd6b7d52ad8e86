"""What a constant may be, as the parenthesis that ends its comment says it in a few plain words.

    BATCH_SIZE = 32  # images an optimiser step (1 to 65536; a multiple of ACCUMULATION)
    DROP_TEXT = 0.05  # probability that an example loses its text (0 to 1; paper: 0)
    LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
    BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
    PREDICTION = "epsilon"  # what the network predicts (epsilon or v_prediction; paper: epsilon)
    FEATURES = ("judge",)  # whose features (each judge, inception or rad-dino)
    DEVICE = ""  # where it runs (empty, cpu, cuda or cuda:N; empty: the best there is)
    RUN_DIR = "runs/bart"  # checkpoints and metrics (a folder to write)
    PAGE = ""  # the gallery page (a file to write or empty; empty: beside the tree)

of a number     LOW to HIGH, or LOW or more, or above LOW; behind a comma also: below HIGH, or HIGH at most
of a text       its choices, each of one word or two, the last behind "or"; `empty` stands for "", the N of `cuda:N` for
                a whole number
of a place      a folder to write, or a file to write; behind it perhaps: or empty
of a tuple      the same of its values, behind `each` (one value or more) or `both` (two values)

What follows a semicolon is for the reader, but for `a multiple of NAME`, another constant. A text without any of these,
and a tuple of such texts, may be anything; every number has to have a range (tests/test_constants.py).
"""

import operator
import os
import re
from pathlib import Path

from utils.errors import InputError, reason

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_BOUNDS = re.compile(
    rf"(?:(?P<low>{_NUMBER}) to (?P<high>{_NUMBER})|(?P<least>{_NUMBER}) or more|above (?P<above>{_NUMBER}))"
    rf"(?:, below (?P<below>{_NUMBER})|, (?P<most>{_NUMBER}) at most)?"
)
_KEPT = {  # kind of bound => whether a number keeps it
    "low": operator.ge, "least": operator.ge, "above": operator.gt,
    "high": operator.le, "most": operator.le, "below": operator.lt,
}  # fmt: skip
_CHOICE = r"[\w.:-]+(?: [\w.:-]+)?"
_CHOICES = re.compile(rf"{_CHOICE}(?:, {_CHOICE})* or {_CHOICE}")
_PLACE = re.compile(r"a (?P<kind>folder|file) to write(?P<empty> or empty)?")
_PARENTHESIS = re.compile(r"\((?P<count>each |both )?(?P<words>[^();]+)(?P<further>;[^()]*)?\)$")
_MULTIPLE = re.compile(r"; a multiple of (?P<name>[A-Z][A-Z0-9_]*)")


class Range:
    """What one constant may be.

    comment: the whole comment behind it; default: its value in the script. `words`: the range as the comment has it, ""
    where it states none; `multiple_of`: the name of another constant, or "".
    """

    def __init__(self, comment, default):
        sample = default[0] if isinstance(default, tuple) and default else default
        grammars = {int: [_BOUNDS], float: [_BOUNDS], str: [_PLACE, _CHOICES]}.get(type(sample), [])
        self.words = self.multiple_of = self.count = ""
        stated = _PARENTHESIS.search(comment)
        if not stated or bool(stated["count"]) != isinstance(default, tuple):
            return
        for grammar in grammars:
            self._found = grammar.fullmatch(stated["words"])
            if self._found:
                self.words, self.count = stated["words"], (stated["count"] or "").strip()
                self._why_not = {_BOUNDS: _why_not_number, _PLACE: _why_not_place, _CHOICES: _why_not_choice}[grammar]
                multiple = _MULTIPLE.search(stated["further"] or "")
                self.multiple_of = multiple["name"] if multiple else ""
                return

    def check(self, value, where):
        """InputError, which begins with `where`, if the constant may not be this value."""
        if not self.words:
            return
        values = value if self.count else (value,)
        if (self.count == "both" and len(values) != 2) or not values:
            raise InputError(
                f"{where}: {value!r} has not the right number of values, {'2' if self.count == 'both' else '1 or more'}"
            )
        for item in values:
            why = self._why_not(item, self._found)
            if why:
                raise InputError(f"{where}: {reason(repr(item))} {why}")


def _why_not_number(value, found):
    """Why a number is out of the bounds of a match of _BOUNDS, "" if it is not."""
    bounds = {kind: float(number) for kind, number in found.groupdict().items() if number}
    kept = all(_KEPT[kind](value, bound) for kind, bound in bounds.items())
    return "" if kept else f"is out of its range, {found[0]}"


def _why_not_choice(value, found):
    """Why a text is none of the choices of a match of _CHOICES, "" if it is one."""
    choices = re.split(r", | or ", found[0])
    patterns = ("" if choice == "empty" else re.sub(r"(?<=:)N$", r"\\d+", re.escape(choice)) for choice in choices)
    known = any(re.fullmatch(pattern, value) for pattern in patterns)
    return "" if known else f"is none of {', '.join(choices)}"


def _why_not_place(value, found):
    """Why nothing can be written at a place of a match of _PLACE, as far as what is there now tells; "" if it can."""
    if not value:
        return "" if found["empty"] else f"names no {found['kind']} to write"
    path = Path(value)
    try:
        if found["kind"] == "folder" and path.exists() and not path.is_dir():
            return "is a file: name a folder"
        if found["kind"] == "file" and path.is_dir():
            return "is a folder: name a file"
        file = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        return f"lies inside {file}, which is a file: name another place" if file else ""
    except OSError as error:  # a name that is too long, a loop of links
        return f"cannot be written: {os.strerror(error.errno).lower()}"
