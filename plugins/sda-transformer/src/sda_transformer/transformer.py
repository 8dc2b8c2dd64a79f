r"""Transformer over time.

Each state of the window is a token; the noise level scales, shifts and gates every layer
(adaptive layer norm, zero-initialized, so that training starts from the identity).

References:
    - Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762
    - Peebles & Xie, "Scalable Diffusion Models with Transformers", 2023,
      https://arxiv.org/abs/2212.09748 (adaLN-Zero)
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from sda_core.config import at_least, between, component, option
from sda_core.errors import ConfigError
from sda_core.kernel import Kernel, TimeEmbedding, WindowShape


@component
class Transformer(Kernel):
    """Transformer over the time axis of the window, on flattened states.

    Good values: width 128, 4 blocks, 4 heads for Lorenz-63 with a window of 33 (1.2 M parameters).
    It sees a state as one flat vector, so it suits states of up to some hundred values.
    """

    width: int = option(default=128, check=at_least(2), help="features per token")
    blocks: int = option(default=4, check=between(1, 1000), help="number of transformer blocks")
    heads: int = option(default=4, check=at_least(1), help="attention heads; must divide width")
    expansion: int = option(default=4, check=at_least(1), help="features of the MLP, over width")
    checkpointing: bool = option(
        default=False, help="compute activations again in the backward pass, which saves memory"
    )

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"heads = {self.heads} must divide width = {self.width}")

    def build(self, window: WindowShape) -> nn.Module:
        """Make the network."""
        return TemporalTransformer(
            window=window.window,
            features=window.numel // window.window,
            width=self.width,
            blocks=self.blocks,
            heads=self.heads,
            expansion=self.expansion,
            checkpointing=self.checkpointing,
        )


class Block(nn.Module):
    """Attention over time and an MLP, each with adaptive layer norm and gate."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(expansion * width, width),
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, W, width), conditioning (B, width) -> (B, W, width)."""
        a, b, gate, d, e, gate_mlp = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        h = torch.addcmul(b, self.norm(x), 1 + a)
        q, k, v = rearrange(self.qkv(h), "b w (n h d) -> n b h w d", n=3, h=self.heads)
        h = rearrange(scaled_dot_product_attention(q, k, v), "b h w d -> b w (h d)")
        x = torch.addcmul(x, gate, self.out(h))
        h = torch.addcmul(e, self.norm(x), 1 + d)
        return torch.addcmul(x, gate_mlp, self.mlp(h))


class TemporalTransformer(nn.Module):
    """The network.

    Args:
        window: Number W of states in a window.
        features: Number of values in a state.
        width: Features per token.
        blocks: Number of blocks.
        heads: Attention heads.
        expansion: Features of the MLP, over width.
        checkpointing: Whether activations are computed again in the backward pass.
    """

    def __init__(
        self,
        window: int,
        features: int,
        width: int,
        blocks: int,
        heads: int,
        expansion: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.embedding = nn.Sequential(TimeEmbedding(width), nn.SiLU())
        self.position = nn.Parameter(0.02 * torch.randn(window, width))
        self.inward = nn.Linear(features, width)
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, features)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        r"""(B, W, C, \*S), (B,) -> (B, W, C, \*S)."""
        c = self.embedding(t)
        h = self.inward(rearrange(x, "b w ... -> b w (...)")) + self.position
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = torch.as_tensor(checkpoint(block, h, c, use_reentrant=False))
            else:
                h = block(h, c)
        return torch.as_tensor(self.outward(self.norm(h)).reshape(x.shape))
