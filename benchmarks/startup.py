"""How long does each script import before its main() begins? Seconds, and units of `import torch`.

    python -m benchmarks.startup

Each import has a process of its own, without garbage collection, as in a script (`check_command_line`). All take turns;
the figures are medians. Writes: benchmarks/results/scale-startup.json
"""

import subprocess
import sys
import time

import numpy as np
import pandas as pd

from benchmarks.record import write_record
from utils.constants import REPOSITORY, override_constants

TURNS = 5  # imports of each script (1 or more)


def main():
    constants = override_constants(globals())
    scripts = sorted(path.stem for path in REPOSITORY.glob("*.py"))
    imports = map("import gc; gc.disable(); import {}".format, scripts)
    statements = {"import torch": "import torch", **dict(zip(scripts, imports))}
    seconds = {name: [] for name in statements}
    for _ in range(TURNS + 1):  # the first fills the cache of the disk
        for name, statement in statements.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], cwd=REPOSITORY, check=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: np.median(durations[1:]) for name, durations in seconds.items()}
    rows = [(name, value, value / medians["import torch"]) for name, value in medians.items()]
    table = pd.DataFrame(rows, columns=["", "seconds", "units of `import torch`"])
    write_record("scale-startup", "Start-up of the scripts", table, constants)


if __name__ == "__main__":
    main()
