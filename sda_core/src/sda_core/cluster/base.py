"""Clusters: where heavy work is spread to, over processes and machines.

Work is a function of a task alone, so that it does not matter where and how often it is done. It is
sent once to each process, which keeps it, and tasks are small, such as the number of a block.
Results come back as they are finished, and whoever asked for them writes each to the disk before
the next one: they never gather in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import ClassVar, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Cluster(ABC):
    """Where heavy work is spread to."""

    sda_kind: ClassVar[str] = "cluster"

    @abstractmethod
    def map(
        self, work: Callable[[T], R], tasks: Sequence[T], *, workers: int
    ) -> Generator[tuple[int, R], None, None]:
        """Do ``work`` on each task, in other processes.

        Where the iterator is closed before its end, no further task is begun.

        Args:
            work: What is done. It, the tasks and the results are pickled. A task may be done more
                than once, where a process or machine is lost, so its result depends on the task
                alone.
            tasks: The tasks.
            workers: How many are done at the same time, at most.

        Yields:
            (number of the task, its result), in the order in which they are finished. No more
            results wait for being taken than there are workers.

        Raises:
            ClusterError: The cluster cannot be reached, work cannot be sent to it, or a task is
                lost for good.
            Exception: Whatever ``work`` raised, of the same class.
        """
