"""A Ray cluster, which this machine can be by itself.

References:
    - Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018,
      https://arxiv.org/abs/1712.05889
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sda_core.cluster import Cluster, SyncedDirectory, WorkerChannel
from sda_core.config import at_least, component, non_negative, option, positive
from sda_core.errors import ClusterError
from sda_ray.connection import in_own_process_group, knock, on_loopback, private_folder
from sda_ray.distributed import run_distributed
from sda_ray.remote import WorkerResources, get_work, hide_gpus, put_work, result_of
from sda_ray.storage import check_url
from sda_ray.sync import sync_directory

T = TypeVar("T")
R = TypeVar("R")


@component
class Ray(Cluster):
    """A Ray cluster.

    Without an address, one is started on this machine alone, on loopback, and ended afterwards.
    """

    address: str | None = option(
        default=None,
        help="'auto' for the cluster that this machine is part of, HOST:6379 for a head, or "
        "ray://HOST:10001 for another, not for sweeps; this machine by itself if not set",
    )
    cpus: int | None = option(
        default=None, check=at_least(1), help="CPUs used of this machine, without an address"
    )
    gpus: int | None = option(
        default=None, check=at_least(0), help="GPUs used of this machine, without an address"
    )
    task_gpus: float = option(
        default=0.0,
        check=non_negative,
        help="GPUs that a block of trajectories or a batch of members is computed with; with 0.5 "
        "two share one, with 0 the CPU is used",
    )
    worker_cpus: float = option(
        default=1.0, check=positive, help="CPUs of each worker that a model is trained by"
    )
    retries: int = option(
        default=3,
        check=at_least(0),
        help="how often a block or batch is computed again whose process or machine was lost, and "
        "how often a training is resumed from its last checkpoint when it has lost a worker",
    )
    start_timeout: float = option(
        default=1800.0,
        check=positive,
        units="s",
        help="time in which the workers of a training, or a trial of a sweep where none runs, must "
        "have started, waiting for others included, before they are restarted",
    )
    storage: str | None = option(
        default=None,
        help="where trials of `sda sweep` and trainings of `sda train --workers` are kept for "
        "machines that have no disk in common, by a URL such as s3://bucket/path; not set, they "
        "must have the directory of the study or run",
    )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Be connected; a connection that is there already is used, and kept.

        Raises:
            ClusterError: The cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if ray.is_initialized():
            yield
            return
        with private_folder() as folder:
            self._connect(folder)
            try:
                yield
            finally:
                ray.shutdown()

    def _connect(self, folder: str) -> None:
        import ray

        try:
            if self.address is None:
                with on_loopback(), in_own_process_group():
                    ray.init(
                        address="local",
                        _temp_dir=folder,
                        num_cpus=self.cpus,
                        num_gpus=self.gpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _node_ip_address="127.0.0.1",
                        # Ray ends tasks that are out of memory, and by itself tries them for ever.
                        _system_config={"task_oom_retries": self.retries},
                    )
            else:
                knock(self.address)
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"cluster.address = {self.address!r} cannot be reached ({error}): start a head "
                "with `ray start --head`, give another address, or none for this machine by itself"
            ) from error

    def map(
        self, work: Callable[[T], R], tasks: Sequence[T], *, workers: int
    ) -> Generator[tuple[int, R], None, None]:
        """Do ``work`` on each task, one CPU each; see :meth:`sda_core.cluster.Cluster.map`.

        Tasks under way when the iterator is closed end with the connection, or, on one that is
        kept, run to their end and are forgotten. They are not cancelled, since Ray aborts this
        process where it cancels a task that is just finished
        (https://github.com/ray-project/ray/pull/54738).
        """
        if not tasks:
            return
        with self.connected():
            import ray

            self._check_gpus()
            sent = put_work(work)
            remote: Any = ray.remote(_do).options(
                num_cpus=1, num_gpus=self.task_gpus, max_retries=self.retries
            )
            waiting = deque(enumerate(tasks))
            running: dict[Any, int] = {}

            def give() -> None:
                number, task = waiting.popleft()
                running[remote.remote(sent, task, self.task_gpus > 0)] = number

            for _ in range(min(workers, len(waiting))):
                give()
            while running:
                (reference,), _ = ray.wait(list(running), num_returns=1)
                number = running.pop(reference)
                result = self._result(reference)
                del reference  # so that the cluster can forget the result
                if waiting:
                    give()
                yield number, result
                del result  # before the next one comes

    def run_distributed(
        self,
        work: Callable[[WorkerChannel], None],
        *,
        workers: int,
        gpus_per_worker: float | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Any, None, None]:
        """Do ``work`` as a group; see :meth:`sda_core.cluster.Cluster.run_distributed`."""
        asked = WorkerResources(workers, self.worker_cpus, gpus_per_worker)
        with self.connected():
            yield from run_distributed(work, asked, self.retries, self.start_timeout, should_stop)

    def sync_directory(
        self,
        directory: Path,
        *,
        exclude: Collection[str] = (),
        announce: Callable[[str], None] = lambda line: None,
    ) -> AbstractContextManager[SyncedDirectory]:
        """Sync a directory, by ``storage``; see :meth:`sda_core.cluster.Cluster.sync_directory`."""
        if self.storage is None:
            return super().sync_directory(directory)
        check_url(self.storage)
        return self._synced(self.storage, directory, exclude, announce)

    @contextmanager
    def _synced(
        self,
        storage: str,
        directory: Path,
        exclude: Collection[str],
        announce: Callable[[str], None],
    ) -> Iterator[SyncedDirectory]:
        with self.connected(), sync_directory(storage, directory, exclude, announce) as synced:
            yield synced

    def _check_gpus(self) -> None:
        import ray

        there = ray.cluster_resources().get("GPU", 0.0)
        if self.address is None and self.task_gpus > there:
            raise ClusterError(
                f"cluster.task_gpus = {self.task_gpus}, but this machine has {there:g} GPUs for "
                "Ray: set it to 0, or give the address of a cluster that has some"
            )

    def _result(self, reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return result_of(reference)
        except RayError as error:
            raise ClusterError(
                f"a task was lost, and {self.retries} retries of it (cluster.retries); often it "
                "is out of memory: use fewer workers, or machines with more of it. Ray says: "
                f"{error}"
            ) from error


def _do(sent: list[Any], task: Any, with_gpu: bool) -> Any:
    """Do work on a task, in a process of the cluster."""
    if not with_gpu:
        hide_gpus()
    return get_work(sent)(task)
