"""Runs the project's own scripts, for benchmarks that are made of several of them."""

import os
import shlex
import subprocess
import sys

from utils.constants import REPOSITORY
from utils.errors import STATUS_WHEN_STOPPED, InputError


def run_script(*arguments) -> None:
    """Runs `python ARGUMENTS` in the repository; its output goes to the terminal.

    InputError if it fails, or if SIGTERM stops it before it is done.
    """
    command = [sys.executable, *map(str, arguments)]
    print("$", shlex.join(command), flush=True)
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, STATUS_WHEN_STOPPED: "1"}, check=False)
    if done.returncode:
        raise InputError(f"{arguments[0]} failed or was stopped (see above); run the same command again to resume")
