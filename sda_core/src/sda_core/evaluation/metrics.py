r"""Scores of ensembles and trajectories.

Shapes: M members, L times, C variables, \*S grid; everything in physical units.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import scoringrules
import torch
from torch import Tensor

from sda_core.random import seeded_generator
from sda_core.system import HasLogProb


def log_prior(system: HasLogProb, x: Tensor) -> Tensor:
    r"""log p(x_2:L | x_1) of trajectories, (B..., L, C, \*S) -> (B...).

    The trajectory axis is found from the system's spec.
    """
    dims = len(system.spec.state_shape) + 1  # type: ignore[attr-defined]
    axis = x.ndim - dims
    x = x.double()
    steps = x.shape[axis] - 1
    log_p = system.log_prob(x.narrow(axis, 0, steps), x.narrow(axis, 1, steps))
    return log_p.sum(-1)


def wasserstein1(x: Tensor, y: Tensor) -> float:
    r"""Wasserstein-1 distance between two ensembles with the Euclidean ground distance.

    Computed exactly by linear programming (POT). It is biased upwards for finite ensembles, so
    compare it with the distance between two independent ensembles of the reference.

    Args:
        x: First ensemble, (M, ...).
        y: Second ensemble, (N, ...), of the same trailing shape.
    """
    # POT imports every array library that is installed, and JAX takes most of a GPU for itself.
    os.environ.setdefault("POT_BACKEND_DISABLE_JAX", "1")
    import ot

    cost = torch.cdist(x.double().flatten(1), y.double().flatten(1))
    return float(ot.emd2([], [], cost.numpy(), numItermax=2_000_000))


def rmse(ensemble: Tensor, truth: Tensor) -> float:
    r"""Root mean square error of the ensemble mean: (M, L, C, \*S), (L, C, \*S)."""
    return math.sqrt(_mean_over_times(lambda x, y: (x.mean(0) - y).square(), ensemble, truth))


def spread(ensemble: Tensor) -> float:
    r"""Root mean ensemble variance (unbiased), times (M + 1) / M: equals the RMSE if calibrated.

    References:
        - Fortin et al., "Why Should Ensemble Spread Match the RMSE of the Ensemble Mean?", 2014,
          https://doi.org/10.1175/JHM-D-14-0008.1
    """
    return math.sqrt(_mean_over_times(lambda x, _: _variance(x), ensemble, ensemble[0]))


def crps(ensemble: Tensor, truth: Tensor) -> float:
    r"""Fair continuous ranked probability score, averaged over all values; lower is better.

    For members that are all equal it is their mean absolute error.

    References:
        - Ferro, "Fair scores for ensemble forecasts", 2014, https://doi.org/10.1002/qj.2270
    """

    def score(x: Tensor, y: Tensor) -> Tensor:
        # "pwm" is the fair score from sorted members, without a table of all pairs of them.
        values = scoringrules.crps_ensemble(y.numpy(), x.numpy(), m_axis=0, estimator="pwm")
        return torch.as_tensor(values)

    return _mean_over_times(score, ensemble, truth)


def coverage(ensemble: Tensor, truth: Tensor, level: float = 0.9) -> float:
    r"""Share of true values inside the central interval of the given level of the ensemble.

    The quantile of p lies at rank p (M + 1) of the members, so that a calibrated ensemble covers
    the level whatever its size, as long as the members reach so far: at most (M - 1) / (M + 1) is
    covered between the least and the greatest, which is 0.9 for 19 members.

    References:
        - Hyndman & Fan, "Sample Quantiles in Statistical Packages", 1996,
          https://doi.org/10.1080/00031305.1996.10473566 (definition 6, Weibull's)
    """
    tail = (1 - level) / 2

    def inside(x: Tensor, y: Tensor) -> Tensor:
        low, high = np.quantile(x.numpy(), (tail, 1 - tail), axis=0, method="weibull")
        return torch.as_tensor((y.numpy() >= low) & (y.numpy() <= high)).double()

    return _mean_over_times(inside, ensemble, truth)


def rank_histogram(ensemble: Tensor, truth: Tensor, seed: int = 0) -> Tensor:
    r"""How often the truth has each rank among the members: flat if they are calibrated.

    The rank is the number of smaller members. Among equal ones it is drawn.

    References:
        - Hamill, "Interpretation of Rank Histograms for Verifying Ensemble Forecasts", 2001,
          https://doi.org/10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2

    Args:
        ensemble: (M, L, C, \*S).
        truth: (L, C, \*S).
        seed: Source of the ranks among equal values.

    Returns:
        Counts of ranks 0 to M, (M + 1,).
    """
    generator = seeded_generator(seed)
    smaller, equal = (ensemble < truth).sum(0), (ensemble == truth).sum(0)
    u = torch.rand(truth.shape, generator=generator, dtype=torch.float64)
    rank = smaller + (u * (equal + 1)).long()
    return torch.bincount(rank.flatten(), minlength=len(ensemble) + 1)


def spread_skill_curve(ensemble: Tensor, truth: Tensor, bins: int = 12) -> tuple[Tensor, Tensor]:
    r"""Spread and error of the mean where the ensemble is sure and where it is not.

    All values are sorted by the ensemble's variance into bins of equally many.

    Args:
        ensemble: (M, L, C, \*S).
        truth: (L, C, \*S).
        bins: Number of bins; fewer where there are fewer values.

    Returns:
        In each bin the root mean variance, times (M + 1) / M as in :func:`spread`, and the RMSE of
        the ensemble mean; equal if calibrated.
    """
    variance = torch.stack([_variance(x.double()) for x in ensemble.unbind(1)]).flatten()
    mean = ensemble.mean(0, dtype=torch.float64)
    error = (mean - truth.double()).square().flatten()
    parts = variance.argsort().tensor_split(min(bins, len(variance)))
    spreads = [variance[part].mean().sqrt() for part in parts]
    return torch.stack(spreads), torch.stack([error[part].mean().sqrt() for part in parts])


def _variance(x: Tensor) -> Tensor:
    return (len(x) + 1) / len(x) * x.var(0)


def _mean_over_times(
    score: Callable[[Tensor, Tensor], Tensor], ensemble: Tensor, truth: Tensor
) -> float:
    """Mean of a score of all values; one time after the other is copied to double precision."""
    pairs = zip(ensemble.unbind(1), truth, strict=True)
    return float(torch.stack([score(x.double(), y.double()).mean() for x, y in pairs]).mean())
