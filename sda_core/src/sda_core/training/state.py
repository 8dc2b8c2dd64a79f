"""Parts of the state of a training, as tensors by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.optim import Optimizer

from sda_core.training.events import EpochMetrics

_HISTORY = tuple(a.name for a in attrs.fields(EpochMetrics))
_OPTIONAL = ("valid_loss", "valid_loss_unweighted")


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a part of the state, under its name."""
    return {f"{name}.{k}": v for k, v in tensors.items()}


def part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that stand under the name of a part."""
    n = len(name) + 1
    return {k[n:]: v for k, v in tensors.items() if k.startswith(name + ".")}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of each weight."""
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{i}.{k}": torch.as_tensor(v)
        for i, state in states.items()
        for k, v in state.items()
        if v is not None
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimizer continue with what :func:`optimizer_tensors` gave."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        i, _, name = key.partition(".")
        states.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    # The fused optimizer goes through memory, so its state must lie there as the weights do.
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(value)


def history_columns(history: Sequence[EpochMetrics]) -> dict[str, list[Any]]:
    """Metrics of epochs, as columns; ``valid_loss_unweighted`` only where there is one."""
    columns = {name: [getattr(m, name) for m in history] for name in _HISTORY}
    if all(v is None for v in columns["valid_loss_unweighted"]):
        del columns["valid_loss_unweighted"]
    return columns


def history_tensors(history: Sequence[EpochMetrics]) -> dict[str, Tensor]:
    """The same, as tensors with NaN for what is missing."""
    return {
        name: torch.tensor([math.nan if v is None else v for v in column], dtype=torch.float64)
        for name, column in history_columns(history).items()
    }


def read_history(tensors: Mapping[str, Tensor]) -> list[EpochMetrics]:
    """Metrics of epochs, from columns that :func:`history_tensors` gave."""
    columns = {name: tensors[name].tolist() for name in _HISTORY if name in tensors}
    rows = zip(*columns.values(), strict=True)
    return [_metrics(dict(zip(columns, row, strict=True))) for row in rows]


def _metrics(values: dict[str, Any]) -> EpochMetrics:
    for name in ("epoch", "step", "skipped"):
        values[name] = int(values[name])
    for name in _OPTIONAL:
        if math.isnan(values.get(name, math.nan)):
            values[name] = None
    return EpochMetrics(**values)
