"""Constants at the top of a script, overridden by a TOML file and by --NAME VALUE.

A constant is an UPPER_CASE name of the script's module. Three places give its value, the later the stronger:

    1. the script itself               BATCH_SIZE = 32  # images an optimiser step
    2. --config FILE.toml              the table [common], then the table named after the script
    3. --BATCH_SIZE 64                 on the command line

The default's type decides what is accepted: text stays text, an int may stand for a float, a tuple of texts may be
written `PA,AP`. The comment behind a constant is its help text, and ends in its range (utils/ranges.py), which is
checked here wherever the value comes from. Both are read from the script's text and nothing is executed, so that a
script can answer before its imports (`check_command_line`).
"""

import argparse
import ast
import difflib
import json
import math
import operator
import os
import re
import sys
import tomllib
from pathlib import Path

from utils.errors import InputError, reason, run, writing

INTEGER_BITS = 63  # besides the sign: what torch, numpy and a file can hold
REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "*.py",
    "*/__main__.py",
    "models/weights.py",
    "evaluation/gallery.py",
)  # what may have a table in a TOML file
_ASSIGNMENT = re.compile(r"^(?P<name>[A-Z][A-Z0-9_]*) = .*?(?:  # (?P<comment>.*))?$")


def check_command_line(name, file):
    """Answers --help and refuses what `override_constants` would refuse, and does nothing else.

    name, file: the script's __name__ and __file__. To be called before a script's slow imports.
    """
    if name == "__main__":
        run(lambda: _resolve(Path(file), sys.argv[1:]))


def override_constants(namespace, arguments=None):
    """Sets a script's constants from its config file and its command line; returns all of them as a dict.

    namespace: the script's globals(); arguments: the command line, by default sys.argv[1:]. Unknown names, values of
    another type or out of their range, and misspelt flags raise InputError; --help prints the docstring and the
    constants, and exits.
    """
    values = _resolve(Path(namespace["__file__"]), sys.argv[1:] if arguments is None else list(arguments))
    namespace.update(values)
    return values


def _resolve(script, arguments):
    """The values of all constants of a script, after its config file and its command line."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    defaults, comments = _constants(tree, script), _comments(script)
    origins = {name: f"{_name(script)}, {name}" for name in defaults}  # where the value was given, as a message says it

    config_parser = _Parser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", metavar="FILE.toml")
    config, rest = config_parser.parse_known_args(arguments)
    values = dict(defaults)
    if config.config:
        found = _read_config(Path(config.config), script, defaults)
        values.update({name: value for name, (value, _) in found.items()})
        origins.update({name: where for name, (_, where) in found.items()})

    parser = _Parser(
        prog=_name(script),
        description=ast.get_docstring(tree),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage=f"{_name(script)} [--config FILE.toml] [--NAME VALUE ...]",
    )
    parser.add_argument("--config", metavar="FILE.toml", help="a file of constants, see demo.toml")
    for name, value in values.items():
        text = f"{comments.get(name, '')}  [{value!r}]".strip().replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="VALUE", help=text)
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        raise InputError(f"there is no constant {unknown[0]!r}{_suggestion(unknown[0], values)}; --help lists them all")
    for name, text in vars(given).items():
        origins[name] = f"--{name}"
        values[name] = _parse(text, defaults[name], origins[name])
    _check_ranges(values, defaults, comments, origins)
    return values


def _check_ranges(values, defaults, comments, origins):
    """InputError for a value that its constant's comment does not allow; origins: where each value was given."""
    ranges = {name: Range(comments[name], default) for name, default in defaults.items()}
    for name, value in values.items():
        ranges[name].check(value, origins[name])
    for name, value in values.items():
        other = ranges[name].multiple_of
        if other and value % values[other]:
            raise InputError(f"{origins[name]}: {value} is no multiple of {other}, which is {values[other]}")


def save_constants(folder, constants):
    """Writes the resolved constants beside a result, as `<folder>/constants.json`."""
    folder = Path(folder)
    with writing("the constants", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "constants.json").write_text(json.dumps(constants, indent=2) + "\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; --help lists the constants")


