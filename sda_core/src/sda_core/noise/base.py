r"""Noise: the error model p(y | m) of an observation, with m = A(x) what would be seen without.

Entries are flattened: y and m are vectors of n values. Guidance works with Gaussians, so that each
noise also says which Gaussian has its score at m: with r = W (y - m),

    d log p(y | m) / dm = W^T (r / v).

W, which makes errors independent, is the identity but for correlated errors, and v > 0 has one
entry for each of y's. For a Gaussian v is its variance, for a Student-t it grows with r, so that
outliers weigh little, for a Poisson it is the rate. Whatever the noise, E[r^2 / v] = 1 where
E[y] = m.

An estimate of m may still be uncertain, N(m, s), and then r says more of that than of the error.
Student-t and Laplace are mixtures of Gaussians of different variance; for them v follows from the
expected square of the residual given y, and that from v, entry by entry (variational inference):

    E[r^2] = (v / (v + s) r)^2 + s v / (s + v).

For a Poisson v is the expected rate over N(m, s), as in the best linear estimate.

Notation
    ===========  ===================================================================
    y            the observation, flattened, (n,), or one for each member, (B, n)
    m            A(x), flattened, (B, n)
    std          typical size of the errors, (n,), in the units of y
    v            variance of the Gaussian with the same score at m, (B, n)
    W            whitening, v -> W v on the last dimension
    ===========  ===================================================================

References:
    - Lange, Little & Taylor, "Robust Statistical Modeling Using the t Distribution", 1989,
      https://doi.org/10.1080/01621459.1989.10478852 (Student-t errors by weights)
    - Bishop, "Pattern Recognition and Machine Learning", 2006, section 10.1 (variational inference)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Generator, Tensor

from sda_core.errors import ConfigError


class NoiseModel(ABC):
    """p(y | m) for n entries; tensors follow the type and device of m."""

    @property
    @abstractmethod
    def std(self) -> Tensor:
        """Typical size of the errors, (n,), float64: standard deviation, or scale of a tail."""

    @abstractmethod
    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y given m, (..., n) -> (..., n)."""

    @abstractmethod
    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """log p(y | m) of all entries together: (n,) or (B..., n), (B..., n) -> (B...)."""

    @property
    def gaussian(self) -> bool:
        """Whether v is the same for all y, m and s."""
        return False

    @abstractmethod
    def variance(self, y: Tensor, mean: Tensor, spread: Tensor | None = None) -> Tensor:
        """Variance v of the Gaussian that stands for p(y | m); finite and positive.

        Args:
            y: (n,) or (B, n).
            mean: m, (B, n).
            spread: Variance s of m before y is known, (B, n); None where m is certain, and v that
                of the Gaussian with the same score at m.

        Returns:
            v, (B, n).
        """

    def adapt(self, v: Tensor, square: Tensor) -> Tensor:
        """v where the expected square of the residual, (B, n), is known better.

        Only for mixtures of Gaussians it follows from that; others keep what is given.
        """
        return v

    @abstractmethod
    def select(self, entries: Tensor) -> NoiseModel:
        """The noise of some entries alone, the exact marginal; ``entries`` is boolean, (n,)."""

    def std_at(self, mean: Tensor) -> Tensor:
        """Typical size of the errors at m, (..., n), where it depends on m."""
        return self.std.to(mean).expand_as(mean)

    def whiten(self, v: Tensor) -> Tensor:
        """W v, (..., n) -> (..., n)."""
        return v

    def correlates(self, labels: Tensor) -> bool:
        """Whether errors of entries with different labels, (n,), are correlated."""
        return False


@attrs.frozen(kw_only=True, eq=False)
class IndependentNoise(NoiseModel):
    """Base of models in which each entry has an error of its own.

    Attributes:
        scale: What sets the size of the errors, (n,), float64.
    """

    scale: Tensor

    @property
    def std(self) -> Tensor:
        """The scale, where nothing else is said."""
        return self.scale

    @abstractmethod
    def log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        """log p of each entry by itself, (..., n)."""

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """The sum over entries."""
        return self.log_density(y.to(mean), mean).sum(-1)

    def select(self, entries: Tensor) -> IndependentNoise:
        """The same with fewer entries."""
        return attrs.evolve(self, scale=self.scale[entries.to(self.scale.device)])


#: Rounds of v from E[r^2] and E[r^2] from v.
ROUNDS = 3


@attrs.frozen(kw_only=True, eq=False)
class MixtureNoise(IndependentNoise):
    """Base of mixtures of Gaussians of one mean and different variances."""

    @abstractmethod
    def weigh(self, square: Tensor) -> Tensor:
        """v given the square of the residual, (B, n)."""

    def variance(self, y: Tensor, mean: Tensor, spread: Tensor | None = None) -> Tensor:
        """v at m, or the fixed point of E[r^2] and v."""
        square = (y.to(mean) - mean) ** 2
        if spread is None:
            return self.weigh(square)
        v = self.weigh(square + spread)
        for _ in range(ROUNDS):
            share = v / (v + spread)
            v = self.weigh(share**2 * square + share * spread)
        return v

    def adapt(self, v: Tensor, square: Tensor) -> Tensor:
        """v given that square."""
        return self.weigh(square)


class Noise(ABC):
    """Configuration of an error model."""

    sda_kind: ClassVar[str] = "noise"

    @abstractmethod
    def bind(self, shape: Sequence[int]) -> NoiseModel:
        r"""Make the error model of observations of a shape (\*obs).

        Raises:
            ConfigError: The configuration does not fit observations of this shape.
        """


def per_entry(value: Any, shape: Sequence[int], key: str) -> Tensor:
    r"""One positive number for each observed value, of one, or one per variable or last entry.

    Args:
        value: A number, or numbers: one per variable where a field is observed, (T, C, \*S), else
            one per entry of the last dimension.
        shape: (\*obs).
        key: Key of the configuration, for messages.

    Returns:
        (n,), float64.

    Raises:
        ConfigError: A value is not positive, or their number fits neither or both.
    """
    values = torch.as_tensor(value, dtype=torch.float64)
    if not bool((values > 0).all()):
        raise ConfigError(f"{key} = {value} must be positive")
    variables = shape[1] if len(shape) > 2 else None
    if values.ndim == 1 and len(values) > 1 and len(values) == variables:
        if variables == shape[-1]:
            raise ConfigError(
                f"{key} = {value} could be one for each variable or one for each of the "
                f"{shape[-1]} entries of the last dimension of the observations, whose shape is "
                f"{tuple(shape)}: give one number, or observe each variable by itself and put them "
                "together with 'concatenate'"
            )
        values = values.reshape(-1, *[1] * (len(shape) - 2))
    try:
        return values.expand(tuple(shape)).flatten()
    except RuntimeError as error:
        allowed = sorted({1, shape[-1] if shape else 1, variables or 1})
        raise ConfigError(
            f"{key} has {values.numel()} entries, but observations have the shape {tuple(shape)}: "
            f"give {' or '.join(map(str, allowed))} of them"
        ) from error
