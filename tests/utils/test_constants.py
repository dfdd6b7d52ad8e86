import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from utils import constants
from utils.constants import Range, override_constants, save_constants
from utils.errors import InputError

COMMANDS = sorted([*constants.REPOSITORY.glob("*.py"), *(constants.REPOSITORY / "utils").glob("gallery.py")])

WITH_CONSTANTS = sorted(  # all that has constants which a user may set
    path
    for pattern in ("*.py", "utils/**/*.py", "benchmarks/*.py", "assets/*.py")
    for path in constants.REPOSITORY.glob(pattern)
    if "\n    override_constants(globals())" in path.read_text()
    or " = override_constants(globals())" in path.read_text()
)
FREE_TEXTS = {  # what to read or to ask a library for: nothing here knows all that it may be
    "DATA_ROOT", "REPORTS_ROOT", "ROOT", "REAL", "SYNTHETIC", "IMAGES_ROOT", "TRAIN", "WRITTEN", "TREES", "LABELS_CSV",
    "CONFIG", "FINDINGS", "TEXT", "VIEWS", "HOLD_OUT", "CHECKPOINT", "CHECKPOINTS", "BART_CHECKPOINT", "INITIAL_WEIGHTS",
    "BASE_MODEL", "TEXT_ENCODER", "REFERENCE_ENCODER", "TOKENIZER", "PRETRAINED", "PRETRAINED_FILE", "SCHEDULER",
    "JUDGE_MODEL", "SELECTOR_MODEL", "CLASSIFIER_MODEL", "PARTS", "VARIANTS", "TRAINING", "SAMPLING", "EVALUATION",
    "DATA_ROOTS", "ASSETS",
}  # fmt: skip

SCRIPT = '''"""Trains nothing.

    python my_script.py --BATCH_SIZE 64
"""

BATCH_SIZE = 32  # images a step, 100 % of them (1 to 1000; a multiple of PARTS)
PARTS = 1  # of a step (1 or more)
LEARNING_RATE = 5e-5  # of AdamW
    {comment}
VIEWS = ("PA",)  # views
BETAS = (0.9, 0.999)  # of AdamW (both 0 or more, 1 at most)
RUN_DIR = "runs/a"  # where results go (a folder to write)
RESUME = True  # go on
MODE = "fast"  # how (fast, slow or slow:N)
lower_case = 1
'''.replace("    {comment}", "        # after the warm-up (above 0, 1 at most)")


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
        found = Range(comment, default)
        assert found.words == stated.removeprefix("each ").removeprefix("both ")
        assert found.multiple_of == ("B" if "multiple" in comment else "")
        for value in (default, *allowed):
            found.check(value, "here")
        for value in refused:
            with pytest.raises(InputError, match=r"^here: "):
                found.check(value, "here")


@pytest.mark.parametrize(
    ("comment", "default"),
    [
        ("a number", 3),
        ("(1 or more) a number", 3),
        ("a number (1 upwards)", 3),
        ("a number (1 or more, paper: 3)", 3),
        ("numbers (1 or more)", (1, 2)),
        ("a number (each 1 or more)", 3),
        ("a number (fast or slow)", 3),
        ("patient groups that are never trained on (they count as the split test)", "p19"),
        ("a flag (True or False)", True),
    ],
)
def test_words_that_state_no_range(comment, default):
    found = Range(comment, default)
    assert not found.words
    found.check("anything", "here")


def test_a_place_to_write_that_cannot_be_one(script, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "new" / "folder"):
        assert script("--RUN_DIR", str(place))["RUN_DIR"] == str(place)
        Range("a page (a file to write)", "").check(str(place / "page.html"), "here")
    for place, message in (
        ("file", "is a file: name a folder"),
        ("file/a/b", "lies inside .*file, which is a file"),
        ("a" * 300, "cannot be written: file name too long"),
    ):
        with pytest.raises(InputError, match=f"^--RUN_DIR: '.* {message}"):
            script("--RUN_DIR", str(tmp_path / place))
    with pytest.raises(InputError, match="'' names no folder to write"):
        script("--RUN_DIR", "")
    with pytest.raises(InputError, match=r"^here: '.*' is a folder: name a file"):
        Range("a page (a file to write)", "").check(str(tmp_path), "here")
    Range("a page (a file to write or empty; empty: beside the tree)", "").check("", "here")


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
        ("LEARNING_RATE = 5e-5", "LEARNING_RATE = 1e999", "^edited, LEARNING_RATE: inf is no finite number$"),
        ("BATCH_SIZE = 32", "BATCH_SIZE = 4 * 8", "^edited, BATCH_SIZE: a constant is a plain value"),
        ("BATCH_SIZE = 32", "BATCH_SIZE = [32][0]", "^edited, BATCH_SIZE: a constant is a plain value"),
    ):
        edited.write_text(SCRIPT.replace(old, new))
        with pytest.raises(InputError, match=message):
            override_constants({"__file__": str(edited)}, [])


