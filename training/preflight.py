"""`--CHECK true` of the samplers and of the evaluation: tries what a run will read and write, and ends."""

import tempfile
from pathlib import Path
from shutil import disk_usage

import numpy as np

from utils.errors import InputError, reason, say, writing
from utils.latents import read_pixels

TRIED_IMAGES = 16  # of all, evenly spaced


def check_run(places, image_paths, accelerator):
    """Tries what a run will read and write; the last line that is printed says that nothing stands in its way.

    places: {folder or file to write: bytes at most}; image_paths: of the images that will be read.
    """
    say(f"device: {accelerator.num_processes} x {accelerator.device}, precision {accelerator.mixed_precision}")
    _try_images(list(image_paths))
    if accelerator.is_main_process:
        _try_places({Path(place): count for place, count in places.items()})
    accelerator.wait_for_everyone()
    say("checked: nothing was found that would end this run; without CHECK it begins")


def _try_images(paths):
    """Decodes some of the images; InputError if none of them can be read."""
    if not paths:
        return
    tried = [paths[row] for row in np.unique(np.linspace(0, len(paths) - 1, TRIED_IMAGES).astype(int))]
    broken = []
    for path in tried:
        try:
            read_pixels(path, 32)
        except (OSError, ValueError) as error:
            broken.append(reason(error))
    if len(broken) == len(tried):
        raise InputError(f"none of {len(tried)} images tried can be read, e.g.: {broken[0]}")
    say(
        f"images: {len(paths):,}, of {len(tried)} tried {len(broken)} cannot be read{f': {broken[0]}' if broken else ''}"
    )


def _try_places(places):
    """Writes a file into each place and removes it; InputError where it cannot, or where the disk is too small."""
    free, wanted = {}, {}  # of each disk
    for place, count in places.items():
        folder = next(parent for parent in (place, *place.absolute().parents) if parent.is_dir())
        with writing("anything", place), tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"trial")
        disk, there = folder.stat().st_dev, _size(place)
        free[disk] = disk_usage(folder).free
        wanted[disk] = wanted.get(disk, 0) + max(0, count - there)
        say(f"{place}: {_gigabytes(count)} at most, {_gigabytes(there)} there; free: {_gigabytes(free[disk])}")
        if wanted[disk] > free[disk]:
            raise InputError(
                f"the disk of {place} has {_gigabytes(free[disk])} free, and this run may write {_gigabytes(wanted[disk])}: "
                "free some space, or name another place"
            )


def _size(place):
    """Bytes of a folder, or of a file; each once, whatever its names."""
    found = {}
    for path in [place, *place.rglob("*")] if place.exists() else []:
        stat = path.lstat()
        found[stat.st_ino] = stat.st_size
    return sum(found.values())


def _gigabytes(count):
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
