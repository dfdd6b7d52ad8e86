"""Folders that scripts write: an exclusive lock, and manifest.json, which describes the contents.

    {"synthetic tree": {"steps": 25, ...}, "written reports": {"LATENT_GAIN": 1.0, ...}}

A *part* is what one kind of script makes in a folder. Its settings are written to the manifest before its first file.
Scripts write only into folders that this project began; a part has one set of settings, and one run at a time makes it.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError, as_input_error, reason, write_whole, writing

VISIBLE_WITHIN = 60  # seconds in which a file server shows one machine the files of another
MANIFEST_FILE = "manifest.json"
SYNTHETIC_TREE, DRAWN_TREE, OPEN_TREE = "synthetic tree", "drawn tree", "open tree"  # parts
WRITTEN_REPORTS, PIPELINE = "written reports", "pipeline"  # parts


def all_processes_agree(observe: Callable[[], object], accelerator) -> bool:
    """Whether `observe()` returns the same in all processes of a launch, at once or within VISIBLE_WITHIN.

    All processes have to call this function. `observe` is called once a second until the results are equal.
    """
    if accelerator.num_processes == 1:
        return True
    from accelerate.utils import gather_object  # takes seconds to import, and a single process does not need it

    for _ in range(VISIBLE_WITHIN):  # counted, not timed, so that all processes stop at the same call
        if len({*gather_object([observe()])}) == 1:
            return True
        time.sleep(1)
    return False


@contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Locks a folder for one run, and makes it if it is absent; InputError while another run holds the lock.

    what: the contents that are being written, for the message. The operating system holds the lock, on the file `.lock`
    in the folder, and releases it when the process ends, even by a kill. In a launch only the first process may lock.
    """
    folder = Path(folder)
    with writing("the lock", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock, way_out = FileLock(folder / ".lock", timeout=0), "wait until it has ended, or name another folder"
        with as_input_error(lambda _: f"another run is writing {what} in {folder}: {way_out}", Timeout):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def making(
    part: str, folder: str | Path, settings: dict, inside: str = "", main_process: bool = True,
    constant: str = "OUTPUT_ROOT",
) -> Iterator[None]:  # fmt: skip
    """Locks a folder while a part of it is made, and writes its manifest; first checks that the part may go there.

    part: one of the five parts; inside: the part that the folder has to hold already, "" for a folder of its own;
    settings: a flat dict; main_process: False only checks; constant: the name of the constant that holds the folder.

    InputError, before anything is written, if this project did not begin the folder, if it holds another part or was
    made with other settings, or if another run is writing there.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(settings))
    _check_may_make(part, folder, settings, inside, constant)
    if not main_process:
        yield
        return
    with locked(folder, f"the {part}"):
        manifest = _check_may_make(part, folder, settings, inside, constant)  # another run may have begun the folder
        if manifest.get(part) != settings:
            write_whole(folder / MANIFEST_FILE, json.dumps({**manifest, part: settings}, indent=2) + "\n")
        yield


def read_manifest(folder: str | Path, constant: str = "OUTPUT_ROOT") -> dict[str, dict]:
    """The manifest of a folder, {part: settings}; {} if it has none. InputError, with `constant`, for a damaged one."""
    path = Path(folder) / MANIFEST_FILE
    damaged = f"{path} is damaged ({{}}): name another {constant}"
    with as_input_error(lambda error: damaged.format(reason(error)), (OSError, ValueError)):
        if not path.exists():
            return {}
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not all(isinstance(settings, dict) for settings in manifest.values()):
            raise ValueError("it is not a table of settings")
    return manifest


def _check_may_make(part: str, folder: Path, settings: dict, inside: str, constant: str) -> dict[str, dict]:
    """The manifest of a folder in which a part may be made; InputError for any other folder."""
    resolved = folder.resolve()
    if resolved.exists() and not resolved.is_dir():
        raise InputError(f"{folder} is not a folder: name another {constant}")
    for parent in resolved.parents:
        if any(parent.glob("mimic-cxr-2.*-metadata.csv*")):
            raise InputError(f"{folder} lies inside the CXR tree {parent}: name a folder outside as {constant}")
    manifest = read_manifest(folder, constant)
    files = [path for path in folder.iterdir() if path.name not in (MANIFEST_FILE, ".lock")] if folder.exists() else []
    has_files = any(path.suffix != ".tmp" for path in files)  # a run may leave these before its manifest
    if has_files and not manifest:
        way_out = f"name a new folder as {constant} (DATA_ROOT may still be this one)"
        raise InputError(f"{folder} is not empty and has no {MANIFEST_FILE}, so nothing is written into it: {way_out}")
    if inside and inside not in manifest:
        raise InputError(f"{folder} is not a {inside}, so it has no images for the {part}: set DATA_ROOT to their tree")
    if manifest and not inside and part not in manifest:
        raise InputError(f"{folder} holds a {' and '.join(manifest)}, and no {part}: name a new folder as {constant}")
    found = manifest.get(part, settings) if has_files else settings
    for name in {**found, **settings}:
        if found.get(name) != settings.get(name):
            values = f"{name} = {found.get(name)!r}, this run has {settings.get(name)!r}"
            raise InputError(f"the {part} in {folder} was begun with {values}; set {constant} to another folder")
    return manifest
