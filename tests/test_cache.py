import errno
import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from utils import cache as cache_module
from utils.cache import FeatureCache, image_keys
from utils.checkpoints import weights_fingerprint
from utils.errors import InputError

FINGERPRINT = {"encoder": "abc", "image_size": 64}
ALONE = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)


class Doubling:
    """An encoder that counts what it is asked for; it raises `failure` after so many batches."""

    def __init__(self, batches=None, failure=None):
        self.seen, self.batches, self.failure = [], batches, failure

    def __call__(self, inputs):
        if self.batches is not None and self.batches == 0:
            raise self.failure
        self.batches = None if self.batches is None else self.batches - 1
        self.seen += inputs
        return np.array([[2.0 * value, 0] for value in inputs], dtype=np.float32)


def fill(cache, keys, encode, accelerator=ALONE, load=float, batch_size=2, threads=0):
    return cache.fill(keys, lambda row: load(keys[row]), encode, batch_size, accelerator, "features", threads)


def leftovers(folder):
    return sorted(path.name for path in folder.rglob("*.tmp"))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 2)


@pytest.mark.parametrize("threads", [0, 3])
def test_each_distinct_key_is_computed_once(tmp_path, threads):
    keys, encode = ["3", "1", "3", "2", "1"], Doubling()
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert fill(cache, keys, encode, threads=threads).tolist() == [True] * 5
    assert encode.seen == [3, 1, 2]
    np.testing.assert_array_equal(cache.stack(keys)[:, 0], [6, 2, 6, 4, 2])
    assert not cache["3"].flags.writeable and isinstance(cache["3"].base, np.memmap)

    again = Doubling()
    reopened = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert fill(reopened, [*keys, "5"], again).all() and again.seen == [5]
    np.testing.assert_array_equal(reopened["3"], [6, 0])


def test_a_killed_run_keeps_its_finished_shards(tmp_path, small_shards):
    keys = [str(number) for number in range(10)]
    with pytest.raises(KeyboardInterrupt):
        fill(FeatureCache(tmp_path / "c", FINGERPRINT), keys, Doubling(3, KeyboardInterrupt()))
    assert leftovers(tmp_path) == []

    # what a SIGKILL leaves: a half-written temporary file, and values whose keys were never written
    (tmp_path / "c" / "aaaa.npy.1234.tmp").write_bytes(b"half")
    np.save(tmp_path / "c" / "bbbb.npy", np.full((2, 2), 99, np.float32))
    encode = Doubling()
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert fill(cache, keys, encode).all()
    assert encode.seen == [6, 7, 8, 9]
    np.testing.assert_array_equal(cache.stack(keys)[:, 0], np.arange(10) * 2)


def test_another_encoder_or_size_is_refused(tmp_path):
    FeatureCache(tmp_path / "c", FINGERPRINT)
    with pytest.raises(
        InputError, match=r"cache .*/c was made with encoder = 'abc', this run has 'xyz'; set CACHE_DIR"
    ):
        FeatureCache(tmp_path / "c", {**FINGERPRINT, "encoder": "xyz"})
    with pytest.raises(InputError, match="image_size = 64, this run has 32"):
        FeatureCache(tmp_path / "c", {**FINGERPRINT, "image_size": 32})
    with pytest.raises(InputError, match="preprocessing = None, this run has 'new'"):
        FeatureCache(tmp_path / "c", {**FINGERPRINT, "preprocessing": "new"})


def test_fingerprints_tell_weights_apart():
    layer, same, other = (nn.Linear(3, 2).requires_grad_(False) for _ in range(3))
    same.load_state_dict(layer.state_dict())
    other.load_state_dict(layer.state_dict())
    other.bias[1] += 1e-6
    assert weights_fingerprint(layer) == weights_fingerprint(same) != weights_fingerprint(other)
    assert weights_fingerprint(layer.to(torch.bfloat16)) != weights_fingerprint(same)


def test_a_changed_image_is_computed_again(tmp_path, make_table):
    table = make_table(np.zeros((3, 14)), [1, 2, 3])
    before = image_keys(table)
    assert before == image_keys(table) and len(set(before)) == 3
    stat = os.stat(table.image_path[1])
    os.utime(table.image_path[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with open(table.image_path[2], "ab") as file:
        file.write(b"\0")
    after = image_keys(table)
    assert after[0] == before[0] and after[1] != before[1] and after[2] != before[2]
    assert image_keys(table.iloc[[2, 0]]) == [after[2], after[0]]


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    def load(key):
        if key == "2":
            raise ValueError("unreadable image two.jpg: it is cut off")
        return float(key)

    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert fill(cache, ["1", "2", "3"], Doubling(), load=load).tolist() == [True, False, True]
    assert "left out: unreadable image two.jpg: it is cut off" in capsys.readouterr().out
    assert "2" not in cache
    assert fill(cache, ["2"], Doubling()).tolist() == [True]  # once it was mended


@pytest.mark.parametrize("broken", ["np.save", "os.fsync"])
def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(tmp_path, small_shards, monkeypatch, broken):
    keys = [str(number) for number in range(8)]
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    module, name = {"np.save": (np, "save"), "os.fsync": (os, "fsync")}[broken]
    write, calls = getattr(module, name), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(module, name, full)
    with pytest.raises(InputError, match=r"cannot write the feature cache under .*/c: no space left on device"):
        fill(cache, keys, Doubling())
    monkeypatch.undo()
    assert leftovers(tmp_path) == []
    kept = {"np.save": 4, "os.fsync": 2}[broken]  # a shard takes one np.save, and two fsyncs
    encode = Doubling()
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 2)
    assert fill(FeatureCache(tmp_path / "c", FINGERPRINT), keys, encode).all()
    assert len(encode.seen) == 8 - kept


def test_an_unwritable_folder_is_one_sentence(tmp_path, monkeypatch):
    def read_only(*_arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(InputError, match="read-only file system"):
        FeatureCache(tmp_path / "c", FINGERPRINT)
    assert list((tmp_path / "c").iterdir()) == []


def test_two_processes_of_a_launch_share_the_work(tmp_path, small_shards):
    keys = [str(number % 7) for number in range(12)]
    barrier = threading.Barrier(2)
    encoders, results = [Doubling(), Doubling()], [None, None]

    def process(index):
        accelerator = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=barrier.wait
        )
        cache = FeatureCache(tmp_path / "c", FINGERPRINT)
        served = fill(cache, keys, encoders[index], accelerator)
        results[index] = served.all(), cache.stack(keys)[:, 0].tolist()

    threads = [threading.Thread(target=process, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert encoders[0].seen == [0, 2, 4, 6] and encoders[1].seen == [1, 3, 5]
    assert results[0] == results[1] == (True, [2.0 * (number % 7) for number in range(12)])
    stored = [key for path in (tmp_path / "c").glob("*.keys.json") for key in json.loads(path.read_text())]
    assert sorted(stored) == list("0123456")
