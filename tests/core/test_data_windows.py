import itertools
import math
import pickle
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import attrs
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sda_core.data import TrajectoryStore, WindowDataset, windows as windows_module
from sda_core.data.prefetch import prefetch
from sda_core.errors import DataError
from sda_core.io.available_memory import _free_in_groups, available_memory
from sda_core.training import Group

from .data_systems import Swing, Walk, make


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrajectoryStore:
    return TrajectoryStore(make(Walk(), tmp_path_factory.mktemp("data")) / "train.h5")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 12),
    batch_size=st.integers(1, 40),
    per_trajectory=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_lazy_and_in_memory_windows_are_the_same(store, window, batch_size, per_trajectory, seed):
    held = WindowDataset(store, window)
    lazy = WindowDataset(store, window, memory_limit=0)
    assert held.held_on == torch.device("cpu")
    assert lazy.held_on is None
    arguments = (batch_size, per_trajectory)
    pairs = list(
        zip(
            held.epoch(generator(seed), *arguments),
            lazy.epoch(generator(seed), *arguments),
            strict=True,
        )
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    count = 16 * per_trajectory
    sizes = [len(a) for a, _ in pairs]
    assert sizes == [min(batch_size, count - i) for i in range(0, count, batch_size)]
    assert pairs[0][0].shape[1:] == (window, 2, 4)
    assert pairs[0][0].dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(window=st.integers(1, 12), per_trajectory=st.integers(1, 4), seed=st.integers(0, 1000))
def test_an_epoch_takes_windows_from_every_trajectory(store, window, per_trajectory, seed):
    z = store.standardization.to_model(store.read(slice(None)))
    every = z.unfold(1, window, 1).movedim(-1, 2)  # (N, starts, W, C, *S)
    taken = []
    for batch in WindowDataset(store, window).epoch(generator(seed), 5, per_trajectory):
        for member in batch:
            rows = (every == member).flatten(2).all(-1).any(1).nonzero().flatten().tolist()
            assert len(rows) == 1, "not a window of one trajectory"
            taken += rows
    assert sorted(taken) == sorted(list(range(len(store))) * per_trajectory)


def test_starts_are_uniform_with_both_ends(store):
    z = store.standardization.to_model(store.read(slice(None)))
    windows = WindowDataset(store, 10)
    seen = torch.zeros(3)
    source = generator()
    for _ in range(75):
        for batch in windows.epoch(source, 16):
            for start in range(3):
                equal = z[None, :, start] == batch[:, None, 0]
                seen[start] += equal.flatten(2).all(-1).any(1).sum()
    # 1200 draws of 3 starts: chi-squared with 2 degrees of freedom exceeds 13.8 once in 1000.
    assert seen.sum() == 1200
    assert ((seen - 400) ** 2 / 400).sum() < 13.8


def test_the_order_is_shuffled_and_drawn_from_the_generator(store):
    windows = WindowDataset(store, 3)
    source = generator()
    first, second = (next(windows.epoch(source, 16)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(windows.epoch(generator(), 16)))


def test_windows_are_standardized(tmp_path):
    store = TrajectoryStore(make(Swing(std=None), tmp_path) / "train.h5")
    batches = torch.cat(list(WindowDataset(store, 12).epoch(generator(), 4)))
    torch.testing.assert_close(batches.mean((0, 1)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(batches.std((0, 1), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_the_limit_counts_all_states(store):
    size = 4 * 16 * 12 * 2 * 4
    assert WindowDataset(store, 3, memory_limit=size).held_on is not None
    assert WindowDataset(store, 3, memory_limit=size - 1).held_on is None


@pytest.mark.parametrize(
    ("free", "place"),
    [
        ({"meta": 10**9, "cpu": 10**9}, "meta"),
        ({"meta": 10**3, "cpu": 10**9}, "cpu"),
        ({"meta": 10**3, "cpu": 10**3}, None),
    ],
)
def test_states_are_held_on_the_device_or_the_host_or_not_at_all(store, monkeypatch, free, place):
    """On torch's device without memory, which stands for any other than the host."""
    monkeypatch.setattr(
        "sda_core.data.windows.available_memory", lambda device: free[torch.device(device).type]
    )
    windows = WindowDataset(store, 3, device="meta")
    assert windows.held_on == (None if place is None else torch.device(place))
    batches = list(windows.epoch(generator(), 6))
    assert [(b.device.type, tuple(b.shape)) for b in batches] == [
        ("meta", (n, 3, 2, 4)) for n in (6, 6, 4)
    ]
    if place is not None:
        assert windows._states.device.type == place


def test_processes_share_the_memory_of_the_host_alone(store, monkeypatch):
    size = 4 * 16 * 12 * 2 * 4
    monkeypatch.setattr("sda_core.data.windows.available_memory", lambda device: 6 * size)
    for device, processes, place in (("cpu", 3, "cpu"), ("cpu", 4, None), ("meta", 4, "meta")):
        windows = WindowDataset(store, 3, device=device, processes=processes)
        assert windows.held_on == (None if place is None else torch.device(place))


@pytest.mark.parametrize("limit", [None, 0])
def test_shares_of_batches_are_the_batches(store, limit):
    windows = WindowDataset(store, 3, limit)
    whole = list(windows.epoch(generator(), 6, first=1))
    assert [len(batch) for batch in whole] == [6, 4]
    shares = [Group(rank, 5).shard for rank in range(5)]
    parts = [list(windows.epoch(generator(), 6, first=1, share=share)) for share in shares]
    for i, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts]), batch)
    assert min(len(part[1]) for part in parts) == 0


def _prefetching() -> bool:
    return any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_prefetched_items_come_in_order_from_another_thread():
    threads = []

    def items():
        for i in range(20):
            threads.append(threading.current_thread())
            yield i

    assert list(prefetch(items(), 3)) == list(range(20))
    assert threading.current_thread() not in threads
    assert not _prefetching()


def test_prefetching_goes_ahead_but_not_too_far():
    made = []
    items = prefetch((made.append(i) or i for i in itertools.count()), 3)
    assert next(items) == 0
    until = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3]  # the one that was taken, and three ahead
    assert _prefetching()
    items.close()
    assert not _prefetching()


def test_an_error_in_prefetching_comes_in_its_place():
    items = prefetch((1 // (2 - i) for i in itertools.count()), 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert not _prefetching()


def test_reading_in_the_background_ends_with_the_epoch(store, monkeypatch):
    lazy = WindowDataset(store, 3, memory_limit=0)
    epoch = lazy.epoch(generator(), 1)
    next(epoch)
    assert _prefetching()
    epoch.close()
    assert not _prefetching()

    def damaged(*arguments):
        raise DataError("trajectory 3 cannot be read")

    monkeypatch.setattr(store, "read_windows", damaged)
    with pytest.raises(DataError, match="trajectory 3 cannot be read"):
        next(lazy.epoch(generator(), 4))
    assert not _prefetching()


def test_pickles_without_the_data(store):
    windows = WindowDataset(store, 3)
    batch = next(windows.epoch(generator(), 16))
    pickled = pickle.dumps(windows)
    assert len(pickled) < 4 * 16 * 12 * 2 * 4
    assert torch.equal(next(pickle.loads(pickled).epoch(generator(), 16)), batch)


@pytest.mark.parametrize("window", [0, 13])
def test_windows_that_do_not_fit(store, window):
    with pytest.raises(DataError, match=rf"windows of {window} states.*have 12: .* from 1 to 12"):
        WindowDataset(store, window)


def test_memory_that_a_control_group_leaves(tmp_path, monkeypatch) -> None:
    """A job may use 8 GiB of a large machine; 6 are used, of which 1 are cached files."""
    inner = tmp_path / "jobs" / "job"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (inner.parent, str(8 * 2**30))):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{6 * 2**30}\n")
        (folder / "memory.stat").write_text(f"anon {5 * 2**30}\nfile {2**30}\n")
    groups = tmp_path / "cgroup"
    groups.write_text("0::/jobs/job\n")
    assert _free_in_groups(groups, tmp_path)[1:] == [3 * 2**30]
    assert available_memory() > 0
    groups.write_text("1:memory:/elsewhere\n")
    assert _free_in_groups(groups, tmp_path) == [sys.maxsize]


@pytest.mark.parametrize("place", ["cpu", None])
def test_batches_for_another_device_are_made_in_the_background(store, monkeypatch, place):
    free = {"meta": 0, "cpu": 0 if place is None else 10**9}
    monkeypatch.setattr(
        "sda_core.data.windows.available_memory", lambda device: free[torch.device(device).type]
    )
    windows = WindowDataset(store, 3, device="meta")
    assert windows.held_on == (place and torch.device(place))
    threads = set()

    def pinned(batch):
        threads.add(threading.current_thread())
        return batch

    monkeypatch.setattr(windows, "_pinned", pinned)
    epoch = windows.epoch(generator(), 6)
    next(epoch)
    assert _prefetching()
    epoch.close()
    assert not _prefetching()
    assert len(threads) == 1
    assert threading.current_thread() not in threads


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Data standardized with statistics of the training split, and of the system."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "train": make(Swing(std=None), folder / "train", trajectories=40),
        "system": make(Swing(), folder / "system", trajectories=40),
    }


def changed(source: Path, target: Path, change, split: str = "train", limit: int | None = None):
    """A data set with other states in a file that says the same."""
    path = Path(tempfile.mkdtemp(dir=target)) / f"{split}.h5"
    shutil.copy(source / f"{split}.h5", path)
    with h5py.File(path, "r+") as file:
        file["x"][...] = change(file["x"][:])
    return WindowDataset(TrajectoryStore(path), 3, memory_limit=limit)


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("source", ["train", "system"])
def test_check_passes_data_as_they_were_made(sources, source, limit):
    for split in ("train", "valid", "test"):
        store = TrajectoryStore(sources[source] / f"{split}.h5")
        WindowDataset(store, 3, memory_limit=limit).check()


@pytest.mark.parametrize("source", ["train", "system"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_check_notices_small_changes_where_all_states_are_held(sources, source, split, tmp_path):
    info = TrajectoryStore(sources[source] / f"{split}.h5").info
    std = info.measured_std[0] / info.spec.std[0]
    shift = np.array([0.05 * info.measured_std[0], 0])
    for change in (lambda x: 1.05 * x, lambda x: x + shift):
        windows = changed(sources[source], tmp_path, change, split)
        with pytest.raises(DataError, match=r"variable 'q'.*not the data that the statistics are"):
            windows.check()
    text = rf"its std {1.05 * std:.3g} instead of \S+ and {std:.3g}:"
    with pytest.raises(DataError, match=text):
        changed(sources[source], tmp_path, lambda x: 1.05 * x, split).check()
    changed(sources[source], tmp_path, lambda x: 1.001 * x, split).check()
    # Only some windows are looked at.
    changed(sources[source], tmp_path, lambda x: 1.05 * x, split, limit=0).check()


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("source", ["train", "system"])
def test_check_notices_other_units(sources, source, tmp_path, limit):
    with pytest.raises(DataError, match="these are not the data that the statistics are of"):
        changed(sources[source], tmp_path, lambda x: 20 * x, limit=limit).check()


@pytest.mark.parametrize("limit", [None, 0])
def test_check_notices_states_that_are_not_finite(sources, tmp_path, monkeypatch, limit):
    def spoil(x):
        x[5, 6:], x[7, 6:, 1] = np.nan, np.inf
        return x

    windows = changed(sources["train"], tmp_path, spoil, limit=limit)
    for piece in (windows_module.LOAD_BYTES, 100):
        monkeypatch.setattr(windows_module, "LOAD_BYTES", piece)
        with pytest.raises(DataError, match=r"not finite, in trajectories \[5, 7\] \(2 of 32"):
            windows.check()


@pytest.mark.parametrize("source", ["train", "system"])
def test_check_of_a_file_without_measured_statistics(sources, source, tmp_path):
    windows = changed(sources[source], tmp_path, lambda x: 1.5 * x)
    windows.store.info = attrs.evolve(windows.store.info, measured_mean=None, measured_std=None)
    if source == "train":  # then they are those of the standardization
        with pytest.raises(DataError, match=r"its std 1\.5 instead of 0 and 1"):
            windows.check()
    else:
        windows.check()


class Allocations(TorchDispatchMode):
    """Bytes of the tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                at = storage.data_ptr()
                self.sizes[at] = max(self.sizes.get(at, 0), storage.nbytes())
        return out


def test_check_needs_no_copy_of_the_data(sources, monkeypatch):
    store = TrajectoryStore(sources["train"] / "train.h5")
    row = 4 * math.prod(store.shape[1:])
    monkeypatch.setattr(windows_module, "LOAD_BYTES", 2 * row)
    windows = WindowDataset(store, 3)
    with Allocations() as made:
        windows.check()
    *others, largest = sorted(made.sizes.values())
    assert largest == 32 * row
    assert max(others) <= 2 * row
