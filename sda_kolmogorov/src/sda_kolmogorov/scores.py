"""Scores of two-dimensional flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sda_core.method import Problem
from sda_kolmogorov.physics import divergence, energy_spectrum, kinetic_energy, vorticity


def kolmogorov_scores(problem: Problem, ensemble: Tensor) -> dict[str, float]:
    r"""Score an ensemble of flows.

    ``divergence_rms`` is the divergence of the members relative to their vorticity (both root mean
    square): 0 for an incompressible flow, about 1 for noise. Where the truth is known:
    ``rmse_vorticity`` of the ensemble mean, ``kinetic_energy_ratio`` of members to truth, and
    ``spectrum_error``, the mean over members and wavenumbers 0 < k <= n / 3 of

        | log10 E(k) - log10 E_truth(k) |,

    E(k) being a mean over time.

    Args:
        problem: The problem.
        ensemble: Velocities, (M, L, 2, n, n).
    """
    # Member by member: a spectrum is complex, double and of two components.
    members = [x.double() for x in ensemble]
    scores = {"divergence_rms": divergence_rms(ensemble)}
    if problem.truth is not None:
        truth = problem.truth.double()
        error = torch.stack([vorticity(x) for x in members]).mean(0) - vorticity(truth)
        scores["rmse_vorticity"] = float(error.square().mean().sqrt())
        energy = torch.stack([kinetic_energy(x) for x in members])
        scores["kinetic_energy_ratio"] = float(energy.mean() / kinetic_energy(truth).mean())
        difference = torch.stack([_log_spectrum(x) for x in members]) - _log_spectrum(truth)
        scores["spectrum_error"] = float(difference.abs().mean())
    return scores


def divergence_rms(ensemble: Tensor) -> float:
    """Divergence over vorticity, both root mean square, of velocities (M, L, 2, n, n)."""
    squares = torch.zeros(2, dtype=torch.float64)
    for x in ensemble:
        squares += torch.stack([f(x.double()).square().mean() for f in (divergence, vorticity)])
    return math.sqrt(squares[0] / squares[1])


def _log_spectrum(x: Tensor) -> Tensor:
    """log10 E(k) of a trajectory (L, 2, n, n) for 0 < k <= n / 3, (K,)."""
    _, energy = energy_spectrum(x)
    return energy.mean(0)[1 : x.shape[-1] // 3 + 1].clamp_min(torch.finfo(x.dtype).tiny).log10()
