"""Features computed once by frozen encoders, kept on disk, memory-mapped.

    <CACHE_DIR>/<feature>/fingerprint.json       what made the features: encoder weights, sizes, preprocessing
    <CACHE_DIR>/<feature>/<shard>.npy            values, (n, *shape)
    <CACHE_DIR>/<feature>/<shard>.keys.json      their n keys

A key names the *content* of an input: for an image its dicom_id, file size and time of change; for a text the text. A
changed input therefore has another key and its old value is never served. Shards are only ever added: values first,
keys last, each under a temporary name and then renamed, so that a shard without keys does not count and a killed run
loses at most one shard. The processes of one launch share the missing keys among them, each writing its own shards.
"""

import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.errors import InputError, replacing, writing

SHARD_ROWS = 1024  # features a shard; what a kill can lose, a process


def image_keys(table):
    """One cache key a row of a table: the image's dicom_id, and its file's size and time of change."""
    stats = (os.stat(path) for path in table.image_path)
    return [f"{dicom_id} {stat.st_size} {stat.st_mtime_ns}" for dicom_id, stat in zip(table.dicom_id, stats)]


def save_array(path, values):
    """np.save under a temporary name, then renamed."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


class FeatureCache:
    """The features of one encoder: `cache[key]` is a read-only array; what is missing is added by `fill`.

    Args:
        folder: where its shards lie; made if absent.
        fingerprint: a flat dict that says what makes the features. If the folder was made by another one, InputError.
    """

    def __init__(self, folder, fingerprint):
        self.folder = Path(folder)
        with writing("the feature cache", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check(fingerprint)
        self._values = {}  # shard => memory map
        self._places = {}  # key => (shard, row)
        self.refresh()

    def _check(self, fingerprint):
        path = self.folder / "fingerprint.json"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(fingerprint, indent=2))
            return
        found = json.loads(path.read_text())
        for name in sorted(found.keys() | fingerprint.keys()):
            if found.get(name) != fingerprint.get(name):
                raise InputError(
                    f"the cache {self.folder} was made with {name} = {found.get(name)!r}, this run has "
                    f"{fingerprint.get(name)!r}; set CACHE_DIR to another folder, or delete this one"
                )

    def refresh(self):
        """Looks for shards that other processes have finished meanwhile."""
        for keys_file in sorted(self.folder.glob("*.keys.json")):
            shard = keys_file.name.removesuffix(".keys.json")
            if shard in self._values:
                continue
            self._values[shard] = np.load(self.folder / f"{shard}.npy", mmap_mode="r")
            for row, key in enumerate(json.loads(keys_file.read_text())):
                self._places.setdefault(key, (shard, row))

    def __contains__(self, key):
        return key in self._places

    def __getitem__(self, key):
        shard, row = self._places[key]
        return self._values[shard][row]

    def stack(self, keys):
        """The features of several keys, (len(keys), *shape)."""
        return np.stack([self[key] for key in keys])

    def append(self, keys, values):
        """Writes one shard: keys, a list of texts, and their values, (len(keys), *shape)."""
        shard = uuid.uuid4().hex
        with writing("the feature cache", self.folder):
            save_array(self.folder / f"{shard}.npy", values)
            with replacing(self.folder / f"{shard}.keys.json") as temporary:
                temporary.write_text(json.dumps(keys))

    def fill(self, keys, load, encode, batch_size, accelerator, what, threads=0):
        """Computes the features that are missing, shared among the processes of a launch; returns which keys it has.

        keys: one a row, in the same order on every process. load(row) reads the input of one row (in `threads`
        threads when more than 0); encode(list of inputs) => array (n, *shape). An OSError or ValueError of load drops
        its row: it is named, and its key stays out of the cache. Returns a boolean array, True where the cache serves.
        """
        first_rows = {}
        for row, key in enumerate(keys):
            if key not in self:
                first_rows.setdefault(key, row)
        accelerator.wait_for_everyone()  # all have looked before the first one writes
        mine = list(first_rows.items())[accelerator.process_index :: accelerator.num_processes]
        progress = tqdm(total=len(mine), desc=what, disable=not mine or not accelerator.is_main_process)
        pending_keys, pending_values = [], []

        def flush():
            if pending_keys:
                self.append(pending_keys, np.concatenate(pending_values))
            pending_keys.clear(), pending_values.clear()

        with ThreadPoolExecutor(max(threads, 1)) as pool:
            for start in range(0, len(mine), batch_size):
                batch = mine[start : start + batch_size]
                inputs = list(pool.map(lambda item: _load(load, item[1]), batch))
                readable = [(key, value) for (key, _), value in zip(batch, inputs) if value is not None]
                if readable:
                    pending_keys += [key for key, _ in readable]
                    pending_values.append(encode([value for _, value in readable]))
                if len(pending_keys) >= SHARD_ROWS:
                    flush()
                progress.update(len(batch))
        flush()
        progress.close()
        accelerator.wait_for_everyone()
        self.refresh()
        return np.array([key in self for key in keys], dtype=bool)


def _load(load, row):
    try:
        return load(row)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say that a file is no picture
        tqdm.write(f"left out: {error}")
        return None
