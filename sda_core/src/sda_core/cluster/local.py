"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from sda_core.cluster.base import Cluster
from sda_core.config import component
from sda_core.errors import ClusterError

T = TypeVar("T")
R = TypeVar("R")


@component
class Local(Cluster):
    """Processes of this machine, which end with the one that asks for them.

    A process that dies is not replaced: on one machine it mostly dies for want of memory, and the
    next one would, too. A script that uses them does so under ``if __name__ == "__main__":``.
    """

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
                give(stack.enter_context(_process(work, workers)))
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


@contextmanager
def _talking(workers: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ClusterError(
            f"one of {workers} worker processes died, often for want of memory. What is done is "
            "kept. To mend: run again with fewer workers."
        ) from error


@contextmanager
def _process(work: Callable[..., Any], workers: int) -> Iterator[Connection]:
    """A process that does work, and the connection to it."""
    context = multiprocessing.get_context("spawn")  # torch and jax have threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    with ours:
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ClusterError(
                f"the work cannot be sent to {workers} worker processes ({error}): define its "
                "classes and functions in a module, or use one worker"
            ) from error
        theirs.close()  # so that ours ends when the process does
        try:
            yield ours
        finally:
            process.terminate()
            process.join()


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Do what comes over the connection, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = work(task), None
        except Exception as error:  # noqa: BLE001 - it is raised in the parent
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = None, error
        try:
            connection.send(answer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            what = answer[1] or "a result"
            connection.send((None, ClusterError(f"{what} cannot be sent back ({error})")))


def _end_with_parent() -> None:
    """End when the parent is killed, which cannot tell it to."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
