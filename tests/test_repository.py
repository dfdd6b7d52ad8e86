"""Rules of the house that a machine can check."""

import ast
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from training.loop import DEFAULTS, FIT_CONSTANTS
from utils.constants import tomllib

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
MODULES = sorted([*(ROOT / "utils").rglob("*.py"), *(ROOT / "uvit").rglob("*.py")])


def imported(path):
    """The names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # a module of a package, perhaps


def constants(path):
    """The names of the constants at the top of a file."""
    return re.findall(r"^([A-Z][A-Z0-9_]*) = ", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [*SCRIPTS, *MODULES], ids=lambda path: path.name)
def test_imports_run_one_way(path):
    scripts = {script.stem for script in SCRIPTS}
    assert not scripts & {name.split(".")[0] for name in imported(path)}


def reachable(start, edges):
    """All that `start` leads to along edges, a dict of sets."""
    found, following = set(), set(edges[start])
    while following:
        found |= following
        following = set().union(*(edges.get(name, set()) for name in following)) - found
    return found


def test_no_module_and_no_folder_imports_one_that_imports_it_back():
    folders = ("uvit", "utils", "tests", "benchmarks", "assets")
    files = [*SCRIPTS, *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    home = {
        name: "scripts" if path.parent == ROOT else path.relative_to(ROOT).parts[0] for name, path in modules.items()
    }
    edges = {name: set(imported(path)) & set(modules) for name, path in modules.items()}
    between = {folder: set() for folder in home.values()}
    for name, others in edges.items():
        between[home[name]] |= {home[other] for other in others} - {home[name]}
    for graph in (edges, between):
        assert any(graph.values())
        for start in graph:
            assert start not in reachable(start, graph), f"{start} is imported by what it imports"
    assert not between["uvit"], "uvit/ is a leaf"


def test_functions_fit_on_a_screen_and_scripts_on_a_few():
    for path in [*SCRIPTS, *MODULES, *(ROOT / "assets").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        text = path.read_text()
        assert path not in SCRIPTS or text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"
    assert (ROOT / "README.md").read_text().count("\n") <= 180


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_constant_is_explained_and_read(path):
    text = path.read_text()
    if "sample_tree(" in text:  # which reads the constants of the image samplers
        text += (ROOT / "sampling" / "tree.py").read_text()
    for name in constants(path):
        assert re.search(rf"^{name} = .*  # \w", text, re.MULTILINE), f"{name} has no comment"
        read = len(re.findall(rf"\b{name}\b", text)) > 1
        assert read or ("fit(" in text and name in {*FIT_CONSTANTS, *DEFAULTS}), f"{name} is not read"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_only_main_reads_constants(path):
    names = set(constants(path))
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
        assert not set(FIT_CONSTANTS) - set(constants(path)), path.name


@pytest.mark.parametrize("kind", ["train", "sample"])
def test_the_diffusion_scripts_differ_by_the_backbone_alone(kind):
    """Outside of docstring, imports and constants, at most ten lines of the twins differ."""
    bodies = []
    for backbone in ("clipSD", "clipUViT"):
        text = (ROOT / f"{kind}_diffusion_{backbone}.py").read_text()
        bodies.append(set(text[text.index("\ndef ") :].splitlines()))
    assert len(bodies[0] ^ bodies[1]) <= 10, sorted(bodies[0] ^ bodies[1])


def test_demo_config_names_scripts_and_their_constants():
    config = tomllib.loads((ROOT / "demo.toml").read_text())
    files = [*SCRIPTS, *MODULES]
    known = {path.parent.name if path.stem == "__main__" else path.stem: set(constants(path)) for path in files}
    everywhere = set().union(*known.values())
    for table, entries in config.items():
        assert table == "common" or table in known
        unknown = set(entries) - (everywhere if table == "common" else known[table])
        assert not unknown, f"[{table}] {unknown}"


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
    found = (path.parent for folder in ("uvit", "utils") for path in (ROOT / folder).rglob("__init__.py"))
    assert sorted(packages) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in found)


def test_readme_names_every_script_and_make_target():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in [path.name for path in SCRIPTS] + [f"make {target}" for target in targets]:
        assert name in readme, name
