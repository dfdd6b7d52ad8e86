import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from utils.constants import REPOSITORY
from utils.errors import STATUS_WHEN_STOPPED, InputError, Stopped, replacing, run, stoppable, writing

WRITERS = {
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "torch": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), np.zeros(100_000)),
    "python": lambda path: path.write_text("a" * 400_000),
}


@pytest.fixture
def full_disk():
    """No file can grow beyond 20 kB: each library then raises its own error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_for_each_library(writer, full_disk, tmp_path):
    with pytest.raises(InputError) as refused, writing("a file", tmp_path):
        WRITERS[writer](tmp_path / "file")
    assert str(tmp_path) in str(refused.value) and "free some space" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_taken_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for write, why in (
        (lambda: (tmp_path / "file").mkdir(), "file exists"),
        (lambda: (tmp_path / "file" / "inside").write_text(""), "not a directory"),
        (lambda: (tmp_path / "folder").write_text(""), "is a directory"),
    ):
        with pytest.raises(InputError, match=why), writing("a file", tmp_path):
            write()


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), ValueError("a bug"), InputError("an input error")]
)
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), writing("a file", tmp_path):
        raise error


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_replaced_is_whole_or_the_old_one(kind, tmp_path):
    def write(path, content):
        if kind == "folder":
            path.mkdir()
        (path / "inside" if kind == "folder" else path).write_text(content)

    with replacing(tmp_path / "a" / "new") as temporary:
        write(temporary, "first")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a" / "new") as temporary:
        write(temporary, "second")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    content = tmp_path / "a" / "new" / "inside" if kind == "folder" else tmp_path / "a" / "new"
    assert content.read_text() == "first"


# ---- stopping ------------------------------------------------------------------------------------------------------


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_inside_a_library():
    """SIGTERM in a library of another language, which turns every exception into one of its own."""
    try:
        terminate()
    except BaseException as error:
        raise ValueError("error while loading") from error


@pytest.mark.parametrize("load", [terminate, terminate_inside_a_library])
def test_sigterm_while_models_load_is_one_sentence_and_no_failure(capsys, load):
    handler = signal.getsignal(signal.SIGTERM)

    def main():
        try:
            load()
        except Exception as error:  # as the functions that load models do
            raise InputError("a broken file") from error
        print("not reached")

    run(main)  # no SystemExit: the exit status is 0
    printed = capsys.readouterr().out
    assert "run the same command again" in printed and printed.count("\n") == 1 and "not reached" not in printed
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sigterm_after_the_last_piece_of_work_ends_the_run(capsys):
    def main():
        with stoppable() as stopped:
            assert not stopped()
            terminate()
            print("finished")
        print("not reached")

    run(main)
    printed = capsys.readouterr().out
    assert printed.startswith("finished\n") and "run the same command again" in printed and "not reached" not in printed


def test_sigterm_that_a_block_has_handled_is_not_raised_again():
    def main():
        with stoppable() as stopped:
            terminate()
            if stopped():
                raise Stopped("saved")

    run(main)
    with pytest.raises(Stopped, match="saved"):
        main()


def test_a_caller_may_choose_the_exit_status_of_a_stopped_script():
    script = "import signal; from utils.errors import run; run(lambda: signal.raise_signal(signal.SIGTERM))"
    for variables, status in (({}, 0), ({STATUS_WHEN_STOPPED: "3"}, 3)):
        command = [sys.executable, "-c", script]
        ended = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, text=True)
        assert ended.returncode == status and "run the same command again" in ended.stdout


# ---- exit statuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**60, dtype=np.uint8)])
def test_memory_that_is_not_there(allocate, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_bart.py"])
    with pytest.raises(SystemExit) as ended:
        run(allocate)
    assert re.match(r"train_bart.py: not enough memory \(.*\); lower BATCH_SIZE", ended.value.code)
    assert "\n" not in ended.value.code


def test_other_errors_of_torch_are_not_hidden():
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(lambda: torch.ones(2) + torch.ones(3))


def test_ctrl_c_exits_with_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err


def test_an_input_error_is_the_message_of_the_exit():
    def main():
        raise InputError("no such file; name another")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert str(ended.value.code).endswith(": no such file; name another")
