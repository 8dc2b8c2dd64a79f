"""The residual MLP: sizes and structure of the original code. The kit does the rest."""

from __future__ import annotations

import pytest
import torch

from sda_core.config import structure
from sda_core.errors import ConfigError
from sda_core.kernel import Kernel, TimeEmbedding, WindowShape
from sda_core.testing import check_kernel
from sda_mlp.mlp import ACTIVATIONS, MLP, ResidualBlock, ResidualMLP


def _count(network) -> int:
    return sum(p.numel() for p in network.parameters())


def test_number_of_parameters() -> None:
    network = MLP().build(WindowShape(window=5, variables=3))
    assert _count(network) == pytest.approx(0.7e6, rel=0.05)
    embedding = 32 * 256 + 256 + 256 * 32 + 32
    block = 2 * (256 * 256 + 256)
    ends = (15 + 32) * 256 + 256 + 256 * 15 + 15 + 2 * (15 * 15 + 15)
    assert _count(network) == embedding + 5 * block + ends


def test_layers() -> None:
    """A linear layer only where the number of features changes, as in the original."""
    network = ResidualMLP(6, 4, (10, 8, 8), ACTIVATIONS["SiLU"])
    kinds = [type(layer).__name__ for layer in network.network]
    expected = "ResidualBlock Linear ResidualBlock ResidualBlock Linear ResidualBlock"
    assert " ".join(kinds) == expected
    assert network.network[1].in_features == 10


def test_residual_block() -> None:
    block = ResidualBlock(7, torch.nn.ReLU)
    x = torch.randn(3, 7)
    norm = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    a, b = block.residue[1], block.residue[3]
    torch.testing.assert_close(block(x), x + b(torch.relu(a(norm))))


def test_time_embedding() -> None:
    embedding = TimeEmbedding(8)
    t = torch.rand(2, 3)
    phase = torch.pi * torch.arange(1, 17) * t[..., None]
    features = torch.cat((phase.cos(), phase.sin()), -1)
    for layer in embedding:
        features = layer(features)
    torch.testing.assert_close(embedding(t), features)
    assert embedding(t).shape == (2, 3, 8)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations(activation) -> None:
    check_kernel(MLP(width=8, depth=1, activation=activation))


def test_states_with_a_grid() -> None:
    check_kernel(MLP(width=8, depth=1), WindowShape(window=3, variables=2, grid=(4,)))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="activation: got 'Relu', did you mean 'ReLU'"):
        structure(Kernel, {"name": "mlp", "activation": "Relu"})
    with pytest.raises(ConfigError, match="width: got 0, allowed: 1 or greater"):
        structure(Kernel, {"name": "mlp", "width": 0})
