import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sda_core.data import DataConfig, Standardization, TrajectoryStore, generate, verify
from sda_core.data.writer import chunk_shape
from sda_core.errors import ConfigError, DataError, ShapeError, SimulationError
from sda_core.system import Axis, SystemSpec, simulate_block

from . import data_systems
from .data_systems import Swing, Walk, make

SPLITS = ("train", "valid", "test")


def states(path: Path) -> torch.Tensor:
    return torch.cat([TrajectoryStore(path / f"{s}.h5").read(slice(None)) for s in SPLITS])


def file_bytes(path: Path) -> list[bytes]:
    return [(path / f"{split}.h5").read_bytes() for split in SPLITS]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    return make(Walk(), tmp_path_factory.mktemp("data"))


def start(path: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, data_systems.__file__, str(path), *options])


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.01)


def test_holds_the_states_of_the_blocks(uninterrupted):
    blocks = [simulate_block(Walk(), 1, block, 12, 3) for block in range(5)]
    assert torch.equal(states(uninterrupted), torch.cat(blocks))


@pytest.mark.parametrize("system", [Walk(), Swing()])
def test_a_trajectory_does_not_depend_on_how_many_are_made(system, tmp_path):
    few = states(make(system, tmp_path / "few", trajectories=11))
    many = states(make(system, tmp_path / "many", trajectories=26))
    assert torch.equal(few, many[:11])
    assert not torch.equal(few, states(make(system, tmp_path / "seed", trajectories=11, seed=2)))


def test_workers_make_the_same_files(uninterrupted, tmp_path):
    process = start(tmp_path / "data", "--workers", "2")
    assert process.wait(120) == 0
    assert file_bytes(tmp_path / "data") == file_bytes(uninterrupted)


