import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils import constants
from utils.constants import override_constants, save_constants
from utils.errors import InputError

COMMANDS = sorted([*constants.REPOSITORY.glob("*.py"), *(constants.REPOSITORY / "utils").glob("gallery.py")])

SCRIPT = '''"""Trains nothing.

    python my_script.py --BATCH_SIZE 64
"""

BATCH_SIZE = 32  # images a step, 100 % of them
LEARNING_RATE = 5e-5  # of AdamW
    {comment}
VIEWS = ("PA",)  # views
BETAS = (0.9, 0.999)  # of AdamW
RUN_DIR = "runs/a"  # where results go
RESUME = True  # go on
lower_case = 1
'''.replace("    {comment}", "        # after the warm-up")


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
    assert set(script()) == {"BATCH_SIZE", "LEARNING_RATE", "VIEWS", "BETAS", "RUN_DIR", "RESUME"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
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
    ],
)
def test_a_value_is_read_as_its_defaults_type(script, name, text, value):
    for arguments in ((f"--{name}", text), (f"--{name}={text}",)):
        found = script(*arguments)[name]
        assert found == value and type(found) is type(value)
        assert not isinstance(value, tuple) or [type(item) for item in found] == [type(item) for item in value]


def test_toml_values(script, config):
    values = script(*config("[common]\nVIEWS = ['AP', 'PA']\nLEARNING_RATE = 1\nBETAS = [0, 1.0]\n"))
    assert values["VIEWS"] == ("AP", "PA")
    assert values["LEARNING_RATE"] == 1.0 and type(values["LEARNING_RATE"]) is float
    assert [type(beta) for beta in values["BETAS"]] == [float, float]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BATCH_SIZE", "3.5"),
        ("BATCH_SIZE", "many"),
        ("BATCH_SIZE", "True"),
        ("LEARNING_RATE", "True"),
        ("RESUME", "1"),
        ("RESUME", "no"),
        ("BETAS", "a,b"),
        ("BETAS", "0.9"),
        ("VIEWS", "(1, 2)"),
        ("BATCH_SIZE", "__import__('os').getpid()"),
    ],
)
def test_another_type_is_refused_by_name(script, name, text):
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
    with pytest.raises(InputError, match=r"\[my_scrip\] names no script \(did you mean my_script"):
        script(*config("[my_scrip]\nBATCH_SIZE = 3\n"))
    with pytest.raises(InputError, match="BATCH_SIZE = 3 stands outside of a table"):
        script(*config("BATCH_SIZE = 3\n"))
    with pytest.raises(InputError, match=r"my.toml, \[common\], BATCH_SIZE: '3' is not of the type"):
        script(*config("[common]\nBATCH_SIZE = '3'\n"))


def test_an_unreadable_config_is_refused(script, config, tmp_path):
    with pytest.raises(InputError, match="is no TOML file"):
        script(*config("[common\n"))
    (tmp_path / "latin.toml").write_bytes(b"[common]\nRUN_DIR = '\xe9'\n")
    with pytest.raises(InputError, match="is no TOML file"):
        script("--config", str(tmp_path / "latin.toml"))
    with pytest.raises(InputError, match=r"cannot read the config file .*absent\.toml"):
        script("--config", "absent.toml")
    with pytest.raises(InputError, match="expected one argument"):
        script("--config")


def test_a_common_constant_may_be_another_scripts(script, config, tmp_path, monkeypatch):
    (tmp_path / "other_script.py").write_text("PATIENTS = 3  # patients\n")
    monkeypatch.setattr(constants, "REPOSITORY", Path(tmp_path))
    assert "PATIENTS" not in script(*config("[common]\nPATIENTS = 4\n[other_script]\nANYTHING = 1\n"))
    with pytest.raises(InputError, match="there is no constant 'PATIENTS'"):
        script(*config("[my_script]\nPATIENTS = 4\n"))


def test_help_shows_docstring_comments_and_current_values(script, config, capsys):
    with pytest.raises(SystemExit) as end:
        script("--help", *config("[common]\nBATCH_SIZE = 77\n"))
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Trains nothing. python my_script.py --BATCH_SIZE 64" in text
    assert "images a step, 100 % of them [77]" in text
    assert "of AdamW after the warm-up [5e-05]" in text
    assert "lower_case" not in text


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_answer_before_their_slow_imports(path):
    """--help, a misspelt name and a wrong type need neither torch nor pandas, which take seconds to import."""
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'numpy', 'pandas', 'transformers', 'diffusers'))  # cannot be imported\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def answer(*arguments):
        command = [sys.executable, "-c", code, str(path), *arguments]
        return subprocess.run(command, cwd=constants.REPOSITORY, capture_output=True, text=True)

    shown = answer("--help")
    assert (shown.returncode == 0 and "--SEED VALUE" in shown.stdout) or "--PAGE VALUE" in shown.stdout
    for arguments, message in (
        (("--SEEED", "3"), "there is no constant '--SEEED'"),
        (("--config", "no.toml"), "no.toml"),
    ):
        refused = answer(*arguments)
        assert refused.returncode == 1 and message in refused.stderr and "Traceback" not in refused.stderr


def test_constants_are_saved_beside_a_result(script, tmp_path):
    values = script("--VIEWS", "PA,AP")
    save_constants(tmp_path / "run", values)
    saved = json.loads((tmp_path / "run" / "constants.json").read_text())
    assert saved == {**values, "VIEWS": ["PA", "AP"], "BETAS": [0.9, 0.999]}
