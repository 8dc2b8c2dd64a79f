import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from sda_core.cli import make_app
from sda_core.cluster import Local
from sda_core.data import DataConfig, Standardization, TrajectoryStore, generate, verify
from sda_core.data.generate import preview
from sda_core.data.parts import Parts
from sda_core.data.preview import Preview, duration_text, measure_seconds
from sda_core.data.writer import chunk_shape
from sda_core.errors import (
    ClusterError,
    ConfigError,
    DataError,
    ShapeError,
    SimulationError,
    SimulationWarning,
)
from sda_core.plugins import default_manager
from sda_core.random import seeded_generator
from sda_core.system import Axis, System, SystemSpec, simulate_block

from . import data_systems
from .data_systems import Swing, Walk, Wave, make

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


#: Trajectories 1, 3, 9 and 13 of seed 1 exceed this and are drawn again.
LIMIT = 2.35


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory) -> Path:
    with pytest.warns(SimulationWarning) as warned:
        path = make(Wave(limit=LIMIT), tmp_path_factory.mktemp("wave"))
    assert [str(warning.message)[:25] for warning in warned] == [
        "seed 1, trajectories [1, ",
        "seed 1, trajectories [9]:",
        "seed 1, trajectories [13]",
    ]
    assert {Path(warning.filename).name for warning in warned} == {"data_systems.py"}
    return path


def test_only_lost_trajectories_are_drawn_again(redrawn, tmp_path):
    x, unlimited = states(redrawn), states(make(Wave(), tmp_path))
    assert unlimited.amax((1, 2, 3, 4)).gt(LIMIT).nonzero().flatten().tolist() == [1, 3, 9, 13]
    for i in range(20):
        if i in (1, 3, 9, 13):
            generator = seeded_generator(1, i // 4, 1)
            prior = Wave().prior((4,), generator)
            assert torch.equal(x[i], Wave().trajectory(prior, 12, 3, generator)[i % 4])
        else:
            assert torch.equal(x[i], unlimited[i])


def test_redraws_in_workers_are_the_same_and_are_told(redrawn, tmp_path, monkeypatch):
    # So that the workers find the system under the name that pickle writes.
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2]), *sys.path])
    with pytest.warns(SimulationWarning) as warned:
        make(Wave(limit=LIMIT), tmp_path, workers=2)
    assert sorted(str(warning.message).split(":")[0] for warning in warned) == [
        "seed 1, trajectories [1, 3]",
        "seed 1, trajectories [13]",
        "seed 1, trajectories [9]",
    ]
    assert file_bytes(tmp_path) == file_bytes(redrawn)


def test_whole_trajectories_go_on_after_being_killed(redrawn, tmp_path):
    path = tmp_path / "data"
    process = start(path, "--limit", str(LIMIT), "--pause", "0.3")
    wait_for(lambda: list((path / ".parts").glob("*.npz")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((path / ".parts").glob("*.npz")))
    assert 0 < done < 5

    reported = []
    with pytest.warns(SimulationWarning):
        make(Wave(limit=LIMIT), path, progress=lambda blocks, total: reported.append(blocks))
    assert reported == list(range(done + 1, 6))
    assert file_bytes(path) == file_bytes(redrawn)


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
    with pytest.raises(DataError, match="another generation of data"):
        make(Walk(), tmp_path / "data")
    process.kill()
    process.wait()


def test_a_full_disk_is_told_before_starting(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 1000))
    with pytest.raises(DataError, match=r"takes 15 KiB of disk.*only 1000 bytes are free"):
        make(Walk(), tmp_path)
    assert not list(tmp_path.glob("*.h5*"))


KOLMOGOROV = Preview(
    shapes={
        "train": (819, 64, 2, 64, 64),
        "valid": (102, 64, 2, 64, 64),
        "test": (103, 64, 2, 64, 64),
    },
    blocks=64,
    missing=64,
    workers=2,
    seconds=840.0,
)


