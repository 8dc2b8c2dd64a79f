import itertools
import pickle
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.data import windows as windows_module
from sda_core.data.prefetch import prefetch
from sda_core.data.windows import available_memory
from sda_core.errors import DataError

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
    assert windows_module._free_in_groups(groups, tmp_path)[1:] == [3 * 2**30]
    assert available_memory() > 0
    groups.write_text("1:memory:/elsewhere\n")
    assert windows_module._free_in_groups(groups, tmp_path) == [sys.maxsize]
