"""One lock a folder: who writes in it, writes alone. And one folder for all machines of a launch."""

import time
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError, writing

VISIBLE_WITHIN = 60  # seconds that a file server may take to show one machine what another one has written


def seen_alike(look, accelerator):
    """Whether all processes of a launch see the same, at once or within VISIBLE_WITHIN; all of them have to ask.

    look: () => what a process sees, to be compared with what the others see; it is called again each second.
    """
    if accelerator.num_processes == 1:
        return True
    from accelerate.utils import gather_object  # takes seconds, and who is alone, or only wants a lock, needs none

    for _ in range(VISIBLE_WITHIN):  # a number of looks, so that all give up together
        if len({*gather_object([look()])}) == 1:
            return True
        time.sleep(1)
    return False


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
