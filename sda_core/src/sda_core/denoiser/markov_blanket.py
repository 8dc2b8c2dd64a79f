r"""Markov-blanket composition: the denoiser of a long trajectory from denoisers of windows.

The score at time i of a noised trajectory depends (almost) only on its pseudo Markov blanket, the
states i-k .. i+k. So it is read off a window of width W = 2k + 1 that holds this blanket.

    ``center``   each time is taken from the window in which it is most central. With stride 1 this
                 is algorithm 2 of the paper: the middle of every window, and the ends of the first
                 and the last.
    ``average``  each time is the average over all windows that hold it, weighted by how central it
                 is in each.

A stride above 1 lets wide windows overlap less: then the blanket that a time is given shrinks to
(W - stride) / 2 states at the least, and there are fewer windows to evaluate. With W = L there is
one window and no approximation.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      section 3.1 and algorithm 2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from sda_core.denoiser.base import Denoiser
from sda_core.errors import ConfigError, ShapeError

FoldName = Literal["center", "average"]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First times of the windows that cover a trajectory; the last window ends at its end.

    Raises:
        ShapeError: The trajectory is shorter than a window.
        ConfigError: The stride leaves gaps between windows.
    """
    if length < window:
        raise ShapeError(
            f"a trajectory of {length} states is shorter than the kernel's window of {window}: "
            f"assimilate at least {window} states, or train with a window of at most {length}"
        )
    if not 1 <= stride <= window:
        raise ConfigError(
            f"stride = {stride} must lie between 1 and the window of {window}: a larger one would "
            "leave states that no window holds"
        )
    starts = list(range(0, length - window, stride))
    return [*starts, length - window]


@lru_cache(maxsize=32)
def fold_weights(length: int, window: int, stride: int, fold: FoldName) -> Tensor:
    """Weight of each window's each time in the folded trajectory, (n, W); sums to 1 at each time.

    With ``center`` exactly one window has weight 1 at each time, the earlier of two equally
    central ones.
    """
    starts = window_starts(length, window, stride)
    j = torch.arange(window)
    centrality = torch.minimum(j, window - 1 - j) + 1
    weights = torch.zeros(len(starts), length, dtype=torch.float64)
    for n, start in enumerate(starts):
        weights[n, start : start + window] = centrality.double()
    if fold == "center":
        weights = torch.nn.functional.one_hot(weights.argmax(0), len(starts)).T.double()
    else:
        weights = weights / weights.sum(0)
    return torch.stack([weights[n, s : s + window] for n, s in enumerate(starts)])


class MarkovBlanketDenoiser(Denoiser):
    r"""E[x_0 | x_t] of trajectories (B, L, C, \*S), composed from a denoiser of windows.

    Args:
        denoiser: Denoiser of windows (B, W, C, \*S).
        window: Its width W.
        stride: Distance between the starts of neighbouring windows.
        fold: How windows become a trajectory; see the module docstring.
        chunk_size: How many windows are evaluated at once (None: all). The result is the same.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        window: int,
        stride: int = 1,
        fold: FoldName = "center",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.window = window
        self.stride = stride
        self.fold: FoldName = fold
        self.chunk_size = chunk_size

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""E[x_0 | x_t]: (B, L, C, \*S), () or (B,) -> (B, L, C, \*S)."""
        L = x_t.shape[1]
        starts = window_starts(L, self.window, self.stride)
        n = len(starts)
        if n == 1:
            return self._windows(x_t, t)
        times = torch.tensor(starts)[:, None] + torch.arange(self.window)  # (n, W)
        windows = rearrange(x_t[:, times.to(x_t.device)], "b n w ... -> (b n) w ...")
        x0 = self._windows(windows, t.repeat_interleave(n) if t.ndim else t)
        x0 = rearrange(x0, "(b n) w ... -> b (n w) ...", n=n)
        weights = fold_weights(L, self.window, self.stride, self.fold).flatten()
        if self.fold == "center":
            taken = weights.nonzero().flatten()
            taken = taken[times.flatten()[taken].argsort()]
            return x0[:, taken.to(x0.device)]
        weights = weights.to(x0).reshape(-1, *(1,) * (x0.ndim - 2))
        return torch.zeros_like(x_t).index_add(1, times.flatten().to(x0.device), weights * x0)

    def _windows(self, x: Tensor, t: Tensor) -> Tensor:
        size = self.chunk_size or len(x)
        if len(x) <= size:
            return torch.as_tensor(self.denoiser(x, t))
        times = t.expand(len(x)).split(size)
        return torch.cat([self.denoiser(a, b) for a, b in zip(x.split(size), times, strict=True)])
