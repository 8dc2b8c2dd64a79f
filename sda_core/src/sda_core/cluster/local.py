"""Processes of this machine."""

from __future__ import annotations

import math
import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import attrs

from sda_core.cluster.base import Cluster, WorkerChannel
from sda_core.cluster.process import exit_with_parent, send, sending, serving
from sda_core.cluster.worker import WorkerSpec, worker_main
from sda_core.config import at_least, component, option
from sda_core.errors import ClusterError, StoppedError

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two questions whether work is to stop.
_POLL_INTERVAL = 0.2
#: Seconds in which a process ends by itself, and is found to have died where another one fails.
_EXIT_TIMEOUT = 1.0


@component
class Local(Cluster):
    """Processes of this machine, which end with the one that asks for them.

    One that dies in :meth:`map` is not replaced: on one machine it is mostly out of memory, and the
    next one would be, too. A script that uses them does so under ``if __name__ == "__main__":``.
    """

    retries: int = option(
        default=3,
        check=at_least(0),
        help="how often processes that train together are restarted when one of them dies",
    )

    def map(
        self, work: Callable[[T], R], tasks: Sequence[T], *, workers: int
    ) -> Generator[tuple[int, R], None, None]:
        """Do ``work`` on each task; see :meth:`sda_core.cluster.Cluster.map`."""
        waiting = deque(enumerate(tasks))
        running: dict[Connection, int] = {}

        def give(connection: Connection) -> None:
            number, task = waiting.popleft()
            with _worker_errors(workers):
                connection.send(task)
            running[connection] = number

        with ExitStack() as stack:
            for _ in range(min(workers, len(tasks))):
                connection, _process = stack.enter_context(serving(_serve, work, workers))
                give(connection)
            while running:
                for connection in cast(list[Connection], wait(list(running))):
                    number = running.pop(connection)
                    with _worker_errors(workers):
                        result, error = connection.recv()
                    if error is not None:
                        raise error
                    if waiting:
                        give(connection)
                    yield number, result
                    del result  # before the next one comes

    def run_distributed(
        self,
        work: Callable[[WorkerChannel], None],
        *,
        workers: int,
        gpus_per_worker: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Any, None, None]:
        """Do ``work`` in processes at once; see :meth:`sda_core.cluster.Cluster.run_distributed`.

        They communicate on loopback.
        """
        shares, backend = _shares_of_gpus(workers, gpus_per_worker)
        with sending(workers):
            spec = WorkerSpec(pickle.dumps(work), 0, workers, "", backend, "")
        for _ in range(self.retries + 1):
            with TemporaryDirectory() as folder:
                spec = attrs.evolve(spec, rendezvous=os.path.join(folder, "rendezvous"))
                specs = [attrs.evolve(spec, rank=i, gpus=g) for i, g in enumerate(shares)]
                try:
                    yield from _run_once(specs, should_stop)
                except _LostError as lost:
                    if should_stop():  # as by a signal to all processes, while they start
                        raise StoppedError(
                            "a worker process ended when the work was to stop; what is saved is "
                            "kept, and the same command resumes there"
                        ) from lost
                    continue
            return
        raise ClusterError(
            f"one of {workers} worker processes died, and again after {self.retries} restarts "
            "(cluster.retries), often out of memory. What is saved is kept. To mend: run "
            "again with smaller batches, or fewer workers."
        )


class _LostError(Exception):
    """A process of a group died."""


def _run_once(
    specs: Sequence[WorkerSpec], should_stop: Callable[[], bool]
) -> Generator[Any, None, None]:
    """Start the processes of a group once; yield what rank 0 sends."""
    with ExitStack() as stack:
        made = [stack.enter_context(serving(worker_main, spec, len(specs))) for spec in specs]
        busy = [connection for connection, _ in made]
        asked = False
        while busy:
            if not asked and (asked := should_stop()):
                for connection in busy:
                    with suppress(ConnectionError):  # it is noticed below
                        connection.send("stop")
            for connection in cast(list[Connection], wait(busy, _POLL_INTERVAL)):
                try:
                    sent, error = connection.recv()
                except (EOFError, ConnectionError) as lost:
                    raise _LostError from lost
                if sent is not None:
                    yield sent[0]
                elif error is None:
                    busy.remove(connection)
                elif wait([process.sentinel for _, process in made], _EXIT_TIMEOUT):
                    raise _LostError from error  # the others fail where one has died
                else:
                    raise error
        for connection, _ in made:
            connection.close()
        for _, process in made:
            process.join(_EXIT_TIMEOUT)


def _shares_of_gpus(workers: int, each: float | None) -> tuple[list[str], str]:
    """The GPUs of each process, as CUDA_VISIBLE_DEVICES has them, and the backend."""
    import torch  # takes a while

    count = torch.cuda.device_count()
    if each is None:
        each = 1 if count >= workers else 0
    if each == 0:
        return [""] * workers, "gloo"
    sharing, own = max(1, int(1 / each + 1e-6)), math.ceil(each)
    needed = -(-workers // sharing) * own
    if needed > count:
        raise ClusterError(
            f"{workers} workers with {each:g} GPUs each need {needed} GPUs, and this machine has "
            f"{count}: use fewer workers, let several share a GPU (0.5), or use none (0)"
        )
    there = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    firsts = [rank // sharing * own for rank in range(workers)]
    # NCCL refuses processes that share a GPU.
    return [",".join(there[i : i + own]) for i in firsts], "nccl" if each >= 1 else "gloo"


@contextmanager
def _worker_errors(workers: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ClusterError(
            f"one of {workers} worker processes died, often out of memory. What is done is "
            "kept. To mend: run again with fewer workers."
        ) from error


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Do what comes over the connection, until it ends."""
    exit_with_parent()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        result, error = None, None
        try:
            result = work(task)
        except Exception as raised:  # noqa: BLE001 - it is raised in the parent
            raised.add_note(f"in a worker process:\n{traceback.format_exc()}")
            error = raised
        send(connection, result, error)