def test_goes_on_after_being_killed(uninterrupted, tmp_path):
    path, parts = tmp_path / "data", tmp_path / "data" / ".parts"
    process = start(path, "--workers", "2", "--pause", "0.5")
    wait_for(lambda: list(parts.glob("*.npz")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    while any(running(int(child)) for child in children):
        time.sleep(0.02)  # workers end with their parent

    done = len(list(parts.glob("*.npz")))
    assert done < 5
    assert not list(path.glob("*.h5"))
    text = str(verify(path))
    assert f"{done} of 5 blocks are done" in text
    assert "run 'sda simulate' with the same configuration" in text

    reported = []
    make(Walk(), path, progress=lambda blocks, total: reported.append((blocks, total)))
    assert reported == [(block, 5) for block in range(done + 1, 6)]
    assert file_bytes(path) == file_bytes(uninterrupted)
    assert sorted(p.name for p in path.iterdir()) == ["test.h5", "train.h5", "valid.h5"]
    assert verify(path).ok


def test_goes_on_after_being_killed_in_the_merge(uninterrupted, tmp_path):
    path = tmp_path / "data"
    process = start(path, "--stop-in-merge")
    wait_for((path / "train.h5").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (path / "valid.h5").exists()
    report = verify(path)
    assert "5 of 5 blocks are done" in str(report)

    reported = []
    make(Walk(), path, progress=lambda *block: reported.append(block))
    assert reported == []
    assert file_bytes(path) == file_bytes(uninterrupted)
    assert verify(path).ok


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_finished_data_set_is_left_alone(uninterrupted):
    before = [(uninterrupted / f"{split}.h5").stat() for split in SPLITS]
    make(Walk(), uninterrupted, progress=lambda *_: pytest.fail("simulated again"))
    assert [(uninterrupted / f"{split}.h5").stat() for split in SPLITS] == before


def test_refuses_to_overwrite_another_data_set(uninterrupted):
    with pytest.raises(DataError, match=r"not overwritten.*seed \(1 there, 2 asked for\).*delete"):
        make(Walk(), uninterrupted, seed=2)


def interrupt(path: Path, **options) -> Path:
    """Leave parts behind."""

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(Walk(), path, progress=stop, **options)
    return path / ".parts"


def test_refuses_leftovers_of_another_configuration(tmp_path):
    parts = interrupt(tmp_path)
    with pytest.raises(DataError, match=r"length \(12 there, 9 asked for\).*another directory"):
        make(Walk(), tmp_path, length=9)
    with pytest.raises(DataError, match=r"version of sda-walk \(none there, 2.0 now\)"):
        make(Walk(), tmp_path, versions={"sda-walk": "2.0"})
    (parts / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest .* cannot be read .*delete"):
        make(Walk(), tmp_path)
    (parts / "manifest.json").unlink()
    with pytest.raises(DataError, match="parts without the manifest"):
        make(Walk(), tmp_path)


def test_a_damaged_part_is_made_again(uninterrupted, tmp_path):
    parts = interrupt(tmp_path)
    part = parts / "block-000000.npz"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    (parts / "block-000001.npz").replace(parts / "block-000002.npz")
    reported = []
    make(Walk(), tmp_path, progress=lambda done, total: reported.append(done))
    assert reported == [1, 2, 3, 4, 5]
    assert file_bytes(tmp_path) == file_bytes(uninterrupted)


def test_two_processes_do_not_make_one_data_set(tmp_path):
    process = start(tmp_path / "data", "--pause", "5")
    wait_for((tmp_path / "data" / ".parts" / "manifest.json").exists, process)
    with pytest.raises(DataError, match="another process is making the data set"):
        make(Walk(), tmp_path / "data")
    process.kill()
    process.wait()


def test_a_full_disk_is_told_before_starting(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1000))
    with pytest.raises(DataError, match=r"takes 15 KiB of disk.*only 1000 bytes are free"):
        make(Walk(), tmp_path)
    assert not list(tmp_path.glob("*.h5*"))


def test_statistics_are_those_of_the_training_split(uninterrupted):
    info = TrajectoryStore(uninterrupted / "test.h5").info
    train = TrajectoryStore(uninterrupted / "train.h5").read(slice(None)).double()
    assert info.standardization_source == "train"
    np.testing.assert_allclose(info.spec.mean, train.mean((0, 1, 3)), rtol=1e-12)
    np.testing.assert_allclose(info.spec.std, train.std((0, 1, 3), correction=0), rtol=1e-12)


def test_statistics_of_the_system_go_first(tmp_path):
    info = TrajectoryStore(make(Swing(), tmp_path) / "train.h5").info
    assert (info.spec.mean, info.spec.std) == ((0.0, 1.0), (0.5, 2.0))
    assert info.standardization_source == "system"


@attrs.frozen(kw_only=True)
class Odd(Swing):
    """Swing with something wrong."""

    wrong: str = ""

    @property
    def spec(self):
        spec = SystemSpec(variables=("q", "p"), time_step=0.1)
        if self.wrong == "axis":
            return attrs.evolve(spec, axes=(Axis("x", np.arange(2.0)),))
        return spec

    def rhs(self, x):
        return x * 1e3 if self.wrong == "blow-up" else torch.zeros_like(x)

    def prior(self, shape, generator):
        x = torch.ones(*shape, 2)
        if self.wrong == "shape":
            return x[..., :1]
        return x.double() * 1e39 if self.wrong == "range" else x


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("axis", ConfigError, r"grid axes \['x'\] cannot be stored.*Rename"),
        ("constant", DataError, r"\['q', 'p'\] are constant over the training split.*spec"),
        ("shape", ShapeError, r"Odd returned trajectories of shape \(8, 12, 1\).*\(8, 12, 2\)"),
        ("range", SimulationError, r"seed 1, trajectories .*too large for float32"),
        ("blow-up", SimulationError, r"seed 1, trajectories 0 to 7.*finite"),
    ],
)
def test_errors_of_systems(wrong, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make(Odd(wrong=wrong), tmp_path)
    assert not list(tmp_path.glob("*.h5"))


def test_system_that_cannot_be_pickled(tmp_path):
    class Local(Swing):
        pass

    with pytest.raises(ConfigError, match=r"Local cannot be sent to 2 worker.*data.workers = 1"):
        make(Local(), tmp_path, workers=2)


def test_a_worker_that_dies(tmp_path, monkeypatch):
    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, context, initializer):
            super().__init__(workers)

        def submit(self, function, *arguments):
            future = Future()
            future.set_exception(BrokenProcessPool("died"))
            return future

    monkeypatch.setitem(generate.__globals__, "ProcessPoolExecutor", Pool)
    with pytest.raises(DataError, match=r"one of 2 worker processes died.*fewer workers"):
        make(Walk(), tmp_path, workers=2)


def test_a_split_without_trajectories_has_no_file(tmp_path):
    config = DataConfig(trajectories=9, length=3, burn_in=0, fractions=(0.0, 0.0, 1.0))
    generate(Swing(), tmp_path, config, 0, system_config={})
    assert [p.name for p in tmp_path.iterdir()] == ["test.h5"]
    assert verify(tmp_path).ok
    with pytest.raises(ConfigError, match="training split, which is empty"):
        generate(Walk(), tmp_path / "other", config, 0, system_config={})


def test_recipe_errors(tmp_path):
    with pytest.raises(ConfigError, match="seed must be between 0 and"):
        make(Walk(), tmp_path, seed=-1)
    with pytest.raises(ConfigError, match=r"stored with the data as JSON.*numbers, strings"):
        generate(Walk(), tmp_path, DataConfig(), 0, system_config={"f": print})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": (0.8, 0.1, 0.2)}, r"add up to 1, not \[0.8, 0.1, 0.2\].*1.1"),
        ({"fractions": (1.1, 0.0, -0.1)}, "0 or greater"),
        ({"fractions": (0.5, 0.5)}, "three numbers"),
        ({"trajectories": 0}, "1 or greater"),
        ({"workers": 0}, "1 or greater"),
        ({"length": 0}, "1 or greater"),
        ({"burn_in": -1}, "0 or greater"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options)


def test_sizes_of_the_paper():
    assert DataConfig().split_sizes == {"train": 819, "valid": 102, "test": 103}


def test_bounds_that_are_whole_numbers_are_kept():
    sizes = DataConfig(trajectories=10, fractions=(0.7, 0.1, 0.2)).split_sizes
    assert sizes == {"train": 7, "valid": 1, "test": 2}


@given(st.integers(1, 10**6), st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any))
def test_split_sizes(trajectories, weights):
    fractions = tuple(w / sum(weights) for w in weights)
    config = DataConfig(trajectories=trajectories, fractions=fractions)
    sizes = list(config.split_sizes.values())
    assert sum(sizes) == trajectories
    for size, weight in zip(sizes, weights, strict=True):
        exact = trajectories * weight / sum(weights)
        assert exact - 1 <= size <= exact + 1


