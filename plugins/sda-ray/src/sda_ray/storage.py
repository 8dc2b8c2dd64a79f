"""Directories at URLs that fsspec understands.

A directory is uploaded as a folder of its own each time, which is never changed; its marker is
written last. A reader takes the newest folder that has one, wherever the writer was killed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sda_core.config import nearest
from sda_core.errors import ClusterError, ConfigError, SDAError
from sda_core.io.files import sync, write_text

#: The file that says that a folder is complete, and of what it is a copy.
_MARKER = ".complete"
#: Complete folders that are kept: the newest, and the one that may be being read.
_KEPT = 2


def upload(source: Path, url: str, exclude: Collection[str] = ()) -> str:
    """Upload a directory, unless the newest complete copy is of the same files.

    Links and names with a dot in front are left out, and files that vanish meanwhile.

    Args:
        source: The directory.
        url: Where its copies are.
        exclude: Names in it that are left out, too.

    Returns:
        The name of the folder that has the copy.

    Raises:
        ClusterError: That cannot be done; earlier copies are as they were.
    """
    files = _walk(source, exclude)
    state = "\n".join(files.values())
    with _explained(url, f"cannot be given a copy of {source}"):
        system, path = _open(url)
        complete = _complete(system, path)
        if complete and system.cat_file(f"{path}/{complete[-1]}/{_MARKER}").decode() == state:
            return complete[-1]
        index = 1 + max((int(name.partition("-")[0]) for name in _names(system, path)), default=0)
        name = f"{index:06d}-{uuid.uuid4().hex[:8]}"
        for folder in {os.path.dirname(file) for file in files} | {""}:
            system.makedirs(f"{path}/{name}/{folder}".rstrip("/"), exist_ok=True)
        for file in files:
            with suppress(FileNotFoundError):
                system.put_file(str(source / file), f"{path}/{name}/{file}")
        system.pipe_file(f"{path}/{name}/{_MARKER}", state.encode())
    for old in [*complete, name][:-_KEPT]:
        with suppress(Exception):  # the next upload tries again
            system.rm_file(f"{path}/{old}/{_MARKER}")
            system.rm(f"{path}/{old}", recursive=True)
    return name


def newest(url: str) -> str | None:
    """The name of the newest complete copy; None if there is none.

    Raises:
        ClusterError: The URL cannot be reached.
    """
    with _explained(url, "cannot be read"):
        return next(reversed(_complete(*_open(url))), None)


def download(url: str, target: Path) -> bool:
    """Make a directory like the newest complete copy, folder by folder; other names in it stay.

    Args:
        url: Where the copies are.
        target: The directory; nothing is done if it has this copy already.

    Returns:
        Whether there is a complete copy.

    Raises:
        ClusterError: It cannot be fetched; the directory is as it was.
    """
    name = newest(url)
    record = target / f".{hashlib.sha256(url.encode()).hexdigest()[:12]}.downloaded"
    if name is None or (record.is_file() and record.read_text() == name):
        return name is not None
    incoming = target / ".incoming"
    with _explained(url, f"cannot be copied to {target}"):
        system, path = _open(url)
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        system.get(f"{path}/{name}/", f"{incoming}/", recursive=True)
        (incoming / _MARKER).unlink()
        for file in incoming.rglob("*"):
            if file.is_file():
                sync(file)
        # Records before the checkpoints that go with them, should this process be killed here.
        for new in sorted(incoming.iterdir(), key=Path.is_dir):
            _replace(new, target / new.name)
        shutil.rmtree(incoming)
    write_text(record, name)
    return True


def check_url(url: str) -> None:
    """Refuse a URL that no file system is for; nothing is connected to.

    Raises:
        ConfigError: There is no such protocol, or no package for it.
    """
    from fsspec import get_filesystem_class
    from fsspec.registry import known_implementations

    protocol, mark, _ = url.partition("://")
    if not mark or protocol == "memory":
        raise ConfigError(
            f"cluster.storage = {url!r} is no place that other machines see: give a URL such as "
            "s3://bucket/path, gs://bucket/path, sftp://host/path or file:///shared/path"
        )
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        raise ConfigError(
            f"cluster.storage = {url!r}: {error}; pip install {package}, here and on all machines "
            "of the cluster"
        ) from error
    except ValueError as error:
        known = nearest(protocol, known_implementations)
        hint = f", did you mean {known}://?" if known else ""
        raise ConfigError(
            f"cluster.storage = {url!r}: {error}{hint}; allowed are fsspec's, such as s3, gs, "
            "abfs, sftp and file"
        ) from error


def check_writable(url: str) -> None:
    """Refuse a URL that cannot be written to, by writing there.

    Raises:
        ClusterError: It cannot.
    """
    with _explained(url, "cannot be written to and read"):
        system, path = _open(url)
        probe = f"{path}/.probe-{uuid.uuid4().hex}"
        system.makedirs(path, exist_ok=True)
        system.pipe_file(probe, b"sda")
        system.cat_file(probe)
        system.rm_file(probe)


def exists(url: str) -> bool:
    """Whether there is anything.

    Raises:
        ClusterError: The URL cannot be reached.
    """
    with _explained(url, "cannot be reached"):
        system, path = _open(url)
        return bool(system.exists(path))


def remove(url: str) -> None:
    """Remove all that is there; if that fails, it stays."""
    with suppress(Exception):
        system, path = _open(url)
        system.rm(path, recursive=True)


def arrow_file_system(url: str) -> tuple[str, Any]:
    """The path, and the file system as Ray knows it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, path = _open(url)
    return path, PyFileSystem(FSSpecHandler(system))


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    system.invalidate_cache()
    return system, str(path).rstrip("/")


def _names(system: Any, path: str) -> list[str]:
    """The folders of copies, complete or not, the oldest first."""
    try:
        found = system.ls(path, detail=False)
    except FileNotFoundError:
        return []
    names = (str(name).rstrip("/").rpartition("/")[2] for name in found)
    return sorted(name for name in names if name.partition("-")[0].isdecimal())


def _complete(system: Any, path: str) -> list[str]:
    return [n for n in _names(system, path) if system.exists(f"{path}/{n}/{_MARKER}")]


def _walk(directory: Path, exclude: Collection[str]) -> dict[str, str]:
    """The files of a directory by relative path, with what differs when one is written again."""
    found = {}
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            name = path.relative_to(directory).as_posix()
            if path.is_symlink() or name.partition("/")[0] in exclude:
                continue
            with suppress(FileNotFoundError):
                stat = path.stat()
                found[name] = f"{name} {stat.st_size} {stat.st_mtime_ns}"
    return dict(sorted(found.items()))


def _replace(new: Path, target: Path) -> None:
    """Put a file or folder in the place of another."""
    old = target.with_name(f".{target.name}.old")
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except SDAError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise ClusterError(
            f"{url} (cluster.storage) {what}: {type(error).__name__}: {error}"
        ) from error
