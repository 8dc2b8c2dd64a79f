"""What each of the processes does that Ray Train starts, as a group of torch.distributed."""

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

from sda_core.cluster import Link
from sda_core.errors import ClusterError
from sda_ray.room import Workers

#: Longest time for which a process waits for the others. Lost ones are noticed by Ray, and rank 0
#: may be busy for long.
_PATIENCE = timedelta(days=1)
#: Seconds between two questions whether to stop.
_GLANCE = 1.0
#: Seconds that a process has to say that it is there.
_REPLY = 60.0


def take_part(channel: Any, sent: list[Any], asked: Workers) -> None:
    """Do the work, together with the other processes.

    Args:
        channel: Where whoever asked hears of it.
        sent: The work, as Ray stores it.
        asked: The processes of the group.
    """
    import ray
    import ray.train
    from ray.train.collective import barrier, broadcast_from_rank_zero

    if not asked.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all visible to those without one
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    server = _server() if rank == 0 else None
    met = None if server is None else (uuid.uuid4().hex, *server.getsockname()[:2])
    group, host, port = broadcast_from_rank_zero(met)
    me = ray.get_runtime_context().current_actor
    place = ray.util.get_current_placement_group()
    ray.get(channel.join.remote(group, rank, [me], place))
    barrier()  # all have joined
    link = _RayLink(channel, group)
    try:
        _make_group(asked, rank, size, host, port, server)
        _work(sent)(link)
        link.flush()
    except Exception as error:
        if not _all_are_there(channel):  # this is because another one is lost
            raise
        ray.get(channel.fail.remote(group, _pickled(error)))


def _work(sent: list[Any]) -> Callable[[Link], None]:
    import ray
    from ray.exceptions import RayError

    try:
        work: Callable[[Link], None] = ray.get(sent[0])
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
    asked: Workers, rank: int, size: int, host: str, port: int, server: socket.socket | None
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
        timeout=_PATIENCE,
        wait_for_workers=False,
        master_listen_fd=None if server is None else server.detach(),
    )
    own_gpu = (asked.gpus or 0) >= 1  # NCCL takes no GPU that others use
    distributed.init_process_group(
        "nccl" if own_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
        device_id=torch.device("cuda", 0) if own_gpu else None,
    )


def _all_are_there(channel: Any) -> bool:
    """Whether no process of the group is lost."""
    import ray
    from ray.exceptions import RayError

    try:
        members = ray.get(channel.members.remote())
        ray.get([member.__ray_ready__.remote() for (member,) in members], timeout=_REPLY)
    except RayError:
        return False
    return bool(members)


def _pickled(error: Exception) -> bytes:
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception as cause:  # noqa: BLE001 - whatever a class does when it is pickled
        return pickle.dumps(ClusterError(f"{error!r} cannot be sent back ({cause})"))
    return pickled


class _RayLink(Link):
    """What a process of a group knows of whoever asked for it."""

    def __init__(self, channel: Any, group: str) -> None:
        self._channel, self._group = channel, group
        self._told: Any = None
        self._asking: Any = None
        self._next, self._stopping = 0.0, False

    def tell(self, message: Any) -> None:
        """Send a message; see :meth:`sda_core.cluster.Link.tell`."""
        # Calls of one process arrive in order.
        self._told = self._channel.tell.remote(self._group, pickle.dumps(message))

    def stopping(self) -> bool:
        """Whether to stop; see :meth:`sda_core.cluster.Link.stopping`."""
        import ray

        now = time.monotonic()
        if self._asking is None and not self._stopping and now >= self._next:
            self._asking, self._next = self._channel.is_stopping.remote(), now + _GLANCE
        if self._asking is not None and ray.wait([self._asking], timeout=0)[0]:
            self._stopping, self._asking = ray.get(self._asking), None
        return self._stopping

    def flush(self) -> None:
        """Wait until all messages have arrived."""
        import ray

        if self._told is not None:
            ray.get(self._told)
