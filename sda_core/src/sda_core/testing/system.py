"""What every system promises."""

from __future__ import annotations

import math
import pickle

import torch
from torch import Tensor

from sda_core.system import (
    HasLogProb,
    HasRightHandSide,
    HasTrajectory,
    LinearGaussian,
    System,
    rk4_step,
    simulate_block,
    trajectory,
)
from sda_core.testing.promises import generator, keep, require, require_close

#: Density checks that sample need few dimensions.
_FEW = 16


def _states(system: System, n: int) -> Tensor:
    """States a few steps after the prior."""
    x = system.prior((n,), generator(0))
    for _ in range(3):
        x = system.transition(x, generator(1))
    return x


def _copies(x: Tensor, n: int) -> Tensor:
    """n copies of each row, (n, B, ...)."""
    return x.expand(n, *x.shape)


def _spec(system: System) -> None:
    """The spec is the same each time, has variables, and its time step is positive."""
    spec, again = system.spec, system.spec
    require(spec.variables, "there are no variables")
    require(spec.time_step > 0, f"time_step = {spec.time_step}")
    require(
        (spec.variables, spec.time_step, spec.grid_shape, spec.mean, spec.std)
        == (again.variables, again.time_step, again.grid_shape, again.mean, again.std),
        "two looks at the spec differ",
    )


def _prior(system: System) -> None:
    r"""Initial states have the shape (B..., C, \*S), are finite floats and differ."""
    state = system.spec.state_shape
    for batch in ((), (3,), (2, 3)):
        x = system.prior(batch, generator(0))
        require(
            x.shape == (*batch, *state),
            f"prior({batch}) has the shape {tuple(x.shape)}, spec says {(*batch, *state)}",
        )
        require(x.is_floating_point(), f"prior gives {x.dtype}")
        require(bool(x.isfinite().all()), "an initial state is not finite")
    x = system.prior((2,), generator(0))
    require(not torch.equal(x[0], x[1]), "two initial states of one call are equal")


def _transition(system: System) -> None:
    """A transition keeps shape and dtype, for any batch shape, and leaves its input alone."""
    x = system.prior((2, 3), generator(0))
    before = x.clone()
    after = system.transition(x, generator(1))
    require(torch.equal(x, before), "transition changed its argument")
    require(
        after.shape == x.shape and after.dtype == x.dtype,
        f"{tuple(x.shape)}, {x.dtype} became {tuple(after.shape)}, {after.dtype}",
    )
    require(bool(after.isfinite().all()), "a state after one step is not finite")
    require(not torch.equal(after, x), "nothing moved")


def _generator(system: System) -> None:
    """All randomness comes from the generator given, none from torch's global one."""
    for name, draw in (
        ("prior", lambda seed: system.prior((2,), generator(seed))),
        ("transition", lambda seed: system.transition(_states(system, 2), generator(seed))),
    ):
        state = torch.get_rng_state()
        require(torch.equal(draw(3), draw(3)), f"{name} differs with equally seeded generators")
        require(torch.equal(torch.get_rng_state(), state), f"{name} drew from torch's global state")
    require(
        not torch.equal(system.prior((2,), generator(3)), system.prior((2,), generator(4))),
        "prior is the same for two seeds",
    )


def _members(system: System) -> None:
    """A member's transition does not depend on the other members' states."""
    x = _states(system, 3)
    others = x.clone()
    others[1:] = x[0]
    a, b = (system.transition(s, generator(5))[0] for s in (x, others))
    require_close(a, b, "member 0, with other mates", rtol=1e-5, atol=1e-6)


def _blocks(system: System) -> None:
    """Trajectories depend on seed and number alone, and burn-in is what is cut off in front."""
    long = simulate_block(system, 7, 1, 4)
    shape = (system.block_size, 4, *system.spec.state_shape)
    require(long.shape == shape, f"a block has the shape {tuple(long.shape)} instead of {shape}")
    require(torch.equal(long, simulate_block(system, 7, 1, 4)), "block 1 differs the second time")
    cut = simulate_block(system, 7, 1, 2, burn_in=2)
    require_close(cut, long[:, 2:], "2 states after a burn-in of 2", rtol=1e-5, atol=1e-6)
    for seed, block in ((7, 0), (8, 1)):
        other = simulate_block(system, seed, block, 1)
        require(
            not torch.equal(other[:, 0], long[:, 0]),
            f"seed {seed}, block {block} is the same as seed 7, block 1",
        )


def _trajectory(system: System) -> None:
    """A fast trajectory is what one transition after another gives, for systems without noise."""
    x = _states(system, 2)
    steps = [system.transition(x, generator(0))]
    if not isinstance(system, HasTrajectory) or not torch.equal(
        steps[0], system.transition(x, generator(1))
    ):
        return
    for _ in range(2):
        steps.append(system.transition(steps[-1], generator(0)))
    fast = trajectory(system, x, 3, generator(0))
    scale = float(fast.abs().max())
    require_close(fast, torch.stack(steps, 1), "3 states", rtol=1e-3, atol=1e-4 * scale)


