"""A process of this machine that is one of a group of torch.distributed."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import attrs

from sda_core.cluster.base import Link
from sda_core.cluster.process import obey_the_parent, send


@attrs.frozen
class Place:
    """What a process of a group is to do, and where.

    Attributes:
        work: What is done, pickled.
        rank: The number of the process, from 0.
        size: How many there are.
        gpus: Its GPUs, as CUDA_VISIBLE_DEVICES has them.
        backend: That of torch.distributed.
        meeting: The file by which the processes find each other.
    """

    work: bytes
    rank: int
    size: int
    gpus: str
    backend: str
    meeting: str


@attrs.define
class _Pipe(Link):
    connection: Connection
    stopped: bool = False

    def tell(self, message: Any) -> None:
        self.connection.send(((message,), None))

    def stopping(self) -> bool:
        if self.connection.poll():
            self.connection.recv()
            self.stopped = True
        return self.stopped


def take_part(place: Place, connection: Connection) -> None:
    """Do work, send (message,) for each that it tells and None at last, and wait for the end.

    Args:
        place: The work, and where it is done.
        connection: Where they are sent, as (one of these, an error); what comes is a wish to stop.
            The end of it is that of this process.
    """
    obey_the_parent()
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["CUDA_VISIBLE_DEVICES"] = place.gpus
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    import torch  # takes a while, which who imports this does not wait for
    import torch.distributed as dist

    torch.set_num_threads(max(1, torch.get_num_threads() // place.size))
    error: Exception | None = None
    try:
        # By a file: a store that listens does so on all addresses of the machine.
        meeting, rank, size = f"file://{place.meeting}", place.rank, place.size
        dist.init_process_group(place.backend, init_method=meeting, rank=rank, world_size=size)
        pickle.loads(place.work)(_Pipe(connection))
    except Exception as raised:  # noqa: BLE001 - it is raised in the parent
        raised.add_note(f"in worker process {place.rank}:\n{traceback.format_exc()}")
        error = raised
    send(connection, None, error)
    with suppress(EOFError):  # others may still talk to this one
        while True:
            connection.recv()
    dist.destroy_process_group()
