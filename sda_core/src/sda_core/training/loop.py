"""The training loop: a generator of metrics, one per epoch, that knows no logger and no tracker."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from sda_core.data import WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import ConfigError
from sda_core.random import seeded_generator
from sda_core.training.config import TrainConfig

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
    after an epoch is bit for bit the one that was not stopped, as far as the device repeats its
    arithmetic. Windows are the same on every device. Times and noise are drawn on the denoiser's,
    so that it and the host need not wait for each other within an epoch.

    With ``precision = "bfloat16"`` the network alone is evaluated so, in training alone: weights,
    their average, the optimizer, the loss and the validation are float32.

    Args:
        denoiser: The denoiser, on the device to train on; its weights are changed in place.
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
        self.optimizer = AdamW(
            denoiser.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scheduler = LambdaLR(
            self.optimizer, lambda step: config.learning_rate_at(step, self.num_steps)
        )
        self.averaged = None if config.ema is None else copy.deepcopy(denoiser)
        self._network: Callable[[Tensor, Tensor], Tensor] = denoiser.network
        if config.precision == "bfloat16":
            self._network = self._in_bfloat16
        if config.compile:
            # A function, so that modules and the names of their weights stay as they are. Once for
            # each shape: there are few, a part of a batch and what is left of the last batch.
            self._network = torch.compile(self._network, dynamic=False)

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
        return self.denoiser if self.averaged is None else self.averaged

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train from the current epoch to the last."""
        while self.epoch < self.config.epochs:
            yield self._epoch()

    def _epoch(self) -> EpochMetrics:
        started, first = time.perf_counter(), self.step
        draws = self._generator(_LOSS, self.epoch)
        self.denoiser.train()
        total = torch.zeros((), device=self.device)
        rate = 0.0
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # For kernels that draw random numbers of their own, such as dropout.
            torch.manual_seed(seeded_generator(self.seed, _KERNEL, self.epoch).initial_seed())
            for batch in self._batches(self.train, seeded_generator(self.seed, _DATA, self.epoch)):
                for loss in self._losses(batch.to(self.device), draws):
                    loss.backward()
                    total += loss.detach()
                if self.config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(
                        self.denoiser.parameters(), self.config.clip_norm
                    )
                rate = float(self.scheduler.get_last_lr()[0])
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                self._average()
                self.step += 1
        self.epoch += 1
        steps = self.step - first
        loss_of_epoch = float(total) / steps  # waits for the device, so before the clock is read
        seconds = time.perf_counter() - started
        due = self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs
        return EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            loss=loss_of_epoch,
            valid_loss=self.validate() if due and self.valid is not None else None,
            learning_rate=rate,
            steps_per_second=steps / seconds,
        )

    def _losses(self, x: Tensor, draws: torch.Generator) -> Iterator[Tensor]:
        """The loss of a batch in parts that add up to it."""
        t, eps = self.denoiser.draw(x, draws)
        parts = (v.chunk(self.config.accumulate) for v in (x, t, eps))
        for x_part, t_part, eps_part in zip(*parts, strict=True):
            loss = self.denoiser.loss_at(x_part, t_part, eps_part, self.weights, self._network)
            yield loss * (len(x_part) / len(x))

    def _in_bfloat16(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.denoiser.network(x, t).to(x)

    def validate(self) -> float:
        """Loss on the validation windows, the same windows, times and noise each time."""
        assert self.valid is not None
        denoiser = self.best_denoiser.eval()
        draws = self._generator(_VALID, 1)
        total, count = torch.zeros((), device=self.device), 0
        with torch.no_grad():
            # Four passes, since a validation set is small and the noise levels are many.
            for i in range(4):
                for batch in self._batches(self.valid, seeded_generator(self.seed, _VALID, 0, i)):
                    total += denoiser.loss(batch.to(self.device), draws, self.weights) * len(batch)
                    count += len(batch)
        return float(total) / count

    def _generator(self, *key: int) -> torch.Generator:
        """A generator on the device."""
        seed = seeded_generator(self.seed, *key).initial_seed()
        return torch.Generator(self.device).manual_seed(seed)

    def _batches(self, windows: WindowDataset, generator: torch.Generator) -> Iterator[Tensor]:
        return windows.epoch(
            generator,
            batch_size=self.config.batch_size,
            per_trajectory=self.config.windows_per_trajectory,
        )

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

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Everything that the next epoch depends on: tensors, and counters."""
        tensors = {f"raw.{k}": v for k, v in self.denoiser.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"ema.{k}": v for k, v in self.averaged.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        return tensors, {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Go on from a state that :meth:`state_dict` gave."""

        def part(name: str) -> dict[str, Tensor]:
            n = len(name) + 1
            return {k[n:]: v for k, v in tensors.items() if k.startswith(name + ".")}

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
        for weight, state in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.empty_like(weight).copy_(state[name])
        self.epoch, self.step = counters["epoch"], counters["step"]
        self.scheduler.last_epoch = self.step
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * self.config.learning_rate_at(self.step, self.num_steps)
        self.scheduler._last_lr = [g["lr"] for g in self.optimizer.param_groups]
