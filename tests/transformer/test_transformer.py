"""The transformer: size, start, attention. The kit does the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sda_core.errors import ConfigError
from sda_core.kernel import WindowShape
from sda_core.method import peak_bytes
from sda_core.testing import check_kernel
from sda_transformer.transformer import Block, Transformer


def test_number_of_parameters() -> None:
    network = Transformer().build(WindowShape(window=33, variables=3))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.2e6, rel=0.05)


def test_it_starts_at_zero() -> None:
    network = Transformer(width=16, blocks=2).build(WindowShape(window=5, variables=3))
    assert torch.equal(network(torch.randn(2, 5, 3), torch.rand(2)), torch.zeros(2, 5, 3))


def test_a_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 5, 8)
    assert torch.equal(Block(8, 2, 4)(x, torch.randn(2, 8)), x)


def test_block_is_attention_and_mlp_with_adaptive_norm() -> None:
    """Against torch's own multi-head attention."""
    torch.manual_seed(0)
    width, heads = 8, 2
    block = Block(width, heads, 4).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    x, c = torch.randn(3, 5, width).double(), torch.randn(3, width).double()
    attention = nn.MultiheadAttention(width, heads, batch_first=True).double()
    attention.in_proj_weight.data, attention.in_proj_bias.data = block.qkv.weight, block.qkv.bias
    attention.out_proj.weight.data, attention.out_proj.bias.data = block.out.weight, block.out.bias
    a, b, gate, d, e, gate_mlp = block.modulation(c)[:, None].chunk(6, -1)
    h = block.norm(x) * (1 + a) + b
    y = x + gate * attention(h, h, h, need_weights=False)[0]
    y = y + gate_mlp * block.mlp(block.norm(y) * (1 + d) + e)
    torch.testing.assert_close(block(x, c), y)


def test_states_with_a_grid() -> None:
    small = Transformer(width=8, blocks=1, heads=2)
    check_kernel(
        small, WindowShape(window=3, variables=2, grid=(4,)), WindowShape(window=1, variables=1)
    )


def test_errors() -> None:
    with pytest.raises(ConfigError, match="heads = 3 must divide width = 16"):
        Transformer(width=16, heads=3)


def test_checkpointing() -> None:
    """The same gradients, with less memory."""
    window = WindowShape(window=9, variables=3)
    x, t = torch.randn(16, 9, 3), torch.rand(16)
    gradients, peaks = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = Transformer(width=32, blocks=6, checkpointing=checkpointing).build(window)
        for p in network.parameters():
            nn.init.normal_(p, std=0.1)

        def backward(network=network) -> None:
            network(x, t).square().sum().backward()

        peaks.append(peak_bytes(backward))
        gradients.append([p.grad for p in network.parameters()])
    assert all(map(torch.equal, *gradients))
    assert peaks[1] < 0.5 * peaks[0]
