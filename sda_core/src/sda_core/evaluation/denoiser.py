r"""Scores of single variables, and of a denoiser on held-out windows.

For an estimate e of x, over all values of a variable:

    mse = mean (e - x)^2,   mae = mean |e - x|,   rmse = sqrt(mse),
    r2  = 1 - mse / var(x)

in physical units, squared for ``mse``; ``r2`` is 1 for an exact estimate and 0 for one that knows
the mean of x and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import attrs
import torch
from torch import Tensor

from sda_core.data import TrajectoryStore, split_path
from sda_core.model import TrainedModel
from sda_core.random import MemberNoise

#: Noise levels sigma / alpha at which a denoiser is scored, in units of the states' std.
NOISE_LEVELS = (0.1, 0.3, 1.0, 3.0)
#: Scores of single variables, with what each is called.
VARIABLE_SCORES = {"rmse": "RMSE", "mae": "MAE", "mse": "MSE", "r2": "R²"}
#: Windows of the test split, one a trajectory: at most so many, with about so many values
#: together, but some; and windows at once.
_WINDOWS, _VALUES, _FEWEST, _CHUNK = 64, 2**20, 8, 16


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


@attrs.frozen(kw_only=True, eq=False)
class Denoised:
    r"""What a denoiser makes of windows with noise of one level.

    Attributes:
        level: The noise level sigma / alpha, in units of the states' std.
        scores: Scores by variable, over all windows.
        x: The first window, (W, C, \*S), physical units.
        noised: The same with noise, over alpha.
        estimate: The same, denoised.
    """

    level: float
    scores: dict[str, float]
    x: Tensor
    noised: Tensor
    estimate: Tensor


def denoise(data: Path, model: TrainedModel) -> list[Denoised]:
    """Denoise windows of the test split, at each of :data:`NOISE_LEVELS`; none without a split.

    Windows and noise are the same for all models of a window's width.

    Args:
        data: The data of a run.
        model: The model.
    """
    path = split_path(data, "test")
    if not path.is_file():
        return []
    store, window = TrajectoryStore(path), model.config.window
    windows = max(_FEWEST, min(_WINDOWS, _VALUES // (window * math.prod(store.spec.state_shape))))
    x = store.read(slice(windows), slice(window))
    to_physical = model.standardization.to_physical
    clean = model.standardization.to_model(x)
    noise = MemberNoise(0, range(len(x)), clean.dtype, clean.device).normal(clean.shape)
    denoiser, schedule = model.denoiser.eval(), model.schedule
    found = []
    for level in NOISE_LEVELS:
        t = schedule.time(torch.tensor(level).log() * -2)
        noised = schedule.alpha(t) * clean + schedule.sigma(t) * noise
        with torch.no_grad():
            parts = [denoiser(p.to(model.device), t.to(model.device)) for p in noised.split(_CHUNK)]
        estimate = to_physical(torch.cat(parts).cpu())
        names = store.spec.variable_names
        found.append(
            Denoised(
                level=level,
                scores=variable_scores(names, estimate.flatten(0, 1), x.flatten(0, 1)),
                x=x[0],
                noised=to_physical(noised[0] / schedule.alpha(t)),
                estimate=estimate[0],
            )
        )
    return found


def denoising_scores(found: Sequence[Denoised]) -> dict[str, float]:
    """The scores of a denoiser, averaged over noise levels."""
    names = found[0].scores if found else ()
    return {name: fmean(each.scores[name] for each in found) for name in names}
