"""The kit finds what is wrong: each of these components breaks one promise."""

from __future__ import annotations

import signal

import attrs
import pytest
import torch
from torch import nn

from sda_core.errors import UnknownComponentError
from sda_core.guidance import Guidance, GuidedDenoiser
from sda_core.kernel import Kernel
from sda_core.method import Method
from sda_core.observation import Select
from sda_core.plugins import Component, PluginManager, hookimpl
from sda_core.sampler import DDIM, Sampler
from sda_core.schedule import VE, VP
from sda_core.system import ODESystem, SystemSpec
from sda_core.testing import (
    GaussianChain,
    GaussianDenoiser,
    check_component,
    check_guidance,
    check_kernel,
    check_method,
    check_observation,
    check_sampler,
    check_schedule,
    check_system,
    check_tracker,
    checks,
)
from sda_core.tracker import Session, Tracker

frozen = attrs.frozen(kw_only=True, eq=False)


# --- systems ---


class WrongShape(GaussianChain):
    def prior(self, shape, generator):
        return super().prior((*shape, 1), generator)


class GlobalNoise(GaussianChain):
    def transition(self, x, generator):
        return super().transition(x, generator) + torch.randn(1)


class InPlace(GaussianChain):
    def transition(self, x, generator):
        x += 1
        return super().transition(x, generator)


class Coupled(GaussianChain):
    def transition(self, x, generator):
        return super().transition(x, generator) + 0.1 * (x - x.mean(0)).square().sum()


class WrongWidth(GaussianChain):
    def log_prob(self, x, x_next):
        _, _, F, b, Q = self.linear_gaussian()
        return torch.distributions.MultivariateNormal(x @ F.T + b, 1.3 * Q).log_prob(x_next)


class NotNormalized(GaussianChain):
    def log_prob(self, x, x_next):
        return super().log_prob(x, x_next) + 0.2


class WrongMatrices(GaussianChain):
    def linear_gaussian(self):
        m, P, F, b, Q = super().linear_gaussian()
        return m, P, F, b + 0.1, Q

    def transition(self, x, generator):
        return GaussianChain().transition(x, generator)

    def log_prob(self, x, x_next):
        return GaussianChain().log_prob(x, x_next)


@frozen
class Decay(ODESystem):
    block_size = 4
    rate: float = 1.0

    @property
    def spec(self):
        return SystemSpec(variables=("x",), time_step=0.1)

    def prior(self, shape, generator):
        return 1 + torch.rand(*shape, 1, generator=generator)

    def rhs(self, x):
        return -self.rate * x


class WrongRhs(Decay):
    def transition(self, x, generator):
        return x * 0.8


