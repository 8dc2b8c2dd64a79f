"""Settings of the training."""

from __future__ import annotations

import math
from typing import Literal

from sda_core.config import at_least, between, component, non_negative, option, positive
from sda_core.errors import ConfigError


@component
class TrainConfig:
    """Settings of the training.

    Good values: the defaults are the original Lorenz training's, which takes 4096 epochs;
    ``ema = 0.999`` with a cosine decay is what ``lorenz63-quick`` uses. ``precision = "bfloat16"``
    and ``compile = true`` are meant for convolutional networks, on a GPU or on a CPU that has
    bfloat16 arithmetic (AVX512-BF16 or AMX); on others float32 is faster.
    """

    epochs: int = option(
        default=256, check=at_least(1), help="an epoch draws windows from every trajectory"
    )
    windows_per_trajectory: int = option(
        default=1, check=at_least(1), help="random windows drawn from each trajectory in an epoch"
    )
    batch_size: int = option(default=64, check=at_least(1), help="windows per step")
    accumulate: int = option(
        default=1,
        check=at_least(1),
        help="parts of a batch whose gradients are summed: less memory",
    )
    precision: Literal["float32", "bfloat16"] = option(
        default="float32", help="arithmetic of the network in training; all else is float32"
    )
    compile: bool = option(default=False, help="whether the network is compiled for training")
    learning_rate: float = option(default=1e-3, check=positive, help="AdamW learning rate")
    weight_decay: float = option(default=1e-3, check=non_negative, help="AdamW weight decay")
    decay: Literal["linear", "cosine", "exponential", "constant"] = option(
        default="linear", help="how the learning rate falls from its value to (nearly) 0"
    )
    warmup_steps: int = option(
        default=0, check=non_negative, help="steps of linear rise before that"
    )
    clip_norm: float | None = option(default=None, check=positive, help="largest gradient norm")
    ema: float | None = option(
        default=None, check=between(0, 1), help="decay of the moving average of the weights"
    )
    variable_weights: tuple[float, ...] | None = option(
        default=None, check=non_negative, help="weight of each variable in the loss"
    )
    validate_every: int = option(default=16, check=at_least(1), help="epochs between validations")
    checkpoint_every: int = option(default=64, check=at_least(1), help="epochs between checkpoints")

    def __attrs_post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}: "
                "choose a divisor of the batch size"
            )

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate at a step, over ``learning_rate``."""
        u = step / steps
        decay = {
            "linear": 1 - u,
            "cosine": (1 + math.cos(math.pi * u)) / 2,
            "exponential": math.exp(-7 * u**2),
            "constant": 1.0,
        }[self.decay]
        return decay * min(1.0, (step + 1) / (self.warmup_steps + 1))
