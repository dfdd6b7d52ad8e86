import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from running import FIT_CONSTANTS
from torch import nn

from training import loop as training
from training.batches import Batches, Examples
from training.loop import DEFAULTS, fit, try_training
from training.run_folder import MetricsLog
from utils.checkpoints import read_training
from utils.devices import make_accelerator
from utils.errors import InputError, Stopped
from utils.folders import locked
from utils.seeds import draw_rows, keyed_seed

CONSTANTS = {
    "RUN_DIR": "",
    "SEED": 5,
    "BATCH_SIZE": 4,
    "ACCUMULATION": 1,
    "EPOCHS": 100,
    "MAX_STEPS": 8,
    "LEARNING_RATE": 0.02,
    "BETAS": (0.9, 0.999),
    "WEIGHT_DECAY": 0.01,
    "LR_SCHEDULE": "constant_with_warmup",
    "WARMUP_STEPS": 2,
    "CLIP_NORM": 1.0,
    "EMA_DECAY": 0.5,
    "CHECKPOINT_EVERY": 2,
    "LOG_EVERY": 1,
    "VALIDATION_ROWS": 0,
    "NUM_WORKERS": 0,
}


class Line(ModelMixin, ConfigMixin):
    """y = a x + b, with something random in training, as dropout is."""

    @register_to_config
    def __init__(self, width: int = 3, dropout: float = 0.2):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.linear(self.drop(x))


class Points(Examples):
    """Points on y = x1 + 2 x2 - x3 + 1; x is the row's, with noise from the seed."""

    def __init__(self, count=10):
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row_and_seed):
        row, seed = row_and_seed
        x = self.x[row] + 0.1 * torch.randn(3, generator=torch.Generator().manual_seed(seed))
        return {"x": x, "y": x @ torch.tensor([1.0, 2.0, -1.0]) + 1}


def squared_error(model, batch):
    return (model(batch["x"])[:, 0] - batch["y"]).square().mean()


@pytest.fixture
def train(tmp_path, accelerator, monkeypatch):
    """A function: name of the run, constants that differ => the folder. Only one test draws loss.png, which is slow."""
    draw = MetricsLog._draw
    monkeypatch.setattr(MetricsLog, "_draw", lambda log: draw(log) if log.folder.name == "drawn" else None)

    def run(name, compute_loss=squared_error, dropout=0.2, width=3, preview=None, facts=None, **constants):
        torch.manual_seed(0)
        constants = {**CONSTANTS, "RUN_DIR": str(tmp_path / name), **constants}
        model, data = Line(width, dropout), (Points(), Points(7))
        fit(model, *data, compute_loss, constants, accelerator, preview, facts)
        return tmp_path / name

    return run


def weights(folder):
    return Line.from_pretrained(folder).state_dict()


