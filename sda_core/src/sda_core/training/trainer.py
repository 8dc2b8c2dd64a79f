"""The training loop: a generator of events that knows no logger, no tracker and no file."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sda_core.data import WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import CheckpointWarning, ConfigError
from sda_core.threads import ThreadTuner
from sda_core.training.arithmetic import Arithmetic
from sda_core.training.averaging import WeightAverage
from sda_core.training.config import TrainConfig
from sda_core.training.events import EpochMetrics, Event, SkippedBatch, Step
from sda_core.training.group import Group
from sda_core.training.guards import Guards
from sda_core.training.meter import EpochMeter, Meter
from sda_core.training.optimizers import LearningRate, make_optimizer
from sda_core.training.outcomes import Outcome, describe_batch
from sda_core.training.random_state import RandomState
from sda_core.training.state import (
    history_tensors,
    load_optimizer,
    optimizer_tensors,
    part,
    prefixed,
    read_history,
)

#: Steps that a GPU may lag behind the host before the host looks at what became of them.
_LAG = 2


class Trainer:
    """Trains a denoiser of windows.

    The state after any step, with :meth:`state_dict`, determines all that follows: a training
    resumed from it is bit for bit the one that was not stopped, as far as the device repeats its
    arithmetic. On a CPU that takes the same number of threads: it is kept with the state, but a
    machine that becomes busy may change it, unless ``--threads`` says it. Windows are the same on
    every device. Times and noise are drawn on the denoiser's.

    The host does not wait for a GPU but where something is reported, and for steps that are
    :data:`_LAG` back. An optimizer step with gradients that are not finite is skipped on the
    device itself.

    With a ``precision`` below float32 the network alone is evaluated so, in training alone:
    weights, their average, the optimizer, the loss and the validation are float32.

    The processes of a group draw the same batches, times and noise, evaluate the network on their
    share of each batch, and take the same steps, with the loss and the gradients of the whole
    batch. So they yield the same events, but for speeds; all call :meth:`report`,
    :meth:`validate`, :meth:`flush_events` and :meth:`roll_back` at the same steps, with the same
    state. The state is that of a single process, but for the random numbers that a kernel draws:
    those of rank 0 are saved.

    Args:
        denoiser: The denoiser, on the device to train on; its weights are changed in place.
        train: Training windows.
        valid: Validation windows, if any.
        config: Settings.
        seed: Source of all randomness.
        group: The processes that train together; None for this one alone.

    Attributes:
        epoch: Number of epochs done.
        step: Number of optimizer steps done.
        history: Metrics of all epochs.
        best_loss: Lowest validation loss; infinite before the first.
        best_epoch: Its epoch.
        guards: Losses of the last steps, and the roll-backs so far.
        random: Where random numbers come from.

    Raises:
        ConfigError: ``variable_weights`` does not have one entry per variable.
    """

    def __init__(
        self,
        denoiser: WindowDenoiser,
        train: WindowDataset,
        valid: WindowDataset | None,
        config: TrainConfig,
        seed: int,
        group: Group | None = None,
    ) -> None:
        self.denoiser, self.train, self.valid = denoiser, train, valid
        self.config, self.seed = config, seed
        self.group = Group() if group is None else group
        self.epoch = self.step = 0
        self.history: list[EpochMetrics] = []
        self.best_loss, self.best_epoch = math.inf, 0
        self.device = next(denoiser.parameters()).device
        self.guards = Guards(config.guards)
        self.random = RandomState(seed, self.device, self.group.rank)
        self.weights = None
        if config.variable_weights is not None:
            variables = train.store.spec.variable_names
            if len(config.variable_weights) != len(variables):
                raise ConfigError(
                    f"train.variable_weights has {len(config.variable_weights)} entries, but there "
                    f"are {len(variables)} variables {list(variables)}: give one per variable"
                )
            self.weights = torch.tensor(config.variable_weights, device=self.device)
        self._parameters = list(denoiser.parameters())
        self.optimizer = make_optimizer(config, self._parameters)
        self._rate = LearningRate(
            self.optimizer,
            lambda step: self.guards.slow_down * config.learning_rate_at(step, self.num_steps),
        )
        self._average = None if config.ema is None else WeightAverage(denoiser, config.ema)
        self._arithmetic = Arithmetic(config, self.device)
        self._exchanging = self.group.network(denoiser, denoiser.network)
        self._network = self._arithmetic.network(self._exchanging)
        self._meter = Meter(self.device)
        self._running = EpochMeter(self._meter, self.device)
        self._lag = _LAG if self.device.type == "cuda" else 0
        # Processes that train together wait for each other, each with its share of the cores.
        self._threads = ThreadTuner(fixed=self.device.type != "cpu" or self.group.size > 1)
        self._outcomes: deque[Outcome] = deque()
        self._failures: list[Event] = []
        self._grad_norm = math.nan

    @property
    def threads(self) -> int | None:
        """With how many threads steps are done, once it is known."""
        return self._threads.threads

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self._windows(self.train) // self.config.batch_size)

    @property
    def windows_per_step(self) -> float:
        """Windows in a step, on average over an epoch."""
        return self._windows(self.train) / self.steps_per_epoch

    @property
    def last_loss(self) -> float:
        """Mean loss of the last few steps, as far as the host knows without waiting."""
        return self.guards.last_loss

    @property
    def grad_norm(self) -> float:
        """Norm of the gradients before clipping, likewise of the last step."""
        return self._grad_norm

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self._rate.last

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def averaged(self) -> WindowDenoiser | None:
        """The denoiser with averaged weights, if they are averaged."""
        return None if self._average is None else self._average.denoiser

    @property
    def best_denoiser(self) -> WindowDenoiser:
        """The denoiser to use: with averaged weights if there are any."""
        return self.denoiser if self.averaged is None else self.averaged

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train from the current state to the last epoch.

        Raises:
            TrainingError: Too many batches were skipped.
        """
        return (event for event in self.events() if isinstance(event, EpochMetrics))

    def events(self) -> Iterator[Event]:
        """Train from the current state to the last epoch, one optimizer step at a time.

        Yields:
            After each step a :class:`Step`, or after the last one of an epoch its
            :class:`EpochMetrics`; the state may be saved then. Before them what went wrong, if
            something did.

        Raises:
            TrainingError: Too many batches were skipped.
        """
        with self._threads:
            while self.epoch < self.config.epochs:
                yield from self._epoch()
        self.optimizer.zero_grad()

    def _epoch(self) -> Iterator[Event]:
        running = self._running
        if running.batch == 0:
            self.random.begin_epoch(self.epoch)
            running.begin(self.step)
        order = self.random.order(self.epoch)
        with closing(self._batches(self.train, order, first=running.batch)) as batches:
            self._meter.start()
            self.denoiser.train()
            for batch in self._meter.waiting_for(batches):
                self.random.begin_batch(self.epoch, running.batch)
                self._threads.before_step(partial(self._gradients_without_step, batch))
                started = time.perf_counter()
                with self.random.kernel():
                    self._train_on(batch)
                self._threads.after_step(time.perf_counter() - started)
                running.batch += 1
                self.step += 1
                last = running.batch == self.steps_per_epoch
                self._poll_outcomes(0 if last else self._lag)
                self._meter.stop()
                done = self._end_epoch() if last else Step(epoch=self.epoch, step=self.step)
                yield from self._take_failures()
                self.guards.check_skipped(self.step)
                yield done
                self._meter.start()
                self.denoiser.train()

    def _end_epoch(self) -> EpochMetrics:
        measured = self._running.read(self.step)
        self._running.batch = 0
        self.epoch += 1
        due = self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs
        valid_loss = unweighted = None
        if due and self.valid is not None:
            valid_loss, unweighted = self._validate()
        if valid_loss is not None and valid_loss < self.best_loss:
            self.best_loss, self.best_epoch = valid_loss, self.epoch
        metrics = EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            valid_loss=valid_loss,
            valid_loss_unweighted=unweighted,
            learning_rate=self.learning_rate,
            grad_norm=self._grad_norm,
            **measured,
        )
        self.history.append(metrics)
        return metrics

    def _train_on(self, x: Tensor) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()  # not at the end: diagnostics may look at the gradients
        x, group = x.to(self.device), self.group
        t, eps, mine = self._draw(self.train, self._running.batch, x, self.random.draws)
        loss = torch.zeros((), device=self.device)
        per_window = []
        # Each process of a group takes part, if need be with noise that does not count.
        given = (x, t[mine], eps[mine]) if len(x) else (eps[:1], t[:1], eps[:1])
        parts = list(zip(*(v.chunk(self.config.accumulate) for v in given), strict=True))
        for i, (x_part, t_part, eps_part) in enumerate(parts):
            with group.no_sync(self._exchanging) if i < len(parts) - 1 else nullcontext():
                mean, losses = self.denoiser.losses_at(
                    x_part, t_part, eps_part, self.weights, self._network
                )
                # Times the number of processes, over which the gradients are averaged.
                share = mean * (len(losses) * group.size / len(t) if len(x) else 0.0)
                self._arithmetic.scaled(share).backward()
            loss += share.detach()
            per_window.append(losses)
        window_losses = group.all_gather_rows(torch.cat(per_window)[: len(x)], len(t))
        if group.size > 1:
            loss = window_losses.mean()
        self._arithmetic.unscale(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        finite = loss.isfinite() & norm.isfinite()
        if self.config.clip_norm is not None:
            clip_grads_with_norm_(self._parameters, self.config.clip_norm, norm)
        # Fused optimizers skip the step where this is 1, on the device.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        fault = self._arithmetic.is_fault(loss, finite)
        self._rate.advance()
        if self._average is not None:
            self._average.update(self.denoiser, self.step)
        self._running.update(loss, finite)
        self._meter.update(t.flatten(1).amax(1) if t.ndim > 1 else t, window_losses, finite)
        self._outcomes.append(Outcome.sent(self._running.batch, x, t, eps, loss, norm, fault))

    def _gradients_without_step(self, x: Tensor) -> None:
        """What takes the time of a step, without a trace."""
        before = [buffer.clone() for buffer in self.denoiser.buffers()]
        trained = [p for p in self._parameters if p.requires_grad]
        draws = torch.Generator(self.device).manual_seed(0)
        t, eps = self.denoiser.draw(x, draws)
        parts = (v.chunk(self.config.accumulate) for v in (x, t, eps))
        with self.random.kernel(keep=False):
            for x_part, t_part, eps_part in zip(*parts, strict=True):
                loss, _ = self.denoiser.losses_at(
                    x_part, t_part, eps_part, self.weights, self._network
                )
                torch.autograd.grad(loss, trained, allow_unused=True)
        for buffer, value in zip(self.denoiser.buffers(), before, strict=True):
            buffer.copy_(value)

    def _poll_outcomes(self, lag: int) -> None:
        """Look at the outcomes of all steps but the last few, and note what went wrong."""
        while len(self._outcomes) > lag:
            outcome = self._outcomes.popleft()
            loss, self._grad_norm, fault = outcome.read()
            step = self.step - len(self._outcomes)
            if math.isfinite(loss) and math.isfinite(self._grad_norm):
                self.guards.add_loss(loss)
            elif fault:
                self.guards.add_skipped(step)
                self._failures.append(self._describe(outcome, step, loss))
        if (spike := self.guards.find_spike(self.epoch, self.step)) is not None:
            self._failures.append(spike)

    def flush_events(self) -> list[Event]:
        """What went wrong in the steps done so far and was not yielded yet; waits for the device.

        To be called before the state is saved, so that no record of it is lost.
        """
        self._poll_outcomes(0)
        return self._take_failures()

    def _take_failures(self) -> list[Event]:
        failures, self._failures = self._failures, []
        return failures

    def _describe(self, outcome: Outcome, step: int, loss: float) -> SkippedBatch:
        """What a skipped batch was; the network is evaluated on it once more, in parts."""
        batch = (self.group.all_gather_rows(outcome.x, len(outcome.t)), outcome.t, outcome.eps)
        network = self._arithmetic.network(self.denoiser.network, compiled=False)
        count = self.config.accumulate * self.group.size
        with self.random.kernel(keep=False):
            found = describe_batch(self.denoiser, network, batch, self.weights, count)
        return SkippedBatch(
            epoch=self.epoch,
            step=step,
            batch=outcome.batch,
            loss=loss,
            grad_norm=self._grad_norm,
            **found,
        )

    def roll_back(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to a state, and on from there with a lower learning rate.

        Iterate over :meth:`events` anew afterwards.

        Raises:
            TrainingError: It was rolled back too often.
        """
        changed = self.guards.next_rollback()
        self.load_state_dict(tensors, state | changed)
        self._rate.set(self.step)

    def report(self) -> dict[str, float]:
        """Means since the last report; waits for the device.

        Returns:
            ``loss``; ``loss_t0`` to ``loss_t7``, the loss of windows whose diffusion time was in
            each eighth of [0, 1]; ``grad_norm`` (before clipping) and ``learning_rate`` of the
            last step; ``windows_per_second``; ``utilization``, the share of time in which the loop
            did not wait for data; with float16 the ``loss_scale``.
        """
        self._poll_outcomes(0)
        return {
            **self._meter.read(),
            "grad_norm": self._grad_norm,
            "learning_rate": self.learning_rate,
            **self._arithmetic.report(),
        }

    def validate(self) -> float:
        """Loss on the validation windows, the same windows, times and noise each time."""
        return self._validate()[0]

    def _validate(self) -> tuple[float, float | None]:
        """The same, and the loss without weights of the variables where there are some."""
        assert self.valid is not None
        denoiser = self.best_denoiser.eval()
        draws = self.random.validation_draws()
        total, count = torch.zeros(2, device=self.device), 0
        with torch.no_grad():
            # Four passes, since a validation set is small and the noise levels are many.
            for i in range(4):
                batches = self._batches(self.valid, self.random.validation_order(i))
                for j, batch in enumerate(batches):
                    x = batch.to(self.device)
                    t, eps, mine = self._draw(self.valid, j, x, draws)
                    if len(x):
                        error = denoiser.errors_at(x, t[mine], eps[mine])
                        loss = plain = error.mean()
                        if self.weights is not None:
                            loss = denoiser.weighted(error, self.weights).mean()
                        total += torch.stack((loss, plain)) * len(x)
                    count += len(t)
        weighted, unweighted = self.group.total(total)
        return float(weighted) / count, None if self.weights is None else float(unweighted) / count

    def _windows(self, windows: WindowDataset) -> int:
        """Windows in an epoch."""
        return len(windows.store) * self.config.windows_per_trajectory

    def _draw(
        self, windows: WindowDataset, batch: int, x: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, slice]:
        """Times and noise for a whole batch, and which of them are for this process's share x."""
        size = self.config.batch_size
        n = min(size, self._windows(windows) - batch * size)
        # Only its shape counts.
        whole = x if self.group.size == 1 else x.new_empty(()).expand(n, *x.shape[1:])
        return *self.denoiser.draw(whole, generator), self.group.shard(n)

    def is_finite(self) -> bool:
        """Whether all weights are finite; waits for the device."""
        modules = [m for m in (self.denoiser, self.averaged) if m is not None]
        norms = [get_total_norm(m.parameters()) for m in modules]
        return all(math.isfinite(float(norm)) for norm in norms)

    def _batches(
        self, windows: WindowDataset, generator: torch.Generator, first: int = 0
    ) -> Generator[Tensor, None, None]:
        return windows.epoch(
            generator,
            batch_size=self.config.batch_size,
            per_trajectory=self.config.windows_per_trajectory,
            first=first,
            share=self.group.shard,
        )

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors, and values that JSON can hold."""
        self._poll_outcomes(0)
        tensors = prefixed("raw", self.denoiser.state_dict())
        if self.averaged is not None:
            tensors |= prefixed("ema", self.averaged.state_dict())
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        tensors |= prefixed("meter", self._meter.state_dict())
        tensors["losses"] = self.guards.losses
        tensors |= prefixed("history", history_tensors(self.history))
        if self._running.batch:
            tensors |= prefixed("epoch", self._running.state_dict())
            tensors |= prefixed("random", self.random.state_dict())
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "batch": self._running.batch,
            "device": self.device.type,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            **self.guards.state_dict(),
            "grad_norm": self._grad_norm,
            "learning_rate": self.learning_rate,
            "arithmetic": self._arithmetic.state_dict(),
            "threads": self.threads if self.group.size == 1 else None,
        }
        return tensors, state

    def load_state_dict(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Resume from a state that :meth:`state_dict` gave; iterate over events anew."""
        self._outcomes.clear()
        self._failures.clear()
        self.denoiser.load_state_dict(part("raw", tensors))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("ema", tensors))
        load_optimizer(self.optimizer, part("optimizer", tensors))
        self._meter.load_state_dict(part("meter", tensors))
        self.history = read_history(part("history", tensors))
        self.guards.load_state_dict(tensors["losses"], state)
        self.epoch, self.step = state["epoch"], state["step"]
        self._running.resume(self.step, state["batch"], part("epoch", tensors))
        if state["batch"] and state["device"] == self.device.type:
            self.random.load_state_dict(part("random", tensors))
        elif state["batch"]:
            warnings.warn(
                f"the checkpoint was written on {state['device']} in mid-epoch, and the training "
                f"is resumed on {self.device.type}, whose random numbers differ: the rest of the "
                "epoch is not what it would have been",
                CheckpointWarning,
                stacklevel=2,
            )
            self.random.resume_elsewhere(self.epoch, state["batch"])
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self._grad_norm = state["grad_norm"]
        self._arithmetic.load_state_dict(state["arithmetic"])
        self._threads.resume(state.get("threads"))
        self._rate.set(self.step)
        self._rate.last = state["learning_rate"]
