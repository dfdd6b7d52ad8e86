"""Errors in one sentence, output of a launch's first process, files written whole, and an orderly end after SIGTERM."""

import os
import re
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REASON_LENGTH = 200  # characters of another library's message in one of ours
STATUS_WHEN_STOPPED = "STATUS_WHEN_STOPPED"  # environment variable: the exit status of a run that SIGTERM ended, else 0
_STOPPED_AT_ONCE = "stopped; nothing was lost: run the same command again to resume"


class InputError(Exception):
    """A mistake that the user can correct: one sentence that says what is wrong, where, and what to do."""


class Stopped(BaseException):
    """SIGTERM ended a run in good order: one sentence that says how to resume.

    Like KeyboardInterrupt it is no Exception: `except Exception` around the reading of a file does not catch it.
    """


def reason(error: object) -> str:
    """The message of an exception on one line, cut to REASON_LENGTH; the name of its type if it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 2] + " …"


def say(line: str) -> None:
    """Prints a line, in the first process of a launch only."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(line, flush=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path`; the file or folder written there replaces `path` at once, unless the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
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


@contextmanager
def as_input_error(
    sentence: Callable[[Exception], str], kinds: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Turns an error of these kinds inside the block into an InputError; sentence: the error => the message."""
    try:
        yield
    except kinds as error:
        raise InputError(sentence(error)) from error


def write_whole(path: Path, content: str | bytes, what: str = "", where: str | Path = "") -> None:
    """Writes a file by `replacing`, a text in UTF-8 with its line ends as they are; InputErrors as of `writing`."""
    with writing(what or path.name, where or path.parent), replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing(what: str, where: str | Path) -> Iterator[None]:
    """Turns a failure to write (a full or read-only disk, a missing permission, a taken name) into an InputError."""
    try:
        yield
    except Exception as error:
        of_torch = isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|inline_container", str(error))
        if not (isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or of_torch):
            raise
        number = getattr(error, "errno", None)  # numpy's errors have none; their message counts the bytes written
        why = os.strerror(number).lower() if number else reason(error)
        way_out = "so free some space (or name another folder) and run the same command again"
        failed = f"cannot write {what} under {where}: {why}"
        raise InputError(f"{failed}; what was written before is kept, {way_out}") from error


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Delays SIGTERM inside the block: yields a function that returns whether the signal has arrived.

    The block calls it after each piece of work; if it returns True, the block saves its results and raises Stopped.
    A signal that arrives after the last call ends the run when the block ends.
    """
    arrived = threading.Event()
    with _sigterm_handler(lambda *_: arrived.set()):
        yield arrived.is_set
    if arrived.is_set():
        signal.raise_signal(signal.SIGTERM)


def run(main: Callable[[], object]) -> None:
    """Runs a script's main() and ends it with one line instead of a traceback where that helps the user.

    An InputError and a lack of memory exit with status 1, Ctrl-C with 130. SIGTERM exits with status 0, or with the one
    in the environment variable STATUS_WHEN_STOPPED, set by callers that need the script to finish.
    """
    arrived = threading.Event()

    def stop(*_):
        arrived.set()
        raise Stopped(_STOPPED_AT_ONCE)

    with _sigterm_handler(stop):
        try:
            main()
        except Stopped as stopped:
            _end_stopped(stopped)
        except KeyboardInterrupt:
            print(f"{_program()}: interrupted; what was written is kept", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if arrived.is_set():  # a library has turned Stopped into an error of its own
                return _end_stopped(_STOPPED_AT_ONCE)
            if isinstance(error, InputError):
                sys.exit(f"{_program()}: {error}")
            of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
            if isinstance(error, MemoryError) or of_torch:
                way_out = "lower BATCH_SIZE (or raise ACCUMULATION), the sizes of images or network, or NUM_WORKERS"
                sys.exit(f"{_program()}: not enough memory ({reason(error)}); {way_out}; what was written is kept")
            raise


@contextmanager
def _sigterm_handler(handler: Callable) -> Iterator[None]:
    """Sets the handler of SIGTERM; has no effect outside the main thread, which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_stopped(sentence: object) -> None:
    say(f"{_program()}: {sentence}")
    if STATUS_WHEN_STOPPED in os.environ:
        sys.exit(int(os.environ[STATUS_WHEN_STOPPED]))


def _program() -> str:
    """The name of the command: the script's file, or the package whose __main__.py runs."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name
