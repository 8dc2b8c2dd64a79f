"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` when all went well.

    The content is on the disk before the name is, and the name is when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A killed process of the same number may have left one, perhaps as a link to another file.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        with suppress(OSError):  # not all file systems can do this for a directory
            _sync(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left of :func:`replace_file` in a directory.

    What this process has left counts too, so it must not be writing there.
    """
    for path in directory.glob(".*.tmp"):
        name = _TEMPORARY.fullmatch(path.name)
        if name and not _is_another(int(name[1])):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file and rename it into place."""
    with replace_file(path) as temporary:
        temporary.write_text(text)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_another(process: int) -> bool:
    """Whether another process has this number."""
    if process == os.getpid():
        return False
    if sys.platform == "win32":  # where signal 0 is none
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