def metrics(folder):
    """The rows of metrics.csv, without the speed."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "examples_per_second"} for row in rows]


def assert_same_run(one, other):
    """Bit for bit: averaged and raw weights of the last checkpoint, the optimiser, the metrics."""
    for part in (".", "raw"):
        first, second = weights(one / "last" / part), weights(other / "last" / part)
        assert all(torch.equal(first[name], second[name]) for name in first)
    states = [
        torch.load(run / "last" / "optimizer.pt", weights_only=True)["optimizer"]["state"] for run in (one, other)
    ]
    for number, state in states[0].items():
        assert all(torch.equal(value, states[1][number][name]) for name, value in state.items())
    assert metrics(one) == metrics(other)
    assert read_training(one / "best")["step"] == read_training(other / "best")["step"]


class Killed(Exception):
    pass


def killed_at(passes):
    """A loss that ends the run in its pass of that number."""
    count = iter(range(1_000_000))

    def compute_loss(model, batch):
        if model.training and next(count) == passes:
            raise Killed
        return squared_error(model, batch)

    return compute_loss


def test_the_constants_of_this_test_are_the_ones_fit_reads():
    assert set(CONSTANTS) == {*FIT_CONSTANTS, *DEFAULTS}


def test_a_model_learns_and_leaves_its_record(train):
    run = train(
        "drawn",
        dropout=0.0,
        EPOCHS=200,
        MAX_STEPS=400,
        LEARNING_RATE=0.05,
        CHECKPOINT_EVERY=100,
        LOG_EVERY=50,
        EMA_DECAY=0.9,
    )
    learnt = weights(run / "best")
    torch.testing.assert_close(learnt["linear.weight"], torch.tensor([[1.0, 2.0, -1.0]]), atol=0.05, rtol=0)
    torch.testing.assert_close(learnt["linear.bias"], torch.tensor([1.0]), atol=0.05, rtol=0)

    rows = metrics(run)
    assert [int(row["step"]) for row in rows] == list(range(50, 401, 50))
    assert [row["validation_loss"] != "" for row in rows] == [False, True] * 4
    assert float(rows[-1]["loss"]) < 0.01 * float(rows[0]["loss"])
    assert float(rows[-1]["epoch"]) == 400 * 4 / 10
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "constants.json").read_text())["MAX_STEPS"] == 400


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine"])
def test_learning_rates_and_averages_are_those_of_diffusers(name, train, monkeypatch):
    theirs = []
    step = training.Average.step

    def both(average, parameters):
        if not theirs:
            theirs.append(EMAModel(average.weights, decay=0.5))
        step(average, parameters)
        theirs[0].step(parameters)
        assert all(map(torch.allclose, average.weights, theirs[0].shadow_params))

    monkeypatch.setattr(training.Average, "step", both)
    run = train(name, LR_SCHEDULE=name, WARMUP_STEPS=3, MAX_STEPS=9)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], CONSTANTS["LEARNING_RATE"])
    factor = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=9).lr_lambdas[0]
    rates = [float(row["learning_rate"]) for row in metrics(run)]
    assert rates == [CONSTANTS["LEARNING_RATE"] * factor(step) for step in range(1, 10)]
    assert theirs[0].optimization_step == 9


def test_learning_rate_warms_up_and_epochs_bound_the_steps(train):
    rows = metrics(train("a", WARMUP_STEPS=4, MAX_STEPS=0, EPOCHS=2))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]  # ceil(2 * 10 / 4)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02])


@pytest.mark.parametrize("steps", [2, 5, 6, 7])
def test_a_resumed_run_is_the_uninterrupted_run(train, steps):
    whole = train("whole")
    with pytest.raises(Killed):
        train("parts", killed_at(steps))
    assert read_training(whole.parent / "parts" / "last")["step"] == steps // 2 * 2
    assert_same_run(whole, train("parts"))


def test_resuming_with_more_steps(train):
    train("parts", MAX_STEPS=4)
    assert_same_run(train("whole"), train("parts"))


def test_a_finished_run_is_left_as_it_is(train):
    run = train("a")
    before = weights(run / "last"), metrics(run)
    train("a")
    after = weights(run / "last"), metrics(run)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[1] == after[1]


def test_a_kill_between_the_renames_of_a_checkpoint(train):
    whole = train("whole")
    run = train("parts", MAX_STEPS=4)
    (run / "last").rename(run / "last.old")
    (run / "last.new").mkdir()  # half-written
    assert_same_run(whole, train("parts"))
    assert not (run / "last.old").exists() and not (run / "last.new").exists()


def test_a_kill_before_best_was_renewed(train, monkeypatch):
    """Whatever the moment, best is in the end the checkpoint that an uninterrupted run calls best."""
    whole = train("whole")
    copytree, calls = shutil.copytree, []

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 5:
            raise Killed
        return copytree(*arguments, **options)

    monkeypatch.setattr(shutil, "copytree", killed)
    with pytest.raises(Killed):
        train("parts")
    monkeypatch.undo()
    assert_same_run(whole, train("parts"))


@pytest.mark.parametrize("checkpoint", [1, 2, 4])
def test_a_kill_before_a_checkpoint_has_its_name(train, checkpoint):
    """Then its row of metrics.csv and its preview are there already, and are made again: none is there without them."""

    def preview(model, path):
        path.with_suffix(".txt").write_text(str(model.state_dict()))

    whole = train("whole", preview=preview)
    name, calls = training.name_checkpoint, []

    def killed(folder, *arguments, **options):
        calls.append(1)
        if len(calls) == checkpoint:
            assert int(metrics(folder)[-1]["step"]) == 2 * checkpoint
            assert (folder / "previews" / f"step-{2 * checkpoint:08d}.txt").exists()
            raise Killed
        return name(folder, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "name_checkpoint", killed)
        train("parts", preview=preview)
    assert_same_run(whole, train("parts", preview=preview))
    assert names(whole) == names(whole.parent / "parts")
    for path in (whole / "previews").iterdir():
        assert path.read_bytes() == (whole.parent / "parts" / "previews" / path.name).read_bytes()


def test_a_preview_that_fails_costs_no_checkpoint(train, tmp_path):
    def preview(model, path):
        raise Killed

    with pytest.raises(Killed):
        train("a", preview=preview)
    assert read_training(tmp_path / "a" / "last")["step"] == 2


def test_accumulated_passes_are_one_step(train):
    one, two = train("one", dropout=0.0), train("two", dropout=0.0, ACCUMULATION=2)
    first, second = weights(one / "last/raw"), weights(two / "last/raw")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-5)
    for row, other in zip(metrics(one), metrics(two)):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)
        assert float(row["gradient_norm"]) == pytest.approx(float(other["gradient_norm"]), rel=1e-4)


def test_frozen_parameters_stay_and_resume(tmp_path, accelerator):
    def run(name, steps):
        torch.manual_seed(0)
        model = Line()
        model.linear.bias.requires_grad_(False)
        constants = {**CONSTANTS, "RUN_DIR": str(tmp_path / name), "MAX_STEPS": steps}
        fit(model, Points(), Points(7), squared_error, constants, accelerator)
        return tmp_path / name

    run("parts", 4)
    assert_same_run(run("whole", 8), run("parts", 8))
    torch.manual_seed(0)
    assert torch.equal(weights(tmp_path / "whole" / "last")["linear.bias"], Line().linear.bias)


def test_averaged_weights_follow_the_formula(train):
    """shadow += (1 - d_n) (weights - shadow), d_n = min(EMA_DECAY, n / (9 + n)) for n updates before this one."""
    torch.manual_seed(0)
    shadow = Line().state_dict()
    for step in range(1, 5):
        decay = min(0.3, step / (9 + step)) if step > 1 else 0.0
        last = train("a", MAX_STEPS=step, EMA_DECAY=0.3) / "last"
        raw, averaged = weights(last / "raw"), weights(last)
        shadow = {name: decay * shadow[name] + (1 - decay) * raw[name] for name in shadow}
        for name in shadow:
            torch.testing.assert_close(averaged[name], shadow[name])
    assert not torch.equal(averaged["linear.weight"], raw["linear.weight"])


def test_which_checkpoints_are_kept(train):
    def rises_after_four(model, batch):  # best is then the checkpoint of step 4
        loss = squared_error(model, batch)
        rises_after_four.count += model.training
        return loss if model.training else loss * 0 + abs(rises_after_four.count - 4)

    rises_after_four.count = 0
    run = train("a", rises_after_four)
    assert [read_training(run / name)["step"] for name in ("best", "last")] == [4, 8]
    best = read_training(run / "best")
    assert best["validation_loss"] == best["best_validation_loss"] == 0
    assert read_training(run / "last")["validation_loss"] == 4
    assert (run / "last" / "optimizer.pt").exists() and not (run / "best" / "optimizer.pt").exists()
    assert best["constants"]["LEARNING_RATE"] == 0.02
    assert not [path for path in run.iterdir() if path.suffix in (".new", ".old")]


def test_validation_is_of_the_averaged_weights_with_fixed_noise(train):
    run = train("a", VALIDATION_ROWS=3, CHECKPOINT_EVERY=4)
    data, model = Points(7), Line.from_pretrained(run / "last").eval()
    drawn = draw_rows(7, 3, 5, "validation rows").tolist()
    assert drawn != [0, 1, 2]
    losses = [data[row, keyed_seed(5, "validation", row)] for row in drawn]
    losses = [squared_error(model, {name: value[None] for name, value in example.items()}).item() for example in losses]
    assert float(metrics(run)[-1]["validation_loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_previews_are_of_the_averaged_weights_and_change_nothing(train):
    seen = []

    def preview(model, path):
        assert not model.training
        seen.append((path.name, {name: value.clone() for name, value in model.state_dict().items()}))
        torch.rand(3)  # what it draws at random is no matter

    run = train("a", preview=preview)
    assert [name for name, _ in seen] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    averaged = weights(run / "last")
    assert all(torch.equal(seen[-1][1][name], averaged[name]) for name in averaged)
    assert_same_run(run, train("b"))


def test_another_architecture_or_other_facts_are_refused(train):
    run = train("a", MAX_STEPS=2, facts={"encoders": {"vae": "abc"}})
    with pytest.raises(InputError, match=r"a/last/raw is a checkpoint of another architecture .*change RUN_DIR"):
        train("a", width=4, facts={"encoders": {"vae": "abc"}})
    with pytest.raises(InputError, match="was trained with other encoders"):
        train("a", facts={"encoders": {"vae": "xyz"}})
    assert read_training(run / "last")["encoders"] == {"vae": "abc"}
    assert read_training(run / "last")["step"] == 2


def exploding(passes):
    """A loss that is no number in its training passes of these numbers, counted from 1."""
    count = iter(range(1, 1_000_000))

    def compute_loss(model, batch):
        return squared_error(model, batch) * (float("nan") if model.training and next(count) in passes else 1)

    return compute_loss


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_whose_gradient_is_no_number_is_not_applied(train, capsys, accumulation):
    run = train("a", exploding({6}), ACCUMULATION=accumulation, LOG_EVERY=100, CHECKPOINT_EVERY=4)
    step = -(-6 // accumulation)
    said = capsys.readouterr().out
    assert f"step {step} is not applied" in said and "nan (1 in a row)" in said
    for part in (".", "raw"):
        assert weights(run / "last" / part)["linear.weight"].isfinite().all()
    state = torch.load(run / "last" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert state[0]["step"] == 7 and read_training(run / "last")["step"] == 8


def test_too_many_such_steps_end_the_run_and_a_lower_rate_goes_on(train, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BAD_STEPS", 3)
    with pytest.raises(InputError, match="3 steps in a row, up to step 8, .* the last good checkpoint .*LEARNING_RATE"):
        train("a", exploding({6, 7, 8}), CHECKPOINT_EVERY=4)
    assert read_training(tmp_path / "a" / "last")["step"] == 4
    run = train("a", LEARNING_RATE=0.01, CHECKPOINT_EVERY=4)
    assert read_training(run / "last")["step"] == 8
    assert float(metrics(run)[-1]["learning_rate"]) == pytest.approx(0.01)


def test_nothing_is_saved_of_a_model_with_a_weight_that_is_no_number(train, tmp_path):
    def breaks(model, batch):
        if model.training:
            breaks.passes += 1
        elif breaks.passes > 4:
            return squared_error(model, batch) * float("inf")
        return squared_error(model, batch)

    breaks.passes = 0
    with pytest.raises(InputError, match="after step 8 the validation loss is inf.*last good checkpoint"):
        train("a", breaks, CHECKPOINT_EVERY=4)
    assert read_training(tmp_path / "a" / "last")["step"] == 4


def test_no_clipping_is_no_clipping(train):
    free, wide, narrow = (train(name, CLIP_NORM=norm) for name, norm in (("a", 0.0), ("b", 1e9), ("c", 0.01)))
    assert_same_run(free, wide)
    assert not torch.equal(weights(free / "last")["linear.weight"], weights(narrow / "last")["linear.weight"])


def test_a_resumed_run_obeys_its_constants_and_says_what_changed(train, capsys):
    run = train("a", MAX_STEPS=4)
    train("a", LEARNING_RATE=0.001, WEIGHT_DECAY=0.5, BETAS=(0.8, 0.9))
    assert float(metrics(run)[-1]["learning_rate"]) == pytest.approx(0.001)
    group = torch.load(run / "last" / "optimizer.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (0.001, 0.5, (0.8, 0.9))
    said = capsys.readouterr().out
    assert "LEARNING_RATE was 0.02, and is 0.001 from here on" in said and "WEIGHT_DECAY was 0.01" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("SEED", 6), ("BATCH_SIZE", 8), ("PROMPT_DROPOUT", [0.5, 0, 0]), ("VIEWS", ["AP"])],
)
def test_another_experiment_is_not_resumed(train, name, value):
    given = {"PROMPT_DROPOUT": [0.05, 0.05, 0.05], "VIEWS": ["PA"]}
    run = train("a", MAX_STEPS=4, **given)
    with pytest.raises(InputError, match=f"was trained with {name} = .*this run has .*another experiment"):
        train("a", **{**given, name: value})
    assert read_training(run / "last")["step"] == 4


def terminated_at(passes):
    """A loss that sends SIGTERM to this process in its training pass of that number."""
    count = iter(range(1, 1_000_000))

    def compute_loss(model, batch):
        if model.training and next(count) == passes:
            os.kill(os.getpid(), signal.SIGTERM)
        return squared_error(model, batch)

    return compute_loss


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_sigterm_finishes_the_step_and_the_next_run_goes_on_bit_for_bit(train, tmp_path, step):
    constants = {"LOG_EVERY": 3, "CHECKPOINT_EVERY": 4}
    whole = train("whole", **constants)
    with pytest.raises(Stopped, match=f"stopped after step {step} of 8; run the same command again"):
        train("stopped", terminated_at(step), **constants)
    assert read_training(tmp_path / "stopped" / "last")["step"] == step
    assert (tmp_path / "stopped" / "best").exists() == (step >= 4)
    assert_same_run(whole, train("stopped", **constants))
    assert names(whole) == names(tmp_path / "stopped")


def test_sigterm_to_a_whole_job_stops_no_process_that_loads_batches(train, tmp_path):
    """As Slurm and `timeout` send it: to the run and to its loaders alike."""

    count = iter(range(1, 1_000_000))

    def compute_loss(model, batch):
        if model.training and next(count) == 3:  # each of the two has loaded a batch, so it is ready
            loaders = multiprocessing.active_children()
            assert loaders
            told = [str(pid) for pid in (*(loader.pid for loader in loaders), os.getpid())]
            subprocess.run(["kill", "-TERM", *told], check=True)  # by somebody else: from its parent a loader bears it
            time.sleep(0.5)
        return squared_error(model, batch)

    with pytest.raises(Stopped, match="stopped after step 3 of 8"):
        train("stopped", compute_loss, NUM_WORKERS=2)
    assert_same_run(train("whole", NUM_WORKERS=2), train("stopped", NUM_WORKERS=2))


HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent.parent, HERE.parent))),
}
LOADED = """
import sys
from test_loop import CONSTANTS, Line, Points, fit, make_accelerator, squared_error

