"""A directory and its copy at a URL that fsspec understands.

Files of the copy are stored under names that have a digest of their content, and ``manifest.json``,
which is written last, says which of them the copy is made of. Whoever reads so finds the files of
one upload, and never half of them, wherever the one that uploads is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from sda_core.config import nearest
from sda_core.errors import ClusterError, ConfigError, SDAError
from sda_core.io.files import sync, write_text

#: Which files a copy is made of; and, where one was fetched, which files it was.
_MANIFEST, _FETCHED = "manifest.json", ".fetched.json"
#: Where files are until all of a copy are there.
_INCOMING = ".incoming"
#: Letters of the digest in a name.
_LETTERS = 16
#: How often what changes meanwhile is tried.
_TRIES = 3

#: Of each file, by its path: what it is stored as (``at``), its ``sha256``, and its ``size``.
_Files = dict[str, dict[str, Any]]
#: What differs when a file was written again: size, time, and number.
_Mark = tuple[int, int, int]


@attrs.define(slots=False)
class Mirror:
    """A place at a URL, and the copy of a directory there.

    Attributes:
        url: The URL. Credentials are those of the environment.
    """

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        file_system, path = url_to_fs(self.url)
        return file_system, path.rstrip("/")

    @property
    def file_system(self) -> Any:
        """The file system of fsspec."""
        return self._place[0]

    @property
    def path(self) -> str:
        """The path in the file system."""
        return self._place[1]

    def __truediv__(self, name: str) -> Mirror:
        return Mirror(f"{self.url.rstrip('/')}/{name}")

    def check(self) -> None:
        """Refuse a place that cannot be written to, by writing there.

        Raises:
            ClusterError: It cannot.
        """
        probe = self / f".probe-{uuid.uuid4().hex}"  # others may do the same
        with _told(self.url, "cannot be written to and read"):
            probe.put_text("sda")
            if probe.text() != "sda":
                raise ClusterError(f"{self.url} does not give back what is written to it")
            probe.remove()

    def arrow(self) -> Any:
        """The file system as Ray knows it."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self.file_system))

    def exists(self) -> bool:
        """Whether there is anything."""
        with _told(self.url, "cannot be reached"):
            self.file_system.invalidate_cache()
            return bool(self.file_system.exists(self.path))

    def remove(self) -> None:
        """Remove all that is there."""
        with _told(self.url, "cannot be removed"), suppress(FileNotFoundError):
            self.file_system.rm(self.path, recursive=True)

    def text(self) -> str | None:
        """The text of a file; None if there is none."""
        self.file_system.invalidate_cache()
        with suppress(FileNotFoundError):
            return str(self.file_system.cat_file(self.path).decode())
        return None

    def put_text(self, text: str) -> None:
        """Write a text file, and move it into place."""
        temporary = f"{self.path}.{os.getpid()}.tmp"
        self._make_folders({self.path})
        self.file_system.pipe_file(temporary, text.encode())
        self.file_system.mv(temporary, self.path)

    def push(
        self, directory: Path, leave_out: Collection[str] = (), *, is_fetched: bool = False
    ) -> None:
        """Make the copy like a directory: links and names with a dot in front are left out.

        Args:
            directory: The directory. A file that is written meanwhile stays as it was before.
            leave_out: Names in it that are left out, too.
            is_fetched: Whether what was sent counts as fetched from the copy: what is removed from
                that is then removed here as well, by :meth:`pull`.

        Raises:
            ClusterError: That cannot be done; the copy is as it was.
        """
        with _told(self.url, f"cannot be given a copy of {directory}"):
            before = self._read() or {}
            stored = {entry["sha256"]: entry["at"] for entry in before.values()}
            files: _Files = {}
            missing = [n for n in _walk(directory) if n.partition("/")[0] not in leave_out]
            for _ in range(_TRIES):
                missing = self._store(directory, missing, files, stored)
            files |= {name: before[name] for name in missing if name in before}
            if is_fetched:
                write_text(directory / _FETCHED, json.dumps(files))
            if files == before:
                return
            text = json.dumps({"files": files}, indent=1)
            (self / _MANIFEST).put_text(text)
            kept = {entry["at"] for entry in files.values()}
            for at in {entry["at"] for entry in before.values()} - kept:
                with suppress(FileNotFoundError):
                    self.file_system.rm_file(f"{self.path}/{at}")

    def _store(
        self, directory: Path, names: list[str], files: _Files, stored: dict[str, str]
    ) -> list[str]:
        """Upload what is not there yet, and enter it; gives those that changed meanwhile."""
        marks: dict[str, _Mark] = {}
        entered: _Files = {}
        sent: dict[str, str] = {}
        for name in names:
            with suppress(FileNotFoundError):  # it was removed
                marks[name] = _mark(directory / name)
                digest = _digest(directory / name, marks[name])
                at = stored.get(digest) or sent.get(digest) or _stored_name(name, digest)
                if digest not in stored:
                    sent[digest] = at
                entered[name] = {"at": at, "sha256": digest, "size": marks[name][0]}
        new = {e["at"]: n for n, e in entered.items() if e["sha256"] in sent}
        places = [f"{self.path}/{at}" for at in new]
        self._make_folders(set(places))
        if new:
            self.file_system.put([str(directory / name) for name in new.values()], places)
        changed = {n for n in entered if not _is(directory / n, marks[n])}
        # What was sent of a file that changed is not what its name says, whoever else has it.
        wrong = {at for at, name in new.items() if name in changed}
        changed |= {n for n, entry in entered.items() if entry["at"] in wrong}
        files |= {n: entry for n, entry in entered.items() if n not in changed}
        stored |= {digest: at for digest, at in sent.items() if at not in wrong}
        return sorted(changed)

    def pull(self, directory: Path) -> bool:
        """Make a directory like the copy; files there that never were in it stay.

        Args:
            directory: The directory.

        Returns:
            Whether there is a copy.

        Raises:
            ClusterError: That cannot be done, or a file is not as it was stored.
        """
        with _told(self.url, f"cannot be copied to {directory}"):
            for left in reversed(range(_TRIES)):
                files = self._read()
                if files is None:
                    return False
                try:
                    self._fetch(files, directory)
                    break
                except FileNotFoundError:  # there is another upload by now, if all is well
                    if not left:
                        raise
        return True

    def _fetch(self, files: _Files, directory: Path) -> None:
        record, incoming = directory / _FETCHED, directory / _INCOMING
        before: _Files = json.loads(record.read_text()) if record.is_file() else {}
        if files == before and _is_whole(directory, files):
            return
        shutil.rmtree(incoming, ignore_errors=True)
        wanted = {n: e for n, e in files.items() if not _has(directory, n, e, before.get(n))}
        for name in wanted:
            (incoming / name).parent.mkdir(parents=True, exist_ok=True)
        if wanted:
            self.file_system.get(
                [f"{self.path}/{entry['at']}" for entry in wanted.values()],
                [str(incoming / name) for name in wanted],
            )
        for name, entry in wanted.items():
            fetched = incoming / name
            if _digest(fetched, _mark(fetched)) != entry["sha256"]:
                raise ClusterError(f"{self.url}/{entry['at']} is not as it was stored")
            sync(fetched)
        directory.mkdir(parents=True, exist_ok=True)
        # Records before the checkpoints that go on from them, should this process be killed here.
        for name in sorted(wanted, key=lambda name: name.count("/")):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (incoming / name).replace(directory / name)
        for name in before.keys() - files.keys():
            (directory / name).unlink(missing_ok=True)
        shutil.rmtree(incoming, ignore_errors=True)
        write_text(record, json.dumps(files))

    def _read(self) -> _Files | None:
        text = (self / _MANIFEST).text()
        return None if text is None else json.loads(text)["files"]

    def _make_folders(self, paths: set[str]) -> None:
        for folder in {path.rpartition("/")[0] for path in paths}:
            self.file_system.makedirs(folder, exist_ok=True)


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
        hint = "" if package == "fsspec" else f": pip install {package}"
        raise ConfigError(
            f"cluster.storage = {url!r}: {error}{hint}, here and on all machines of the cluster"
        ) from error
    except ValueError as error:
        known = nearest(protocol, known_implementations)
        raise ConfigError(
            f"cluster.storage = {url!r}: {error}"
            f"{f', did you mean {known}://?' if known else ''}; allowed are fsspec's, such as "
            "s3, gs, abfs, sftp and file"
        ) from error


@contextmanager
def _told(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except SDAError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise ClusterError(
            f"{url} (cluster.storage) {what}: {type(error).__name__}: {error}"
        ) from error


def _walk(directory: Path) -> Iterator[str]:
    """The files of a directory, by their relative paths."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and not path.is_symlink():
                yield path.relative_to(directory).as_posix()


def _stored_name(name: str, digest: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}.{digest[:_LETTERS]}{path.suffix}"))


def _mark(path: Path) -> _Mark:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _is(path: Path, mark: _Mark) -> bool:
    with suppress(FileNotFoundError):
        return _mark(path) == mark
    return False


@lru_cache(maxsize=4096)
def _digest(path: Path, mark: _Mark) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has(directory: Path, name: str, entry: dict[str, Any], before: dict[str, Any] | None) -> bool:
    path = directory / name
    return entry == before and path.is_file() and path.stat().st_size == entry["size"]


def _is_whole(directory: Path, files: _Files) -> bool:
    return all(_has(directory, name, entry, entry) for name, entry in files.items())
