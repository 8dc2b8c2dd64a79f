import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray

from sda_core.data import StoreProblemError, TrajectoryStore, inspect, verify
from sda_core.data.checksums import attributes_crc32, seal
from sda_core.errors import DataError
from sda_core.io.xarray import load_array

from .data_systems import Swing, Walk, make


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make(Walk(), tmp_path_factory.mktemp("data"), versions={"sda-walk": "2.0"})


def test_xarray_opens_a_file_as_it_is(data):
    with xarray.open_dataset(data / "valid.h5") as dataset:
        x = dataset.x
        assert dict(x.sizes) == {"trajectory": 2, "time": 12, "variable": 2, "place": 4}
        assert x.dtype == np.float32
        assert x.trajectory.values.tolist() == [16, 17]
        assert x["variable"].values.tolist() == ["u", "T"]
        np.testing.assert_allclose(x.time, 0.5 * np.arange(12))
        np.testing.assert_allclose(x.place, [0.0, 0.5, 1.0, 1.5])
        assert (x.time.units, x.place.units, x.units) == ("s", "m", "m/s, K")
        assert json.loads(x["variable"].attrs["variable_units"]) == ["m/s", "K"]
        assert json.loads(dataset.attrs["system"]) == {"name": "walk"}
        assert dataset.attrs["seed"] == 1
        temperature = x.sel(variable="T", time=2.0, trajectory=17).values
    np.testing.assert_array_equal(temperature, TrajectoryStore(data / "valid.h5").read(1)[4, 1])


def test_xarray_opens_a_single_variable_without_a_grid(tmp_path):
    with xarray.open_dataset(make(Swing(), tmp_path) / "train.h5") as dataset:
        assert dataset.x.dims == ("trajectory", "time", "variable")
        assert dataset.x.units == "1"


def test_chunks_have_checksums(data):
    with h5py.File(data / "train.h5") as file:
        assert file["x"].chunks == (1, 12, 2, 4)
        assert all(file[name].fletcher32 for name in file)


def test_info(data):
    store = TrajectoryStore(data / "train.h5")
    assert store.shape == (16, 12, 2, 4)
    assert len(store) == 16
    assert store.spec.variables == Walk().spec.variables
    assert (store.spec.time_step, store.spec.time_units) == (0.5, "s")
    assert store.spec.axes[0].name == "place"
    info = store.info
    assert (info.split, info.seed, info.system) == ("train", 1, {"name": "walk"})
    assert (info.recipe.burn_in, info.recipe.length) == (3, 12)
    assert info.recipe.split_sizes == {"train": 16, "valid": 2, "test": 2}
    assert info.created_by["sda-walk"] == "2.0"
    assert info.created_by["torch"] == torch.__version__
    assert info.data_id == TrajectoryStore(data / "test.h5").info.data_id


def test_read(data):
    with TrajectoryStore(data / "train.h5") as store:
        x = store.read(slice(None))
        assert x.dtype == torch.float32
        assert torch.equal(store.read(3), x[3])
        assert torch.equal(store.read(-1, slice(2, 5)), x[-1, 2:5])
        assert torch.equal(store.read(slice(2, 9, 3), slice(4)), x[2:9:3, :4])
        windows = store.read_windows([5, 2, 5], [1, 0, 9], 3)
        assert torch.equal(windows, torch.stack([x[5, 1:4], x[2, 0:3], x[5, 9:12]]))
        with pytest.raises(DataError, match=r"trajectory 16 was asked for.*from 0 to 15"):
            store.read(16)


def read_row(store: TrajectoryStore, row: int) -> np.ndarray:
    return store.read(row).numpy()