class WrongTrajectory(Decay):
    def trajectory(self, x, length, burn_in, generator):
        return torch.stack([x * 0.9**i for i in range(burn_in, burn_in + length)], 1)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (WrongShape(), r"WrongShape breaks the promise 'Initial states have the shape"),
        (GlobalNoise(), "transition differs with equally seeded generators"),
        (InPlace(), "transition changed its argument"),
        (Coupled(), "member 0, with other mates"),
        (WrongWidth(), r"E\[x . s\] is .* standard errors away from -2"),
        (NotNormalized(), r"E\[q / p\] = .*should be 1"),
        (WrongMatrices(), "mean of x_1 - F x_0 - b is"),
        (WrongRhs(), "of its motion away from a fine integration of rhs"),
        (WrongTrajectory(), "A fast trajectory is what one transition after another gives"),
    ],
    ids=lambda p: type(p).__name__ if not isinstance(p, str) else "",
)
def test_system(system, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_system(system)


def test_good_systems() -> None:
    check_system(GaussianChain())
    check_system(Decay())


# --- schedules ---


class Rising(VP):
    def sigma(self, t):
        return super().sigma(t) * (1 + 0.5 * torch.sin(40 * t))


class Faint(VE):
    def sigma(self, t):
        return 0.1 * super().sigma(t)


class Single(VP):
    def alpha(self, t):
        return super().alpha(t.float())


class Rough(VP):
    def sigma(self, t):
        return (1 - self.alpha(t) ** 2 + self.eta**2).sqrt()


class BatchNormalized(VP):
    def alpha(self, t):
        return super().alpha(t) / super().alpha(t).max()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Rising(), "sigma decreases near t ="),
        (Faint(), r"sigma\(1\) / alpha\(1\) = 5, not above 8"),
        (Single(), "alpha of float64 times is torch.float32"),
        (Rough(), "sigma in float32"),
        (BatchNormalized(), "alpha of times of shape"),
    ],
    ids=lambda p: type(p).__name__ if not isinstance(p, str) else "",
)
def test_schedule(schedule, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_schedule(schedule)


# --- kernels ---


class Network(nn.Module):
    def __init__(self, window, leak=0.0, idle=False, timeless=False, short=False) -> None:
        super().__init__()
        self.linear = nn.Linear(window.numel + 1, window.numel)
        if idle:
            self.idle = nn.Linear(2, 2)
        self.leak, self.timeless, self.short = leak, timeless, short

    def forward(self, x, t):
        if self.timeless:
            t = torch.zeros_like(t)
        out = self.linear(torch.cat((x.flatten(1), t[:, None]), 1)).tanh().reshape(x.shape)
        if self.short:
            return out[:, 1:]
        return out + self.leak * x.mean(0)


@frozen
class Net(Kernel):
    options: dict = {}  # noqa: RUF012 - frozen

    def build(self, window):
        return Network(window, **self.options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": True}, r"\(3, 5, 3\), torch.float32 became \(3, 4, 3\)"),
        ({"leak": 0.1}, "row 1 alone"),
        ({"idle": True}, r"missing, zero or not finite for \['idle.weight', 'idle.bias'\]"),
        ({"timeless": True}, "it is the same at another time"),
    ],
)
def test_kernel(options, message) -> None:
    check_kernel(Net())
    with pytest.raises(AssertionError, match=message):
        check_kernel(Net(options=options))


# --- samplers ---


class WrongScale(DDIM):
    def step(self, denoiser, x, t, s, noise):
        alpha, sigma = denoiser.schedule.alpha(s), denoiser.schedule.sigma(t)  # for sigma(s)
        return alpha * denoiser(x, t) + sigma * denoiser.eps(x, t)


class BatchNorm(DDIM):
    def step(self, denoiser, x, t, s, noise):
        x = super().step(denoiser, x, t, s, noise)
        return x * (1 + 1e-3 * x.square().mean())


class OwnNoise(DDIM):
    def step(self, denoiser, x, t, s, noise):
        return super().step(denoiser, x, t, s, noise) + 1e-3 * torch.randn(x.shape)


