"""Scales, learned or scheduled, are bounded: nothing grows as an exponential can."""

from __future__ import annotations

import pytest
import torch

from sda_core.config import structure
from sda_core.kernel import Kernel, WindowShape
from sda_core.plugins import default_manager
from sda_core.schedule import Schedule

KERNELS = [
    ({"name": "mlp"}, ()),
    ({"name": "transformer"}, ()),
    ({"name": "unet", "channels": [8, 16], "blocks": [2, 2], "attention": 1}, (8, 8)),
]


def test_all_kernels_are_here() -> None:
    shipped = {c.name for c in default_manager().components("kernel")}
    assert shipped >= {table["name"] for table, _ in KERNELS}


@pytest.mark.parametrize(("table", "grid"), KERNELS)
def test_huge_weights_give_finite_outputs(table, grid) -> None:
    """As products of weights do, and exponentials of them do not: e^89 is more than float32 has."""
    torch.manual_seed(0)
    window = WindowShape(window=5, variables=2, grid=grid)
    network = structure(Kernel, table).build(window)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=20.0)
        y = network(torch.randn(4, *window.shape), torch.rand(4))
    assert y.isfinite().all()
    assert y.abs().max() > 1e3


@pytest.mark.parametrize("name", [c.name for c in default_manager().components("schedule")])
def test_schedules_are_bounded(name) -> None:
    schedule = structure(Schedule, {"name": name})
    t = torch.linspace(0, 1, 10_001)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for scale in (alpha, sigma):
        assert scale.isfinite().all()
        assert (scale >= 0).all()
    assert alpha.max() <= 1
    assert (sigma[1:] > 1e-6).all()
    assert sigma.max() < 1e3
    assert (alpha**2 + sigma**2 > 1e-6).all()
