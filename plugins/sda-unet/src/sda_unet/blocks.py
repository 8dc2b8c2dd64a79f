"""What the U-Net is made of: convolution, layer norm over channels, residual block, attention."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def layer_norm(x: Tensor) -> Tensor:
    r"""(x - mean) / sqrt(variance + 1e-5) over the channels: (B, C, \*S) -> (B, C, \*S)."""
    # Autocast would make a float32 copy; the function itself has its statistics in float32 anyway.
    with torch.autocast(x.device.type, enabled=False):
        return functional.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)


class Convolution(nn.Module):
    """Convolution that keeps the size of the grid, or halves it (rounded up) with stride 2.

    Args:
        before: Number of input channels.
        after: Number of output channels.
        kernel_size: Size of the kernel along all axes, odd.
        periodic: Whether each axis is padded with its other end, or with zeros.
        stride: Stride along all axes.
    """

    def __init__(
        self, before: int, after: int, kernel_size: int, periodic: tuple[bool, ...], stride: int = 1
    ) -> None:
        super().__init__()
        self.margin = kernel_size // 2
        self.periodic_axes = [axis for axis, wraps in enumerate(periodic, start=2) if wraps]
        self.convolution = CONVOLUTIONS[len(periodic)](
            before,
            after,
            kernel_size,
            stride=stride,
            padding=tuple(0 if wraps else self.margin for wraps in periodic),
        )

    def forward(self, x: Tensor) -> Tensor:
        r"""(B, before, \*S) -> (B, after, \*S or half of it)."""
        if self.margin:
            for axis in self.periodic_axes:
                # As torch's circular padding, which is slower and would put channels first.
                end = x.narrow(axis, -self.margin, self.margin)
                x = torch.cat((end, x, x.narrow(axis, 0, self.margin)), dim=axis)
        return torch.as_tensor(self.convolution(x))


class Attention(nn.Module):
    """x + attention(norm(x)) over all places of the grid; it knows no positions.

    Args:
        channels: Number of channels.
        heads: Number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        r"""(B, C, \*S) -> (B, C, \*S)."""
        places = layer_norm(x).flatten(2).transpose(1, 2)
        q, k, v = rearrange(self.qkv(places), "b s (n h d) -> n b h s d", n=3, h=self.heads)
        h = functional.scaled_dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "b h s d -> b s (h d)"))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class ResidualBlock(nn.Module):
    """x + conv(f(conv(norm(x + linear(embedding))))), then attention where there are heads.

    f is SiLU, or the product of the first half of the channels and the second.

    Args:
        channels: Number of channels.
        embedding: Features of the time embedding.
        kernel_size: Size of the kernels.
        periodic: Which axes are periodic.
        heads: Heads of the attention; 0 for none.
        bilinear: Whether f is the product.
        dropout: Dropout probability, before the second convolution.
        checkpointing: Whether activations are computed again in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        kernel_size: int,
        periodic: tuple[bool, ...],
        heads: int,
        bilinear: bool,
        dropout: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(embedding, channels)
        self.first = Convolution(channels, channels, kernel_size, periodic)
        between = channels // 2 if bilinear else channels
        self.second = Convolution(between, channels, kernel_size, periodic)
        self.bilinear = bilinear
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.attention = Attention(channels, heads) if heads else nn.Identity()
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        r"""(B, C, \*S), embedding of t (B, embedding) -> (B, C, \*S)."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, c, use_reentrant=False)
        return self._forward(x, c)

    def _forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift = self.project(c).unflatten(1, (-1, *(1,) * (x.ndim - 2)))
        h = self.first(layer_norm(x + shift))
        h = torch.mul(*h.chunk(2, dim=1)) if self.bilinear else functional.silu(h)
        return torch.as_tensor(self.attention(x + self.second(self.dropout(h))))