def train(run, loss):
    constants = {**CONSTANTS, "RUN_DIR": f"{sys.argv[1]}/{run}", "NUM_WORKERS": 2}
    fit(Line(), Points(), Points(7), loss, constants, make_accelerator("cpu", "no"))

def broken(model, batch):
    raise ValueError("of the loss")

train("whole", squared_error)
print("the first one has ended")
train("broken", broken)
"""


def test_runs_whose_batches_are_loaded_by_processes_end(tmp_path):
    """One that completes, and one that fails, with which its process ends."""
    command = [sys.executable, "-c", LOADED, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "the first one has ended" in done.stdout, done.stderr
    assert "ValueError: of the loss" in done.stderr


def names(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def test_weights_that_cannot_be_resumed_are_not_replaced(train):
    run = train("a", MAX_STEPS=4)
    (run / "last" / "optimizer.pt").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"no last/optimizer.pt to resume from"):
        train("a")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_one_training_a_folder(train, tmp_path):
    with locked(tmp_path / "a", "a training"), pytest.raises(InputError, match="another run is writing a training"):
        train("a")


WORKER = """
import os, signal, sys
from pathlib import Path
import torch
from test_loop import CONSTANTS, Line, Points, fit, make_accelerator, squared_error

def compute_loss(model, batch):
    compute_loss.passes += model.training
    if compute_loss.passes == 6 and os.environ["RANK"] == "1" and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return squared_error(model, batch)

