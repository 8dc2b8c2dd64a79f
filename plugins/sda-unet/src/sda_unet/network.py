"""The U-Net as a network on windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sda_core.kernel import TimeEmbedding
from sda_unet.blocks import Convolution, ResidualBlock, layer_norm

#: Memory formats with channels last, by number of dimensions of a tensor.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Level(nn.Module):
    """A level of the U with all below it: blocks, the coarser levels, blocks.

    Args:
        channels: Channels of this level and of those below it.
        blocks: Number of residual blocks by level, on the way down and again on the way up.
        heads: Heads of the attention by level; 0 for none.
        convolution: Makes a convolution of (before, after, stride=...).
        block: Makes a residual block of (channels, heads=...).
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        heads: tuple[int, ...],
        convolution: Callable[..., Convolution],
        block: Callable[..., ResidualBlock],
    ) -> None:
        super().__init__()
        here, below = channels[0], channels[1:]
        self.descent = nn.ModuleList(block(here, heads=heads[0]) for _ in range(blocks[0]))
        self.below: Level | None = None
        if below:
            self.down = convolution(here, below[0], stride=2)
            self.below = Level(below, blocks[1:], heads[1:], convolution, block)
            self.up = convolution(below[0], here)
        self.ascent = nn.ModuleList(block(here, heads=heads[0]) for _ in range(blocks[0]))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        r"""(B, C, \*S), embedding of t (B, embedding) -> (B, C, \*S)."""
        for block in self.descent:
            x = block(x, c)
        if self.below is not None:
            coarse = layer_norm(self.below(self.down(x), c))
            # To the size there was, not to twice the size: an axis of odd length stays odd.
            x = x + self.up(interpolate(coarse, size=x.shape[2:], mode="nearest"))
        for block in self.ascent:
            x = block(x, c)
        return x


class WindowUNet(nn.Module):
    """The network.

    Args:
        level: The U.
        head: Convolution from the channels of the input to those of the first level.
        tail: Convolution from the channels of the first level to those of the output.
        embedding: Features of the time embedding.
        over_time: Whether time is an axis; else the states are stacked as channels.
        channels_last: Whether channels are stored last.
    """

    def __init__(
        self,
        level: Level,
        head: Convolution,
        tail: Convolution,
        embedding: int,
        over_time: bool,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.embedding = TimeEmbedding(embedding)
        self.head, self.level, self.tail = head, level, tail
        self.over_time = over_time
        self.channels_last = channels_last

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""(B, W, C, \*S), (B,), context (K, \*S) -> (B, W, C, \*S)."""
        h = x.transpose(1, 2) if self.over_time else x.flatten(1, 2)
        if context is not None:
            context = context.unsqueeze(1) if self.over_time else context
            h = torch.cat((h, context.to(h.dtype).expand(len(h), -1, *h.shape[2:])), dim=1)
        if self.channels_last and h.ndim in CHANNELS_LAST:
            # Only activations: weights and optimizer state keep the order that files have.
            h = h.contiguous(memory_format=CHANNELS_LAST[h.ndim])
        h = self.tail(self.level(self.head(h), self.embedding(t)))
        h = h.transpose(1, 2) if self.over_time else h.unflatten(1, x.shape[1:3])
        return h.to(x.dtype)