def test_a_multiple_of_another_constant(script):
    assert script("--PARTS", "8")["PARTS"] == 8
    with pytest.raises(InputError, match=r"^--BATCH_SIZE: 9 is no multiple of PARTS, which is 2$"):
        script("--BATCH_SIZE", "9", "--PARTS", "2")
    with pytest.raises(InputError, match=r"^my_script, BATCH_SIZE: 32 is no multiple of PARTS, which is 5$"):
        script("--PARTS", "5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BATCH_SIZE = 1" + "0" * 30, "bits; 63 are the most"),
        ("LEARNING_RATE = 1" + "0" * 400, "bits; 63 are the most"),
        ("LEARNING_RATE = inf", "inf is no finite number"),
        ("LEARNING_RATE = nan", "nan is no finite number"),
        ("BETAS = [0.9, inf]", "inf is no finite number"),
        ("LEARNING_RATE = 1979-05-27", "is not of the type"),
        ('RUN_DIR = "a\\u0000b"', "holds a NUL character"),
        ("RUN_DIR = " + "[" * 20_000, "is no TOML file"),
        ("BATCH_SIZE = " + "9" * 5000, "is no TOML file"),
    ],
)
def test_values_that_no_constant_has(script, config, text, message):
    with pytest.raises(InputError, match=message) as refused:
        script(*config(f"[common]\n{text}\n"))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize("text", ["[" * 20_000, "-" * 100_000 + "1", "9" * 5000, "0x" + "f" * 9000, "{[]: 1}", "1 if"])
def test_texts_that_are_no_number(script, text):
    with pytest.raises(InputError, match=r"is not of the type|bits; 63 are the most") as refused:
        script(f"--BATCH_SIZE={text}")
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("path", WITH_CONSTANTS, ids=lambda path: path.stem)
def test_every_constant_states_its_range(path):
    """Every number, and every text that is not free: so that none can be added without."""
    defaults = override_constants({"__file__": str(path)}, [])
    comments = constants._comments(path)
    assert defaults
    for name, default in defaults.items():
        found = Range(comments[name], default)
        sample = default[0] if isinstance(default, tuple) and default else default
        free = type(sample) is bool or (isinstance(sample, (str, tuple)) and name in FREE_TEXTS)
        assert bool(found.words) != free, f"{name}: {comments[name]!r} has to end in a range, see utils/ranges.py"
        if found.multiple_of:
            with pytest.raises(InputError):
                Range(comments[found.multiple_of], defaults[found.multiple_of]).check(0, "")


def test_a_free_text_is_a_constant():
    assert not FREE_TEXTS - {name for path in WITH_CONSTANTS for name in constants._comments(path)}
    assert len(WITH_CONSTANTS) >= 15


