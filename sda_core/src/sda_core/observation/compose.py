"""Operators one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.system import SystemSpec


@component
class Compose(Observation):
    """Applies operators in the order given; ``std`` or ``noise`` is that of the result."""

    parts: tuple[Observation, ...] = option(help="the operators; no noise of their own")

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("observation.parts is empty: give at least one operator")
        for key in _noises("observation", self.parts):
            raise ConfigError(
                f"{key}: noise is added once, to the result; give it as observation.std or "
                "observation.noise"
            )

    def operator(self, spec: SystemSpec) -> Operator:
        """The composed operator."""
        operators = []
        for part in self.parts:
            operators.append(part.operator(spec))
            spec = part.output(spec)

        def A(x: Tensor) -> Tensor:
            for operator in operators:
                x = operator(x)
            return x

        return A

    def times(self, times: Tensor) -> Tensor | None:
        """Times after all operators."""
        out: Tensor | None = times
        for part in self.parts:
            if out is None:
                return None
            out = part.times(out)
        return out

    def output(self, spec: SystemSpec) -> SystemSpec:
        """What comes out of the last operator."""
        for part in self.parts:
            spec = part.output(spec)
        return spec


def _noises(path: str, parts: Iterable[Observation]) -> Iterator[str]:
    """The keys of all noise in these parts, or in parts of them."""
    for i, part in enumerate(parts):
        key = f"{path}.parts[{i}]"
        if part.std is not None:
            yield f"{key}.std = {part.std}"
        if part.noise is not None:
            yield f"{key}.noise"
        yield from _noises(key, getattr(part, "parts", ()))
