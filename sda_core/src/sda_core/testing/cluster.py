"""What every cluster promises."""

from __future__ import annotations

import os
from contextlib import closing

import numpy as np

from sda_core.cluster import Cluster
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


PROMISES = (_results, _errors)


def check_cluster(cluster: Cluster) -> None:
    """Check what every cluster promises, with a few small tasks.

    Args:
        cluster: The cluster.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, cluster)
