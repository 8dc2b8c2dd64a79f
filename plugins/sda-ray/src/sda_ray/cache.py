"""The cache that a machine has of what is at a URL."""

from __future__ import annotations

import getpass
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sda_core.errors import ClusterError

#: Seconds in which machines remove their caches.
_CLEAN_TIMEOUT = 60.0


def cache_dir(url: str) -> Path:
    """The folder that this machine has for what is at a URL."""
    import ray

    path = _cache_root(url) / ray.get_runtime_context().get_node_id()[:12]
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


@contextmanager
def file_lock(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Wait until no other process of this machine has a lock file, and have it.

    Args:
        path: The lock file.
        timeout: Seconds after which the wait ends; None for no limit.

    Raises:
        ClusterError: Another process has it still.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    end = None if timeout is None else time.monotonic() + timeout
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if end is not None and time.monotonic() > end:
                    raise ClusterError(
                        f"another process has {path} after {timeout:g} s: end it, and try again"
                    ) from error
                time.sleep(0.1)
            except OSError:  # no locks on this file system
                break
        yield


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
