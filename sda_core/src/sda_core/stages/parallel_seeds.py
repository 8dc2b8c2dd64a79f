"""Trainings of several seeds at the same time, by workers of this machine."""

from __future__ import annotations

import json
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch

from sda_core.cluster import Local
from sda_core.config import structure, unstructure
from sda_core.errors import SDAError, StoppedError
from sda_core.experiment import Experiment, Run
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption, reporting_each
from sda_core.stages.training import train
from sda_core.training.progress import ProgressReporter, Tracking

#: Seconds between two looks at what the workers have written.
POLL_INTERVAL = 0.2
#: Bytes at the end of a file in which its last lines are looked for.
_TAIL = 16_384


def train_in_parallel(
    runs: dict[int, Run], jobs: int, progress: ProgressOption, may_change: Collection[str]
) -> dict[int, str]:
    """Train by workers, some seeds at a time.

    Args:
        runs: The runs, by seed; they differ in nothing else.
        jobs: How many at a time.
        progress: What to show.
        may_change: As for :func:`~sda_core.stages.train`.

    Returns:
        Why those that failed did, by seed.

    Raises:
        ClusterError: A worker died; what was trained is kept.
        StoppedError: Ctrl-C or SIGTERM, which was passed on; what was trained is kept.
    """
    seeds, failed, left = list(runs), {}, len(runs)
    with TemporaryDirectory() as folder, stop_request() as should_stop:
        stop_file = Path(folder) / "stop"

        def pass_on() -> None:
            if should_stop():
                stop_file.touch()

        work = SeedWorker(
            tables={
                seed: (unstructure(run.experiment, manager=run.manager), run.directory.resolve())
                for seed, run in runs.items()
            },
            may_change=tuple(may_change),
            stop_file=stop_file,
        )
        with (
            _shown(runs, progress, pass_on),
            closing(Local().map(work, list(enumerate(seeds)), workers=jobs)) as results,
        ):
            for number, (stopped, reason) in results:
                left -= not stopped
                if reason:
                    failed[seeds[number]] = reason
    if left:
        raise StoppedError(
            f"training stopped with {left} of {len(runs)} seeds to go; the same command resumes "
            "from their checkpoints"
        )
    return failed


@attrs.frozen(kw_only=True)
class SeedWorker:
    """Trains the member of a seed, as a value that is sent to a worker.

    Attributes:
        tables: Experiment and run directory of each seed.
        may_change: As for :func:`~sda_core.stages.train`.
        stop_file: Trainings stop when it is there.
    """

    tables: Mapping[int, tuple[dict[str, Any], Path]]
    may_change: tuple[str, ...]
    stop_file: Path

    def __call__(self, task: tuple[int, int]) -> tuple[bool, str]:
        """Train; give whether it was stopped, and why it failed.

        Args:
            task: The number of the task, and the seed.
        """
        number, seed = task
        table, directory = self.tables[seed]
        log = LogReporter(directory / "train.log", self.stop_file)
        if self.stop_file.exists():
            return True, ""
        if not torch.cuda.is_initialized() and (count := torch.cuda.device_count()) > 1:
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[number % count]
        try:
            with log.warnings():
                train(
                    structure(Experiment, table),
                    directory,
                    progress=False,
                    may_change=self.may_change,
                    reporter=log,
                )
        except StoppedError as stop:
            log.say(str(stop))
            return True, ""
        except Exception as error:  # noqa: BLE001 - the other seeds are trained all the same
            log.say(traceback.format_exc())
            text = str(error) if isinstance(error, SDAError) else f"{type(error).__name__}: {error}"
            return False, f"{text}\n    see {log.path}"
        return False, ""


@attrs.frozen
class LogReporter(ProgressReporter):
    """A log file, and a file whose being there asks for a stop."""

    path: Path
    stop_file: Path

    @contextmanager
    def track(self, total: int, done: int) -> Iterator[Tracking]:
        """Report nothing: how far the training is, its metrics say."""
        yield lambda step, note="": None, self.stop_file.exists

    def say(self, line: str) -> None:
        """Append a line to the log."""
        with self.path.open("a") as file:
            file.write(line.rstrip() + "\n")

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Let warnings go to the log."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, category, *_, **__: self.say(
                f"{category.__name__}: {message}"
            )
            yield


@contextmanager
def _shown(
    runs: dict[int, Run], progress: ProgressOption, on_poll: Callable[[], object]
) -> Iterator[None]:
    """Show how far each training is, by a thread that looks at their metrics.

    Args:
        runs: The runs, by seed.
        progress: What to show.
        on_poll: Called at each look.
    """
    config = next(iter(runs.values())).experiment
    windows = config.data.split_sizes["train"] * config.train.windows_per_trajectory
    total = config.train.epochs * -(-windows // config.train.batch_size)
    names = {f"seed {seed}": run for seed, run in runs.items()}
    before = {name: (_last_values(run) or {"step": 0})["step"] for name, run in names.items()}
    ended = threading.Event()

    with reporting_each(progress, before, total) as reports:

        def look() -> None:
            for name, run in names.items():
                if values := _last_values(run):
                    reports[name](values["step"], _note(values, config.train.epochs))

        def poll() -> None:
            while not ended.wait(POLL_INTERVAL):
                on_poll()
                look()

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()


def _last_values(run: Run) -> dict[str, Any] | None:
    """What a training reported last."""
    path = run.directory / "metrics.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        with suppress(LookupError, TypeError, ValueError):  # cut short
            values: dict[str, Any] = json.loads(line)
            if values["event"] in ("report", "epoch") and "loss" in values:
                return values
    return None


def _note(values: dict[str, Any], epochs: int) -> str:
    epoch = min(values["epoch"] + (values["event"] == "report"), epochs)
    parts = [f"epoch {epoch}/{epochs}"]
    for name, key in (("loss", "loss"), ("validation", "valid_loss")):
        if values.get(key) is not None:  # not finite is null
            parts.append(f"{name} {values[key]:.4f}")
    return "  ".join(parts)
