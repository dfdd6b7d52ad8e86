"""What a machine can check of the repository: scripts and their constants, commands in documents, packaging."""

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import house
import pytest
from running import FIT_CONSTANTS
from safetensors import safe_open

from benchmarks import render
from training.loop import DEFAULTS
from utils.constants import override_constants

ROOT = house.ROOT
SCRIPTS = house.python_files()["scripts"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CONFIGS = ("demo.toml", "open.toml", "open-gpu.toml", "assets/parts.toml", "tests/soak.toml")


# ---- scripts and modules


def imported(path):
    """The names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # a module of a package, perhaps


def test_no_module_imports_one_that_imports_it_back():
    files = [path for paths in house.python_files().values() for path in paths]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    imports = {name: set(imported(path)) & set(modules) - {name} for name, path in modules.items()}
    while imports:
        lowest = [name for name, others in imports.items() if not others & set(imports)]
        assert lowest, f"a cycle among {sorted(imports)}"
        for name in lowest:
            del imports[name]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_constant_is_explained_and_read(path):
    text = path.read_text()
    if "sample_tree(" in text or "load_models(" in text:  # which read the constants of the samplers
        text += (ROOT / "sampling" / "tree.py").read_text()
    if "train_denoiser(" in text:  # which reads those of the denoisers' trainers
        text += (ROOT / "training" / "denoiser.py").read_text()
    if "sampling_arguments(" in text:  # which reads those of the report sampler
        text += (ROOT / "sampling" / "reports.py").read_text()
    for name in house.constants(path):
        assert re.search(rf"^{name} = .*  # \w", text, re.MULTILINE), f"{name} has no comment"
        read = len(re.findall(rf"\b{name}\b", text)) > 1
        assert read or ("fit(" in text and name in {*FIT_CONSTANTS, *DEFAULTS}), f"{name} is not read"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_only_main_reads_constants(path):
    names = set(house.constants(path))
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "main":
            read = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            assert not names & read, f"{node.name} reads {names & read}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_docstring_says_what_it_reads_and_writes(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert "Reads:" in docstring and "Writes:" in docstring and f"python {path.name}" in docstring


def test_trainers_have_what_fit_reads():
    for path in ROOT.glob("train_*.py"):
        assert not set(FIT_CONSTANTS) - set(house.constants(path)), path.name


@pytest.mark.parametrize("kind", ["train", "sample"])
def test_the_diffusion_scripts_differ_by_the_backbone_alone(kind):
    """Outside of docstring, imports and constants, at most ten lines of the twins differ."""
    bodies = []
    for backbone in ("clipSD", "clipUViT"):
        text = (ROOT / f"{kind}_diffusion_{backbone}.py").read_text()
        bodies.append(set(text[text.index("\ndef ") :].splitlines()))
    assert len(bodies[0] ^ bodies[1]) <= 10, sorted(bodies[0] ^ bodies[1])


# ---- commands and configurations


def program(words):
    """["a.py", ...] or ["-m", "a.b", ...] => the file that it runs, and its arguments."""
    if words[0] != "-m":
        return ROOT / words[0], words[1:]
    place = ROOT.joinpath(*words[1].split("."))
    return (place / "__main__.py" if place.is_dir() else place.with_suffix(".py")), words[2:]


def commands_of_document(path):
    """Every `python ...` in the blocks and the spans of a document, as words; a shell variable stands for a word."""
    text = path.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(span.split()) for span in re.findall(r"`(python [^`]+)`", prose)]
    for line in lines:
        if line.startswith("python "):
            line = re.sub(r"\$\w+", "clipUViT", line.replace("$condition", "text"))
            yield shlex.split(line, comments=True)[1:]


def commands_of_makefile():
    text = re.sub(r"\\\n", " ", (ROOT / "Makefile").read_text())
    variables = dict(re.findall(r"^(\w+) [?:]?= ?(.*)$", text, re.MULTILINE))
    for line in re.findall(r"\$\(RUN\) ([^&\n]*)", text):
        line = re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1]) or "given", line.split(" $(if ")[0])
        words = shlex.split(line.rstrip(")").replace("$*", "vae"))
        if words[:2] not in (["-m", "pip"], ["-m", "pytest"], ["-m", "ruff"]):
            yield words


def check_command(words):
    path, arguments = program(words)
    assert path.is_file(), f"{shlex.join(words)}: there is no {path}"
    if "--config" in arguments:
        place = arguments.index("--config")
        if not Path(arguments[place + 1]).exists():  # of the reader's own
            del arguments[place : place + 2]
    if arguments or "override_constants" in path.read_text():
        override_constants({"__file__": str(path)}, arguments)


@pytest.mark.parametrize("document", sorted({*DOCUMENTS} - {render.PAGE}), ids=lambda path: path.name)
def test_commands_of_the_documents_are_accepted(document, monkeypatch):
    """But for the results, whose commands are those of the commits that they name."""
    monkeypatch.chdir(ROOT)
    for words in commands_of_document(document):
        if not any(word.startswith("utils.") for word in words):  # in the changelog: what it was called before
            check_command(words)


def test_commands_of_the_makefile_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = list(commands_of_makefile())
    assert {"train_bart.py", "evaluate_pairs.py"} <= {words[0] for words in commands}
    for words in commands:
        check_command(words)


def test_toml_blocks_of_the_documents_are_accepted(tmp_path):
    for document in DOCUMENTS:
        for block in re.findall(r"^```toml\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
            check_config(block, tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_name_scripts_and_their_constants(name, tmp_path):
    check_config((ROOT / name).read_text(), tmp_path)


def check_config(text, tmp_path):
    """Every table is of a program, every constant is one of it, and every value is accepted."""
    (tmp_path / "config.toml").write_text(text)
    programs = [*SCRIPTS, *ROOT.glob("*/__main__.py"), ROOT / "models/weights.py", ROOT / "evaluation/gallery.py"]
    programs = {path.parent.name if path.stem == "__main__" else path.stem: path for path in programs}
    everywhere = set().union(*map(house.constants, programs.values()))
    for table, entries in tomllib.loads(text).items():
        assert table == "common" or table in programs, table
        unknown = set(entries) - (everywhere if table == "common" else set(house.constants(programs[table])))
        assert not unknown, f"[{table}] {unknown}"
    for path in programs.values():
        override_constants({"__file__": str(path)}, ["--config", str(tmp_path / "config.toml")])


# ---- documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


def test_readme_names_every_script_and_make_target():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {"lock", "clean"}
    for name in [path.name for path in SCRIPTS] + [f"make {target}" for target in targets]:
        assert name in readme, name
    for folder in house.MAY_IMPORT.keys() - {"scripts"}:
        assert f"`{folder}/`" in readme, folder


def test_figures_of_the_documents_are_those_of_the_records():
    records, readme = render.read_records(), render.README.read_text()
    assert render.PAGE.read_text() == render.page(records), "run python -m benchmarks.render"
    assert readme == render.fill(readme, render.MARK, render.demo_table(records)), "run python -m benchmarks.render"
    assert readme == render.fill(readme, render.SPEED, render.speed_table(records)), "run python -m benchmarks.render"
    for name, starts in render.OWN_PAGES.items():
        text = (render.PAGE.parent / name).read_text()
        assert text == render.own_page(name, records), "run python -m benchmarks.render"
        own = [each for each in records if each["name"].startswith(starts)]
        assert own and all(f"<!-- {each['name']} -->" in text and each["rows"] and each["commit"] for each in own)


def test_images_are_kept_in_two_folders_only():
    """Nothing of a patient's is committed by mistake: whatever looks like an image is a document's or the demo's."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git repository")
    images = re.findall(r"^.*\.(?:jpe?g|png|dcm|npy|npz|nii|zip|csv|gz)$", listed.stdout, re.MULTILINE)
    assert not [name for name in images if not name.startswith(("docs/pictures/", "assets/"))]


# ---- packaging


def test_assets_are_small():
    total = sum(path.stat().st_size for path in (ROOT / "assets" / "demo").rglob("*") if path.is_file())
    assert 0 < total <= 40_000_000


@pytest.mark.parametrize("assets", ["demo", "open"])
def test_text_encoders_have_the_names_that_every_transformers_reads(assets):
    file = ROOT / "assets" / assets / "base_model" / "text_encoder" / "model.safetensors"
    with safe_open(file, "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118 (it is no dict)


def test_python_and_requirements_are_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    python = project["project"]["requires-python"]
    environment = (ROOT / "environment.yml").read_text()
    assert f"python{python}" in environment and "--requirement requirements.txt" in environment
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert "target-version" not in project["tool"]["ruff"]  # follows from requires-python
    assert f"Python {python.removeprefix('>=')} or newer" in (ROOT / "README.md").read_text()


def test_every_requirement_has_a_lower_bound_and_a_reason_and_was_tested():
    lines = (ROOT / "requirements.txt").read_text().splitlines()[1:]
    assert lines and all(re.fullmatch(r"[\w-]+>=[\d.]+ +# \w.*", line) for line in lines), lines
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-tested.txt").read_text(), re.MULTILINE))
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    for line in lines:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        version = re.match(r"[\d.]+", tested[name.lower().replace("_", "-")])[0]
        assert [*map(int, version.rstrip(".").split("."))] >= [*map(int, bound.split("."))], name


def test_packages_are_those_that_there_are():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(house.MAY_IMPORT.keys() - {"scripts"})
    assert all((ROOT / package / "__init__.py").exists() for package in packages)
