r"""The strength of a guidance, found from observations that are withheld from it.

Observations are dealt into shares, each of which is spread over all times. An ensemble is sampled
without one share at a time, and where that share's entries y have the ensemble's predictions with
mean m and variance v of M members,

    chi^2 = mean of (y - m)^2 / (std^2 + (1 + 1/M) v)

is 1 on average if the ensemble is a sample of p(x | the other observations): above 1 it is too
narrow or off, as under a guidance that pulls too hard, below 1 too wide. From the weakest on,
decade by decade, stronger guidance is tried until chi^2 crosses 1, and there log strength is
bisected.

All trials have the same noise, so that they differ by the strength alone. As few as n observations
leave chi^2 with an error of sqrt(2 / n), whatever is tried.

References:
    - Desroziers et al., "Diagnosis of Observation, Background and Analysis-Error Statistics in
      Observation Space", 2005, https://doi.org/10.1256/qj.05.108 (statistics of innovations)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs
import scoringrules
import torch
from torch import Generator, Tensor

from sda_core.errors import AssimilationError, AssimilationWarning, DivergedMembersError
from sda_core.guidance.strength import AUTO, Strength
from sda_core.method.base import Execution, Method, Problem
from sda_core.method.sampling import EnsembleSampler
from sda_core.random import seeded_generator

if TYPE_CHECKING:
    from sda_core.guidance.base import Guidance
    from sda_core.method.base import PriorModel
    from sda_core.observation.base import ObservationModel
    from sda_core.sampler.base import Sampler

#: Shares that observations are dealt into.
SHARES = 5
#: Shares are withheld in turn until this many observations have been.
ENOUGH = 50
#: Members of an ensemble.
MEMBERS = 16
#: Bisections of a decade.
BISECTIONS = 3
#: A prediction has run away where it is this many standard deviations of the prior's off its mean.
FAR = 10.0


class GuidedMethod(Protocol):
    """What is needed of a method whose guidance is tuned."""

    @property
    def model(self) -> PriorModel | None:
        """The model of the prior."""

    @property
    def sampler(self) -> Sampler | None:
        """The sampler."""

    @property
    def guidance(self) -> Guidance | None:
        """The guidance."""

    @property
    def batch_size(self) -> int | None:
        """Members at once."""

    @property
    def memory(self) -> float | None:
        """Budget in GiB."""


@attrs.frozen
class Trial:
    """One strength, tried.

    Attributes:
        value: The strength.
        chi2: chi^2 of the withheld observations; infinite where members diverged or ran away.
        crps: Their mean continuous ranked probability score, the prediction taken as Gaussian.
    """

    value: float
    chi2: float
    crps: float


def tune_strength(
    method: GuidedMethod, problem: Problem, seed: int, execution: Execution
) -> Guidance:
    """The guidance of a method, of a strength that suits the problem where it is "auto".

    Args:
        method: The method whose ensembles are looked at.
        problem: The problem.
        seed: Source of all randomness.
        execution: What is tried and chosen is announced, recorded under "strength", and kept with
            the ensemble: what was chosen before is not chosen again.

    Raises:
        AssimilationError: There are fewer than two observations, one window of one member does not
            fit the memory, or members diverge even under the weakest guidance.
    """
    guidance: Any = method.guidance
    strength: Strength | None = getattr(guidance, "strength", None)
    if strength is None or getattr(guidance, strength.field) != AUTO:
        return guidance
    ensemble = execution.ensemble
    _, before = (ensemble and ensemble.begin()) or ({}, {})
    found = before.get("strength")
    if found is None:
        found = _find(method, problem, seed, execution, strength)
        if ensemble:
            ensemble.save(({}, {"strength": found}))
    if execution.announce:
        execution.announce(
            f"{strength.field} = {found['chosen']:.3g}, found with {len(found['trials'])} trials: "
            f"chi^2 of withheld observations {found['chi2']:.2f}"
        )
    if execution.record:
        execution.record({"strength": found})
    return _with_strength(guidance, strength, found["chosen"])


def _with_strength(guidance: Any, strength: Strength, value: float) -> Guidance:
    """The guidance with its strength."""
    changed: Guidance = attrs.evolve(guidance, **{strength.field: value})
    return changed


def _find(
    method: GuidedMethod, problem: Problem, seed: int, execution: Execution, strength: Strength
) -> dict[str, Any]:
    """What is chosen and all that was tried, as JSON can hold it."""
    assert method.model is not None  # since the method was complete
    assert method.sampler is not None
    seed = seeded_generator(seed, 0, 2).initial_seed()
    observation = problem.observation
    shares = split_folds(observation, seeded_generator(seed))
    prior = EnsembleSampler(
        model=method.model,
        sampler=method.sampler,
        shape=(MEMBERS, *problem.shape),
        seed=seed,
        batch_size=method.batch_size,
        memory=method.memory,
    ).sample()
    values = observation.operator(prior.double()).flatten(1)
    centre, variance = values.mean(0), values.var(0)
    far = FAR * variance.clamp_min(float(variance.mean())).sqrt()
    unit = float(observation.noise.whiten(values).var(0).mean()) ** (strength.power / 2)

    def attempt(value: float) -> Trial:
        guidance = _with_strength(method.guidance, strength, value)
        tried = attrs.evolve(cast(Any, method), guidance=guidance)
        parts = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", AssimilationWarning)  # diverged members
                for share in shares:
                    parts.append(_score(tried, problem, share, seed, centre, far))
            chi2, crps = torch.cat(parts, 1).mean(1).tolist()
        except (DivergedMembersError, AssimilationWarning):
            chi2 = crps = math.inf
        if execution.announce:
            said = f"chi^2 {chi2:.2f}" if math.isfinite(chi2) else "members diverged"
            execution.announce(f"trying {strength.field} = {value:.3g}: {said}")
        return Trial(value, chi2, crps)

    best, trials = search(attempt, strength.weakest * unit, strength.strongest * unit)
    tried = [
        {name: v if math.isfinite(v) else None for name, v in attrs.asdict(trial).items()}
        for trial in trials
    ]
    chosen = {"field": strength.field, "chosen": best.value, "chi2": best.chi2}
    return {**chosen, "trials": tried}


def split_folds(observation: ObservationModel, generator: Generator) -> list[Tensor]:
    r"""Shares of the observations to withhold in turn, each boolean, (n,), spread over all times.

    Raises:
        AssimilationError: There are fewer than two observations.
    """
    n = observation.shape.numel()
    if n < 2:
        raise AssimilationError(
            f"a strength of 'auto' is found by withholding observations, and there are {n}: give a "
            "number, or observe more"
        )
    times = torch.zeros(n) if observation.times is None else observation.times.flatten()
    # Neighbours in time, in any order, go to different shares.
    order = torch.randperm(n, generator=generator)
    order = order[times[order].argsort(stable=True)]
    count = min(SHARES, n)
    hands = [torch.randperm(count, generator=generator) for _ in range(math.ceil(n / count))]
    share = torch.empty(n, dtype=torch.long)
    share[order] = torch.cat(hands)[:n]
    withheld = math.ceil(ENOUGH * count / n)
    return [share == i for i in range(min(count, withheld))]


def search(
    attempt: Callable[[float], Trial], weakest: float, strongest: float
) -> tuple[Trial, list[Trial]]:
    """Go from the weakest strength to stronger ones by decades, and bisect where chi^2 crosses 1.

    Returns:
        Of the two trials that the crossing ends up between the one of chi^2 nearer to 1, that of
        least CRPS where there is no crossing; and all trials.

    Raises:
        AssimilationError: Members diverged in all trials.
    """
    decades = round(abs(math.log10(strongest / weakest)))
    trials: list[Trial] = []
    for i in range(decades + 1):
        trials.append(attempt(weakest * (strongest / weakest) ** (i / decades)))
        if i and trials[-2].chi2 <= 1 < trials[-1].chi2:
            weak, strong = trials[-2:]
            for _ in range(BISECTIONS):
                trials.append(attempt(math.sqrt(weak.value * strong.value)))
                weak, strong = (trials[-1], strong) if trials[-1].chi2 <= 1 else (weak, trials[-1])
            return min((weak, strong), key=lambda trial: abs(math.log(trial.chi2))), trials
    best = min(trials, key=lambda trial: trial.crps)
    if math.isinf(best.crps):
        raise AssimilationError(
            "a strength of 'auto' was not found: members diverge even under the weakest guidance "
            f"that was tried, {trials[0].value:.3g}. Use more steps, or another guidance"
        )
    return best, trials


def _score(
    method: Method,
    problem: Problem,
    share: Tensor,
    seed: int,
    centre: Tensor,
    far: Tensor,
) -> Tensor:
    """chi^2 and CRPS of each entry of a share that is withheld, (2, entries).

    Raises:
        DivergedMembersError: A prediction ran away.
    """
    y = problem.y.flatten()
    known = Problem(
        system=problem.system, observation=problem.observation.select(~share), y=y[~share]
    )
    x = method.draw(known, MEMBERS, seed).double()
    predicted = problem.observation.operator(x).flatten(1)
    if not bool(((predicted - centre).abs() <= far).all()):
        raise DivergedMembersError("predictions ran away")
    noise, y, predicted = problem.observation.noise.select(share), y[share], predicted[:, share]
    mean, whitened = predicted.mean(0, keepdim=True), noise.whiten(predicted)
    spread = (1 + 1 / MEMBERS) * whitened.var(0, keepdim=True)
    variance = noise.variance(y, mean, spread) + spread
    error = noise.whiten(y - mean)
    crps = scoringrules.crps_normal(error.numpy(), 0.0, variance.sqrt().numpy())
    return torch.cat((error**2 / variance, torch.as_tensor(crps)))
