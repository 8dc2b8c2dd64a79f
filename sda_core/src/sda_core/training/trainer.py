"""The training loop: a generator of events that knows no logger, no tracker and no file."""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from statistics import median
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from sda_core.data import WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import CheckpointWarning, ConfigError, TrainingError
from sda_core.random import seeded_generator
from sda_core.training.arithmetic import Arithmetic
from sda_core.training.config import TrainConfig
from sda_core.training.events import EpochMetrics, Event, LossSpike, SkippedBatch, Step
from sda_core.training.group import Group
from sda_core.training.meter import Meter
from sda_core.training.optimizers import make_optimizer

#: Streams of random numbers, so that none depends on how many another has used.
_DATA, _LOSS, _VALID, _KERNEL = 1, 2, 3, 4

#: Steps that a GPU may lag behind the host before the host looks at what became of them.
_LAG = 2

#: Steps among which skipped batches are counted, over which the running median of the loss is
#: taken, and whose mean is compared with it; and the fewest for a median.
_SKIP_SPAN, _MEDIAN_SPAN, _RECENT, _MEDIAN_FROM = 1000, 512, 8, 128

_HISTORY = tuple(a.name for a in attrs.fields(EpochMetrics))


@attrs.frozen
class _Outcome:
    """A step whose outcome the host has not looked at yet."""

    batch: int
    #: Its windows, of a group this process's share; times and noise of all.
    x: Tensor
    t: Tensor
    eps: Tensor
    #: loss, gradient norm, and whether the batch is to blame if they are not finite; on the host.
    numbers: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[float, float, bool]:
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, fault = self.numbers.numpy().tolist()
        return loss, norm, bool(fault)


