"""A run directory as the processes of a group have it, which may be on other machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import attrs


class Folder(ABC):
    """A run directory that was lent to a group of processes.

    All of them read the folder ``data`` in it. Whatever else is there belongs to the one that
    leads, which alone writes.
    """

    @abstractmethod
    def opened(self, *, leads: bool) -> AbstractContextManager[Path]:
        """Have it, in a process of the group; what the one that leads wrote is saved at the end.

        Args:
            leads: Whether this is the process that leads.

        Raises:
            ClusterError: It cannot be had, or what was written cannot be saved.
        """

    @abstractmethod
    def save(self) -> None:
        """Save what the process that leads has written, for when the group begins anew.

        Where that cannot be done it warns: there is another time.
        """


@attrs.frozen
class SameFolder(Folder):
    """The directory itself, at the same path on all machines.

    Attributes:
        directory: The directory.
    """

    directory: Path

    def opened(self, *, leads: bool) -> AbstractContextManager[Path]:
        """Have it; see :meth:`Folder.opened`."""
        return nullcontext(self.directory)

    def save(self) -> None:
        """Nothing is to be done."""


#: A directory as processes have it, and what brings to whoever lent it what they have saved.
Lent = tuple[Folder, Callable[[], None]]
