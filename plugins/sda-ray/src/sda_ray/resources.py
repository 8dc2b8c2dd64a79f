"""What workers need, and what a cluster has."""

from __future__ import annotations

import os
import threading
import time
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
    def resources(self) -> dict[str, float]:
        """What each has, by Ray's names."""
        asked = {"CPU": self.cpus, "GPU": self.gpus or 0.0}
        return {name: value for name, value in asked.items() if value}

    @property
    def text(self) -> str:
        """The same in words."""
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.number} workers of {self.cpus:g} CPUs{gpus} each"

    def available(self) -> str:
        """What the cluster has, in words."""
        import ray

        whole, free = ray.cluster_resources(), ray.available_resources()
        cpus, gpus = (
            f"{whole.get(name, 0):g} {name}s ({free.get(name, 0):g} free)"
            for name in ("CPU", "GPU")
        )
        return f"the cluster has {cpus} and {gpus}"

    def capacity(self) -> int:
        """How many such workers fit on the machines of the cluster."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(node.get(name, 0) / value + 1e-9) for name, value in self.resources.items())
            for node in nodes
        )

    def checked(
        self, keys: str = "--workers, --gpus-per-worker, cluster.worker_cpus"
    ) -> WorkerResources:
        """The same, with the number of GPUs.

        Args:
            keys: Where they were asked for.

        Raises:
            ClusterError: The cluster will never have room for them.
        """
        import ray

        if self.gpus is None:
            there = ray.cluster_resources().get("GPU", 0.0)
            asked: Any = self
            gpus = 1.0 if there >= self.number else 0.0
            return WorkerResources.checked(attrs.evolve(asked, gpus=gpus), keys)
        if (capacity := self.capacity()) >= self.number or self._may_grow():
            return self
        raise ClusterError(
            f"asked for {self.text}, but {self.available()}, which is room for {capacity}: ask for "
            f"fewer or smaller ones ({keys}), or give the address of a larger cluster"
        )

    def _may_grow(self) -> bool:
        """Whether a cluster that starts machines when they are needed can have room."""
        from ray._private.state import state  # Ray Train looks there, too

        most = state.get_max_resources_from_cluster_config()
        if not most:
            return False
        return all(self.number * v <= most.get(name, 0) for name, v in self.resources.items())


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
