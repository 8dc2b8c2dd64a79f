"""What is reported of flows that are sampled while a model is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.figures import Picture
from sda_kolmogorov import diagnostics, plugin
from sda_kolmogorov.diagnostics import kolmogorov_diagnostics
from sda_kolmogorov.kolmogorov import KolmogorovFlow
from sda_kolmogorov.physics import energy_spectrum, velocity_from_vorticity, vorticity

N, LENGTH = 16, 9
RUN = SimpleNamespace(experiment=SimpleNamespace(system=KolmogorovFlow(size=N, time_step=0.5)))


def _flows(*shape: int, seed: int = 0) -> Tensor:
    """Random flows without divergence and with energy at all wavenumbers, (..., 2, N, N)."""
    w = torch.randn(*shape, N, N, generator=torch.Generator().manual_seed(seed))
    return velocity_from_vorticity(w)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    flows = _flows(4, LENGTH)
    monkeypatch.setattr(diagnostics, "training_trajectories", lambda run, samples: flows)
    return flows


def _axes(values: dict[str, Any], name: str) -> list:
    picture = values[name]
    assert isinstance(picture, Picture)
    assert isinstance(picture.figure, Figure)
    return picture.figure.axes


def test_samples_that_are_the_data(data: Tensor) -> None:
    values = kolmogorov_diagnostics(RUN, data)
    assert values["samples/divergence_rms"] == pytest.approx(0, abs=1e-5)
    assert values["samples/spectrum_error"] == pytest.approx(0, abs=1e-12)


def test_the_spectrum_error_is_of_the_mean_energy(data: Tensor) -> None:
    values = kolmogorov_diagnostics(RUN, 10 * data)
    assert values["samples/spectrum_error"] == pytest.approx(2)
    # Wavenumbers above n / 3 = 5 do not count.
    smooth = torch.fft.fft2(data)
    shells = torch.hypot(*torch.meshgrid(2 * [torch.fft.fftfreq(N, 1 / N)], indexing="ij"))
    smooth = torch.fft.ifft2(torch.where(shells < 5.5, smooth, smooth / 100)).real
    values = kolmogorov_diagnostics(RUN, smooth)
    assert values["samples/spectrum_error"] == pytest.approx(0, abs=1e-5)


def test_divergence_is_relative_to_vorticity(data: Tensor) -> None:
    x = torch.from_numpy(KolmogorovFlow(size=N).spec.axes[0].values)
    u = 3 * torch.sin(x)[:, None] + torch.sin(x)  # div = 3 cos x, w = - cos y
    flow = torch.stack((u, torch.zeros_like(u))).expand(3, LENGTH, 2, N, N).float()
    values = kolmogorov_diagnostics(RUN, flow)
    assert values["samples/divergence_rms"] == pytest.approx(3)


@pytest.mark.parametrize("members", [5, 2])
def test_pictures(data: Tensor, members: int) -> None:
    samples = _flows(members, LENGTH, seed=1)
    values = kolmogorov_diagnostics(RUN, samples)
    maps = [axis for axis in _axes(values, "samples/vorticity") if axis.images]
    shown = [*samples[:3], data[0]]
    assert len(maps) == 5 * len(shown)
    assert [axis.get_title() for axis in maps[:5]] == [f"t = {t}" for t in (0, 1, 2, 3, 4)]
    for row, x in enumerate(shown):
        for column, axis in enumerate(maps[5 * row : 5 * row + 5]):
            expected = vorticity(x[2 * column])
            np.testing.assert_array_equal(axis.images[0].get_array().T, expected)
    rows = [text.get_text() for axis in maps for text in axis.texts]
    assert rows == [*("sample 1", "sample 2", "sample 3")[:members], "data"]
    (axis,) = _axes(values, "samples/spectra")
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert set(lines) == {"samples", "training data"}
    spectra = energy_spectrum(data.double())[1].mean(1)[:, 1 : N // 2 + 1]
    np.testing.assert_allclose(lines["training data"], spectra.quantile(0.5, dim=0), rtol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e30])
def test_strange_samples_end_no_training(data: Tensor, tmp_path: Path, value: float) -> None:
    values = kolmogorov_diagnostics(RUN, torch.full((2, 1, 2, N, N), value))
    for name, picture in values.items():
        if isinstance(picture, Picture):
            picture.save(tmp_path / name)
        else:
            assert isinstance(picture, float)


def test_the_hook_is_for_samples_of_flows(data: Tensor) -> None:
    samples = _flows(2, LENGTH)
    values = plugin.sda_diagnostics(RUN, "training-samples", {"model": None, "samples": samples})
    assert set(values) == {
        "samples/divergence_rms",
        "samples/spectrum_error",
        "samples/vorticity",
        "samples/spectra",
    }
    other = SimpleNamespace(experiment=SimpleNamespace(system=object()))
    assert plugin.sda_diagnostics(other, "training-samples", {"samples": samples}) == {}
    assert plugin.sda_diagnostics(RUN, "sample", {"samples": samples}) == {}
