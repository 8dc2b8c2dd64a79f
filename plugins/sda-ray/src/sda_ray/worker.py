"""What each worker does that Ray Train starts, as a rank of torch.distributed."""

from __future__ import annotations

import os
import pickle
import socket
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sda_core.cluster import WorkerChannel
from sda_core.errors import ClusterError
from sda_ray.resources import WorkerResources, exit_with_raylet, hide_gpus

#: Longest time for which a worker waits for the others. Lost ones are noticed by Ray, and rank 0
#: may be busy for long.
_GROUP_TIMEOUT = timedelta(days=1)
#: Seconds between two questions whether to stop.
POLL_INTERVAL = 1.0
#: Seconds in which a worker must answer that it is alive.
_PING_TIMEOUT = 60.0


def worker_main(channel: Any, sent: list[Any], asked: WorkerResources) -> None:
    """Do the work, together with the other workers.

    Args:
        channel: The actor between the workers and the driver.
        sent: The work, as Ray stores it.
        asked: The workers.
    """
    import ray
    import ray.train
    from ray.train.collective import barrier, broadcast_from_rank_zero

    exit_with_raylet()
    if not asked.gpus:
        hide_gpus()
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    server = _server() if rank == 0 else None
    address = None if server is None else (uuid.uuid4().hex, *server.getsockname()[:2])
    group, host, port = broadcast_from_rank_zero(address)
    me = ray.get_runtime_context().current_actor
    placement = ray.util.get_current_placement_group()
    ray.get(channel.join.remote(group, rank, [me], placement))
    barrier()  # all have joined
    worker_channel = RayWorkerChannel(channel, group)
    try:
        _make_group(asked, rank, size, host, port, server)
        _work(sent)(worker_channel)
        worker_channel.flush()
    except Exception as error:
        if not _all_alive(channel):  # this is because another one is lost
            raise
        ray.get(channel.fail.remote(group, _pickled(error)))


def _work(sent: list[Any]) -> Callable[[WorkerChannel], None]:
    import ray
    from ray.exceptions import RayError

    try:
        work: Callable[[WorkerChannel], None] = ray.get(sent[0])
    except RayError as error:
        raise ClusterError(
            "a worker cannot read the work; all machines of the cluster need the same packages. "
            f"Ray says: {last_line(error)}"
        ) from None
    return work


def last_line(error: Exception) -> str:
    """What an error says, without its traceback."""
    return str(error).strip().splitlines()[-1].strip()


def _server() -> socket.socket:
    """A socket that listens on the address that the other machines know, and on no other."""
    import ray

    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


def _make_group(
    asked: WorkerResources, rank: int, size: int, host: str, port: int, server: socket.socket | None
) -> None:
    """Make the default group of torch.distributed."""
    import torch
    import torch.distributed

    distributed: Any = torch.distributed  # the store is not among its typed names
    if host.startswith("127."):
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    torch.set_num_threads(max(1, int(asked.cpus)))
    store = distributed.TCPStore(
        host,
        port,
        size,
        is_master=server is not None,
        timeout=_GROUP_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=None if server is None else server.detach(),
    )
    own_gpu = (asked.gpus or 0) >= 1  # NCCL takes no GPU that others use
    distributed.init_process_group(
        "nccl" if own_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_GROUP_TIMEOUT,
        device_id=torch.device("cuda", 0) if own_gpu else None,
    )


def _all_alive(channel: Any) -> bool:
    """Whether no worker is lost."""
    import ray
    from ray.exceptions import RayError

    try:
        workers = ray.get(channel.workers.remote())
        ray.get([worker.__ray_ready__.remote() for (worker,) in workers], timeout=_PING_TIMEOUT)
    except RayError:
        return False
    return bool(workers)


def _pickled(error: Exception) -> bytes:
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception as cause:  # noqa: BLE001 - whatever a class does when it is pickled
        return pickle.dumps(ClusterError(f"{error!r} cannot be sent back ({cause})"))
    return pickled


class RayWorkerChannel(WorkerChannel):
    """A worker's way to the driver."""

    def __init__(self, channel: Any, group: str) -> None:
        self._channel, self._group = channel, group
        self._sent: Any = None
        self._asking: Any = None
        self._next, self._stopping = 0.0, False

    def send(self, message: Any) -> None:
        """Send a message; see :meth:`sda_core.cluster.WorkerChannel.send`."""
        # Calls of one process arrive in order.
        self._sent = self._channel.send.remote(self._group, pickle.dumps(message))

    def should_stop(self) -> bool:
        """Whether to stop; see :meth:`sda_core.cluster.WorkerChannel.should_stop`."""
        import ray

        now = time.monotonic()
        if self._asking is None and not self._stopping and now >= self._next:
            self._asking, self._next = self._channel.is_stopping.remote(), now + POLL_INTERVAL
        if self._asking is not None and ray.wait([self._asking], timeout=0)[0]:
            self._stopping, self._asking = ray.get(self._asking), None
        return self._stopping

    def flush(self) -> None:
        """Wait until all messages have arrived."""
        import ray

        if self._sent is not None:
            ray.get(self._sent)
