"""Sampling the members of an ensemble, in batches that fit the memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.method.base import Execution, PriorModel
from sda_core.method.divergence import DivergenceMonitor, RedrawTracker
from sda_core.method.ensemble import Ensemble
from sda_core.method.memory_plan import free_memory, plan_memory
from sda_core.random import GeneratorNoise, MemberNoise, seeded_generator
from sda_core.sampler.base import Sampler, SamplerState
from sda_core.threads import ThreadTuner, one_thread

#: Members in a batch that is sampled on a cluster, if nothing else is asked for.
SPREAD_BATCH = 8


@attrs.frozen(eq=False)
class EnsembleSampler:
    r"""Samples trajectories in batches that fit the memory.

    A member that becomes non-finite or runs away is drawn again from noise that depends on (seed,
    its number, attempt) alone, and an ``AssimilationWarning`` tells at which noise level it
    diverged. So the result are samples given that they do not diverge, which is sound as long as
    few do.

    An ensemble on disk is written batch by batch, and how far sampling has come is kept with it.
    Sampling that was stopped is resumed in the same batches and chunks, unless other ones are asked
    for, and the result is, on a CPU bit for bit, that of one that was not.

    On a cluster each batch is a task, done by one thread. The last bits of a network's output
    depend on how much it is given at once and on the number of threads, so that batches are the
    same whatever the number of workers, and so is the ensemble: on processors of one kind bit for
    bit that of this process, if it has one thread and the same ``batch_size``. Only finished
    batches are kept of a sampling that is stopped there.

    Attributes:
        model: The model of the prior.
        sampler: The sampler.
        shape: (M, L, C, \*S), M members.
        seed: Source of all randomness.
        guide: Makes the denoiser that is sampled from the prior's; None to sample the prior.
        batch_size: Members at once; None for as many as fit, on a cluster at most
            :data:`SPREAD_BATCH`.
        memory: Budget in GiB of each process; None for half of what is free here, which the
            workers of a cluster share.
    """

    model: PriorModel
    sampler: Sampler
    shape: Sequence[int]
    seed: int
    guide: Callable[[Denoiser], Denoiser] | None = attrs.field(default=None, kw_only=True)
    batch_size: int | None = attrs.field(default=None, kw_only=True)
    memory: float | None = attrs.field(default=None, kw_only=True)

    def sample(self, execution: Execution = Execution()) -> Tensor:
        r"""Sample the members, or those that a stopped sampling has left.

        Args:
            execution: What is reported to, where members go and where they are drawn.

        Returns:
            Trajectories in physical units, (M, L, C, \*S), of the ensemble.

        Raises:
            AssimilationError: One window of one member does not fit the memory.
            ClusterError: The cluster cannot be reached, or lost a batch for good.
            DivergedMembersError: More than half of the members diverge at first, or some however
                often they are drawn.
            StoppedError: A stop was asked for; an ensemble on disk can be resumed.
        """
        ensemble = execution.ensemble or Ensemble(self.shape)
        before, settings = ensemble.begin() or ({}, {})
        settings = self.plan(settings, execution)
        if before and execution.announce:
            execution.announce(_how_far(before))
        drawing = _Drawing(self, execution, ensemble, settings, before)
        with ensemble.checkpoints() as drawing.checkpoint, drawing.threads:
            drawing.tracker.complete(drawing.draw)
        if execution.record:
            threads = drawing.threads.threads if execution.cluster is None else 1
            execution.record({"threads": threads})
        return ensemble.values

    def plan(self, settings: Mapping[str, Any], execution: Execution) -> Mapping[str, Any]:
        """How many members and windows at once fit the memory; as before, if that was asked.

        Args:
            settings: What was planned before, if anything.
            execution: Where the members are drawn; the plan is announced.

        Returns:
            The settings, with ``members``, ``windows`` and what was asked for.
        """
        members, *rest = self.shape
        model, memory, batch_size = self.model, self.memory, self.batch_size
        prior = model.trajectory_denoiser()
        if execution.cluster is not None and batch_size is None:
            batch_size = min(SPREAD_BATCH, members)
        asked = {
            "batch_size": batch_size,
            "chunk_size": prior.chunk_size if isinstance(prior, MarkovBlanketDenoiser) else None,
            "memory": memory,
            "device": model.device.type,
        }
        if settings.get("asked") == asked:
            return settings

        def some_steps(prior: Denoiser) -> None:
            noise = GeneratorNoise(seeded_generator(0), model.device)
            z = noise.normal((1, *rest))  # kept throughout, as by Sampler.sample
            times = self.sampler.times(prior.schedule)
            # From all over the grid: early steps, or those at some noise levels, may hold less.
            few = torch.linspace(0, len(times) - 1, min(len(times), 8)).long()
            guided, start = self.guide(prior) if self.guide else prior, SamplerState(1.0 * z)
            with torch.no_grad():
                for _ in self.sampler.walk(guided, start, times[few], noise):
                    pass

        if execution.cluster is not None and memory is None:
            memory = free_memory(model.device) / 2 / 2**30 / execution.workers
        plan = plan_memory(
            prior,
            self.shape,
            some_steps,
            device=model.device,
            gradients=self.guide is not None,
            batch_size=batch_size,
            memory=memory,
        )
        if execution.announce:
            execution.announce(str(plan))
        return {**settings, "asked": asked, "members": plan.batch_size, "windows": plan.chunk_size}


class _Drawing:
    """Members of an ensemble as they are drawn, batch by batch, here or on a cluster."""

    def __init__(
        self,
        sampling: EnsembleSampler,
        execution: Execution,
        ensemble: Ensemble,
        settings: Mapping[str, Any],
        before: Mapping[str, Tensor],
    ) -> None:
        members, *rest = sampling.shape
        self.execution, self.ensemble, self.settings = execution, ensemble, settings
        self.resumed = before
        self.tracker = RedrawTracker(members, before.get("levels"), before.get("attempts"))
        self.checkpoint: Callable[[Callable[[], Any]], None] = lambda progress: None
        self.total = math.ceil(members / settings["members"])
        self.batches = BatchSampler(
            model=sampling.model,
            sampler=sampling.sampler,
            shape=tuple(rest),
            seed=sampling.seed,
            guide=sampling.guide,
            chunk_size=settings["windows"],
        )
        self.denoiser = self.batches.denoiser()
        device = sampling.model.device
        self.threads = ThreadTuner(fixed=device.type != "cpu" or execution.cluster is not None)

    def draw(self, numbers: Tensor, attempt: int) -> None:
        """Draw members of these numbers, in the attempt of this number."""
        batches = numbers.split(self.settings["members"])
        if self.execution.cluster is not None:
            self._draw_on_cluster(batches, attempt)
            return
        for i, batch in enumerate(batches, start=self.total - len(batches)):
            self._draw_batch(batch, attempt, partial(self._report, i) if attempt == 0 else None)

    def _report(self, i: int, step: int, steps: int) -> None:
        if self.execution.on_step:
            self.execution.on_step(i * steps + step, self.total * steps)

    def _draw_batch(
        self, batch: Tensor, attempt: int, on_step: Callable[[int, int], None] | None
    ) -> None:
        model, noise = self.batches.model, self.batches.noise(batch.tolist(), attempt)
        monitor, start = DivergenceMonitor(self.denoiser.schedule), None
        if "batch" in self.resumed and torch.equal(self.resumed["batch"], batch):
            start = _unpack(self.resumed, noise, monitor, model.device)
        self.resumed = {}  # a later attempt may have a batch of the same numbers

        shape = (len(batch), *self.batches.shape)

        def look_at_threads(x: Tensor, t: Tensor) -> float:
            with torch.no_grad():
                self.threads.before_step(partial(self.denoiser, x, t))
            return time.perf_counter()

        began = look_at_threads(torch.ones(shape), torch.tensor(0.5))

        def on_state(state: SamplerState, s: Tensor) -> None:
            nonlocal began
            self.threads.after_step(time.perf_counter() - began)
            monitor(state.x, s)
            self.checkpoint(
                lambda: (self.tracker.tensors | _pack(batch, state, noise, monitor), self.settings)
            )
            began = look_at_threads(state.x, s)

        x = self.batches.sampler.sample(self.denoiser, shape, noise, on_step, on_state, start)
        self._keep(batch, model.standardization.to_physical(x).cpu(), monitor.levels.cpu())

    def _draw_on_cluster(self, batches: Sequence[Tensor], attempt: int) -> None:
        execution = self.execution
        assert execution.cluster is not None  # since it was looked for
        if execution.announce:
            execution.announce(
                f"{len(batches)} batches of at most {self.settings['members']} members "
                f"(method.batch_size) for {execution.workers} workers"
            )
        tasks = [(batch.tolist(), attempt) for batch in batches]
        done = self.total - len(batches)
        results = execution.cluster.map(self.batches, tasks, workers=execution.workers)
        with closing(results):
            for i, (x, levels) in results:
                self._keep(batches[i], x, levels)
                done += 1
                if execution.on_step and attempt == 0:
                    execution.on_step(done, self.total)
                self.checkpoint(lambda: (self.tracker.tensors, self.settings))

    def _keep(self, batch: Tensor, x: Tensor, levels: Tensor) -> None:
        self.ensemble.write(batch, x)
        self.tracker.record(batch, levels)
        self.ensemble.save((self.tracker.tensors, self.settings))


@attrs.frozen(kw_only=True, eq=False)
class BatchSampler:
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
            Trajectories in physical units, (B, L, C, \*S), and the noise level at which each
            diverged, (B,), as of :class:`~sda_core.method.divergence.DivergenceMonitor`.
        """
        numbers, attempt = task
        with one_thread():
            denoiser = self.denoiser()
            monitor = DivergenceMonitor(denoiser.schedule)
            x = self.sampler.sample(
                denoiser,
                (len(numbers), *self.shape),
                self.noise(numbers, attempt),
                on_state=lambda state, s: monitor(state.x, s),
            )
            return self.model.standardization.to_physical(x).cpu(), monitor.levels.cpu()


