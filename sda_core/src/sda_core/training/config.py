"""Settings of the training."""

from __future__ import annotations

import math
from typing import Literal

from sda_core.config import Check, at_least, between, component, non_negative, option, positive
from sda_core.errors import ConfigError


@component
class GuardConfig:
    """What is done when a training goes wrong.

    A batch whose loss or gradients are not finite is always skipped and recorded.
    """

    skip_limit: int = option(
        default=16,
        check=at_least(0),
        help="batches skipped among the last 1000 steps above which the training stops",
    )
    spike: float | None = option(
        default=None,
        check=Check("greater than 1", lambda v: v > 1),
        help="a loss this many times its running median rolls back to the last checkpoint",
    )
    slow_down: float = option(
        default=0.5,
        check=Check("greater than 0, at most 1", lambda v: 0 < v <= 1),
        help="factor on the learning rate after a roll-back",
    )
    rollbacks: int = option(
        default=3, check=at_least(0), help="roll-backs above which the training stops"
    )


@component
class TrainConfig:
    """Settings of the training.

    Good values: the defaults are the original Lorenz training's, which takes 4096 epochs;
    ``ema = 0.999`` with a cosine decay is what ``lorenz63-quick`` uses. ``precision = "bfloat16"``
    and ``compile = true`` are meant for convolutional networks, on a GPU or on a CPU that has
    bfloat16 arithmetic (AVX512-BF16 or AMX); on others float32 is faster. A training that now and
    then swings from a good state into collapse is helped by ``clip_norm = 1.0`` and
    ``guards = { spike = 5.0 }``.
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
    seed: int | None = option(
        default=None,
        check=non_negative,
        help="seed of weights, batches and noise, where it is not to be the experiment's",
    )
    precision: Literal["float32", "bfloat16", "float16"] = option(
        default="float32",
        help="arithmetic of the network in training; all else is float32. With float16 the loss "
        "is scaled",
    )
    tf32: bool = option(
        default=False, help="whether float32 products may be rounded to TF32, on GPUs that have it"
    )
    compile: bool = option(default=False, help="whether the network is compiled for training")
    deterministic: bool = option(
        default=False,
        help="whether only operations that repeat bit for bit are allowed; a CPU's do anyway",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = option(
        default="adamw", help="the optimizer; sgd has Nesterov's momentum"
    )
    learning_rate: float = option(default=1e-3, check=positive, help="learning rate")
    betas: tuple[float, float] = option(
        default=(0.9, 0.999),
        check=Check("from 0 to less than 1", lambda v: 0 <= v < 1),
        help="decay of the moments of Adam; sgd has the first as momentum",
    )
    weight_decay: float = option(
        default=1e-3, check=non_negative, help="weight decay; in the gradient for adam and sgd"
    )
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
        default=None, check=between(0, 1e6), help="weight of each variable in the loss"
    )
    guards: GuardConfig = option(
        default=GuardConfig(), help="what is done when a training goes wrong"
    )
    validate_every: int = option(default=16, check=at_least(1), help="epochs between validations")
    patience: int | None = option(
        default=None,
        check=at_least(1),
        help="validations without a better loss after which the training ends",
    )
    final: Literal["last", "best"] = option(
        default="last", help="whose weights the model has: the last, or the best in validation"
    )
    checkpoint_every: int = option(default=64, check=at_least(1), help="epochs between checkpoints")
    checkpoint_minutes: float | None = option(
        default=10.0, check=positive, help="minutes after which one is written in any case"
    )
    keep: int = option(
        default=2, check=at_least(1), help="checkpoints that are kept, besides the best"
    )
    report_every: int = option(
        default=50, check=at_least(1), help="steps between reports of loss, gradients and speed"
    )
    histograms: bool = option(
        default=False, help="whether histograms of gradients and weights are reported"
    )
    sample_every: int | None = option(
        default=None,
        check=at_least(1),
        help="epochs between unconditional samples; none are drawn if not set",
    )

    def __attrs_post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}: "
                "choose a divisor of the batch size"
            )
        if self.variable_weights is not None and not any(self.variable_weights):
            raise ConfigError(
                f"variable_weights = {list(self.variable_weights)}: all are 0, so that there is no "
                "loss. Give at least one a weight, or leave them out for equal ones"
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
