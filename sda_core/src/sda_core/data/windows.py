"""Short windows of trajectories in model space: what kernels are trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from sda_core.data.store import TrajectoryStore
from sda_core.errors import DataError

LOAD_BYTES = 64 * 2**20


def available_memory() -> int:
    """Memory, in bytes, that can be had without swapping; all there is where that is unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            table = dict(line.split(":") for line in file)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class WindowDataset:
    r"""Random windows of a store's trajectories, standardized.

    The trajectories are held in memory where they fit, and else read window by window; the batches
    are the same. May be pickled: each process loads or opens the data for itself.

    Args:
        store: The trajectories.
        window: Number W of states in a window.
        memory_limit: How many bytes may be held in memory; None for half of what is available.

    Attributes:
        store: The trajectories.
        window: Number of states in a window.
        in_memory: Whether the trajectories are held in memory.

    Raises:
        DataError: The window is longer than the trajectories.
    """

    def __init__(
        self, store: TrajectoryStore, window: int, memory_limit: int | None = None
    ) -> None:
        self.store, self.window = store, window
        length = store.shape[1]
        if not 1 <= window <= length:
            raise DataError(
                f"windows of {window} states were asked for, but the trajectories in {store.path} "
                f"have {length}: choose a window from 1 to {length}, or make longer trajectories "
                "(data.length)"
            )
        limit = available_memory() // 2 if memory_limit is None else memory_limit
        self.in_memory = 4 * math.prod(store.shape) <= limit
        self._standardization = store.standardization
        self._states: Tensor | None = None

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.store)

    def epoch(
        self, generator: Generator, batch_size: int, per_trajectory: int = 1
    ) -> Iterator[Tensor]:
        r"""Draw windows from every trajectory, each with a uniformly random start, shuffled.

        Args:
            generator: Source of randomness, on the CPU; drawn from before the first batch only.
            batch_size: Number B of windows in a batch; the last batch has what is left.
            per_trajectory: Number of windows drawn from each trajectory.

        Yields:
            Windows in model space, float32, (B, W, C, \*S).

        Raises:
            DataError: The file is damaged.
        """
        N, L = self.store.shape[:2]
        count = N * per_trajectory
        rows = torch.randperm(count, generator=generator) % N
        starts = torch.randint(L - self.window + 1, (count,), generator=generator)
        for first in range(0, count, batch_size):
            batch = slice(first, first + batch_size)
            yield self._gather(rows[batch], starts[batch])

    def _gather(self, rows: Tensor, starts: Tensor) -> Tensor:
        if not self.in_memory:
            windows = self.store.read_windows(rows.tolist(), starts.tolist(), self.window)
            return self._standardization.to_model(windows)
        if self._states is None:
            self._states = self._load()
        # index_select on the states of all trajectories in a row: many times faster here than
        # indexing with a tensor.
        first = rows * self.store.shape[1] + starts
        index = first[:, None] + torch.arange(self.window)
        states = self._states.index_select(0, index.flatten())
        return states.reshape(len(rows), self.window, *states.shape[1:])

    def _load(self) -> Tensor:
        r"""All states in model space, (N L, C, \*S), loaded in pieces to need no second copy."""
        N, L, *state = self.store.shape
        states = torch.empty(N, L, *state)
        step = max(1, LOAD_BYTES // (4 * L * math.prod(state)))
        for first in range(0, N, step):
            piece = slice(first, min(first + step, N))
            states[piece] = self._standardization.to_model(self.store.read(piece))
        return states.flatten(0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_states": None}
