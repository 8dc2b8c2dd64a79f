"""What is reported of flows that a model in training samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sda_core.evaluation.diagnostics import training_trajectories
from sda_core.figures import Maps, Picture, ensemble_panels
from sda_core.tracker import Value
from sda_kolmogorov.figures import PLANE, mean_spectra, spectra_figure
from sda_kolmogorov.physics import vorticity
from sda_kolmogorov.scores import divergence_rms


def kolmogorov_diagnostics(run: Any, samples: Tensor) -> dict[str, Value]:
    r"""Compare sampled flows with the training data.

    Args:
        run: The run.
        samples: Velocities, (M, L, 2, n, n).

    Returns:
        ``samples/divergence_rms``, as among the scores of a posterior; ``samples/spectrum_error``,
        the mean over wavenumbers 0 < k <= n / 3 of

            \| log10 E(k) - log10 E_data(k) \|,

        E(k) being a mean over samples and times; pictures ``samples/vorticity`` and
        ``samples/spectra``.
    """
    data = training_trajectories(run, samples)
    energy, expected = (mean_spectra(x)[1].mean(0)[: x.shape[-1] // 3] for x in (samples, data))
    return {
        "samples/divergence_rms": divergence_rms(samples),
        "samples/spectrum_error": float((energy.log10() - expected.log10()).abs().mean()),
        "samples/vorticity": _vorticity_picture(samples, data, run.experiment.system.time_step),
        "samples/spectra": Picture(
            name="spectra",
            caption="Kinetic energy at each wavenumber, mean over time. Bands hold 90 % of the "
            "trajectories.",
            figure=spectra_figure({"samples": samples, "training data": data}, None),
        ),
    }


def _vorticity_picture(samples: Tensor, data: Tensor, time_step: float) -> Picture:
    """Vorticity of up to three samples over time, and of one trajectory of the data."""
    shown = {f"sample {i + 1}": x for i, x in enumerate(samples[:3])} | {"data": data[0]}
    length = min(len(x) for x in shown.values())
    times = torch.linspace(0, length - 1, min(5, length)).round().long()
    rows = [
        Maps(name=name, images=list(vorticity(x[times]).numpy()), label="vorticity")
        for name, x in shown.items()
    ]
    return Picture(
        name="vorticity",
        caption="Vorticity of samples of the learned prior, and of training data.",
        figure=ensemble_panels(rows, (times * time_step).tolist(), PLANE),
    )
