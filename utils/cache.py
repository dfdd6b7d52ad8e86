"""Features computed once by frozen encoders, kept on disk, memory-mapped.

    <CACHE_DIR>/<feature>/fingerprint.json       what made the features: encoder weights, sizes, preprocessing
    <CACHE_DIR>/<feature>/<shard>.npy            values, (n, *shape)
    <CACHE_DIR>/<feature>/<shard>.keys.json      their n keys, their shape and type, and the fingerprint's digest

A key names the *content* of an input: for an image its dicom_id, file size and a digest of parts of the file; for a
text the text. So a changed input has another key, and a copy of the images has the same keys.
Shards are only ever added: values first, keys last, each under a temporary name and then renamed; a shard without keys
does not count. A killed run loses at most one shard a process, a stopped or interrupted one nothing.

The processes of a launch share the missing keys among them; with several machines the folder has to be on storage that
they share (docs/scale.md). Several launches may share a cache: a key that two of them lack at the same time is computed
by both, and either value serves. A damaged shard is named, removed and made again.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import compress
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from utils.errors import InputError, Stopped, as_input_error, reason, replacing, stoppable, write_whole, writing
from utils.folders import all_processes_agree

SHARD_ROWS = 1024  # features a shard; what a kill can lose, a process
DIGEST_PART = 4096  # bytes that are read at the head, in the middle and at the tail of an image for its key
KEY_THREADS = 16  # image files that are opened at a time for their keys: this waits for the disk, not for the processor
_OTHER_CACHE = "set CACHE_DIR to another folder, or delete this one"
KEY_ROWS = 1024  # images for which a thread computes keys at a time


def image_keys(table: pd.DataFrame) -> list[str | None]:
    """One cache key a row of a table: the image's dicom_id, and its file's size and a digest of three parts of it.

    Files of up to 3 * DIGEST_PART bytes are digested whole. One that cannot be opened has the key None, and is named.
    """
    with ThreadPool(KEY_THREADS) as pool:
        return pool.starmap(_image_key, zip(table.dicom_id, table.image_path), chunksize=KEY_ROWS)


def _image_key(dicom_id: str, path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(digest_size=8)
            for start in sorted({0, max(0, (size - DIGEST_PART) // 2), max(0, size - DIGEST_PART)}):
                file.seek(start)
                digest.update(file.read(DIGEST_PART))
    except OSError as error:
        tqdm.write(f"left out: unreadable image {path}: {reason(error)}")
        return None
    return f"{dicom_id} {size} {digest.hexdigest()}"


def save_array(path: str | Path, values: np.ndarray) -> None:
    """np.save under a temporary name, then renamed."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


@lru_cache(None)
def _map_values(path: str) -> np.ndarray:
    """The values of a shard, mapped into memory once and shared by all caches of a process.

    Torch maps them: numpy's map keeps a file descriptor, of which a process may have 256, and MIMIC-CXR has 750 shards.
    """
    header = np.lib.format.open_memmap(path, mode="r")
    whole = torch.from_file(path, size=os.path.getsize(path), dtype=torch.uint8).numpy()
    values = np.ndarray(header.shape, header.dtype, whole, header.offset, header.strides)
    values.flags.writeable = False
    return values


