"""Sampling members under constraints of their own, from noise or from where they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor, nn

from sda_core.denoiser import Denoiser
from sda_core.guidance.base import Likelihood
from sda_core.method.base import PriorModel
from sda_core.method.divergence import DivergenceMonitor, RedrawTracker
from sda_core.noise import GaussianNoise, JointNoise, NoiseModel
from sda_core.observation.base import Operator
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler.base import SamplerState

if TYPE_CHECKING:
    from sda_core.guidance.base import Guidance
    from sda_core.sampler.base import Sampler


@attrs.frozen(kw_only=True, eq=False)
class Constraint:
    r"""Values that were observed, or that are to be held.

    Attributes:
        operator: A on trajectories in model space, (B, L, C, \*S) -> (B, n).
        y: The values, (n,), or each member's own, (M, n).
        noise: Their error model.
    """

    operator: Operator
    y: Tensor
    noise: NoiseModel

    @classmethod
    def held(cls, states: Tensor, std: float) -> Constraint:
        r"""Each member's own first states, (M, C', C, \*S) in model space, within ``std``."""
        count, y = states.shape[1], states.flatten(1).double()
        noise = GaussianNoise(scale=torch.full(y.shape[1:], std, dtype=torch.float64))
        return cls(operator=lambda x: x[:, :count].flatten(1), y=y, noise=noise)


@attrs.frozen(kw_only=True, eq=False)
class ConditionalSampler:
    """Draws from p(x | constraints), where members may have values of their own.

    Attributes:
        model: The model of the prior.
        sampler: The sampler.
        guidance: The guidance.
        batch_size: Members at once; None for all.
    """

    model: PriorModel
    sampler: Sampler
    guidance: Guidance
    batch_size: int | None = None

    def draw(
        self,
        shape: Sequence[int],
        seed: int,
        constraints: Sequence[Constraint],
        start: Tensor | None = None,
        level: float = 0.0,
    ) -> tuple[Tensor, float]:
        r"""Draw members; diverged ones again, as :class:`sda_core.method.EnsembleSampler` does.

        Args:
            shape: (M, L, C, \*S), M members.
            seed: Source of all randomness; a member depends on it and on its number alone.
            constraints: What is known, if anything.
            start: Trajectories in model space that are noised to begin with, of this shape; None
                to begin with noise.
            level: sigma / alpha that they are noised to, as far as the grid has it.

        Returns:
            Trajectories in model space, in host memory, and evaluations of the prior per member.

        Raises:
            AssimilationError: Members diverge, however often they are drawn.
        """
        members, *rest = shape
        prior, device = self.model.trajectory_denoiser(), self.model.device
        tracker, ensemble = RedrawTracker(members), torch.empty(tuple(shape))

        def draw(numbers: Tensor, attempt: int) -> None:
            own = seeded_generator(seed, attempt).initial_seed() if attempt else seed
            for batch in numbers.split(self.batch_size or members):
                denoiser = self._guided(prior, constraints, batch)
                noise = MemberNoise(own, batch.tolist(), device=device)
                monitor, begin = DivergenceMonitor(prior.schedule), None
                if start is not None:
                    begin = self._noised(prior, start[batch].to(device), level, noise)
                x = self.sampler.sample(
                    denoiser,
                    (len(batch), *rest),
                    noise,
                    on_state=partial(_look, monitor),
                    start=begin,
                )
                ensemble[batch] = x.cpu()
                tracker.record(batch, monitor.levels.cpu())

        with _counted(prior) as count:
            tracker.complete(draw)
        return ensemble, count[0] / members

    def _guided(
        self, prior: Denoiser, constraints: Sequence[Constraint], batch: Tensor
    ) -> Denoiser:
        if not constraints:
            return prior
        rows = [e.y[batch] if e.y.ndim == 2 else e.y.expand(len(batch), -1) for e in constraints]
        likelihood = Likelihood(
            operator=lambda x: torch.cat([e.operator(x) for e in constraints], dim=1),
            y=torch.cat(rows, dim=1),
            noise=JointNoise(parts=tuple(e.noise for e in constraints)),
        )
        return self.guidance(prior, likelihood)

    def _noised(self, prior: Denoiser, x: Tensor, level: float, noise: MemberNoise) -> SamplerState:
        """Members at the last time of the grid that has at least this noise level."""
        times = self.sampler.times(prior.schedule)
        alpha, sigma = prior.schedule.alpha(times), prior.schedule.sigma(times)
        step = int((sigma / alpha >= level).sum().clamp(1, len(times) - 1)) - 1
        z = noise.normal(x.shape)
        return SamplerState(alpha[step].to(x) * x + sigma[step].to(x) * z, step)


def _look(monitor: DivergenceMonitor, state: SamplerState, t: Tensor) -> None:
    monitor(state.x, t)


@contextlib.contextmanager
def _counted(network: nn.Module) -> Iterator[list[int]]:
    """Count how many members a denoiser is evaluated for."""
    count = [0]

    def note(module: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        count[0] += len(result)

    handle = network.register_forward_hook(note)
    try:
        yield count
    finally:
        handle.remove()
