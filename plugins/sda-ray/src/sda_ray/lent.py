"""Run directories for groups on machines that do not have them, by way of ``cluster.storage``.

What is there is copied to the storage, from where each machine takes what its processes read. The
process that leads works in a folder of its machine, and copies that to the storage. The directory
of whoever asked is the only one that lasts: the others are made like it when a training begins.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sda_core.cluster import Folder, Lent
from sda_core.errors import ClusterError
from sda_ray.mirror import Mirror, check_url
from sda_ray.scratch import alone, clean, home

if TYPE_CHECKING:
    from sda_ray.cluster import Ray

#: In the storage, and where a machine has it: the data, where they are no part of the directory.
_DATA = "data"


@attrs.frozen
class Copy(Folder):
    """A run directory in a storage.

    Attributes:
        storage: URL of what machines keep in one folder.
        name: Where the run directory is there. Its last two names are those of the directory,
            which trackers go by.
    """

    storage: str
    name: str

    @property
    def mirror(self) -> Mirror:
        """The copy."""
        return Mirror(f"{self.storage}/{self.name}")

    @contextmanager
    def opened(self, *, leads: bool) -> Iterator[Path]:
        """Fetch it; see :meth:`sda_core.cluster.Folder.opened`."""
        directory = self._directory(leads)
        with alone(home(self.storage)):
            data = home(self.storage) / _DATA
            is_apart = Mirror(f"{self.storage}/{_DATA}").pull(data)
            if leads:
                shutil.rmtree(directory, ignore_errors=True)  # a killed process has left it
            if leads or not is_apart:
                self.mirror.pull(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if is_apart and not (directory / _DATA).exists():
            (directory / _DATA).symlink_to(data)
        try:
            yield directory
        finally:
            if leads:
                self.mirror.push(directory)
                shutil.rmtree(directory)

    def save(self) -> None:
        """Copy what the one that leads has; see :meth:`sda_core.cluster.Folder.save`."""
        try:
            self.mirror.push(self._directory(leads=True))
        except ClusterError as error:
            warnings.warn(str(error), stacklevel=2)

    def _directory(self, leads: bool) -> Path:
        return home(self.storage) / ("leading" if leads else "following") / self.name


@contextmanager
def lend(
    cluster: Ray, directory: Path, leave_out: Collection[str], say: Callable[[str], None]
) -> Iterator[Lent]:
    """Lend a run directory, by the storage of a cluster; see :meth:`sda_core.cluster.Cluster.lend`.

    Raises:
        ConfigError: The storage is no place that others see.
        ClusterError: It cannot be written to.
    """
    storage = cluster.storage or ""
    check_url(storage)
    with cluster.connected():
        Mirror(storage).check()
        # Another directory of this name, of somebody else, may be in use at the same time.
        mark = hashlib.sha256(f"{socket.gethostname()}:{directory}".encode()).hexdigest()[:8]
        place = f"{storage.rstrip('/')}/{directory.name}-{mark}"
        say(f"{directory} is copied to {place}, if need be")
        Mirror(f"{place}/{_DATA}").push(directory / _DATA)
        copy = Copy(place, f"{directory.parent.name}/{directory.name}".lstrip("/"))
        copy.mirror.push(directory, {_DATA, *leave_out}, is_fetched=True)
        with ExitStack() as at_last:
            at_last.callback(clean, place)
            at_last.callback(copy.mirror.pull, directory)
            yield copy, partial(_fetch, copy.mirror, directory)


def _fetch(copy: Mirror, directory: Path) -> None:
    """Bring what is saved; if that fails, the training goes on."""
    try:
        copy.pull(directory)
    except ClusterError as error:
        warnings.warn(str(error), stacklevel=2)
