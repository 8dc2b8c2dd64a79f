"""Random numbers that belong to members, not to batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

#: Numbers in a block of members, about.
_BLOCK = 2**14


def seeded_generator(*key: int) -> Generator:
    """A generator seeded by a sequence of non-negative integers, each of which counts."""
    # As spawn_key rather than entropy, where (1,) and (1, 0) would be the same.
    state = np.random.SeedSequence(key[0], spawn_key=key[1:]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]))


class NoiseSource(Protocol):
    """Where samplers take their noise from."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of the given shape; the first dimension counts members."""
        ...


class GeneratorNoise:
    """Noise from one generator, for members that depend on each other, or do not count.

    Args:
        generator: The generator, on the CPU.
        device: Where the numbers are put.
    """

    def __init__(self, generator: Generator, device: torch.device | str = "cpu") -> None:
        self._generator, self._device = generator, device

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise."""
        return torch.randn(tuple(shape), generator=self._generator).to(self._device)


class MemberNoise:
    """Noise in which member m's numbers depend on (seed, m, how often was drawn) alone.

    So a member is the same whatever the others are, and however many are drawn at once. Members are
    drawn in blocks, by their numbers, since a draw for each takes four times as long; of a block
    the rows that are wanted are kept. Numbers are drawn on the CPU, which makes them the same on
    every device.

    Args:
        seed: The seed.
        members: The numbers m of the members, one per row.
        dtype: Type of the numbers.
        device: Where they are put.
    """

    def __init__(
        self,
        seed: int,
        members: Iterable[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._seed, self._members = seed, torch.tensor(list(members), dtype=torch.long)
        self._dtype, self._device = dtype, device
        self._draws = 0
        self._blocks_of = lru_cache(maxsize=8)(self._make_blocks)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, (M, ...) with M the number of members."""
        members, *rest = shape
        if members != len(self._members):
            raise ValueError(f"noise of {members} rows is asked of {len(self._members)} members")
        size = max(1, _BLOCK // max(1, math.prod(rest)))
        z = torch.empty(tuple(shape), dtype=self._dtype)
        for block, rows, places in self._blocks_of(size):
            generator = seeded_generator(self._seed, block, self._draws, size)
            if isinstance(rows, slice):
                z[rows].normal_(generator=generator)
            else:
                whole = torch.empty(size, *rest, dtype=self._dtype)
                z[rows] = whole.normal_(generator=generator)[places]
        self._draws += 1
        return z.to(self._device)

    def _make_blocks(self, size: int) -> list[tuple[int, slice | Tensor, Tensor]]:
        """The blocks of so many members: number, the rows that are in it, and as which of it.

        Rows are a slice where they are the whole block, in order.
        """
        found: list[tuple[int, slice | Tensor, Tensor]] = []
        numbers = self._members // size
        for block in numbers.unique().tolist():
            rows = (numbers == block).nonzero().flatten()
            places = self._members[rows] % size
            first = int(rows[0])
            whole = torch.equal(rows - first, torch.arange(size)) and torch.equal(
                places, torch.arange(size)
            )
            found.append((block, slice(first, first + size) if whole else rows, places))
        return found

    @property
    def state(self) -> Tensor:
        """How often was drawn, ()."""
        return torch.tensor(self._draws)

    @state.setter
    def state(self, state: Tensor) -> None:
        self._draws = int(state)
