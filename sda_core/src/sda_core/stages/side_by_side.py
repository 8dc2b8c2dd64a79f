"""Trainings side by side, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sda_core.config import dump_toml, unstructure
from sda_core.errors import StoppedError
from sda_core.experiment import Run
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption, reporting_each

#: Seconds between two looks at the processes.
_POLL_INTERVAL = 0.2
#: Bytes at the end of a file in which its last lines are looked for.
_TAIL = 16_384
#: ``sda`` in a process that stops when its parent dies.
_CHILD = (
    "from sda_core.stages.side_by_side import stop_with_parent; stop_with_parent(); "
    "from sda_core.cli import main; main()"
)


def train_side_by_side(
    runs: dict[int, Run], jobs: int, progress: ProgressOption, may_change: Collection[str]
) -> dict[int, str]:
    """Train in processes of their own, some at a time.

    Args:
        runs: The runs, by seed; they differ in nothing else.
        jobs: How many at a time.
        progress: What to show.
        may_change: As for :func:`~sda_core.stages.train`.

    Returns:
        What those that failed said last, by seed.

    Raises:
        StoppedError: Ctrl-C or SIGTERM, which was passed on; what was trained is kept.
    """
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
            time.sleep(_POLL_INTERVAL)
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
            f"training stopped with {left} of {len(runs)} seeds to go; the same command resumes "
            "from their checkpoints"
        )
    return failed


def _start(
    run: Run, folder: Path, slot: int, jobs: int, may_change: Collection[str]
) -> subprocess.Popen[bytes]:
    # Not in the run directory: a training that is refused must change nothing there.
    config = folder / f"{run.directory.name}.toml"
    dump_toml(unstructure(run.experiment, manager=run.manager), config)
    command = [sys.executable, "-c", _CHILD, "train", str(config), "--quiet"]
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
            stdin=subprocess.PIPE,  # open for as long as this process lives
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def stop_with_parent() -> None:
    """Ask this process to stop, by SIGTERM, when its standard input ends: its parent has died."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would be in the way of an ordinary end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


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
