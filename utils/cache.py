"""Features computed once by frozen encoders, kept on disk, memory-mapped.

    <CACHE_DIR>/<feature>/fingerprint.json       what made the features: encoder weights, sizes, preprocessing
    <CACHE_DIR>/<feature>/<shard>.npy            values, (n, *shape)
    <CACHE_DIR>/<feature>/<shard>.keys.json      their n keys, their shape and type, and the fingerprint's digest

A key names the *content* of an input: for an image its dicom_id, file size and a digest of parts of the file; for a
text the text. A changed input therefore has another key and its old value is never served, and a copy of the images has
the same keys. Shards are only ever added: values first, keys last, each under a temporary name and then renamed, so
that a shard without keys does not count. A killed run loses at most one shard, a stopped or interrupted one nothing.

The processes of one launch share the missing keys among them, each writing its own shards, and go on when all of them see
all shards; on several machines the folder has to be on storage that they share. Launches may share a cache:
what both are missing at the same time is computed by both, and either value serves. A shard that is damaged is named,
removed and made again.
"""

import hashlib
import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from utils.errors import (
    ABANDONED_AFTER,
    InputError,
    Stopped,
    reason,
    remove_leftovers,
    replacing,
    stoppable,
    writing,
)
from utils.folders import seen_alike

SHARD_ROWS = 1024  # features a shard; what a kill can lose, a process
DIGEST_PART = 4096  # bytes that are read at the head, in the middle and at the tail of an image for its key
LOOK_UP_THREADS = 16  # image files that are opened at a time: the look-up waits for the disk, not for the processor
LOOK_UP_ROWS = 1024  # images a thread looks up at a time


def image_keys(table):
    """One cache key a row of a table: the image's dicom_id, and its file's size and a digest of three parts of it.

    Files of up to 3 * DIGEST_PART bytes are digested whole. None for a file that cannot be opened, which is named.
    """
    rows = list(zip(table.dicom_id, table.image_path))
    parts = [rows[start : start + LOOK_UP_ROWS] for start in range(0, len(rows), LOOK_UP_ROWS)]
    with ThreadPoolExecutor(LOOK_UP_THREADS) as pool:
        return [key for keys in pool.map(lambda part: [_image_key(*row) for row in part], parts) for key in keys]


def _image_key(dicom_id, path):
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


