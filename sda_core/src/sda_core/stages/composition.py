"""How well a trained model's windows compose, and what stride to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from sda_core.data import TrajectoryStore, split_path
from sda_core.denoiser import FoldName, MarkovBlanketDenoiser
from sda_core.denoiser.composition_error import (
    CompositionError,
    Estimate,
    composition_error,
    noise_levels,
)
from sda_core.errors import DataError
from sda_core.experiment import Experiment, Run
from sda_core.io.files import write_json
from sda_core.io.progress import ProgressOption, reporting
from sda_core.method.memory_plan import plan_memory
from sda_core.model import device
from sda_core.stages.common import COMPOSITION, check_simulated, load_model, stream

FOLDS: tuple[FoldName, ...] = get_args(FoldName)


def composition(
    experiment: Experiment,
    directory: str | Path,
    *,
    trajectories: int = 64,
    length: int | None = None,
    levels: int = 8,
    tolerance: float = 0.01,
    progress: ProgressOption = True,
) -> CompositionError:
    """Measure the composition error of a trained model on held-out trajectories.

    Args:
        experiment: The experiment; its kernel must have been trained.
        directory: The run directory.
        trajectories: Number of trajectories of the test split, or as many as there are.
        length: States of each that are used; 3 W - 2 if not given, or as many as there are.
        levels: Number of noise levels.
        tolerance: Excess error at which a stride is still recommended.
        progress: What to show.

    Returns:
        The errors, also written to ``composition.json``, with ``figures/composition.png``.

    Raises:
        DataError: The test split has fewer than two trajectories, or they are too short.
        CheckpointError: There is no trained model.
    """
    from sda_core import figures  # matplotlib takes a while to import
    from sda_core.figures.composition import composition_figure

    run = Run(experiment, directory, progress=progress)
    model = load_model(run)
    check_simulated(run)
    window = model.config.window
    store = TrajectoryStore(split_path(run.data, "test"))
    x = model.standardization.to_model(
        store.read(slice(trajectories), slice(length or 3 * window - 2))
    )
    if len(x) < 2 or x.shape[1] < 2 * window - 1:
        raise DataError(
            f"{len(x)} trajectories of {x.shape[1]} states are there to be used of {store.path}, "
            f"and a model with a window of {window} needs two or more of at least {2 * window - 1}:"
            " ask for more (--trajectories, --length), or simulate more (data.trajectories, "
            "data.length)"
        )
    x = x.to(device())
    composed = model.trajectory_denoiser()
    chunked = MarkovBlanketDenoiser(
        composed.denoiser, composed.window, chunk_size=composed.chunk_size
    )
    plan = plan_memory(
        chunked,
        (1, *x.shape[1:]),
        lambda prior: prior(x[:1], x.new_tensor(0.5)),
        device=device(),
        gradients=False,
    )
    times = noise_levels(model.schedule, levels)
    with reporting(progress, "composition error", len(x) * levels) as report:
        error = composition_error(
            composed.denoiser,
            window,
            x,
            times,
            stream(experiment.seed, COMPOSITION),
            chunk_size=plan.chunk_size,
            on_step=lambda done, total: report(done),
        )
    found = {"length": x.shape[1], **_as_dict(error, tolerance)}
    write_json(run.directory / "composition.json", found)
    figures.Picture(
        name="composition",
        caption="What composing windows costs.",
        figure=composition_figure(error, tolerance),
    ).save(run.directory / "figures")
    return error


def _as_dict(error: CompositionError, tolerance: float) -> dict[str, Any]:
    return {
        "window": error.window,
        "trajectories": len(error.products),
        "times": error.times.tolist(),
        "noise": error.noise.tolist(),
        "full_width_error": _numbers(error.full),
        "excess_by_blanket": [
            {"blanket": b, **_numbers(error.excess_at(b))} for b in range((error.window + 1) // 2)
        ],
        "compositions": [
            {
                "stride": stride,
                "fold": fold,
                "evaluations_per_state": 1 / stride,
                "excess": _numbers(error.excess(stride, fold)),
                "difference": _numbers(error.difference(stride, fold)),
            }
            for fold in FOLDS
            for stride in range(1, error.window + 1)
        ],
        "tolerance": tolerance,
        "recommended_stride": {f: error.recommended_stride(tolerance, f) for f in FOLDS},
    }


def _numbers(estimate: Estimate) -> dict[str, list[float]]:
    return {"value": estimate.value.tolist(), "std_error": estimate.std_error.tolist()}
