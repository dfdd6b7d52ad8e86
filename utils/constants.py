"""Constants at the top of a script, overridden by a TOML file and by --NAME VALUE.

A constant is an UPPER_CASE name of the script's module. Three places set its value; each overrides those before it:

    1. the script itself               BATCH_SIZE = 32  # images an optimiser step (1 to 1024)
    2. --config FILE.toml              the table [common], then the table named after the script
    3. --BATCH_SIZE 64                 on the command line

A value has to have the type of the default: text stays text, an int may stand for a float, and a tuple of texts may be
written `PA,AP`. The comment behind a constant is its help text. A parenthesis at its end states the range, which is
checked wherever the value comes from:

    BATCH_SIZE = 32  # images an optimiser step (1 to 65536; a multiple of ACCUMULATION)
    LEARNING_RATE = 5e-5  # after the warm-up (above 0, 1 at most)
    BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, below 1)
    FEATURES = ("judge",)  # features that are compared (each judge, inception or rad-dino)
    DEVICE = ""  # where it runs (empty, cpu, cuda or cuda:N; empty: the best there is)
    PAGE = ""  # the gallery page (a file to write or empty; empty: beside the tree)

    number   LOW to HIGH, or LOW or more, or above LOW; after a comma also: below HIGH, or HIGH at most
    text     the choices, each of one or two words, the last after "or"; `empty` stands for "", the N of `cuda:N` for a
             whole number
    path     `a folder to write` or `a file to write`, optionally followed by `or empty`
    tuple    the same for its values, after `each` (one value or more) or `both` (two values)

The text after a semicolon is for readers only, except `a multiple of NAME`, which names another constant. Every number
has to have a range (a test checks that); a text without one may be anything.

The script's file is parsed and never executed, so that a script can answer --help before its slow imports.
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils.errors import InputError, reason, run, say, writing

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = ("*.py", "*/__main__.py", "models/weights.py", "evaluation/gallery.py")  # may have a table in a TOML file
GONE = {  # former constant => what to do instead; a name that the script in question still has is never looked up here
    "DOWNSTREAM": "models trained on synthetic pairs are measured by `make utility`; remove it",
    "BASE_MODEL": "this script needs no VAE; remove it",
    "CHECK": "every run tries one step before its long work; remove it",
    "HEAD_ROWS": "the prior's head starts from random weights; remove it",
    "RESUME": "a run in RUN_DIR is always resumed; name another RUN_DIR for a new run",
    "GRADIENT_CHECKPOINTING": "raise ACCUMULATION to save memory",
    "PRETRAINED_FILE": "set PRETRAINED = 'local-dir:FOLDER'",
    "REPORTS_ROOT": "put or link the reports into DATA_ROOT",
    "START": "images start from noise alone; remove it",
    "CANDIDATES": "set IMAGES_PER_LABEL, and choose among the images with select_pairs.py",
    "KEEP": "images are chosen by select_pairs.py, which has it; remove it",
    "MAX_REQUESTS": "requests are not replaced; raise IMAGES_PER_LABEL, or remove it",
    "RADGRAPH": "RadEval computes it from the evaluation's radeval.csv; remove it",
    "JUDGE_ONLY": "an evaluation of the images trains the judge; remove it",
    "IMAGES_ROOT": "put the CSV into the folder that its image names start from",
    "SYNTHETIC_SPLIT": "a synthetic tree is evaluated whole, a real one by SPLIT; remove it",
    "JUDGE_BATCH_SIZE": "it is 64; remove it. A judge of another size is trained again, with other figures",
    **dict.fromkeys(("DROP_TEXT", "DROP_REFERENCE", "DROP_BOTH"), "set PROMPT_DROPOUT = [text, reference, both]"),
    **dict.fromkeys(("POOLING", "TOKENIZER"), "convert an authors' BART by `python -m models.weights` first"),
    **dict.fromkeys(("LATENT_GAIN", "IMAGE_GUIDANCE", "FLOW_TEMPERATURE"), "set it in sample_prior_model"),
    **dict.fromkeys(("GUIDANCE_LOW", "GUIDANCE_HIGH"), "set GUIDANCE_INTERVAL = [lowest, highest]"),
}
_SETTLED = {  # former constant => its value now; any value given for it is refused, as one of GONE
    "PATCH_SIZE": "2, the paper's", "TIMESTEP_MEAN": "-0.7", "WEIGHT_DECAY": "0.01 here, the paper's",
    "BETAS": "(0.9, 0.999), the paper's", "CLIP_NORM": "1", "OPTIMIZER": "AdamW here", "ACCUMULATION": "1 here",
    "ENCODE_BATCH_SIZE": "64", "COSINE_WEIGHT": "0.01, the paper's", "FLOW_WIDTH": "4 EMBED_DIM, 1024 at most",
    "FLOW_DEPTH": "3", "FLOW_DRAWS": "4", "DROP_IMAGE": "0.1", "PAGE": "<SYNTHETIC>.html beside the tree",
    "SELECTOR_BATCH_SIZE": "64",
}  # fmt: skip
GONE |= {name: f"it is {value}; remove it" for name, value in _SETTLED.items()}
GONE |= {
    f"SELECTOR_{name}": f"images are chosen by select_pairs.py: set its JUDGE_{name}"
    for name in ("MODEL", "STEPS", "LEARNING_RATE", "IMAGE_SIZE")
}
FIXED = {  # former constant => where its value is now; a value given for it is ignored, with a note
    "VALIDATION_ROWS": "1000 rows, training/loop.py", "LOG_EVERY": "50 steps, training/loop.py",
    "KEEP_CHECKPOINTS": "`best` and `last` are kept", "PREVIEW_STEPS": "25, training/preview.py",
    "PREVIEW_GUIDANCE": "3.0, training/preview.py", "PREVIEW_REPORTS": "8, train_bart.py",
    "KEEP_LATENTS": "latents are always kept", "SAVE_EVERY": "1000 reports, sample_prior_model.py",
    "NUM_WORKERS": "4 threads, sampling/reference_pool.py, evaluation/images.py",
    "NEIGHBOURS": "5, evaluation/sections.py", "DIVERSITY_PAIRS": "500, evaluation/sections.py",
    "BOOTSTRAP": "1000, evaluation/metrics.py", "CLOSEST": "8, evaluation/report.py",
    "PAGE_IMAGES": "5000, evaluation/report.py", "COPY_QUANTILE": "0.01, evaluation/copies.py",
}  # fmt: skip
GONE_TABLES = {"open_cxr": "open_data"}  # former table of a TOML file => its name now


def check_command_line(name: str, file: str) -> None:
    """Prints --help and refuses wrong arguments, as `override_constants` does, before a script's slow imports.

    name, file: the script's __name__ and __file__.
    """
    if name == "__main__":
        run(lambda: resolve(Path(file), sys.argv[1:]))


def override_constants(namespace: dict, arguments: list[str] | None = None) -> dict:
    """Sets a script's constants from its config file and its command line, and returns all of them.

    namespace: the script's globals(); arguments: the command line, by default sys.argv[1:]. InputError for an unknown
    name, a wrong type, a value out of its range, or a misspelt flag. --help prints docstring and constants, and exits.
    """
    values, notes = resolve(Path(namespace["__file__"]), sys.argv[1:] if arguments is None else arguments)
    for note in notes:
        say(note)
    namespace.update(values)
    return values


def save_constants(folder: str | Path, constants: dict) -> None:
    """Writes the resolved constants beside a result, as `<folder>/constants.json`."""
    folder = Path(folder)
    with writing("the constants", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "constants.json").write_text(json.dumps(constants, indent=2) + "\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; --help lists the constants")


def resolve(path: Path, arguments: Iterable[str]) -> tuple[dict, list[str]]:
    """The values of all constants of a script, {name: value}, after its config file and its command line.

    Also returns a sentence for each ignored value of a constant that is now FIXED.
    """
    script, notes = read_script(path), []
    config_parser = _Parser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config")
    config, rest = config_parser.parse_known_args(list(arguments))
    values = dict(script.defaults)
    origins = {name: f"{script.name}, {name}" for name in values}  # where each value was set, for messages
    if config.config:
        for name, value, origin in _read_config(Path(config.config), script, path, notes):
            values[name], origins[name] = value, origin

    given, unknown = _command_line_parser(script, values).parse_known_args(rest)
    if unknown:
        raise InputError(_unknown_constant(unknown[0], values))
    for name, text in vars(given).items():
        if name in values:
            origins[name] = f"--{name}"
            values[name] = _parse(text, script.defaults[name], origins[name])
        else:
            notes.append(_ignored(f"--{name}", name))
    for name, value in values.items():
        stated = read_range(script.comments[name], script.defaults[name])
        if stated:
            stated.check(value, origins[name])
            other = stated.multiple_of
            if other and value % values[other]:
                raise InputError(f"{origins[name]}: {value} is not a multiple of {other}, which is {values[other]}")
    return values, notes


def _command_line_parser(script: "Script", values: dict) -> _Parser:
    parser = _Parser(
        prog=script.name,
        description=script.docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage=f"{script.name} [--config FILE.toml] [--NAME VALUE ...]",
    )
    parser.add_argument("--config", metavar="FILE.toml", help="a file of constants, see demo.toml")
    for name, value in values.items():
        text = f"{script.comments[name]}  [{value!r}]".strip().replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="VALUE", help=text)
    for name in FIXED.keys() - values.keys():
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def _ignored(where: str, name: str) -> str:
    return f"{where} is ignored: {name} is no longer a constant ({FIXED[name]}); remove it"


def _unknown_constant(name: str, known: Iterable[str]) -> str:
    """The message for a name that is not a constant of the script: what replaces it, or a similar name."""
    bare = name.lstrip("-").split("=")[0]
    if bare in GONE:
        return f"the constant {bare} is gone: {GONE[bare]}"
    return f"there is no constant {name!r}{_suggestion(bare, known)}; --help lists all constants"


def _suggestion(name: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {similar[0]}?)" if similar else ""


# ---- reading a script ----------------------------------------------------------------------------------------------


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
                raise InputError(
                    f"{name}, {target.id}: a constant has to be a plain value, such as 3, 0.5, True or 'text'"
                ) from error
    comments = _read_comments(text)
    return Script(name, ast.get_docstring(tree) or "", defaults, {key: comments.get(key, "") for key in defaults})


def _script_name(path: Path) -> str:
    return path.parent.name if path.stem == "__main__" else path.stem


def _read_comments(text: str) -> dict[str, str]:
    """{constant: comment} of the lines `NAME = value  # comment`."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*) = .*?(?:  # (.*))?$", text, re.MULTILINE))