class FeatureCache:
    """The features of one encoder: `cache[key]` is a read-only array; `fill` adds the missing ones.

    A pickled cache (for a DataLoader's workers) holds the folder and the place of each key in it, and no values.
    folder: of its shards, made if absent; InputError if it has another fingerprint, a flat dict of what makes them.
    """

    def __init__(self, folder: str | Path, fingerprint: dict):
        self.folder = Path(folder)
        self._digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        self._places = {}  # key => (shard, row)
        self._known_shards = set()  # shards that are served, or that were found damaged
        path = self.folder / "fingerprint.json"
        found, is_there = fingerprint, path.exists()
        if is_there:
            why = f"cannot read {path}: {{}}; remove it, or set another CACHE_DIR"
            with as_input_error(lambda error: why.format(reason(error)), (OSError, ValueError)):
                found = json.loads(path.read_text())
        for name in sorted(found.keys() | fingerprint.keys()):
            if found.get(name) != fingerprint.get(name):
                values = f"{name} = {found.get(name)!r}, this run has {fingerprint.get(name)!r}"
                raise InputError(f"the cache {self.folder} was made with {values}; {_OTHER_CACHE}")
        self.refresh()
        if not is_there:
            write_whole(path, json.dumps(fingerprint, indent=2), "the feature cache")

    def refresh(self) -> None:
        """Adds the shards that other processes have finished since the last call."""
        for keys_file in sorted(self.folder.glob("*.keys.json")):
            shard = keys_file.name.removesuffix(".keys.json")
            if shard in self._known_shards:
                continue
            self._known_shards.add(shard)
            try:
                keys = self._read_keys(shard)
            except InputError:
                raise
            except Exception as error:  # numpy has errors of many types for a broken header
                if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    raise InputError(f"cannot read the cache {self.folder}: {reason(error)}") from error
                if keys_file.exists():  # otherwise another process has just removed it
                    tqdm.write(f"{self.folder}: the shard {shard} is damaged ({reason(error)}): made again")
                    keys_file.unlink(missing_ok=True)
                    Path(self._path(shard)).unlink(missing_ok=True)
                continue
            for row, key in enumerate(keys):
                self._places.setdefault(key, (shard, row))

    def _read_keys(self, shard: str) -> list[str]:
        """The keys of a shard; InputError if another fingerprint made it, another error if it is damaged."""
        about = json.loads((self.folder / f"{shard}.keys.json").read_text())
        keys = about["keys"]
        if about["fingerprint"] != self._digest:
            features = f"features that were made otherwise than this run makes them (shard {shard})"
            raise InputError(f"the cache {self.folder} holds {features}; {_OTHER_CACHE}")
        values = np.lib.format.open_memmap(self._path(shard), mode="r")
        found = [list(values.shape), values.dtype.str]
        if found != [about["shape"], about["dtype"]] or len(values) != len(keys):
            raise ValueError(f"it has values of shape and type {found} for {len(keys)} keys")
        return keys

    def _path(self, shard: str) -> str:
        return f"{self.folder}/{shard}.npy"  # a Path would take a twentieth of a training sample's time

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> np.ndarray:
        shard, row = self._places[key]
        return _map_values(self._path(shard))[row]

    def stack(self, keys: Sequence[str]) -> np.ndarray:
        """The features of several keys, (len(keys), *shape)."""
        return np.stack([self[key] for key in keys])

    def append(self, keys: list[str], values: np.ndarray) -> None:
        """Writes one shard: keys and their values, (len(keys), *shape)."""
        shard = uuid.uuid4().hex
        about = {"fingerprint": self._digest, "shape": list(values.shape), "dtype": values.dtype.str, "keys": keys}
        with writing("the feature cache", self.folder):
            save_array(self._path(shard), values)
            write_whole(self.folder / f"{shard}.keys.json", json.dumps(about), "the feature cache")

    def fill(
        self, keys: Sequence[str | None], load: Callable[[int], object], encode: Callable[[list], np.ndarray],
        batch_size: int, accelerator: Accelerator, what: str, threads: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """Computes the missing features => a boolean array, True for each key that the cache then has.

        keys: one a row, in the same order on every process; None for an input that is missing. load(row) reads the
        input of one row (in `threads` threads if more than 0); encode(list of inputs) => array (n, *shape). A row for
        which `load` raises an OSError or ValueError, or whose feature is not finite, is named and stays out.

        Each process of a launch computes a share. After SIGTERM all processes save what they have computed and raise
        Stopped. InputError if the processes do not find the same features at the end.
        """
        first_rows = {}  # distinct key => its first row
        for row, key in enumerate(keys):
            if key is not None:
                first_rows.setdefault(key, row)
        # The share of a process does not depend on the keys that the cache has already: while another launch writes,
        # each process may find other keys there, and a key could be left to no process.
        share = list(first_rows.items())[accelerator.process_index :: accelerator.num_processes]
        missing = [(key, row) for key, row in share if key not in self]
        with stoppable() as stopped:
            hidden = not missing or not accelerator.is_main_process
            with tqdm(total=len(missing), desc=what, disable=hidden) as progress:
                self._compute(missing, load, encode, batch_size, threads, progress, stopped)
            accelerator.wait_for_everyone()
            if any(gather_object([stopped()])):  # of all processes, so that they end together
                so_far = f"the {what} computed so far are in {self.folder}"
                raise Stopped(f"stopped; {so_far}: run the same command again to resume")
        if not all_processes_agree(lambda: self._digest_of(keys), accelerator):
            differ = f"the processes of this launch do not see the same {what} in {self.folder}"
            way_out = "put DATA_ROOT and CACHE_DIR onto storage that all machines share"
            raise InputError(f"{differ}: {way_out}, or a copy of one filled cache onto each")
        self.refresh()
        return np.array([key in self for key in keys], dtype=bool)

    def _compute(self, missing, load, encode, batch_size, threads, progress, stopped) -> None:
        """Computes the features of (key, row) pairs and writes them, shard after shard, until `stopped()`."""
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        batches_per_shard = max(1, SHARD_ROWS // batch_size)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            for first in range(0, len(batches), batches_per_shard):
                keys, values = [], []
                try:
                    for batch in batches[first : first + batches_per_shard]:
                        if stopped():
                            return
                        inputs = pool.map(partial(load_or_name, load), [row for _, row in batch])
                        readable = [(key, value) for (key, _), value in zip(batch, inputs) if value is not None]
                        if readable:
                            features = encode([value for _, value in readable])
                            finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
                            for key, _ in compress(readable, ~finite):
                                tqdm.write(f"left out: the features of {key!r} are not finite numbers")
                            keys += compress((key for key, _ in readable), finite)
                            values.append(features[finite])
                        progress.update(len(batch))
                finally:  # Ctrl-C keeps what was computed, too
                    if keys:
                        self.append(keys, np.concatenate(values))

    def _digest_of(self, keys: Sequence[str | None]) -> str:
        """Differs between processes that have other keys, or that find other features of them in the cache."""
        self.refresh()
        return hashlib.sha256(repr([(key, key in self) for key in keys]).encode()).hexdigest()


def load_or_name(load: Callable[[object], object], item: object) -> object | None:
    """load(item); None, and a line that names it, for an input that cannot be read."""
    try:
        return load(item)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's errors for a file that is not an image
        tqdm.write(f"left out: {error}")
        return None
