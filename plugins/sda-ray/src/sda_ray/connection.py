"""How a cluster is started on this machine, or reached."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def knock(address: str) -> None:
    """Raise OSError if nobody answers there within some seconds: Ray would try for hours."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a cluster that is started listen on loopback only.

    Ray turns 127.0.0.1 into the machine's address, on which its servers then listen, unless
    clusters of several machines are switched off, as they are by default on macOS and Windows.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def private_folder() -> Iterator[str]:
    """A folder for the files of a cluster on this machine, which other users cannot enter."""
    with TemporaryDirectory(prefix="sda-", ignore_cleanup_errors=True) as folder:
        yield str(Path(folder) / "ray")  # Ray lets everybody into the one that it is given


@contextmanager
def in_own_process_group() -> Iterator[None]:
    """Let what is started get no signals to the group of this process, such as that of Ctrl-C.

    It ends when this process does, and not before the trials or tasks that a signal stops.
    """
    start: Any = subprocess.Popen.__init__

    def start_apart(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{"process_group": 0, **options})

    popen: Any = subprocess.Popen
    popen.__init__ = start_apart
    try:
        yield
    finally:
        popen.__init__ = start
