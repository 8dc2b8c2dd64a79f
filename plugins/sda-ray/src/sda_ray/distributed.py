"""Work that processes of a Ray cluster do as one group, by Ray Train.

Ray Train starts the workers, and all of them anew when one is lost. It is called by a process of
its own, the runner, so that it can be ended, and its log, its signals and its settings are nobody
else's. Between the workers and the driver is an actor, the channel. Both hold no CPU.
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

from sda_core.cluster import WorkerChannel
from sda_core.errors import ClusterError
from sda_ray.channel import Channel, News
from sda_ray.resources import WorkerResources
from sda_ray.worker import worker_main

#: Settings of Ray Train, which reads them when it is imported. Results and logs are ours, workers
#: stay in their folder, and a loss is noticed within about a second.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
#: Seconds between two polls of the channel, by the driver and by the runner.
POLL_INTERVAL, RUNNER_POLL_INTERVAL = 0.1, 1.0
#: Seconds after which the driver says that it waits for resources.
WAIT_NOTICE = 60.0
#: Seconds in which workers must end by themselves.
GRACE_PERIOD = 30.0


class _NotStarted(Exception):  # noqa: N818 - it is no error yet
    """The workers did not start in time."""


def run_distributed(
    work: Callable[[WorkerChannel], None],
    asked: WorkerResources,
    retries: int,
    start_timeout: float,
    should_stop: Callable[[], bool],
) -> Generator[Any, None, None]:
    """Do work in a group of processes; see :meth:`sda_core.cluster.Cluster.run_distributed`.

    Args:
        work: What is done.
        asked: The workers.
        retries: How often all are started anew, when one is lost or they do not start.
        start_timeout: Seconds in which they must have started.
        should_stop: Whether the work is to stop.

    Yields:
        What the worker of rank 0 sends.

    Raises:
        ClusterError: The cluster is too small, or workers do not start or were lost too often.
    """
    import ray

    try:
        sent = ray.put(work)
    except (TypeError, pickle.PicklingError) as error:
        raise ClusterError(f"the work cannot be sent to the cluster: {error}") from error
    told = f"{asked.text} did not start within {start_timeout:g} s (cluster.start_timeout)"
    for _ in range(retries + 1):
        try:
            yield from _attempt(sent, asked, retries, start_timeout, should_stop)
        except _NotStarted:
            warnings.warn(f"{told}: {asked.available()}", stacklevel=3)
        else:
            return
    raise ClusterError(
        f"{told}, {retries + 1} times (cluster.retries); {asked.available()}: wait until others "
        "have ended, ask for fewer or smaller workers, or look at the machines"
    )


def _attempt(
    sent: Any,
    asked: WorkerResources,
    retries: int,
    start_timeout: float,
    should_stop: Callable[[], bool],
) -> Generator[Any, None, None]:
    import ray
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Where the driver is, and on the head: no other machine can end the group by its loss.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote
    runner = remote(num_cpus=0, scheduling_strategy=here)(_Runner).remote()
    channel = remote(
        num_cpus=0,
        resources={HEAD_NODE_RESOURCE_NAME: 0.001},
        scheduling_strategy="DEFAULT",
        lifetime="detached",  # it outlives a lost driver, to clean up
    )(Channel).remote()
    ended = runner.run.remote(channel, [sent], asked, retries)
    channel.clean_up_after.remote([ended])
    try:
        yield from _poll(channel, ended, asked, start_timeout, should_stop)
    except RayError as error:
        raise ClusterError(
            "the process that runs the workers was lost, so they are ended; the same command "
            f"resumes from what they have saved. Ray says: {' '.join(str(error).split())}"
        ) from error
    finally:
        with suppress(RayError):
            ray.get(channel.close.remote())
        ray.wait([ended], timeout=GRACE_PERIOD)
        for actor in (runner, channel):
            ray.kill(actor)


def _poll(
    channel: Any,
    ended: Any,
    asked: WorkerResources,
    start_timeout: float,
    should_stop: Callable[[], bool],
) -> Generator[Any, None, None]:
    """Give what rank 0 sends, and say what goes wrong, to the end."""
    import ray
    from ray.exceptions import RayTaskError

    since, has_noticed, has_stopped = time.monotonic(), False, False
    while True:
        if not has_stopped and should_stop():
            has_stopped = True
            channel.stop.remote()
        is_over = bool(ray.wait([ended], timeout=POLL_INTERVAL)[0])
        news: News = ray.get(channel.take.remote())
        for message in news.messages:
            yield pickle.loads(message)
        if news.error is not None:
            raise pickle.loads(news.error)
        for loss in news.losses:
            since, has_noticed = time.monotonic(), False
            warnings.warn(f"a worker was lost ({loss})", stacklevel=3)
        if is_over:
            try:
                ray.get(ended)
            except RayTaskError as error:
                raise error.cause from error
            return
        waited = 0.0 if news.is_running else time.monotonic() - since
        if waited > start_timeout:
            raise _NotStarted
        if waited > WAIT_NOTICE and not has_noticed:
            has_noticed = True
            warnings.warn(f"waiting for {asked.text}: {asked.available()}", stacklevel=3)


class _Runner:
    """Calls Ray Train; an actor."""

    def run(self, channel: Any, sent: list[Any], asked: WorkerResources, retries: int) -> None:
        """Have the work done.

        Raises:
            ClusterError: The cluster is too small, or workers were lost too often.
        """
        asked = asked.checked()
        os.environ.update(_ENVIRONMENT)
        from sda_ray.trainer import fit

        threading.Thread(target=_interrupt_when_closed, args=(channel,), daemon=True).start()
        fit(channel, partial(worker_main, channel, sent, asked), asked, retries)


def _interrupt_when_closed(channel: Any) -> None:
    """Do what Ctrl-C does to Ray Train, once nobody wants the workers any more."""
    import ray

    while not ray.get(channel.is_closed.remote()):
        time.sleep(RUNNER_POLL_INTERVAL)
    _thread.interrupt_main()  # processes of Ray get no signal SIGINT
