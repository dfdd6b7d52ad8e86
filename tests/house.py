"""The size and structure of the repository: `python tests/house.py` prints it, tests/test_house.py holds its limits.

It prints the imports between folders, the lines of each package and the constants of each script, then what is beyond a
limit, and ends with status 1 if anything is.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {  # a folder => the folders that it may import
    "scripts": {"sampling", "training", "evaluation", "models", "utils", "uvit"},
    "sampling": {"evaluation", "models", "utils"},
    "training": {"models", "utils"},
    "evaluation": {"models", "utils"},
    "open_data": {"evaluation", "utils"},
    "phantom": {"utils"},
    "models": {"utils", "uvit"},
    "utils": set(),
    "uvit": set(),
}
UTILS_MODULES, UTILS_LINES, ALL_LINES = 16, 3200, 15_000
MODULE_LINES, FUNCTION_LINES, SCRIPT_LINES = 500, 70, 300
DOCUMENT_LINES = {"README.md": 150, "docs/results.md": 250}
TRAINERS = (
    "train_diffusion_clipSD",
    "train_diffusion_clipUViT",
    "train_bart",
    "train_prior_model",
    "distill_diffusion",
)
IMAGE_SAMPLERS = ("sample_diffusion_clipSD", "sample_diffusion_clipUViT")


def python_files() -> dict[str, list[Path]]:
    """{folder: its Python files}, without tests; the scripts at the top stand under "scripts"."""
    files = {"scripts": sorted(ROOT.glob("*.py"))}
    for folder in (*(folder for folder in MAY_IMPORT if folder != "scripts"), "benchmarks", "assets"):
        files[folder] = sorted((ROOT / folder).rglob("*.py"))
    return files


def imported_folders(file: Path) -> set[str]:
    """The folders of this project that a file imports, its functions' imports included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    scripts = {path.stem for path in ROOT.glob("*.py")}
    folders = {"scripts" if name in scripts else name for name in names}
    return folders & {*MAY_IMPORT, "benchmarks", "assets", "tests"}


def folder_edges() -> Counter:
    """(importing folder, imported folder) => how many files of the first import the second; within a package: none."""
    edges = Counter()
    for folder, files in python_files().items():
        for file in files:
            within = set() if folder == "scripts" else {folder}  # no script imports a script
            edges.update((folder, other) for other in imported_folders(file) - within)
    return edges


def count_lines(*files: Path) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def constants(script: Path) -> list[str]:
    """The UPPER_CASE names that a script assigns at its top; a name with an underscore first is the script's own."""
    names = [
        target.id
        for node in ast.parse(script.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return [name for name in names if name.isupper() and not name.startswith("_")]


def constants_limit(script: Path) -> int:
    if script.stem in TRAINERS:
        return 32
    return 28 if script.stem in IMAGE_SAMPLERS else 25


def function_lengths(file: Path) -> dict[str, int]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, functions)]
    return {f"{node.name}, line {node.lineno}": node.end_lineno - node.lineno + 1 for node in nodes}


def total_lines() -> int:
    """Lines of Python outside tests and assets."""
    return sum(count_lines(*files) for folder, files in python_files().items() if folder != "assets")


def broken_limits() -> list[str]:
    """One sentence a limit that is exceeded."""
    files = python_files()
    sizes = [
        ("modules in utils/", len([file for file in files["utils"] if file.name != "__init__.py"]), UTILS_MODULES),
        ("lines in utils/", count_lines(*files["utils"]), UTILS_LINES),
        ("lines without tests and assets", total_lines(), ALL_LINES),
    ]
    sizes += [(f"lines in {name}", count_lines(ROOT / name), limit) for name, limit in DOCUMENT_LINES.items()]
    for script in files["scripts"]:
        sizes.append((f"constants in {script.name}", len(constants(script)), constants_limit(script)))
    for folder, paths in files.items():
        for path in paths:
            name = path.relative_to(ROOT)
            sizes.append((f"lines in {name}", count_lines(path), SCRIPT_LINES if folder == "scripts" else MODULE_LINES))
            sizes += [(f"lines in {name}: {f}", length, FUNCTION_LINES) for f, length in function_lengths(path).items()]
    broken = [f"{count} {what}, at most {limit}" for what, count, limit in sizes if count > limit]
    for (folder, other), count in sorted(folder_edges().items()):
        if folder in MAY_IMPORT and other not in MAY_IMPORT[folder]:
            broken.append(f"{folder} imports {other}, in {count} files")
    return broken


def main():
    files = python_files()
    for (folder, other), count in sorted(folder_edges().items()):
        print(f"{folder:>12} -> {other:<12} {count:3} files")
    for folder, paths in files.items():
        print(f"{folder:>12} {len(paths):3} modules {count_lines(*paths):6} lines")
    print(f"{'all':>12} {total_lines():18} lines, without tests and assets")
    for script in files["scripts"]:
        print(f"{script.name:>32} {count_lines(script):4} lines {len(constants(script)):3} constants")
    broken = broken_limits()
    print(*(f"TOO MUCH: {sentence}" for sentence in broken), sep="\n")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
