"""Several error models side by side."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Generator, Tensor

from sda_core.noise.base import NoiseModel


@attrs.frozen(kw_only=True, eq=False)
class JointNoise(NoiseModel):
    """Independent groups of entries, one after another, each with its own noise.

    Attributes:
        parts: The noise of each group.
    """

    parts: tuple[NoiseModel, ...]

    @property
    def std(self) -> Tensor:
        """That of all groups, (n,)."""
        return torch.cat([part.std for part in self.parts])

    def _split(self, v: Tensor) -> tuple[Tensor, ...]:
        return v.split([len(part.std) for part in self.parts], dim=-1)

    def _each(self, function: Callable[..., Tensor], *vectors: Tensor) -> list[Tensor]:
        return [
            function(part, *v)
            for part, *v in zip(self.parts, *map(self._split, vectors), strict=True)
        ]

    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y."""
        return torch.cat(self._each(lambda part, m: part.sample(m, generator), mean), -1)

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """The sum over groups."""
        terms = self._each(lambda part, y, m: part.log_prob(y, m), y, mean)
        return torch.stack(terms).sum(0)

    @property
    def gaussian(self) -> bool:
        """Whether all groups' noise is."""
        return all(part.gaussian for part in self.parts)

    def variance(self, y: Tensor, mean: Tensor, spread: Tensor | None = None) -> Tensor:
        """That of each group."""
        given = [y, mean] if spread is None else [y, mean, spread]
        return torch.cat(self._each(lambda part, *v: part.variance(*v), *given), -1)

    def adapt(self, v: Tensor, square: Tensor) -> Tensor:
        """That of each group."""
        return torch.cat(self._each(lambda part, *v: part.adapt(*v), v, square), -1)

    def select(self, entries: Tensor) -> JointNoise:
        """The groups with fewer entries; those left with none are left out."""
        chosen = zip(self.parts, self._split(entries), strict=True)
        return JointNoise(parts=tuple(part.select(e) for part, e in chosen if bool(e.any())))

    def std_at(self, mean: Tensor) -> Tensor:
        """That of each group."""
        return torch.cat(self._each(lambda part, m: part.std_at(m), mean), -1)

    def whiten(self, v: Tensor) -> Tensor:
        """That of each group."""
        return torch.cat(self._each(lambda part, v: part.whiten(v), v), -1)

    def correlates(self, labels: Tensor) -> bool:
        """Whether any group's do."""
        groups = zip(self.parts, self._split(labels), strict=True)
        return any(part.correlates(label) for part, label in groups)
