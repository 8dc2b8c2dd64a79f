"""Where the time of a training goes: the parts of a step, and what diagnostics and hooks cost.

    python benchmarks/training.py

For the networks of `lorenz63-rozet2023` (residual MLP) and `kolmogorov-small` (U-Net), trained on
noise of the data's shape. The parts of a step are measured with torch's profiler, which itself
slows down small operations more than large ones. What diagnostics and hooks cost is told beside a
training without reports, in turns: with the defaults, and with everything, that is
`report_every = 10`, histograms, and a plugin that has every hook of a training.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import attrs
import torch
import typer
from _turns import take_turns
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from sda_core import load_experiment, train
from sda_core.config import unstructure
from sda_core.data import TrajectoryStore, WindowDataset, generate, split_path
from sda_core.experiment import Experiment, Run
from sda_core.model import device
from sda_core.plugins import default_manager, hookimpl
from sda_core.stages.new_model import new_model
from sda_core.system import System, SystemSpec
from sda_core.training import Trainer

PRESETS = ("lorenz63-rozet2023", "kolmogorov-small")
PARTS = ("network forward", "backward", "optimizer", "loss and noise", "data", "everything else")
NO_REPORTS = {"report_every": 10**9, "histograms": False}
WITH_REPORTS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "everything": {"report_every": 10, "histograms": True},
}
GPU = device().type == "cuda"


def main(
    turns: Annotated[int, typer.Option(help="Turns of each variant.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps in a turn; a tenth for the U-Net.")] = 400,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a value.")] = None,
) -> None:
    """Print the tables."""
    name = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    parts = Table("", *PRESETS, title=f"Milliseconds of a training step; {name}")
    costs = Table("reports", *PRESETS, title=f"Time beside no reports; medians of {turns} turns")
    default_manager().register(EveryHook, "every-hook")
    columns: list[tuple[dict[str, str], dict[str, str]]] = []
    for preset, count in zip(PRESETS, (steps, steps // 10), strict=True):
        with tempfile.TemporaryDirectory() as folder:
            run = prepare(preset, change or [], count, Path(folder))
            columns.append((time_of_parts(run), {w: cost(run, turns, w) for w in WITH_REPORTS}))
    for label in (*PARTS, "the whole step"):
        parts.add_row(label, *(column[0][label] for column in columns))
    for label in WITH_REPORTS:
        costs.add_row(label, *(column[1][label] for column in columns))
    for table in (parts, costs):
        Console(width=100).print(table)


@attrs.frozen
class Noise(System):
    """White noise with the states of another system."""

    spec: SystemSpec

    def prior(self, shape: Any, generator: Generator) -> Tensor:
        """States, each for itself."""
        x = torch.randn(*shape, *self.spec.state_shape, generator=generator)
        if self.spec.mean is None or self.spec.std is None:
            return x
        mean, std = (
            torch.tensor(v).reshape(-1, *[1] * len(self.spec.axes))
            for v in (self.spec.mean, self.spec.std)
        )
        return mean + std * x

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """States that know nothing of those before."""
        return self.prior(x.shape[: -1 - len(self.spec.axes)], generator)


def prepare(preset: str, change: list[str], steps: int, directory: Path) -> Run:
    """A run of a preset on noise, of about so many steps."""
    # Hardly any validation, so that steps are what is timed.
    fixed = ["data.burn_in=0", "data.length=32", "data.fractions=[0.98, 0.02, 0]"]
    experiment = load_experiment(preset, [*fixed, *change])
    windows = 0.98 * experiment.data.trajectories * experiment.train.windows_per_trajectory
    epochs = max(1, round(steps * experiment.train.batch_size / windows))
    experiment = attrs.evolve(experiment, train=attrs.evolve(experiment.train, epochs=epochs))
    system, config = experiment.system, unstructure(experiment.system)
    noise = Noise(system.spec)
    generate(noise, directory / "data", experiment.data, experiment.seed, system_config=config)
    return Run(experiment, directory)


def time_of_parts(run: Run) -> dict[str, str]:
    """Milliseconds of a step that each part takes, and its share."""
    store = TrajectoryStore(split_path(run.data, "train"))
    model, settings = new_model(run, store.spec), run.experiment.train
    windows = WindowDataset(store, model.config.window, device=device())
    trainer = Trainer(model.denoiser, windows, None, settings, run.train_seed)
    events = trainer.events()
    with closing(events), named_parts(trainer):
        for _ in range(trainer.steps_per_epoch):
            next(events)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            count = trainer.num_steps - trainer.step
            for _ in range(count):
                with part("the whole step"):
                    next(events)
    ms: dict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        name = "optimizer" if event.name.startswith("Optimizer.") else event.name
        ms[name] += event.cpu_time_total / 1000 / count
    ms["loss and noise"] -= ms["network forward"]  # which is within
    ms["everything else"] = ms["the whole step"] - sum(ms[name] for name in PARTS[:-1])
    whole = ms["the whole step"]
    return {name: f"{ms[name]:.2f} ({ms[name] / whole:.0%})" for name in (*PARTS, "the whole step")}


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name a part of the time for the profiler."""
    with record_function(name):
        yield
        if GPU:
            torch.cuda.synchronize()


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is a part of its own."""

    def inner(*args: Any, **kwargs: Any) -> Any:
        with part(name):
            return function(*args, **kwargs)

    return inner


@contextmanager
def named_parts(trainer: Trainer) -> Iterator[None]:
    """Name the parts of a trainer's steps, all but the optimizer, which names itself."""
    denoiser, backward = trainer.denoiser, Tensor.backward
    epoch, losses_at = trainer.train.epoch, denoiser.losses_at

    def batches(*args: Any, **kwargs: Any) -> Iterator[Tensor]:
        with closing(epoch(*args, **kwargs)) as items:
            ahead = named("data", lambda: next(items, None))
            while (batch := ahead()) is not None:
                yield batch

    def losses(x: Any, t: Any, eps: Any, weights: Any, network: Any) -> Any:
        return losses_at(x, t, eps, weights, named("network forward", network))

    trainer.train.epoch = batches  # type: ignore[method-assign, assignment]
    denoiser.losses_at = named("loss and noise", losses)  # type: ignore[method-assign]
    denoiser.draw = named("loss and noise", denoiser.draw)  # type: ignore[method-assign]
    Tensor.backward = named("backward", backward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]


