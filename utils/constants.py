"""Constants at the top of a script, overridden by a TOML file and by --NAME VALUE.

A constant is an UPPER_CASE name of the script's module. Three places set its value; each overrides those before it:

    1. the script itself               BATCH_SIZE = 32  # images an optimiser step (1 to 1024)
    2. --config FILE.toml              the table [common], then the table named after the script
    3. --BATCH_SIZE 64                 on the command line

A value has to have the type of the default; an int may stand for a float, and `PA,AP` for a tuple of texts. The comment
behind a constant is its help text. A parenthesis at its end states the range, which is checked in any case:

    BATCH_SIZE = 32  # images an optimiser step (1 to 65536; a multiple of ACCUMULATION)
    BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
    DEVICE = ""  # where it runs (empty, cpu, cuda or cuda:N; empty: the best there is)

    number   LOW to HIGH, or LOW or more, or above LOW; after a comma also: below HIGH, or HIGH at most
    text     the choices, each of one or two words, the last after "or"; `empty`: "", the N of `cuda:N`: a whole number
    path     `a folder to write` or `a file to write`, optionally followed by `or empty`
    tuple    the same for its values, after `each` (one value or more) or `both` (two values)

The text after a semicolon is for readers only, except `a multiple of NAME`, which names another constant. A script is
parsed and never executed, so that it can answer --help before its slow imports.
"""

import argparse
import ast
import difflib
import gc
import json
import math
import operator
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils.errors import InputError, as_input_error, reason, run, write_whole

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = ("*.py", "*/__main__.py", "models/weights.py", "evaluation/gallery.py")  # may have a table in a TOML file


def check_command_line(name: str, file: str) -> None:
    """Prints --help or refuses arguments before a script's slow imports; name, file: its __name__ and __file__.

    No garbage is collected until `override_constants`: looking for it in what is imported takes a fifth of the time.
    """
    if name == "__main__":
        run(lambda: resolve(Path(file), sys.argv[1:]))
        gc.disable()


def override_constants(namespace: dict, arguments: list[str] | None = None) -> dict:
    """Sets a script's constants from its config file and its command line, and returns all of them.

    namespace: the script's globals(); arguments: the command line, by default sys.argv[1:]. InputError for an unknown
    name, a wrong type, a value out of its range, or a misspelt flag. --help prints docstring and constants, and exits.
    """
    gc.enable()
    values = resolve(Path(namespace["__file__"]), sys.argv[1:] if arguments is None else arguments)
    namespace.update(values)
    return values


def save_constants(folder: str | Path, constants: dict) -> None:
    """Writes the resolved constants beside a result, as `<folder>/constants.json`."""
    write_whole(Path(folder, "constants.json"), json.dumps(constants, indent=2) + "\n", "the constants")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; --help lists the constants")


def resolve(path: Path, arguments: Iterable[str]) -> dict:
    """The values of all constants of a script, {name: value}, after its config file and its command line."""
    script = read_script(path)
    config_parser = _Parser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config")
    config, rest = config_parser.parse_known_args(list(arguments))
    values = dict(script.defaults)
    origins = {name: f"{script.name}, {name}" for name in values}  # where each value was set, for messages
    if config.config:
        for name, value, origin in _read_config(Path(config.config), script, path):
            values[name], origins[name] = value, origin

    parser = _Parser(
        prog=script.name, description=script.docstring, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage=f"{script.name} [--config FILE.toml] [--NAME VALUE ...]",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE.toml", help="a file of constants, see demo.toml")
    for name, value in values.items():
        text = f"{script.comments[name]}  [{value!r}]".strip().replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="VALUE", help=text)
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        raise InputError(_unknown_constant(unknown[0], values))
    for name, text in vars(given).items():
        origins[name] = f"--{name}"
        values[name] = _parse(text, script.defaults[name], origins[name])
    for name, value in values.items():
        if stated := read_range(script.comments[name], script.defaults[name]):
            stated.check(value, origins[name])
            if (other := stated.multiple_of) and value % values[other]:
                raise InputError(f"{origins[name]}: {value} is not a multiple of {other}, which is {values[other]}")
    return values


