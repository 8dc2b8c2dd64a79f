"""Work that processes of a Ray cluster do as one group: actors in a placement group.

All are started again when one is lost. The driver asks rank 0 for its messages, so that nothing
is between them. Not by Ray Train: its group listens to the whole network, and it keeps what its
workers had when the driver is killed.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from sda_core.cluster import WorkerChannel
from sda_core.errors import ClusterError, StoppedError
from sda_ray.remote import WorkerResources, cluster_state, put_work, result_of
from sda_ray.worker import Worker

#: Seconds between two questions of the driver.
POLL_INTERVAL = 0.1
#: Seconds after which the driver says that it waits for resources.
WAIT_NOTICE = 60.0
#: Seconds in which a worker must answer that it is alive.
_PING_TIMEOUT = 60.0


class _LostError(Exception):
    """A worker was lost, or did not start."""


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
        asked: The workers. In a trial that has a placement group, they are in that one.
        retries: How often all are restarted, when one is lost or they do not start.
        start_timeout: Seconds in which they must have started.
        should_stop: Whether the work is to stop.

    Yields:
        What the worker of rank 0 sends.

    Raises:
        ClusterError: The cluster is too small, or workers do not start or were lost too often.
        StoppedError: The work was to stop before it had begun.
    """
    sent, asked = put_work(work), asked.checked()
    for left in reversed(range(retries + 1)):
        group = _Group(asked, start_timeout, should_stop)
        try:
            yield from group.run(sent)
        except _LostError as lost:
            if not left:
                raise ClusterError(
                    f"{lost}; workers were restarted {retries} times (cluster.retries). Often "
                    "machines are out of memory or busy, or lack a package: use smaller batches "
                    "or fewer workers, or look at the machines"
                ) from lost
            warnings.warn(f"{lost}; all workers are restarted", stacklevel=3)
        else:
            return
        finally:
            group.close()


class _Group:
    """Workers that were started together."""

    def __init__(
        self, asked: WorkerResources, start_timeout: float, should_stop: Callable[[], bool]
    ) -> None:
        from ray.util.placement_group import get_current_placement_group, placement_group

        self.asked, self._start_timeout, self._should_stop = asked, start_timeout, should_stop
        self.workers: list[Any] = []
        current = get_current_placement_group()
        self._owns = current is None
        self._placement: Any = current or placement_group(asked.bundles, strategy="PACK")

    def run(self, sent: list[Any]) -> Generator[Any, None, None]:
        """Start them, and yield what rank 0 sends, to the end."""
        try:
            ended = self._start(sent)
            yield from self._poll(ended)
        except Exception as error:
            if (cause := self._loss(error)) is None:
                raise
            raise _LostError(f"a worker was lost ({cause})") from error

    def close(self) -> None:
        """End them."""
        import ray

        for worker in self.workers:
            ray.kill(worker)
        if self._owns:
            ray.util.remove_placement_group(self._placement)

    def _start(self, sent: list[Any]) -> list[Any]:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Strategy

        since = time.monotonic()
        self._wait(since, lambda: self._placement.wait(POLL_INTERVAL))
        remote: Any = ray.remote(Worker)
        self.workers = [
            remote.options(
                max_concurrency=2,  # one thread for the work, and one for the driver
                num_cpus=self.asked.cpus,
                num_gpus=self.asked.gpus,
                scheduling_strategy=Strategy(self._placement, rank),
            ).remote(self.asked, rank)
            for rank in range(self.asked.number)
        ]
        address = self.workers[0].listen.remote()
        started = [address, *(worker.take.remote() for worker in self.workers)]
        self._wait(
            since,
            lambda: not ray.wait(started, num_returns=len(started), timeout=POLL_INTERVAL)[1],
        )
        for reference in started:
            ray.get(reference)
        return [worker.run.remote(sent, address) for worker in self.workers]

    def _wait(self, since: float, is_ready: Callable[[], bool]) -> None:
        """Wait until something is ready, but not for ever."""
        has_noticed = False
        while not is_ready():
            waited = time.monotonic() - since
            if self._should_stop():
                raise StoppedError(f"stopped before {self.asked} had started")
            if waited > self._start_timeout:
                raise _LostError(
                    f"{self.asked} did not start within {self._start_timeout:g} s "
                    f"(cluster.start_timeout): {cluster_state()}"
                )
            if waited > WAIT_NOTICE and not has_noticed:
                has_noticed = True
                warnings.warn(f"waiting for {self.asked}: {cluster_state()}", stacklevel=6)

    def _poll(self, ended: list[Any]) -> Generator[Any, None, None]:
        import ray

        has_stopped = False
        while ended:
            if not has_stopped and self._should_stop():
                has_stopped = True
                for worker in self.workers:
                    worker.stop.remote()
            done, ended = ray.wait(ended, timeout=POLL_INTERVAL)
            for message in ray.get(self.workers[0].take.remote()):
                yield pickle.loads(message)
            for reference in done:
                result_of(reference)

    def _loss(self, error: Exception) -> str | None:
        """Why an error says that a worker is lost: itself, or because another one is."""
        import ray
        from ray.exceptions import RayError

        if isinstance(error, _LostError | StoppedError):
            return None
        if not isinstance(error, RayError):
            with suppress(RayError):
                ray.get([w.__ray_ready__.remote() for w in self.workers], timeout=_PING_TIMEOUT)
                return None
        return " ".join(str(error).split())