class Trainer:
    """Trains a denoiser of windows.

    The state after any step, with :meth:`state_dict`, determines all that follows: a training
    resumed from it is bit for bit the one that was not stopped, as far as the device repeats its
    arithmetic. Windows are the same on every device. Times and noise are drawn on the denoiser's.

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
        averaged: The denoiser with averaged weights, if they are averaged.
        history: Metrics of all epochs.
        best_loss: Lowest validation loss; infinite before the first.
        best_epoch: Its epoch.
        slow_down: Factor on the learning rate, below 1 after roll-backs.
        rollbacks: Number of roll-backs so far.

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
        self.slow_down, self.rollbacks = 1.0, 0
        self.device = next(denoiser.parameters()).device
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
        self.scheduler = LambdaLR(
            self.optimizer,
            lambda step: self.slow_down * config.learning_rate_at(step, self.num_steps),
        )
        self.averaged = None if config.ema is None else copy.deepcopy(denoiser)
        self._arithmetic = Arithmetic(config, self.device)
        self._exchanging = self.group.network(denoiser, denoiser.network)
        self._network = self._arithmetic.network(self._exchanging)
        self._lag = _LAG if self.device.type == "cuda" else 0
        self._meter = Meter(self.device)
        # Within an epoch: its batches done, their losses, the sources of randomness.
        self._batch = 0
        self._epoch_loss, self._epoch_count = torch.zeros(2, device=self.device)
        self._draws = self._generator(_LOSS, 0)
        self._kernel_states: list[Tensor] = []
        self._started, self._first = (0.0, 0.0), 0
        # What the host knows of the steps done.
        self._outcomes: deque[_Outcome] = deque()
        self._failures: list[Event] = []
        self._losses: deque[float] = deque(maxlen=_MEDIAN_SPAN + _RECENT)
        self._skipped: deque[int] = deque(maxlen=config.guards.skip_limit + 1)
        self._grad_norm = self._rate = math.nan

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
        recent = list(self._losses)[-_RECENT:]
        return sum(recent) / len(recent) if recent else math.nan

    @property
    def grad_norm(self) -> float:
        """Norm of the gradients before clipping, likewise of the last step."""
        return self._grad_norm

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self._rate

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

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
        while self.epoch < self.config.epochs:
            yield from self._epoch()
        self.optimizer.zero_grad()

    def _epoch(self) -> Iterator[Event]:
        if self._batch == 0:
            self._begin_epoch()
        order = seeded_generator(self.seed, _DATA, self.epoch)
        with closing(self._batches(self.train, order, first=self._batch)) as batches:
            self._meter.start()
            self.denoiser.train()
            for batch in self._meter.waiting_for(batches):
                if not self.group.is_main:
                    self._seed_kernel(_KERNEL, self.epoch, self._batch, self.group.rank)
                with self._kernel_randomness():
                    self._train_on(batch)
                self._batch += 1
                self.step += 1
                last = self._batch == self.steps_per_epoch
                self._poll_outcomes(0 if last else self._lag)
                self._meter.stop()
                done = self._end_epoch() if last else Step(epoch=self.epoch, step=self.step)
                yield from self._take_failures()
                self._check_skipped()
                yield done
                self._meter.start()
                self.denoiser.train()

    def _begin_epoch(self) -> None:
        self._draws = self._generator(_LOSS, self.epoch)
        self._epoch_loss, self._epoch_count = torch.zeros(2, device=self.device)
        # For kernels that draw random numbers of their own, such as dropout.
        self._seed_kernel(_KERNEL, self.epoch)
        self._started, self._first = self._meter.clock, self.step

    def _end_epoch(self) -> EpochMetrics:
        loss, taken = float(self._epoch_loss), float(self._epoch_count)
        seconds, waited = (b - a for a, b in zip(self._started, self._meter.clock, strict=True))
        steps = self.step - self._first
        self._batch = 0
        self.epoch += 1
        due = self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs
        valid_loss = self.validate() if due and self.valid is not None else None
        if valid_loss is not None and valid_loss < self.best_loss:
            self.best_loss, self.best_epoch = valid_loss, self.epoch
        metrics = EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            loss=loss / taken if taken else math.nan,
            valid_loss=valid_loss,
            learning_rate=self._rate,
            grad_norm=self._grad_norm,
            skipped=self.steps_per_epoch - round(taken),
            steps_per_second=steps / seconds,
            utilization=1 - waited / seconds,
        )
        self.history.append(metrics)
        return metrics

    def _train_on(self, x: Tensor) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()  # not at the end: diagnostics may look at the gradients
        x, group = x.to(self.device), self.group
        t, eps, mine = self._draw(self.train, self._batch, x, self._draws)
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
        self._rate = float(self.scheduler.get_last_lr()[0])
        # Fused optimizers skip the step where this is 1, on the device.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        fault = self._arithmetic.is_fault(loss, finite)
        self.scheduler.step()
        self._average()
        self._epoch_loss += torch.where(finite, loss, 0)
        self._epoch_count += finite
        self._meter.update(t, window_losses, finite)
        numbers = torch.stack((loss, norm.float(), fault.float())).to("cpu", non_blocking=True)
        arrived = None
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self._outcomes.append(_Outcome(self._batch, x, t, eps, numbers, arrived))

    def _poll_outcomes(self, lag: int) -> None:
        """Look at the outcomes of all steps but the last few, and note what went wrong."""
        while len(self._outcomes) > lag:
            outcome = self._outcomes.popleft()
            loss, self._grad_norm, fault = outcome.read()
            step = self.step - len(self._outcomes)
            if math.isfinite(loss) and math.isfinite(self._grad_norm):
                self._losses.append(loss)
            elif fault:
                self._skipped.append(step)
                self._failures.append(self._describe(outcome, step, loss))
        if (spike := self._spike()) is not None:
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

    def _describe(self, outcome: _Outcome, step: int, loss: float) -> SkippedBatch:
        """What a skipped batch was; the network is evaluated on it once more, in parts."""
        t, eps = outcome.t, outcome.eps
        x = self.group.all_gather_rows(outcome.x, len(t))
        seen: dict[str, list[Tensor]] = {"input": [x], "noised": [], "output": [], "loss": []}
        evaluate = self._arithmetic.network(self.denoiser.network, compiled=False)

        def network(noised: Tensor, t: Tensor) -> Tensor:
            output = evaluate(noised, t)
            seen["noised"].append(noised)
            seen["output"].append(output)
            return output

        with torch.no_grad(), self._kernel_randomness(keep=False):
            count = self.config.accumulate * self.group.size
            parts = (v.chunk(count) for v in (x, t, eps))
            for x_part, t_part, eps_part in zip(*parts, strict=True):
                part = self.denoiser.losses_at(x_part, t_part, eps_part, self.weights, network)
                seen["loss"].append(part[1])
        bad = ~torch.cat(seen["loss"]).isfinite()
        return SkippedBatch(
            epoch=self.epoch,
            step=step,
            batch=outcome.batch,
            loss=loss,
            grad_norm=self._grad_norm,
            levels=t[bad if bad.any() else slice(None)].tolist(),
            summary={name: _summary(torch.cat(values)) for name, values in seen.items()},
        )

    def _check_skipped(self) -> None:
        limit = self.config.guards.skip_limit
        recent = sum(step > self.step - _SKIP_SPAN for step in self._skipped)
        if recent > limit:
            raise TrainingError(
                f"{recent} of the last {min(self.step, _SKIP_SPAN)} batches had a loss or "
                f"gradients that are not finite, and train.guards.skip_limit = {limit}. Lower "
                "train.learning_rate, set train.clip_norm, use train.precision = 'float32', or "
                "look for the cause with --detect-anomaly"
            )

    def _spike(self) -> LossSpike | None:
        factor = self.config.guards.spike
        if factor is None:
            return None
        recent, usual = self._recent_and_usual()
        if recent <= factor * usual:
            return None
        return LossSpike(
            epoch=self.epoch,
            step=self.step,
            since=self.step - _RECENT,
            loss=recent,
            median=usual,
        )

    def _recent_and_usual(self) -> tuple[float, float]:
        """Mean of the last few losses, and median of those before; 0 as long as there are few."""
        if len(self._losses) < _MEDIAN_FROM + _RECENT:
            return 0.0, 0.0
        losses = list(self._losses)
        return sum(losses[-_RECENT:]) / _RECENT, median(losses[:-_RECENT])

    @property
    def is_rising(self) -> bool:
        """Whether the loss is on its way to a spike, so that the state is none to go back to."""
        factor = self.config.guards.spike
        if factor is None:
            return False
        recent, usual = self._recent_and_usual()
        return recent > math.sqrt(factor) * usual

    def roll_back(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to a state, and on from there with a lower learning rate.

        Iterate over :meth:`events` anew afterwards.

        Raises:
            TrainingError: It was rolled back too often.
        """
        guards, rollbacks, slow_down = self.config.guards, self.rollbacks + 1, self.slow_down
        if rollbacks > guards.rollbacks:
            raise TrainingError(
                f"the loss rose to {guards.spike:g} times its running median once more after "
                f"{guards.rollbacks} roll-backs (train.guards.rollbacks). Lower "
                "train.learning_rate, set train.clip_norm, or raise train.guards.spike"
            )
        self.load_state_dict(tensors, state)
        self.rollbacks, self.slow_down = rollbacks, slow_down * guards.slow_down
        self._set_rate()

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
            "learning_rate": self._rate,
            **self._arithmetic.report(),
        }

    def validate(self) -> float:
        """Loss on the validation windows, the same windows, times and noise each time."""
        assert self.valid is not None
        denoiser = self.best_denoiser.eval()
        draws = self._generator(_VALID, 1)
        total, count = torch.zeros((), device=self.device), 0
        with torch.no_grad():
            # Four passes, since a validation set is small and the noise levels are many.
            for i in range(4):
                batches = self._batches(self.valid, seeded_generator(self.seed, _VALID, 0, i))
                for j, batch in enumerate(batches):
                    x = batch.to(self.device)
                    t, eps, mine = self._draw(self.valid, j, x, draws)
                    if len(x):
                        loss = denoiser.loss_at(x, t[mine], eps[mine], self.weights)
                        total += loss * len(x)
                    count += len(t)
        return float(self.group.total(total)) / count

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

    def _generator(self, *key: int) -> torch.Generator:
        """A generator on the device."""
        seed = seeded_generator(self.seed, *key).initial_seed()
        return torch.Generator(self.device).manual_seed(seed)

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

    @contextmanager
    def _kernel_randomness(self, *, keep: bool = True) -> Iterator[None]:
        """Torch's own random state is the training's within, and untouched outside."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            if self._kernel_states:
                torch.set_rng_state(self._kernel_states[0])
                if self.device.type == "cuda":
                    torch.cuda.set_rng_state(self._kernel_states[1], self.device)
            yield
            if keep:
                self._kernel_states = [torch.get_rng_state()]
                if self.device.type == "cuda":
                    self._kernel_states.append(torch.cuda.get_rng_state(self.device))

    def _seed_kernel(self, *key: int) -> None:
        """Seed torch's own generators for the training."""
        seed = seeded_generator(self.seed, *key).initial_seed()
        with self._kernel_randomness():
            torch.default_generator.manual_seed(seed)
            if self.device.type == "cuda":  # this one, and no other GPU's
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)

    def _average(self) -> None:
        """Let the averaged weights follow the current ones."""
        if self.averaged is None:
            return
        # A short memory at first, so that the random initial weights are forgotten.
        n = self.step
        decay = min(self.config.ema or 0.0, (1 + n) / (10 + n)) if n else 0.0
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.denoiser.parameters()), 1 - decay
            )
            for averaged, current in zip(
                self.averaged.buffers(), self.denoiser.buffers(), strict=True
            ):
                averaged.copy_(current)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors, and values that JSON can hold."""
        self._poll_outcomes(0)
        tensors = {f"raw.{k}": v for k, v in self.denoiser.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema.{k}": v for k, v in self.averaged.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items() if v is not None
            }
        tensors |= {f"meter.{k}": v for k, v in self._meter.state_dict().items()}
        tensors["losses"] = torch.tensor(list(self._losses), dtype=torch.float64)
        for name in _HISTORY:
            values = [getattr(m, name) for m in self.history]
            column = [math.nan if v is None else v for v in values]
            tensors[f"history.{name}"] = torch.tensor(column, dtype=torch.float64)
        if self._batch:
            tensors["epoch.loss"], tensors["epoch.count"] = self._epoch_loss, self._epoch_count
            tensors["random.draws"] = self._draws.get_state()
            for i, state in enumerate(self._kernel_states):
                tensors[f"random.kernel.{i}"] = state
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "batch": self._batch,
            "device": self.device.type,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "slow_down": self.slow_down,
            "rollbacks": self.rollbacks,
            "skipped": list(self._skipped),
            "grad_norm": self._grad_norm,
            "learning_rate": self._rate,
            "arithmetic": self._arithmetic.state_dict(),
        }
        return tensors, state

    def load_state_dict(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Resume from a state that :meth:`state_dict` gave; iterate over events anew."""

        def part(name: str) -> dict[str, Tensor]:
            n = len(name) + 1
            return {k[n:]: v for k, v in tensors.items() if k.startswith(name + ".")}

        self._outcomes.clear()
        self._failures.clear()
        self.denoiser.load_state_dict(part("raw"))
        if self.averaged is not None:
            self.averaged.load_state_dict(part("ema"))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer").items():
            i, _, name = key.partition(".")
            states.setdefault(int(i), {})[name] = value
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = states
        self.optimizer.load_state_dict(optimizer)
        # The fused optimizer goes through memory, so its state must lie there as the weights do.
        for weight, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if value.shape == weight.shape:
                    moments[name] = torch.empty_like(weight).copy_(value)
        self._meter.load_state_dict(part("meter"))
        columns = [tensors[f"history.{name}"].tolist() for name in _HISTORY]
        self.history = [_metrics(row) for row in zip(*columns, strict=True)]
        self._losses.clear()
        self._losses.extend(tensors["losses"].tolist())
        self._skipped.clear()
        self._skipped.extend(state["skipped"])
        self.epoch, self.step, self._batch = state["epoch"], state["step"], state["batch"]
        self._started, self._first = self._meter.clock, self.step
        if self._batch:
            self._epoch_loss = tensors["epoch.loss"].to(self.device)
            self._epoch_count = tensors["epoch.count"].to(self.device)
            if state["device"] == self.device.type:
                self._draws.set_state(tensors["random.draws"])
                self._kernel_states = list(part("random.kernel").values())
            else:
                warnings.warn(
                    f"the checkpoint was written on {state['device']} in mid-epoch, and the "
                    f"training is resumed on {self.device.type}, whose random numbers differ: the "
                    "rest of the epoch is not what it would have been",
                    CheckpointWarning,
                    stacklevel=2,
                )
                self._draws = self._generator(_LOSS, self.epoch, self._batch)
                self._seed_kernel(_KERNEL, self.epoch, self._batch)
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self.slow_down, self.rollbacks = state["slow_down"], state["rollbacks"]
        self._grad_norm = state["grad_norm"]
        self._arithmetic.load_state_dict(state["arithmetic"])
        self._set_rate()
        self._rate = state["learning_rate"]

    def _set_rate(self) -> None:
        """Let the learning rate be that of the current step."""
        self.scheduler.last_epoch = self.step
        for group, base, rate in zip(
            self.optimizer.param_groups,
            self.scheduler.base_lrs,
            self.scheduler.lr_lambdas,
            strict=True,
        ):
            group["lr"] = base * rate(self.step)
        self.scheduler._last_lr = [g["lr"] for g in self.optimizer.param_groups]
        self._rate = float(self.scheduler._last_lr[0])


def _summary(x: Tensor) -> dict[str, float]:
    """Smallest, middle and largest finite value, and how many are not finite."""
    values = x[x.isfinite()].float()
    if not len(values):
        values = torch.tensor([math.nan])
    return {
        "min": float(values.min()),
        "median": float(values.median()),
        "max": float(values.max()),
        "not_finite": int((~x.isfinite()).sum()),
    }


def _metrics(row: tuple[float, ...]) -> EpochMetrics:
    values: dict[str, Any] = dict(zip(_HISTORY, row, strict=True))
    for name in ("epoch", "step", "skipped"):
        values[name] = int(values[name])
    if math.isnan(values["valid_loss"]):
        values["valid_loss"] = None
    return EpochMetrics(**values)
