"""The pieces used from Python, without an experiment file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

import sda_core as sda
from sda_core.errors import CheckpointError, ConfigError, DataError, ShapeError
from sda_core.plugins import default_manager
from sda_core.sampler import Sampler
from sda_dps import MMPS
from sda_lorenz import NoisyLorenz63
from sda_mlp import MLP

SELECT = sda.Select(variables=["x"], every=8, std=0.5)


def test_the_program_of_the_readme() -> None:
    """With fewer steps and members than there."""
    system = NoisyLorenz63()
    problem = sda.twin_experiment(system, SELECT, length=33, seed=0)
    prior = sda.load_model("lorenz63")
    method = sda.SDA(prior, sampler=sda.DDPM(steps=24, grid="log-snr"), guidance=MMPS())
    posterior = method.assimilate(problem, members=6, seed=0, progress=False)
    assert isinstance(posterior, xr.DataArray)
    assert posterior.dims == ("member", "time", "variable")
    assert posterior["variable"].values.tolist() == ["x", "y", "z"]
    assert float(posterior["time"][1]) == pytest.approx(0.025)
    scores = sda.score(problem, posterior)
    assert scores["residual_std"] < 4
    assert "CRPS" in str(scores)
    assert scores["rmse"] < 4  # the climate's spread is 8
    assert len(sda.plot(problem, posterior).axes) == 3
    again = method.assimilate(problem, members=6, seed=0, progress=False)
    np.testing.assert_array_equal(posterior, again)
    alone = method.assimilate(problem, members=2, seed=0, progress=False)
    np.testing.assert_allclose(alone, posterior[:2], rtol=1e-3, atol=1e-3)


def test_a_twin_experiment_depends_on_its_seed_alone() -> None:
    one, same, other = (
        sda.twin_experiment(NoisyLorenz63(), SELECT, length=17, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.truth, same.truth)
    assert torch.equal(one.y, same.y)
    assert not torch.equal(one.truth, other.truth)
    assert one.y.shape == (3, 1)
    more = sda.Select(variables=["x"], every=4, std=0.5)  # another observation of the same truth
    assert torch.equal(
        sda.twin_experiment(NoisyLorenz63(), more, length=17, seed=1).truth, one.truth
    )
    with pytest.raises(ConfigError, match="length = 0"):
        sda.twin_experiment(NoisyLorenz63(), SELECT, length=0)


def test_training_on_arrays(tmp_path) -> None:
    """A stationary AR(1) process, whose score is known: the network comes near it."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(256, 1, generator=generator)]
    for _ in range(31):
        x.append(0.8 * x[-1] + 0.6 * torch.randn(256, 1, generator=generator))
    values = 10 + 3 * torch.stack(x, 1).numpy()
    spec = sda.SystemSpec(variables=("T [K]",), time_step=1.0)
    data = sda.from_arrays(values, spec)
    assert data.spec.mean[0] == pytest.approx(10, abs=0.2)
    assert data.spec.std[0] == pytest.approx(3, rel=0.05)
    settings = {
        "schedule": sda.VE(sigma_max=20.0),
        "model": sda.ModelConfig(window=4, stride=2, parameterization="edm"),
        "epochs": 60,
        "windows_per_trajectory": 4,
        "learning_rate": 3e-3,
        "ema": 0.99,
        "progress": False,
    }
    model = sda.fit(MLP(width=32, depth=2), data, **settings)
    again = sda.fit(MLP(width=32, depth=2), data, **settings)
    assert model.provenance == again.provenance
    samples = model.standardization.to_physical(
        sda.DDPM(steps=32, grid="log-snr").sample(model.denoiser, (512, 4, 1), seed=0)
    )
    assert samples.mean() == pytest.approx(10, abs=0.5)
    assert samples.std() == pytest.approx(3, rel=0.2)
    lag = np.corrcoef(samples[:, 0, 0], samples[:, 1, 0])[0, 1]
    assert lag == pytest.approx(0.8, abs=0.1)
    model.save(tmp_path / "model")
    loaded = sda.load_model(tmp_path / "model")
    z, t = torch.randn(1, 4, 1), torch.tensor(0.3)
    assert torch.equal(loaded.denoiser(z, t), model.denoiser(z, t))
    with pytest.raises(ConfigError, match=r"TrainConfig has no 'epoch': did you mean 'epochs'\?"):
        sda.fit(MLP(), data, epoch=3)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.zeros((3, 4)), ShapeError, r"shape \(3, 4\), but must have \(N, L, 2\)"),
        (np.zeros((3, 4, 3)), ShapeError, r"shape \(3, 4, 3\)"),
        (np.full((3, 4, 2), np.nan), DataError, r"not finite, in 3 of 3"),
        (np.ones((3, 4, 2)), DataError, r"\['a', 'b'\] never change"),
    ],
)
def test_arrays_that_are_no_trajectories(values, error, message) -> None:
    with pytest.raises(error, match=message):
        sda.from_arrays(values, sda.SystemSpec(variables=("a", "b"), time_step=1.0))


