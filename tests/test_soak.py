"""The comparison that `make soak` rests on."""

import json
import signal
from functools import partial

import numpy as np
import pytest
import soak

from utils.errors import InputError, run


def write_run(folder, speed=1.0, loss=0.5, shards=((0, 1, 2),), weights=b"abc"):
    """What a run leaves: weights, metrics, and a cache whose shards hold these rows."""
    cache = folder / "cache" / "moments"
    cache.mkdir(parents=True)
    (folder / "run" / "last").mkdir(parents=True)
    (folder / "run" / "last" / "model.safetensors").write_bytes(weights)
    (folder / "run" / "metrics.csv").write_text(f"step,loss,examples_per_second\n3,{loss},{speed}\n")
    (cache / "fingerprint.json").write_text("{}")
    for rows in shards:
        name = f"shard-of-{len(list(folder.parent.rglob('*.npy')))}"
        np.save(cache / f"{name}.npy", np.array([[row, row] for row in rows], np.float16))
        (cache / f"{name}.keys.json").write_text(json.dumps({"keys": [f"key {row}" for row in rows]}))
    return folder


def compare(one, other):
    return soak.differences(*(soak.contents(folder, ("run", "cache")) for folder in (one, other)))


def test_speed_and_shards_make_no_difference(tmp_path):
    one = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other", speed=7.0, shards=((2,), (1, 0)))
    np.save(other / "cache" / "moments" / "unfinished.npy", np.zeros(3))  # its keys were never written
    assert compare(one, other) == []
    assert len(soak.contents(one, ("run", "cache"))) == 2 + 1 + 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "run/last/model.safetensors").write_bytes(b"abd"), "run/last/model.safetensors: differs"),
        (lambda run: (run / "run/last/model.safetensors").unlink(), "run/last/model.safetensors: missing"),
        (lambda run: (run / "run/x.txt").write_bytes(b""), "run/x.txt: not in the uninterrupted run"),
        (
            lambda run: (run / "run/metrics.csv").write_text("step,loss,examples_per_second\n3,0.6,1\n"),
            "run/metrics.csv",
        ),
        (lambda run: next(run.rglob("*.keys.json")).write_text('{"keys": ["key 0"]}'), "cache/moments/key 1: missing"),
        (
            lambda run: np.save(next(run.rglob("*.npy")), np.array([[0, 0], [1, 1], [2, 3]], np.float16)),
            "cache/moments/key 2: differs",
        ),
    ],
)
def test_a_changed_byte_a_missing_and_an_extra_file_are_noticed(tmp_path, change, said):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other")
    change(other)
    assert compare(one, other)[0].startswith(said)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Runs a script in a folder whose scripts end at once, wait for a signal, are slow to start, or fail."""
    script = "import time\nfrom utils.errors import run\n{before}\ndef main():\n    {inside}\nrun(main)\n"
    for name, before, inside in (
        ("ends", "", "pass"),
        ("waits", "", "time.sleep(60)"),
        ("starts_late", "print('importing', flush=True)\ntime.sleep(0.5)", "pass"),
        ("fails", "", "raise ValueError('broken')"),
    ):
        (tmp_path / f"{name}.py").write_text(script.format(before=before, inside=inside))
    monkeypatch.setattr(soak, "REPOSITORY", tmp_path)
    (tmp_path / "place").mkdir()
    return partial(soak.run_in, tmp_path / "place")


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_a_run_or_comes_too_late(place, kind):
    assert place("waits", kind, 0.5) is True
    assert place("ends", kind, 60) is False
    assert place("ends") is False


def test_a_sigterm_before_the_script_is_up_does_not_count(place):
    """Not even with a handler in the parent, which a fork inherits."""
    assert place("starts_late", signal.SIGKILL, 0.1) is True
    ended = []
    run(lambda: ended.append(place("starts_late", signal.SIGTERM, 0.1)))
    assert ended == [False]


def test_a_run_that_fails_is_an_error(place):
    with pytest.raises(InputError, match="(?s)fails ended with 1 after no signal.*broken"):
        place("fails")
