import json
import random
import shutil
from pathlib import Path

import attrs
import h5py
import numpy as np
import pytest
import torch

from sda_core.data import TrajectoryStore, verify
from sda_core.data.checksums import attributes_crc32, seal, trajectory_crc32

from .data_systems import Swing, Walk, make


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    return {
        "seed 1": make(Walk(), folder / "1"),
        "seed 2": make(Walk(), folder / "2", seed=2),
        "more": make(Walk(), folder / "more", trajectories=40),
    }


@pytest.fixture
def data(originals, tmp_path) -> Path:
    return Path(shutil.copytree(originals["seed 1"], tmp_path / "data"))


def only_problem(path: Path, at: Path | None = None):
    report = verify(path)
    assert not report.ok
    (problem,) = report.problems
    assert problem.file == str(at or path)
    assert problem.mend
    return problem


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def position_of(path: Path, row: int) -> int:
    """Where a trajectory lies in its file."""
    with TrajectoryStore(path) as store:
        return path.read_bytes().index(store.read(row).numpy().tobytes())


def test_whole(data):
    report = verify(data)
    assert report.ok
    assert str(report) == f"{data}: whole (3 files read)"
    assert verify(data / "test.h5").ok
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_whole_with_statistics_of_the_system(tmp_path):
    assert verify(make(Swing(), tmp_path)).ok


def test_a_flipped_bit_names_the_row(data):
    for row in (3, 11):
        flip(data / "train.h5", position_of(data / "train.h5", row) + 100)
    problem = only_problem(data, data / "train.h5")
    assert "fails in rows 3 (steps 0 to 11), 11 (steps 0 to 11) of x" in problem.what
    assert "delete the file and run 'sda simulate'" in problem.mend


class Long(Swing):
    """Fast enough for trajectories of several chunks."""

    block_size = 2

    def trajectory(self, x, length, burn_in, generator):
        return torch.randn(len(x), length, 2, generator=generator)


def test_a_flipped_bit_names_the_steps_of_its_chunk(tmp_path):
    path = make(Long(), tmp_path, trajectories=2, length=150_000) / "test.h5"
    with h5py.File(path) as file:
        assert file["x"].chunks == (1, 75_000, 2)
        offset = file["x"].id.get_chunk_info(1).byte_offset
    flip(path, offset + 7)
    assert "rows 0 (steps 75000 to 149999)" in only_problem(path).what


def test_any_flipped_bit_is_found(data):
    path = data / "train.h5"
    content = path.read_bytes()
    generator = random.Random(0)
    for position in sorted(generator.sample(range(len(content)), 150)):
        flip(path, position)
        assert not verify(path).ok, f"byte {position} of {len(content)}"
        path.write_bytes(content)


@pytest.mark.parametrize("lost", [1, 12, 100, 10_000])
def test_truncated(data, lost):
    path = data / "test.h5"
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - lost)])
    what = only_problem(data, path).what
    assert ("its end is cut off" if lost <= 12 else "truncated") in what


def edit(path: Path, change) -> None:
    """Change a file with h5py, which leaves its own checksums right."""
    with h5py.File(path, "r+") as file:
        change(file)


def exchange_rows(file):
    x = file["x"][()]
    file["x"][2], file["x"][9] = x[9], x[2]


def exchange_rows_and_checksums(file):
    exchange_rows(file)
    crc32 = file["crc32"][()]
    crc32[[2, 9]] = crc32[[9, 2]]
    file["crc32"][...] = crc32


def change_row(file):
    file["x"][4] = 2 * file["x"][4]


def change_time(file):
    file["time"][3] = 0.0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (exchange_rows, "rows of x changed places: 2 (was 9), 9 (was 2)"),
        (change_row, "rows 4 of x are not what was written"),
        (exchange_rows_and_checksums, "changed after it was written"),
        (change_time, "changed after it was written"),
    ],
)
def test_changed_with_other_programs(data, change, what):
    edit(data / "train.h5", change)
    assert any(what in problem.what for problem in verify(data).problems)


def forge(path: Path, row: int | None = None, **statistics) -> None:
    """Change a file as a faulty writer would have written it: all checksums are right."""
    info = TrajectoryStore(path).info
    info = attrs.evolve(info, spec=attrs.evolve(info.spec, **statistics))
    with h5py.File(path, "r+") as file:
        if row is not None:
            file["x"][row, 2, 0, 3] = np.nan
            file["crc32"][row] = trajectory_crc32(file["x"][row])
        file.attrs.update(statistics)
        file.attrs["attributes_crc32"] = attributes_crc32(info.attributes())
    seal(path)


def test_values_that_are_not_finite(data):
    forge(data / "valid.h5", row=1)
    what = only_problem(data, data / "valid.h5").what
    assert what == "rows 1 of x have values that are not finite"


def test_statistics_that_are_not_those_of_the_data(data):
    mean, std = TrajectoryStore(data / "train.h5").spec.mean, (1.0, 2.0)
    for split in ("train", "valid", "test"):
        forge(data / f"{split}.h5", mean=mean, std=std)
    assert "the stored std [1.0, 2.0] is not" in only_problem(data, data / "train.h5").what


def test_statistics_that_differ_between_files(data):
    forge(data / "test.h5", mean=(0.0, 0.0))
    assert "not those of the other files" in only_problem(data, data / "test.h5").what


def test_files_that_were_swapped(data):
    (data / "train.h5").rename(data / "other")
    (data / "test.h5").rename(data / "train.h5")
    (data / "other").rename(data / "test.h5")
    train, test = verify(data).problems
    assert train.what == "it holds the split 'test', but is called train.h5"
    assert train.mend.startswith("rename it to test.h5")
    assert test.what == "it holds the split 'train', but is called test.h5"


def test_a_file_of_another_seed(data, originals):
    shutil.copy(originals["seed 2"] / "valid.h5", data)
    problem = only_problem(data, data / "valid.h5")
    assert "another data set than the other files: seed (1 there, 2 here)" in problem.what
    assert "put back the right file" in problem.mend


def test_training_trajectories_in_the_test(data, originals):
    # The training split of more trajectories has the ones that are the test here.
    shutil.copy(originals["more"] / "train.h5", data)
    whats = [problem.what for problem in verify(data).problems]
    assert any("another data set" in what for what in whats)
    assert "trajectories 18 to 19 are in train.h5 as well" in whats


def test_a_missing_split(data):
    (data / "valid.h5").unlink()
    problem = only_problem(data)
    assert problem.what == "valid.h5 with 2 trajectories is missing"


def test_leftovers(data, tmp_path):
    (data / "train.h5.tmp").write_bytes(b"")
    assert only_problem(data).what == "there are half-written files: train.h5.tmp"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no data set here" in only_problem(empty).what
    (empty / ".parts").mkdir()
    problem = only_problem(empty, empty / ".parts")
    assert "without the manifest" in problem.what
    assert problem.mend == f"delete {empty / '.parts'}"


def test_verifying_does_not_change_files(data):
    before = [(p.name, p.read_bytes()) for p in sorted(data.iterdir())]
    verify(data)
    assert [(p.name, p.read_bytes()) for p in sorted(data.iterdir())] == before
    assert torch.isfinite(TrajectoryStore(data / "train.h5").read(slice(None))).all()
