"""The training loop: a generator of metrics, one per epoch, that knows no logger and no tracker."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from sda_core.data import WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import ConfigError
from sda_core.random import seeded_generator
from sda_core.training.config import TrainConfig

TensorList = tuple[Tensor, ...] | list[Tensor]

#: Streams of random numbers, so that none depends on how many another has used.
_DATA, _LOSS, _VALID, _KERNEL = 1, 2, 3, 4


@attrs.frozen(kw_only=True)
class EpochMetrics:
    """What an epoch gave.

    Attributes:
        epoch: Number of epochs done.
        step: Number of optimizer steps done.
        loss: Mean training loss of the epoch.
        valid_loss: Validation loss of the weights that will be used, at epochs that validate.
        learning_rate: Learning rate of the last step.
        steps_per_second: Optimizer steps per second in this epoch, validation left out.
    """

    epoch: int
    step: int
    loss: float
    valid_loss: float | None
    learning_rate: float
    steps_per_second: float


class Trainer:
    """Trains a denoiser of windows.

    All random numbers depend on (seed, epoch) alone, so that a training resumed from the state
    after an epoch is bit for bit the one that was not stopped.

    Args:
        denoiser: The denoiser; its weights are changed in place.
        train: Training windows.
        valid: Validation windows, if any.
        config: Settings.
        seed: Source of all randomness.

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
    ) -> None:
        self.denoiser, self.train, self.valid = denoiser, train, valid
        self.config, self.seed = config, seed
        self.epoch = self.step = 0
        device = next(denoiser.parameters()).device
        self.weights = None
        if config.variable_weights is not None:
            variables = train.store.spec.variable_names
            if len(config.variable_weights) != len(variables):
                raise ConfigError(
                    f"train.variable_weights has {len(config.variable_weights)} entries, but there "
                    f"are {len(variables)} variables {list(variables)}: give one per variable"
                )
            self.weights = torch.tensor(config.variable_weights, device=device)
        self.optimizer = AdamW(
            denoiser.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scheduler = LambdaLR(
            self.optimizer, lambda step: config.learning_rate_at(step, self.num_steps)
        )
        self.ema: AveragedModel | None = None
        if config.ema is not None:
            self.ema = AveragedModel(denoiser, multi_avg_fn=self._average)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        windows = len(self.train.store) * self.config.windows_per_trajectory
        return -(-windows // self.config.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def best_denoiser(self) -> WindowDenoiser:
        """The denoiser to use: with averaged weights if there are any."""
        if self.ema is None:
            return self.denoiser
        averaged = self.ema.module
        assert isinstance(averaged, WindowDenoiser)
        return averaged

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train from the current epoch to the last."""
        while self.epoch < self.config.epochs:
            yield self._epoch()

    def _epoch(self) -> EpochMetrics:
        started = time.perf_counter()
        draws = seeded_generator(self.seed, _LOSS, self.epoch)
        device = next(self.denoiser.parameters()).device
        self.denoiser.train()
        total, batches = torch.zeros((), device=device), 0
        rate = 0.0
        with torch.random.fork_rng():
            # For kernels that draw random numbers of their own, such as dropout.
            torch.manual_seed(seeded_generator(self.seed, _KERNEL, self.epoch).initial_seed())
            for batch in self._batches(self.train, seeded_generator(self.seed, _DATA, self.epoch)):
                loss = self.denoiser.loss(batch.to(device), draws, self.weights)
                loss.backward()
                if self.config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(
                        self.denoiser.parameters(), self.config.clip_norm
                    )
                rate = float(self.scheduler.get_last_lr()[0])
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                if self.ema is not None:
                    self.ema.update_parameters(self.denoiser)
                total += loss.detach()
                batches += 1
        self.epoch += 1
        self.step += batches
        seconds = time.perf_counter() - started
        due = self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs
        return EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            loss=float(total) / batches,
            valid_loss=self.validate() if due and self.valid is not None else None,
            learning_rate=rate,
            steps_per_second=batches / seconds,
        )

    def validate(self) -> float:
        """Loss on the validation windows, the same windows, times and noise each time."""
        assert self.valid is not None
        denoiser = self.best_denoiser.eval()
        device = next(denoiser.parameters()).device
        draws = seeded_generator(self.seed, _VALID, 1)
        total, count = 0.0, 0
        with torch.no_grad():
            # Four passes, since a validation set is small and the noise levels are many.
            passes = [
                self._batches(self.valid, seeded_generator(self.seed, _VALID, 0, i))
                for i in range(4)
            ]
            for batch in itertools.chain(*passes):
                loss = denoiser.loss(batch.to(device), draws, self.weights)
                total += float(loss) * len(batch)
                count += len(batch)
        return total / count

    def _batches(self, windows: WindowDataset, generator: torch.Generator) -> Iterator[Tensor]:
        return windows.epoch(
            generator,
            batch_size=self.config.batch_size,
            per_trajectory=self.config.windows_per_trajectory,
        )

    def _average(self, averaged: TensorList, current: TensorList, count: Tensor | int) -> None:
        # A short memory at first, so that the random initial weights are forgotten.
        n = int(count)
        decay = min(self.config.ema or 0.0, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Everything that the next epoch depends on: tensors, and counters."""
        tensors = {f"raw.{k}": v for k, v in self.denoiser.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return tensors, {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Go on from a state that :meth:`state_dict` gave."""

        def part(name: str) -> dict[str, Tensor]:
            n = len(name) + 1
            return {k[n:]: v for k, v in tensors.items() if k.startswith(name + ".")}

        self.denoiser.load_state_dict(part("raw"))
        if self.ema is not None:
            self.ema.load_state_dict(part("ema"))
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer").items():
            i, _, name = key.partition(".")
            states.setdefault(int(i), {})[name] = value
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = states
        self.optimizer.load_state_dict(optimizer)
        self.epoch, self.step = counters["epoch"], counters["step"]
        self.scheduler.last_epoch = self.step
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * self.config.learning_rate_at(self.step, self.num_steps)
        self.scheduler._last_lr = [g["lr"] for g in self.optimizer.param_groups]
