"""A worker of a group, as a rank of torch.distributed."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections import deque
from datetime import timedelta
from typing import Any

import attrs

from sda_core.cluster import WorkerChannel
from sda_ray.remote import WorkerResources, exit_with_raylet, get_work, hide_gpus

#: Longest time for which a worker waits for the others: rank 0 may be busy for long.
_GROUP_TIMEOUT = timedelta(days=1)


@attrs.frozen
class _Channel(WorkerChannel):
    """A worker's channel to the driver, which asks for what is sent."""

    messages: deque[bytes] = attrs.Factory(deque)
    stopping: threading.Event = attrs.Factory(threading.Event)

    def send(self, message: Any) -> None:
        """Send a message; see :meth:`sda_core.cluster.WorkerChannel.send`."""
        self.messages.append(pickle.dumps(message))

    def should_stop(self) -> bool:
        """Whether to stop; see :meth:`sda_core.cluster.WorkerChannel.should_stop`."""
        return self.stopping.is_set()


class Worker:
    """A rank of torch.distributed; an actor."""

    def __init__(self, asked: WorkerResources, rank: int) -> None:
        exit_with_raylet()
        self._asked, self._rank, self._channel = asked, rank, _Channel()
        self._server: socket.socket | None = None

    def listen(self) -> tuple[str, int]:
        """Listen on the address that the other machines know, and on no other."""
        import ray

        host = ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        return host, self._server.getsockname()[1]

    def run(self, sent: list[Any], address: tuple[str, int]) -> None:
        """Do the work."""
        if not self._asked.gpus:
            hide_gpus()
        work = get_work(sent)
        self._init_process_group(*address)
        work(self._channel)

    def take(self) -> list[bytes]:
        """The messages that the driver has not had."""
        messages = self._channel.messages
        return [messages.popleft() for _ in range(len(messages))]

    def stop(self) -> None:
        """Let the work stop."""
        self._channel.stopping.set()

    def _init_process_group(self, host: str, port: int) -> None:
        import torch
        import torch.distributed

        distributed: Any = torch.distributed  # the store is not among its typed names
        if host.startswith("127."):
            loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
        torch.set_num_threads(max(1, int(self._asked.cpus)))
        store = distributed.TCPStore(
            host,
            port,
            self._asked.number,
            is_master=self._server is not None,
            timeout=_GROUP_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=None if self._server is None else self._server.detach(),
        )
        own_gpu = (self._asked.gpus or 0) >= 1  # NCCL takes no GPU that others use
        distributed.init_process_group(
            "nccl" if own_gpu else "gloo",
            store=store,
            rank=self._rank,
            world_size=self._asked.number,
            timeout=_GROUP_TIMEOUT,
            device_id=torch.device("cuda", 0) if own_gpu else None,
        )
