"""Files that cannot be written: a limit of their size stands for a full disk, and does the same."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import sda_core as sda
from sda_core.experiment import Run
from sda_core.io.files import append_line, write_text
from sda_core.io.hdf5_target import hdf5_target

from .small_runs import TINY, experiments, options

small = experiments(TINY)

#: Runs `sda` with files of at most so many bytes.
LIMITED = """
import resource, sys
from sda_core.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
main(sys.argv[2:])
"""


def limited(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(size), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("size", [600, pytest.param(9_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("stage", "results"),
    [
        ("simulate", ("data",)),
        ("train", ("model", "checkpoints")),
        ("sample", ("samples.nc",)),
        ("assimilate", ("posterior.nc",)),
        ("evaluate", ("reference.nc", "metrics.json", "report.html")),
    ],
)
def test_each_stage_ends_with_a_message_and_goes_on(
    tiny_run: Path, tmp_path: Path, stage: str, results: tuple[str, ...], size: int
) -> None:
    directory = shutil.copytree(tiny_run, tmp_path / "run")
    for name in results:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = limited(size, stage, directory, "--dir", directory, "-q")
    assert ended.returncode == 2, ended.stderr
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    # What is small enough may be there, whole; the last result is not, and nothing is half there:
    assert not (directory / results[-1]).is_file()
    assert not [*directory.rglob(".*.tmp"), *directory.rglob("*.h5.tmp")]
    getattr(sda, stage)(small(), directory, progress=False)
    for name in ("posterior.nc", "samples.nc", "model/model.safetensors", "data/train.h5"):
        assert (directory / name).read_bytes() == (tiny_run / name).read_bytes()


def test_a_run_whose_files_have_no_room_at_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = limited(10, "simulate", "lorenz63-quick", "--dir", run, "-q", *options(TINY))
    assert ended.returncode == 2
    assert "config.toml" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_hdf5_does_not_see_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"

    def write() -> None:
        with hdf5_target(path) as target, h5py.File(target, "w") as file:
            file.create_dataset("a", data=np.arange(100))
            file.flush()
            monkeypatch.setattr(target, "_file", Refusing(target._file))
            data = file.create_dataset("b", shape=(1000, 100), dtype="f4", chunks=(10, 100))
            data[...] = 1.0
            file["a"][...] = 2

    with pytest.raises(OSError, match="No space left"):
        write()


class Refusing:
    """A file that takes no more bytes."""

    def __init__(self, file) -> None:
        self.seek, self.tell, self.readinto, self.close = (
            file.seek,
            file.tell,
            file.readinto,
            file.close,
        )

    def write(self, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    truncate = write


def test_hdf5_files_are_what_they_would_be(tmp_path: Path) -> None:
    with hdf5_target(tmp_path / "x.h5") as target, h5py.File(target, "w") as file:
        file.create_dataset("x", data=np.arange(1000.0).reshape(10, 100), chunks=(1, 100))
    with h5py.File(tmp_path / "x.h5") as file:
        assert (file["x"][()] == np.arange(1000.0).reshape(10, 100)).all()


def test_lines_are_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from sda_core.io.files import append_line\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))\n"
        "append_line(Path(sys.argv[1]), 'x' * 20)\n"
    )
    path = tmp_path / "log"
    append_line(path, "before")
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert b"File too large" in ended.stderr
    append_line(path, "after")
    assert path.read_text() == "before\nafter\n"


def test_an_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_text("before")
    monkeypatch.setattr("sda_core.io.files.sync", refuse)
    with pytest.raises(OSError, match=r"No space left on device.*x'"):
        write_text(tmp_path / "x", "after")
    assert (tmp_path / "x").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_command_left_is_removed(tiny_run: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_run, tmp_path / "run")
    host = os.uname().nodename
    left = directory / f".reference.nc.{host}.{2**22 + 1}.tmp"
    left.write_text("half")
    with Run(small(), directory).stage("evaluate"):
        assert not left.exists()
