"""In what arithmetic a network is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sda_core.training.config import TrainConfig

Network = Callable[[Tensor, Tensor], Tensor]

#: Bounds of the factor on a float16 loss. Unbounded, it can fall to 0 or overflow itself.
MIN_SCALE, MAX_SCALE = 2.0**-10, 2.0**24


class Arithmetic:
    """Precision, compilation and scaling of the loss.

    Args:
        config: Settings.
        device: The device that is trained on.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._scaler = None
        if config.precision == "float16":
            self._scaler = GradScaler(device.type)

    def network(self, network: Network) -> Network:
        """The network in this arithmetic."""
        if self._config.precision != "float32":
            network = self._autocast(network)
        if self._config.compile:
            # A function, so that modules and the names of their weights stay as they are. Once for
            # each shape: there are few, a part of a batch and what is left of the last batch.
            network = torch.compile(network, dynamic=False)
        return network

    def _autocast(self, network: Network) -> Network:
        kind = getattr(torch, self._config.precision)

        def reduced(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x.device.type, kind):
                return network(x, t).to(x)

        return reduced

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate: scaled with float16, so that small gradients are not 0."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Let the gradients be those of the loss itself."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def is_fault(self, loss: Tensor, finite: Tensor) -> Tensor:
        """Whether a step that is not finite is a fault, (), and adapt the scale.

        With float16 gradients may overflow because of the scale, which is lowered then; that is
        how the scale is found, and no fault.
        """
        if self._scaler is None:
            return ~finite
        scale = self._scaler._get_scale_async()
        assert scale is not None  # since a loss was scaled
        fault = ~finite & (~loss.isfinite() | (scale <= MIN_SCALE))
        self._scaler.update()
        scale.clamp_(MIN_SCALE, MAX_SCALE)
        return fault

    def report(self) -> dict[str, float]:
        """The scale; waits for the device."""
        return {} if self._scaler is None else {"loss_scale": self._scaler.get_scale()}

    def state_dict(self) -> dict[str, float]:
        """What the next step depends on."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a state that :meth:`state_dict` gave."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


@contextmanager
def arithmetic_rules(config: TrainConfig) -> Iterator[None]:
    """Set torch's global switches for a training: TF32 and determinism.

    They are as before afterwards.

    Args:
        config: Settings.
    """
    precision = torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if config.deterministic:
        # cuBLAS repeats its results only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.tf32
        torch.backends.cudnn.benchmark = not config.deterministic
        torch.use_deterministic_algorithms(config.deterministic)
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
