r"""Scores of single variables, by which trials are told apart.

For an estimate e of x, over all values of a variable:

    mse = mean (e - x)^2,   mae = mean |e - x|,   rmse = sqrt(mse),
    r2  = 1 - mse / var(x)

in physical units, squared for ``mse``; ``r2`` is 1 for an exact estimate and 0 for one that knows
the mean of x and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sda_core.data import TrajectoryStore, split_path
from sda_core.model import TrainedModel
from sda_core.random import MemberNoise
from sda_core.rundir import Run

#: Noise levels sigma / alpha at which a denoiser is scored, in units of the states' std.
NOISE_LEVELS = (0.1, 0.3, 1.0, 3.0)
#: Trajectories of the test split of which it sees a window, and windows at once.
_WINDOWS, _CHUNK = 64, 16


def variable_scores(names: Sequence[str], estimate: Tensor, x: Tensor) -> dict[str, float]:
    r"""Score an estimate, variable by variable.

    Args:
        names: Names of the variables.
        estimate: The estimate, (N, C, \*S).
        x: What it estimates, of the same shape.
    """
    scores: dict[str, float] = {}
    for c, name in enumerate(names):
        truth = x[:, c].double()
        error = estimate[:, c].double() - truth
        mse = float(error.square().mean())
        scores[f"mse/{name}"] = mse
        scores[f"mae/{name}"] = float(error.abs().mean())
        scores[f"rmse/{name}"] = mse**0.5
        variance = float(truth.var(correction=0))
        if variance > 0:
            scores[f"r2/{name}"] = 1 - mse / variance
    return scores


def denoising_scores(run: Run, model: TrainedModel) -> dict[str, float]:
    """Score a denoiser of windows on the test split, averaged over :data:`NOISE_LEVELS`.

    Windows and noise are the same for all models of a window's width.

    Args:
        run: The run, which has data.
        model: Its model.
    """
    path = split_path(run.data, "test")
    if not path.is_file():
        return {}
    store, window = TrajectoryStore(path), model.config.window
    x = store.read(slice(_WINDOWS), slice(window))
    clean = model.standardization.to_model(x)
    noise = MemberNoise(0, range(len(x)), clean.dtype, clean.device).normal(clean.shape)
    denoiser, schedule = model.denoiser.eval(), model.schedule
    total: dict[str, float] = {}
    for level in NOISE_LEVELS:
        t = schedule.time(torch.tensor(level).log() * -2)
        noised = schedule.alpha(t) * clean + schedule.sigma(t) * noise
        with torch.no_grad():
            parts = [denoiser(p.to(model.device), t.to(model.device)) for p in noised.split(_CHUNK)]
        estimate = model.standardization.to_physical(torch.cat(parts).cpu())
        scores = variable_scores(store.spec.variable_names, estimate.flatten(0, 1), x.flatten(0, 1))
        for name, value in scores.items():
            total[name] = total.get(name, 0.0) + value / len(NOISE_LEVELS)
    return total
