"""What is asked of a cluster, and how work goes to its processes and comes back."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from sda_core.errors import ClusterError


@attrs.frozen
class WorkerResources:
    """The workers of a trial or training.

    Attributes:
        number: How many there are.
        cpus: CPUs of each.
        gpus: GPUs of each; None for 1 if there are as many GPUs as workers, else 0.
    """

    number: int
    cpus: float
    gpus: float | None

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each has, by Ray's names."""
        asked = {"CPU": self.cpus, "GPU": self.gpus or 0.0}
        return [{name: value for name, value in asked.items() if value}] * self.number

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.number} workers of {self.cpus:g} CPUs{gpus} each"

    def checked(
        self, keys: str = "--workers, --gpus-per-worker, cluster.worker_cpus"
    ) -> WorkerResources:
        """The same, with the number of GPUs.

        Args:
            keys: Where they were asked for.

        Raises:
            ClusterError: The machines of the cluster cannot have them all at once.
        """
        import ray

        there = ray.cluster_resources().get("GPU", 0.0)
        gpus = float(there >= self.number) if self.gpus is None else self.gpus
        asked = WorkerResources(self.number, self.cpus, gpus)
        capacity = sum(
            min(int(node["Resources"].get(k, 0) / v + 1e-9) for k, v in asked.bundles[0].items())
            for node in ray.nodes()
            if node["Alive"]
        )
        if capacity >= self.number:
            return asked
        raise ClusterError(
            f"asked for {asked}, but {cluster_state()}, which fits {capacity}: ask for fewer or "
            f"smaller ones ({keys}), or give the address of a cluster that has more machines by now"
        )


def cluster_state() -> str:
    """What the cluster has, in words."""
    import ray

    whole, free = ray.cluster_resources(), ray.available_resources()
    cpus, gpus = (
        f"{whole.get(name, 0):g} {name}s ({free.get(name, 0):g} free)" for name in ("CPU", "GPU")
    )
    return f"the cluster has {cpus} and {gpus}"


def put_work(work: object) -> list[Any]:
    """Store work in the cluster, once for all processes.

    Returns:
        Its reference, in a list, so that it is an argument of a task as it is.

    Raises:
        ClusterError: It cannot be pickled.
    """
    import ray

    try:
        return [ray.put(work)]
    except (TypeError, pickle.PicklingError) as error:
        raise ClusterError(f"the work cannot be sent to the cluster: {error}") from error


#: The work that this process did last, by its reference: it is fetched and unpickled once.
_kept: dict[Any, Callable[[Any], Any]] = {}


def get_work(sent: list[Any]) -> Callable[[Any], Any]:
    """The work, in a process of the cluster.

    Raises:
        ClusterError: It cannot be read.
    """
    import ray
    from ray.exceptions import RayError

    (reference,) = sent
    if reference not in _kept:
        _kept.clear()
        try:
            _kept[reference] = ray.get(reference)
        except RayError as error:
            raise ClusterError(
                "a worker cannot read the work; all machines of the cluster need the same "
                f"packages. Ray says: {str(error).strip().splitlines()[-1].strip()}"
            ) from None
    return _kept[reference]


def result_of(reference: Any) -> Any:
    """The result of a task or method.

    Raises:
        RayError: Its process was lost.
        ClusterError: It raised what cannot be pickled.
        Exception: Whatever else it raised.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError, UnserializableException

    try:
        return ray.get(reference)
    except (RayTaskError, UnserializableException) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if not isinstance(cause, RayError):
            raise cause from error
        raise ClusterError(f"an error of a worker cannot be sent back: {cause}") from error


def exit_with_raylet() -> None:
    """End this process as soon as the Ray process that started it is gone: Ray takes seconds."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def hide_gpus() -> None:
    """Let a process without GPUs see none: Ray leaves all visible to it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
