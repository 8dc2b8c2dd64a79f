"""Work that processes of a Ray cluster do as one group, by Ray Train.

Ray Train starts the processes, and all of them anew when one is lost. It is conducted by a process
of its own, so that it can be ended, and its log, its signals and its settings are nobody else's.
What the process of rank 0 tells goes through a second one, the channel. Both hold no CPU.
"""

from __future__ import annotations

import _thread
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from sda_core.cluster import Link
from sda_core.errors import ClusterError
from sda_ray.member import take_part
from sda_ray.room import Workers

#: Settings of Ray Train, which reads them when it is imported. Results and logs are ours, workers
#: stay in their folder, and a loss is noticed within about a second.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
#: Seconds between two looks at the channel, by whoever asked and by the conductor.
_GLANCE, _FAR_GLANCE = 0.1, 1.0
#: Seconds after which whoever asked is told that the group waits for its processes.
_LONG = 60.0
#: Seconds that a group has to end by itself, and after which what nobody has ended ends.
_GRACE, _FORGOTTEN = 30.0, 60.0


def together(
    work: Callable[[Link], None], asked: Workers, retries: int, stopping: Callable[[], bool]
) -> Generator[Any, None, None]:
    """Do work in a group of processes; see :meth:`sda_core.cluster.Cluster.together`.

    Args:
        work: What is done.
        asked: The processes.
        retries: How often all begin anew when one is lost.
        stopping: Whether the work is to stop.

    Yields:
        What the process of rank 0 tells.

    Raises:
        ClusterError: The cluster has no room, or processes were lost too often.
    """
    import ray
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        sent = ray.put(work)
    except (TypeError, pickle.PicklingError) as error:
        raise ClusterError(f"the work cannot be sent to the cluster: {error}") from error
    # Where whoever asked is, and on the head: no other machine can end the group by its loss.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote
    conductor = remote(num_cpus=0, scheduling_strategy=here)(_Conductor).remote()
    channel = remote(
        num_cpus=0,
        resources={HEAD_NODE_RESOURCE_NAME: 0.001},
        scheduling_strategy="DEFAULT",
        lifetime="detached",  # it outlives whoever asked, to clean up
    )(_Channel).remote()
    ended = conductor.conduct.remote(channel, [sent], asked, retries)
    channel.clean_up_after.remote([ended])
    try:
        yield from _follow(channel, ended, asked, stopping)
    except RayError as error:
        raise ClusterError(
            "what conducts the workers was lost, so they are ended; the same command goes on from "
            f"what they have saved. Ray says: {' '.join(str(error).split())}"
        ) from error
    finally:
        with suppress(RayError):
            ray.get(channel.leave.remote())
        ray.wait([ended], timeout=_GRACE)
        for actor in (conductor, channel):
            ray.kill(actor)


def _follow(
    channel: Any, ended: Any, asked: Workers, stopping: Callable[[], bool]
) -> Generator[Any, None, None]:
    """Give what rank 0 tells, and say what goes wrong, to the end."""
    import ray
    from ray.exceptions import RayTaskError

    since, told_of_waiting, told_to_stop = time.monotonic(), False, False
    while True:
        if not told_to_stop and stopping():
            told_to_stop = True
            channel.stop.remote()
        is_over = bool(ray.wait([ended], timeout=_GLANCE)[0])
        news: _News = ray.get(channel.take.remote())
        for message in news.messages:
            yield pickle.loads(message)
        if news.error is not None:
            raise pickle.loads(news.error)
        for loss in news.losses:
            since, told_of_waiting = time.monotonic(), False
            warnings.warn(f"a worker was lost ({loss})", stacklevel=3)
        if is_over:
            try:
                ray.get(ended)
            except RayTaskError as error:
                raise error.cause from error
            return
        if not (news.is_there or told_of_waiting) and time.monotonic() > since + _LONG:
            told_of_waiting = True
            warnings.warn(f"waiting for {asked.text}: {asked.there()}", stacklevel=3)


@attrs.frozen
class _News:
    """What whoever asked has not heard yet.

    Attributes:
        messages: What rank 0 tells, pickled.
        error: What the work raised, pickled.
        losses: Why processes were lost.
        is_there: Whether the group is at work.
    """

    messages: list[bytes]
    error: bytes | None
    losses: list[str]
    is_there: bool


class _Channel:
    """Between a group and whoever asked for it; an actor.

    Only the group that began last is heard: one that was given up may have messages on their way.
    """

    def __init__(self) -> None:
        self._group, self._members = "", dict[int, Any]()
        self._messages, self._losses = list[bytes](), list[str]()
        self._error: bytes | None = None
        self._place: Any = None
        self._stopping = self._left = False

    # --- for the group ---

    def join(self, group: str, rank: int, actor: list[Any], place: Any) -> None:
        if group != self._group:
            self._group, self._members, self._place = group, {}, place
        self._members[rank] = actor

    def members(self) -> list[list[Any]]:
        return list(self._members.values())

    def tell(self, group: str, message: bytes) -> None:
        if group == self._group:
            self._messages.append(message)

    def fail(self, group: str, error: bytes) -> None:
        if group == self._group and self._error is None:
            self._error = error

    def is_stopping(self) -> bool:
        return self._stopping

    # --- for its conductor ---

    def lose(self, cause: str) -> None:
        self._losses.append(cause)
        self._group, self._members = "", {}

    def is_left(self) -> bool:
        return self._left

    # --- for whoever asked ---

    def take(self) -> _News:
        news = _News(self._messages, self._error, self._losses, bool(self._group))
        self._messages, self._losses = [], []
        return news

    def stop(self) -> None:
        self._stopping = True

    def leave(self) -> None:
        self._left = True

    def clean_up_after(self, ended: list[Any]) -> None:
        threading.Thread(target=self._clean_up_after, args=ended, daemon=True).start()

    def _clean_up_after(self, ended: Any) -> None:
        """Free what the group holds, which Ray keeps if its conductor was killed; then end."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            ray.get(ended)
        if self._place is not None:
            ray.util.remove_placement_group(self._place)
        time.sleep(_FORGOTTEN)  # by then whoever asked has ended this process, or is lost
        ray.kill(ray.get_runtime_context().current_actor)


class _Conductor:
    """Starts the group, and all of it anew; an actor."""

    def conduct(self, channel: Any, sent: list[Any], asked: Workers, retries: int) -> None:
        """Have the work done.

        Raises:
            ClusterError: The cluster has no room, or processes were lost too often.
        """
        asked = asked.checked()
        os.environ.update(_ENVIRONMENT)
        from sda_ray.trainer import train_together

        threading.Thread(target=_interrupt_when_left, args=(channel,), daemon=True).start()
        train_together(channel, partial(take_part, channel, sent, asked), asked, retries)


def _interrupt_when_left(channel: Any) -> None:
    """Do what Ctrl-C does to Ray Train, once nobody wants the group any more."""
    import ray

    while not ray.get(channel.is_left.remote()):
        time.sleep(_FAR_GLANCE)
    _thread.interrupt_main()  # processes of Ray get no signal SIGINT