def _read_config(path: Path, script: Script, script_path: Path, notes: list[str]) -> list[tuple[str, object, str]]:
    """(name, value, where it stands) of each of a script's constants in a TOML file; adds to the notes of `resolve`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from error
    except ValueError as error:  # broken TOML or broken UTF-8
        raise InputError(f"{path} is not a TOML file: {reason(error)}") from error
    scripts = {_script_name(file): file for pattern in SCRIPTS for file in REPOSITORY.glob(pattern)}
    scripts[script.name] = script_path
    for table, entries in tables.items():
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {table} = {entries!r} stands outside of a table; put it under [common]")
        if table in GONE_TABLES:
            raise InputError(f"{path}: the table [{table}] is now called [{GONE_TABLES[table]}]; rename it")
        if table != "common" and table not in scripts:
            raise InputError(
                f"{path}: the table [{table}] does not name a script{_suggestion(table, scripts)}; use [common] or a "
                "script's name"
            )
    found = []
    for table in ("common", script.name):
        for name, value in tables.get(table, {}).items():
            if name in script.defaults:
                where = f"{path}, [{table}], {name}"
                found.append((name, _as_type_of(script.defaults[name], value, where), where))
            elif table == "common" and any(
                name in _read_comments(file.read_text("utf-8")) for file in scripts.values()
            ):
                continue  # another script's
            elif name in FIXED:
                notes.append(_ignored(f"{path}, [{table}], {name}", name))
            else:
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
        sample = default[0] if default else ""
        return tuple(_as_type_of(sample, item, where) for item in value)
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(
            f"{where}: {reason(repr(value))} is not of the type of the default {default!r} ({type(default).__name__})"
        )
    return value


# ---- ranges --------------------------------------------------------------------------------------------------------

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

    words: str  # as the comment has them
    count: str  # of a tuple: "each" or "both"; else ""
    multiple_of: str  # the name of another constant, or ""
    problem_of: Callable[[object], str]  # value => what is wrong, "" if nothing is

    def check(self, value: object, where: str) -> None:
        """InputError, which begins with `where`, for a value out of the range."""
        values = value if self.count else (value,)
        if self.count == "both" and len(values) != 2:
            raise InputError(f"{where}: {value!r} has to have 2 values")
        if not values:
            raise InputError(f"{where}: {value!r} has to have 1 value or more")
        for item in values:
            problem = self.problem_of(item)
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
        match = grammar.fullmatch(stated["words"])
        if match:
            multiple = _MULTIPLE.search(stated["further"] or "")
            count = (stated["count"] or "").strip()
            return Range(stated["words"], count, multiple["name"] if multiple else "", partial(problem_of, match))
    return None


def _problem_of_number(bounds: re.Match, value: float) -> str:
    in_range = math.isfinite(value) and all(
        _COMPARISONS[kind](value, float(bound)) for kind, bound in bounds.groupdict().items() if bound
    )
    return "" if in_range else f"is out of its range, {bounds[0]}"


def _problem_of_choice(choices: re.Match, value: str) -> str:
    names = re.split(r", | or ", choices[0])
    for name in names:
        pattern = "" if name == "empty" else re.sub(r"(?<=:)N$", r"\\d+", re.escape(name))
        if re.fullmatch(pattern, value):
            return ""
    return f"is none of {', '.join(names)}"


def _problem_of_place(place: re.Match, value: str) -> str:
    """What prevents a file or folder from being written at a path, as far as the files that exist now show it."""
    if not value:
        return "" if place["empty"] else f"does not name a {place['kind']} to write"
    path = Path(value)
    try:
        if place["kind"] == "folder" and path.exists() and not path.is_dir():
            return "is a file: name a folder"
        if place["kind"] == "file" and path.is_dir():
            return "is a folder: name a file"
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                return f"lies inside {parent}, which is a file: name another place"
    except OSError as error:  # a name that is too long, a loop of links
        return f"cannot be written: {os.strerror(error.errno).lower()}"
    return ""
