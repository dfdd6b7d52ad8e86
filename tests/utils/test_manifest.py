"""What folders are written into: those that this project began, with one set of settings, one run at a time."""

import json
import os
from pathlib import Path

import pytest

from phantom import draw_tree
from utils.errors import InputError
from utils.folders import (
    DRAWN_TREE,
    MANIFEST_FILE,
    OPEN_TREE,
    SYNTHETIC_TREE,
    WRITTEN_REPORTS,
    is_same_folder,
    making,
    read_manifest,
)

SETTINGS = {"steps": 25, "scheduler": "PNDM", "guidance": 7.5}


def make(folder, part=SYNTHETIC_TREE, settings=SETTINGS, inside="", piece="piece.txt"):
    with making(part, folder, settings, inside):
        assert read_manifest(folder)[part] == settings  # before the first piece
        Path(folder, piece).write_text("made")


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_is_begun_and_gone_on_with(tmp_path):
    for folder in (tmp_path / "absent", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        make(folder)
        make(folder)
        make(f"{folder}/../{folder.name}//")
        assert read_manifest(folder) == {SYNTHETIC_TREE: SETTINGS}


@pytest.mark.parametrize("name", ["steps", "scheduler", "guidance", "another"])
def test_any_other_setting_is_refused(tmp_path, name):
    make(tmp_path / "made")
    with pytest.raises(InputError, match=f"begun with {name} = .*, this run has 'other'; set OUTPUT_ROOT to another"):
        make(tmp_path / "made", settings={**SETTINGS, name: "other"})
    with pytest.raises(InputError, match=r"this run has None"):
        make(tmp_path / "made", settings={"steps": 25})


def test_settings_without_a_piece_may_be_changed(tmp_path):
    with pytest.raises(RuntimeError), making(SYNTHETIC_TREE, tmp_path, SETTINGS):
        raise RuntimeError("before the first piece")
    make(tmp_path, settings={"steps": 50})


SPELLINGS = {
    "itself": lambda root: root,
    "slash": lambda root: f"{root}/",
    "relative": lambda root: os.path.relpath(root),
    "dots": lambda root: root / "files" / "..",
    "link": lambda root: root.parent / "link",
    "link in a link": lambda root: root.parent / "outer" / "tree",
    "parent": lambda root: root.parent,
    "its files": lambda root: root / "files",
    "a new folder inside": lambda root: root / "new",
    "a new group": lambda root: root / "files" / "p99",
    "a new folder behind a link to its files": lambda root: root.parent / "files of another" / "p99",
    "a new folder behind a link": lambda root: root.parent / "link" / "new",
}


@pytest.mark.parametrize("part", [SYNTHETIC_TREE, DRAWN_TREE, OPEN_TREE, WRITTEN_REPORTS])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("real", [True, False])
def test_nothing_is_written_into_a_tree_of_others(tmp_path, part, spelling, real):
    """real: a tree without a manifest, as MIMIC-CXR-JPG is; else one that was drawn here, with other settings."""
    root = tmp_path / "data" / "tree"
    draw_tree(root, studies=2, image_size=32)
    if real:
        (root / MANIFEST_FILE).unlink()
        (root / ".lock").unlink(missing_ok=True)
    (tmp_path / "data" / "link").symlink_to(root)
    (tmp_path / "data" / "outer").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "files of another").symlink_to(root / "files")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="OUTPUT_ROOT|lies inside the CXR tree"):
        make(SPELLINGS[spelling](root), part)
    assert contents(tmp_path) == before
    assert not (root / "new").exists() and not (root / "files" / "p99").exists()


def test_drawing_over_another_tree_is_refused(tmp_path):
    draw_tree(tmp_path / "tree", studies=2, image_size=32)
    before = contents(tmp_path)
    draw_tree(tmp_path / "tree", studies=2, image_size=32)
    for other in ({"studies": 1}, {"seed": 7}, {"image_size": 48}):
        with pytest.raises(InputError, match=f"drawn tree .* was begun with {next(iter(other))}"):
            draw_tree(tmp_path / "tree", **{"studies": 2, "image_size": 32, **other})
    assert contents(tmp_path) == before
    (tmp_path / "tree" / MANIFEST_FILE).unlink()
    with pytest.raises(InputError, match="has no manifest.json"):
        draw_tree(tmp_path / "tree", studies=2, image_size=32)


def test_a_file_a_loop_and_a_damaged_manifest_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is no folder"):
        make(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop"):
        make(tmp_path / "loop")
    for number, content in enumerate(["", "{", "[]", '{"synthetic tree": 3}', "\xff", "[" * 100_000]):
        folder = tmp_path / str(number)
        make(folder)
        (folder / MANIFEST_FILE).write_text(content, encoding="latin-1")
        with pytest.raises(InputError, match=f"{number}/manifest.json is damaged"):
            make(folder)


def test_reports_go_into_a_synthetic_tree_and_into_no_other(tmp_path):
    make(tmp_path / "made")
    make(tmp_path / "made", WRITTEN_REPORTS, {"gain": 1.0}, inside=SYNTHETIC_TREE, piece="reports.csv")
    assert read_manifest(tmp_path / "made") == {SYNTHETIC_TREE: SETTINGS, WRITTEN_REPORTS: {"gain": 1.0}}
    make(tmp_path / "made")  # more images
    with pytest.raises(InputError, match=r"begun with gain = 1\.0, this run has 2\.0"):
        make(tmp_path / "made", WRITTEN_REPORTS, {"gain": 2.0}, inside=SYNTHETIC_TREE)
    with pytest.raises(InputError, match="holds a synthetic tree and written reports"):
        make(tmp_path / "made", DRAWN_TREE)
    make(tmp_path / "written", WRITTEN_REPORTS, {"gain": 1.0})
    with pytest.raises(InputError, match="is no synthetic tree"):
        make(tmp_path / "written", WRITTEN_REPORTS, {"gain": 1.0}, inside=SYNTHETIC_TREE)
    make(tmp_path / "other")
    with pytest.raises(InputError, match="holds a synthetic tree, and no written reports"):
        make(tmp_path / "other", WRITTEN_REPORTS, {"gain": 1.0})


def test_one_run_at_a_time(tmp_path):
    with making(SYNTHETIC_TREE, tmp_path / "made", SETTINGS):
        for part, inside in ((SYNTHETIC_TREE, ""), (WRITTEN_REPORTS, SYNTHETIC_TREE)):
            with pytest.raises(InputError, match="another run|lock|already") as error:
                make(tmp_path / "made", part, inside=inside)
            assert "\n" not in str(error.value)
    make(tmp_path / "made")


def test_temporary_files_of_killed_runs_go(tmp_path):
    make(tmp_path)
    left = [tmp_path / f".synthetic.csv.{'a' * 32}.tmp", tmp_path / "files" / "p90" / f".x.jpg.{'b' * 32}.tmp"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    make(tmp_path)
    assert not any(path.exists() for path in left) and (tmp_path / "piece.txt").exists()

    killed = tmp_path / "killed before its manifest"
    killed.mkdir()
    (killed / f".{MANIFEST_FILE}.{'c' * 32}.tmp").write_text("{")
    make(killed)
    assert json.loads((killed / MANIFEST_FILE).read_text()) == {SYNTHETIC_TREE: SETTINGS}


def test_paths_of_one_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_same_folder(tmp_path, f"{tmp_path}/link/") and not is_same_folder(tmp_path, tmp_path.parent)
