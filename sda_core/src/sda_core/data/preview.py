"""What making a data set will take: its size, and about how long it lasts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress

import attrs
from torch import Tensor

from sda_core.data.base import Recipe, size_text
from sda_core.errors import SimulationError
from sda_core.io.progress import duration_text
from sda_core.random import seeded_generator
from sda_core.system import System, SystemSpec, trajectory

#: Below this many steps of a block per worker, measuring would take longer than it is worth.
MIN_STEPS = 32
#: A call of this many seconds is measured well enough, whatever it takes besides its steps.
ENOUGH_SECONDS = 0.3
#: Share of the predicted time after which no longer calls are tried.
MAX_SHARE = 0.01


@attrs.frozen(kw_only=True)
class Preview:
    r"""What making a data set will take; ``str`` gives it as text.

    Attributes:
        shapes: Shape (N, L, C, \*S) of each split that has trajectories, by its name.
        blocks: Number of blocks that the data set is simulated in.
        missing: Number of blocks that are not done yet.
        workers: Number of processes that simulate these.
        seconds: About how long that takes; None where it was not measured.
    """

    shapes: dict[str, tuple[int, ...]]
    blocks: int
    missing: int
    workers: int
    seconds: float | None = None

    @classmethod
    def of(cls, recipe: Recipe, spec: SystemSpec, missing: int, workers: int) -> Preview:
        """The preview of a data set, without the time.

        Args:
            recipe: What the data set consists of.
            spec: What its states are.
            missing: Number of blocks that are not done yet.
            workers: Number of processes asked for.
        """
        return cls(
            shapes={
                split: (recipe.split_sizes[split], recipe.length, *spec.state_shape)
                for split in recipe.splits
            },
            blocks=len(recipe.blocks),
            missing=missing,
            workers=max(1, min(workers, missing)),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the states in each split, stored as float32."""
        return {split: 4 * math.prod(shape) for split, shape in self.shapes.items()}

    @property
    def size(self) -> int:
        """Bytes of the states in all splits."""
        return sum(self.sizes.values())

    @property
    def peak_disk(self) -> int:
        """Bytes on the disk at the end of the making: the parts, and the files made of them."""
        return 2 * self.size

    @property
    def rounds(self) -> int:
        """Number of missing blocks that one worker simulates, one after another."""
        return -(-self.missing // self.workers)

    @property
    def size_line(self) -> str:
        """How much there will be, in words."""
        _, length, *state = next(iter(self.shapes.values()))
        count = sum(shape[0] for shape in self.shapes.values())
        splits = ", ".join(f"{split} {size_text(size)}" for split, size in self.sizes.items())
        return (
            f"data: {count:,} trajectories of {length:,} states {tuple(state)}, "
            f"{size_text(self.size)} ({splits}); {size_text(self.peak_disk)} of disk while they "
            "are made"
        )

    @property
    def time_line(self) -> str:
        """How much there is to do and, where measured, about how long it takes, in words."""
        if not self.missing:
            return "time: nothing is left to simulate"
        blocks = f"{self.missing:,} of {self.blocks:,} blocks to simulate"
        if self.seconds is None:
            return f"time: not measured, {blocks}"
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"time: about {duration_text(self.seconds)} with {workers}, {blocks}"

    def __str__(self) -> str:
        return f"{self.size_line}\n{self.time_line}"


def measure_seconds(
    system: System, steps: int, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> float | None:
    """About how long it takes to simulate blocks, from short simulations of one block.

    Each is done twice and timed the second time, because compiled systems compile in the first.
    They become longer until their time is well above a clock's noise and a call's own, or until
    they have taken 1 % of what they predict; the last two tell the time of a step from the time of
    a call. What each process takes to start and to compile is not counted.

    Args:
        system: The system.
        steps: Number of steps in a block, burn-in included.
        rounds: Number of blocks, one after another.
        clock: The time in seconds.

    Returns:
        The time in seconds, or None where there is too little to do for a measurement.
    """
    if steps * rounds < MIN_STEPS:
        return None
    generator = seeded_generator(0)
    start = clock()

    def prior() -> Tensor:
        return system.prior((system.block_size,), generator)

    def simulate(n: int) -> None:
        # As burn-in, for which nothing is stored, and which need not be compiled for each n.
        with suppress(SimulationError):
            trajectory(system, x, 1, generator, burn_in=n - 1)

    def seconds_of(function: Callable[..., object], *arguments: int) -> float:
        before = clock()
        function(*arguments)
        return clock() - before

    x = prior()
    prior_seconds = seconds_of(prior)
    shorter, shorter_seconds, n = 0, 0.0, 1
    while True:
        simulate(n)
        seconds = seconds_of(simulate, n)
        if n == steps or seconds >= ENOUGH_SECONDS:
            break
        if clock() - start > MAX_SHARE * rounds * steps / n * seconds:
            break
        shorter, shorter_seconds, n = n, seconds, min(4 * n, steps)
    if seconds <= shorter_seconds:  # noise: count all of the call as time of its steps
        shorter, shorter_seconds = 0, 0.0
    per_step = (seconds - shorter_seconds) / (n - shorter)
    return rounds * (prior_seconds + seconds + per_step * (steps - n))
