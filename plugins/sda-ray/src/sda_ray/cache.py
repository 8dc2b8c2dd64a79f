"""The cache that a machine has of what is at a URL."""

from __future__ import annotations

import getpass
import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

#: Seconds in which machines remove their caches.
_CLEAN_TIMEOUT = 60.0


def cache_dir(url: str) -> Path:
    """The folder that this machine has for what is at a URL."""
    import ray

    path = _cache_root(url) / ray.get_runtime_context().get_node_id()[:12]
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def clean_caches(url: str) -> None:
    """Remove what the machines of the cluster have of a URL; one that does not answer is left."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(_clean_cache)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    on = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    with suppress(RayError):
        waited = [remote.options(scheduling_strategy=node).remote(url) for node in on]
        ray.wait(waited, num_returns=len(on), timeout=_CLEAN_TIMEOUT)


def _clean_cache(url: str) -> None:
    shutil.rmtree(_cache_root(url), ignore_errors=True)


def _cache_root(url: str) -> Path:
    name = hashlib.sha256(url.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sda-ray-{getpass.getuser()}" / name