def _unknown_constant(name: str, known: Iterable[str]) -> str:
    """The message for a name that is not a constant of the script."""
    similar = _suggestion(name.lstrip("-").split("=")[0], known)
    return f"there is no constant {name!r}{similar}; --help lists all constants"


def _suggestion(name: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {similar[0]}?)" if similar else ""


@dataclass(frozen=True)
class Script:
    """What the text of a script says about its constants."""

    name: str  # the file's name; of a __main__.py the package's
    docstring: str
    defaults: dict  # constant => value
    comments: dict[str, str]  # constant => the comment behind it


def read_script(path: Path) -> Script:
    """The constants of a script; InputError if one of them is not a literal."""
    text = path.read_text(encoding="utf-8")
    tree, name = ast.parse(text), _script_name(path)
    defaults = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
            try:
                defaults[target.id] = ast.literal_eval(node.value)
            except (ValueError, TypeError) as error:
                raise InputError(f"{name}, {target.id}: a constant has to be a plain value, such as 3") from error
    comments = _read_comments(text)
    return Script(name, ast.get_docstring(tree) or "", defaults, {key: comments.get(key, "") for key in defaults})


def _script_name(path: Path) -> str:
    return path.parent.name if path.stem == "__main__" else path.stem


def _read_comments(text: str) -> dict[str, str]:
    """{constant: comment} of the lines `NAME = value  # comment`."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*) = .*?(?:  # (.*))?$", text, re.MULTILINE))


def _read_config(path: Path, script: Script, script_path: Path) -> list[tuple[str, object, str]]:
    """(name, value, where it stands) of each of a script's constants in a TOML file."""
    readable = as_input_error(lambda error: f"cannot read the config file {path}: {error.strerror}", OSError)
    with readable, as_input_error(lambda error: f"{path} is not a TOML file: {reason(error)}", ValueError):
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    scripts = {_script_name(file): file for pattern in SCRIPTS for file in REPOSITORY.glob(pattern)}
    scripts[script.name] = script_path
    for table, entries in tables.items():
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {table} = {entries!r} stands outside of a table; put it under [common]")
        if table != "common" and table not in scripts:
            raise InputError(f"{path}: [{table}] does not name a script{_suggestion(table, scripts)}; use [common]")
    found = []
    for table in ("common", script.name):
        for name, value in tables.get(table, {}).items():
            if name in script.defaults:
                where = f"{path}, [{table}], {name}"
                found.append((name, _as_type_of(script.defaults[name], value, where), where))
            # a name in [common] may be another script's
            elif table != "common" or all(name not in _read_comments(file.read_text()) for file in scripts.values()):
                raise InputError(f"{path}, [{table}]: {_unknown_constant(name, script.defaults)}")
    return found


def _parse(text: str, default: object, where: str) -> object:
    """A text of the command line as a value of the default's type."""
    if isinstance(default, str):
        return text
    is_tuple_of_texts = isinstance(default, tuple) and all(isinstance(item, str) for item in default)
    if is_tuple_of_texts and not text.startswith(("(", "[")):
        return tuple(part.strip() for part in text.split(",") if part.strip())  # PA,AP
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))  # TOML's words for a bool as well
    except (ValueError, TypeError, SyntaxError):
        value = text
    return _as_type_of(default, value, where)


def _as_type_of(default: object, value: object, where: str) -> object:
    """A value as the default's type, or InputError. An int may stand for a float; a list for a tuple."""
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(_as_type_of(default[0] if default else "", item, where) for item in value)
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(f"{where}: {reason(repr(value))} is not of the type of the default, {default!r}")
    return value


