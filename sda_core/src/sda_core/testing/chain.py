r"""Linear-Gaussian chains: x_1 ~ N(m, P), x_i = F x_i-1 + b + N(0, Q)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component
from sda_core.data import Standardization
from sda_core.guidance import Likelihood
from sda_core.method import Problem
from sda_core.observation import Select
from sda_core.schedule import VP, Schedule
from sda_core.system import LinearGaussian, System, SystemSpec, simulate_block
from sda_core.testing.gaussian import GaussianDenoiser, affine_map, gaussian_posterior


@component
class GaussianChain(System):
    r"""A damped, driven rotation in the plane, in its stationary state.

    Its mean is (3, -1) and its variances are neither 1 nor equal, in physical units and in model
    space alike, so that no error can hide behind a standard normal prior.
    """

    @property
    def spec(self) -> SystemSpec:
        """Two variables; the standardization is not that of the stationary state."""
        return SystemSpec(variables=("u", "v"), time_step=0.1, mean=(2.0, 0.0), std=(1.5, 0.8))

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(m, P, F, b, Q), float64."""
        angle = torch.tensor(0.4, dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        F = 0.9 * torch.stack((torch.stack((c, -2 * s)), torch.stack((s / 2, c))))
        Q = torch.tensor([[0.5, 0.1], [0.1, 0.2]], dtype=torch.float64)
        m = torch.tensor([3.0, -1.0], dtype=torch.float64)
        # P = F P F^T + Q, solved for the entries of P.
        lyapunov = torch.eye(4, dtype=torch.float64) - torch.kron(F, F)
        P = torch.linalg.solve(lyapunov, Q.flatten()).reshape(2, 2)
        return m, P, F, m - F @ m, Q

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """The stationary distribution, (B..., 2)."""
        m, P, *_ = self.linear_gaussian()
        z = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
        return m + z @ torch.linalg.cholesky(P).T

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw x_i given x_i-1, (B..., 2) -> (B..., 2)."""
        _, _, F, b, Q = (m.to(x) for m in self.linear_gaussian())
        z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        return x @ F.T + b + z @ torch.linalg.cholesky(Q).T

    def log_prob(self, x: Tensor, x_next: Tensor) -> Tensor:
        """log p(x_next | x), (B..., 2) twice -> (B...)."""
        _, _, F, b, Q = (m.to(x) for m in self.linear_gaussian())
        return torch.distributions.MultivariateNormal(x @ F.T + b, Q).log_prob(x_next)


def linear_gaussian_moments(
    system: LinearGaussian, length: int, transitions: int = 1
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the flattened trajectory x_1:L.

    Args:
        system: A linear-Gaussian system.
        length: L.
        transitions: Number of transitions from the prior to x_1: one more than the burn-in of
            :func:`sda_core.system.trajectory`, as many as that of the particle filter.

    Returns:
        Mean (L n,) and covariance (L n, L n), float64, with n values in a state.
    """
    m, P, F, b, Q = system.linear_gaussian()
    for _ in range(transitions):
        m, P = F @ m + b, F @ P @ F.T + Q
    n = len(m)
    means, C = [m], torch.zeros(length * n, length * n, dtype=torch.float64)
    for i in range(length):
        now = slice(i * n, (i + 1) * n)
        if i:
            m, P = F @ m + b, F @ P @ F.T + Q
            means.append(m)
            # Cov(x_i, x_j) = F Cov(x_i-1, x_j) for j < i.
            C[now, : i * n] = F @ C[(i - 1) * n : i * n, : i * n]
            C[: i * n, now] = C[now, : i * n].T
        C[now, now] = P
    return torch.cat(means), C


@attrs.frozen(kw_only=True, eq=False)
class GaussianModel:
    """The exact model of a linear-Gaussian system, for methods that need a trained one.

    Attributes:
        denoiser: The exact denoiser of trajectories, in model space.
        standardization: The map between physical units and model space.
    """

    denoiser: GaussianDenoiser
    standardization: Standardization

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.denoiser.mean.device

    def trajectory_denoiser(self) -> GaussianDenoiser:
        """The denoiser of trajectories."""
        return self.denoiser


@attrs.frozen(kw_only=True, eq=False)
class GaussianProblem:
    r"""An assimilation problem with its exact answer.

    Attributes:
        problem: The problem, in physical units.
        model: The exact model of its prior.
        mean: Mean of the posterior, (L, C, \*S), physical units.
        covariance: Covariance of the posterior of flattened trajectories, (d, d).
    """

    problem: Problem
    model: GaussianModel
    mean: Tensor
    covariance: Tensor

    @property
    def std(self) -> Tensor:
        r"""Standard deviation of the posterior, (L, C, \*S)."""
        return self.covariance.diagonal().sqrt().reshape(self.mean.shape)

    @property
    def likelihood(self) -> Likelihood:
        """p(y | x) for trajectories in model space."""
        operator, scaling = self.problem.observation.operator, self.model.standardization
        return Likelihood(
            operator=lambda x: operator(scaling.to_physical(x)),
            y=self.problem.y,
            noise=self.problem.observation.noise,
        )

    @property
    def posterior_denoiser(self) -> GaussianDenoiser:
        """The exact E[x_0 | x_t, y], in model space."""
        scaling, shape = self.model.standardization, self.mean.shape
        scale = 1 / affine_map(scaling.to_physical, shape)[0].diagonal()
        return GaussianDenoiser(
            scaling.to_model(self.mean),
            scale[:, None] * self.covariance * scale,
            self.model.denoiser.schedule,
        )


def _standardized(spec: SystemSpec, mean: Tensor, variance: Tensor) -> SystemSpec:
    r"""A spec with the standardization of trajectories with these moments, (L, C, \*S)."""
    mean, variance = mean.transpose(0, 1).flatten(1), variance.transpose(0, 1).flatten(1)
    total = variance.mean(1) + mean.var(1, correction=0)
    return attrs.evolve(spec, mean=mean.mean(1).tolist(), std=total.sqrt().tolist())


def gaussian_problem(
    system: System | None = None,
    *,
    length: int = 9,
    every: int = 2,
    variables: tuple[str, ...] | None = None,
    std: float = 0.4,
    schedule: Schedule | None = None,
    transitions: int = 64,
    seed: int = 0,
) -> GaussianProblem:
    """Make a problem with its exact answer.

    Args:
        system: A linear-Gaussian system; None for :class:`GaussianChain`. Without a standardization
            of its own it gets the one that data would give.
        length: Number L of states.
        every: Observe every n-th of them.
        variables: Which variables are observed; None for the first.
        std: Standard deviation of the observation noise.
        schedule: Noise schedule of the model; None for VP.
        transitions: Number of transitions from the system's prior to x_1.
        seed: Source of truth and noise.
    """
    system = system or GaussianChain()
    if not isinstance(system, LinearGaussian):
        raise TypeError(f"{type(system).__name__} is not linear and Gaussian")
    spec = system.spec
    mean, covariance = linear_gaussian_moments(system, length, transitions)
    shape = (length, *spec.state_shape)
    if spec.mean is None:
        spec = _standardized(spec, mean.reshape(shape), covariance.diagonal().reshape(shape))
    scaling = Standardization.from_spec(spec)
    scale = 1 / affine_map(scaling.to_physical, shape)[0].diagonal()
    model = GaussianModel(
        denoiser=GaussianDenoiser(
            scaling.to_model(mean.reshape(shape)),
            scale[:, None] * covariance * scale,
            schedule or VP(),
        ),
        standardization=scaling,
    )
    select = Select(variables=variables or spec.variable_names[:1], every=every, std=std)
    observation = select.bind(spec, length)
    truth = simulate_block(system, seed, 0, length, transitions - 1)[0]
    y = observation.sample(truth, torch.Generator().manual_seed(seed))
    H, c = affine_map(observation.operator, shape)
    posterior = gaussian_posterior(mean, covariance, H, y.flatten() - c, observation.std.flatten())
    return GaussianProblem(
        problem=Problem(system=system, observation=observation, y=y, truth=truth),
        model=model,
        mean=posterior[0].reshape(shape),
        covariance=posterior[1],
    )
