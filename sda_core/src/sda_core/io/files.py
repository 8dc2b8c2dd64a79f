"""Files of which a reader never sees half, and directories that one process has to itself."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sda_core.errors import SDAError, TrainingError

_TEMPORARY = re.compile(r"\..+\.([^.]+)\.(\d{1,9})\.tmp")
#: Seconds after which a process of another host is taken to have died while it wrote.
_OLD = 86_400.0
#: Errors that say nothing of a file: its disk or network is away, or too many files are open.
_OF_THE_MACHINE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE)
#: Seconds between two tries to get a lock.
_LOCK_POLL_INTERVAL = 0.1


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and rename it to ``path`` when all went well.

    The content is on the disk before the name is, and the name is when this returns.

    Raises:
        OSError: It cannot be written; names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    # A killed process of the same number may have left one, perhaps as a link to another file.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        with suppress(OSError):  # not all file systems can do this for a directory
            sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left of :func:`replace_file` in a directory.

    What this process has left counts too, so it must not be writing there. Whether a process of
    another host lives is not known: what it has left goes when it is more than a day old.
    """
    for path in directory.glob(".*.tmp"):
        name = _TEMPORARY.fullmatch(path.name)
        if name is None:
            continue
        here = name[1] == _host()
        if not _is_another(int(name[2])) if here else _is_old(path):
            path.unlink(missing_ok=True)


@contextmanager
def file_lock(
    path: Path, what: str, error_class: type[SDAError] = TrainingError, *, timeout: float = 0.0
) -> Iterator[None]:
    """Be the only process that does something, by a lock file.

    The kernel releases the lock when the process ends, however it does; the file stays. Where the
    system or the file system has no such locks, there is none.

    Args:
        path: The lock file; it says who has the lock.
        what: What is done, such as ``"training"``.
        error_class: What is raised.
        timeout: Seconds to wait for another process; ``math.inf`` for no limit.

    Raises:
        SDAError: Another process does it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    end = time.monotonic() + timeout
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    file.seek(0)
                    raise error_class(
                        f"another {what} ({file.read().strip()}) is running in {path.parent}: wait "
                        "for it, stop it, or use another directory"
                    ) from error
                time.sleep(_LOCK_POLL_INTERVAL)
            except OSError:  # no locks here
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def disk_usage(path: Path) -> shutil._ntuple_diskusage:
    """Bytes of the disk where a file or directory is, or will be: ``total``, ``used``, ``free``."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists()))


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, or nothing of it.

    Raises:
        OSError: It cannot be written; names the file.
    """
    data = f"{line}\n".encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if (written := file.write(data)) != len(data):
                file.write(data[written:])
        except OSError as error:
            file.truncate(size)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error


def unavailable(error: BaseException) -> tuple[str, str] | None:
    """Why a file cannot be read although it may be whole, and how to mend that; else None."""
    text, number = str(error), getattr(error, "errno", None)
    if isinstance(error, BlockingIOError) or "unable to lock" in text:
        return (
            "it is in use: another process has it open for writing",
            "close it there (a notebook, a copy under way), or wait, and try again",
        )
    if "h5clear" in text:
        return (
            "it is marked as in use: another process has it open for writing, or was killed while "
            "it had",
            "close it there; if none has it, clear the mark with `h5clear -s FILE`, and verify it "
            "with `sda data verify`",
        )
    if isinstance(error, PermissionError) or number == errno.EACCES:
        return "this user may not read it", "ask its owner for the right to"
    if number in _OF_THE_MACHINE:
        return f"the machine cannot read it now ({text})", "mend that, and try again"
    return None


def write_text(path: Path, text: str) -> None:
    """Write a text file and rename it into place."""
    with replace_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file and rename it into place; numbers that are not finite become null."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not JSON, nested too deep, or no object.
    """
    try:
        value = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, and should hold an object")
    return value


def read_events(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a log of JSON objects, and what each holds; None for one that is damaged."""
    found: list[tuple[bytes, dict[str, Any] | None]] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        event = None
        with suppress(ValueError, RecursionError):
            event = json.loads(line) if line.endswith(b"\n") else None
        found.append((line, event if isinstance(event, dict) else None))
    return found


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{part.relative_to(path).as_posix()} {sha256(part)}\n".encode())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON has it, in which numbers are finite: others become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    # Not all systems flush a file that is open for reading only.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    """Name of this machine as a part of file names, without dots."""
    return re.sub(r"[^\w-]", "-", socket.gethostname()) or "localhost"


def _is_old(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > _OLD
    return False


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
