"""Several observations at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.noise import JointNoise
from sda_core.observation.base import BoundOperator, Observation, ObservationModel, Operator
from sda_core.system import SystemSpec


@component
class Concatenate(Observation):
    r"""Several observations of one trajectory, each with its own noise: -> (..., n), flattened."""

    parts: tuple[Observation, ...] = option(help="the observations, each with its own noise")

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("observation.parts is empty: give at least one observation")
        if self.std is not None:
            raise ConfigError(
                f"observation.std = {self.std}: each part of a 'concatenate' has its own std; "
                "give it as observation.parts[i].std"
            )
        if self.noise is not None:
            raise ConfigError(
                "observation.noise: each part of a 'concatenate' has its own noise; give it as "
                "observation.parts[i].noise"
            )

    def operator(self, spec: SystemSpec) -> Operator:
        """The flattened outputs of all parts, one after another."""
        operators = [part.operator(spec) for part in self.parts]
        dims = 1 + len(spec.state_shape)

        def A(x: Tensor) -> Tensor:
            batch = x.shape[: x.ndim - dims]
            return torch.cat([a(x).reshape(*batch, -1) for a in operators], dim=-1)

        return A

    def times(self, times: Tensor) -> Tensor | None:
        """Not told by the parts' times alone: how many entries each has takes a spec (``bind``)."""
        return None

    def bind(self, spec: SystemSpec, length: int) -> ObservationModel:
        """Bind the parts and join what they say."""
        models = [part.bind(spec, length) for part in self.parts]
        times = [m.times.flatten() for m in models if m.times is not None]
        noise = JointNoise(parts=tuple(m.noise for m in models))
        return ObservationModel(
            operator=BoundOperator(self, spec),
            noise=noise,
            shape=noise.std.shape,
            times=torch.cat(times) if len(times) == len(models) else None,
            length=length,
        )
