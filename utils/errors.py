"""Errors for people: one sentence with the offending value and the way out, never a traceback."""

import errno
import os
import sys
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """What a user can mend: its text is one sentence that says what is wrong, where, and the way out."""


def reason(error):
    """What another exception says, for the sentence of an InputError: its first line, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def writing(what, where):
    """A full or read-only disk met inside becomes an InputError that names `what` was being written, and `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise InputError(
            f"cannot write {what} under {where}: {os.strerror(error.errno).lower()}; what was written before is kept, "
            "so free some space (or name another folder) and run the same command again"
        ) from error


def run(main):
    """Runs a script's main(); an InputError or Ctrl-C ends it with one line on stderr and exit status 1 or 130."""
    try:
        main()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted; what was written is kept", file=sys.stderr)
        sys.exit(130)
