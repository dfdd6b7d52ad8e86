"""One lock a folder."""

from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError, writing


@contextmanager
def locked(folder, what):
    folder = Path(folder)
    with writing("the lock", folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another run is writing {what} in {folder}: wait until it has ended, or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
