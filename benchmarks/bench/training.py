"""Training examples a second: see benchmarks.bench.trainers for what is naive and what is ours."""

from collections.abc import Iterator

from accelerate import Accelerator

from benchmarks.bench.clock import Clock, precision_of, speed_row
from benchmarks.bench.networks import Networks
from benchmarks.bench.trainers import TRAINERS

STEPS_A_TURN = 4  # of ours on a GPU, in a row: none waits for the one before


def measure(
    networks: Networks, accelerator: Accelerator, clock: Clock, trainers: tuple[str, ...], batch_size: int, tokens: int
) -> Iterator[list]:
    """Yields a row for each trainer.

    batch_size: of the vision module's trainers, 0 for their own; tokens: the mean length of a report.
    """
    cuda = networks.device.type == "cuda"
    steps = STEPS_A_TURN if cuda else 1
    for name in trainers:
        trainer = TRAINERS[name](networks, accelerator, tokens, batch_size)
        if cuda:
            trainer.cached = [{name: value.pin_memory() for name, value in batch.items()} for batch in trainer.cached]

        def ours(step=trainer.ours):
            for _ in range(steps):
                step()

        seconds = clock.seconds({"naive": trainer.naive, "ours": ours}, warm_up=2)
        size = trainer.batch_size
        note = f"batches of {size} in {trainer.passes} passes; float32 and {precision_of(accelerator)}"
        note = f"{note}; {trainer.note}" if trainer.note else note
        yield speed_row(trainer.title, "examples/s", size / seconds["naive"], steps * size / seconds["ours"], note)
