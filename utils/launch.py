"""Starts the project's own scripts, for what is made of several of them."""

import os
import shlex
import subprocess
import sys

from utils.constants import REPOSITORY
from utils.errors import STATUS_WHEN_STOPPED, InputError


def run_script(*arguments):
    """Runs `python ARGUMENTS` in the repository, to its end; its output goes to the terminal.

    Raises InputError if it fails, and if SIGTERM stops it before it has done all.
    """
    command = [sys.executable, *map(str, arguments)]
    print("$", shlex.join(command), flush=True)
    if subprocess.run(command, cwd=REPOSITORY, env={**os.environ, STATUS_WHEN_STOPPED: "1"}).returncode:
        raise InputError(f"{arguments[0]} failed or was stopped, see above; a second run goes on where this one ended")
