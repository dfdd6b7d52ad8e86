"""Folders that scripts write: an exclusive lock, and manifest.json, which says what a folder holds.

    {"synthetic tree": {"steps": 25, ...}, "written reports": {"LATENT_GAIN": 1.0, ...}}

A *part* is what one kind of script makes in a folder. Its settings stand in the manifest before the first file of the
part is written. Scripts write only into folders that this project began; one part is made with one set of settings, and
by one run at a time.
"""

import json
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError, reason, replacing, writing

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


MANIFEST_FILE = "manifest.json"
SYNTHETIC_TREE, DRAWN_TREE, OPEN_TREE, WRITTEN_REPORTS = (  # the parts there are
    "synthetic tree", "drawn tree", "open tree", "written reports"
)  # fmt: skip


@contextmanager
def making(part, folder, settings, inside="", main_process=True, constant="OUTPUT_ROOT"):
    """Holds a folder while a part of it is made: compared first, then locked, then its manifest written.

    part: one of the four; inside: the part that the folder has to be already, "" for a part with a folder of its own.
    settings: a flat dict. main_process: the others of a launch only compare. constant: what names the folder.
    InputError, and nothing is written, for a folder that was not begun by this project, for another part or other
    settings, and while another run writes there.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(settings))
    _check(folder, part, settings, inside, constant)
    with locked(folder, f"the {part}") if main_process else nullcontext():
        if main_process:
            _begin(folder, part, settings, inside, constant)
        yield


def read_manifest(folder, constant="OUTPUT_ROOT"):
    """The manifest of a folder that a constant names, {} where there is none; InputError for a damaged one."""
    path = Path(folder) / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(manifest, dict) and all(isinstance(settings, dict) for settings in manifest.values())):
            raise ValueError("it does not hold what it should")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}), so it cannot be said what the folder holds: name another {constant}"
        ) from error
    return manifest


def is_same_folder(one, other):
    """Whether two paths are of one folder, whatever their spelling; "" is none."""
    return bool(one) and bool(other) and _real(one) == _real(other)


def _begin(folder, part, settings, inside, constant):
    manifest = _check(folder, part, settings, inside, constant)  # once more: another run may have been quicker
    with writing(MANIFEST_FILE, folder):
        for left in folder.rglob(".*.tmp"):  # of a run that was killed while it wrote
            if left.is_file():
                left.unlink()
        if manifest.get(part) != settings:
            with replacing(folder / MANIFEST_FILE) as temporary:
                temporary.write_text(json.dumps({**manifest, part: settings}, indent=2) + "\n", encoding="utf-8")


def _check(folder, part, settings, inside, constant):
    """The manifest of a folder that a part may be made in; InputError for any other folder."""
    real = _real(folder)
    if real.exists() and not real.is_dir():
        raise InputError(f"{folder} is no folder: name another {constant}")
    around = next((parent for parent in real.parents if any(parent.glob("mimic-cxr-2.*-metadata.csv*"))), None)
    if around:
        raise InputError(
            f"{folder} lies inside the CXR tree {around}, into which nothing is written: name a folder outside"
        )
    manifest = read_manifest(real, constant)
    if not manifest and any(map(_is_foreign, _names(real))):
        raise InputError(
            f"{folder} is not empty and has no {MANIFEST_FILE}, so this version of the scripts did not begin it and writes "
            f"nothing into it: name a new folder as {constant} (whatever reads trees still reads this one, as DATA_ROOT)"
        )
    if inside and inside not in manifest:
        raise InputError(
            f"{folder} is no {inside}, so there are no images for the {part}: name their tree as DATA_ROOT"
        )
    if manifest and not inside and part not in manifest:
        raise InputError(f"{folder} holds a {' and '.join(manifest)}, and no {part}: name a new folder as {constant}")
    found = manifest.get(part, settings)
    different = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    if different and any(name != MANIFEST_FILE and _is_foreign(name) for name in _names(real)):
        name = different[0]
        raise InputError(
            f"the {part} in {folder} was begun with {name} = {found.get(name)!r}, this run has {settings.get(name)!r}; set "
            f"{constant} to another folder"
        )
    return manifest


def _real(path):
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InputError(f"{path} cannot be followed to a folder: {reason(error)}") from error


def _names(folder):
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {reason(error)}") from error


def _is_foreign(name):
    """Whether a file's name is none of those that a run leaves before its manifest is written."""
    return not (name.startswith(".") and name.endswith((".tmp", ".lock")))
