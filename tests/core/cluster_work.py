"""Work for tests of clusters, in a module, so that other processes can import it, fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import attrs


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@attrs.frozen
class Mark:
    """Leaves a file for each task in a folder, which names its process."""

    folder: Path

    def __call__(self, task: int) -> int:
        (self.folder / f"{task}-{os.getpid()}").touch()
        return task


@attrs.frozen
class Hang(Mark):
    """Comes to no end, but with task 0."""

    def __call__(self, task: int) -> int:
        super().__call__(task)
        time.sleep(600 if task else 0)
        return task


@attrs.frozen
class Die(Mark):
    """Kills its process, the first times that it does a task."""

    times: int

    def __call__(self, task: int) -> int:
        if len(list(self.folder.glob(f"{task}-*"))) < self.times:
            super().__call__(task)
            os.kill(os.getpid(), signal.SIGKILL)
        return task


def unsendable(task: int) -> Any:
    return lambda: task


def fail(task: int) -> None:
    raise ValueError(f"task {task} cannot be done")
