"""A run directory as workers have it, which may be on other machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import attrs


class WorkerDirectory(ABC):
    """A run directory that is synchronized with the workers of a group.

    All of them read the folder ``data`` in it. Whatever else is there belongs to rank 0, which
    alone writes.
    """

    @abstractmethod
    def opened(self, *, is_main: bool) -> AbstractContextManager[Path]:
        """Open it in a worker; what rank 0 has written is uploaded at the end.

        Args:
            is_main: Whether this is rank 0.

        Raises:
            ClusterError: It cannot be downloaded, or what was written cannot be uploaded.
        """

    @abstractmethod
    def upload(self) -> None:
        """Upload what rank 0 has written, for when the workers are restarted.

        Warns where that cannot be done: there is another time.
        """


@attrs.frozen
class SharedDirectory(WorkerDirectory):
    """The directory itself, at the same path on all machines.

    Attributes:
        directory: The directory.
    """

    directory: Path

    def opened(self, *, is_main: bool) -> AbstractContextManager[Path]:
        """Open it; see :meth:`WorkerDirectory.opened`."""
        return nullcontext(self.directory)

    def upload(self) -> None:
        """Nothing is to be done."""


#: A directory as workers have it, and what downloads to the driver what they have uploaded.
SyncedDirectory = tuple[WorkerDirectory, Callable[[], None]]
