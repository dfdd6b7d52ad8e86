"""What people see and what a kill may not halve: errors in one sentence, the one way to print, the one atomic write."""

import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

REASON_LENGTH = 200  # characters of another library's words in an error of ours
ABANDONED_AFTER = 86400  # seconds; a temporary file of another machine that is older belongs to nobody
_NOTHING_LOST = "stopped between two pieces of work; nothing was lost: the same command goes on from there"
CLOCK_SKEW = 10  # seconds between the clock of a file server and ours
STATUS_WHEN_STOPPED = "STATUS_WHEN_STOPPED"  # environment variable: the exit status of a run that SIGTERM ended, else 0


class InputError(Exception):
    """What a user can mend: its text is one sentence that says what is wrong, where, and the way out."""


class Stopped(BaseException):
    """A run that SIGTERM ended in good order: its text is one sentence that says how to go on.

    No Exception, as KeyboardInterrupt is none: whoever catches what a broken file may raise does not catch it.
    """


def reason(error):
    """What another exception says, on one line and cut to REASON_LENGTH; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 2] + " …"


def say(line):
    """Prints a line, in the first process of a launch only."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(line, flush=True)


@contextmanager
def replacing(path):
    """Yields a temporary path beside `path` for a file or a folder to be written, which then takes the name `path`.

    So whatever bears the name is whole: the old one, or the new one. A failure inside leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder):
    """Removes the temporary files in a folder that `replacing` left there when its process was killed."""
    for path in Path(folder).glob(".*.tmp"):
        try:
            if not _has_writer(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # it has gone meanwhile, or the folder may only be read
            pass


def _has_writer(temporary):
    """Whether the process that made a temporary file may still be at work on it."""
    import psutil  # not above: the command line of every script needs this module at once

    changed = temporary.stat().st_mtime
    ours = re.search(rf"\.{re.escape(platform.node())}-(\d+)-[0-9a-f]{{32}}\.tmp$", temporary.name)
    if not ours:
        return time.time() - changed < ABANDONED_AFTER
    try:
        return psutil.Process(int(ours[1])).create_time() < changed + CLOCK_SKEW  # else its number was given anew
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


@contextmanager
def writing(what, where):
    """What cannot be written inside becomes an InputError that names `what` was being written, and `where`.

    That is: a full or read-only disk, a place that one may not write to, and a name that is taken by something else.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or _is_of_a_writer(error)):
            raise
        number = getattr(error, "errno", None)  # numpy's has none, and says how much was written
        why = os.strerror(number).lower() if number else reason(error)
        raise InputError(
            f"cannot write {what} under {where}: {why}; what was written before is kept, "
            "so free some space (or name another folder) and run the same command again"
        ) from error


def _is_of_a_writer(error):
    """Whether safetensors or torch says in its own way that a file could not be written."""
    return type(error).__name__ == "SafetensorError" or (
        isinstance(error, RuntimeError) and bool(re.search("PytorchStreamWriter|inline_container", str(error)))
    )


@contextmanager
def stoppable():
    """Inside, SIGTERM waits: yields a function that says whether it has come, to be asked after each piece of work.

    Who is told so saves what it has, and raises Stopped. One that came too late to be asked for counts as one that came
    outside, where it ends the run at once (`run`). In other threads than the main one nothing waits.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # no signal arrives there
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
    if came.is_set():
        signal.raise_signal(signal.SIGTERM)


def run(main):
    """Runs a script's main(); an InputError, too little memory or Ctrl-C ends it with one line on stderr.

    The exit status is then 1, or 130 for Ctrl-C. SIGTERM ends it with one line, after the piece of work in hand where that
    would be lost (`stoppable`), and with exit status 0: nothing failed. Who starts a script and needs it whole asks for
    another by STATUS_WHEN_STOPPED.
    """
    came = threading.Event()

    def stop(*_):
        came.set()
        raise Stopped(_NOTHING_LOST)

    def stopped_or_not():
        try:
            main()
        except Exception as error:
            if came.is_set():  # a library in another language has made an error of its own of it
                raise Stopped(_NOTHING_LOST) from error
            raise

    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()  # no signal arrives in others
    if in_main_thread:
        signal.signal(signal.SIGTERM, stop)
    try:
        _run(stopped_or_not)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _run(main):
    try:
        main()
    except Stopped as stop:
        say(f"{Path(sys.argv[0]).name}: {stop}")
        if STATUS_WHEN_STOPPED in os.environ:
            sys.exit(int(os.environ[STATUS_WHEN_STOPPED]))
    except InputError as error:
        sys.exit(f"{_program()}: {error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        sys.exit(
            f"{_program()}: not enough memory ({reason(error)}); lower BATCH_SIZE (or raise ACCUMULATION), the sizes "
            "of images or of the network, or NUM_WORKERS; what was written is kept"
        )
    except KeyboardInterrupt:
        print(f"{_program()}: interrupted; what was written is kept", file=sys.stderr)
        sys.exit(130)


def _is_out_of_memory(error):
    """Whether an error says that memory is short: Python's and numpy's, torch's of a GPU, or torch's of the CPU."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or of_torch


def _program():
    """The name of what runs: a script's file, or the package whose __main__.py it is."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name
