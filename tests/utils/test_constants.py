import gc
import json
import re
import subprocess
import sys

import pytest

from utils import constants
from utils.constants import (
    REPOSITORY,
    override_constants,
    read_range,
    read_script,
    save_constants,
)
from utils.errors import InputError

FOLDERS = ("", "evaluation", "models", "open_data", "phantom", "benchmarks", "assets")
WITH_CONSTANTS = sorted(  # all files with constants that a user may set
    path
    for folder in FOLDERS
    for path in (REPOSITORY / folder).glob("*.py")
    if re.search(r"^    (\w+ = )?override_constants\(globals\(\)\)", path.read_text(), re.MULTILINE)
)
COMMANDS = [path for path in WITH_CONSTANTS if path.parent == REPOSITORY or path.stem == "gallery"]
NAMES = {path: f"{path.parent.name}/{path.stem}" for path in WITH_CONSTANTS}
FREE_TEXTS = {  # paths to read and names that other libraries know: any text may be right
    "DATA_ROOT", "REPORTS_ROOT", "ROOT", "REAL", "SYNTHETIC", "TRAIN", "WRITTEN", "TREES", "LABELS_CSV",
    "CONFIG", "FINDINGS", "TEXT", "VIEWS", "HOLD_OUT", "CHECKPOINT", "CHECKPOINTS", "BART_CHECKPOINT",
    "INITIAL_WEIGHTS", "TWINS", "TWINS_OF", "FILMS", "TOGGLE", "TARGET", "SHORTCUT",
    "BASE_MODEL", "TEXT_ENCODER", "REFERENCE_ENCODER", "TOKENIZER", "PRETRAINED", "PRETRAINED_FILE", "SCHEDULER",
    "JUDGE_MODEL", "CLASSIFIER_MODEL", "PARTS", "VARIANTS", "EVALUATION",
    "TITLE", "COLUMNS", "ATTACKER", "CANARY", "VERIFIER_MODEL",
    "DATA_ROOTS", "ASSETS", "RECORD", "REPORTS", "PIPELINE", "HOST",
}  # fmt: skip

SCRIPT = '''"""Trains nothing.

    python my_script.py --BATCH_SIZE 64
"""

BATCH_SIZE = 32  # images a step, 100 % of them (1 to 1000; a multiple of PARTS)
PARTS = 1  # of a step (1 or more)
LEARNING_RATE = 5e-5  # of AdamW after the warm-up (above 0, 1 at most)
VIEWS = ("PA",)  # views
BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, 1 at most)
RUN_DIR = "runs/a"  # where results go (a folder to write)
RESUME = True  # go on
MODE = "fast"  # how (fast, slow or slow:N)
lower_case = 1
'''


@pytest.fixture
def script(tmp_path):
    """A function: arguments => (constants, the script's globals after override_constants)."""
    path = tmp_path / "my_script.py"
    path.write_text(SCRIPT)

    def override(*arguments):
        namespace = {"__file__": str(path)}
        exec(compile(SCRIPT, path, "exec"), namespace)
        values = override_constants(namespace, arguments)
        assert all(namespace[name] == value for name, value in values.items())
        return values

    return override


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "my.toml").write_text(text)
        return "--config", str(tmp_path / "my.toml")

    return write


def test_the_script_its_config_and_the_command_line_in_this_order(script, config):
    assert script()["BATCH_SIZE"] == 32
    common = config("[common]\nBATCH_SIZE = 1\nRUN_DIR = 'b'\nRESUME = false\n")
    assert script(*common) | {"BATCH_SIZE": 1} == script(*common)
    own = config("[my_script]\nBATCH_SIZE = 2\n[common]\nBATCH_SIZE = 1\nRUN_DIR = 'b'\n")
    assert script(*own)["BATCH_SIZE"] == 2 and script(*own)["RUN_DIR"] == "b"
    assert script("--BATCH_SIZE", "3", *own)["BATCH_SIZE"] == 3
    assert set(script()) == {"BATCH_SIZE", "PARTS", "LEARNING_RATE", "VIEWS", "BETAS", "RUN_DIR", "RESUME", "MODE"}


