"""Run directories for workers on machines that do not have them, by way of ``cluster.storage``.

The directory is uploaded, and each machine downloads what its workers read. The worker of rank 0
works in the cache of its machine, and uploads that with each checkpoint. The directory of the
driver is the only one that lasts: the others are made like it when a training begins.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import socket
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from sda_core.cluster import SyncedDirectory, WorkerDirectory
from sda_core.errors import ClusterError
from sda_core.io.files import file_lock
from sda_ray.cache import cache_dir, clean_caches
from sda_ray.storage import check_url, check_writable, download, newest, upload

#: In the storage, and where a machine has it: the data, which never change.
_DATA = "data"


@attrs.frozen
class WorkerCopy(WorkerDirectory):
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
        with file_lock(here / ".lock", "download", ClusterError, timeout=math.inf):
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
        try:
            upload(self._directory(is_main=True), self.url, exclude=(_DATA,))
        except ClusterError as error:
            warnings.warn(str(error), stacklevel=2)

    def _directory(self, is_main: bool) -> Path:
        return cache_dir(self.storage) / ("rank-0" if is_main else "others") / self.name


@contextmanager
def sync_directory(
    storage: str, directory: Path, exclude: Collection[str], announce: Callable[[str], None]
) -> Iterator[SyncedDirectory]:
    """Sync a run directory with a storage; see :meth:`sda_core.cluster.Cluster.sync_directory`.

    Raises:
        ConfigError: The storage is no place that others see.
        ClusterError: It cannot be written to.
    """
    check_url(storage)
    check_writable(storage)
    # Another directory of this name, of somebody else, may be in use at the same time.
    mark = hashlib.sha256(f"{socket.gethostname()}:{directory}".encode()).hexdigest()[:8]
    place = f"{storage.rstrip('/')}/{directory.name}-{mark}"
    announce(f"{directory} is copied to {place}, if need be")
    upload(directory / _DATA, f"{place}/{_DATA}")
    copy = WorkerCopy(place, f"{directory.parent.name}/{directory.name}".lstrip("/"))
    with synced(copy, directory, exclude) as found:
        try:
            yield found
        finally:
            clean_caches(place)


@contextmanager
def synced(
    copy: WorkerCopy, directory: Path, exclude: Collection[str] = ()
) -> Iterator[SyncedDirectory]:
    """Upload a run directory without its data, and bring back what workers save."""
    last = upload(directory, copy.url, exclude=(_DATA, *exclude))

    def fetch() -> None:
        nonlocal last
        if (name := newest(copy.url)) != last and name is not None:
            download(copy.url, directory)
            last = name

    def try_to_fetch() -> None:
        try:
            fetch()
        except ClusterError as error:  # the training goes on
            warnings.warn(str(error), stacklevel=2)

    try:
        yield copy, try_to_fetch
    finally:
        fetch()