_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_BOUNDS = re.compile(
    rf"(?:(?P<low>{_NUMBER}) to (?P<high>{_NUMBER})|(?P<least>{_NUMBER}) or more|above (?P<above>{_NUMBER}))"
    rf"(?:, below (?P<below>{_NUMBER})|, (?P<most>{_NUMBER}) at most)?"
)
_COMPARISONS = {  # group of _BOUNDS => what a number in the range fulfils
    "low": operator.ge, "least": operator.ge, "above": operator.gt,
    "high": operator.le, "most": operator.le, "below": operator.lt,
}  # fmt: skip
_CHOICE = r"[\w.:-]+(?: [\w.:-]+)?"
_CHOICES = re.compile(rf"{_CHOICE}(?:, {_CHOICE})* or {_CHOICE}")
_PLACE = re.compile(r"a (?P<kind>folder|file) to write(?P<empty> or empty)?")
_PARENTHESIS = re.compile(r"\((?P<count>each |both )?(?P<words>[^();]+)(?P<further>;[^()]*)?\)$")
_MULTIPLE = re.compile(r"; a multiple of (?P<name>[A-Z][A-Z0-9_]*)")


@dataclass(frozen=True)
class Range:
    """The values that a constant may have."""

    count: str  # of a tuple: "each" or "both"; else ""
    multiple_of: str  # the name of another constant, or ""
    problem_of: Callable[[object], str]  # value => what is wrong, "" if nothing is

    def check(self, value: object, where: str) -> None:
        """InputError, which begins with `where`, for a value out of the range."""
        values = value if self.count else (value,)
        if not values or (self.count == "both" and len(values) != 2):
            raise InputError(f"{where}: {value!r} has to have {'2 values' if self.count == 'both' else 'a value'}")
        for item, problem in zip(values, map(self.problem_of, values)):
            if problem:
                raise InputError(f"{where}: {reason(repr(item))} {problem}")


def read_range(comment: str, default: object) -> Range | None:
    """The range at the end of a constant's comment; None if there is none for values of the default's type."""
    stated = _PARENTHESIS.search(comment)
    if not stated or bool(stated["count"]) != isinstance(default, tuple):
        return None
    sample = default[0] if isinstance(default, tuple) and default else default
    numbers, texts = ((_BOUNDS, _problem_of_number),), ((_PLACE, _problem_of_place), (_CHOICES, _problem_of_choice))
    for grammar, problem_of in {int: numbers, float: numbers, str: texts}.get(type(sample), ()):
        if match := grammar.fullmatch(stated["words"]):
            multiple = _MULTIPLE.search(stated["further"] or "")
            count = (stated["count"] or "").strip()
            return Range(count, multiple["name"] if multiple else "", partial(problem_of, match))
    return None


def _problem_of_number(bounds: re.Match, value: float) -> str:
    stated = {kind: float(bound) for kind, bound in bounds.groupdict().items() if bound}
    in_range = math.isfinite(value) and all(_COMPARISONS[kind](value, bound) for kind, bound in stated.items())
    return "" if in_range else f"is out of its range, {bounds[0]}"


def _problem_of_choice(choices: re.Match, value: str) -> str:
    names = re.split(r", | or ", choices[0])
    patterns = ("" if name == "empty" else re.sub(r"(?<=:)N$", r"\\d+", re.escape(name)) for name in names)
    return "" if any(re.fullmatch(pattern, value) for pattern in patterns) else f"is none of {', '.join(names)}"


def _problem_of_place(place: re.Match, value: str) -> str:
    """What prevents a file or folder from being written at a path, as far as the files that exist now show it."""
    if not value:
        return "" if place["empty"] else f"does not name a {place['kind']} to write"
    path = Path(value)
    if place["kind"] == "folder" and path.is_file():
        return "is a file: name a folder"
    if place["kind"] == "file" and path.is_dir():
        return "is a folder: name a file"
    file = next(filter(Path.is_file, path.parents), None)
    return f"lies inside {file}, which is a file: name another place" if file else ""