def _rhs(system: System) -> None:
    """The transition follows dx/dt = rhs(x), up to its own noise."""
    if not isinstance(system, HasRightHandSide):
        return
    x = _states(system, 4)
    require(system.rhs(x).shape == x.shape, f"rhs gives the shape {tuple(system.rhs(x).shape)}")
    flow, n = x, 20
    for _ in range(n):
        flow = rk4_step(system, flow, system.spec.time_step / n)
    draws = system.transition(_copies(x, 256), generator(0))
    noise = draws.std(0) / 16  # of the mean of 256
    error = (draws.mean(0) - flow).abs() - 5 * noise
    moved = (flow - x).flatten(1).norm(dim=1) / math.sqrt(x[0].numel())
    worst = float((error.flatten(1).max(1).values / moved).max())
    require(
        worst < 0.05,
        f"after one step of {system.spec.time_step} a state is {worst:.1%} of its motion away from "
        "a fine integration of rhs",
    )


def _log_prob(system: System) -> None:
    """log_prob is finite, one number per transition, and each depends on its own states alone."""
    if not isinstance(system, HasLogProb):
        return
    x = _states(system, 6).reshape(2, 3, *system.spec.state_shape)
    x_next = system.transition(x, generator(0))
    log_p = system.log_prob(x, x_next)
    require(log_p.shape == (2, 3), f"for a batch (2, 3) it has the shape {tuple(log_p.shape)}")
    require(bool(log_p.isfinite().all()), "it is not finite for a transition that was drawn")
    alone = system.log_prob(x[1, 2], x_next[1, 2])
    require_close(alone, log_p[1, 2], "one transition alone", rtol=1e-4, atol=1e-4)


def _score(system: System) -> None:
    """log_prob is the density that transition draws from: E[s] = 0, E[x . s] = -d, s its score."""
    if not isinstance(system, HasLogProb):
        return
    n, d = 4096, math.prod(system.spec.state_shape)
    x = _copies(_states(system, 1)[0].double(), n)
    x_next = system.transition(x, generator(0)).requires_grad_()
    (score,) = torch.autograd.grad(system.log_prob(x, x_next).sum(), x_next)
    centred = (x_next - x_next.mean(0)).detach().flatten(1)
    score = score.flatten(1)
    stein = (centred * score).sum(1)
    for name, values, expected in (("E[s]", score, 0.0), ("E[x . s]", stein[:, None], -float(d))):
        error = (values.mean(0) - expected).abs() * math.sqrt(n) / values.std(0)
        require(
            bool((error < 5).all()),
            f"{name} is {float(error.max()):.1f} standard errors away from {expected:g}",
        )


def _normalization(system: System) -> None:
    """exp(log_prob) integrates to 1 (checked for states of up to 16 values)."""
    d = math.prod(system.spec.state_shape)
    if not isinstance(system, HasLogProb) or d > _FEW:
        return
    n = 8192
    x = _copies(_states(system, 1)[0].double(), n)
    x_next = system.transition(x, generator(0))
    fit = system.transition(x, generator(1)).flatten(1)
    # E_p[q / p] = 1 for any density q; one narrower than p keeps the variance small.
    q = torch.distributions.MultivariateNormal(fit.mean(0), 0.8 * fit.T.cov().reshape(d, d))
    ratio = (q.log_prob(x_next.flatten(1)) - system.log_prob(x, x_next)).exp()
    error = float((ratio.mean() - 1).abs() / (ratio.std() / math.sqrt(n) + 1e-3))
    require(error < 5, f"E[q / p] = {float(ratio.mean()):.4f} for a density q, and should be 1")


def _linear_gaussian(system: System) -> None:
    """Prior and transition have the moments that linear_gaussian gives."""
    if not isinstance(system, LinearGaussian):
        return
    m, P, F, b, Q = system.linear_gaussian()
    n = 8192
    x = system.prior((n,), generator(0)).double().flatten(1)
    x_next = system.transition(x.reshape(n, *system.spec.state_shape), generator(1)).flatten(1)
    for name, sample, mean, covariance in (
        ("x_0", x, m, P),
        ("x_1 - F x_0 - b", x_next - x @ F.T - b, torch.zeros_like(b), Q),
    ):
        std = covariance.diagonal().sqrt()
        error_mean = float(((sample.mean(0) - mean) / std).abs().max())
        require(error_mean < 5 / math.sqrt(n), f"mean of {name} is {error_mean:.3f} std off")
        error = float(((sample.T.cov() - covariance) / (std[:, None] * std)).abs().max())
        require(error < 7 / math.sqrt(n), f"covariance of {name} is {error:.3f} std^2 off")


def _pickle(system: System) -> None:
    """A system can be sent to another process."""
    twin = pickle.loads(pickle.dumps(system))
    require(
        torch.equal(twin.prior((2,), generator(0)), system.prior((2,), generator(0))),
        "the copy draws other initial states",
    )
    x = _states(system, 2)
    require(
        torch.equal(twin.transition(x, generator(0)), system.transition(x, generator(0))),
        "the copy moves differently",
    )


PROMISES = (
    _spec,
    _prior,
    _transition,
    _generator,
    _members,
    _blocks,
    _trajectory,
    _rhs,
    _log_prob,
    _score,
    _normalization,
    _linear_gaussian,
    _pickle,
)


def check_system(system: System) -> None:
    """Check what every system promises, and what its capabilities do.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, system)