class Silent(Sampler):
    order = 1

    def sample(self, denoiser, shape, noise, on_step=None):
        return super().sample(denoiser, shape, noise)

    def step(self, denoiser, x, t, s, noise):
        return DDIM().step(denoiser, x, t, s, noise)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (WrongScale(), "a covariance is .* off"),
        (BatchNorm(), "member 2 alone"),
        (OwnNoise(), "the same noise gives other samples"),
        (Silent(), "it heard nothing"),
    ],
    ids=lambda p: type(p).__name__ if not isinstance(p, str) else "",
)
def test_sampler(sampler, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_sampler(sampler)


# --- guidance ---


def _gradient(likelihood, x_t, denoise, norm):
    x_t.requires_grad_()
    x0 = denoise(x_t)
    loss = 0.5 * (likelihood.residual(x0) ** 2 / likelihood.variance(x0)).sum(1)
    (gradient,) = torch.autograd.grad(loss.sum(), x_t)
    return x0, -gradient / norm(loss.detach()).reshape(-1, *(1,) * (x_t.ndim - 1))


class Made(Guidance):
    """Guidance from a function of (x_t, denoise, likelihood, alpha, sigma)."""

    def __init__(self, score, exact=False, uses_std=True) -> None:
        self.score, self.exact_for_gaussian, self.uses_std = score, exact, uses_std

    def __call__(self, prior, likelihood):
        return GuidedDenoiser(prior, likelihood, self.score)


class KeepsGraph(Guidance):
    def __call__(self, prior, likelihood):
        class Posterior(GuidedDenoiser):
            def forward(self, x_t, t):
                x_t.requires_grad_()
                return self.prior(x_t, t) + 0 * x_t

        return Posterior(prior, likelihood, None)


class OtherSchedule(Guidance):
    def __call__(self, prior, likelihood):
        return GaussianDenoiser(prior.mean, prior.covariance, VP())


def one_norm(x_t, denoise, likelihood, alpha, sigma):
    return _gradient(likelihood, x_t, denoise, lambda loss: loss.sum().sqrt().expand(len(loss)))


def plain(x_t, denoise, likelihood, alpha, sigma):
    return _gradient(likelihood, x_t, denoise, torch.ones_like)


def away(x_t, denoise, likelihood, alpha, sigma):
    x0, score = plain(x_t, denoise, likelihood, alpha, sigma)
    return x0, -score


def no_std(x_t, denoise, likelihood, alpha, sigma):
    x0, score = plain(x_t, denoise, likelihood, alpha, sigma)
    return x0, score / score.flatten(1).norm(dim=1).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (OtherSchedule(), "the schedule is another one"),
        (KeepsGraph(), "the result requires gradients"),
        (Made(one_norm), "member 1 alone"),
        (Made(away), "a member is moved away from it"),
        (Made(no_std), "With std towards infinity"),
        (Made(plain, uses_std=False), "uses_std is false"),
        (Made(plain, exact=True), "exact_for_gaussian"),
    ],
    ids=lambda p: type(p).__name__ if not isinstance(p, str) else "",
)
def test_guidance(guidance, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_guidance(guidance)


# --- observations ---


class WrongTimes(Select):
    def times(self, times):
        return times[: len(times[self.offset :: self.every])]


class NoBatch(Select):
    def operator(self, spec):
        A = super().operator(spec)
        return lambda x: A(x) - A(x).mean()


class Rounded(Select):
    def operator(self, spec):
        A = super().operator(spec)
        return lambda x: A(x) + (A(x).round() - A(x)).detach()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (WrongTimes(every=3, std=0.1), "a new state at time 1 changes"),
        (NoBatch(std=0.1), r"a batch \(2, 3\)"),
        (Rounded(std=0.1), "the derivative in a direction"),
        (Select(), "observation.std is missing"),
    ],
    ids=lambda p: type(p).__name__ if not isinstance(p, str) else "",
)
def test_observation(observation, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_observation(observation)


# --- methods ---


@frozen
class Prior(Method):
    """Draws from the prior, whatever is observed."""

    fixed: bool = False
    together: bool = False

    def draw(self, problem, members, seed, execution):
        generator = torch.Generator().manual_seed(0 if self.fixed else seed)
        x = problem.system.prior((members,), generator)
        states = [x]
        for i in range(1, problem.length):
            x = problem.system.transition(x, generator)
            if self.together:
                x = x + 0.01 * x.mean(0)
            states.append(x)
            if execution.on_step:
                execution.on_step(i, problem.length - 1)
        return torch.stack(states, 1)


class Independent(Prior):
    """As the prior, with each member's own noise."""

    def draw(self, problem, members, seed, execution):
        each = [
            super(Independent, self).draw(problem, 1, 1000 * seed + m, execution)
            for m in range(members)
        ]
        return torch.cat(each)


class IndependentQuiet(Independent):
    def draw(self, problem, members, seed, execution):
        out = super().draw(problem, members, seed, attrs.evolve(execution, on_step=None))
        if execution.on_step:
            execution.on_step(1, 1)
        return out


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Prior(fixed=True), "two seeds give the same ensemble"),
        (Prior(together=True), "the first 2 of 5 members"),
        (Independent(), "on_step"),
        (IndependentQuiet(), "Mean and spread are those of the exact"),
    ],
    ids=lambda p: type(p).__name__ if not isinstance(p, str) else "",
)
def test_method(method, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(method)


# --- trackers ---


class Silent(Session):
    def log(self, values, step):
        pass

    def close(self, summary, error=None):
        pass


class NumbersOnly(Silent):
    def log(self, values, step):
        for value in values.values():
            float(value)


class Rising(Silent):
    def __init__(self):
        self.step = 0

    def log(self, values, step):
        if step < self.step:
            raise ValueError(f"step {step} after {self.step}")
        self.step = step


class MovesTheModel(Silent):
    def save_model(self, directory):
        (directory / "model.json").unlink()


class NeedsResults(Silent):
    def close(self, summary, error=None):
        len(summary)


class TakesNoError(Silent):
    def close(self, summary):
        pass


class Printing(Silent):
    def close(self, summary, error=None):
        print("done")


class HandlesSignals(Silent):
    def log(self, values, step):
        signal.signal(signal.SIGTERM, lambda *_: None)


class Draws(Silent):
    def log(self, values, step):
        torch.rand(1)


@frozen
class Tracking(Tracker):
    session: type[Session] = Silent
    once: bool = False

    def open(self, run, stage):
        if self.once:
            (run.directory / "runs").mkdir()
        return self.session()


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        (Tracking(session=NumbersOnly), "Numbers, histograms and pictures"),
        (Tracking(session=Rising), "ValueError: step 10 after 40"),
        (Tracking(session=MovesTheModel), r"there is \['model.safetensors'\] now"),
        (Tracking(session=NeedsResults), "may fail or be stopped"),
        (Tracking(session=TakesNoError), "may fail or be stopped"),
        (Tracking(once=True), "resumed"),
        (Tracking(session=Printing), "it printed 'done"),
        (Tracking(session=HandlesSignals), "it changed what signals do"),
        (Tracking(session=Draws), "it drew from torch's global state"),
    ],
    ids=lambda p: "" if isinstance(p, str) else "once" if p.once else p.session.__name__,
)
def test_tracker(tracker, message) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(AssertionError, match=message):
            check_tracker(tracker)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_good_tracker() -> None:
    check_tracker(Tracking())


