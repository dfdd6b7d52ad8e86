import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from training.examples import Column
from utils import cache as cache_module
from utils import folders
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
    assert not cache["3"].flags.writeable and not cache["3"].base.flags.owndata  # mapped, not read

    again = Doubling()
    reopened = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert fill(reopened, [*keys, "5"], again).all() and again.seen == [5]
    np.testing.assert_array_equal(reopened["3"], [6, 0])


def test_an_interrupted_or_killed_run_keeps_what_it_computed(tmp_path):
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


def test_the_names_of_weights_do_not_matter():
    class Renamed(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.later, self.earlier = layer.bias, layer.weight
            self.tied = layer.weight  # one tensor under two names
            self.register_buffer("position_ids", torch.arange(5))  # kept by some versions of a library only

    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert weights_fingerprint(Renamed(layer)) == weights_fingerprint(layer) != weights_fingerprint(Renamed(other))
    square, turned = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    turned.weight.data = square.weight.data.reshape(2, 3)
    assert weights_fingerprint(square) != weights_fingerprint(turned)


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_a_changed_image_has_another_key_and_a_copy_the_same(tmp_path, make_table):
    table = make_table(np.zeros((6, 14)), range(6))
    for row in range(1, 6):  # larger than what is digested
        with open(table.image_path[row], "ab") as file:
            file.write(bytes(100_000))
    before = image_keys(table)
    assert len(set(before)) == 6 and before[0].startswith("image-0 ")
    size = os.path.getsize(table.image_path[1])
    for row, place in ((1, 10), (2, size // 2), (3, size - 1)):
        with open(table.image_path[row], "r+b") as file:
            file.seek(place)
            file.write(b"\xab")
    with open(table.image_path[4], "ab") as file:
        file.write(b"\0")
    os.utime(table.image_path[5], (1, 1))
    after = image_keys(table)
    assert [old == new for old, new in zip(before, after)] == [True, False, False, False, False, True]
    assert image_keys(table.iloc[[2, 0]]) == [after[2], after[0]]

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    copied = table.assign(image_path=[shutil.copyfile(path, scratch / Path(path).name) for path in table.image_path])
    assert image_keys(copied) == after


def test_an_absent_image_is_named_and_left_out(tmp_path, make_table, capsys, monkeypatch):
    monkeypatch.setattr(cache_module, "KEY_ROWS", 2)
    table = make_table(np.zeros((5, 14)), range(5))
    Path(table.image_path[1]).unlink()
    keys = image_keys(table)
    assert keys[1] is None and [key.split()[0] for key in keys if key] == [f"image-{row}" for row in (0, 2, 3, 4)]
    assert f"left out: unreadable image {table.image_path[1]}: " in capsys.readouterr().out
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    served = cache.fill(keys, float, Doubling(), 2, ALONE, "features")
    assert served.tolist() == [True, False, True, True, True]


# ---- reading -------------------------------------------------------------------------------------------------------


def write_shards(folder, shards):
    """A cache of so many shards of one row each, key => 2 key, as `append` writes them but without its care."""
    cache = FeatureCache(folder, FINGERPRINT)
    cache.append(["0"], np.zeros((1, 2), np.float32))
    (first,) = folder.glob("*.keys.json")
    about = json.loads(first.read_text())
    for number in range(1, shards):
        np.save(folder / f"{number}.npy", np.array([[2 * number, 0]], np.float32))
        (folder / f"{number}.keys.json").write_text(json.dumps({**about, "keys": [str(number)]}))


def test_more_shards_than_descriptors_are_read(tmp_path):
    write_shards(tmp_path / "c", 500)
    code = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import numpy as np
from utils.cache import FeatureCache
cache = FeatureCache(sys.argv[1], {"encoder": "abc", "image_size": 64})
keys = [str(number) for number in np.random.default_rng(0).permutation(500)]
kept = [cache[key] for key in keys]  # all stay mapped
print(all(value[0] == 2 * int(key) for key, value in zip(keys, kept)), len(os.listdir("/proc/self/fd")) < 32)
print(open("/proc/self/maps").read().count(".npy") == 500)
"""
    root = Path(__file__).resolve().parent.parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True"] * 3


class Served(torch.utils.data.Dataset):
    def __init__(self, cache, keys):
        self.column = Column(cache, keys)

    def __len__(self):
        return len(self.column.keys)

    def __getitem__(self, row):
        return torch.tensor(self.column[range(len(self))[row]])


def test_a_process_that_loads_batches_gets_keys_and_no_values(tmp_path):
    keys = [str(number) for number in range(8)]
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    fill(cache, keys, lambda inputs: np.array(inputs, np.float32)[:, None].repeat(100_000, 1))
    expected = cache.stack(keys)
    sent = pickle.dumps(Served(cache, keys))  # as to a spawned process
    assert len(sent) < 5_000 < expected.nbytes
    np.testing.assert_array_equal(torch.stack([*pickle.loads(sent)]).numpy(), expected)


# ---- damage --------------------------------------------------------------------------------------------------------


class Creates:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damage_values(kind, path):
    whole = path.read_bytes()
    if kind == "absent":
        path.unlink()
    elif kind == "another shape":
        np.save(path, np.zeros((2, 3), np.float32))
    elif kind == "another type":
        np.save(path, np.zeros((2, 2), np.float64))
    elif kind == "objects":
        np.save(path, np.array([[Creates(path.parent / "run")] * 2] * 2), allow_pickle=True)
    else:
        path.write_bytes({
            "cut": whole[:-3], "cut in its header": whole[:40], "empty": b"",
            "pickle": pickle.dumps(Creates(path.parent / "run")),
        }[kind])  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["cut", "cut in its header", "empty", "absent", "another shape", "another type", "pickle", "objects"]
)
def test_damaged_values_are_named_and_made_again(kind, tmp_path, small_shards, capsys):
    keys = [str(number) for number in range(6)]
    folder = tmp_path / "c"
    fill(FeatureCache(folder, FINGERPRINT), keys, Doubling())
    harmed = sorted(folder.glob("*.npy"))[1]
    lost = json.loads(harmed.with_suffix(".keys.json").read_text())["keys"]
    damage_values(kind, harmed)
    check_made_again(folder, keys, lost, harmed.stem, capsys)
    assert not (folder / "run").exists() and not harmed.exists()


@pytest.mark.parametrize("kind", ["cut", "a list", "without keys", "other keys"])
def test_damaged_keys_are_named_and_made_again(kind, tmp_path, small_shards, capsys):
    keys = [str(number) for number in range(6)]
    folder = tmp_path / "c"
    fill(FeatureCache(folder, FINGERPRINT), keys, Doubling())
    harmed = sorted(folder.glob("*.keys.json"))[1]
    about = json.loads(harmed.read_text())
    harmed.write_bytes({
        "cut": harmed.read_bytes()[:-4], "a list": json.dumps(about["keys"]).encode(),
        "without keys": json.dumps({**about, "keys": None}).encode(),
        "other keys": json.dumps({**about, "keys": about["keys"][:1]}).encode(),
    }[kind])  # fmt: skip
    check_made_again(folder, keys, about["keys"], harmed.name.removesuffix(".keys.json"), capsys)
    assert not harmed.exists()


def check_made_again(folder, keys, lost, shard, capsys):
    encode = Doubling()
    cache = FeatureCache(folder, FINGERPRINT)
    assert f"the shard {shard} is damaged" in capsys.readouterr().out
    assert fill(cache, keys, encode).all()
    assert encode.seen == [float(key) for key in lost]
    np.testing.assert_array_equal(cache.stack(keys)[:, 0], [2 * float(key) for key in keys])


def test_a_lost_fingerprint_is_written_again_and_no_other_run_served(tmp_path):
    path = tmp_path / "c" / "fingerprint.json"
    fill(FeatureCache(tmp_path / "c", FINGERPRINT), ["1", "2"], Doubling())
    whole = path.read_text()
    path.unlink()
    with pytest.raises(InputError, match=r"made otherwise than this run makes them .*; set CACHE_DIR"):
        FeatureCache(tmp_path / "c", {**FINGERPRINT, "encoder": "xyz"})
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert "1" in cache and "2" in cache and path.read_text() == whole


def test_a_damaged_fingerprint_is_one_sentence(tmp_path):
    fill(FeatureCache(tmp_path / "c", FINGERPRINT), ["1", "2"], Doubling())
    (tmp_path / "c" / "fingerprint.json").write_text('{"encoder": "a')
    with pytest.raises(InputError, match=r"cannot read .*fingerprint.json: .*; remove it, or set another CACHE_DIR"):
        FeatureCache(tmp_path / "c", FINGERPRINT)


def test_a_feature_that_is_no_number_is_left_out(tmp_path, capsys):
    def encode(inputs):
        return np.array([[value, np.nan if value == 2 else 0] for value in inputs], dtype=np.float32)

    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    assert fill(cache, ["1", "2", "3"], encode).tolist() == [True, False, True]
    assert "left out: the features of '2' are not finite numbers" in capsys.readouterr().out
    np.testing.assert_array_equal(cache.stack(["1", "3"]), [[1, 0], [3, 0]])


# ---- writing -------------------------------------------------------------------------------------------------------


def test_a_stopped_run_keeps_what_it_computed_and_says_how_to_go_on(tmp_path):
    """The real signal to a real process, in the middle of a batch: exit 0, one sentence, nothing is computed again."""
    code = """
import os, signal, sys
from types import SimpleNamespace
import numpy as np
from utils.cache import FeatureCache
from utils.errors import run

def encode(inputs):
    if 4.0 in inputs:
        os.kill(os.getpid(), signal.SIGTERM)
    return np.array([[2 * value, 0] for value in inputs], np.float32)

def main():
    alone = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)
    cache = FeatureCache(sys.argv[1], {"encoder": "abc", "image_size": 64})
    cache.fill([str(n) for n in range(10)], float, encode, 2, alone, "features")
    print("not reached")

run(main)
"""
    root = Path(__file__).resolve().parent.parent.parent
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], cwd=root, capture_output=True, text=True)
    said = f"the features computed so far are in {tmp_path / 'c'}: run the same command again to resume"
    assert result.returncode == 0 and result.stdout.strip().endswith(said) and "not reached" not in result.stdout
    assert "Traceback" not in result.stderr
    keys, encode = [str(number) for number in range(10)], Doubling()
    assert fill(FeatureCache(tmp_path / "c", FINGERPRINT), keys, encode).all()
    assert encode.seen == [6, 7, 8, 9]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # elsewhere it ends a process at once


def test_two_launches_may_fill_one_cache_at_a_time(tmp_path, small_shards):
    """Each of two launches, of two processes each, gets all the right values, whatever the other has written
    already."""
    keys = [str(number) for number in range(40)]
    start, served = threading.Barrier(4), {}

    def process(launch, index, barrier):
        accelerator = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=barrier.wait
        )
        start.wait()
        cache = FeatureCache(tmp_path / "c", FINGERPRINT)
        order = keys if launch else keys[::-1]
        found = fill(cache, order, Doubling(), accelerator)
        served[launch, index] = found.all() and cache.stack(keys)[:, 0].tolist()

    barriers = [threading.Barrier(2), threading.Barrier(2)]
    threads = [threading.Thread(target=process, args=(n // 2, n % 2, barriers[n // 2])) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert served == {(launch, index): [2.0 * n for n in range(40)] for launch in (0, 1) for index in (0, 1)}
    assert leftovers(tmp_path) == []


def test_a_process_takes_its_share_whatever_another_launch_has_written(tmp_path):
    """Process 0 looks before another launch writes a key, process 1 after it: still, no key is left to nobody."""
    keys, encoders = list("0123"), [Doubling(), Doubling()]
    accelerators = [
        SimpleNamespace(process_index=n, num_processes=2, is_main_process=n == 0, wait_for_everyone=lambda: None)
        for n in (0, 1)
    ]
    early = FeatureCache(tmp_path / "c", FINGERPRINT)
    FeatureCache(tmp_path / "c", FINGERPRINT).append(["0"], np.zeros((1, 2), np.float32))
    late = FeatureCache(tmp_path / "c", FINGERPRINT)
    fill(early, keys, encoders[0], accelerators[0])
    assert fill(late, keys, encoders[1], accelerators[1]).all()


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


@pytest.mark.parametrize("broken", ["np.save", "np.save, without errno", "os.fsync"])
def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(tmp_path, small_shards, monkeypatch, broken):
    keys = [str(number) for number in range(8)]
    cache = FeatureCache(tmp_path / "c", FINGERPRINT)
    module, name = (os, "fsync") if broken == "os.fsync" else (np, "save")
    write, calls = getattr(module, name), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise (
                OSError("4 requested and 0 written") if "without" in broken else OSError(errno.ENOSPC, "No space left")
            )
        return write(*arguments)

    monkeypatch.setattr(module, name, full)
    why = "4 requested and 0 written" if "without" in broken else "no space left on device"
    with pytest.raises(InputError, match=rf"cannot write the feature cache under .*/c: {why}; what was written before"):
        fill(cache, keys, Doubling())
    monkeypatch.undo()
    assert leftovers(tmp_path) == []
    kept = 2 if broken == "os.fsync" else 4  # a shard takes one np.save, and two fsyncs
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


def test_a_name_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "c").write_text("a file")
    for place in ("c", "c/below"):
        with pytest.raises(InputError, match=r"cannot write the feature cache under .*/c"):
            FeatureCache(tmp_path / place, FINGERPRINT)
    assert (tmp_path / "c").read_text() == "a file"


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
    stored = [key for path in (tmp_path / "c").glob("*.keys.json") for key in json.loads(path.read_text())["keys"]]
    assert sorted(stored) == list("0123456")


@pytest.mark.parametrize("places", [("shared", "shared"), ("one", "other")])
def test_each_machine_with_a_cache_of_its_own_is_refused(tmp_path, monkeypatch, places):
    """There each process sees its own half of the features, and would train on the rows of that half."""
    keys, barrier, told, place = list("0123"), threading.Barrier(2), [None, None], threading.local()

    def gather(values):
        told[place.index] = values
        barrier.wait()
        everyones = told[0] + told[1]
        barrier.wait()
        return everyones

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    monkeypatch.setattr(folders, "VISIBLE_WITHIN", 1)
    results = [None, None]

    def process(index):
        place.index = index
        accelerator = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=barrier.wait
        )
        try:
            cache = FeatureCache(tmp_path / places[index], FINGERPRINT)
            results[index] = fill(cache, keys, Doubling(), accelerator).tolist()
        except InputError as error:
            results[index] = "do not see the same features" in str(error)

    threads = [threading.Thread(target=process, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [[True] * 4] * 2 if places[0] == places[1] else results == [True, True]
