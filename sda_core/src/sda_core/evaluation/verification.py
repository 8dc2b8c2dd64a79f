r"""What an ensemble says of the observations of a table: departures and scores.

The departure of an observation y is y - mean_m A(x_m). If the ensemble is calibrated and y was not
used, its variance is error^2 + (1 + 1/M) s^2, with s^2 the variance of A(x_m) over M members. CRPS
and coverage compare y with A(x_m) + e_m, where e_m is a draw of the observation error, so that the
members have an error as y has (Saetra et al. 2004).

References:
    - Desroziers et al., "Diagnosis of observation, background and analysis-error statistics in
      observation space", 2005, https://doi.org/10.1256/qj.05.108
    - Saetra et al., "Effects of Observation Errors on the Statistics for Ensemble Spread and
      Reliability", 2004, https://doi.org/10.1175/1520-0493(2004)132<1487:EOOEOT>2.0.CO;2
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sda_core.evaluation.metrics import coverage, crps
from sda_core.observation import MatchedObservations
from sda_core.random import seeded_generator

#: What each score is, in words.
OBSERVATION_SCORES = {
    f"{status}_{key}": f"{label} of {status} observations"
    for status in ("withheld", "used")
    for key, label in {
        "count": "number",
        "rmse": "RMSE",
        "bias": "mean departure",
        "crps": "CRPS",
        "chi_square": "chi-square",
        "coverage_90": "90 % coverage",
    }.items()
}


def departures(matched: MatchedObservations, ensemble: Tensor) -> pd.DataFrame:
    r"""The table with what the ensemble says of each observation.

    Args:
        matched: The observations.
        ensemble: (M, L, C, \*S), physical units.

    Returns:
        The observations with three more columns, NaN for what is out of range: ``mean`` and
        ``spread`` (mean and standard deviation over members of A(x), the latter times
        sqrt(1 + 1/M)), and ``departure``, the value minus this mean.
    """
    rows, operator = matched.located()
    mean, spread = _mean_and_spread(torch.stack([operator(x.double()) for x in ensemble]))
    frame = matched.frame.assign(mean=np.nan, spread=np.nan)
    frame.loc[rows, "mean"], frame.loc[rows, "spread"] = mean.numpy(), spread.numpy()
    return frame.assign(departure=frame["value"] - frame["mean"])


def observation_scores(matched: MatchedObservations, ensemble: Tensor) -> dict[str, float]:
    r"""Score an ensemble on the observations withheld from it, and on those it used.

    Args:
        matched: The observations.
        ensemble: (M, L, C, \*S), physical units.

    Returns:
        Scores by the names of :data:`OBSERVATION_SCORES`: number of observations, root mean square
        and mean of departures, fair CRPS, chi-square (the mean of departure^2 over its expected
        value, error^2 + spread^2: 1 for withheld observations if calibrated, and less for those
        that were used), and coverage of the central 90 % interval.
    """
    scores: dict[str, float] = {}
    for status in ("withheld", "used"):
        count = matched.counts.get(status)
        if not count:
            continue
        model, y = matched.model(status), matched.y(status)
        generator = seeded_generator(0)
        members = torch.stack([model.operator(x.double()) for x in ensemble])
        mean, spread = _mean_and_spread(members)
        departure = y - mean
        seen = torch.stack([model.noise.sample(member, generator) for member in members])
        values = {
            "count": count,
            "rmse": float(departure.square().mean().sqrt()),
            "bias": float(departure.mean()),
            "crps": crps(seen[:, None], y[None]),
            "chi_square": float((departure**2 / (model.std**2 + spread**2)).mean()),
            "coverage_90": coverage(seen[:, None], y[None]),
        }
        scores |= {f"{status}_{key}": value for key, value in values.items()}
    return scores


def _mean_and_spread(members: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of (M, n) over members."""
    return members.mean(0), (1 + 1 / len(members)) ** 0.5 * members.std(0)