def save_array(path, values):
    """np.save under a temporary name, then renamed."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)


@lru_cache(None)
def _values(path):
    """The values of a shard, mapped into memory once and shared by all caches of a process.

    Torch maps it: numpy's map keeps a file descriptor, of which a process may have 256, and MIMIC-CXR has 750 shards.
    """
    like = np.lib.format.open_memmap(path, mode="r")  # reads the header
    whole = torch.from_file(path, size=os.path.getsize(path), dtype=torch.uint8).numpy()
    values = np.ndarray(like.shape, like.dtype, whole, like.offset, like.strides)
    values.flags.writeable = False
    return values


class FeatureCache:
    """The features of one encoder: `cache[key]` is a read-only array; what is missing is added by `fill`.

    A pickled cache (for a DataLoader's workers) holds the folder and where each key lies in it, and no values.

    Args:
        folder: where its shards lie; made if absent.
        fingerprint: a flat dict that says what makes the features. If the folder was made by another one, InputError.
    """

    def __init__(self, folder, fingerprint):
        self.folder = Path(folder)
        self._digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        self._places = {}  # key => (shard, row)
        self._seen = set()  # shards that are served, or that were found damaged
        with writing("the feature cache", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            new = self._is_new(fingerprint)
            self.refresh()
            if new:
                with replacing(self.folder / "fingerprint.json") as temporary:
                    temporary.write_text(json.dumps(fingerprint, indent=2))
        self._remove_leftovers()

    def _is_new(self, fingerprint):
        """Whether the folder has no fingerprint yet that can be read; InputError if it has another one."""
        path = self.folder / "fingerprint.json"
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict):
                raise ValueError("it is no table of names and values")
        except FileNotFoundError:
            return True
        except ValueError as error:
            tqdm.write(f"{path} is damaged ({reason(error)}): it is written again, if the features are this run's")
            return True
        except OSError as error:
            raise InputError(f"cannot read {path}: {reason(error)}; remove it, or set CACHE_DIR anew") from error
        for name in sorted(found.keys() | fingerprint.keys()):
            if found.get(name) != fingerprint.get(name):
                raise InputError(
                    f"the cache {self.folder} was made with {name} = {found.get(name)!r}, this run has "
                    f"{fingerprint.get(name)!r}; set CACHE_DIR to another folder, or delete this one"
                )
        return False

    def refresh(self):
        """Looks for shards that other processes have finished meanwhile."""
        for keys_file in sorted(self.folder.glob("*.keys.json")):
            shard = keys_file.name.removesuffix(".keys.json")
            if shard in self._seen:
                continue
            self._seen.add(shard)
            try:
                keys = self._read_keys(shard)
            except (ValueError, FileNotFoundError, IsADirectoryError) as error:
                self._remove_damaged(shard, error)
                continue
            except OSError as error:
                raise InputError(f"cannot read the cache {self.folder}: {reason(error)}") from error
            for row, key in enumerate(keys):
                self._places.setdefault(key, (shard, row))

    def _read_keys(self, shard):
        """The keys of a shard; ValueError or an OSError if it is not whole, InputError if it is another cache's."""
        about = json.loads((self.folder / f"{shard}.keys.json").read_text())
        keys = about.get("keys") if isinstance(about, dict) else None
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or "fingerprint" not in about:
            raise ValueError("its keys.json is not of this kind")
        if about["fingerprint"] != self._digest:
            raise InputError(
                f"the cache {self.folder} holds features that were made otherwise than this run makes them (shard "
                f"{shard}); set CACHE_DIR to another folder, or delete this one"
            )
        try:
            values = np.lib.format.open_memmap(self._path(shard), mode="r")
        except OSError:
            raise
        except Exception as error:  # numpy meets a broken header with whatever its code runs into
            raise ValueError(reason(error)) from error
        found = [list(values.shape), values.dtype.str]
        if found != [about.get("shape"), about.get("dtype")] or found[0][:1] != [len(keys)]:
            raise ValueError(f"its values are {found}, and not those of its {len(keys)} keys")
        return keys

    def _path(self, shard):
        return f"{self.folder}/{shard}.npy"  # not of a Path, which would take a twentieth of a training sample's time

    def _remove_damaged(self, shard, error):
        keys_file = self.folder / f"{shard}.keys.json"
        if not keys_file.exists():  # another process has just removed it
            return
        tqdm.write(f"{self.folder}: the shard {shard} is damaged ({reason(error)}): removed, and made again")
        for path in (keys_file, Path(self._path(shard))):
            try:
                path.unlink(missing_ok=True)
            except OSError as failure:
                tqdm.write(f"cannot remove {path}: {reason(failure)}; it is not used")

    def _remove_leftovers(self):
        """Removes what killed runs left: temporary files, and values whose keys were never written."""
        remove_leftovers(self.folder)
        for path in self.folder.glob("*.npy"):
            try:
                old = time.time() - path.stat().st_mtime > ABANDONED_AFTER
                if old and not path.with_suffix(".keys.json").exists():
                    path.unlink()
            except OSError:  # it has gone meanwhile, or the cache may only be read
                pass

    def __contains__(self, key):
        return key in self._places

    def __getitem__(self, key):
        shard, row = self._places[key]
        return _values(self._path(shard))[row]

    def stack(self, keys):
        """The features of several keys, (len(keys), *shape)."""
        return np.stack([self[key] for key in keys])

    def append(self, keys, values):
        """Writes one shard: keys, a list of texts, and their values, (len(keys), *shape)."""
        shard = uuid.uuid4().hex
        about = {
            "fingerprint": self._digest,
            "shape": list(values.shape),
            "dtype": values.dtype.str,
            "keys": keys,
        }
        with writing("the feature cache", self.folder):
            save_array(self._path(shard), values)
            with replacing(self.folder / f"{shard}.keys.json") as temporary:
                temporary.write_text(json.dumps(about))

    def fill(self, keys, load, encode, batch_size, accelerator, what, threads=0):
        """Computes the features that are missing, shared among the processes of a launch; returns which keys it has.

        keys: one a row, in the same order on every process; None for an input that cannot be had. load(row) reads the
        input of one row (in `threads` threads when more than 0); encode(list of inputs) => array (n, *shape). An
        OSError or ValueError of load, or a feature that is no number, drops its row: it is named, and its key stays out
        of the cache. SIGTERM ends it after the batch, with all that was computed on disk (Stopped). Returns a boolean
        array, True where the cache serves.
        """
        first_rows = {}
        for row, key in enumerate(keys):
            if key is not None:
                first_rows.setdefault(key, row)
        # a share does not depend on what is there already: beside another launch, each process may see another lot
        share = list(first_rows.items())[accelerator.process_index :: accelerator.num_processes]
        mine = [(key, row) for key, row in share if key not in self]
        progress = tqdm(total=len(mine), desc=what, disable=not mine or not accelerator.is_main_process)
        pending = _Pending(self)
        with stoppable() as stopped:
            try:
                with ThreadPoolExecutor(max(threads, 1)) as pool:
                    for start in range(0, len(mine), batch_size):
                        if stopped():
                            break
                        batch = mine[start : start + batch_size]
                        inputs = list(pool.map(lambda item: _load(load, item[1]), batch))
                        readable = [(key, value) for (key, _), value in zip(batch, inputs) if value is not None]
                        if readable:
                            pending.add([key for key, _ in readable], encode([value for _, value in readable]))
                        progress.update(len(batch))
            finally:
                pending.flush()  # also what an interrupted run has computed
                progress.close()
            accelerator.wait_for_everyone()
            if any(gather_object([stopped()])):  # of all processes, so that they end together
                raise Stopped(
                    f"stopped; the {what} computed so far are in {self.folder}: the same command goes on from there"
                )
        if not seen_alike(lambda: self._digest_served(keys), accelerator):
            raise InputError(
                f"the processes of this launch do not see the same {what} in {self.folder}: put DATA_ROOT and CACHE_DIR onto "
                "storage that all machines share, or a copy of one filled cache onto each"
            )
        return self._serves(keys)

    def _serves(self, keys):
        self.refresh()
        return np.array([key in self for key in keys], dtype=bool)

    def _digest_served(self, keys):
        """What tells two processes apart that have other keys, or are served others of them."""
        return hashlib.sha256(repr(keys).encode() + self._serves(keys).tobytes()).hexdigest()


class _Pending:
    """Features that wait to be a shard."""

    def __init__(self, cache):
        self.cache, self.rows, self.batches = cache, 0, []  # batches: (keys, values)

    def add(self, keys, values):
        finite = np.isfinite(values).reshape(len(keys), -1).all(axis=1)
        for key, kept in zip(keys, finite):
            if not kept:
                tqdm.write(f"left out: the features of {key!r} are no numbers")
        if finite.any():
            self.batches.append(([key for key, kept in zip(keys, finite) if kept], values[finite]))
            self.rows += int(finite.sum())
        if self.rows >= SHARD_ROWS:
            self.flush()

    def flush(self):
        batches, self.batches, self.rows = self.batches, [], 0
        if batches:
            self.cache.append([key for keys, _ in batches for key in keys], np.concatenate([v for _, v in batches]))


def _load(load, row):
    try:
        return load(row)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say that a file is no picture
        tqdm.write(f"left out: {error}")
        return None
