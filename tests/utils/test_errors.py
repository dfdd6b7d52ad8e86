import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from utils.constants import REPOSITORY
from utils.errors import InputError, Stopped, run, stoppable, writing
from utils.launch import run_script

WRITERS = {
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "torch": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), np.zeros(100_000)),
    "python": lambda path: path.write_text("a" * 400_000),
}


@pytest.fixture
def full_disk():
    """From 20 kB on, no file grows any more: what each library then says is its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_whoever_writes(writer, full_disk, tmp_path):
    with (
        pytest.raises(
            InputError, match=r"^cannot write a file under .*: .+; what was written before is kept"
        ) as caught,
        writing("a file", tmp_path),
    ):
        WRITERS[writer](tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_taken_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for write in (
        lambda: (tmp_path / "file").mkdir(),
        lambda: (tmp_path / "file" / "inside").write_text(""),
        lambda: (tmp_path / "folder").write_text(""),
    ):
        with (
            pytest.raises(
                InputError, match="cannot write a file under .*: (file exists|not a directory|is a directory);"
            ),
            writing("a file", tmp_path),
        ):
            write()


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("a bug"), InputError("said already")])
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), writing("a file", tmp_path):
        raise error


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def translated():
    """SIGTERM in a library of another language, which knows its own errors only."""
    try:
        terminate()
    except BaseException as error:
        raise ValueError("error while loading") from error


@pytest.mark.parametrize("load", [terminate, translated])
def test_sigterm_while_models_load_is_one_sentence_and_no_failure(capsys, load):
    handler = signal.getsignal(signal.SIGTERM)

    def main():
        try:
            load()
        except Exception as error:  # as the readers of models have it
            raise InputError("a broken file") from error
        print("not reached")

    run(main)  # no SystemExit: the exit status is 0
    said = capsys.readouterr().out
    assert "nothing was lost: the same command goes on" in said and said.count("\n") == 1 and "not reached" not in said
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sigterm_that_nobody_asked_for_any_more_is_not_forgotten(capsys):
    def main():
        with stoppable() as stopped:
            assert not stopped()
            terminate()
            print("finished")
        print("not reached")

    run(main)
    said = capsys.readouterr().out
    assert said.startswith("finished\n") and "nothing was lost" in said and "not reached" not in said


def test_sigterm_that_was_heard_comes_once():
    def main():
        with stoppable() as stopped:
            terminate()
            if stopped():
                raise Stopped("saved")

    run(main)
    with pytest.raises(Stopped, match="saved"):
        main()


def test_who_starts_a_script_learns_that_it_was_stopped(capfd):
    script = ("-c", "import signal; from utils.errors import run; run(lambda: signal.raise_signal(signal.SIGTERM))")
    with pytest.raises(InputError, match="failed or was stopped, see above; a second run goes on where this one ended"):
        run_script(*script)
    assert "nothing was lost" in capfd.readouterr().out
    assert subprocess.run([sys.executable, *script], cwd=REPOSITORY).returncode == 0  # to a shell nothing has failed
