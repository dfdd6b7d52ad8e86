"""Starts the project's own scripts, for what is made of several of them."""

import shlex
import subprocess
import sys

from utils.constants import REPOSITORY
from utils.errors import InputError


def run_script(*arguments):
    """Runs `python ARGUMENTS` in the repository; its output goes to the terminal, its failure is an InputError."""
    command = [sys.executable, *map(str, arguments)]
    print("$", shlex.join(command), flush=True)
    if subprocess.run(command, cwd=REPOSITORY).returncode:
        raise InputError(f"{arguments[0]} failed, see above; a second run goes on where this one ended")
