"""Sampling the members of an ensemble, in batches that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from sda_core.cluster.threads import one_thread
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.method.base import PriorModel
from sda_core.method.ensemble import Ensemble
from sda_core.method.lost_members import Draws, Watch
from sda_core.method.memory_plan import free_memory, plan_memory
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler.base import SamplerState

if TYPE_CHECKING:
    from sda_core.cluster import Cluster
    from sda_core.sampler.base import Sampler

#: Members in a batch that is sampled on a cluster, if nothing else is asked for.
SPREAD_BATCH = 8


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
    cluster: Cluster | None = None,
    workers: int = 1,
) -> Tensor:
    r"""Sample trajectories in batches that fit the memory.

    A member that becomes non-finite or runs away is drawn again from noise that depends on (seed,
    its number, attempt) alone, and an ``AssimilationWarning`` tells at which noise level it was
    lost. So what is returned are samples given that they are not lost, which is sound as long as
    few are.

    An ensemble on disk is written batch by batch, and how far sampling has come is kept with it.
    Sampling that was stopped goes on in the same batches and chunks, unless other ones are asked
    for, and the result is, on a CPU bit for bit, that of one that was not.

    On a cluster each batch is a task, done by one thread. The last bits of a network's output
    depend on how much it is given at once and on the number of threads, so that batches are the
    same whatever the number of workers, and so is the ensemble: on processors of one kind bit for
    bit that of this process, if it has one thread and the same ``batch_size``.

    Args:
        model: The model of the prior.
        sampler: The sampler.
        shape: (M, L, C, \*S), M members.
        seed: Source of all randomness.
        guide: Makes the denoiser that is sampled from the prior's; None to sample the prior.
        batch_size: Members at once; None for as many as fit, on a cluster at most
            :data:`SPREAD_BATCH`.
        memory: Budget in GiB of each process; None for half of what is free here, which the
            workers of a cluster share.
        announce: Called with the plan, in one line, before sampling.
        on_step: Called with (steps done, number of steps); on a cluster, of batches.
        ensemble: Where the members go; None for the memory.
        cluster: Where members are sampled; None for this process. Only finished batches are kept
            of a sampling that is stopped there.
        workers: How many of the cluster's processes sample.

    Returns:
        Trajectories in physical units, (M, L, C, \*S), of the ensemble.

    Raises:
        AssimilationError: One window of one member does not fit the memory.
        ClusterError: The cluster cannot be reached, or lost a batch for good.
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

    if cluster is not None:
        batch_size = min(SPREAD_BATCH, members) if batch_size is None else batch_size
    asked = {
        "batch_size": batch_size,
        "chunk_size": prior.chunk_size if composed else None,
        "memory": memory,
        "device": model.device.type,
    }
    before, settings = ensemble.begin() or ({}, {})
    if settings.get("asked") != asked:
        if cluster is not None and memory is None:
            memory = free_memory(model.device) / 2 / 2**30 / workers
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
    sampling = Sampling(
        model=model,
        sampler=sampler,
        shape=tuple(rest),
        seed=seed,
        guide=guide,
        chunk_size=settings["windows"],
    )
    denoiser = sampling.denoiser()
    draws = Draws(members, before.get("levels"), before.get("attempts"))
    if before and announce:
        announce(_how_far(before))
    total = math.ceil(members / settings["members"])

    def draw(numbers: Tensor, attempt: int) -> None:
        batches = numbers.split(settings["members"])
        if cluster is not None:
            draw_on(cluster, batches, attempt)
            return
        for i, batch in enumerate(batches, start=total - len(batches)):
            draw_batch(batch, attempt, partial(report, i) if attempt == 0 else None)

    def report(i: int, step: int, steps: int) -> None:
        if on_step:
            on_step(i * steps + step, total * steps)

    def draw_batch(batch: Tensor, attempt: int, on_step: Callable[[int, int], None] | None) -> None:
        nonlocal before
        noise = sampling.noise(batch.tolist(), attempt)
        watch, start = Watch(denoiser.schedule), None
        if "batch" in before and torch.equal(before["batch"], batch):
            start = _unpack(before, noise, watch, model.device)
        before = {}  # a later attempt may have a batch of the same numbers

        def on_state(state: SamplerState, s: Tensor) -> None:
            watch(state.x, s)
            checkpoint(lambda: (draws.tensors | _pack(batch, state, noise, watch), settings))

        x = sampler.sample(denoiser, (len(batch), *rest), noise, on_step, on_state, start)
        keep(batch, model.standardization.to_physical(x).cpu(), watch.levels.cpu())

    def draw_on(cluster: Cluster, batches: Sequence[Tensor], attempt: int) -> None:
        if announce:
            announce(
                f"{len(batches)} batches of at most {settings['members']} members "
                f"(method.batch_size) for {workers} workers"
            )
        tasks = [(batch.tolist(), attempt) for batch in batches]
        done = total - len(batches)
        with closing(cluster.map(sampling, tasks, workers=workers)) as results:
            for i, (x, levels) in results:
                keep(batches[i], x, levels)
                done += 1
                if on_step and attempt == 0:
                    on_step(done, total)
                checkpoint(lambda: (draws.tensors, settings))

    def keep(batch: Tensor, x: Tensor, levels: Tensor) -> None:
        ensemble.write(batch, x)
        draws.note(batch, levels)
        ensemble.save((draws.tensors, settings))

    with ensemble.checkpoints() as checkpoint:
        draws.complete(draw)
    return ensemble.values


@attrs.frozen(kw_only=True, eq=False)
class Sampling:
    r"""How a batch of members is sampled, as a value that can be sent to another process.

    Attributes:
        model: The model of the prior.
        sampler: The sampler.
        shape: (L, C, \*S), of one member.
        seed: Source of all randomness.
        guide: Makes the denoiser that is sampled from the prior's.
        chunk_size: Windows at once, where the prior is composed.
    """

    model: PriorModel
    sampler: Sampler
    shape: tuple[int, ...]
    seed: int
    guide: Callable[[Denoiser], Denoiser] | None
    chunk_size: int

    def denoiser(self) -> Denoiser:
        """The denoiser that is sampled."""
        prior = self.model.trajectory_denoiser()
        if isinstance(prior, MarkovBlanketDenoiser):
            prior.chunk_size = self.chunk_size
        return self.guide(prior) if self.guide else prior

    def noise(self, numbers: Sequence[int], attempt: int) -> MemberNoise:
        """The noise of members of these numbers, in an attempt of this one."""
        seed = seeded_generator(self.seed, attempt).initial_seed() if attempt else self.seed
        return MemberNoise(seed, numbers, device=self.model.device)

    def __call__(self, task: tuple[Sequence[int], int]) -> tuple[Tensor, Tensor]:
        r"""Sample a batch, by one thread.

        Args:
            task: The numbers of its members, and that of the attempt.

        Returns:
            Trajectories in physical units, (B, L, C, \*S), and the noise level at which each was
            lost, (B,), as of :class:`~sda_core.method.lost_members.Watch`.
        """
        numbers, attempt = task
        with one_thread():
            denoiser = self.denoiser()
            watch = Watch(denoiser.schedule)
            x = self.sampler.sample(
                denoiser,
                (len(numbers), *self.shape),
                self.noise(numbers, attempt),
                on_state=lambda state, s: watch(state.x, s),
            )
            return self.model.standardization.to_physical(x).cpu(), watch.levels.cpu()


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