def test_a_value_is_read_as_its_defaults_type(script):
    for name, text, value in (
        ("BATCH_SIZE", "64", 64),
        ("LEARNING_RATE", "1", 1.0),
        ("LEARNING_RATE", "1e-3", 0.001),
        ("VIEWS", "PA,AP", ("PA", "AP")),
        ("VIEWS", "PA", ("PA",)),
        ("VIEWS", "", ()),
        ("VIEWS", "1,2", ("1", "2")),
        ("VIEWS", "('PA', 'AP')", ("PA", "AP")),
        ("BETAS", "0.5,1", (0.5, 1.0)),
        ("BETAS", "[0.5, 1]", (0.5, 1.0)),
        ("RUN_DIR", "007", "007"),
        ("RUN_DIR", "a=b, c", "a=b, c"),
        ("RUN_DIR", "__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("RESUME", "False", False),
        ("RESUME", "false", False),
        ("RESUME", "True", True),
    ):
        for arguments in ((f"--{name}", text), (f"--{name}={text}",)):
            found = script(*arguments)[name]
            assert found == value and type(found) is type(value)
            assert not isinstance(value, tuple) or [type(item) for item in found] == [type(item) for item in value]


def test_toml_values(script, config):
    values = script(*config("[common]\nVIEWS = ['AP', 'PA']\nLEARNING_RATE = 1\nBETAS = [0, 1.0]\n"))
    assert values["VIEWS"] == ("AP", "PA")
    assert values["LEARNING_RATE"] == 1.0 and type(values["LEARNING_RATE"]) is float
    assert [type(beta) for beta in values["BETAS"]] == [float, float]


def test_another_type_is_refused_by_name(script):
    for name, text in (
        ("BATCH_SIZE", "3.5"),
        ("BATCH_SIZE", "many"),
        ("BATCH_SIZE", "True"),
        ("BATCH_SIZE", "1 if"),
        ("BATCH_SIZE", "__import__('os').getpid()"),
        ("LEARNING_RATE", "True"),
        ("RESUME", "1"),
        ("RESUME", "no"),
        ("BETAS", "a,b"),
        ("BETAS", "0.9"),
        ("VIEWS", "(1, 2)"),
    ):
        with pytest.raises(InputError, match=f"--{name}: .* is not of the type"):
            script(f"--{name}", text)


def test_unknown_names_are_refused_with_a_suggestion(script, config):
    with pytest.raises(InputError, match=r"'--BATCH_SIZ'.*did you mean BATCH_SIZE\?"):
        script("--BATCH_SIZ", "3")
    with pytest.raises(InputError, match="did you mean BATCH_SIZE"):
        script("--BATCHSIZE=3")
    with pytest.raises(InputError, match="there is no constant 'stray'"):
        script("stray")
    with pytest.raises(InputError, match=r"\[my_script\]: there is no constant 'RUN_DIRR' \(did you mean RUN_DIR"):
        script(*config("[my_script]\nRUN_DIRR = 'a'\n"))
    with pytest.raises(InputError, match=r"\[common\]: there is no constant 'RUN_DIRR'"):
        script(*config("[common]\nRUN_DIRR = 'a'\n"))
    with pytest.raises(InputError, match=r"\[my_scrip\] does not name a script \(did you mean my_script"):
        script(*config("[my_scrip]\nBATCH_SIZE = 3\n"))
    with pytest.raises(InputError, match="BATCH_SIZE = 3 stands outside of a table"):
        script(*config("BATCH_SIZE = 3\n"))
    with pytest.raises(InputError, match=r"my.toml, \[common\], BATCH_SIZE: '3' is not of the type"):
        script(*config("[common]\nBATCH_SIZE = '3'\n"))


# ---- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "default", "allowed", "refused"),
    [
        ("1 or more", 3, [1, 2**63 - 1], [0, -1]),
        ("0 to 1", 0.5, [0.0, 1.0], [-1e-9, 1.0000001]),
        ("-2 to 0.5", 0, [-2, 0], [-3, 1]),
        ("above 0, 1 at most", 5e-5, [1e-300, 1.0], [0.0, -1.0, 1.5, 1e9]),
        ("0 or more, below 1", 0.9, [0.0, 0.999], [1.0, -0.1]),
        ("above 1e-3", 0.5, [0.002], [0.001]),
        ("both 0 or more, below 1", (0.9, 0.999), [(0.0, 0.5)], [(0.9,), (), (0.1, 0.2, 0.3), (1.5, 0.9), (0.9, 1.0)]),
        ("each 0 or more", (1, 2), [(0,), (1, 2, 3)], [(), (1, -1)]),
        ("fast or slow", "fast", ["fast", "slow"], ["", "FAST", "fast ", "fa", "fast, slow"]),
        (
            "empty, cpu, cuda or cuda:N",
            "",
            ["", "cpu", "cuda", "cuda:0", "cuda:12"],
            ["empty", "cuda:", "cuda:N", "mps"],
        ),
        ("a.b or c", "c", ["a.b"], ["axb"]),
        ("each judge, inception or rad-dino", ("judge",), [("judge", "rad-dino")], [(), ("judge", "mine")]),
    ],
)
def test_a_range_in_plain_words(stated, default, allowed, refused):
    for comment in (
        f"what it is, in words (of it) ({stated})",
        f"what ({stated}; paper: 7)",
        f"({stated}; a multiple of B)",
    ):
        found = read_range(comment, default)
        assert found.multiple_of == ("B" if "multiple" in comment else "")
        for value in (default, *allowed):
            found.check(value, "here")
        for value in refused:
            with pytest.raises(InputError, match=r"^here: "):
                found.check(value, "here")


