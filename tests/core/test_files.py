"""Directories that one process has to itself, and what killed ones left behind."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from sda_core.errors import TrainingError
from sda_core.io.files import file_lock, remove_leftovers, replace_file

HOLD = """
import sys, time
from pathlib import Path
from sda_core.io.files import file_lock

with file_lock(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / ".training.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            who = f"process {other.pid} on {socket.gethostname()}"
            message = f"another training ({who}) is running in {tmp_path}: wait for it, stop it"
            for timeout in (0.0, 0.3):  # who was refused changes nothing
                with (
                    pytest.raises(TrainingError, match=re.escape(message)),
                    file_lock(path, "training", timeout=timeout),
                ):
                    pass
        finally:
            other.kill()
    # A kill leaves no lock behind.
    with file_lock(path, "training"):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        Timer(0.3, other.kill).start()
        with file_lock(path, "training", timeout=60.0):
            assert other.wait(60.0) != 0


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    def again() -> None:
        with file_lock(tmp_path / "lock", "training"):
            raise KeyError

    with (
        file_lock(tmp_path / "lock", "training"),
        pytest.raises(TrainingError, match="another training"),
    ):
        again()
    for _ in range(2):
        with pytest.raises(KeyError):
            again()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with file_lock(tmp_path / "lock", "training"), file_lock(tmp_path / "lock", "training"):
        pass


def test_leftovers_of_other_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is not here, and of which nothing is known, may be writing elsewhere."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left = []
    for host in ("node1.cluster", "node2.cluster", "node3.cluster"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        with replace_file(tmp_path / "c.safetensors") as temporary:
            temporary.touch()
        left.append(Path(str(temporary).replace(f".{os.getpid()}.", f".{gone.pid}.")))
    (tmp_path / "c.safetensors").unlink()
    for path in left:
        path.touch()
    assert len({path.name for path in left}) == 3
    old = time.time() - 25 * 3600
    os.utime(left[1], (old, old))
    remove_leftovers(tmp_path)  # on node3
    assert list(tmp_path.iterdir()) == [left[0]]
