r"""How many members and windows go at once, so that sampling stays within a memory budget.

    bytes = fixed + B b_member + K b_window,

B members in a batch and K windows, of all its members together, in a chunk. B b_member are buffers
of the trajectory's size: states, estimates, gradients, noise, and what guidance and operator take.
K b_window are the activations of one chunk (see :mod:`sda_core.denoiser.markov_blanket`). Neither
depends on the number of members, and only the first on the length of the trajectory.

All three are measured, as the peak of the bytes in tensors that are alive: of the network on one
window and on two, forwards and, where gradients are wanted, backwards; and of one step of the
sampler for one member, with a stand-in for the network that holds nothing. Working memory inside
single operations is not seen, nor is the ensemble itself, which is kept in host memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import torch
from torch import Tensor

from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser, window_starts
from sda_core.errors import AssimilationError
from sda_core.io.available_memory import available_memory
from sda_core.io.peak_memory import peak_bytes


@attrs.frozen(kw_only=True)
class MemoryPlan:
    """What is sampled at once, and what it takes.

    Attributes:
        members: Number of members in all.
        length: Number L of states in each.
        windows: Number of windows in each.
        member_bytes: Bytes of one member's buffers.
        window_bytes: Bytes of one window's activations.
        fixed_bytes: Bytes that depend on neither number.
        batch_size: Members at once.
        chunk_size: Windows at once.
    """

    members: int
    length: int
    windows: int
    member_bytes: int
    window_bytes: int
    fixed_bytes: int
    batch_size: int
    chunk_size: int

    @property
    def bytes(self) -> int:
        """Bytes in all, besides the model and the ensemble."""
        batch, chunk = self.batch_size * self.member_bytes, self.chunk_size * self.window_bytes
        return self.fixed_bytes + batch + chunk

    def __str__(self) -> str:
        """The plan in one line."""
        return (
            f"{self.members} members x {self.length} states: {self.windows} windows each of "
            f"{_size(self.window_bytes)}; {self.batch_size} members and {self.chunk_size} windows "
            f"at once, about {_size(self.bytes)}"
        )


def plan_memory(
    prior: Denoiser,
    shape: Sequence[int],
    step: Callable[[Denoiser], object],
    *,
    device: torch.device,
    gradients: bool,
    batch_size: int | None = None,
    memory: float | None = None,
) -> MemoryPlan:
    r"""Choose how many members and windows go at once: as many as are wanted and as fit.

    Args:
        prior: Denoiser of trajectories. Only of a composed one is a chunk size chosen, unless it
            has one; any other is measured as it is, member by member.
        shape: (M, L, C, \*S), of all members.
        step: Does, for one member, with a given prior, what is done at each noise level.
        device: Where it is done.
        gradients: Whether the prior is differentiated.
        batch_size: Members at once, if that is not to be chosen.
        memory: Budget in GiB; None for half of what is free on the device.

    Raises:
        AssimilationError: Not even the smallest choice fits. Where batch and chunk size are both
            given there is no choice, and they are taken as they are.
    """
    members, length, *state = shape
    windows, one, two, chunk_size = 1, 0, 0, None
    stand_in = prior
    if isinstance(prior, MarkovBlanketDenoiser):
        windows = len(window_starts(length, prior.window, prior.stride))
        chunk_size = prior.chunk_size
        # Trajectories of one window: so what gathering and folding windows takes is counted.
        windowed = MarkovBlanketDenoiser(prior.denoiser, prior.window, prior.stride, prior.fold)
        one, two = (
            peak_bytes(partial(_evaluate, windowed, (n, prior.window, *state), device, gradients))
            for n in (1, 2)
        )
        # In two chunks, for what the composition itself holds when there are several.
        stand_in = MarkovBlanketDenoiser(_StandIn(prior.schedule), 1, chunk_size=-(-length // 2))
    plan = MemoryPlan(
        members=members,
        length=length,
        windows=windows,
        member_bytes=peak_bytes(partial(step, stand_in)),
        window_bytes=two - one,
        fixed_bytes=max(0, 2 * one - two),
        batch_size=min(batch_size or 1, members),
        chunk_size=min(chunk_size or 1, members * windows),
    )
    budget = free_memory(device) // 2 if memory is None else int(memory * 2**30)
    if plan.bytes > budget and not (batch_size and chunk_size):
        raise AssimilationError(
            f"{plan.batch_size} member(s) of {length} states and {plan.chunk_size} window(s) at "
            f"once take about {_size(plan.bytes)} ({_size(plan.member_bytes)} a member, "
            f"{_size(plan.window_bytes)} a window), but there are {_size(budget)} to use"
            f"{' (half of what is free)' if memory is None else ''}: give more memory "
            "(method.memory, in GiB), or take fewer states, a narrower window, a smaller kernel, "
            "or less at once (method.batch_size, model.chunk_size)"
        )
    return _fill(plan, budget, batch_size, chunk_size)


def _fill(
    plan: MemoryPlan, budget: int, batch_size: int | None, chunk_size: int | None
) -> MemoryPlan:
    """The plan with as many members and windows as the budget holds, in parts of one size."""
    room = budget - plan.fixed_bytes
    batch = plan.batch_size
    if batch_size is None:
        chunk = plan.chunk_size if chunk_size else plan.members * plan.windows
        spare = room - chunk * plan.window_bytes
        # Larger chunks are what pays: members get half, or what the windows leave.
        share = spare if chunk_size else max(room // 2, spare)
        batch = _even(plan.members, share // plan.member_bytes)
    chunk = min(plan.chunk_size, batch * plan.windows)
    if chunk_size is None:
        most = (room - batch * plan.member_bytes) // max(1, plan.window_bytes)
        chunk = _even(batch * plan.windows, most)
    return attrs.evolve(plan, batch_size=batch, chunk_size=chunk)


def _even(total: int, most: int) -> int:
    """The size of the parts of ``total`` when it is cut evenly into parts of ``most`` or less."""
    parts = math.ceil(total / max(1, most))
    return math.ceil(total / parts)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device, with those that torch holds there without using them."""
    unused = 0
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory(device) + unused


class _StandIn(Denoiser):
    """A denoiser that holds nothing for the backward pass."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Half of x_t."""
        return 0.5 * x_t


def _evaluate(
    denoiser: Denoiser, shape: Sequence[int], device: torch.device, gradients: bool
) -> None:
    """Denoise windows, and go backwards if wanted."""
    with torch.set_grad_enabled(gradients):
        x_t = torch.zeros(shape, device=device, requires_grad=gradients)
        x0 = denoiser(x_t, torch.tensor(0.5, device=device))
        if gradients:
            torch.autograd.grad(x0, x_t, torch.ones_like(x0))


def _size(count: int) -> str:
    """Bytes in a unit that suits them."""
    power = min(3, max(1, int(math.log(max(1, count), 1024))))
    return f"{count / 1024**power:.1f} {'KMG'[power - 1]}iB"
