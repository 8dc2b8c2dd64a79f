"""What every training reports, besides what the trainer itself counts.

The core's implementation of the hook ``sda_diagnostics``. Names with ``/`` are groups, which
trackers show together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from sda_core.data import TrajectoryStore, split_path
from sda_core.evaluation.metrics import log_prior
from sda_core.model import TrainedModel
from sda_core.system import HasLogProb
from sda_core.tracker import Histogram, Value
from sda_core.training import Trainer, memory_in_use, peak_memory

#: Bins of histograms, and the most blocks of a network that have one each.
BINS, MAX_BLOCKS = 32, 16


def batch_diagnostics(trainer: Trainer) -> dict[str, Value]:
    """Norms and memory after a step, and histograms where ``train.histograms`` asks for them.

    Args:
        trainer: The trainer, with the gradients of the last step.

    Returns:
        ``param_norm``, the norm of the weights; ``ema_distance``, the norm of the difference
        between averaged and current weights over ``param_norm``; ``memory_gib`` and
        ``peak_memory_gib``, of the GPU if one is used, else of the process; ``gradients/BLOCK`` and
        ``weights/BLOCK``, histograms of the gradients (after clipping) and weights of each block.
    """
    weights: list[Tensor] = list(trainer.denoiser.parameters())
    norms = {"param_norm": get_total_norm(weights)}
    if trainer.averaged is not None:
        averaged: list[Tensor] = list(trainer.averaged.parameters())
        with torch.no_grad():
            difference = torch._foreach_sub(weights, averaged)
        norms["ema_distance"] = get_total_norm(difference) / norms["param_norm"]
    # Together, so that the host waits for a GPU once.
    numbers = torch.stack(list(norms.values())).tolist()
    values: dict[str, Value] = dict(zip(norms, numbers, strict=True))
    values["memory_gib"] = memory_in_use(trainer.device) / 2**30
    values["peak_memory_gib"] = peak_memory(trainer.device) / 2**30
    if trainer.config.histograms:
        for name, block in network_blocks(trainer.denoiser).items():
            gradients = [p.grad for p in block if p.grad is not None]
            for kind, tensors in (("gradients", gradients), ("weights", block)):
                if (found := histogram(tensors)) is not None:
                    values[f"{kind}/{name}"] = found
    return values


def network_blocks(denoiser: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of a network by its top-level blocks, a handful for any network.

    A block with more than half of all weights is split into its own blocks, as far as there are at
    most :data:`MAX_BLOCKS`.
    """
    blocks = {"kernel": dict(denoiser.named_parameters())}
    total = sum(p.numel() for p in denoiser.parameters())
    while True:
        sizes = {name: sum(p.numel() for p in block.values()) for name, block in blocks.items()}
        largest = max(sizes, key=sizes.__getitem__)
        depth = largest.count(".") + 2
        parts: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in blocks[largest].items():
            part = ".".join(name.split(".")[:depth])
            parts.setdefault(part, {})[name] = parameter
        is_layer = all(part in block for part, block in parts.items())
        if is_layer or 2 * sizes[largest] <= total or len(blocks) - 1 + len(parts) > MAX_BLOCKS:
            return {name: list(block.values()) for name, block in blocks.items()}
        del blocks[largest]
        blocks |= parts


def histogram(tensors: Iterable[Tensor]) -> Histogram | None:
    """How the values of some tensors are distributed, those not finite left out; None if empty."""
    x = torch.cat([tensor.detach().flatten() for tensor in tensors]).float()
    x = x[x.isfinite()]
    if not len(x):
        return None
    low, high = torch.stack(x.aminmax()).tolist()
    high = high if high > low else low + 1
    # Not torch.histc: it counts in float32, and is not allowed where train.deterministic is set.
    bins = ((x - low) / (high - low) * BINS).long().clamp_(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    return Histogram(counts=counts.tolist(), edges=np.linspace(low, high, BINS + 1))


def sample_diagnostics(run: Any, model: TrainedModel, samples: Tensor) -> dict[str, Value]:
    r"""How unconditional samples compare with the training data.

    Args:
        run: The run.
        model: The model that was sampled.
        samples: Trajectories in physical units, (M, L, C, \*S).

    Returns:
        ``samples/mean_X`` and ``samples/std_X`` of each variable X in model space, where those of
        the data are 0 and 1. Where the transition density is known, ``samples/log_prior``, the mean
        of log p(x_2:L \| x_1), and ``samples/log_prior_data``, that of as many trajectories of the
        data. For states without a grid, the picture ``samples/trajectories``.
    """
    values: dict[str, Value] = {}
    standardized = model.standardization.to_model(samples).double()
    for i, name in enumerate(model.spec.variable_names):
        std, mean = torch.std_mean(standardized[:, :, i], correction=0)
        values |= {f"samples/mean_{name}": float(mean), f"samples/std_{name}": float(std)}
    system, data = run.experiment.system, training_trajectories(run, samples)
    if isinstance(system, HasLogProb):
        values["samples/log_prior"] = float(log_prior(system, samples).mean())
        if data.shape[1] == samples.shape[1]:
            values["samples/log_prior_data"] = float(log_prior(system, data).mean())
    if not model.spec.axes:
        from sda_core.figures import Picture, sampled_trajectories  # matplotlib takes a while

        values["samples/trajectories"] = Picture(
            name="trajectories",
            caption="Samples of the learned prior, beside training data.",
            figure=sampled_trajectories(samples, data, model.spec),
        )
    return values


def training_trajectories(run: Any, samples: Tensor) -> Tensor:
    r"""As many trajectories of the training data, of the same length, or what there is of both."""
    members, length = samples.shape[:2]
    with TrajectoryStore(split_path(run.data, "train")) as store:
        return store.read(slice(members), slice(length))
