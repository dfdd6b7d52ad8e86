"""One lock a folder: who writes in it, writes alone."""

from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError, writing


@contextmanager
def locked(folder, what):
    """Holds a folder, made if need be, for one run; InputError while another one has it.

    what: what is being written there, in words. The lock is the operating system's, on the file `.lock` in the folder,
    which stays: it goes with the process, however that ends, so a killed run blocks nobody. Of a launch, only the first
    process may ask for it.
    """
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
