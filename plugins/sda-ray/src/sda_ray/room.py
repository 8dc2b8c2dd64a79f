"""What a group of workers takes, and what a cluster has."""

from __future__ import annotations

from typing import Any

import attrs

from sda_core.errors import ClusterError


@attrs.frozen
class Workers:
    """The processes of a group.

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
        """What each has, in Ray's words."""
        asked = {"CPU": self.cpus, "GPU": self.gpus or 0.0}
        return {name: value for name, value in asked.items() if value}

    @property
    def text(self) -> str:
        """In words."""
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.number} workers of {self.cpus:g} CPUs{gpus} each"

    def there(self) -> str:
        """What there is, in words."""
        import ray

        whole, free = ray.cluster_resources(), ray.available_resources()
        cpus, gpus = (
            f"{whole.get(name, 0):g} {name}s ({free.get(name, 0):g} free)"
            for name in ("CPU", "GPU")
        )
        return f"the cluster has {cpus} and {gpus}"

    def room(self) -> int:
        """How many such workers the machines of the cluster have room for."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            min(int(node.get(name, 0) / value + 1e-9) for name, value in self.resources.items())
            for node in nodes
        )

    def checked(self, keys: str = "--workers, --gpus-per-worker, cluster.worker_cpus") -> Workers:
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
            return Workers.checked(attrs.evolve(asked, gpus=gpus), keys)
        if (room := self.room()) >= self.number or self._may_grow():
            return self
        raise ClusterError(
            f"asked for {self.text}, but {self.there()}, which is room for {room}: ask for fewer "
            f"or smaller ones ({keys}), or give the address of a larger cluster"
        )

    def _may_grow(self) -> bool:
        """Whether a cluster that starts machines when they are needed can have room."""
        from ray._private.state import state  # Ray Train looks there, too

        most = state.get_max_resources_from_cluster_config()
        if not most:
            return False
        return all(self.number * v <= most.get(name, 0) for name, v in self.resources.items())