def test_words_that_state_no_range():
    for comment, default in (
        ("a number", 3),
        ("(1 or more) a number", 3),
        ("a number (1 upwards)", 3),
        ("a number (1 or more, paper: 3)", 3),
        ("numbers (1 or more)", (1, 2)),
        ("a number (each 1 or more)", 3),
        ("a number (fast or slow)", 3),
        ("patient groups that are never trained on (they count as the split test)", "p19"),
        ("a flag (True or False)", True),
    ):
        assert read_range(comment, default) is None, comment


def test_a_place_to_write_that_cannot_be_one(script, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "new" / "folder"):
        assert script("--RUN_DIR", str(place))["RUN_DIR"] == str(place)
        read_range("a page (a file to write)", "").check(str(place / "page.html"), "here")
    for place, message in (
        ("file", "is a file: name a folder"),
        ("file/a/b", "lies inside .*file, which is a file"),
    ):
        with pytest.raises(InputError, match=f"^--RUN_DIR: '.* {message}"):
            script("--RUN_DIR", str(tmp_path / place))
    with pytest.raises(InputError, match="'' does not name a folder to write"):
        script("--RUN_DIR", "")
    with pytest.raises(InputError, match=r"^here: '.*' is a folder: name a file"):
        read_range("a page (a file to write)", "").check(str(tmp_path), "here")
    read_range("a page (a file to write or empty; empty: beside the tree)", "").check("", "here")


def test_a_range_holds_wherever_the_value_comes_from_and_the_message_says_where(script, config, tmp_path):
    with pytest.raises(InputError, match=r"^--BATCH_SIZE: 0 is out of its range, 1 to 1000$"):
        script("--BATCH_SIZE", "0")
    with pytest.raises(InputError, match=r"my.toml, \[common\], BATCH_SIZE: 0 is out of its range, 1 to 1000$"):
        script(*config("[common]\nBATCH_SIZE = 0\n"))
    assert script("--BATCH_SIZE", "3", *config("[common]\nBATCH_SIZE = 0\n"))["BATCH_SIZE"] == 3
    with pytest.raises(InputError, match=r"^--MODE: 'slower' is none of fast, slow, slow:N$"):
        script("--MODE", "slower")
    edited = tmp_path / "edited.py"
    for old, new, message in (
        ("BATCH_SIZE = 32", "BATCH_SIZE = 0", "^edited, BATCH_SIZE: 0 is out of its range, 1 to 1000$"),
        (
            "LEARNING_RATE = 5e-5",
            "LEARNING_RATE = 1e999",
            "^edited, LEARNING_RATE: inf is out of its range, above 0, 1 at most$",
        ),
        ("BATCH_SIZE = 32", "BATCH_SIZE = 4 * 8", "^edited, BATCH_SIZE: a constant has to be a plain value"),
        ("BATCH_SIZE = 32", "BATCH_SIZE = [32][0]", "^edited, BATCH_SIZE: a constant has to be a plain value"),
    ):
        edited.write_text(SCRIPT.replace(old, new))
        with pytest.raises(InputError, match=message):
            override_constants({"__file__": str(edited)}, [])


def test_a_multiple_of_another_constant(script):
    assert script("--PARTS", "8")["PARTS"] == 8
    with pytest.raises(InputError, match=r"^--BATCH_SIZE: 9 is not a multiple of PARTS, which is 2$"):
        script("--BATCH_SIZE", "9", "--PARTS", "2")
    with pytest.raises(InputError, match=r"^my_script, BATCH_SIZE: 32 is not a multiple of PARTS, which is 5$"):
        script("--PARTS", "5")


@pytest.mark.parametrize("text", ["LEARNING_RATE = inf", "LEARNING_RATE = nan", "BETAS = [0.9, inf]"])
def test_a_number_has_to_be_finite(script, config, text):
    with pytest.raises(InputError, match="is out of its range"):
        script(*config(f"[common]\n{text}\n"))


# ---- the constants of every script ---------------------------------------------------------------------------------


def defaults_of(path):
    return override_constants({"__file__": str(path)}, [])


@pytest.mark.parametrize("path", WITH_CONSTANTS, ids=NAMES.get)
def test_every_constant_states_its_range(path):
    """Every number, and every text that is not free."""
    defaults, comments = defaults_of(path), read_script(path).comments
    assert defaults
    for name, default in defaults.items():
        stated = read_range(comments[name], default)
        sample = default[0] if isinstance(default, tuple) and default else default
        free = type(sample) is bool or (isinstance(sample, (str, tuple)) and name in FREE_TEXTS)
        assert (stated is not None) != free, f"{name}: {comments[name]!r} has to end in a range, see utils/constants.py"
        if stated and stated.multiple_of:
            with pytest.raises(InputError):
                read_range(comments[stated.multiple_of], defaults[stated.multiple_of]).check(0, "")


