r"""Rectified-flow schedule: straight paths between data and noise.

References:
    - Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified
      Flow", 2023, https://arxiv.org/abs/2209.03003
"""

from __future__ import annotations

from torch import Tensor

from sda_core.config import between, component, option
from sda_core.schedule.base import Schedule


@component
class RectifiedFlow(Schedule):
    r"""Rectified flow: alpha(t) = 1 - (1 - eta) t, sigma(t) = eta + (1 - eta) t.

    With eta = 0 these are the straight paths of the paper; eta keeps both scales positive at the
    end points, where the score would otherwise be undefined.
    """

    eta: float = option(
        default=1e-3, check=between(1e-6, 0.1), help="alpha at t = 1 and sigma at t = 0"
    )

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""
        return 1 - (1 - self.eta) * t

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return self.eta + (1 - self.eta) * t
