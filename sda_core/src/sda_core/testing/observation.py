"""What every observation promises."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sda_core.observation import Observation, ObservationModel
from sda_core.system import Axis, SystemSpec
from sda_core.testing.promises import generator, keep, normal, require, require_close

#: Checked where nothing else is given: two variables on four places, 12 states.
DEFAULT_SPEC = SystemSpec(
    variables=("u", "v"),
    axes=(Axis("place", np.arange(4)),),
    time_step=0.1,
    mean=(1.0, -2.0),
    std=(2.0, 0.5),
)
DEFAULT_LENGTH = 12


def _x(spec: SystemSpec, length: int, *batch: int) -> Tensor:
    return normal(*batch, length, *spec.state_shape)


def _model(observation: Observation, spec: SystemSpec, length: int) -> ObservationModel:
    return observation.bind(spec, length)


def _shape(observation: Observation, spec: SystemSpec, length: int) -> None:
    """A(x), std and the times of entries have the shape of y, and std is positive."""
    model = _model(observation, spec, length)
    out = model.operator(_x(spec, length))
    require(out.shape == model.shape, f"A(x) is {tuple(out.shape)}, std {tuple(model.shape)}")
    require(out.numel() > 0, "nothing is observed")
    require(bool(out.isfinite().all()), "A(x) is not finite")
    require(bool((model.std > 0).all()), "a std is not positive")
    if model.times is not None:
        require(model.times.shape == out.shape, f"times are {tuple(model.times.shape)}")
        inside = (model.times >= 0) & (model.times < length)
        require(bool(inside.all()), f"times {model.times.unique().tolist()} of {length} states")


def _batch(observation: Observation, spec: SystemSpec, length: int) -> None:
    """Any leading dimensions are batch dimensions, and the type is kept."""
    A = _model(observation, spec, length).operator
    x = _x(spec, length, 2, 3)
    together = A(x)
    each = torch.stack([torch.stack([A(x[i, j]) for j in range(3)]) for i in range(2)])
    require_close(together, each, "a batch (2, 3)", rtol=1e-9, atol=1e-12)
    single = A(x.float())
    require(single.dtype == torch.float32, f"float32 became {single.dtype}")


def _gradient(observation: Observation, spec: SystemSpec, length: int) -> None:
    """A is differentiable: its derivative by autograd is that by finite differences."""
    A = _model(observation, spec, length).operator
    x, v = _x(spec, length), normal(length, *spec.state_shape, seed=1)
    h = 1e-6
    _, forward = torch.autograd.functional.jvp(A, x, v)
    require(bool(forward.any()), "the derivative is zero")
    finite = (A(x + h * v) - A(x - h * v)) / (2 * h)
    require_close(forward, finite, "the derivative in a direction", rtol=1e-4, atol=1e-5)


def _times(observation: Observation, spec: SystemSpec, length: int) -> None:
    """Each entry depends on the state of its own time, and on no other."""
    model = _model(observation, spec, length)
    if model.times is None:
        return
    x = _x(spec, length)
    for i in range(length):
        other = x.clone()
        other[i] += 1 + normal(*spec.state_shape, seed=2).abs()
        changed = model.operator(other) != model.operator(x)
        require(
            torch.equal(changed, model.times == i),
            f"a new state at time {i} changes {int(changed.sum())} entries, "
            f"{int((model.times == i).sum())} have that time",
        )


def _log_prob(observation: Observation, spec: SystemSpec, length: int) -> None:
    """log_prob is that of its noise at A(x), and what each time gives adds up to it."""
    model, x = _model(observation, spec, length), _x(spec, length, 3)
    y = model.sample(x[0], generator(0))
    log_p = model.log_prob(y, x)
    mean = model.operator(x)
    expected = model.noise.log_prob(y.flatten(), mean.reshape(3, -1))
    if observation.std is not None:
        normals = torch.distributions.Normal(mean, model.std)
        expected = normals.log_prob(y).reshape(3, -1).sum(1)
    require_close(log_p, expected, "log_prob", rtol=1e-9, atol=1e-9)
    if model.times is not None and not model.noise.correlates(model.times.flatten()):
        terms = [model.log_prob_at(i, y, x[:, i]) for i in range(length)]
        total = torch.stack([t for t in terms if t is not None]).sum(0)
        require_close(total, log_p, "the sum over times", rtol=1e-9, atol=1e-9)


def _sample(observation: Observation, spec: SystemSpec, length: int) -> None:
    """Draws scatter around A(x) as their noise says, by the generator given."""
    model, x = _model(observation, spec, length), _x(spec, length)
    draws = torch.stack([model.sample(x, generator(seed)) for seed in range(64)])
    require(torch.equal(draws[3], model.sample(x, generator(3))), "one seed gives two draws")
    square = torch.stack([model.misfit(y, x) for y in draws])
    n = square.numel() ** 0.5
    off = float((draws - model.operator(x)).div(model.std).mean())
    if observation.std is not None:
        require(abs(off) < 5 / n, f"the mean is {off:.3f} std off")
    require(
        abs(float(square.mean()) - 1) < 7 * float(square.std()) / n,
        "the scatter is not the noise's",
    )


def _select(observation: Observation, spec: SystemSpec, length: int) -> None:
    """Some of its entries are those entries, with their noise and times."""
    model, x = _model(observation, spec, length), _x(spec, length, 2)
    some = (torch.arange(len(model.noise.std)) % 2 == 0).reshape(model.shape)
    part = model.select(some)
    require_close(part.operator(x), model.operator(x)[:, some], "A(x)", rtol=1e-12)
    require(part.shape == part.operator(x)[0].shape, f"the shape is {tuple(part.shape)}")
    require_close(part.std, model.std[some], "std", rtol=1e-12)
    if model.times is not None and part.times is not None:
        require(torch.equal(part.times, model.times[some]), "the times are others")


PROMISES = (_shape, _batch, _gradient, _times, _log_prob, _sample, _select)


def check_observation(
    observation: Observation, spec: SystemSpec = DEFAULT_SPEC, length: int = DEFAULT_LENGTH
) -> None:
    """Check what every observation promises.

    Args:
        observation: The observation, with its std or noise.
        spec: What the states are.
        length: Number of states in the trajectories.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, observation, spec, length)
