"""Ensembles on disk: what is written, read, resumed and refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import xarray as xr

from sda_core.errors import AssimilationError, ConfigError, DataError
from sda_core.io import xarray as xarray_io
from sda_core.io.ensemble_file import EnsembleFile, checksum
from sda_core.system import Axis, SystemSpec, Variable

SPEC = SystemSpec(
    variables=(Variable("u", units="m/s"), Variable("w", units="1/s")),
    axes=(Axis("place", np.linspace(0, 1, 5), units="km"),),
    time_step=0.25,
    time_units="days",
)
SHAPE = (4, 3, 2, 5)
VALUES = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
PROGRESS = ({"done": torch.tensor([1, 3])}, {"at": [2, "windows"]})


def _file(path, identity=None, **settings) -> EnsembleFile:
    identity = {"sampler": {"steps": 8}, "of": (1, 2)} if identity is None else identity
    return EnsembleFile(path / "posterior.nc", SPEC, SHAPE, identity, **settings)


def _written(path, **settings) -> EnsembleFile:
    file = _file(path, **settings)
    assert file.begin() is None
    for numbers in ([3, 1], [0, 2]):
        file.write(torch.tensor(numbers), VALUES[numbers])
    return file


def test_it_is_what_xarray_writes(tmp_path) -> None:
    file = _written(tmp_path)
    assert torch.equal(file.values, VALUES)
    file.finish(file.values)
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]
    xarray_io.save(xarray_io.trajectories(VALUES, SPEC).rename("posterior"), tmp_path / "whole.nc")
    with (
        xr.open_dataarray(tmp_path / "posterior.nc") as array,
        xr.open_dataarray(tmp_path / "whole.nc") as whole,
    ):
        xr.testing.assert_identical(array, whole)
        assert array.dims == ("member", "time", "variable", "place")
        assert array.attrs["units"] == ["m/s", "1/s"]
    assert torch.equal(file.values, VALUES)  # read from where it is now


def test_it_is_read_as_it_is_used_and_never_changed(tmp_path) -> None:
    file = _written(tmp_path)
    file.finish(file.values)
    x = xarray_io.load_array(tmp_path / "posterior.nc", "assimilate")
    x[0] = 7.0
    assert torch.equal(xarray_io.load_array(tmp_path / "posterior.nc", "assimilate"), VALUES)


def test_an_ensemble_from_elsewhere(tmp_path) -> None:
    file = _file(tmp_path)
    file.finish(VALUES.double())
    x = xarray_io.load_array(tmp_path / "posterior.nc", "assimilate")
    assert torch.equal(x, VALUES.double())


@pytest.mark.parametrize("written", [True, False])
def test_zarr(tmp_path, written) -> None:
    pytest.importorskip("zarr")
    old = _written(tmp_path)
    old.finish(old.values)
    for _ in range(2):  # another one takes its place
        file = (_written if written else _file)(tmp_path, file_format="zarr")
        file.finish(file.values if written else VALUES)
        assert [path.name for path in tmp_path.iterdir()] == ["posterior.zarr"]
    array = xr.open_dataarray(tmp_path / "posterior.zarr", engine="zarr")
    xr.testing.assert_identical(
        array.load(), xarray_io.trajectories(VALUES, SPEC).rename("posterior")
    )
    store = xarray_io.result(tmp_path / "posterior.nc")
    assert store.name == "posterior.zarr"
    assert torch.equal(xarray_io.load_array(store, "assimilate"), VALUES)
    back = _written(tmp_path)
    back.finish(back.values)
    assert xarray_io.result(tmp_path / "posterior.nc").name == "posterior.nc"


def test_zarr_is_not_installed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package zarr.* pip install 'sda-core\[zarr"):
        _file(tmp_path, file_format="zarr")


def test_what_was_left_is_gone_on_with(tmp_path) -> None:
    file = _file(tmp_path)
    assert file.begin() is None
    file.write(torch.tensor([3, 1]), VALUES[[3, 1]])
    file.save(PROGRESS)
    (file.folder / ".progress.safetensors.localhost.999999999.tmp").touch()
    again = _file(tmp_path)
    tensors, state = again.begin()
    assert torch.equal(tensors["done"], PROGRESS[0]["done"])
    assert state == PROGRESS[1]
    assert torch.equal(again.values[[3, 1]], VALUES[[3, 1]])


def test_what_another_sampling_left_is_not(tmp_path) -> None:
    def leave() -> EnsembleFile:
        file = _file(tmp_path)
        file.begin()
        file.write(torch.tensor([0]), VALUES[:1])
        file.save(PROGRESS)
        return file

    lines: list[str] = []
    leave()
    file = _file(tmp_path, {"sampler": {"steps": 9}, "of": (1, 2)}, announce=lines.append)
    assert file.begin() is None
    (line,) = lines
    assert line == (
        "sampling starts anew, since this has changed: sampler.steps (8 there, 9 asked for)"
    )
    assert not file.values.any()
    progress = leave().folder / "progress.safetensors"
    data = bytearray(progress.read_bytes())
    data[-1] ^= 1
    progress.write_bytes(data)
    assert _file(tmp_path, announce=lines.append).begin() is None
    assert re.match(r"sampling starts anew: checkpoint .* is damaged", lines[1])
    (leave().folder / "values.nc").unlink()
    assert _file(tmp_path).begin() is None


def test_one_at_a_time(tmp_path) -> None:
    with (
        _file(tmp_path).alone(),
        pytest.raises(
            AssimilationError, match=r"another sampling \(process \d+ on .*\) is running"
        ),
        _file(tmp_path).alone(),
    ):
        pass


def test_members_that_cannot_be_written(tmp_path) -> None:
    file = _file(tmp_path)
    file.begin()
    (file.folder / "values.nc").unlink()
    with pytest.raises(
        AssimilationError, match=r"members cannot be written to .*values.nc.* same command resumes"
    ):
        file.write(torch.tensor([0]), VALUES[:1])


def test_an_ensemble_that_cannot_be_put_in_its_place(tmp_path, monkeypatch) -> None:
    """By a full disk, for instance: what was written is there to be resumed."""
    pytest.importorskip("zarr")

    def full(*_):
        raise OSError(28, "No space left on device")

    file = _written(tmp_path, file_format="zarr")
    file.save(PROGRESS)
    monkeypatch.setattr(xarray_io, "sync", full)
    with pytest.raises(
        AssimilationError, match=r"written to .*zarr \(.*No space left.*resumes from"
    ):
        file.finish(file.values)
    monkeypatch.undo()
    other = _file(tmp_path)
    assert other.begin() is not None
    assert torch.equal(other.values, VALUES)
    other.finish(other.values)
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]


def test_checksum() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert checksum(x.T.contiguous().T) == checksum(x) != checksum(x + 1)
    assert checksum(x.bfloat16()) != checksum(torch.tensor(3)) != checksum()


def test_nothing_to_read(tmp_path) -> None:
    with pytest.raises(DataError, match=r"there is no .*posterior.nc: run `sda assimilate` first"):
        xarray_io.load_array(tmp_path / "posterior.nc", "assimilate")
    (tmp_path / "posterior.nc").write_text("nonsense")
    with pytest.raises(DataError, match=r"posterior.nc cannot be read .* run `sda assimilate` aga"):
        xarray_io.load_array(tmp_path / "posterior.nc", "assimilate")
