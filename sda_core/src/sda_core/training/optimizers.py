"""Optimizers by name, and their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sda_core.training.config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer that the settings name, fused.

    Args:
        config: Settings.
        parameters: What is trained.
    """
    parameters = list(parameters)
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        momentum = config.betas[0]
        nesterov = momentum > 0
        optimizer = SGD(parameters, rate, momentum, 0, decay, nesterov, fused=True)
        if momentum:
            # Left to torch, it is made with what lies in memory, and stays so where the first step
            # is skipped because it is not finite.
            for p in parameters:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    kind = {"adamw": AdamW, "adam": Adam}[config.optimizer]
    return kind(parameters, rate, betas=config.betas, weight_decay=decay, fused=True)


class LearningRate:
    """The learning rate of an optimizer.

    Args:
        optimizer: The optimizer, with the rate at the start.
        factor: The factor on it at a step.

    Attributes:
        last: The rate of the last step; NaN before the first.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._scheduler = LambdaLR(optimizer, factor)
        self.last = math.nan

    def advance(self) -> None:
        """Set the rate of the next step, after one."""
        self.last = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()

    def set(self, step: int) -> None:
        """Set the rate of a step."""
        scheduler, groups = self._scheduler, self._optimizer.param_groups
        scheduler.last_epoch = step
        for group, base, factor in zip(
            groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(step)
        scheduler._last_lr = [group["lr"] for group in groups]
        self.last = float(scheduler._last_lr[0])
