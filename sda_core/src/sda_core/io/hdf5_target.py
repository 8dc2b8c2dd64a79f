"""A file for HDF5 to write to, which sees no error of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HDF5Target:
    """A new file, as what h5py takes in place of a path.

    HDF5 crashes the process when it cannot write what it still has as a file is closed. So the
    first error is kept for :meth:`check`, and what is written after it is dropped.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error, if there was one.

        Raises:
            OSError: Something could not be written.
        """
        if self._error is not None:
            raise self._error

    def write(self, data: memoryview) -> int:
        """Write."""
        rest = memoryview(data).cast("B")
        try:
            while self._error is None and rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Read, as h5py wants to find it."""
        return self._file.read(size) or b""

    def readinto(self, buffer: memoryview) -> int:
        """Read; zeros in the place of what could not be written."""
        count = self._file.readinto(buffer) or 0
        buffer[count:] = bytes(len(buffer) - count)
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Change the size."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def hdf5_target(path: Path) -> Iterator[HDF5Target]:
    """A file for HDF5 to write to, and to close, within.

    Raises:
        OSError: Something could not be written.
    """
    target = HDF5Target(path)
    try:
        yield target
    finally:
        target.close()
        target.check()