compute_loss.passes, killed = 0, Path(sys.argv[1]).with_suffix(".killed")
torch.manual_seed(0)
accelerator = make_accelerator("cpu", "no")
assert accelerator.num_processes == 2
fit(Line(dropout=0.0), Points(), Points(7), compute_loss, {**CONSTANTS, "RUN_DIR": sys.argv[1]}, accelerator)
"""


def test_a_killed_worker_ends_the_launch_and_nothing_is_lost(train, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "worker.py"), str(tmp_path / "two")]
    launched = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "two.killed").exists():
            assert launched.poll() is None, "the launch ended before its worker was killed"
            time.sleep(0.05)
        assert launched.wait(timeout=60) != 0
    finally:
        launched.kill()
    assert read_training(tmp_path / "two" / "last")["step"] == 4
    one, two = train("one", dropout=0.0), train("two", dropout=0.0)  # resumed by one process
    for part in (".", "raw"):
        for name, weight in weights(one / "last" / part).items():
            torch.testing.assert_close(weights(two / "last" / part)[name], weight, atol=1e-6, rtol=0)
    assert [row["step"] for row in metrics(one)] == [row["step"] for row in metrics(two)]


def test_a_process_that_finds_no_checkpoint_where_another_does_ends_the_run(train, monkeypatch):
    """As on a second machine whose RUN_DIR is another folder."""
    last = train("run", MAX_STEPS=4) / "last"
    before = read_training(last)
    monkeypatch.setattr(training, "gather_object", lambda values: [*values, 0])
    with pytest.raises(InputError, match=r"from steps \[4, 0\]: put RUN_DIR"):
        train("run")
    assert read_training(last) == before


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("last/optimizer.pt", lambda path: path.write_bytes(path.read_bytes()[:100])),
        ("last/optimizer.pt", lambda path: path.write_bytes(b"")),
        ("last/optimizer.pt", lambda path: torch.save({"optimizer": Opens(path.parent / "opened")}, path)),
        ("last/optimizer.pt", lambda path: torch.save([1], path)),
        ("last/training.json", lambda path: path.write_text(path.read_text()[:40])),
        ("last/training.json", lambda path: path.unlink()),
        ("last/training.json", lambda path: path.write_text("[]")),
        ("metrics.csv", lambda path: path.write_bytes(b"\xff\xfe step")),
        ("metrics.csv", lambda path: path.write_text("a,b\n1,2\n")),
    ],
)
def test_damaged_files_of_a_run_are_named_and_not_used(train, name, damage):
    run = train("a", MAX_STEPS=4)
    damage(run / name)
    with pytest.raises(InputError) as error:
        train("a")
    assert Path(name).name in str(error.value) and "\n" not in str(error.value)
    assert not (run / "last" / "opened").exists()


def test_what_a_kill_left_is_removed(train):
    run = train("a", MAX_STEPS=4)
    for name in ("last.new", "best.new", "last.old"):
        (run / name).mkdir()
    assert_same_run(train("a"), train("b"))
    assert names(run) == names(run.parent / "b")


def test_passes_of_unequal_size_are_one_mean(tmp_path, accelerator):
    """Two passes with 1 and 2 terms are the step of one pass with 3."""

    class Unequal(Points):
        def collate(self, examples):
            kept = [examples[0]] if len(examples) == 2 and examples[0]["y"] > 0 else examples
            return {name: torch.stack([example[name] for example in kept]) for name in kept[0]}

        def count_terms(self, batch):
            return len(batch["y"])

    losses = []

    def compute_loss(model, batch):
        loss = squared_error(model, batch)
        if model.training:
            losses.append((loss.item(), len(batch["y"])))
        return loss

    torch.manual_seed(0)
    run = tmp_path / "unequal"
    constants = {**CONSTANTS, "RUN_DIR": str(run), "ACCUMULATION": 2, "MAX_STEPS": 3, "LOG_EVERY": 1}
    fit(Line(dropout=0.0), Unequal(), Unequal(7), compute_loss, constants, accelerator)
    for row, passes in zip(metrics(run), zip(losses[::2], losses[1::2])):
        expected = sum(loss * count for loss, count in passes) / sum(count for _, count in passes)
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)
    assert {1, 2} == {count for _, count in losses}


def test_gradients_are_the_accelerators(train, accelerator, monkeypatch):
    """Whose backward scales the loss in fp16."""
    passes, backward = [], accelerator.backward
    monkeypatch.setattr(accelerator, "backward", lambda loss: passes.append(1) or backward(loss))
    train("a", ACCUMULATION=2)
    assert len(passes) == 16


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("100 requested and 0 written"),  # numpy
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3: file write failed"),
        type("SafetensorError", (Exception,), {})("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_while_saving_is_one_sentence(train, monkeypatch, tmp_path, error):
    train("a", MAX_STEPS=2)

    def full(*_arguments, **_options):
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"cannot write a checkpoint under "):
        train("a")
    assert read_training(tmp_path / "a" / "last")["step"] == 2


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(InputError, match="has no readable training.json"):
        read_training(tmp_path)


@pytest.mark.parametrize("device", ["gpu", "meta", "fpga"])
def test_a_device_without_computation_is_refused(device):
    with pytest.raises(InputError, match=f"DEVICE '{device}'"):
        make_accelerator(device, "no")


class Numbers(Examples):
    def __len__(self):
        return 10


def test_an_epoch_sees_every_example_once():
    batches = Batches(Numbers(), batch_size=4, accumulation=1, seed=1, first_step=0, last_step=5)
    order = [position for batch in batches for position, _ in batch]
    assert len(order) == 20
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:] and order[:10] != list(range(10))
    seeds = [seed for batch in batches for _, seed in batch]
    assert len(set(seeds)) == 20

    other = Batches(Numbers(), batch_size=4, accumulation=1, seed=2, first_step=0, last_step=5)
    assert [position for batch in other for position, _ in batch] != order


def test_batches_are_functions_of_the_step():
    whole = list(Batches(Numbers(), 4, 2, seed=1, first_step=0, last_step=6))
    late = list(Batches(Numbers(), 4, 2, seed=1, first_step=4, last_step=6))
    assert late == whole[8:]
    for order in ([1, 0, 3], [3, 3, 0, 2]):  # in whatever order they are asked for
        batches = Batches(Numbers(), 4, 2, seed=1, first_step=0, last_step=6)
        assert [batches.step(step) for step in order] == [whole[2 * step] + whole[2 * step + 1] for step in order]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_share_one_batch(accumulation):
    def passes(process, processes):
        return list(Batches(Numbers(), 8, accumulation, 1, 0, 5, process, processes))

    for one, first, second in zip(passes(0, 1), passes(0, 2), passes(1, 2)):
        assert first + second == one and len(first) == len(second)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    constants = {**CONSTANTS, "RUN_DIR": str(tmp_path / "run"), "DATA_ROOT": "", "BATCH_SIZE": 6, "ACCUMULATION": 2}
    table, two = pd.DataFrame({"split": ["train", "validate"]}), SimpleNamespace(num_processes=2)
    with pytest.raises(InputError, match="BATCH_SIZE 6 cannot be shared by 2 processes x ACCUMULATION 2"):
        try_training(Line(), squared_error, None, table, constants, two)


def test_a_data_set_may_order_its_epochs():
    class Sorted(Points):
        def order(self, generator, head):
            return np.arange(10)[::-1]

    batches = Batches(Sorted(), 5, 1, 1, 0, 2)
    assert [position for batch in batches for position, _ in batch] == list(range(9, -1, -1))


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="the devices are here")
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps", "meta", "xla"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(InputError, match=f"DEVICE '{device}'") as refused:
        make_accelerator(device, "no")
    assert "\n" not in str(refused.value)


def test_a_tracker_gets_what_metrics_csv_gets(tmp_path, accelerator, monkeypatch):
    from accelerate.tracking import GeneralTracker

    class Kept(GeneralTracker):
        name, requires_logging_directory, tracker, rows, ended = "kept", False, None, [], False

        def __init__(self):
            super().__init__()

        def log(self, values, step, **options):
            self.rows.append((step, values))

        def finish(self):
            Kept.ended = True

    monkeypatch.setattr(accelerator, "log_with", [Kept()])
    monkeypatch.setattr(accelerator, "trackers", [])
    constants = {**CONSTANTS, "RUN_DIR": str(tmp_path / "run")}
    fit(Line(), Points(), Points(7), squared_error, constants, accelerator)
    assert [step for step, _ in Kept.rows] == list(range(1, 9)) and Kept.ended
    assert "validation_loss" in Kept.rows[-1][1]
    with pytest.raises(InputError, match="LOG_WITH 'nothing'"):
        make_accelerator("cpu", "no", "nothing")


def test_tensorboard_has_the_rows_of_metrics_csv(train, accelerator, monkeypatch, tmp_path):
    """In a resumed run, too, and where a preview fails."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def preview(model, path):
        if int(path.name[-8:]) == 6:
            raise Killed

    monkeypatch.setattr(accelerator, "log_with", ["tensorboard"])
    monkeypatch.setattr(accelerator.project_configuration, "logging_dir", str(tmp_path / "events"))
    for raises in (pytest.raises(Killed), nullcontext()):
        monkeypatch.setattr(accelerator, "trackers", [])
        with raises:
            train("run", preview=preview)
    events = EventAccumulator(str(tmp_path / "events" / "run"))
    events.Reload()
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    for name in rows[0]:
        wanted = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        found = [(event.step, event.value) for event in events.Scalars(name)] if wanted else []
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted], name