def _pack(
    batch: Tensor, state: SamplerState, noise: MemberNoise, monitor: DivergenceMonitor
) -> dict[str, Tensor]:
    """A batch in progress, as tensors by name."""
    past = {f"past.{i}": x for i, x in enumerate(state.past)}
    step = torch.tensor(state.step)
    return {
        "batch": batch,
        "x": state.x,
        "step": step,
        "noise": noise.state,
        "lost_at": monitor.levels,
        **past,
    }


def _unpack(
    tensors: Mapping[str, Tensor],
    noise: MemberNoise,
    monitor: DivergenceMonitor,
    device: torch.device,
) -> SamplerState:
    """What :func:`_pack` took, put back."""
    noise.state = tensors["noise"]
    monitor.levels = tensors["lost_at"].to(device)
    past = sorted(name for name in tensors if name.startswith("past."))
    return SamplerState(
        tensors["x"].to(device), int(tensors["step"]), tuple(tensors[n].to(device) for n in past)
    )


def _how_far(tensors: Mapping[str, Tensor]) -> str:
    """How far a sampling has come, in words."""
    attempts = tensors["attempts"]
    done = f"resuming after {int((attempts > 0).sum())} of {len(attempts)} members"
    if "step" not in tensors:
        return done
    return f"{done} and {int(tensors['step'])} steps of the next {len(tensors['batch'])}"