def _constants(tree, script):
    """{name: default} of the UPPER_CASE names that a parsed script assigns at its top, each to a literal."""
    constants = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
            where = f"{_name(script)}, {target.id}"
            try:
                constants[target.id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                raise InputError(f"{where}: a constant is a plain value, such as 3, 0.5, True or 'text'") from error
            _check(constants[target.id], constants[target.id], where)
    return constants


def _name(script):
    """What a script goes by: its file's name, or its package's for the __main__.py of one."""
    return script.parent.name if script.stem == "__main__" else script.stem


def _comments(script):
    """{constant: the comment behind it}, a comment's continuation lines included."""
    comments, last = {}, None
    for line in script.read_text(encoding="utf-8").splitlines():
        match = _ASSIGNMENT.match(line)
        if match:
            last = match["name"]
            comments[last] = match["comment"] or ""
        elif last and re.match(r"^ {8,}# ", line):
            comments[last] += " " + line.strip(" #")
        else:
            last = None
    return comments


def _read_config(path, script, defaults):
    """{name: (value, where it stands)} of a script's constants that a config file gives."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # broken TOML, broken UTF-8, or thousands of brackets in each other
        raise InputError(f"{path} is no TOML file: {reason(error)}") from error
    files = [file for pattern in SCRIPTS for file in REPOSITORY.glob(pattern)]
    scripts = {_name(file): file for file in [*files, script]}
    values = {}
    for table, entries in tables.items():
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {table} = {entries!r} stands outside of a table; put it under [common]")
        if table != "common" and table not in scripts:
            raise InputError(
                f"{path}: the table [{table}] names no script{_suggestion(table, scripts)}; use [common] or a script's name"
            )
    for table in ("common", _name(script)):
        for name, value in tables.get(table, {}).items():
            if name in defaults:
                where = f"{path}, [{table}], {name}"
                values[name] = _check(value, defaults[name], where), where
            elif table != "common" or not any(name in _comments(file) for file in scripts.values()):
                raise InputError(f"{path}, [{table}]: there is no constant {name!r}{_suggestion(name, defaults)}")
    return values


def _suggestion(name, known):
    close = difflib.get_close_matches(name.lstrip("-").split("=")[0], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _parse(text, default, where):
    """The text of a command line as a value of the default's type."""
    if isinstance(default, str):
        return _check(text, default, where)
    if (
        isinstance(default, tuple)
        and all(isinstance(item, str) for item in default)
        and not text.startswith(("(", "["))
    ):
        return tuple(filter(None, (part.strip() for part in text.split(","))))  # PA,AP
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))  # TOML's words for a bool as well
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = text
    return _check(value, default, where)


def _check(value, default, where):
    """A value as the default's type, or InputError. An int may stand for a float; a list for a tuple."""
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(_check(item, default[0] if default else "", where) for item in value)
    if type(value) is int and value.bit_length() > INTEGER_BITS:
        raise InputError(f"{where}: a whole number of {value.bit_length()} bits; {INTEGER_BITS} are the most")
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(
            f"{where}: {reason(repr(value))} is not of the type of the default {default!r} ({type(default).__name__})"
        )
    if type(value) is float and not math.isfinite(value):
        raise InputError(f"{where}: {value} is no finite number")
    if type(value) is str and "\0" in value:
        raise InputError(f"{where}: {value!r} holds a NUL character, which no name of a file can have")
    return value


# ---- ranges: the parenthesis that ends a constant's comment -----------------------------------------------------
#
#     BATCH_SIZE = 32  # images an optimiser step (1 to 65536; a multiple of ACCUMULATION)
#     DROP_TEXT = 0.05  # probability that an example loses its text (0 to 1; paper: 0)
#     LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
#     BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
#     PREDICTION = "epsilon"  # what the network predicts (epsilon or v_prediction; paper: epsilon)
#     FEATURES = ("judge",)  # whose features (each judge, inception or rad-dino)
#     DEVICE = ""  # where it runs (empty, cpu, cuda or cuda:N; empty: the best there is)
#     RUN_DIR = "runs/bart"  # checkpoints and metrics (a folder to write)
#     PAGE = ""  # the gallery page (a file to write or empty; empty: beside the tree)
#
# number   LOW to HIGH, or LOW or more, or above LOW; after a comma also: below HIGH, or HIGH at most
# text     its choices, each of one or two words, the last after "or"; `empty` stands for "", the N of `cuda:N` for a
#          whole number
# path     a folder to write, or a file to write; optionally followed by: or empty
# tuple    the same for its values, after `each` (one value or more) or `both` (two values)
#
# Text after a semicolon is for the reader, except `a multiple of NAME`, which names another constant. Text and tuples of
# text without any of these may be anything; every number must have a range (a test checks that).

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
