r"""Scores of ensembles and trajectories.

Shapes: M members, L times, C variables, \*S grid; everything in physical units.
"""

from __future__ import annotations

import numpy as np
import ot
import scoringrules
import torch
from torch import Tensor

from sda_core.system.base import HasLogProb


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
    cost = torch.cdist(x.double().flatten(1), y.double().flatten(1))
    return float(ot.emd2([], [], cost.numpy(), numItermax=2_000_000))


def rmse(ensemble: Tensor, truth: Tensor) -> float:
    r"""Root mean square error of the ensemble mean: (M, L, C, \*S), (L, C, \*S)."""
    return float((ensemble.double().mean(0) - truth.double()).square().mean().sqrt())


def spread(ensemble: Tensor) -> float:
    r"""Root mean ensemble variance (unbiased), times (M + 1) / M: equals the RMSE if calibrated.

    References:
        - Fortin et al., "Why Should Ensemble Spread Match the RMSE of the Ensemble Mean?", 2014,
          https://doi.org/10.1175/JHM-D-14-0008.1
    """
    m = len(ensemble)
    return float(((m + 1) / m * ensemble.double().var(0).mean()).sqrt())


def crps(ensemble: Tensor, truth: Tensor) -> float:
    r"""Fair continuous ranked probability score, averaged over all values; lower is better.

    References:
        - Ferro, "Fair scores for ensemble forecasts", 2014, https://doi.org/10.1002/qj.2270
    """
    values = np.moveaxis(ensemble.double().numpy(), 0, -1)
    return float(
        np.mean(scoringrules.crps_ensemble(truth.double().numpy(), values, estimator="fair"))
    )


def coverage(ensemble: Tensor, truth: Tensor, level: float = 0.9) -> float:
    r"""Share of true values inside the central interval of the given level of the ensemble."""
    tail = (1 - level) / 2
    q = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.quantile(ensemble.double().flatten(1), q, dim=0)
    inside = (truth.double().flatten() >= low) & (truth.double().flatten() <= high)
    return float(inside.double().mean())
