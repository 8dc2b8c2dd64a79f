"""Results and records that are damaged, odd or of another kind than they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import sda_core as sda
from sda_core.cli import main
from sda_core.errors import DataError

from .small_runs import TINY, experiments

small = experiments(TINY)


@pytest.fixture
def directory(tiny_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run, tmp_path / "run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 1
    path.write_bytes(data)


def clear(path: Path) -> None:
    path.write_bytes(b"")


def values(path: Path) -> np.ndarray:
    with xr.open_dataarray(path) as array:
        return array.to_numpy()


@pytest.mark.parametrize("damage", [cut, flip, clear, Path.unlink])
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("posterior.nc", "assimilate"),
        ("samples.nc", "sample"),
        ("metrics.json", "evaluate"),
        ("report.html", "evaluate"),
        ("reference.nc", "evaluate"),
        ("model/model.safetensors", "train"),
    ],
)
def test_a_damaged_result_is_made_again(
    directory: Path,
    tiny_run: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    stage: str,
    damage: Callable[[Path], None],
) -> None:
    damage(directory / name)
    sda.run(small(), directory)
    said = capsys.readouterr().err
    if damage is not Path.unlink:
        assert f"{name.partition('/')[0]} is damaged: {stage} is done again" in said
    if name.endswith(".nc"):
        assert (values(directory / name) == values(tiny_run / name)).all()
    elif name != "report.html":  # which says how long each stage took
        assert (directory / name).read_bytes() == (tiny_run / name).read_bytes()
    sda.run(small(), directory)
    assert "again" not in capsys.readouterr().err


def test_a_damaged_zarr_store_is_made_again(directory: Path) -> None:
    pytest.importorskip("zarr")
    experiment = small("assimilate.format=zarr")
    sda.run(experiment, directory, progress=False)
    chunks = [p for p in (directory / "posterior.zarr").rglob("*") if p.name[0] != "."]
    chunk = max((p for p in chunks if p.is_file()), key=lambda p: p.stat().st_size)
    flip(chunk)
    with pytest.raises(DataError, match=r"posterior\.zarr in .* is damaged.*sda assimilate"):
        sda.evaluate(experiment, directory, progress=False)
    before = chunk.read_bytes()
    sda.run(experiment, directory, progress=False)
    assert chunk.read_bytes() != before


def test_a_damaged_posterior_is_not_evaluated(directory: Path) -> None:
    report = (directory / "report.html").read_text()
    flip(directory / "posterior.nc")
    with pytest.raises(DataError, match=r"posterior\.nc in .* is damaged.*`sda assimilate` again"):
        sda.evaluate(small(), directory, progress=False)
    assert (directory / "report.html").read_text() == report


def test_a_damaged_model_without_checkpoints_is_not_trained_anew(directory: Path) -> None:
    shutil.rmtree(directory / "checkpoints")
    weights = directory / "model" / "model.safetensors"
    flip(weights)
    before = weights.read_bytes()
    with pytest.raises(DataError, match=r"model in .* is damaged.*`sda train` again"):
        sda.run(small(), directory, progress=False)
    assert weights.read_bytes() == before


def test_a_run_without_checksums_is_taken_as_it_is(directory: Path) -> None:
    path = directory / "provenance.json"
    record = json.loads(path.read_text())
    for stage in record["stages"].values():
        stage.pop("sha256")
    path.write_text(json.dumps(record))
    before = (directory / "posterior.nc").stat().st_mtime_ns
    sda.run(small(), directory, progress=False)
    assert (directory / "posterior.nc").stat().st_mtime_ns == before


@pytest.mark.parametrize("odd", ['{"posterior": 3}', '{"posterior": {"rmse": "x"}}', "[]"])
def test_scores_that_are_none(directory: Path, odd: str) -> None:
    path = directory / "provenance.json"
    record = json.loads(path.read_text())
    record["stages"]["evaluate"].pop("sha256")
    path.write_text(json.dumps(record))
    (directory / "metrics.json").write_text(odd)
    with pytest.raises(DataError, match=r"metrics\.json cannot be read"):
        sda.run(small(), directory, progress=False)


ODD = {
    "empty": b"",
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "nested": b"[" * 100_000,
    "digits": b'{"stages": ' + b"9" * 6000 + b"}",
    "types": b'{"stages": {"train": 3}, "step": [], "event": {}, "schema": [3]}\n',
    "a folder": None,
    "a link": Path("nowhere"),
}

#: Those that are tried where there is little time.
QUICK = ("types", "a folder")


def put(path: Path, odd: bytes | Path | None) -> None:
    """Put something in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if odd is None:
        path.mkdir()
    elif isinstance(odd, Path):
        path.symlink_to(odd)
    else:
        path.write_bytes(odd)


def sda_exits(*arguments: object) -> int:
    """The exit code of a command; a traceback would be an exception of another kind."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    "odd",
    [pytest.param(ODD[n], id=n, marks=() if n in QUICK else pytest.mark.slow) for n in ODD],
)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("provenance.json", "run"),
        ("provenance.json", "train"),
        ("provenance.json", "evaluate"),
        ("metrics.json", "run"),
        ("metrics.jsonl", "train"),
        ("metrics.jsonl", "evaluate"),
        ("history.json", "train --seeds 0"),
        ("model/model.json", "assimilate"),
        ("model/model.safetensors", "sample"),
        ("config.toml", "simulate"),
        ("posterior.nc", "evaluate"),
        ("data/test.h5", "assimilate"),
        ("data/train.h5", "train"),
        ("data", "simulate"),
        ("data/.parts", "simulate"),
        ("checkpoints", "train"),
        ("checkpoints/best.safetensors", "train"),
        ("model", "train"),
        ("model", "composition"),
        ("figures", "evaluate"),
        ("report.html", "evaluate"),
        (".training.lock", "train"),
        (".posterior.lock", "assimilate"),
        ("posterior.partial", "assimilate"),
    ],
)
def test_odd_files_are_refused_or_replaced(
    directory: Path, name: str, command: str, odd: bytes | Path | None
) -> None:
    put(directory / name, odd)
    command, *options = command.split()
    assert sda_exits(command, directory, "--dir", directory, "-q", *options) in (0, 2)


@pytest.mark.parametrize(
    "command", ["run", "simulate", "train", "sample", "assimilate", "evaluate"]
)
@pytest.mark.parametrize("odd", [b"", Path("nowhere")])
def test_a_run_directory_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, odd: bytes | Path
) -> None:
    put(tmp_path / "run", odd)
    assert sda_exits(command, "lorenz63-quick", "--dir", tmp_path / "run", "-q") == 2
    assert "run directory" in capsys.readouterr().err
    assert sda_exits(command, "lorenz63-quick", "--dir", tmp_path / "run" / "sub", "-q") == 2


def test_a_disk_that_cannot_be_written_to(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("sda_core.experiment.run.write_json", lambda path, value: refuse(path))
    assert sda_exits("evaluate", directory, "--dir", directory, "-q") == 2
    assert "Read-only file system" in capsys.readouterr().err


def test_what_would_control_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert sda_exits("simulate", "\x1b[31mred") == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "red" in said