def test_preview_of_a_large_data_set():
    assert KOLMOGOROV.size == 2**31
    assert KOLMOGOROV.sizes == {"train": 819 * 2**21, "valid": 102 * 2**21, "test": 103 * 2**21}
    assert KOLMOGOROV.rounds == 32
    assert str(KOLMOGOROV) == (
        "data: 1,024 trajectories of 64 states (2, 64, 64), 2.0 GiB (train 1.6 GiB, "
        "valid 204 MiB, test 206 MiB); 4.0 GiB of disk while they are made\n"
        "time: about 14 min with 2 workers, 64 of 64 blocks to simulate"
    )
    assert "about 14 min with 1 worker," in attrs.evolve(KOLMOGOROV, workers=1).time_line
    unmeasured = attrs.evolve(KOLMOGOROV, seconds=None, missing=7)
    assert unmeasured.time_line == "time: not measured, 7 of 64 blocks to simulate"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "1 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (840, "14 min"),
        (5940, "99 min"),
        (6000, "1.7 h"),
        (10 * 3600, "10 h"),
        (100 * 3600, "4.2 days"),
    ],
)
def test_duration_text(seconds, text):
    assert duration_text(seconds) == text


def ask(system: System, path: Path, length: int = 12, **options) -> Preview:
    config = DataConfig(trajectories=20, length=length, burn_in=3, **options)
    system_config = {"name": type(system).__name__.lower()}
    return preview(system, path, config, 1, system_config=system_config)


def test_preview_is_what_is_then_made(tmp_path, monkeypatch):
    length = 500
    plan = ask(Wave(block_size=8), tmp_path, length=length, workers=8)
    assert list(tmp_path.iterdir()) == []
    assert (plan.blocks, plan.missing, plan.workers) == (3, 3, 3)
    assert 0 < plan.seconds < 600

    peak = []
    remove = Parts.remove

    def measure_then_remove(parts):
        files = [path for path in parts.directory.rglob("*") if path.is_file()]
        peak.append(sum(path.stat().st_size for path in files))
        remove(parts)

    monkeypatch.setattr(Parts, "remove", measure_then_remove)
    make(Wave(block_size=8), tmp_path, length=length)
    stores = {split: TrajectoryStore(tmp_path / f"{split}.h5") for split in SPLITS}
    assert plan.shapes == {split: store.shape for split, store in stores.items()}
    assert plan.sizes == {
        split: 4 * store.read(slice(None)).numel() for split, store in stores.items()
    }
    assert plan.peak_disk <= peak[0] < 1.15 * plan.peak_disk  # the rest are headers and sums
    after = ask(Wave(block_size=8), tmp_path, length=length)
    assert (after.missing, after.time_line) == (0, "time: nothing is left to simulate")


def test_preview_counts_what_is_missing(tmp_path):
    interrupt(tmp_path)
    plan = ask(Walk(), tmp_path, workers=2)
    assert (plan.blocks, plan.missing, plan.rounds) == (5, 3, 2)
    with pytest.raises(DataError, match=r"length \(12 there, 9 asked for\)"):
        ask(Walk(), tmp_path, length=9)


