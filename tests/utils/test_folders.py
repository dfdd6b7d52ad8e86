import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import folders
from utils.errors import InputError
from utils.folders import locked, seen_alike

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


@pytest.mark.parametrize(("shown_after", "alike"), [(0, True), (2, True), (5, False)])
def test_what_a_file_server_shows_late_is_waited_for(monkeypatch, shown_after, alike):
    """The other process has seen 7 all the time; this one sees 7 from its third, or its sixth, look on."""
    monkeypatch.setattr(folders, "VISIBLE_WITHIN", 4)
    monkeypatch.setattr(folders.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda values: [*values, 7])
    looks = []

    def look():
        looks.append(7 if len(looks) >= shown_after else 6)
        return looks[-1]

    assert seen_alike(look, SimpleNamespace(num_processes=2)) is alike
    assert len(looks) == min(shown_after + 1, 4)
    assert seen_alike(None, SimpleNamespace(num_processes=1))  # alone, nobody looks
