"""Noise: densities against those of torch, correlated errors, groups, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sda_core.config import structure
from sda_core.errors import AssimilationError, ConfigError
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.guidance import Likelihood
from sda_core.method import ParticleFilter, Problem
from sda_core.noise import Correlated, Gaussian, JointNoise, Laplace, Poisson, StudentT
from sda_core.observation import Compose, Concatenate, Function, Observation, Select
from sda_core.system import SystemSpec
from sda_core.testing import GaussianChain, check_noise

POINT = SystemSpec(variables=("x", "y", "z"), time_step=0.1)
MEAN = 4 + torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1.0, 4.0, 5.0, 9.0, 0.0, 3.0], dtype=torch.float64)
SCALE = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
D = torch.distributions


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (Gaussian(std=tuple(SCALE.tolist())), lambda m, s: D.Normal(m, s)),
        (StudentT(scale=tuple(SCALE.tolist()), dof=2.5), lambda m, s: D.StudentT(2.5, m, s)),
        (Laplace(scale=tuple(SCALE.tolist())), lambda m, s: D.Laplace(m, s)),
        (Poisson(), lambda m, s: D.Poisson(m)),
    ],
    ids=["gaussian", "student-t", "laplace", "poisson"],
)
def test_densities_and_draws_are_those_of_torch(noise, law) -> None:
    model = noise.bind((2, 3))
    own = law(MEAN, SCALE.repeat(2))
    torch.testing.assert_close(model.log_prob(Y, MEAN), own.log_prob(Y).sum(1))
    draws = model.sample(MEAN[0].expand(20000, 6), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    theirs = law(MEAN[0], SCALE.repeat(2)).sample((20000,))
    q = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    width = theirs.quantile(0.9, dim=0) - theirs.quantile(0.1, dim=0)
    assert ((draws.quantile(q, 0) - theirs.quantile(q, 0)).abs() / width).max() < 0.06


def test_gain_of_counts() -> None:
    model = Poisson(gain=0.5).bind((6,))
    y = model.sample(MEAN[:1].expand(20000, 6), torch.Generator().manual_seed(0))
    assert torch.equal(2 * y, (2 * y).round())
    torch.testing.assert_close(y.mean(0), MEAN[0], rtol=0.01, atol=0)
    torch.testing.assert_close(y.var(0), 0.5 * MEAN[0], rtol=0.05, atol=0)
    torch.testing.assert_close(model.std_at(MEAN), (0.5 * MEAN).sqrt())


def test_means_of_counts_below_the_floor_are_led_back() -> None:
    model = Poisson(floor=0.1).bind((1,))
    m = torch.tensor([[-1.0], [0.05], [0.1]], dtype=torch.float64, requires_grad=True)
    for y in (0.0, 3.0):
        given = torch.tensor([y], dtype=torch.float64)
        (score,) = torch.autograd.grad(model.log_prob(given, m).sum(), m)
        torch.testing.assert_close(score, (y - m.detach()) / 0.1)
    assert model.sample(m.detach(), torch.Generator().manual_seed(0)).min() >= 0


def test_variance_of_an_uncertain_estimate() -> None:
    """Of mixtures: v and E[r^2] agree. Of counts: the expected rate."""
    m, s = torch.tensor([[2.0]]).double(), torch.tensor([[9.0]]).double()
    y = torch.tensor([5.0]).double()
    for noise in (StudentT(scale=0.3), Laplace(scale=0.3)):
        model = noise.bind((1,))
        assert model.variance(y, m, s) < 0.2 * model.variance(y, m)
        v = model.variance(y, m, s)
        for _ in range(100):
            share = v / (v + s)
            v = model.adapt(v, share**2 * (y - m) ** 2 + share * s)
        torch.testing.assert_close(model.variance(y, m, s), v, rtol=0.5, atol=0)
        torch.testing.assert_close(model.variance(y, m, 0 * s), model.variance(y, m))
    rate = (m + 3 * torch.randn(10**6, 1, dtype=torch.float64)).clamp_min(0).mean()
    counts = Poisson().bind((1,))
    assert float(counts.variance(y, m, s)) == pytest.approx(float(rate), rel=0.01)
    assert float(counts.variance(y, m, 0 * s)) == pytest.approx(2.0)
    assert float(counts.variance(y, -100 * m, s)) == pytest.approx(0.01)
    assert Gaussian(std=0.3).bind((1,)).variance(y, m, s) == pytest.approx(0.09)


AR = np.exp(-np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / 2.0)
FULL = 0.5 * np.eye(6) + np.outer(np.arange(6), np.arange(6)) / 10


def _correlated():
    s = np.diag(SCALE.numpy())
    along_last = np.kron(np.eye(2), s @ AR @ s)
    along_first = np.exp(-np.abs(np.subtract.outer(np.arange(2), np.arange(2))) / 2.0)
    std = tuple(SCALE.tolist())
    return {
        "last": (Correlated(std=std, correlation_length=2.0), along_last),
        "first": (
            Correlated(std=std, correlation_length=2.0, axis=0),
            np.kron(along_first, s @ s),
        ),
        "matrix": (Correlated(covariance=(s @ AR @ s).tolist()), along_last),
        "full": (Correlated(covariance=FULL.tolist()), FULL),
    }


@pytest.mark.parametrize("case", ["last", "first", "matrix", "full"])
def test_correlated_errors(case, tmp_path) -> None:
    noise, R = _correlated()[case]
    model, R = noise.bind((2, 3)), torch.as_tensor(R)
    normal = D.MultivariateNormal(MEAN, R)
    torch.testing.assert_close(model.log_prob(Y, MEAN), normal.log_prob(Y))
    torch.testing.assert_close(model.std, R.diagonal().sqrt())
    # Whitened errors are independent, with the variances they had.
    W = model.whiten(torch.eye(6, dtype=torch.float64)).T
    torch.testing.assert_close(W @ R @ W.T, R.diagonal().diag(), rtol=1e-9, atol=1e-9)
    for some in ([0, 1, 3, 5], [2], [3, 4]):
        chosen = torch.zeros(6, dtype=torch.bool)
        chosen[some] = True
        part, marginal = model.select(chosen), R[some][:, some]
        expected = D.MultivariateNormal(MEAN[:, some], marginal).log_prob(Y[some])
        torch.testing.assert_close(part.log_prob(Y[some], MEAN[:, some]), expected)
        if len(some) > 2:  # and of a part, once more
            rest = part.select(torch.tensor([True, False, True, True]))
            again = [some[i] for i in (0, 2, 3)]
            expected = D.MultivariateNormal(MEAN[:, again], R[again][:, again])
            torch.testing.assert_close(
                rest.log_prob(Y[again], MEAN[:, again]), expected.log_prob(Y[again])
            )
    draws = model.sample(MEAN[:1].expand(40000, 6), torch.Generator().manual_seed(0))
    size = R.diagonal().sqrt()
    assert ((draws.T.cov() - R) / (size[:, None] * size)).abs().max() < 0.03
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    assert model.correlates(rows) == (case in ("first", "full"))
    assert model.correlates(torch.tensor([0, 1, 2] * 2)) == (case != "first")
    np.save(tmp_path / "R.npy", R.numpy())
    from_file = Correlated(covariance=tmp_path / "R.npy").bind((2, 3))
    torch.testing.assert_close(from_file.log_prob(Y, MEAN), normal.log_prob(Y))


def test_groups_side_by_side() -> None:
    parts = tuple(n.bind((3,)) for n in (_correlated()["matrix"][0], StudentT(scale=0.5)))
    joint = JointNoise(parts=parts)
    each = [
        p.log_prob(Y[i], MEAN[:, i]) for p, i in zip(parts, (slice(3), slice(3, 6)), strict=True)
    ]
    torch.testing.assert_close(joint.log_prob(Y, MEAN), sum(each))
    assert joint.std.tolist() == pytest.approx([0.5, 1.0, 2.0, 0.5, 0.5, 0.5])
    assert not joint.gaussian
    assert JointNoise(parts=parts[:1]).gaussian
    assert not joint.correlates(torch.tensor([0, 0, 0, 1, 2, 3]))
    assert joint.correlates(torch.tensor([0, 0, 1, 1, 2, 3]))
    tail = joint.select(torch.tensor([False] * 4 + [True] * 2))
    assert len(tail.parts) == 1
    torch.testing.assert_close(tail.std, joint.std[4:])
    torch.testing.assert_close(joint.whiten(MEAN)[:, 3:], MEAN[:, 3:])


def test_an_observation_has_std_or_noise() -> None:
    table = {"name": "select", "noise": {"name": "student-t", "scale": 0.2, "dof": 3.0}}
    model = structure(Observation, table).bind(POINT, 4)
    assert model.shape == (4, 3)
    assert model.std.tolist() == [[0.2] * 3] * 4
    x = torch.randn(4, 3, dtype=torch.float64)
    y = model.sample(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.log_prob(y, x), D.StudentT(3.0, x, 0.2).log_prob(y).sum())
    short, long = Select(std=0.3).bind(POINT, 4), Select(noise=Gaussian(std=0.3)).bind(POINT, 4)
    draws = [m.sample(x, torch.Generator().manual_seed(1)) for m in (short, long)]
    assert torch.equal(*draws)
    with pytest.raises(ConfigError, match=r"std = 0.3 is given besides.*observation.std=none"):
        Select(std=0.3, noise=Gaussian(std=0.3)).bind(POINT, 4)
    with pytest.raises(ConfigError, match=r"std is missing.*or another error model as observation"):
        Select().bind(POINT, 4)
    with pytest.raises(ConfigError, match=r"parts\[1\].noise: noise is added once, to the result"):
        Compose(parts=(Select(), Select(noise=Poisson())))
    with pytest.raises(ConfigError, match=r"observation.noise: each part of a 'concatenate' has"):
        Concatenate(parts=(Select(std=1.0),), noise=Poisson())


def test_groups_of_observations_with_noises_of_their_own() -> None:
    parts = (
        Select(variables=("x",), every=2, noise=Laplace(scale=0.2)),
        Select(variables=("y", "z"), noise=_correlated_pair()),
        Function(target=torch.exp, noise=Poisson()),
    )
    model = Concatenate(parts=parts).bind(POINT, 4)
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = model.sample(x[0], torch.Generator().manual_seed(0))
    bound = [p.bind(POINT, 4) for p in parts]
    sizes = [m.shape.numel() for m in bound]
    terms = [m.log_prob(v.reshape(m.shape), x) for m, v in zip(bound, y.split(sizes), strict=True)]
    torch.testing.assert_close(model.log_prob(y, x), sum(terms))
    at_times = [model.log_prob_at(i, y, x[:, i]) for i in range(4)]
    torch.testing.assert_close(sum(at_times), sum(terms))
    some = torch.arange(len(y)) % 3 == 0
    part = model.select(some)
    torch.testing.assert_close(part.operator(x), model.operator(x)[:, some])
    assert torch.equal(part.times, model.times[some])


def _correlated_pair():
    return Correlated(covariance=[[0.1, 0.05], [0.05, 0.2]])


def test_filters_refuse_errors_correlated_between_times() -> None:
    chain = GaussianChain()
    noise = Correlated(std=0.4, correlation_length=2.0, axis=0)
    model = Select(noise=noise).bind(chain.spec, 4)
    problem = Problem(system=chain, observation=model, y=torch.zeros(4, 2).double())
    with pytest.raises(AssimilationError, match=r"correlated between times.*'sda'.*noise.axis"):
        ParticleFilter(particles=8).draw(problem, 2, 0)
    within = Select(noise=_correlated_pair()).bind(chain.spec, 4)
    problem = Problem(system=chain, observation=within, y=torch.zeros(4, 2).double())
    ParticleFilter(particles=8).draw(problem, 2, 0)


@pytest.mark.parametrize(
    "noise",
    [StudentT(scale=0.3), Laplace(scale=0.3), Poisson(gain=0.1), _correlated_pair()],
    ids=lambda n: type(n).__name__,
)
def test_residuals_of_the_truth_have_size_one(noise) -> None:
    chain = GaussianChain()
    A = Function(target=torch.exp, noise=noise) if isinstance(noise, Poisson) else None
    model = (A or Select(noise=noise)).bind(chain.spec, 4000)
    truth = chain.prior((4000,), torch.Generator().manual_seed(0))
    y = model.sample(truth, torch.Generator().manual_seed(1))
    problem = Problem(system=chain, observation=model, y=y)
    assert evaluate_ensemble(problem, truth[None])["residual_std"] == pytest.approx(1, abs=0.03)
    written = problem.to_dataset()["std"]
    assert written.shape == (4000, 2)
    if isinstance(noise, Poisson):
        np.testing.assert_allclose(written, (0.1 * y.clamp_min(0.001)).sqrt())


def test_likelihood_shows_guidance_independent_errors() -> None:
    noise = _correlated()["full"][0].bind((2, 3))
    likelihood = Likelihood(operator=lambda x: x, y=Y.reshape(2, 3), noise=noise)
    x = MEAN.reshape(5, 2, 3).clone().requires_grad_()
    log_p = likelihood.log_prob(x)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    r, v = likelihood.residual(x), likelihood.variance(x)
    assert not v.requires_grad
    (guided,) = torch.autograd.grad(-0.5 * (r**2 / v).sum(), x)
    torch.testing.assert_close(guided, score)
    each = Likelihood(operator=lambda x: x, y=Y.reshape(2, 3).expand(5, 2, 3), noise=noise)
    torch.testing.assert_close(each.residual(x), r)
    usual = Likelihood.gaussian(lambda x: x, y=Y.reshape(2, 3), std=SCALE.repeat(2, 1))
    torch.testing.assert_close(usual.variance(x), (SCALE.repeat(2) ** 2).expand(5, 6))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "gaussian"}, r"std: missing, but required"),
        ({"name": "gaussian", "std": 0.0}, r"std: got 0.0, allowed: greater than 0"),
        ({"name": "student-t", "scale": 1.0, "dof": 0.0}, r"dof: got 0.0, allowed: greater than 0"),
        ({"name": "poisson", "gain": [1.0, -1.0, 1.0]}, r"gain: got \(1.0, -1.0, 1.0\)"),
        ({"name": "correlated", "std": 1.0}, r"either std and correlation_length, or covariance"),
        (
            {"name": "correlated", "std": 1.0, "covariance": [[1.0]]},
            r"either std and correlation_length, or covariance",
        ),
    ],
)
def test_errors_when_made(table, message) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(Observation, {"name": "select", "noise": table})


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (Gaussian(std=(1.0, 1.0)), r"observation.noise.std has 2 entries.*or 3 of them"),
        (StudentT(scale=(1.0, 1.0)), r"observation.noise.scale has 2 entries"),
        (Poisson(gain=(1.0, 1.0)), r"observation.noise.gain has 2 entries"),
        (
            Correlated(std=1.0, correlation_length=1.0, axis=2),
            r"noise.axis = 2, but .* shape \(2, 3\): choose -2 to 1",
        ),
        (
            Correlated(covariance=[[1.0, 0.0], [0.0, 1.0]]),
            r"shape \(2, 2\), but must be \(6, 6\), between all observed values, or \(3, 3\)",
        ),
        (
            Correlated(covariance=np.full((3, 3), 1.0).tolist()),
            r"symmetric and positive definite: its least eigenvalue is",
        ),
        (
            Correlated(covariance=(np.eye(3) + np.eye(3, k=1) / 3).tolist()),
            r"must be symmetric and positive definite",
        ),
        (Correlated(covariance=[[1.0, 0.0], [0.0]]), r"covariance is no matrix of numbers: "),
        (
            Correlated(std=1.0, correlation_length=1e20),
            r"correlation_length = 1e\+20 makes all errors along axis -1 the same: give less",
        ),
    ],
)
def test_errors_when_bound(noise, message) -> None:
    with pytest.raises(ConfigError, match=message):
        noise.bind((2, 3))


def test_a_covariance_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"covariance: there is no file .*none.npy"):
        Correlated(covariance=tmp_path / "none.npy").bind((2, 3))
    for content in ("", "1 0 0"):
        (tmp_path / "text.npy").write_text(content)
        with pytest.raises(ConfigError, match="covariance is no matrix of numbers: "):
            Correlated(covariance=tmp_path / "text.npy").bind((2, 3))


def test_a_single_number_has_noise_too() -> None:
    for noise in (Laplace(scale=2.0), Correlated(covariance=[[4.0]])):
        total = Function(target=lambda x: x.sum((-1, -2)), statewise=False, noise=noise)
        model = total.bind(POINT, 4)
        assert model.shape == ()
        x = torch.randn(5, 4, 3, dtype=torch.float64)
        y = model.sample(x[0], torch.Generator().manual_seed(0))
        assert model.log_prob(y, x).shape == (5,)


def test_the_kit_finds_what_is_wrong() -> None:
    class Wide(Laplace):
        def bind(self, shape):
            model = super().bind(shape)
            return type("WideNoise", (type(model),), {"log_density": _twice})(scale=model.scale)

    def _twice(self, y, mean):
        return -(y - mean).abs() / (2 * self.scale.to(mean)) - math.log(4)

    with pytest.raises(AssertionError, match="integrates to 1"):
        check_noise(Wide(scale=0.3))

    class Whole(Poisson):
        def bind(self, shape):
            model = super().bind(shape)
            sample = lambda self, mean, generator: mean.round()  # noqa: E731
            return type("WholeNoise", (type(model),), {"sample": sample})(
                scale=model.scale, floor=model.floor
            )

    with pytest.raises(AssertionError):
        check_noise(Whole())
    check_noise(Laplace(scale=0.3))
