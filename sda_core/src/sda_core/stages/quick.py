"""A few batches of everything, to see that an experiment works before a day is spent on it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

import attrs

from sda_core.data import DataConfig, TrajectoryStore, split_path
from sda_core.data.base import size_text
from sda_core.data.writer import SplitWriter
from sda_core.errors import ConfigError, SDAError, StoppedError
from sda_core.experiment import Experiment
from sda_core.io.progress import ProgressOption
from sda_core.model import device
from sda_core.stages.assimilation import assimilate
from sda_core.stages.evaluation import evaluate
from sda_core.stages.sampling import sample
from sda_core.stages.simulation import simulate
from sda_core.stages.training import train
from sda_core.training import peak_memory, reset_peak_memory

T = TypeVar("T")

BATCHES, MEMBERS, STEPS, PARTICLES = 2, 2, 3, 64


@attrs.frozen
class QuickStage:
    """A stage that was done in small.

    Attributes:
        what: What was done, in words.
        seconds: Time that it took.
        memory: Most bytes that were in use during it: on a GPU, else by this process.
    """

    what: str
    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.what:<68} {self.seconds:7.1f} s  {size_text(self.memory):>9}"


def quick(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> Iterator[QuickStage]:
    """Do all stages that an experiment has tables for, with its network and batches, but few.

    Two epochs of two batches are trained, the second from the checkpoint of the first. Trajectories
    are as short as windows and observations allow, members and steps of the sampler are few, and
    nothing is tracked. A data set that is there gives the trajectories; else some are simulated,
    without burn-in. All is written to a folder of its own in the run directory, which is removed
    if everything works.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.

    Yields:
        Each stage when it is done.

    Raises:
        SDAError: A stage failed; says which, why, and where what was made is kept.
    """
    where = Path(directory)
    where.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".quick-", dir=where))
    keep = False
    try:
        for what, stage in _stages(experiment, where / "data", folder, progress):
            reset_peak_memory(device())
            started = time.perf_counter()
            try:
                stage()
            except StoppedError:
                raise
            except Exception as error:
                keep = True
                kept = f"what was made is kept in {folder}"
                if not isinstance(error, SDAError):  # a bug, whose traceback is wanted
                    error.add_note(f"The quick run got this as it {what}; {kept}")
                    raise
                raise SDAError(f"the quick run failed as it {what}: {error}\n{kept}") from error
            yield QuickStage(what, time.perf_counter() - started, peak_memory(device()))
    finally:
        if not keep:
            rmtree(folder)
            with suppress(OSError):  # there is more in it
                where.rmdir()


def _stages(
    experiment: Experiment, data: Path, folder: Path, progress: ProgressOption
) -> Iterator[tuple[str, Callable[[], object]]]:
    """The stages in small: what each did, in words, and what does it."""
    sizes = experiment.data.split_sizes
    there = all(split_path(data, split).is_file() for split, size in sizes.items() if size)
    small = _reduced(experiment, there)
    once = _changed(small, train=_changed(small.train, epochs=1))
    count = f"{small.data.trajectories} trajectories of {small.data.length} states"
    if there:
        yield f"took {count} from {data}", lambda: _copy(data, folder / "data", small.data)
    else:
        yield f"simulated {count}", lambda: simulate(small, folder, progress=progress)
    needs_model = small.method is None or small.method.needs_model
    if needs_model and small.model.pretrained is None:
        batches = f"{BATCHES} batches of {small.train.batch_size} windows"
        yield (
            f"trained on {batches}, validated, wrote a checkpoint",
            lambda: train(once, folder, progress=progress),
        )
        yield (
            f"resumed from the checkpoint, trained on {batches}",
            lambda: train(
                small, folder, progress=progress, resume=True, may_change=["train.epochs"]
            ),
        )
    if small.sample is not None and needs_model:
        yield (
            f"sampled {small.sample.members} trajectories of {small.sample.length} states",
            lambda: sample(small, folder, progress=progress),
        )
    if small.method is not None:
        asked = small.assimilate
        yield (
            f"assimilated {asked.length} states with {asked.members} members",
            lambda: assimilate(small, folder, progress=progress),
        )
        yield "evaluated them, wrote the report", lambda: evaluate(small, folder, progress=progress)


def _reduced(experiment: Experiment, there: bool) -> Experiment:
    """The experiment with little of everything, and the same network and batches.

    Args:
        experiment: The experiment.
        there: Whether the trajectories are taken from a data set.
    """
    e, sizes = experiment, experiment.data.split_sizes
    width = e.model.window + e.model.stride  # two windows
    length = _shortest(e, min(width, e.assimilate.length))
    # Numbers enough for a standard deviation, which is looked at before training.
    valid = max(1, 16 // math.prod(e.system.spec.grid_shape))
    # So many trajectories to train on that they give exactly the windows, and one block has all.
    windows, most = BATCHES * e.train.batch_size, max(1, e.system.block_size - valid - 1)
    counts = {"train": most, "valid": valid, "test": 1}
    for split, size in sizes.items():
        counts[split] = min(counts[split], size) if there else counts[split] * (size > 0)
    counts["train"] = max(n for n in range(1, counts["train"] + 1) if windows % n == 0)
    total = sum(counts.values())
    return _changed(
        e,
        data=_changed(
            e.data,
            trajectories=total,
            fractions=tuple(n / total for n in counts.values()),
            # What is there is taken whole, for the same statistics.
            length=e.data.length if there else min(e.data.length, max(width, length)),
            burn_in=e.data.burn_in if there else 0,
        ),
        train=_changed(
            e.train,
            epochs=2,
            windows_per_trajectory=windows // counts["train"],
            validate_every=1,
            checkpoint_every=1,
            report_every=1,
            sample_every=1 if e.train.sample_every else None,
        ),
        sampler=_smaller(e.sampler, steps=STEPS),
        method=_smaller(e.method, particles=PARTICLES, burn_in=0),
        sample=_smaller(e.sample, members=MEMBERS, length=width),
        assimilate=_smaller(e.assimilate, members=MEMBERS, length=length, trajectory=0, start=0),
        evaluate=_changed(
            e.evaluate,
            baseline=_smaller(e.evaluate.baseline, particles=PARTICLES, burn_in=0),
            reference=_smaller(e.evaluate.reference, particles=PARTICLES, burn_in=0),
        ),
        trackers=(),
    )


def _shortest(experiment: Experiment, least: int) -> int:
    """The shortest trajectory, from a number of states on, that has observations."""
    longest, observation = experiment.assimilate.length, experiment.observation
    spec = experiment.system.spec
    C = len(spec.variables)
    known = attrs.evolve(spec, mean=spec.mean or C * (0.0,), std=spec.std or C * (1.0,))

    def is_observed(length: int) -> bool:
        with suppress(ConfigError):
            return observation is not None and observation.bind(known, length).shape.numel() > 0
        return False

    return next((n for n in range(least, longest) if is_observed(n)), longest)


def _changed(component: T, **values: Any) -> T:
    """A component with other values."""
    old: Any = component  # to mypy components are no attrs classes
    new: T = attrs.evolve(old, **values)
    return new


def _smaller(component: T, **values: int) -> T:
    """A component with smaller values, of those options that it has."""
    smaller = {k: min(v, getattr(component, k)) for k, v in values.items() if hasattr(component, k)}
    return _changed(component, **smaller) if smaller else component


def _copy(source: Path, target: Path, config: DataConfig) -> None:
    """Write a part of a data set as one of its own."""
    target.mkdir()
    for split, size in config.split_sizes.items():
        if not size:
            continue
        store = TrajectoryStore(split_path(source, split))
        recipe = attrs.evolve(
            store.info.recipe, split_sizes=config.split_sizes, length=config.length
        )
        writer = SplitWriter(split_path(target, split), recipe, split, store.spec)
        x = store.read(slice(size), slice(config.length)).numpy()
        writer.write(recipe.rows(split).start, x)
        # As if mean and std were the system's: they are not those of these trajectories.
        writer.finish(store.spec, "system", store.info.created_by)