class Clock:
    """Time that passes when the systems of these tests say so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@attrs.frozen(kw_only=True)
class Timed(Wave):
    """A compiled system: what its prior, a call, a step and a compilation take."""

    clock: Clock
    prior_seconds: float = 0.0
    call: float = 0.0
    step: float = 0.0
    compilation: float = 0.0
    compiled: set[int] = attrs.field(factory=set)

    def prior(self, shape, generator):
        self.clock.now += self.prior_seconds
        return super().prior(shape, generator)

    def trajectory(self, x, length, burn_in, generator):
        self.clock.now += self.call + self.step * (length + burn_in)
        if length not in self.compiled:
            self.clock.now += self.compilation
            self.compiled.add(length)
        return super().trajectory(x, length, burn_in, generator)


def test_time_of_long_steps_takes_two_of_them():
    clock = Clock()
    system = Timed(clock=clock, prior_seconds=2.0, step=3.0, compilation=20.0)
    assert measure_seconds(system, 128, 32, clock) == pytest.approx(32 * (2 + 3 * 128))
    assert clock.now == 2 * 2 + 20 + 2 * 3
    assert measure_seconds(system, 128, 16, clock) == pytest.approx(16 * (2 + 3 * 128))


def test_time_of_steps_is_told_from_that_of_the_call():
    clock = Clock()
    system = Timed(clock=clock, prior_seconds=0.01, call=0.05, step=1e-3, compilation=5.0)
    seconds = measure_seconds(system, 2048, 64, clock)
    assert seconds == pytest.approx(64 * (0.01 + 0.05 + 2.048))
    assert clock.now < 0.05 * seconds


def test_measuring_takes_a_small_share_of_a_short_simulation():
    clock = Clock()
    system = Timed(clock=clock, step=1e-5)
    seconds = measure_seconds(system, 1000, 10, clock)
    assert seconds == pytest.approx(0.1)
    assert clock.now < 0.1 * seconds


def test_time_of_a_whole_block_that_is_fast():
    clock = Clock()
    system = Timed(clock=clock, call=0.01, step=1e-5)
    assert measure_seconds(system, 20, 1000, clock) == pytest.approx(1000 * 0.0102)


def test_members_lost_while_measuring_do_not_matter():
    clock = Clock()
    system = Timed(clock=clock, step=1.0, limit=-100.0)
    assert measure_seconds(system, 64, 1, clock) == pytest.approx(64.0)


def test_a_tiny_simulation_is_not_measured():
    clock = Clock()
    assert measure_seconds(Timed(clock=clock, step=1.0), 15, 2, clock) is None
    assert clock.now == 0


@pytest.mark.parametrize(("workers", "rounds"), [(1, 3), (2, 2), (3, 1), (8, 1)])
def test_says_beforehand_what_is_to_come(workers, rounds, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(
        generate.__globals__, "measure_seconds", lambda system, steps, n: 60.0 * steps * n
    )
    monkeypatch.setattr(
        Local, "map", lambda self, work, tasks, workers: ((i, work(t)) for i, t in enumerate(tasks))
    )
    interrupt(tmp_path)
    make(Walk(), tmp_path, workers=workers, progress=True)
    size, time_needed, *rest = capfd.readouterr().err.splitlines()
    assert size == (
        "data: 20 trajectories of 12 states (2, 4), 8 KiB (train 6 KiB, valid 768 bytes, "
        "test 768 bytes); 15 KiB of disk while they are made"
    )
    used = min(workers, 3)
    assert time_needed == (
        f"time: about {15 * rounds} min with {used} worker{'s' * (used > 1)}, "
        "3 of 5 blocks to simulate"
    )
    assert [line.split(":")[0] for line in rest] == ["simulating"]


def test_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--set=data.trajectories=200", "--set=data.length=100", "--set=data.burn_in=28"]
    done = CliRunner().invoke(
        make_app(default_manager()), ["simulate", "lorenz63", *options, "--dry-run"]
    )
    assert done.exit_code == 0
    size, time_needed = done.stdout.splitlines()
    assert size.startswith("data: 200 trajectories of 100 states (3,), 234 KiB (train 188 KiB,")
    assert time_needed.startswith("time: about ")
    assert time_needed.endswith(" with 1 worker, 2 of 2 blocks to simulate")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("system", [Walk(), Swing()])
def test_each_file_tells_the_statistics_of_its_own_states(system, tmp_path):
    path = make(system, tmp_path)
    for split in SPLITS:
        store = TrajectoryStore(path / f"{split}.h5")
        x = store.read(slice(None)).double().movedim(2, 0).flatten(1)
        np.testing.assert_allclose(store.info.measured_mean, x.mean(1), rtol=1e-12)
        np.testing.assert_allclose(store.info.measured_std, x.std(1, correction=0), rtol=1e-12)


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


def test_a_block_size_of_the_system_itself(tmp_path):
    reported = []
    path = make(Wave(block_size=7), tmp_path, progress=lambda *block: reported.append(block))
    assert reported == [(1, 3), (2, 3), (3, 3)]
    assert TrajectoryStore(path / "test.h5").info.recipe.block_size == 7
    blocks = [simulate_block(Wave(block_size=7), 1, block, 12, 3) for block in range(3)]
    assert torch.equal(states(path), torch.cat(blocks)[:20])


def test_system_that_cannot_be_pickled(tmp_path):
    class Unwieldy(Swing):
        pass

    with pytest.raises(ClusterError, match=r"cannot be sent to 2 worker.*Unwieldy.*one worker"):
        make(Unwieldy(), tmp_path, workers=2)


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
    shown = capfd.readouterr().err
    assert shown.startswith("data: 20 trajectories of 12 states (2,), 2 KiB")
    assert "simulating: done in" in shown
    make(Swing(), tmp_path / "b", progress=True)  # nothing to do, nothing to say
    assert capfd.readouterr() == ("", "")
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
