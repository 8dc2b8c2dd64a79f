"""Clusters: where heavy work is spread to, over processes and machines.

It is spread in two ways: :meth:`Cluster.map` does many independent tasks, and
:meth:`Cluster.run_distributed` one piece of work by the ranks of a group.

Of tasks, the work is a function of the task alone, so that it does not matter where and how often
it is done. It is sent once to each process, which keeps it, and tasks are small, such as the number
of a block. Results come back as they are finished, and the driver writes each to the disk before
the next one: they never gather in memory.

Distributed work saves checkpoints, and resumes from them when its workers are restarted. It does
so in a directory that :meth:`Cluster.sync_directory` gives to the workers, on whatever machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sda_core.cluster.directory import SharedDirectory, SyncedDirectory

T = TypeVar("T")
R = TypeVar("R")


class WorkerChannel(ABC):
    """A worker's channel to the driver."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Send a message to the driver; on rank 0 alone.

        Args:
            message: What is sent, pickled.
        """

    @abstractmethod
    def should_stop(self) -> bool:
        """Whether the driver wants the work to stop; may be called once in each step."""


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

    @abstractmethod
    def run_distributed(
        self,
        work: Callable[[WorkerChannel], None],
        *,
        workers: int,
        gpus_per_worker: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Any, None, None]:
        """Do ``work`` in several processes at once, which are one group of torch.distributed.

        The default process group is that of NCCL where each process has a GPU of its own, else
        that of gloo. A process sees its GPU alone, as the first one, or none. It computes with its
        share of the CPUs. If a process is lost, all are restarted, and the work resumes from what
        it has saved. Where the generator is closed before its end, all are ended.

        Args:
            work: What is done, by every process; pickled.
            workers: Number of processes.
            gpus_per_worker: GPUs of each, of which a fraction is shared; None for 1 if there are
                as many GPUs as workers, else 0.
            should_stop: Whether the work is to stop, which :meth:`WorkerChannel.should_stop` passes
                on; asked about once a second, or more often, in the process that iterates.

        Yields:
            What rank 0 sends, in this order.

        Raises:
            ClusterError: The cluster cannot be reached or does not have what was asked for, the
                work cannot be sent to it, or processes were lost too often.
            Exception: Whatever ``work`` raised, of the same class; it is not done again.
        """

    def sync_directory(
        self,
        directory: Path,
        *,
        exclude: Collection[str] = (),
        announce: Callable[[str], None] = lambda line: None,
    ) -> AbstractContextManager[SyncedDirectory]:
        """Give the workers of :meth:`run_distributed` a run directory, and get it back.

        This is the directory itself, which must be on all machines. A cluster that copies it
        overrides this.

        Args:
            directory: The directory, absolute.
            exclude: Names in it that are no part of the work.
            announce: Called with what takes a while.

        Returns:
            A context of the directory as the workers have it, to be pickled with the work; and of
            a function that downloads what they have uploaded so far, as the end of the context
            does.

        Raises:
            ClusterError: It cannot be copied, to the workers or back.
        """
        return nullcontext((SharedDirectory(directory), lambda: None))