TRAINERS = (
    "train_diffusion_clipSD", "train_diffusion_clipUViT", "train_bart", "train_prior_model", "distill_diffusion"
)  # fmt: skip
DIFFUSION_TRAINERS, DIFFUSION_SAMPLERS = TRAINERS[:2], ("sample_diffusion_clipSD", "sample_diffusion_clipUViT")
EVERY_SCRIPT = (*TRAINERS, *DIFFUSION_SAMPLERS, "sample_prior_model", "evaluate_pairs")
REFUSED = {  # constant => (scripts, values that are refused)
    "BATCH_SIZE": (EVERY_SCRIPT, ["0", "-1", "1000000000000"]),
    "ACCUMULATION": (TRAINERS, ["0", "-1", "1000000000000", "7"]),
    "PATCH_SIZE": (("train_diffusion_clipUViT", "train_prior_model"), ["0", "-1", "1000000000000"]),
    "EMBED_DIM": (("train_diffusion_clipUViT", "train_prior_model"), ["0", "-1", "1000000000000", "130"]),
    "NUM_HEADS": (("train_diffusion_clipUViT", "train_prior_model"), ["0", "-1", "1000000000000", "5"]),
    "DEPTH": (("train_diffusion_clipUViT", "train_prior_model"), ["0", "-1", "1000000000000"]),
    "ENCODE_BATCH_SIZE": (
        (*DIFFUSION_TRAINERS, "train_prior_model", "distill_diffusion"),
        ["0", "-1", "1000000000000"],
    ),
    "IMAGE_SIZE": ((*DIFFUSION_TRAINERS, "train_prior_model", "evaluate_pairs"), ["0", "-1", "1000000000000"]),
    "CHECKPOINT_EVERY": (TRAINERS, ["0", "-1"]),
    "LOG_EVERY": (TRAINERS, ["0", "-1"]),
    "KEEP_CHECKPOINTS": (TRAINERS, ["-1"]),
    "VALIDATION_ROWS": (TRAINERS, ["-1"]),
    "MAX_STEPS": (TRAINERS, ["-5"]),
    "EPOCHS": (TRAINERS, ["0", "-1", "1000000000000"]),
    "WARMUP_STEPS": (TRAINERS, ["-1"]),
    "BETAS": (TRAINERS, ["(1.5, 0.9)", "(0.9,)", "0.9,1", "(-0.1, 0.9)", "()", "(0.9, 0.9, 0.9)"]),
    "OPTIMIZER": (TRAINERS, ["adam", "", "Muon"]),
    "LEARNING_RATE": (TRAINERS, ["0", "-1", "inf", "nan", "1e999", "1e9"]),
    "WEIGHT_DECAY": (TRAINERS, ["-0.1", "1e999"]),
    "CLIP_NORM": (TRAINERS, ["-1", "1e999"]),
    "EMA_DECAY": (TRAINERS, ["1", "-0.1", "2"]),
    "LR_SCHEDULE": (TRAINERS, ["piecewise_constant", "", "Cosine"]),
    "PRECISION": ((*TRAINERS, *DIFFUSION_SAMPLERS, "sample_prior_model"), ["fp8", ""]),
    "DEVICE": (EVERY_SCRIPT, ["meta", "xla", "gpu", "cuda:", "cuda:-1", "cpu:0"]),
    "NUM_WORKERS": (EVERY_SCRIPT, ["-1", "1000000"]),
    "SEED": (EVERY_SCRIPT, ["1e30", "-1", "1" + 30 * "0"]),
    "PREDICTION": (DIFFUSION_TRAINERS, ["sample", ""]),
    "TIMESTEPS": (DIFFUSION_TRAINERS, ["logit", "", "lognormal"]),
    "TIMESTEP_MEAN": (DIFFUSION_TRAINERS, ["-11", "1e999", "nan"]),
    "PROMPT": (DIFFUSION_TRAINERS, ["report", "", "Impression"]),
    "DROP_TEXT": ((*DIFFUSION_TRAINERS, "distill_diffusion"), ["-0.1", "1.1"]),
    "PREVIEW_STEPS": (DIFFUSION_TRAINERS, ["0", "-1", "2000"]),
    "PREVIEW_GUIDANCE": (DIFFUSION_TRAINERS, ["1e999", "-1", "1e9"]),
    "LATENT_NOISE": (("train_bart",), ["-1", "1e999"]),
    "EVALUATION_REPORTS": (("train_bart",), ["-1"]),
    "POOLING": (("train_bart", "train_prior_model", "sample_prior_model"), ["cls", ""]),
    "COSINE_WEIGHT": (("train_prior_model",), ["-1", "1e999"]),
    "STEPS": (DIFFUSION_SAMPLERS, ["0", "-1", "2000"]),
    "STUDENT_STEPS": (("distill_diffusion",), ["0", "-1", "251"]),
    "TEACHER_STEPS": (("distill_diffusion",), ["0", "-1", "251"]),
    "TEXT_GUIDANCE": ((*DIFFUSION_SAMPLERS, "distill_diffusion"), ["1e999", "nan", "-1", "1e9"]),
    "REFERENCE_GUIDANCE": ((*DIFFUSION_SAMPLERS, "distill_diffusion"), ["1e999", "nan", "-1", "1e9"]),
    "IMAGES_PER_LABEL": (DIFFUSION_SAMPLERS, ["0", "-1", "1000000000000"]),
    "MAX_LABELS": (DIFFUSION_SAMPLERS, ["-1"]),
    "CONDITION": (DIFFUSION_SAMPLERS, ["none", ""]),
    "LATENT_GAIN": (("train_prior_model", "sample_prior_model"), ["1e999", "nan", "-1", "1e9"]),
    "DECODING": (("sample_prior_model",), ["sampling", ""]),
    "BEAMS": (("sample_prior_model",), ["0", "-1", "1000000000000"]),
    "TOP_P": (("sample_prior_model",), ["0", "1.1", "-1"]),
    "TEMPERATURE": (("sample_prior_model",), ["0", "-1", "1e999"]),
    "MAX_TOKENS": (("sample_prior_model",), ["0", "-1"]),
    "SAVE_EVERY": (("sample_prior_model",), ["0", "-1"]),
    "SPLIT": ((*DIFFUSION_SAMPLERS, "sample_prior_model", "evaluate_pairs"), ["valid", "p19"]),
    "FEATURES": (("evaluate_pairs",), ["mine", ""]),
    "CLASSIFIER": (("evaluate_pairs",), ["mine"]),
    "TEXT_JUDGE": (("evaluate_pairs",), ["mine"]),
    "NEIGHBOURS": (("evaluate_pairs",), ["0", "-1"]),
    "DIVERSITY_PAIRS": (("evaluate_pairs",), ["-1", "1000000000000"]),
    "BOOTSTRAP": (("evaluate_pairs",), ["0", "-1", "1000000000000"]),
    "JUDGE_IMAGE_SIZE": (("evaluate_pairs",), ["0", "-1", "1000000000000"]),
    "JUDGE_STEPS": (("evaluate_pairs",), ["0", "-1", "1000000000000"]),
    "JUDGE_BATCH_SIZE": (("evaluate_pairs",), ["0", "-1", "1", "1000000000000"]),
    "JUDGE_LEARNING_RATE": (("evaluate_pairs",), ["0", "-1", "1e9", "1e999"]),
    "COPY_QUANTILE": (("evaluate_pairs",), ["5", "-1", "nan"]),
    "CLOSEST": (("evaluate_pairs",), ["0", "-1", "1000000000000"]),
    "PAGE_IMAGES": (("evaluate_pairs",), ["-1"]),
    "MAX_IMAGES": (("utils/gallery",), ["-1"]),
    "STUDIES": (("phantom/__main__",), ["0", "-1", "1000000000000"]),
}