def test_guidance_on_a_denoiser_of_ones_own() -> None:
    """A Gaussian prior N(m, s^2) of each entry and an exact observation model."""
    m, s, std, y = 2.0, 0.5, 0.3, torch.tensor([3.0, 1.0])
    schedule = sda.VE()

    def network(x_t, t):
        ratio = s**2 / (s**2 + schedule.sigma(t) ** 2)
        return m + ratio * (x_t - m)

    prior = sda.FunctionDenoiser(network, schedule)
    likelihood = sda.Likelihood.gaussian(lambda x: x[:, :2, 0], y, torch.full((2,), std))
    posterior = MMPS()(prior, likelihood)
    x = sda.DDPM(steps=256, grid="log-snr").sample(posterior, (4096, 3, 1), seed=0)[..., 0]
    variance = 1 / (1 / s**2 + 1 / std**2)
    exact = variance * (m / s**2 + y / std**2)
    torch.testing.assert_close(x.mean(0)[:2], exact, atol=0.02, rtol=0)
    torch.testing.assert_close(x.std(0)[:2], torch.full((2,), variance**0.5), atol=0.02, rtol=0)
    assert x[:, 2].std() == pytest.approx(s, abs=0.03)


def test_a_module_is_part_of_the_denoiser() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x_t, t):
            return self.scale * x_t

    denoiser = sda.FunctionDenoiser(Network(), sda.VP())
    assert [name for name, _ in denoiser.named_parameters()] == ["function.scale"]


def test_samplers_need_noise_of_one_kind() -> None:
    denoiser = sda.FunctionDenoiser(lambda x, t: 0 * x, sda.VP())
    with pytest.raises(ConfigError, match="seed=0"):
        sda.DDIM().sample(denoiser, (2, 3, 1))
    few, many = (sda.DDPM(steps=4).sample(denoiser, (n, 3, 1), seed=5) for n in (2, 4))
    assert torch.equal(few, many[:2])


def test_models_that_are_not_there(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"'lorenz36': did you mean 'lorenz63'\?.*run dir"):
        sda.load_model("lorenz36")
    with pytest.raises(CheckpointError, match="there is no model"):
        sda.load_model(tmp_path)


def test_a_component_names_its_fields() -> None:
    with pytest.raises(ConfigError, match=r"DDIM has no 'stepz': did you mean 'steps'\? allowed"):
        sda.DDIM(stepz=3)
    with pytest.raises(ConfigError, match="MMPS has no 'gamma'"):
        MMPS(gamma=1.0)
    with pytest.raises(ConfigError, match=r"SDA has no 'members'.*model, sampler, guidance"):
        sda.SDA(members=3)


@pytest.mark.parametrize("registered", default_manager().components(), ids=lambda c: c.name)
def test_every_component_is_a_name_of_its_package(registered) -> None:
    module, _, name = registered.component.target.partition(":")
    package = sys.modules[module.partition(".")[0]]
    assert getattr(package, name) is registered.load()
    assert name in dir(package)
    assert not issubclass(registered.load(), Sampler) or getattr(sda, name) is registered.load()


def test_importing_packages_imports_nothing_heavy() -> None:
    code = (
        "import sys, sda_core, sda_dps, sda_lorenz, sda_kolmogorov, sda_unet, sda_mlp, sda_ray\n"
        "print({'torch', 'jax', 'ray', 'xarray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="module 'sda_core' has no attribute 'nothing'"):
        _ = sda.nothing
