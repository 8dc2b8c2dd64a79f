"""The model that a run trains, before it is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from sda_core.data import size_text
from sda_core.errors import ConfigError, SDAError
from sda_core.experiment import Experiment, Run
from sda_core.method.memory_plan import free_memory
from sda_core.model import TrainedModel, device
from sda_core.stages.common import WEIGHTS, stream
from sda_core.system import HasContext, SystemSpec
from sda_core.training import TrainingPreview, arithmetic_rules, measure_training


def preview_training(experiment: Experiment, directory: str | Path) -> TrainingPreview:
    """Say what :func:`train` would take, from a few steps on random windows.

    Args:
        experiment: The experiment; its data set need not be there.
        directory: The run directory, in which nothing is written.

    Returns:
        Size and time of the whole training, on the device in use.

    Raises:
        ConfigError: The experiment has no kernel or schedule, or they do not fit the system.
    """
    run, config, data = Run(experiment, directory), experiment.train, experiment.data
    spec, sizes = experiment.system.spec, data.split_sizes
    with arithmetic_rules(config):
        denoiser = new_model(run, spec).denoiser
        counts = sizes["train"], sizes["valid"]
        return measure_training(denoiser, config, spec, counts, data.length, run.directory)


def check_window(experiment: Experiment) -> None:
    """Refuse windows that are longer than the trajectories."""
    window, length = experiment.model.window, experiment.data.length
    if window > length:
        raise ConfigError(
            f"model.window = {window}, but trajectories have {length} states (data.length): choose "
            "a shorter window, or simulate longer trajectories"
        )


def new_model(run: Run, spec: SystemSpec) -> TrainedModel:
    """The model that a run trains, with random weights, on the device in use.

    Args:
        run: The run.
        spec: What the states are.
    """
    check_memory(run, spec)
    with torch.random.fork_rng([device()] if device().type == "cuda" else []):
        torch.manual_seed(stream(run.train_seed, WEIGHTS))
        model = _create(run, spec)
    model.denoiser.to(device())
    return model


def _create(run: Run, spec: SystemSpec) -> TrainedModel:
    experiment, system = run.experiment, run.experiment.system
    return TrainedModel.create(
        experiment.require("kernel", "training"),
        experiment.require("schedule", "training"),
        experiment.model,
        spec,
        system.context() if isinstance(system, HasContext) else {},
    )


def check_memory(run: Run, spec: SystemSpec) -> None:
    """Refuse a model that cannot be trained here, before it is built.

    Raises:
        ConfigError: It does not fit the memory, or the system.
    """
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in _create(run, spec).denoiser.parameters())
    except SDAError:
        raise
    except Exception:  # noqa: BLE001 - a plugin's network may not be for this
        return
    needed = 4 * 4 * count  # float32: weights, gradients, and two moments of the optimizer
    free = free_memory(device())
    if needed > free:
        raise ConfigError(
            f"kernel: a network of {count:,} parameters takes {size_text(needed)} of memory to "
            f"train, but only {size_text(free)} are free: choose a smaller one, or a shorter window"
        )
