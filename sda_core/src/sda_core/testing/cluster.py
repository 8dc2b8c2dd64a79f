"""What every cluster promises."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np
import torch
import torch.distributed as dist

from sda_core.cluster import Cluster, WorkerChannel, WorkerDirectory
from sda_core.errors import SimulationError
from sda_core.testing.promises import keep, require

_TASKS = tuple(range(5))


def _square(task: int) -> tuple[int, np.ndarray]:
    return os.getpid(), np.full((200, 200), task**2, np.float32)


def _fail(task: int) -> int:
    if task == 2:
        raise SimulationError("the third task fails")
    return task


def _results(cluster: Cluster) -> None:
    """Each task is done once, in other processes, and its result comes with its number."""
    with closing(cluster.map(_square, _TASKS, workers=2)) as results:
        found = dict(results)
    require(sorted(found) == list(_TASKS), f"results of the tasks {sorted(found)}")
    for number, (process, x) in found.items():
        require(process != os.getpid(), "work is done in the process that asks for it")
        require(
            x.shape == (200, 200) and bool((x == number**2).all()),
            f"task {number} has the result of another one",
        )
    require(not list(cluster.map(_square, (), workers=2)), "no tasks have results")


def _errors(cluster: Cluster) -> None:
    """What work raises is raised, of the same class and with its text."""
    try:
        with closing(cluster.map(_fail, _TASKS, workers=2)) as results:
            list(results)
    except SimulationError as error:
        require("the third task fails" in str(error), f"it says {error}")
    else:
        require(False, "nothing is raised")


@attrs.frozen
class _Meet:
    folder: WorkerDirectory

    def __call__(self, channel: WorkerChannel) -> None:
        is_main = dist.get_rank() == 0
        with self.folder.opened(is_main=is_main) as directory:
            total = torch.tensor(float((directory / "data" / "x").read_text()) ** dist.get_rank())
            dist.all_reduce(total)
            if is_main:
                with (directory / "log").open("a") as log:
                    log.write("saved")
                self.folder.upload()
                channel.send((os.getpid(), float(total)))
                for number in range(3):
                    channel.send(number)
            while not channel.should_stop():
                time.sleep(0.01)
            if is_main:
                (directory / "log").write_text("ended")
                channel.send("stopped")


def _leave(channel: WorkerChannel) -> None:
    if dist.get_rank() == 1:
        raise SimulationError("the second process fails")
    dist.barrier()  # for which the other one is missing


def _group(cluster: Cluster) -> None:
    """Two processes are a group of torch.distributed, in a directory, tell, and hear of a stop."""
    found, logged = list[Any](), list[str]()
    with TemporaryDirectory() as name:
        data, log = Path(name, "data"), Path(name, "log")
        data.mkdir()
        (data / "x").write_text("10")
        log.write_text("lent, ")
        with (
            cluster.sync_directory(Path(name)) as (folder, fetch),
            closing(
                cluster.run_distributed(
                    _Meet(folder), workers=2, should_stop=lambda: len(found) == 4
                )
            ) as told,
        ):
            for message in told:
                found.append(message)
                fetch()
                logged.append(log.read_text())
        (process, total), *rest = found
        require(process != os.getpid(), "work is done in the process that asks for it")
        require(total == 11, f"the sum of 1 and 10 over two processes is {total:g}")
        require(rest == [0, 1, 2, "stopped"], f"0, 1, 2 and 'stopped' is told, and {rest} comes")
        require(
            logged[0] == "lent, saved", f"what is saved is 'lent, saved', and {logged[0]!r} comes"
        )
        require(log.read_text() == "ended", f"'ended' is written, and {log.read_text()!r} comes")


def _group_errors(cluster: Cluster) -> None:
    """What one process of a group raises is raised, though another one waits for it."""
    try:
        with closing(cluster.run_distributed(_leave, workers=2)) as told:
            list(told)
    except SimulationError as error:
        require("the second process fails" in str(error), f"it says {error}")
    else:
        require(False, "nothing is raised by a group")


PROMISES = (_results, _errors, _group, _group_errors)


def check_cluster(cluster: Cluster) -> None:
    """Check what every cluster promises, with a few small tasks.

    Args:
        cluster: The cluster.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, cluster)
