"""Pictures of two-dimensional flows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.figures import (
    BASELINE,
    POSTERIOR,
    REFERENCE,
    STYLE,
    TRUTH,
    Maps,
    Picture,
    Plane,
    field_strip,
    is_variable,
    observed_images,
    observed_maps,
    observed_places,
    plane_pictures,
    state_times,
)
from sda_core.method import Problem
from sda_kolmogorov.physics import energy_spectrum, vorticity

#: The periodic square.
PLANE = Plane(extent=(0, 2 * math.pi, 0, 2 * math.pi))

_QUANTILES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)

_COLORS = {
    "posterior": POSTERIOR,
    "baseline": BASELINE,
    "reference": REFERENCE,
    "samples": POSTERIOR,
    "training data": TRUTH,
}


def kolmogorov_pictures(problem: Problem, ensembles: Mapping[str, Tensor]) -> list[Picture]:
    r"""Vorticity of the posterior, still and moving, and energy spectra of all ensembles.

    Args:
        problem: A problem of a Kolmogorov flow.
        ensembles: Velocities, (M, L, 2, n, n), by name, with ``posterior``.
    """
    posterior = ensembles["posterior"]
    w = torch.stack([vorticity(x) for x in posterior])
    truth = None if problem.truth is None else vorticity(problem.truth)
    observed = observed_vorticity(problem, posterior[0])
    panels, moving = plane_pictures(
        problem, w, truth, observed, name="vorticity", label="vorticity", plane=PLANE
    )
    times = state_times(problem)
    shown = torch.linspace(0, problem.length - 1, min(6, problem.length)).round().long().tolist()
    member = Maps(name="", images=list(w[0].numpy()), label="vorticity").at(shown)
    return [
        panels,
        moving,
        Picture(
            name="vorticity-member",
            caption="Vorticity of one member: a trajectory that the data allow.",
            figure=field_strip(member, times[shown], PLANE),
        ),
        Picture(
            name="spectra",
            caption="Kinetic energy at each wavenumber, mean over time. Bands hold 90 % of the "
            "members.",
            figure=spectra_figure(ensembles, problem.truth),
        ),
    ]


def observed_vorticity(problem: Problem, x: Tensor) -> Maps | None:
    r"""What was observed, as vorticity if velocities were, and as it is otherwise.

    Images of (coarse) velocities are differentiated on their own grid. Velocities at single places
    are where all neighbours were observed too; otherwise u is shown.

    Args:
        problem: The problem.
        x: Some trajectory, (L, 2, n, n).
    """
    seen = [is_variable(problem, c) for c in (0, 1)]
    images, places = observed_images(problem, x), None
    fields: Sequence[Tensor | None] = []
    if images is not None and problem.y.shape[1] == 2:
        if seen[0][:, 0].all() and seen[1][:, 1].all():
            fields = [None if y is None else vorticity(y) for y in images]
    elif (seen[0] | seen[1]).all() and (places := observed_places(problem, x)) is not None:
        fields = list(vorticity(places, "finite-difference"))
    known = [None if w is None or bool(w.isnan().all()) else w.numpy() for w in fields]
    if any(w is not None for w in known):
        return Maps(name="observation", images=known, label="vorticity")
    return observed_maps(problem, x)


def spectra_figure(ensembles: Mapping[str, Tensor], truth: Tensor | None) -> Figure:
    r"""Energy spectra E(k), means over time, with the band that holds 90 % of the members.

    Args:
        ensembles: Velocities, (M, L, 2, n, n), by name.
        truth: Velocity, (L, 2, n, n), if known.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.6))
        axis = figure.subplots()
        largest = 0.0
        for name, ensemble in ensembles.items():
            k, spectra = mean_spectra(ensemble)
            low, middle, high = torch.quantile(spectra, _QUANTILES, dim=0)
            color = _COLORS[name]
            axis.fill_between(k, low, high, color=color, alpha=0.25, lw=0)
            axis.plot(k, middle, color=color, label=name)
            largest = max(largest, float(high.max()))
        if truth is not None:
            k, spectra = mean_spectra(truth[None])
            axis.plot(k, spectra[0], color=TRUTH, lw=0.9, label="truth")
        axis.set_xscale("log")
        axis.set_yscale("log")
        # What is below are rounding errors of single precision.
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-10 * largest))
        axis.set_xlabel("wavenumber k")
        axis.set_ylabel("energy E(k)")
        axis.legend(fontsize=8)
        figure.tight_layout()
    return figure


def mean_spectra(ensemble: Tensor) -> tuple[Tensor, Tensor]:
    """Wavenumbers 0 < k <= n / 2, (K,), and each member's mean spectrum over time, (M, K)."""
    shells = slice(1, ensemble.shape[-1] // 2 + 1)
    found = [energy_spectrum(x.double()) for x in ensemble]
    return found[0][0][shells], torch.stack([spectra.mean(0)[shells] for _, spectra in found])
