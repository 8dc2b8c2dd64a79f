"""Where sampled members go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: How far a sampling has come: tensors, and JSON values.
Progress = tuple[Mapping[str, Tensor], Mapping[str, Any]]


class Ensemble:
    r"""An ensemble in memory, of which nothing is left when its sampling stops.

    :class:`sda_core.io.ensemble_file.EnsembleFile` is one on disk.

    Args:
        shape: (M, L, C, \*S).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._values: Tensor | None = None

    @property
    def values(self) -> Tensor:
        r"""The members, (M, L, C, \*S); those not yet written have no meaning."""
        if self._values is None:
            self._values = torch.empty(self.shape)
        return self._values

    def begin(self) -> Progress | None:
        """Make ready to be written to.

        Returns:
            How far the sampling had come that is to be resumed, None where there is none.
        """
        return None

    def write(self, numbers: Tensor, x: Tensor) -> None:
        r"""Write members.

        Args:
            numbers: Their numbers, (B,).
            x: Their trajectories in physical units, (B, L, C, \*S), in host memory.
        """
        self.values[numbers] = x

    def save(self, progress: Progress) -> None:
        """Keep how far the sampling has come. All that was written before is kept as well."""

    @contextmanager
    def checkpoints(self) -> Iterator[Callable[[Callable[[], Progress]], None]]:
        """Give what is called after each step, with what says how far the sampling has come."""
        yield lambda progress: None
