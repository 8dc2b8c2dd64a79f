"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

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
