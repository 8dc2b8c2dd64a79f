r"""U-Net over the grid of the states, or over time and grid.

A window (W, C, \*S) is an image with W C channels (or a film with C), to which static context
fields are added as further channels. Going down, blocks and strided convolutions; going up, blocks,
nearest upsampling and the sum with what was there on the way down. The diffusion time shifts the
input of every residual block.

References:
    - Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015,
      https://arxiv.org/abs/1505.04597
    - Shazeer, "GLU Variants Improve Transformer", 2020, https://arxiv.org/abs/2002.05202 (the
      bilinear activation)
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      appendix D (networks for Kolmogorov flow and, over time, for Lorenz-63)
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from torch import nn

from sda_core.config import Check, at_least, between, component, option
from sda_core.errors import ConfigError, ShapeError
from sda_core.kernel import Kernel, WindowShape
from sda_unet.blocks import Convolution, ResidualBlock
from sda_unet.network import Level, WindowUNet

odd = Check("an odd number, 1 or greater", lambda v: v >= 1 and v % 2 == 1)


@component
class UNet(Kernel):
    """U-Net over the grid, over time, or over both.

    Good values: the defaults are the paper's for Kolmogorov flow with a window of 5 (22.9 M
    parameters with the forcing as context); channels (64,), blocks (3,), embedding 32 and a window
    of 32 are its network over time for Lorenz-63. As in its code, all weights start at random: a
    last convolution that starts at zero did not help.

    Each level halves all axes. Periodic axes must allow that; others may have any length.
    """

    takes_context: ClassVar[bool] = True

    channels: tuple[int, ...] = option(
        default=(96, 192, 384), check=at_least(2), help="channels by level, the finest first"
    )
    blocks: tuple[int, ...] = option(
        default=(3, 3, 3),
        check=between(1, 1000),
        help="residual blocks by level, on the way down and again on the way up",
    )
    embedding: int = option(default=64, check=at_least(1), help="features of the time embedding")
    kernel_size: int = option(default=3, check=odd, help="size of the convolutions' kernels")
    time: Literal["channels", "axis"] | None = option(
        default=None,
        help="states of a window as channels, or time as an axis of the convolutions, padded with "
        "zeros; if not set, as channels where there is a grid",
    )
    padding: Literal["circular", "zeros"] = option(
        default="circular", help="padding of the grid: circular if it is periodic"
    )
    attention: int = option(
        default=0, check=at_least(0), help="number of coarsest levels with self-attention"
    )
    heads: int = option(default=4, check=at_least(1), help="heads of the self-attention")
    activation: Literal["silu", "bilinear"] = option(
        default="silu",
        help="in the blocks, SiLU, or the product of one half of the channels and the other, which "
        "is the form of advection",
    )
    dropout: float = option(default=0.0, check=between(0, 1), help="dropout probability")
    channels_last: bool = option(
        default=True, help="store channels last in memory, which is faster; not in one dimension"
    )
    checkpointing: bool = option(
        default=False, help="compute activations again in the backward pass, which saves memory"
    )

    def __attrs_post_init__(self) -> None:
        levels = len(self.channels)
        if not levels or levels != len(self.blocks):
            raise ConfigError(
                f"channels = {list(self.channels)} has {levels} entries and blocks = "
                f"{list(self.blocks)} has {len(self.blocks)}: give one of each per level, for one "
                "level or more"
            )
        if self.attention > levels:
            raise ConfigError(
                f"attention = {self.attention}, but there are {levels} levels (entries of "
                f"channels): give 0 to {levels}"
            )
        odd_ones = [c for c in self.channels[levels - self.attention :] if c % self.heads]
        if odd_ones:
            raise ConfigError(
                f"heads = {self.heads} must divide the channels of the levels with attention, and "
                f"does not divide {odd_ones}"
            )

        if self.activation == "bilinear" and any(c % 2 for c in self.channels):
            raise ConfigError(
                f"activation = 'bilinear' multiplies one half of the channels and the other, and "
                f"channels = {list(self.channels)} are not all even: choose even numbers"
            )

    def build(self, window: WindowShape) -> nn.Module:
        """Make the network.

        Raises:
            ShapeError: There are no axes to convolve over or more than 3, or a periodic axis
                cannot be halved as often as there are levels; names the sizes that can.
        """
        over_time = self.time == "axis" or (self.time is None and not window.grid)
        self._check(window, over_time)
        periodic = (self.padding == "circular",) * len(window.grid)
        outputs = window.window * window.variables
        if over_time:
            periodic, outputs = (False, *periodic), window.variables
        convolution = partial(Convolution, kernel_size=self.kernel_size, periodic=periodic)
        block = partial(
            ResidualBlock,
            embedding=self.embedding,
            kernel_size=self.kernel_size,
            periodic=periodic,
            bilinear=self.activation == "bilinear",
            dropout=self.dropout,
            checkpointing=self.checkpointing,
        )
        levels = len(self.channels)
        heads = tuple(self.heads * (i >= levels - self.attention) for i in range(levels))
        return WindowUNet(
            level=Level(self.channels, self.blocks, heads, convolution, block),
            head=convolution(outputs + window.context, self.channels[0]),
            tail=convolution(self.channels[0], outputs),
            embedding=self.embedding,
            over_time=over_time,
            channels_last=self.channels_last,
        )

    def _check(self, window: WindowShape, over_time: bool) -> None:
        axes = len(window.grid) + over_time
        if not axes:
            raise ShapeError(
                "time = 'channels' needs a grid to convolve over, and these states have none: "
                "leave time out, or set it to 'axis'"
            )
        if axes > 3:
            what = "time with the grid" if over_time else "the grid"
            raise ShapeError(
                f"convolutions have at most 3 axes, and {what} {window.grid} has {axes}"
                + (": set time = 'channels'" if over_time and axes == 4 else "")
            )
        if self.padding == "zeros":
            return
        factor = 2 ** (len(self.channels) - 1)
        # The padding cannot be wider than what it is taken from.
        smallest = factor * max(1, self.kernel_size // 2)
        for n in window.grid:
            if n % factor or n < smallest:
                near = {max(smallest, factor * q) for q in (n // factor, -(-n // factor))}
                raise ShapeError(
                    f"an axis of {n} points in the grid {window.grid} does not fit "
                    f"{len(self.channels)} levels of periodic convolutions of {self.kernel_size}: "
                    f"it must be a multiple of {factor}, {smallest} or more, such as "
                    f"{' or '.join(map(str, sorted(near)))}. Use another grid, fewer levels "
                    "(entries of channels and blocks), a smaller kernel_size, or padding = "
                    "'zeros' if the grid is not periodic"
                )