@pytest.mark.parametrize(
    ("script_name", "name", "text"),
    [(script, name, text) for name, (scripts, texts) in REFUSED.items() for script in scripts for text in texts],
)
def test_a_value_out_of_its_range_is_refused_by_name(script_name, name, text):
    path = constants.REPOSITORY / f"{script_name}.py"
    with pytest.raises(InputError, match=rf"^(--{name}|{path.stem}, BATCH_SIZE|{path.stem}, EMBED_DIM): ") as refused:
        override_constants({"__file__": str(path)}, [f"--{name}={text}"])
    assert "\n" not in str(refused.value)


PLACES = [
    (path, name)
    for path in WITH_CONSTANTS
    for name, comment in constants._comments(path).items()
    if "folder to write" in comment or "file to write" in comment
]


@pytest.mark.parametrize(("path", "name"), PLACES, ids=lambda value: getattr(value, "stem", value))
def test_a_place_that_is_taken_is_refused_before_anything_is_done(path, name, tmp_path):
    """A folder's name that a file has, a page's name that a folder has, and either inside a file."""
    (tmp_path / "file").write_text("mine")
    taken = tmp_path if name in ("PAGE", "DRAWN") else tmp_path / "file"
    for place in (taken, tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match=rf"^--{name}: '.*' (is a f|lies inside .* which is a file)") as refused:
            override_constants({"__file__": str(path)}, [f"--{name}={place}"])
        assert "\n" not in str(refused.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_every_script_has_a_place_to_write():
    assert {path for path, _ in PLACES} >= set(constants.REPOSITORY.glob("*.py"))


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
    assert "images a step, 100 % of them (1 to 1000; a multiple of PARTS) [77]" in text
    assert "of AdamW after the warm-up (above 0, 1 at most) [5e-05]" in text
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


@pytest.mark.parametrize("name", ["demo.toml", "open.toml", "open-gpu.toml"])
def test_the_repositorys_configs_are_accepted(name):
    config = constants.REPOSITORY / name
    for section in set(tomllib.loads(config.read_text())) - {"common"}:
        places = f"{section}.py", f"utils/{section}.py", f"utils/{section}/__main__.py"
        script = next(path for path in map(constants.REPOSITORY.joinpath, places) if path.exists())
        constants._resolve(script, ["--config", str(config)])
