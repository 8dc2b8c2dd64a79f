"""A worker of this machine, which is a rank of torch.distributed."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import attrs

from sda_core.cluster.base import WorkerChannel
from sda_core.cluster.process import exit_with_parent, send


@attrs.frozen
class WorkerSpec:
    """What a worker is to do, as which rank.

    Attributes:
        work: What is done, pickled.
        rank: Its rank.
        world_size: How many workers there are.
        gpus: Its GPUs, as CUDA_VISIBLE_DEVICES has them.
        backend: That of torch.distributed.
        rendezvous: The file by which the workers find each other.
    """

    work: bytes
    rank: int
    world_size: int
    gpus: str
    backend: str
    rendezvous: str


@attrs.define
class _PipeChannel(WorkerChannel):
    connection: Connection
    stops: bool = False

    def send(self, message: Any) -> None:
        self.connection.send(((message,), None))

    def should_stop(self) -> bool:
        if self.connection.poll():
            self.connection.recv()
            self.stops = True
        return self.stops


def worker_main(spec: WorkerSpec, connection: Connection) -> None:
    """Do the work, send (message,) for each of its messages and None at last, and wait for the end.

    Args:
        spec: The work, and the rank of this worker.
        connection: Where they are sent, as (one of these, an error); what is received is a request
            to stop. The worker ends when it is closed.
    """
    exit_with_parent()
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["CUDA_VISIBLE_DEVICES"] = spec.gpus
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    import torch.distributed as dist  # takes a while

    error: Exception | None = None
    try:
        # By a file: a store that listens does so on all addresses of the machine.
        file, rank, size = f"file://{spec.rendezvous}", spec.rank, spec.world_size
        dist.init_process_group(spec.backend, init_method=file, rank=rank, world_size=size)
        pickle.loads(spec.work)(_PipeChannel(connection))
    except Exception as raised:  # noqa: BLE001 - it is raised in the parent
        raised.add_note(f"in worker process {spec.rank}:\n{traceback.format_exc()}")
        error = raised
    send(connection, None, error)
    with suppress(EOFError):  # others may still need this one
        while True:
            connection.recv()
    dist.destroy_process_group()
