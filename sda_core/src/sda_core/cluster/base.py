"""Clusters: where heavy work is spread to, over processes and machines.

It is spread in two ways. :meth:`Cluster.map` does many tasks that know nothing of each other, and
:meth:`Cluster.together` one piece of work by processes that talk to each other.

Of tasks, the work is a function of the task alone, so that it does not matter where and how often
it is done. It is sent once to each process, which keeps it, and tasks are small, such as the number
of a block. Results come back as they are finished, and whoever asked for them writes each to the
disk before the next one: they never gather in memory.

Work that is done together saves what it has done, and goes on from there where it is begun anew.
It does so in a directory that :meth:`Cluster.lend` lets its processes have, on whatever machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sda_core.cluster.folder import Lent, SameFolder

T = TypeVar("T")
R = TypeVar("R")


def never() -> bool:
    """False: nobody asks for a stop."""
    return False


def unheard(line: str) -> None:
    """Nothing: nobody listens."""


class Link(ABC):
    """What a process of a group knows of whoever asked for its work."""

    @abstractmethod
    def tell(self, message: Any) -> None:
        """Send a message to whoever asked; on the process of rank 0 alone.

        Args:
            message: What is sent, pickled.
        """

    @abstractmethod
    def stopping(self) -> bool:
        """Whether whoever asked wants the work to stop; may be called once in each step."""


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
    def together(
        self,
        work: Callable[[Link], None],
        *,
        workers: int,
        gpus_per_worker: float | None = None,
        stopping: Callable[[], bool] = never,
    ) -> Generator[Any, None, None]:
        """Do ``work`` in several processes at once, which are one group of torch.distributed.

        The default process group is that of NCCL where each process has a GPU of its own, else
        that of gloo. A process sees its GPU alone, as the first one, or none. It computes with its
        share of the CPUs. If a process is lost, all are ended and begin anew, so that work goes on
        from what it has saved. Where the generator is closed before its end, all are ended.

        Args:
            work: What is done, by every process; pickled.
            workers: Number of processes.
            gpus_per_worker: GPUs of each, of which a fraction is shared; None for 1 if there are
                as many GPUs as workers, else 0.
            stopping: Whether the work is to stop, which :meth:`Link.stopping` passes on; asked for
                about once a second, or more often, in the process that iterates.

        Yields:
            What the process of rank 0 tells, in this order.

        Raises:
            ClusterError: The cluster cannot be reached or does not have what was asked for, the
                work cannot be sent to it, or processes were lost too often.
            Exception: Whatever ``work`` raised, of the same class; it is not done again.
        """

    def lend(
        self,
        directory: Path,
        *,
        leave_out: Collection[str] = (),
        say: Callable[[str], None] = unheard,
    ) -> AbstractContextManager[Lent]:
        """Let the processes of :meth:`together` have a run directory, and have it back.

        This is the directory itself, which must be on all machines. A cluster that copies it
        overrides this.

        Args:
            directory: The directory, absolute.
            leave_out: Names in it that are no part of the work.
            say: Called with what takes a while.

        Returns:
            A context of the directory as the processes have it, to be pickled with the work; and
            of a function that brings here what they have saved so far, as the end of the context
            does.

        Raises:
            ClusterError: It cannot be copied, to the processes or back.
        """
        return nullcontext((SameFolder(directory), _nothing))


def _nothing() -> None:
    """What is there need not be brought."""