def test_every_script_checks_its_ranges():
    """One value of each script."""
    checked = set()
    for path in WITH_CONSTANTS:
        names = [name for name, default in defaults_of(path).items() if type(default) is int]
        for name in names[:1]:
            with pytest.raises(InputError, match=f"^--{name}: -1000000 is out of its range"):
                override_constants({"__file__": str(path)}, [f"--{name}=-1000000"])
            checked.add(path)
    assert len(checked) >= 15


def test_a_place_that_is_taken_is_refused_before_anything_is_done(tmp_path):
    """A folder's name that a file has, a file's name that a folder has, and either inside a file."""
    (tmp_path / "file").write_text("mine")
    for path in WITH_CONSTANTS:
        comments = read_script(path).comments
        places = [name for name, comment in comments.items() if re.search("a (folder|file) to write", comment)]
        for name in places:
            taken = tmp_path / "file" if "a folder to write" in comments[name] else tmp_path
            for place in (taken, tmp_path / "file" / "inside"):
                with pytest.raises(InputError, match=f"^--{name}: '.*' (is a f|lies inside .* which is a file)"):
                    override_constants({"__file__": str(path)}, [f"--{name}={place}"])
        assert places or path.parent != REPOSITORY or path.stem == "app", f"{path.name} has no place to write"
    assert (tmp_path / "file").read_text() == "mine"


# ---- config files and the command line -----------------------------------------------------------------------------


def test_an_unreadable_config_is_refused(script, config, tmp_path):
    with pytest.raises(InputError, match="is not a TOML file"):
        script(*config("[common\n"))
    (tmp_path / "latin.toml").write_bytes(b"[common]\nRUN_DIR = '\xe9'\n")
    with pytest.raises(InputError, match="is not a TOML file"):
        script("--config", str(tmp_path / "latin.toml"))
    with pytest.raises(InputError, match=r"cannot read the config file .*absent\.toml"):
        script("--config", "absent.toml")
    with pytest.raises(InputError, match="expected one argument"):
        script("--config")


def test_a_common_constant_may_be_another_scripts(script, config, tmp_path, monkeypatch):
    (tmp_path / "other_script.py").write_text("PATIENTS = 3  # patients\n")
    monkeypatch.setattr(constants, "REPOSITORY", tmp_path)
    assert "PATIENTS" not in script(*config("[common]\nPATIENTS = 4\n[other_script]\nANYTHING = 1\n"))
    with pytest.raises(InputError, match="there is no constant 'PATIENTS'"):
        script(*config("[my_script]\nPATIENTS = 4\n"))


def test_help_shows_docstring_comments_and_current_values(script, config, capsys):
    with pytest.raises(SystemExit) as end:
        script("--help", *config("[common]\nBATCH_SIZE = 77\n"))
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Trains nothing. python my_script.py --BATCH_SIZE 64" in text
    assert "images a step, 100 % of them (1 to 1000; a multiple of PARTS) [77]" in text
    assert "of AdamW after the warm-up (above 0, 1 at most) [5e-05]" in text
    assert "lower_case" not in text


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_answer_before_their_slow_imports(path):
    """--help, a misspelt name and a wrong type need neither torch nor pandas, which take seconds to import."""
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'numpy', 'pandas', 'transformers', 'diffusers'))  # cannot be "
        "imported\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def answer(*arguments):
        command = [sys.executable, "-c", code, str(path), *arguments]
        return subprocess.run(command, cwd=constants.REPOSITORY, capture_output=True, text=True)

    shown = answer("--help")
    assert shown.returncode == 0 and re.search("--(SEED|PAGE|OUTPUT) VALUE", shown.stdout)
    for arguments, message in (
        (("--SEEED", "3"), "there is no constant '--SEEED'"),
        (("--config", "no.toml"), "no.toml"),
    ):
        refused = answer(*arguments)
        assert refused.returncode == 1 and message in refused.stderr and "Traceback" not in refused.stderr


def test_garbage_is_collected_again_after_the_imports(script, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_bart.py"])
    constants.check_command_line("__main__", REPOSITORY / "train_bart.py")
    assert not gc.isenabled()
    script()
    assert gc.isenabled()


def test_constants_are_saved_beside_a_result(script, tmp_path):
    values = script("--VIEWS", "PA,AP")
    save_constants(tmp_path / "run", values)
    saved = json.loads((tmp_path / "run" / "constants.json").read_text())
    assert saved == {**values, "VIEWS": ["PA", "AP"], "BETAS": [0.9, 0.999]}