def test_processes_open_the_file_for_themselves(data, monkeypatch):
    store = TrajectoryStore(data / "train.h5")
    expected = read_row(store, 3)  # the file is open in this process now
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(read_row(copy, 3), expected)
    # So that the new process finds this module under the name that pickle writes.
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.starmap(read_row, [(store, row) for row in range(4)])
    assert np.array_equal(rows, store.read(slice(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_use_the_handle_of_its_parent(data):
    store = TrajectoryStore(data / "train.h5")
    expected = read_row(store, 0)
    handle = store._file
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        same = np.array_equal(read_row(store, 0), expected)
        os.write(writing, b"1" if same and store._file is not handle else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    assert store._file is handle
    assert np.array_equal(read_row(store, 0), expected)


def rewrite(source: Path, target: Path, change) -> Path:
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def other_rank(file):
    values = file["x"][..., 0]
    del file["x"]
    file["x"] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.modify("schema_version", 2), "version is 2.*upgrade sda-core"),
        (lambda f: f.attrs.modify("schema_version", 0), "version is 0.*make the data again"),
        (lambda f: f.attrs.__delitem__("schema_version"), "no attribute 'schema_version'"),
        (lambda f: f.__delitem__("x"), "no dataset 'x'.*name a file made by"),
        (other_rank, r"shape \(16, 12, 2\), but the attributes describe \(16, 12, 2, 4\)"),
        (lambda f: f.attrs.modify("seed", 5), "attributes are not those that were written"),
        (lambda f: f.attrs.__delitem__("mean"), "description is damaged.*'mean'"),
        (lambda f: f.__delitem__("place"), "description is damaged"),
    ],
)
def test_files_that_are_not_stores(data, tmp_path, change, message):
    path = rewrite(data / "train.h5", tmp_path / "train.h5", change)
    with pytest.raises(DataError, match=message) as caught:
        TrajectoryStore(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert ". To mend: " in str(caught.value)


def without_measured(path: Path, target: Path) -> Path:
    """A file as older versions wrote it."""

    def remove(file):
        attributes = TrajectoryStore(path).info.attributes()
        for name in ("measured_mean", "measured_std"):
            del file.attrs[name], attributes[name]
        file.attrs["attributes_crc32"] = attributes_crc32(attributes)

    rewrite(path, target, remove)
    seal(target)
    return target


def test_files_without_measured_statistics_are_read(data, tmp_path):
    path = data / "valid.h5"
    old = TrajectoryStore(without_measured(path, tmp_path / "valid.h5"))
    assert (old.info.measured_mean, old.info.measured_std) == (None, None)
    assert old.info.data_id == TrajectoryStore(path).info.data_id
    assert torch.equal(old.read(slice(None)), TrajectoryStore(path).read(slice(None)))
    assert verify(old.path).ok


def test_measured_statistics_are_guarded_and_told(data, tmp_path):
    info = TrajectoryStore(data / "valid.h5").info
    told = inspect(data / "valid.h5").as_dict()["files"][0]
    assert told["measured_mean"] == list(info.measured_mean)
    assert told["measured_std"] == list(info.measured_std)

    def change(file, honest):
        file.attrs["measured_std"] = 2 * file.attrs["measured_std"]
        attributes = info.attributes() | {"measured_std": file.attrs["measured_std"].tolist()}
        if honest:
            file.attrs["attributes_crc32"] = attributes_crc32(attributes)

    path = rewrite(data / "valid.h5", tmp_path / "valid.h5", lambda file: change(file, False))
    with pytest.raises(DataError, match="attributes are not those that were written"):
        TrajectoryStore(path)
    rewrite(data / "valid.h5", path, lambda file: change(file, True))
    (problem,) = verify(path).problems
    assert "the stored measured std" in problem.what
    assert "is not that of the data" in problem.what


def test_files_that_cannot_be_opened(data, tmp_path):
    with pytest.raises(DataError, match=r"no such file.*sda simulate"):
        TrajectoryStore(tmp_path / "train.h5")
    with pytest.raises(DataError, match=r"this is a directory \(with test.h5, train.h5, valid"):
        TrajectoryStore(data)
    path = tmp_path / "train.h5"
    path.write_text("time,x\n0,1\n")
    with pytest.raises(DataError, match="not an HDF5 file"):
        TrajectoryStore(path)
    content = (data / "train.h5").read_bytes()
    for size in (0, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=f"truncated: only {size} bytes.*copy it again"):
            TrajectoryStore(path)


HOLD = (
    "import h5py, sys, time; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); time.sleep(60)"
)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are those of POSIX")
def test_a_file_in_use_is_not_to_be_deleted(data, tmp_path):
    """Neither where another process has it, nor this one, nor where it may not be read."""
    path = Path(shutil.copy(data / "valid.h5", tmp_path))
    array = xarray.DataArray(np.zeros((1, 2, 2)), dims=("member", "time", "variable"), name="x")
    array.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")

    def told(wanted: str) -> None:
        for name, read in (
            (path, TrajectoryStore),
            (tmp_path / "posterior.nc", lambda name: load_array(name, "assimilate")),
        ):
            with pytest.raises(DataError, match=wanted) as error:
                read(name)
            assert "delete" not in str(error.value)

    commands = [
        [sys.executable, "-c", HOLD, str(tmp_path / n)] for n in ("valid.h5", "posterior.nc")
    ]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    try:
        for other in others:
            other.stdout.readline()
        told("in use: another process")
    finally:
        for other in others:
            other.kill()
            other.communicate()
    with pytest.raises(DataError, match="or was killed while it had") as error:
        TrajectoryStore(path)  # the mark that the killed process left
    assert "delete" not in str(error.value)
    for error, wanted in (
        (PermissionError(errno.EACCES, "Permission denied"), "may not read"),
        (OSError(errno.ESTALE, "Stale file handle"), "cannot read it now"),
    ):
        with pytest.MonkeyPatch.context() as patch:

            def fail(*arguments: object, error: OSError = error, **options: object) -> None:
                raise error

            patch.setattr("h5py.File", fail)
            patch.setattr("xarray.open_dataarray", fail)
            told(wanted)


def test_reading_a_damaged_trajectory(data, tmp_path):
    path = tmp_path / "train.h5"
    content = bytearray((data / "train.h5").read_bytes())
    content[content.index(TrajectoryStore(data / "train.h5").read(2).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    store = TrajectoryStore(path)
    store.read(1)
    with pytest.raises(StoreProblemError, match=r"trajectories 2 cannot be read.*data verify"):
        store.read(2)
    with pytest.raises(StoreProblemError, match=r"trajectory 2 cannot be read"):
        store.read_windows([0, 2], [0, 0], 3)


def test_inspect(data):
    report = inspect(data)
    text = str(report)
    assert "train.h5   16 x 12 x 2 x 4 (N, L, C, *S)" in text
    assert "place [m]: 4 points, 0.0 to 1.5" in text
    assert "T [K]: mean" in text
    assert "12 steps of 0.5 [s]" in text
    assert text.count("data_id") == 1
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["problems"] == []
    assert [file["split"] for file in plain["files"]] == ["train", "valid", "test"]
    assert plain["files"][0]["variables"][1]["units"] == "K"
    assert inspect(data / "test.h5").files[0].info.split == "test"


def test_inspect_what_cannot_be_read(data, tmp_path):
    assert "there is no data set here" in str(inspect(tmp_path))
    assert "no such file" in str(inspect(tmp_path / "train.h5"))
    (tmp_path / "train.h5").write_bytes(b"")
    (tmp_path / "valid.h5").write_bytes((data / "valid.h5").read_bytes())
    text = str(inspect(tmp_path))
    assert "train.h5   0 bytes, cannot be read" in text
    assert "valid.h5   2 x 12 x 2 x 4" in text
    assert "truncated" in text
