"""Locks and manifests: scripts write only into folders that this project began, one run at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from phantom import draw_tree
from utils import folders
from utils.errors import InputError
from utils.folders import (
    DRAWN_TREE,
    MANIFEST_FILE,
    SYNTHETIC_TREE,
    WRITTEN_REPORTS,
    all_processes_agree,
    locked,
    making,
    read_manifest,
)

HOLDS = """
import multiprocessing, os, sys, time
from utils.folders import locked


def work():
    print(os.getpid(), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    with locked(sys.argv[1], "a training"):
        multiprocessing.get_context("fork").Process(target=work).start()  # as a loader's
        time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_killed_one_blocks_nobody(tmp_path):
    folder = tmp_path / "new" / "run"
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen([sys.executable, "-c", HOLDS, folder], cwd=root, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        message = r"another run is writing a training in .*run: wait until it has ended"
        with pytest.raises(InputError, match=message), locked(folder, "a training"):
            pass
        process.kill()
        process.wait()
        with locked(folder, "a training"):  # although what the killed one started may live on
            pass
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


def test_one_process_holds_a_folder_once_and_again_when_it_was_let_go(tmp_path):
    with (
        locked(tmp_path, "a training"),
        pytest.raises(InputError, match="another run"),
        locked(tmp_path, "a training"),
    ):
        pass
    with locked(tmp_path, "a training"):
        pass


def test_a_place_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="cannot write the lock under"), locked(tmp_path, "a training"):
        pass


@pytest.mark.parametrize(("calls_before", "agree"), [(0, True), (2, True), (5, False)])
def test_a_late_file_server_is_waited_for(monkeypatch, calls_before, agree):
    """The other process observes 7 all the time; this one observes 7 from its third, or its sixth, call on."""
    monkeypatch.setattr(folders, "VISIBLE_WITHIN", 4)
    monkeypatch.setattr(folders.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda values: [*values, 7])
    calls = []

    def observe():
        calls.append(7 if len(calls) >= calls_before else 6)
        return calls[-1]

    assert all_processes_agree(observe, SimpleNamespace(num_processes=2)) is agree
    assert len(calls) == min(calls_before + 1, 4)
    assert all_processes_agree(None, SimpleNamespace(num_processes=1))  # without a call


# ---- manifests -----------------------------------------------------------------------------------------------------

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


def test_any_other_setting_is_refused(tmp_path):
    make(tmp_path / "made")
    for name in ("steps", "guidance", "another"):
        with pytest.raises(InputError, match=f"{name} = .*'other'; set OUTPUT_ROOT"):
            make(tmp_path / "made", settings={**SETTINGS, name: "other"})
    with pytest.raises(InputError, match=r"this run has None"):
        make(tmp_path / "made", settings={"steps": 25})


def test_settings_without_a_piece_may_be_changed(tmp_path):
    with pytest.raises(RuntimeError), making(SYNTHETIC_TREE, tmp_path, SETTINGS):
        raise RuntimeError("before the first piece")
    make(tmp_path, settings={"steps": 50})


PLACES = {
    "itself": lambda root: root,
    "relative": lambda root: os.path.relpath(root),
    "link in a link": lambda root: root.parent / "outer" / "tree",
    "parent": lambda root: root.parent,
    "its files": lambda root: root / "files",
    "a new folder inside": lambda root: root / "new",
    "a new folder behind a link to its files": lambda root: root.parent / "files of another" / "p99",
}


@pytest.mark.parametrize("part", [SYNTHETIC_TREE, DRAWN_TREE])
@pytest.mark.parametrize("real", [True, False])
def test_nothing_is_written_into_a_foreign_tree(tmp_path, part, real):
    """real: a tree without a manifest, as MIMIC-CXR-JPG is; else one that was drawn here, with other settings."""
    root = tmp_path / "data" / "tree"
    draw_tree(root, studies=2, image_size=32)
    if real:
        (root / MANIFEST_FILE).unlink()
        (root / ".lock").unlink(missing_ok=True)
    (tmp_path / "data" / "outer").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "files of another").symlink_to(root / "files")
    before = contents(tmp_path)
    for name, place in PLACES.items():
        with pytest.raises(InputError, match="OUTPUT_ROOT"):
            make(place(root), part)
        assert contents(tmp_path) == before, name
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


def test_a_file_and_a_damaged_manifest_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        make(tmp_path / "file")
    for number, content in enumerate(["", "[]", '{"synthetic tree": 3}', "\xff"]):
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
    with pytest.raises(InputError, match="is not a synthetic tree"):
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


def test_what_a_run_leaves_before_its_manifest_does_not_block_the_next(tmp_path):
    (tmp_path / f".{MANIFEST_FILE}.{'c' * 32}.tmp").write_text("{")
    (tmp_path / ".lock").write_text("")
    make(tmp_path)
    assert json.loads((tmp_path / MANIFEST_FILE).read_text()) == {SYNTHETIC_TREE: SETTINGS}
