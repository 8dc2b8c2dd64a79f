"""Observe arbitrary entries of a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.system import SystemSpec


@component
class Index(Observation):
    r"""A set of n entries, each (time, variable, \*place): (..., L, C, \*S) -> (..., n)."""

    entries: tuple[tuple[int, ...], ...] = option(
        help="index tuples (time, variable, *place); negative numbers count from the end"
    )

    def operator(self, spec: SystemSpec) -> Operator:
        """Picks the entries, in the order given."""
        rank = 1 + len(spec.state_shape)
        if not self.entries:
            raise ConfigError("observation.entries is empty: nothing would be observed")
        for number, entry in enumerate(self.entries):
            fits = len(entry) == rank and all(
                -n <= i < n for i, n in zip(entry[1:], spec.state_shape, strict=True)
            )
            if not fits:
                raise ConfigError(
                    f"observation.entries[{number}] = {list(entry)} does not name an entry: give "
                    f"{rank} indices (time, variable, *place), with (variable, *place) inside "
                    f"{spec.state_shape}"
                )
        columns = tuple(torch.tensor(self.entries).T)

        def A(x: Tensor) -> Tensor:
            length = x.shape[x.ndim - rank]
            late = [e[0] for e in self.entries if not -length <= e[0] < length]
            if late:
                raise ConfigError(
                    f"observation.entries has times {late} outside the trajectory of {length} "
                    "states"
                )
            return x[(..., *(c.to(x.device) for c in columns))]

        return A

    def times(self, times: Tensor) -> Tensor:
        """Time of each entry."""
        return times[[e[0] for e in self.entries]]
