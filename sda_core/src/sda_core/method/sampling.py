"""Sampling the members of an ensemble, in batches that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.method.base import PriorModel
from sda_core.method.ensemble import Ensemble
from sda_core.method.lost_members import Draws, Watch
from sda_core.method.memory_plan import plan_memory
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler.base import SamplerState

if TYPE_CHECKING:
    from sda_core.sampler.base import Sampler


def sample_members(
    model: PriorModel,
    sampler: Sampler,
    shape: Sequence[int],
    seed: int,
    *,
    guide: Callable[[Denoiser], Denoiser] | None = None,
    batch_size: int | None = None,
    memory: float | None = None,
    announce: Callable[[str], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    ensemble: Ensemble | None = None,
) -> Tensor:
    r"""Sample trajectories in batches that fit the memory.

    A member that becomes non-finite or runs away is drawn again from noise that depends on (seed,
    its number, attempt) alone, and an ``AssimilationWarning`` tells at which noise level it was
    lost. So what is returned are samples given that they are not lost, which is sound as long as
    few are.

    An ensemble on disk is written batch by batch, and how far sampling has come is kept with it.
    Sampling that was stopped goes on in the same batches and chunks, unless other ones are asked
    for, and the result is, on a CPU bit for bit, that of one that was not.

    Args:
        model: The model of the prior.
        sampler: The sampler.
        shape: (M, L, C, \*S), M members.
        seed: Source of all randomness.
        guide: Makes the denoiser that is sampled from the prior's; None to sample the prior.
        batch_size: Members at once; None for as many as fit.
        memory: Budget in GiB; None for half of what is free.
        announce: Called with the plan, in one line, before sampling.
        on_step: Called with (steps done, number of steps).
        ensemble: Where the members go; None for the memory.

    Returns:
        Trajectories in physical units, (M, L, C, \*S), of the ensemble.

    Raises:
        AssimilationError: One window of one member does not fit the memory.
        LostMembersError: Members are lost: more than half of them at first, or some however often
            they are drawn.
        StoppedError: The user asked to stop, and the ensemble can be gone on with.
    """
    members, *rest = shape
    ensemble = Ensemble(shape) if ensemble is None else ensemble
    prior = model.trajectory_denoiser()
    composed = isinstance(prior, MarkovBlanketDenoiser)

    def some_steps(prior: Denoiser) -> None:
        noise = MemberNoise(seed, [0], device=model.device)
        z = noise.normal((1, *rest))  # kept throughout, as by Sampler.sample
        times = sampler.times(prior.schedule)
        # From all over the grid: early steps, or those at some noise levels, may hold less.
        few = torch.linspace(0, len(times) - 1, min(len(times), 8)).long()
        guided, start = guide(prior) if guide else prior, SamplerState(1.0 * z)
        with torch.no_grad():
            for _ in sampler.walk(guided, start, times[few], noise):
                pass

    asked = {
        "batch_size": batch_size,
        "chunk_size": prior.chunk_size if composed else None,
        "memory": memory,
        "device": model.device.type,
    }
    before, settings = ensemble.begin() or ({}, {})
    if settings.get("asked") != asked:
        plan = plan_memory(
            prior,
            shape,
            some_steps,
            device=model.device,
            gradients=guide is not None,
            batch_size=batch_size,
            memory=memory,
        )
        if announce:
            announce(str(plan))
        sizes = {"members": plan.batch_size, "windows": plan.chunk_size}
        settings = {**settings, "asked": asked, **sizes}
    if composed:
        prior.chunk_size = settings["windows"]
    denoiser = guide(prior) if guide else prior
    draws = Draws(members, before.get("levels"), before.get("attempts"))
    if before and announce:
        announce(_how_far(before))
    total = math.ceil(members / settings["members"])

    def draw(numbers: Tensor, attempt: int) -> None:
        batches = numbers.split(settings["members"])
        for i, batch in enumerate(batches, start=total - len(batches)):
            draw_batch(batch, attempt, partial(report, i) if attempt == 0 else None)

    def report(i: int, step: int, steps: int) -> None:
        if on_step:
            on_step(i * steps + step, total * steps)

    def draw_batch(batch: Tensor, attempt: int, on_step: Callable[[int, int], None] | None) -> None:
        nonlocal before
        own = seeded_generator(seed, attempt).initial_seed() if attempt else seed
        noise = MemberNoise(own, batch.tolist(), device=model.device)
        watch, start = Watch(denoiser.schedule), None
        if "batch" in before and torch.equal(before["batch"], batch):
            start = _unpack(before, noise, watch, model.device)
        before = {}  # a later attempt may have a batch of the same numbers

        def on_state(state: SamplerState, s: Tensor) -> None:
            watch(state.x, s)
            checkpoint(lambda: (draws.tensors | _pack(batch, state, noise, watch), settings))

        x = sampler.sample(denoiser, (len(batch), *rest), noise, on_step, on_state, start)
        ensemble.write(batch, model.standardization.to_physical(x).cpu())
        draws.note(batch, watch.levels.cpu())
        ensemble.save((draws.tensors, settings))

    with ensemble.checkpoints() as checkpoint:
        draws.complete(draw)
    return ensemble.values


def _pack(
    batch: Tensor, state: SamplerState, noise: MemberNoise, watch: Watch
) -> dict[str, Tensor]:
    """A batch on its way, as tensors by name."""
    past = {f"past.{i}": x for i, x in enumerate(state.past)}
    step = torch.tensor(state.step)
    return {
        "batch": batch,
        "x": state.x,
        "step": step,
        "noise": noise.state,
        "lost_at": watch.levels,
        **past,
    }


def _unpack(
    tensors: Mapping[str, Tensor], noise: MemberNoise, watch: Watch, device: torch.device
) -> SamplerState:
    """What :func:`_pack` took, put back."""
    noise.state = tensors["noise"]
    watch.levels = tensors["lost_at"].to(device)
    past = sorted(name for name in tensors if name.startswith("past."))
    return SamplerState(
        tensors["x"].to(device), int(tensors["step"]), tuple(tensors[n].to(device) for n in past)
    )


def _how_far(tensors: Mapping[str, Tensor]) -> str:
    """How far a sampling has come, in words."""
    attempts = tensors["attempts"]
    done = f"going on after {int((attempts > 0).sum())} of {len(attempts)} members"
    if "step" not in tensors:
        return done
    return f"{done} and {int(tensors['step'])} steps of the next {len(tensors['batch'])}"