@given(st.integers(1, 3000), st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_chunks(length, state_shape):
    chunk = chunk_shape(length, tuple(state_shape))
    assert chunk[0] == 1
    assert 4 * np.prod(chunk, dtype=float) <= 2**20
    assert all(1 <= c <= n for c, n in zip(chunk[1:], (length, *state_shape), strict=True))
    # A trajectory that fits is not cut.
    whole = 4 * length * np.prod(state_shape, dtype=float) <= 2**20
    assert (chunk[1:] == (length, *state_shape)) == whole


def test_progress_lines_only_when_asked(tmp_path, capfd):
    make(Swing(), tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    make(Swing(), tmp_path / "b", progress=True)
    assert "simulating: done in" in capfd.readouterr().err
    make(Swing(), tmp_path / "c", progress=False)
    assert capfd.readouterr() == ("", "")


def test_standardization_round_trip():
    standardization = Standardization([1.0, -2.0], [0.5, 4.0], grid_rank=1)
    x = torch.randn(3, 5, 2, 7)
    z = standardization.to_model(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z[:, :, 1], (x[:, :, 1] + 2) / 4)
    torch.testing.assert_close(standardization.to_physical(z), x)
    assert standardization.to_model(x[0, 0].double()).dtype == torch.float64
    with pytest.raises(ShapeError, match=r"\(\.\.\., 2\) followed by 1 grid axes, got \(5, 7\)"):
        standardization.to_model(torch.zeros(5, 7))
    with pytest.raises(ConfigError, match="std positive"):
        Standardization([0.0], [0.0])
    with pytest.raises(ConfigError, match="one entry per variable"):
        Standardization([0.0, 1.0], [1.0])
    with pytest.raises(ConfigError, match=r"\['q', 'p'\] has no mean and std"):
        Standardization.from_spec(Swing(std=None).spec)
