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

Windows are gathered, denoised and folded chunk by chunk. If there are several chunks, they keep
nothing for the backward pass, which evaluates each again (checkpointing; Chen et al., 2016). So the
memory for activations is that of one chunk, with and without gradients, however many windows there
are.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      section 3.1 and algorithm 2
    - Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016,
      https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sda_core.denoiser.base import Denoiser
from sda_core.errors import ConfigError, ShapeError

FoldName = Literal["center", "average"]

#: Of how many chunks it is remembered which states they hold.
_KEPT = 4


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
    times = torch.tensor(window_starts(length, window, stride))[:, None] + torch.arange(window)
    j = torch.arange(window)
    centrality = (torch.minimum(j, window - 1 - j) + 1).double().expand(times.shape)
    # Without a table of all windows by all times, which would grow with the square of the length.
    if fold == "average":
        total = torch.zeros(length, dtype=torch.float64)
        total.index_put_((times,), centrality, accumulate=True)
        return centrality / total[times]
    number = torch.arange(len(times))[:, None].expand(times.shape)
    most = _reduced(centrality, times, length, "amax")
    first = _reduced(number.where(centrality == most, len(times)), times, length, "amin")
    return (number == first).double()


def _reduced(values: Tensor, times: Tensor, length: int, how: str) -> Tensor:
    """The largest or the least of what all windows have at the same time, (n, W) -> (n, W)."""
    at = values.new_zeros(length)
    at.scatter_reduce_(0, times.flatten(), values.flatten(), how, include_self=False)
    return at[times]


class _Chunk(NamedTuple):
    r"""K windows that are evaluated at once.

    Attributes:
        members: Whose each is, (K,).
        rows: Which states each holds, (K, W), as rows of (B L, C, \*S).
        taken: Which of them are taken, as places in the flattened (K, W).
        share: With what weight.
    """

    members: Tensor
    rows: Tensor
    taken: Tensor
    share: Tensor


class MarkovBlanketDenoiser(Denoiser):
    r"""E[x_0 | x_t] of trajectories (B, L, C, \*S), composed from a denoiser of windows.

    Args:
        denoiser: Denoiser of windows (B, W, C, \*S).
        window: Its width W.
        stride: Distance between the starts of neighbouring windows.
        fold: How windows become a trajectory; see the module docstring.
        chunk_size: How many windows, of all members together, are evaluated at once (None: all).
            The result is the same.
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
        self._kept: dict[tuple[Any, ...], _Chunk] = {}

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""E[x_0 | x_t]: (B, L, C, \*S), () or (B,) -> (B, L, C, \*S)."""
        if self._pairs(x_t) <= (self.chunk_size or math.inf):
            return self._fold(x_t, t)
        trained = [p for p in self.denoiser.parameters() if p.requires_grad]
        x0: Tensor = _Checkpointed.apply(self, x_t, t, *trained)
        return x0

    def _pairs(self, x_t: Tensor) -> int:
        """Number of windows of all members together."""
        return len(x_t) * len(window_starts(x_t.shape[1], self.window, self.stride))

    def _chunks(self, x_t: Tensor) -> Iterator[_Chunk]:
        count = self._pairs(x_t)
        size = self.chunk_size or count
        for first in range(0, count, size):
            yield self._chunk(x_t, first, min(first + size, count))

    def _chunk(self, x_t: Tensor, first: int, last: int) -> _Chunk:
        """The chunk of these pairs of member and window; a few are kept for the next evaluation."""
        key = (x_t.shape[:2], first, last, x_t.device, x_t.dtype)
        if key not in self._kept:
            if len(self._kept) == _KEPT:
                self._kept.clear()
            self._kept[key] = self._make_chunk(x_t, torch.arange(first, last))
        return self._kept[key]

    def _make_chunk(self, x_t: Tensor, pairs: Tensor) -> _Chunk:
        L = x_t.shape[1]
        starts = torch.tensor(window_starts(L, self.window, self.stride))
        members, windows = pairs // len(starts), pairs % len(starts)
        share = fold_weights(L, self.window, self.stride, self.fold)[windows].flatten()
        taken = share.nonzero().flatten()
        first = members * L + starts[windows]
        return _Chunk(
            members=members.to(x_t.device),
            rows=(first[:, None] + torch.arange(self.window)).to(x_t.device),
            taken=taken.to(x_t.device),
            share=share[taken].to(x_t),
        )

    def _fold(self, x_t: Tensor, t: Tensor) -> Tensor:
        states = x_t.flatten(0, 1)
        x0 = torch.zeros_like(states)
        for chunk in self._chunks(x_t):
            part = self._evaluate(states[chunk.rows], t, chunk)
            x0.index_put_((chunk.rows.flatten()[chunk.taken],), part, accumulate=True)
        return x0.unflatten(0, x_t.shape[:2])

    def _evaluate(self, windows: Tensor, t: Tensor, chunk: _Chunk) -> Tensor:
        """What a chunk adds to the states that are taken from it."""
        t = t[chunk.members.to(t.device)] if t.ndim else t
        x0 = self.denoiser(windows, t).flatten(0, 1)[chunk.taken]
        if self.fold == "center":  # every share is 1
            return x0
        return x0 * chunk.share.reshape(-1, *(1,) * (x0.ndim - 1))


class _Checkpointed(torch.autograd.Function):
    """The fold of several chunks, each of which is evaluated again in the backward pass.

    torch.utils.checkpoint would leave a piece of graph behind each chunk. On the CPU these come to
    lie in the memory that the chunk gave back, where the next one then finds no room: the process
    grew with the number of chunks almost as if nothing was given back.
    """

    @staticmethod
    def forward(
        ctx: Any, composed: MarkovBlanketDenoiser, x_t: Tensor, t: Tensor, *trained: Tensor
    ) -> Tensor:
        """Evaluate and fold, without a graph."""
        ctx.composed = composed
        ctx.save_for_backward(x_t, t, *trained)
        return composed._fold(x_t, t)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Evaluate each chunk again, with a graph, and go back through it."""
        x_t, t, *trained = ctx.saved_tensors
        totals = [torch.zeros_like(tensor) for tensor in (x_t, *trained)]
        states, d_states, gradient = (v.flatten(0, 1) for v in (x_t, totals[0], gradient))
        for chunk in ctx.composed._chunks(x_t):
            with torch.enable_grad():
                windows = states[chunk.rows].detach().requires_grad_()
                part = ctx.composed._evaluate(windows, t, chunk)
            d_windows, *others = torch.autograd.grad(
                part,
                (windows, *trained),
                gradient[chunk.rows.flatten()[chunk.taken]],
                materialize_grads=True,
            )
            d_states.index_put_((chunk.rows,), d_windows, accumulate=True)
            for total, other in zip(totals[1:], others, strict=True):
                total += other
        return None, totals[0], None, *totals[1:]