# --- by name ---


class Plugin:
    sda_interface = 1

    @hookimpl
    def sda_register_components(self):
        return [
            Component("system", "decay", f"{__name__}:Decay"),
            Component("system", "wrong-rhs", f"{__name__}:WrongRhs"),
        ]


def test_by_name() -> None:
    manager = PluginManager((), {"plugin": Plugin()})
    names = [str(check) for check in checks("system", "decay", manager=manager)]
    assert "system-decay-prior" in names
    assert len(set(names)) == len(names) > 12
    for check in checks("system", "decay", {"rate": 0.5}, manager=manager):
        if str(check) != "system-decay-documentation":
            check()
    with pytest.raises(AssertionError, match=r"system-decay breaks .*: it has no docstring"):
        check_component("system", "decay", manager=manager)
    with pytest.raises(AssertionError, match="ConfigError: rate: got 'fast'"):
        check_component("system", "decay", {"rate": "fast"}, manager=manager)
    with pytest.raises(UnknownComponentError, match="sistem"):
        checks("sistem", "decay", manager=manager)
    with pytest.raises(AssertionError, match="no system 'deca': did you mean"):
        check_component("system", "deca", manager=manager)
    with pytest.raises(TypeError, match="checks of a system take no conditions, got 'tolerance'"):
        checks("system", "decay", manager=manager, tolerance=1)
