"""Short windows of trajectories in model space: what kernels are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from sda_core.data.arrays import ArrayStore
from sda_core.data.prefetch import prefetch
from sda_core.data.standardization import Standardization
from sda_core.data.store import TrajectoryStore
from sda_core.errors import DataError
from sda_core.io.available_memory import available_memory

LOAD_BYTES = 64 * 2**20
#: Batches that are read from the file ahead of their use.
BATCHES_AHEAD = 4
#: Windows that are looked at where the data are not held in memory.
CHECKED_WINDOWS = 256
#: How far mean and std of standardized data may be from what they should be: all states from
#: their own statistics, and any from 0 and 1. Wide, since small splits of slowly mixing systems
#: differ; a wrong file differs by more.
TIGHT, WIDE = 0.02, 5.0


class WindowDataset:
    r"""Random windows of a store's trajectories, standardized.

    The trajectories are held on the device where they fit, else in the host's memory, and else
    read window by window in the background; the batches are the same. May be pickled: each process
    loads or opens the data for itself.

    Args:
        store: The trajectories.
        window: Number W of states in a window.
        memory_limit: How many bytes may be held on a device; None for half of what is available.
        device: Where the batches are wanted.
        standardization: The map to model space; None for the store's.
        processes: How many processes share the host's memory, each with the trajectories.

    Attributes:
        store: The trajectories.
        window: Number of states in a window.
        device: Where the batches are.
        held_on: Where the trajectories are held; None where they are read from the file.
        standardization: The map to model space.

    Raises:
        DataError: The window is longer than the trajectories.
    """

    def __init__(
        self,
        store: TrajectoryStore | ArrayStore,
        window: int,
        memory_limit: int | None = None,
        device: torch.device | str = "cpu",
        standardization: Standardization | None = None,
        processes: int = 1,
    ) -> None:
        self.store, self.window, self.device = store, window, torch.device(device)
        length = store.shape[1]
        if not 1 <= window <= length:
            raise DataError(
                f"windows of {window} states were asked for, but the trajectories in {store.path} "
                f"have {length}: choose a window from 1 to {length}, or make longer trajectories "
                "(data.length)"
            )
        size = 4 * math.prod(store.shape)
        self.held_on: torch.device | None = None
        for place in (self.device, torch.device("cpu")):
            sharing = processes if place.type == "cpu" else 1
            usual = available_memory(place) // (2 * sharing)
            limit = usual if memory_limit is None else memory_limit
            if size <= limit:
                self.held_on = place
                break
        self.standardization = standardization or store.standardization
        self._states: Tensor | None = None

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.store)

    def epoch(
        self,
        generator: torch.Generator,
        batch_size: int,
        per_trajectory: int = 1,
        first: int = 0,
        share: Callable[[int], slice] = slice,
    ) -> Generator[Tensor, None, None]:
        r"""Draw windows from every trajectory, each with a uniformly random start, shuffled.

        Args:
            generator: Source of randomness, on the CPU, so that the windows are the same on every
                device; drawn from before the first batch only.
            batch_size: Number B of windows in a batch; the last batch has what is left.
            per_trajectory: Number of windows drawn from each trajectory.
            first: Number of batches that are left out at the beginning.
            share: Which windows are wanted of a batch of a size; by default all.

        Yields:
            Windows in model space, float32, (B, W, C, \*S).

        Raises:
            DataError: The file is damaged.
        """
        N, L = self.store.shape[:2]
        count = N * per_trajectory
        rows = torch.randperm(count, generator=generator) % N
        starts = torch.randint(L - self.window + 1, (count,), generator=generator)
        rows, starts = rows[first * batch_size :], starts[first * batch_size :]
        if self.held_on is None:
            parts = zip(rows.split(batch_size), starts.split(batch_size), strict=True)
            batches = (self._read(*(v[share(len(v))] for v in part)) for part in parts)
        else:
            index = (rows * L + starts)[:, None] + torch.arange(self.window)
            parts_held = index.to(self.held_on).split(batch_size)
            batches = (self._gather(part[share(len(part))]) for part in parts_held)
        if self.held_on != self.device:
            batches = prefetch(batches, BATCHES_AHEAD)
        with closing(batches):
            for batch in batches:
                yield batch.to(self.device, non_blocking=True)

    def check(self) -> None:
        """Look whether the data are finite and standardized as the store says.

        All states are looked at where they are held in memory, piece by piece as they are loaded,
        else some windows, the same each time.

        Raises:
            DataError: They are not.
        """
        seen = _Seen(len(self.store.spec.variables))
        if self.held_on is None:
            N, L = self.store.shape[:2]
            rows = torch.linspace(0, N - 1, CHECKED_WINDOWS).round().long()
            generator = torch.Generator().manual_seed(0)
            starts = torch.randint(L - self.window + 1, rows.shape, generator=generator)
            step = max(1, LOAD_BYTES // (4 * self.window * math.prod(self.store.shape[2:])))
            for part in zip(rows.split(step), starts.split(step), strict=True):
                seen.update(part[0].tolist(), self._read(*part))
        else:
            self._states = self._load(seen)
        path = self.store.path
        if bad := sorted(seen.bad):
            raise DataError(
                f"{path} has states that are not finite, in trajectories {bad[:8]}"
                f"{' and more' if len(bad) > 8 else ''} ({len(bad)} of {len(seen.rows)} looked "
                "at): run 'sda data verify' on it, or simulate it again"
            )
        self._check_statistics(seen.mean, seen.std)

    def _check_statistics(self, mean: Tensor, std: Tensor) -> None:
        to_model, measured = self.standardization, self.store.measured
        wanted_mean, wanted_std = torch.zeros_like(mean), torch.ones_like(std)
        # A few trajectories may well vary less than all do.
        least = 1 / (1 + WIDE) if self.store.split == "train" else 0.0
        fits = (mean.abs() <= WIDE) & (std >= least) & (std <= 1 + WIDE)
        if self.held_on is not None and measured is not None:
            own_mean, own_std = measured
            wanted_mean = (mean.new_tensor(own_mean) - to_model.mean) / to_model.std
            wanted_std = std.new_tensor(own_std) / to_model.std
            near = TIGHT * wanted_std.clamp(min=TIGHT)
            fits &= ((mean - wanted_mean).abs() <= near) & ((std - wanted_std).abs() <= near)
        for i, name in enumerate(self.store.spec.variable_names):
            if not fits[i]:
                raise DataError(
                    f"{self.store.path} states mean {to_model.mean[i]:.4g} and std "
                    f"{to_model.std[i]:.4g} for variable {name!r}, but standardized with them its "
                    f"mean is {mean[i]:.3g} and its std {std[i]:.3g} instead of "
                    f"{wanted_mean[i]:.3g} and {wanted_std[i]:.3g}: these are not the data that "
                    "the statistics are of. Run 'sda data verify' on it, or simulate it again"
                )

    def _read(self, rows: Tensor, starts: Tensor) -> Tensor:
        windows = self.store.read_windows(rows.tolist(), starts.tolist(), self.window)
        return self._pinned(self.standardization.to_model(windows))

    def _gather(self, index: Tensor) -> Tensor:
        if self._states is None:
            self._states = self._load()
        # index_select on the states of all trajectories in a row: many times faster here than
        # indexing with a tensor.
        states = self._states.index_select(0, index.flatten())
        return self._pinned(states.reshape(*index.shape, *states.shape[1:]))

    def _pinned(self, batch: Tensor) -> Tensor:
        # Only a copy from pinned memory lets the host go on meanwhile.
        on_its_way = self.device.type == "cuda" and batch.device.type == "cpu"
        return batch.pin_memory() if on_its_way else batch

    def _load(self, seen: _Seen | None = None) -> Tensor:
        r"""All states in model space, (N L, C, \*S), loaded in pieces to need no second copy."""
        N, L, *state = self.store.shape
        states = torch.empty(N, L, *state, device=self.held_on)
        step = max(1, LOAD_BYTES // (4 * L * math.prod(state)))
        for first in range(0, N, step):
            piece = slice(first, min(first + step, N))
            states[piece] = self.standardization.to_model(self.store.read(piece))
            if seen is not None:
                seen.update(range(piece.start, piece.stop), states[piece])
        return states.flatten(0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_states": None}


class _Seen:
    """What some data are: mean and std of each variable in float64, and rows that are not finite.

    Sums of squares are accurate enough in model space, where means far from 0 are an error anyway.
    """

    def __init__(self, variables: int) -> None:
        self.rows: set[int] = set()
        self.bad: set[int] = set()
        self._count = 0
        self._sum, self._squares = torch.zeros(2, variables, dtype=torch.float64)

    def update(self, rows: Sequence[int], x: Tensor) -> None:
        r"""Take in states of shape (n, l, C, \*S) in model space, of these n trajectories."""
        finite = x.isfinite().flatten(1).all(1).tolist()
        self.rows.update(rows)
        self.bad.update(row for row, good in zip(rows, finite, strict=True) if not good)
        others = [axis for axis in range(x.ndim) if axis != 2]
        var, mean = (v.double().cpu() for v in torch.var_mean(x, others, correction=0))
        count = x.numel() // x.shape[2]
        self._count += count
        self._sum += count * mean
        self._squares += count * (var + mean**2)

    @property
    def mean(self) -> Tensor:
        """Mean of each variable, (C,)."""
        return self._sum / self._count

    @property
    def std(self) -> Tensor:
        """Standard deviation of each variable (of the population), (C,)."""
        return (self._squares / self._count - self.mean**2).clamp(min=0).sqrt()
