"""Ensembles: the same training from several seeds, on the same data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch

from sda_core.config import dump_toml, unstructure
from sda_core.errors import CheckpointError, ConfigError, StoppedError, TrainingError
from sda_core.experiment import Experiment
from sda_core.interrupt import stop_request
from sda_core.progress import ProgressOption, announce, reporting_each
from sda_core.rundir import Run
from sda_core.stages.simulation import simulate
from sda_core.stages.training import train

_PART = re.compile(r"(\d+)(?:-(\d+))?")
#: Seconds between two looks at trainings that run side by side.
_GLANCE = 0.2
#: Bytes at the end of a file in which its last lines are looked for.
_TAIL = 16_384


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
        """What the run directory of a member says."""
        done = run.provenance()["stages"]["train"]
        history = json.loads((run.directory / "history.json").read_text())
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
    others go on from their checkpoints.

    Side by side, each member is trained by a process of its own, with a part of the CPU's cores
    and, where there are several, one of the GPUs. What it says is in ``seed-K/train.log``.

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
        raise ConfigError(f"--jobs {jobs}: give the number of trainings side by side, 1 or more")
    experiment.require("kernel", "training")
    experiment.require("schedule", "training")
    folder = Path(directory)
    runs = {seed: _member(experiment, folder / f"seed-{seed}", seed) for seed in seeds}
    if resume and not any(_has_checkpoint(run) for run in runs.values()):
        raise CheckpointError(
            f"there is no checkpoint in {folder}/seed-* to go on from: train without --resume to "
            "start"
        )
    if not Run(experiment, folder).is_done("simulate"):
        simulate(experiment, folder, progress=progress)
    missing = {seed: run for seed, run in runs.items() if not run.is_done("train")}
    for run in missing.values():
        run.directory.mkdir(exist_ok=True)
        if not run.data.exists():
            run.data.symlink_to(Path("..") / "data")
    together = _side_by_side if min(jobs, len(missing)) > 1 else _one_by_one
    failed = together(missing, min(jobs, len(missing)), progress, may_change)
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
        except TrainingError as error:
            failed[seed] = str(error)
    return failed


def _side_by_side(
    runs: dict[int, Run], jobs: int, progress: ProgressOption, may_change: Collection[str]
) -> dict[int, str]:
    """Train in processes of their own; what those that failed said last, by seed."""
    failed: dict[int, str] = {}
    waiting, free = deque(runs), deque(range(jobs))
    running: dict[int, tuple[subprocess.Popen[bytes], int]] = {}
    config = next(iter(runs.values())).experiment
    windows = config.data.split_sizes["train"] * config.train.windows_per_trajectory
    total = config.train.epochs * -(-windows // config.train.batch_size)
    before = {
        f"seed {seed}": (_last_values(run) or {"step": 0})["step"] for seed, run in runs.items()
    }
    with (
        TemporaryDirectory() as folder,
        reporting_each(progress, before, total) as reports,
        stop_request() as stopping,
        _all_ended(running),
    ):
        while (waiting or running) and not stopping():
            while waiting and free:
                seed, slot = waiting.popleft(), free.popleft()
                running[seed] = _start(runs[seed], Path(folder), slot, jobs, may_change), slot
            time.sleep(_GLANCE)
            for seed, (process, slot) in list(running.items()):
                code = process.poll()
                if values := _last_values(runs[seed]):
                    step = total if code == 0 else values["step"]
                    reports[f"seed {seed}"](step, _note(values, config.train.epochs))
                if code is not None:
                    del running[seed]
                    free.append(slot)
                if code:
                    failed[seed] = _last_words(runs[seed].directory / "train.log", code)
        left = len(waiting) + len(running)
    if left:
        raise StoppedError(
            f"training stopped with {left} of {len(runs)} seeds to go; the same command goes on "
            "from their checkpoints"
        )
    return failed


def _start(
    run: Run, folder: Path, slot: int, jobs: int, may_change: Collection[str]
) -> subprocess.Popen[bytes]:
    # Not in the run directory: a training that is refused must change nothing there.
    config = folder / f"{run.directory.name}.toml"
    dump_toml(unstructure(run.experiment, manager=run.manager), config)
    command = [sys.executable, "-m", "sda_core", "train", str(config), "--quiet"]
    command += ["--dir", str(run.directory)]
    command += [option for key in may_change for option in ("--may-change", key)]
    threads = max(1, torch.get_num_threads() // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if (count := torch.cuda.device_count()) > 1:
        gpus = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[slot % count]
    with (run.directory / "train.log").open("ab") as log:
        # In a process group of its own: Ctrl-C is for the parent, which passes it on once.
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


@contextmanager
def _all_ended(running: dict[int, tuple[subprocess.Popen[bytes], int]]) -> Iterator[None]:
    """Leave no process behind: those that still run are asked to stop, and waited for."""
    try:
        yield
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _last_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode(errors="replace").splitlines()


def _last_values(run: Run) -> dict[str, Any] | None:
    """What a training reported last."""
    for line in reversed(_last_lines(run.directory / "metrics.jsonl")):
        with suppress(ValueError):  # cut short
            values: dict[str, Any] = json.loads(line)
            if values["event"] in ("report", "epoch") and "loss" in values:
                return values
    return None


def _last_words(path: Path, code: int) -> str:
    """Why a process ended, as far as its log says."""
    lines = [line for line in _last_lines(path) if line.strip()][-3:]
    return f"exit status {code}, see {path}\n" + "\n".join(f"    {line}" for line in lines)


def _note(values: dict[str, Any], epochs: int) -> str:
    epoch = min(values["epoch"] + (values["event"] == "report"), epochs)
    parts = [f"epoch {epoch}/{epochs}", f"loss {values['loss']:.4f}"]
    if (valid_loss := values.get("valid_loss")) is not None:
        parts.append(f"validation {valid_loss:.4f}")
    return "  ".join(parts)
