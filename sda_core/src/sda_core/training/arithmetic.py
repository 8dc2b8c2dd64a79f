"""In what arithmetic a network is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from sda_core.errors import ConfigError
from sda_core.training.config import TrainConfig

T = TypeVar("T")
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

    def network(self, network: Network, *, compiled: bool = True) -> Network:
        """The network in this arithmetic; compiled if that is asked for, unless told not to."""
        if self._config.precision != "float32":
            network = self._autocast(network)
        if self._config.compile and compiled:
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
        """Resume from a state that :meth:`state_dict` gave."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def arithmetic_rules(config: TrainConfig) -> Iterator[None]:
    """Set torch's global switches for a training: TF32 and determinism.

    They are as before afterwards, except that the environment variable ``CUBLAS_WORKSPACE_CONFIG``
    stays set after a deterministic training, since torch reads it once.

    Args:
        config: Settings.

    Raises:
        ConfigError: A GPU was used already, so that setting this variable may be too late.
    """
    benchmark = torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if config.deterministic and _WORKSPACE not in os.environ:
        # cuBLAS repeats its results only with a workspace of fixed size.
        if torch.cuda.is_initialized():
            raise ConfigError(
                f"train.deterministic = true takes {_WORKSPACE} in the environment, but it is not "
                "set, and a GPU is in use already, when torch may have read it: start with "
                f"{_WORKSPACE}=:4096:8 in the environment, or use train.deterministic = false"
            )
        os.environ[_WORKSPACE] = ":4096:8"
    with _tf32(config.tf32):
        try:
            torch.backends.cudnn.benchmark = not config.deterministic
            torch.use_deterministic_algorithms(config.deterministic)
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether TF32 is used, through both of torch's interfaces to it.

    The older one's setters set the newer one's state too. The older one's getters, which parts of
    torch's compiler use, raise where the newer one alone was used.
    """
    matmul = _unless_mixed(torch.get_float32_matmul_precision, "highest")
    cudnn = _unless_mixed(lambda: torch.backends.cudnn.allow_tf32, True)
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    precisions = [part.fp32_precision for part in parts]
    try:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
        for part, precision in zip(parts, precisions, strict=True):
            part.fp32_precision = precision


def _unless_mixed(read: Callable[[], T], default: T) -> T:
    """What the older interface says, or its default where it raises."""
    try:
        return read()
    except RuntimeError:
        return default
