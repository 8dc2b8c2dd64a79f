"""Run directories for workers on machines that do not have them, by way of ``cluster.storage``.

The directory is uploaded, and each machine downloads what its workers read, to a cache. The worker
of rank 0 works in the cache of its machine, and uploads that with each checkpoint. The directory
of the driver is the only one that lasts: the others are made like it when a training begins.
"""

from __future__ import annotations

import getpass
import hashlib
import math
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import attrs

from sda_core.cluster import SyncedDirectory, WorkerDirectory
from sda_core.errors import ClusterError
from sda_core.io.files import file_lock
from sda_ray.storage import check_writable, download, newest, upload

#: In the storage, and where a machine has it: the data, which never change.
_DATA = "data"
#: Seconds in which machines remove their caches.
_CLEAN_TIMEOUT = 60.0


@attrs.frozen
class RemoteDirectory(WorkerDirectory):
    """A run directory in a storage.

    Attributes:
        storage: URL of what machines keep in one cache.
        name: Where the run directory is there. Its last two names are those of the directory,
            which trackers go by.
        data: Where its data are there.
    """

    storage: str
    name: str
    data: str = _DATA

    @property
    def url(self) -> str:
        """Where copies of the directory are."""
        return f"{self.storage}/{self.name}"

    @contextmanager
    def opened(self, *, is_main: bool) -> Iterator[Path]:
        """Fetch it; see :meth:`sda_core.cluster.WorkerDirectory.opened`."""
        here = cache_dir(self.storage)
        directory, data = self._directory(is_main), here / self.data
        with lock_cache(here):
            download(f"{self.storage}/{self.data}", data)
            if is_main:
                shutil.rmtree(directory, ignore_errors=True)  # a killed process has left it
                download(self.url, directory)
        directory.mkdir(parents=True, exist_ok=True)
        if data.is_dir() and not (directory / _DATA).exists():
            (directory / _DATA).symlink_to(data)
        try:
            yield directory
        finally:
            if is_main:
                upload(directory, self.url, exclude=(_DATA,))
                shutil.rmtree(directory)

    def upload(self) -> None:
        """Upload what rank 0 has; see :meth:`sda_core.cluster.WorkerDirectory.upload`."""
        with warning_of_failures():
            upload(self._directory(is_main=True), self.url, exclude=(_DATA,))

    def _directory(self, is_main: bool) -> Path:
        return cache_dir(self.storage) / ("rank-0" if is_main else "others") / self.name


@contextmanager
def sync_directory(
    storage: str, directory: Path, exclude: Collection[str], announce: Callable[[str], None]
) -> Iterator[SyncedDirectory]:
    """Sync a run directory with a storage; see :meth:`sda_core.cluster.Cluster.sync_directory`.

    Raises:
        ClusterError: The storage cannot be written to.
    """
    check_writable(storage)
    # Another directory of this name, of somebody else, may be in use at the same time.
    mark = hashlib.sha256(f"{socket.gethostname()}:{directory}".encode()).hexdigest()[:8]
    place = f"{storage.rstrip('/')}/{directory.name}-{mark}"
    announce(f"{directory} is copied to {place}, if need be")
    upload(directory / _DATA, f"{place}/{_DATA}")
    remote = RemoteDirectory(place, f"{directory.parent.name}/{directory.name}".lstrip("/"))
    with synced(remote, directory, exclude) as fetch:
        try:
            yield remote, fetch
        finally:
            clean_caches(place)


@contextmanager
def synced(
    remote: RemoteDirectory, directory: Path, exclude: Collection[str] = ()
) -> Iterator[Callable[[], None]]:
    """Upload a run directory without its data, and bring back what workers save.

    Yields:
        A function that brings back what there is by now; if that fails, there is a warning.
    """
    last = upload(directory, remote.url, exclude=(_DATA, *exclude))

    def fetch() -> None:
        nonlocal last
        if (name := newest(remote.url)) != last and name is not None:
            download(remote.url, directory)
            last = name

    def try_to_fetch() -> None:
        with warning_of_failures():
            fetch()

    try:
        yield try_to_fetch
    finally:
        fetch()


@contextmanager
def warning_of_failures() -> Iterator[None]:
    """Warn where a storage fails, for there is another time."""
    try:
        yield
    except ClusterError as error:
        warnings.warn(str(error), stacklevel=4)


def cache_dir(url: str) -> Path:
    """The folder that this machine has for what is at a URL."""
    import ray

    path = _cache_root(url) / ray.get_runtime_context().get_node_id()[:12]
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def lock_cache(directory: Path) -> AbstractContextManager[None]:
    """Wait until no other process of this machine fills its cache."""
    return file_lock(directory / ".lock", "download", ClusterError, timeout=math.inf)


def clean_caches(url: str) -> None:
    """Remove what the machines of the cluster have of a URL; one that does not answer is left."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

    remote = ray.remote(num_cpus=0, max_retries=0)(_clean_cache)
    nodes = [OnNode(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    with suppress(RayError):
        cleaned = [remote.options(scheduling_strategy=node).remote(url) for node in nodes]
        ray.wait(cleaned, num_returns=len(cleaned), timeout=_CLEAN_TIMEOUT)


def _clean_cache(url: str) -> None:
    shutil.rmtree(_cache_root(url), ignore_errors=True)


def _cache_root(url: str) -> Path:
    name = hashlib.sha256(url.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sda-ray-{getpass.getuser()}" / name
