"""Random numbers that belong to members, not to batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor


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


class MemberNoise:
    """Noise in which member m's numbers depend on (seed, m) alone.

    So a member is the same whatever the others are, and however many are drawn at once. Numbers
    are drawn on the CPU, which makes them the same on every device.

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
        self._generators = [seeded_generator(seed, member) for member in members]
        self._dtype, self._device = dtype, device

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, (M, ...) with M the number of members."""
        z = torch.empty(tuple(shape), dtype=self._dtype)
        for row, generator in zip(z, self._generators, strict=True):
            row.normal_(generator=generator)
        return z.to(self._device)

    @property
    def state(self) -> Tensor:
        """How far the members' numbers have come, uint8, (M, ...)."""
        return torch.stack([generator.get_state() for generator in self._generators])

    @state.setter
    def state(self, state: Tensor) -> None:
        for row, generator in zip(state, self._generators, strict=True):
            generator.set_state(row.clone())  # a row may be unaligned, which crashes torch
