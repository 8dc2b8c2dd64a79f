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

from sda_core.cluster.base import Cluster, Link, never
from sda_core.cluster.member import Place, take_part
from sda_core.cluster.process import obey_the_parent, send, sending, serving
from sda_core.config import at_least, component, option
from sda_core.errors import ClusterError, StoppedError

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two looks at whether work is to stop.
_GLANCE = 0.2
#: Seconds in which a process ends by itself, and is found to have died where another one fails.
_GRACE = 1.0


@component
class Local(Cluster):
    """Processes of this machine, which end with the one that asks for them.

    One that dies while it does tasks of its own is not replaced: on one machine it mostly dies for
    want of memory, and the next one would, too. A script that uses them does so under
    ``if __name__ == "__main__":``.
    """

    retries: int = option(
        default=3,
        check=at_least(0),
        help="how often processes that train together begin anew where one of them dies",
    )

    def map(
        self, work: Callable[[T], R], tasks: Sequence[T], *, workers: int
    ) -> Generator[tuple[int, R], None, None]:
        """Do ``work`` on each task; see :meth:`sda_core.cluster.Cluster.map`."""
        waiting = deque(enumerate(tasks))
        running: dict[Connection, int] = {}

        def give(connection: Connection) -> None:
            number, task = waiting.popleft()
            with _talking(workers):
                connection.send(task)
            running[connection] = number

        with ExitStack() as stack:
            for _ in range(min(workers, len(tasks))):
                connection, _process = stack.enter_context(serving(_serve, work, workers))
                give(connection)
            while running:
                for connection in cast(list[Connection], wait(list(running))):
                    number = running.pop(connection)
                    with _talking(workers):
                        result, error = connection.recv()
                    if error is not None:
                        raise error
                    if waiting:
                        give(connection)
                    yield number, result
                    del result  # before the next one comes

    def together(
        self,
        work: Callable[[Link], None],
        *,
        workers: int,
        gpus_per_worker: float | None = None,
        stopping: Callable[[], bool] = never,
    ) -> Generator[Any, None, None]:
        """Do ``work`` in processes at once; see :meth:`sda_core.cluster.Cluster.together`.

        They talk to each other on loopback.
        """
        shares, backend = _shares_of_gpus(workers, gpus_per_worker)
        with sending(workers):
            place = Place(pickle.dumps(work), 0, workers, "", backend, "")
        for _ in range(self.retries + 1):
            with TemporaryDirectory() as folder:
                place = attrs.evolve(place, meeting=os.path.join(folder, "meeting"))
                places = [attrs.evolve(place, rank=i, gpus=g) for i, g in enumerate(shares)]
                try:
                    yield from _together(places, stopping)
                except _LostError as lost:
                    if stopping():  # as by a signal to all processes, while they start
                        raise StoppedError(
                            "a worker process ended when the work was to stop; what is saved is "
                            "kept, and the same command resumes there"
                        ) from lost
                    continue
            return
        raise ClusterError(
            f"one of {workers} worker processes died, and again after {self.retries} new starts "
            "(cluster.retries), often for want of memory. What is saved is kept. To mend: run "
            "again with smaller batches, or fewer workers."
        )


class _LostError(Exception):
    """A process of a group died."""


def _together(places: Sequence[Place], stopping: Callable[[], bool]) -> Generator[Any, None, None]:
    """Let processes work together, once; give what is told."""
    with ExitStack() as stack:
        made = [stack.enter_context(serving(take_part, place, len(places))) for place in places]
        busy = [connection for connection, _ in made]
        asked = False
        while busy:
            if not asked and (asked := stopping()):
                for connection in busy:
                    with suppress(ConnectionError):  # it is noticed below
                        connection.send("stop")
            for connection in cast(list[Connection], wait(busy, _GLANCE)):
                try:
                    told, error = connection.recv()
                except (EOFError, ConnectionError) as lost:
                    raise _LostError from lost
                if told is not None:
                    yield told[0]
                elif error is None:
                    busy.remove(connection)
                elif wait([process.sentinel for _, process in made], _GRACE):
                    raise _LostError from error  # the others fail where one has died
                else:
                    raise error
        for connection, _ in made:
            connection.close()
        for _, process in made:
            process.join(_GRACE)


def _shares_of_gpus(workers: int, each: float | None) -> tuple[list[str], str]:
    """The GPUs of each process, as CUDA_VISIBLE_DEVICES has them, and how the processes talk."""
    import torch  # takes a while

    count = torch.cuda.device_count()
    if each is None:
        each = 1 if count >= workers else 0
    if each == 0:
        return [""] * workers, "gloo"
    together, own = max(1, int(1 / each + 1e-6)), math.ceil(each)
    needed = -(-workers // together) * own
    if needed > count:
        raise ClusterError(
            f"{workers} workers with {each:g} GPUs each need {needed} GPUs, and this machine has "
            f"{count}: use fewer workers, let several share a GPU (0.5), or use none (0)"
        )
    there = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    firsts = [rank // together * own for rank in range(workers)]
    # NCCL refuses processes that share a GPU.
    return [",".join(there[i : i + own]) for i in firsts], "nccl" if each >= 1 else "gloo"


@contextmanager
def _talking(workers: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ClusterError(
            f"one of {workers} worker processes died, often for want of memory. What is done is "
            "kept. To mend: run again with fewer workers."
        ) from error


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Do what comes over the connection, until it ends."""
    obey_the_parent()
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