class EveryHook:
    """A plugin with every hook of a training; it notes how long the training takes."""

    sda_interface = 1
    active = False
    started = seconds = 0.0

    @hookimpl
    @staticmethod
    def sda_run_started() -> None:
        """Start the clock."""
        EveryHook.started = time.perf_counter()

    @hookimpl
    @staticmethod
    def sda_epoch_ended(metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    @hookimpl
    @staticmethod
    def sda_metrics_logged(step: int, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    @hookimpl
    @staticmethod
    def sda_stop_training(metrics: Mapping[str, float]) -> None:
        """Go on."""

    @hookimpl
    @staticmethod
    def sda_checkpoint_written(path: Path) -> None:
        """Do nothing."""

    @hookimpl
    @staticmethod
    def sda_diagnostics(stage: str, context: Mapping[str, Any]) -> dict[str, float]:
        """Add a number to each report."""
        return {"one": 1.0} if EveryHook.active else {}

    @hookimpl
    @staticmethod
    def sda_run_finished() -> None:
        """Read the clock."""
        EveryHook.seconds = time.perf_counter() - EveryHook.started


def cost(run: Run, turns: int, label: str) -> str:
    """What reports add to the time of a training, in percent."""

    def seconds(hooks: bool, settings: Mapping[str, Any]) -> float:
        for folder in ("checkpoints", "model"):
            shutil.rmtree(run.directory / folder, ignore_errors=True)
        (run.directory / "metrics.jsonl").unlink(missing_ok=True)
        EveryHook.active = hooks
        train(with_settings(run.experiment, settings), run.directory, progress=False)
        return EveryHook.seconds

    without, with_reports = take_turns(
        turns,
        lambda: seconds(False, NO_REPORTS),
        lambda: seconds(label == "everything", WITH_REPORTS[label]),
    )
    more = [100 * (b / a - 1) for a, b in zip(without, with_reports, strict=True)]
    return f"{median(more):+.1f} % ({min(more):+.1f} to {max(more):+.1f})"


def with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """An experiment with some settings of the training changed."""
    return attrs.evolve(experiment, train=attrs.evolve(experiment.train, **settings))


if __name__ == "__main__":
    typer.run(main)
