"""The covariance of a twisting function, estimated from few errors, beside the exact one."""

import pytest
import torch

from sda_core.guidance import Likelihood
from sda_dps.twist import log_twist

n, K = 64, 48
STD = 0.25


def _smooth() -> torch.Tensor:
    """Neighbours' errors go together: far fewer directions than entries."""
    i = torch.arange(n, dtype=torch.float64)
    return torch.exp(-0.5 * ((i[:, None] - i) / 10) ** 2)


@pytest.mark.parametrize(
    ("covariance", "lost"), [(_smooth(), 6.0), (torch.eye(n, dtype=torch.float64), 3.0)]
)
def test_nearly_the_density_of_the_exact_covariance(covariance, lost) -> None:
    """Nats per observation set, where n / (n + K) of the diagonal would lose 38 and 4."""
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(n))

    def draw(number: int) -> torch.Tensor:
        return torch.randn(number, n, generator=generator, dtype=torch.float64) @ root.T

    noise = STD * torch.randn(512, n, generator=generator, dtype=torch.float64)
    residual = (draw(512) + noise)[:, None]
    likelihood = Likelihood.gaussian(
        operator=lambda x: x,
        y=torch.zeros(1, n, dtype=torch.float64),
        std=torch.full((1, n), STD, dtype=torch.float64),
    )
    log_p = log_twist(likelihood, -residual, draw(K))
    total = covariance + STD**2 * torch.eye(n)
    exact = torch.distributions.MultivariateNormal(torch.zeros(n).double(), total)
    gap = (exact.log_prob(residual[:, 0]) - log_p).mean()
    assert 0 < gap < lost
