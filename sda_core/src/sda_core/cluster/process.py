"""Worker processes of this machine, which end with the one that started them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from sda_core.errors import ClusterError
from sda_core.threads import set_most

A = TypeVar("A")

#: What pickle raises, depending on what cannot be pickled.
UNSENDABLE = (pickle.PicklingError, AttributeError, TypeError)


@contextmanager
def sending(workers: int) -> Iterator[None]:
    """Say what to do where work cannot be pickled."""
    try:
        yield
    except UNSENDABLE as error:
        raise ClusterError(
            f"the work cannot be sent to {workers} worker processes ({error}): define its "
            "classes and functions in a module, or use one worker"
        ) from error


@contextmanager
def serving(
    target: Callable[[A, Connection], None], argument: A, workers: int
) -> Iterator[tuple[Connection, BaseProcess]]:
    """A process that calls a function, the connection to it and the process; it is ended at last.

    Args:
        target: The function.
        argument: Its first argument; its second is the other end of the connection.
        workers: How many such processes there are, which share the threads of this one.

    Raises:
        ClusterError: The argument cannot be pickled.
    """
    context = _context()
    ours, theirs = context.Pipe()
    arguments = (dict(os.environ), _share_of_threads(workers), target, argument, theirs)
    process = context.Process(target=_begin, args=arguments, daemon=True)
    with ours:
        with sending(workers):
            process.start()
        theirs.close()  # so that ours ends when the process does
        atexit.register(process.kill)  # where an interpreter ends in between
        try:
            yield ours, process
        finally:
            process.kill()
            process.join()
            atexit.unregister(process.kill)


def _context() -> SpawnContext | ForkServerContext:
    """How processes are started: forked from a server that has imported torch, where that can be.

    Not forked from this process, since torch and jax have threads. The server ends with it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker  # not on all systems

    multiprocessing.set_forkserver_preload(["torch"])
    # A SIGTERM to the process group must reach this process alone: the server, and with it the
    # workers, keeps it blocked. (To start the tracker would unblock it.)
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


def _share_of_threads(workers: int) -> int:
    import torch  # takes a while

    return max(1, torch.get_num_threads() // workers)


def _begin(
    environment: dict[str, str],
    threads: int,
    target: Callable[[A, Connection], None],
    argument: A,
    connection: Connection,
) -> None:
    """Call the target, with the environment of the process that asked, and not of the server."""
    os.environ.clear()
    os.environ.update(environment)
    set_most(threads)
    target(argument, connection)


def exit_with_parent() -> None:
    """Ignore signals, which the parent handles, and exit when it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_when_orphaned, daemon=True).start()


def _exit_when_orphaned() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def send(connection: Connection, result: Any, error: Exception | None) -> None:
    """Send (result, error), or why they cannot be sent."""
    try:
        connection.send((result, error))
    except UNSENDABLE as reason:
        what = error or "a result"
        connection.send((None, ClusterError(f"{what} cannot be sent back ({reason})")))
