"""Weighted particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sda_core.method.resampling import effective_sample_size, systematic_resampling
from sda_core.random import MemberNoise, seeded_generator


class Particles:
    r"""Weighted particles on their way from noise to states.

    Args:
        number: Number N of particles.
        shape: (L, C, \*S), of one.
        scale: Standard deviation of the noise that they start from.
        seed: Source of all randomness.

    Attributes:
        step: Number of steps done.
        x: x_t, (N, L, C, \*S).
        log_w: Log weights, but for a constant, (N,), float64.
        log_psi: The twisting function at x_t, (N,), float64.
        ancestors: The first particle that each descends from, (N,).
        sizes: Effective sample size at each step.
        lost: Number of particles that had no weight when all were resampled.
        noise: The noise of each particle.
    """

    def __init__(self, number: int, shape: Sequence[int], scale: float, seed: int) -> None:
        self.noise = MemberNoise(seed, range(number))
        self._generator = seeded_generator(seed, 0, 0)
        self.step, self.lost = 0, 0
        self.x = scale * self.noise.normal((number, *shape))
        self.log_w = self.log_psi = torch.zeros(number, dtype=torch.float64)
        self.ancestors = torch.arange(number)
        self.sizes: list[float] = []

    def __len__(self) -> int:
        """Their number."""
        return len(self.x)

    def weigh(self, psi: Tensor, sound: Tensor) -> bool:
        """Let the weights follow the twisting function.

        Args:
            psi: Its logarithm at x_t, (N,), float64.
            sound: Which particles may keep a weight, (N,).

        Returns:
            Whether any has one.
        """
        log_w = self.log_w + psi - self.log_psi
        sound = sound & log_w.isfinite()
        self.log_w = torch.where(sound, log_w, -torch.inf)
        self.log_psi = torch.where(sound, psi, 0.0)
        if sound.any():
            self.sizes.append(effective_sample_size(self.log_w))
        return bool(sound.any())

    def resample(self) -> Tensor:
        """Draw as many anew, in proportion to their weights, which are equal then.

        Returns:
            Which were drawn, (N,).
        """
        self.lost += int((self.log_w == -torch.inf).sum())
        chosen = systematic_resampling(self.log_w, self._generator)
        self.x, self.log_psi = self.x[chosen], self.log_psi[chosen]
        self.ancestors, self.log_w = self.ancestors[chosen], torch.zeros_like(self.log_w)
        return chosen

    def draw(self, number: int) -> Tensor:
        r"""Some of them, each at most once, (number, L, C, \*S); of equal weights."""
        return self.x[torch.randperm(len(self), generator=self._generator)[:number]]

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        return {
            "step": torch.tensor(self.step),
            "lost": torch.tensor(self.lost),
            "x": self.x,
            "log_w": self.log_w,
            "log_psi": self.log_psi,
            "ancestors": self.ancestors,
            "sizes": torch.tensor(self.sizes, dtype=torch.float64),
            "noise": self.noise.state,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.step, self.lost = int(state["step"]), int(state["lost"])
        self.x, self.log_w, self.log_psi = state["x"], state["log_w"], state["log_psi"]
        self.ancestors, self.sizes = state["ancestors"], state["sizes"].tolist()
        self.noise.state = state["noise"]
        self._generator.set_state(state["generator"].clone())  # unaligned bytes crash torch
