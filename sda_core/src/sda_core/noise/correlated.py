"""Gaussian errors that are correlated, along one axis or between all entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Generator, Tensor

from sda_core.config import component, option, positive
from sda_core.errors import ConfigError
from sda_core.noise.base import Noise, NoiseModel, per_entry


@component
class Correlated(Noise):
    r"""y ~ N(m, R), in blocks along one axis of A(x), or with a covariance given as a matrix.

    R_ij = std_i std_j exp(-|i - j| / correlation_length) for entries i, j along ``axis``, and 0
    between entries that differ in their other indices: as of a first-order autoregressive process,
    with exp(-1 / correlation_length) from one entry to the next.

    In place of these, ``covariance`` is R itself: (n, n) between all n observed values, or (m, m)
    along ``axis``, with m entries.
    """

    std: float | tuple[float, ...] | None = option(
        default=None,
        check=positive,
        help="standard deviation in the units of what is observed: one number, or one per entry of "
        "the operator's last dimension",
    )
    correlation_length: float | None = option(
        default=None,
        check=positive,
        units="entries",
        help="distance at which the correlation has fallen to 1 / e",
    )
    axis: int = option(default=-1, help="axis of A(x); -1 is the last, 0 usually time")
    covariance: list | Path | None = option(  # type: ignore[type-arg]
        default=None, help="R, in place of these two: nested lists, or a .npy file"
    )

    def __attrs_post_init__(self) -> None:
        short = (self.std is not None, self.correlation_length is not None)
        if short != ((True, True) if self.covariance is None else (False, False)):
            raise ConfigError(
                "observation.noise of kind 'correlated' takes either std and correlation_length, "
                "or covariance"
            )

    def bind(self, shape: Sequence[int]) -> CorrelatedNoise:
        """Make the error model.

        Raises:
            ConfigError: There is no such axis, or the covariance has another size, is not
                symmetric or not positive definite.
        """
        shape = tuple(shape) or (1,)
        if not -len(shape) <= self.axis < len(shape):
            raise ConfigError(
                f"observation.noise.axis = {self.axis}, but observations have the shape {shape}: "
                f"choose -{len(shape)} to {len(shape) - 1}"
            )
        m, n = shape[self.axis], math.prod(shape)
        along = torch.arange(n).reshape(shape).movedim(self.axis, -1).flatten()
        if self.covariance is None:
            std = per_entry(self.std, shape, "observation.noise.std")
            i = torch.arange(m, dtype=torch.float64)
            correlation = (-(i[:, None] - i).abs() / (self.correlation_length or 1.0)).exp()
            if bool(torch.linalg.cholesky_ex(correlation).info):
                raise ConfigError(
                    f"observation.noise.correlation_length = {self.correlation_length:g} makes all "
                    f"errors along axis {self.axis} the same: give less"
                )
        else:
            R = self._covariance(m, n)
            size = R.diagonal().sqrt()
            correlation = R / (size[:, None] * size)
            if len(R) == n:
                along, std = torch.arange(n), size
            else:
                std = torch.empty(n, dtype=torch.float64)
                std[along] = size.repeat(n // m)
        place = torch.empty_like(along)
        place[along] = torch.arange(n)
        return CorrelatedNoise(std=std, place=place, correlation=correlation[None])

    def _covariance(self, m: int, n: int) -> Tensor:
        if isinstance(self.covariance, Path) and not self.covariance.is_file():
            raise ConfigError(f"observation.noise.covariance: there is no file {self.covariance}")
        try:
            R = torch.from_numpy(
                np.load(self.covariance, allow_pickle=False).astype(np.float64)
                if isinstance(self.covariance, Path)
                else np.array(self.covariance, dtype=np.float64)
            )
        except (EOFError, OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"observation.noise.covariance is no matrix of numbers: {error}"
            ) from error
        if R.shape not in ((n, n), (m, m)):
            raise ConfigError(
                f"observation.noise.covariance has the shape {tuple(R.shape)}, but must be "
                f"({n}, {n}), between all observed values, or ({m}, {m}), along axis {self.axis}"
            )
        if not torch.allclose(R, R.T) or bool(torch.linalg.cholesky_ex(R).info):
            raise ConfigError(
                "observation.noise.covariance must be symmetric and positive definite: its least "
                f"eigenvalue is {float(torch.linalg.eigvalsh((R + R.T) / 2)[0]):.3g}. Add the "
                "variance of independent errors to the diagonal"
            )
        return R


def _factor(self: CorrelatedNoise) -> Tensor:
    return torch.linalg.cholesky(self.correlation)


def _whitening(self: CorrelatedNoise) -> Tensor:
    eye = torch.eye(self.correlation.shape[-1], dtype=torch.float64)
    return torch.linalg.solve_triangular(self.factor, eye, upper=False)


@attrs.frozen(kw_only=True, eq=False)
class CorrelatedNoise(NoiseModel):
    r"""p(y | m) = N(y; m, R) for entries in G groups of up to d, independent between groups.

    With S = diag(std), R = S L L^T S and W = S L^-1 S^-1: whitened errors keep the units and the
    variances of the errors, and the first of each group stays what it is.

    Attributes:
        std: Standard deviations, (n,), float64.
        place: Which of the G d places each entry has, group after group, (n,). Places may be
            empty.
        correlation: L L^T of each group, (G, d, d), or (1, d, d) for all; that of the identity at
            empty places.
        factor: L, lower triangular.
        whitening: L^-1.
    """

    std: Tensor
    place: Tensor
    correlation: Tensor
    factor: Tensor = attrs.field(init=False, default=attrs.Factory(_factor, takes_self=True))
    whitening: Tensor = attrs.field(init=False, default=attrs.Factory(_whitening, takes_self=True))

    def _multiply(self, matrix: Tensor, v: Tensor) -> Tensor:
        """S matrix S^-1 v, group by group, (..., n) -> (..., n)."""
        std, place, d = self.std.to(v), self.place.to(v.device), matrix.shape[-1]
        flat = (v / std).reshape(-1, len(std))
        groups = int(place.max()) // d + 1
        padded = flat.new_zeros(len(flat), groups * d).index_copy(1, place, flat)
        product = torch.einsum("gij,bgj->bgi", matrix.to(v), padded.reshape(-1, groups, d))
        return std * product.flatten(1).index_select(1, place).reshape(v.shape)

    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y."""
        z = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean)
        return mean + self._multiply(self.factor, self.std.to(mean) * z)

    def log_prob(self, y: Tensor, mean: Tensor) -> Tensor:
        """log N(y; m, R)."""
        z = self.whiten(y.to(mean) - mean) / self.std.to(mean)
        groups = int(self.place.max()) // self.factor.shape[-1] + 1
        log_L = self.factor.diagonal(dim1=1, dim2=2).log().sum(1).expand(groups).sum()
        constant = log_L + self.std.log().sum() + 0.5 * len(self.std) * math.log(2 * math.pi)
        return -0.5 * z.square().sum(-1) - constant.to(mean)

    @property
    def gaussian(self) -> bool:
        """It is."""
        return True

    def variance(self, y: Tensor, mean: Tensor, spread: Tensor | None = None) -> Tensor:
        """std^2, that of whitened errors."""
        return (self.std.to(mean) ** 2).expand_as(mean)

    def select(self, entries: Tensor) -> CorrelatedNoise:
        """The sub-matrix of R; the places of other entries are empty."""
        entries, d = entries.to(self.place.device), self.correlation.shape[-1]
        kept = self.place[entries]
        used, group = (kept // d).unique(return_inverse=True)
        place = group * d + kept % d
        filled = torch.zeros(len(used) * d, dtype=torch.bool)
        filled[place] = True
        filled = filled.reshape(-1, d)
        both = filled[:, :, None] & filled[:, None, :]
        full = self.correlation if len(self.correlation) == 1 else self.correlation[used]
        correlation = torch.where(both, full, torch.eye(d, dtype=full.dtype))
        return CorrelatedNoise(std=self.std[entries], place=place, correlation=correlation)

    def whiten(self, v: Tensor) -> Tensor:
        """W v."""
        return self._multiply(self.whitening, v)

    def correlates(self, labels: Tensor) -> bool:
        """Whether R has entries between different labels."""
        d = self.correlation.shape[-1]
        at = torch.full(((int(self.place.max()) // d + 1) * d,), -1)
        at[self.place] = torch.as_tensor(labels).unique(return_inverse=True)[1]
        at = at.reshape(-1, d)
        differ = at[:, :, None] != at[:, None, :]
        return bool((differ & (self.correlation != 0)).any())
