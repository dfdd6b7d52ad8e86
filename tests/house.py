"""The size and structure of the repository: `python tests/house.py` prints it, tests/test_house.py holds its limits.

Folder edges, lines of each package, constants of each script.
"""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("utils", "uvit", "models", "training", "sampling", "evaluation", "open_data", "phantom")
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


def python_files() -> dict[str, list[Path]]:
    """{folder: its Python files}; the scripts at the top stand under "scripts", tests are left out."""
    files = {"scripts": sorted(ROOT.glob("*.py"))}
    for folder in (*PACKAGES, "benchmarks", "assets"):
        files[folder] = sorted((ROOT / folder).rglob("*.py"))
    return files


def imported_folders(file: Path) -> set[str]:
    """The folders of this project that a file imports, its functions' imports included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    folders = {name.split(".")[0] for name in names}
    scripts = {path.stem for path in ROOT.glob("*.py")}
    return {"scripts" if folder in scripts else folder for folder in folders if folder in {*PACKAGES, *scripts}}


def folder_edges() -> Counter:
    """(importing folder, imported folder) => how many files of the first import the second; within a folder: none."""
    edges = Counter()
    for folder, files in python_files().items():
        if folder in MAY_IMPORT:
            for file in files:
                edges.update((folder, other) for other in imported_folders(file) if other != folder)
                if folder == "scripts" and "scripts" in imported_folders(file):
                    edges["scripts", "scripts"] += 1
    return edges


def count_lines(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def constants(script: Path) -> list[str]:
    """The UPPER_CASE names that a script assigns at its top."""
    return [
        node.targets[0].id
        for node in ast.parse(script.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and node.targets[0].id.isupper() and not node.targets[0].id.startswith("_")
    ]


def main():
    files = python_files()
    for (folder, other), count in sorted(folder_edges().items()):
        print(f"{folder:>12} -> {other:<12} {count:3} files")
    for folder, paths in files.items():
        print(f"{folder:>12} {len(paths):3} modules {count_lines(paths):6} lines")
    print(f"{'all':>12} {count_lines(sum((files[folder] for folder in files if folder != 'assets'), [])):18} lines, without tests and assets")
    for script in files["scripts"]:
        print(f"{script.name:>32} {count_lines([script]):4} lines {len(constants(script)):3} constants")


if __name__ == "__main__":
    main()
