"""What `--CHECK true` asks: is all there that a run needs, and what would end it after hours?

A script reads its tables and loads its models as ever; where its first long step would begin it calls `check_training` or
`check_run` instead, and ends. What is found is printed line by line; the first thing that would end the run is an
InputError. Nothing is kept of what is written.
"""

import tempfile
from pathlib import Path
from shutil import disk_usage

import numpy as np
import torch

from training.loop import Batches
from training.muon import make_optimizer
from training.run_folder import compare_with, find_checkpoint
from utils.checkpoints import read_training
from utils.errors import InputError, reason, say, writing
from utils.latents import read_pixels

TRIED_IMAGES = 16  # of all, evenly spaced
BYTES_A_PARAMETER = {"checkpoint": 8, "last": 16}  # averaged and raw weights; `last` also two moments (Muon: one)


def check_training(model, compute_loss, make_batch, rows, constants, accelerator, image_paths=(), cache_bytes=0):
    """Tries one pass of a training, and what it will read and write.

    model, compute_loss, constants, accelerator: as `fit` has them. make_batch: how many examples => a batch of so many,
    made up or real. rows: {split: examples}; cache_bytes: of all frozen features, as if none were in CACHE_DIR yet.
    """
    for split, count in rows.items():
        if not count:
            raise InputError(f"{constants['DATA_ROOT']} has nothing in the split {split!r} after the filters")
    size, parts = constants["BATCH_SIZE"], constants["ACCUMULATION"] * accelerator.num_processes
    Batches(range(rows["train"]), size, constants["ACCUMULATION"], 0, 0, 1, 0, accelerator.num_processes)
    folder = Path(constants["RUN_DIR"])
    checkpoint = find_checkpoint(folder, constants["RESUME"])
    if checkpoint:
        compare_with(checkpoint, read_training(checkpoint), constants, {})
    say(f"RUN_DIR {folder}: {f'to go on from {checkpoint}' if checkpoint else 'a new run'}")

    count = sum(parameter.numel() for parameter in model.parameters())
    say(f"examples: {', '.join(f'{number:,} {split}' for split, number in rows.items())}; {count:,} parameters")
    loss = _try_pass(model, compute_loss, make_batch(size // parts), constants, accelerator)
    say(f"one pass of {size // parts} examples: its loss is {loss:.3g}{_peak(accelerator.device)}")
    kept = 1 + constants["KEEP_CHECKPOINTS"]  # best, step-*
    places = {folder: count * (2 * BYTES_A_PARAMETER["last"] + kept * BYTES_A_PARAMETER["checkpoint"])}
    if cache_bytes:
        places[Path(constants["CACHE_DIR"])] = cache_bytes
    check_run(places, image_paths, accelerator)


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


def split_counts(table):
    """How many rows of a table a training has, {split: rows}."""
    return {split: int((table["split"] == split).sum()) for split in ("train", "validate")}


def made_up(shapes, size):
    """A batch of `size` examples of the given shapes, {name: shape}: normal numbers, and zeros for what is one number."""
    return {
        name: torch.randn(size, *shape) if shape else torch.zeros(size, dtype=torch.long)
        for name, shape in shapes.items()
    }


def _try_pass(model, compute_loss, batch, constants, accelerator):
    """One pass and one step of the optimiser; the loss. InputError for one that is no number."""
    model = model.to(accelerator.device).train()
    optimizer = make_optimizer(constants["OPTIMIZER"], model, lr=constants["LEARNING_RATE"])
    with accelerator.autocast():
        loss = compute_loss(model, {name: value.to(accelerator.device) for name, value in batch.items()})
    loss.backward()
    optimizer.step()
    if not torch.isfinite(loss):
        raise InputError(
            f"the loss of the first pass is {loss.item()}: are the initial weights whole? or set PRECISION to 'no'"
        )
    return loss.item()


def _peak(device):
    if device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(device).total_memory
    return f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} of {total / 1e9:.1f} GB of the GPU"


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
