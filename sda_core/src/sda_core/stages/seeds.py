"""Ensembles: the same training from several seeds, on the same data."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import attrs

from sda_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    SDAError,
    StoppedError,
    TrainingError,
)
from sda_core.experiment import Experiment, Run
from sda_core.io.files import read_json
from sda_core.io.progress import ProgressOption, announce
from sda_core.plugins.names import cause_text
from sda_core.stages.parallel_seeds import train_in_parallel
from sda_core.stages.simulation import simulate
from sda_core.stages.training import train

_PART = re.compile(r"(\d+)(?:-(\d+))?")


@attrs.frozen(kw_only=True)
class Member:
    """A trained member of an ensemble.

    Attributes:
        directory: Its run directory.
        steps: Number of optimizer steps.
        valid_loss: Validation loss of its model; None without validation.
        best_epoch: Epoch of the lowest validation loss; None without validation.
        seconds: Time spent on optimizer steps, however often the training was resumed.
    """

    directory: Path
    steps: int
    valid_loss: float | None
    best_epoch: int | None
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """All but the directory, as text."""
        loss = "-" if self.valid_loss is None else f"{self.valid_loss:.4f}"
        best = "-" if self.best_epoch is None else str(self.best_epoch)
        return f"{self.steps:,}", loss, best, f"{self.seconds / 60:.1f}"

    @classmethod
    def of(cls, run: Run) -> Member:
        """What the run directory of a member says.

        Raises:
            DataError: Its records cannot be read.
        """
        path = run.directory / "history.json"
        try:
            done, history = run.provenance()["stages"]["train"], read_json(path)
            steps = [b - a for a, b in zip([0, *history["step"]], history["step"], strict=False)]
            rates = zip(steps, history["steps_per_second"], strict=True)
            losses = zip(history["valid_loss"], history["epoch"], strict=True)
            best = min(((loss, epoch) for loss, epoch in losses if loss is not None), default=None)
            return cls(
                directory=run.directory,
                steps=done["steps"],
                valid_loss=done["valid_loss"],
                best_epoch=best[1] if best else None,
                seconds=sum(n / rate for n, rate in rates),
            )
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
            raise DataError(
                f"the records of {run.directory} cannot be read ({cause_text(error)}): delete "
                f"{path}, and train again"
            ) from error


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as ``"0,1,2"`` or ``"0-2"``.

    Raises:
        ConfigError: They are not numbers from 0 on, or one is given twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not found:
            raise ConfigError(
                f"--seeds {text}: {part.strip()!r} is neither a number from 0 on nor a range of "
                "them: give for example 0,1,2 or 0-2"
            )
        seeds += found
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ConfigError(f"--seeds {text}: {', '.join(map(str, twice))} given more than once")
    return tuple(seeds)


def train_seeds(
    experiment: Experiment,
    directory: str | Path,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    progress: ProgressOption = True,
    resume: bool = False,
    may_change: Collection[str] = (),
) -> dict[int, Member]:
    """Train the same kernel from several seeds, on one data set.

    The member of seed K has a run directory of its own, ``seed-K``. Its weights, batches and noise
    are of ``train.seed = K``, and its data are the ensemble's, in ``data``, made with the
    experiment's seed where they are missing. Members that are finished are left as they are, and
    others resume from their checkpoints.

    With several jobs, members are trained by that many workers, each with a part of the CPU's cores
    and, where there are several, one of the GPUs. What a training says is in ``seed-K/train.log``.
    Workers end when this process does.

    Args:
        experiment: The experiment.
        directory: The directory of the ensemble.
        seeds: The seeds.
        jobs: Number of members trained at the same time.
        progress: What to show.
        resume: Whether there must be a checkpoint of one of them.
        may_change: As for :func:`~sda_core.stages.train`.

    Returns:
        The members, by seed.

    Raises:
        ConfigError: There are no jobs, or the experiment has no kernel or schedule.
        CheckpointError: There is no checkpoint where there must be one.
        TrainingError: Members failed; the others were trained to the end.
        StoppedError: Ctrl-C or SIGTERM; what was trained is kept.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: give the number of workers, 1 or more")
    experiment.require("kernel", "training")
    experiment.require("schedule", "training")
    folder = Path(directory)
    runs = {seed: _member(experiment, folder / f"seed-{seed}", seed) for seed in seeds}
    if resume and not any(_has_checkpoint(run) for run in runs.values()):
        raise CheckpointError(
            f"there is no checkpoint in {folder}/seed-* to resume from: train without --resume to "
            "start"
        )
    if not Run(experiment, folder).is_done("simulate"):
        simulate(experiment, folder, progress=progress)
    missing = {seed: run for seed, run in runs.items() if not run.is_done("train")}
    for run in missing.values():
        run.directory.mkdir(exist_ok=True)
        if not run.data.exists():
            run.data.symlink_to(Path("..") / "data")
    train_all = train_in_parallel if min(jobs, len(missing)) > 1 else _one_by_one
    failed = train_all(missing, min(jobs, len(missing)), progress, may_change)
    if failed:
        reasons = "\n".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise TrainingError(
            f"{len(failed)} of {len(runs)} trainings failed, of the seeds "
            f"{', '.join(map(str, failed))}; the others are done\n{reasons}"
        )
    return {seed: Member.of(run) for seed, run in runs.items()}


def _member(experiment: Experiment, directory: Path, seed: int) -> Run:
    whole: Any = experiment  # to mypy components are no attrs classes
    return Run(attrs.evolve(whole, train=attrs.evolve(whole.train, seed=seed)), directory)


def _has_checkpoint(run: Run) -> bool:
    return any(run.checkpoints.directory.glob("*.safetensors"))


def _one_by_one(
    runs: dict[int, Run], jobs: int, progress: ProgressOption, may_change: Collection[str]
) -> dict[int, str]:
    """Train in this process; what the trainings that failed died of, by seed."""
    failed = {}
    for seed, run in runs.items():
        announce(progress, f"seed {seed}, in {run.directory}")
        try:
            train(run.experiment, run.directory, progress=progress, may_change=may_change)
        except StoppedError:
            raise
        except SDAError as error:
            failed[seed] = str(error)
    return failed
