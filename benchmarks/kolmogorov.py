"""Kolmogorov flow at the size of the paper beside the original SDA code, in one run.

Needs a checkout of https://github.com/francois-rozet/sda and what it imports (zuko, tqdm):

    python benchmarks/kolmogorov.py PATH_OF_THE_CHECKOUT

Prints, for the device at hand (a GPU if torch has one, else the CPU):

- simulation at 256 x 256: seconds per trajectory of 128 states, 64 of them kept;
- training of the paper's U-Net (22.9 M parameters, window 5, 64 x 64): seconds per step at equal
  batch size, and what that makes for all 106,496 steps;
- a posterior of 32 states in 256 steps with one correction: seconds, and memory.

The two codes take turns, and medians and the ratio of each turn are printed. On a CPU everything is
cut short and scaled: the columns say from what.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import attrs
import h5py
import torch
import typer
from _turns import take_turns
from rich.console import Console
from rich.table import Table
from torch.utils.data import ConcatDataset

from sda_core import load_experiment, simulate
from sda_core.data import TrajectoryStore, WindowDataset, split_path
from sda_core.experiment import Experiment, Run
from sda_core.model import TrainedModel, device
from sda_core.random import seeded_generator
from sda_core.stages import make_problem
from sda_core.system import HasContext
from sda_core.testing import draw
from sda_core.training import Trainer

#: The paper's: states simulated for a trajectory, steps of the training, steps of a posterior.
STATES, TRAINING_STEPS, SAMPLING_STEPS = 128, 106_496, 256
GPU = device().type == "cuda"


def main(
    checkout: Annotated[Path, typer.Argument(help="Checkout of francois-rozet/sda.")],
    turns: Annotated[int, typer.Option(help="Turns of each code.")] = 3,
    states: Annotated[int, typer.Option(help="Simulated states that are timed.")] = (
        STATES if GPU else 2
    ),
    members: Annotated[int, typer.Option(help="Trajectories simulated at once.")] = (
        16 if GPU else 4
    ),
    batch_size: Annotated[int, typer.Option(help="Windows in a training step.")] = (
        32 if GPU else 4
    ),
    steps: Annotated[int, typer.Option(help="Training steps in a turn.")] = 100 if GPU else 4,
    sampling_steps: Annotated[int, typer.Option(help="Steps of the posterior that are timed.")] = (
        SAMPLING_STEPS if GPU else 2
    ),
    data_set: Annotated[bool, typer.Option(help="Simulate all 1024 trajectories.")] = GPU,
) -> None:
    """Print the table."""
    sys.path.insert(0, str(checkout))
    import sda_kolmogorov.jax_compat  # noqa: F401  (the original needs it as well)

    score, mcs, utils = (
        importlib.import_module(f"sda.{name}") for name in ("score", "mcs", "utils")
    )
    name = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"{name}; medians of {turns} turns")
    for column in ("", "original", "this project", "ratio (min to max)", "timed"):
        table.add_column(column, justify="left" if column in ("", "timed") else "right")

    theirs, ours = simulation(mcs, members, states)
    label = f"simulation 256 x 256, s per trajectory of {STATES}"
    add(table, label, *take_turns(turns, theirs, ours), f"{states} states, {members} at once")

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        experiment = load_experiment(
            "kolmogorov-rozet2023",
            [
                "system.coarsening=1",  # what is simulated makes no difference here
                "data.trajectories=2",
                "data.fractions=[0.5, 0, 0.5]",
                "data.length=32",
                "data.burn_in=0",
                f"train.batch_size={batch_size}",
                f"train.windows_per_trajectory={steps * batch_size}",
                "train.epochs=1",
            ],
        )
        simulate(experiment, directory, progress=False)
        store = TrajectoryStore(split_path(directory / "data", "train"))
        original = original_training(score, utils, store, directory, batch_size, steps)
        variants = {"float32": {"precision": "float32", "compile": False}}
        variants["bfloat16"] = {"precision": "bfloat16", "compile": False}
        variants["bfloat16, compiled"] = {"precision": "bfloat16", "compile": True}
        for variant, changes in variants.items():
            train = attrs.evolve(experiment.train, **changes)
            measured = take_turns(turns, original, training(experiment, store, train))
            memory = f"{peak_memory() / 2**30:.2f}" if GPU else ""
            timed = f"{steps} steps of batch {batch_size}"
            add(table, f"training, {variant}, s per step", *measured, timed)
            hours = [TRAINING_STEPS * median(column) / 3600 for column in measured]
            table.add_row(
                f"  {TRAINING_STEPS:,} of these, hours", f"{hours[0]:.2f}", f"{hours[1]:.2f}"
            )
            if memory:
                table.add_row("  peak memory, GiB", "", memory)
        seconds, plan = posterior(experiment, directory, store, sampling_steps)
        members = experiment.assimilate.members if GPU else 1
        table.add_row(
            f"posterior of 32 states, {SAMPLING_STEPS} steps, s for {members} member(s)",
            "",
            f"{seconds:.1f}",
            "",
            f"{sampling_steps} steps",
        )
        if GPU:
            table.add_row("  peak memory, GiB", "", f"{peak_memory() / 2**30:.2f}")
    if data_set:
        table.add_row("1024 trajectories, minutes", "", f"{whole_data_set() / 60:.1f}")
    Console(width=130).print(table)
    Console(width=130).print(plan)


def add(table: Table, label: str, theirs: list[float], ours: list[float], timed: str) -> None:
    """Add a row of seconds, with how many times faster this project is."""
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    table.add_row(label, f"{median(theirs):.3g}", f"{median(ours):.3g}", spread, timed)


def clock() -> float:
    """Seconds, with all work on the device done."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> int:
    """Most bytes of the GPU that were in use since the last reset."""
    return torch.cuda.max_memory_allocated()


def simulation(
    mcs: Any, members: int, states: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Seconds per trajectory of both codes, scaled from the states that are timed."""
    system = load_experiment("kolmogorov-rozet2023").system
    chain = mcs.KolmogorovFlow(size=256, dt=system.spec.time_step)
    x = system.prior((members,), seeded_generator(0))
    original = chain.prior((members,))

    def theirs() -> float:
        # One trajectory after another, as its script makes them.
        started = clock()
        for member in original[:1]:
            chain.trajectory(member, length=states)
        return (clock() - started) * STATES / states

    def ours() -> float:
        started = clock()
        system.trajectory(x, states, 0, seeded_generator(0))
        return (clock() - started) / members * STATES / states

    return theirs, ours


def original_training(
    score: Any, utils: Any, store: TrajectoryStore, directory: Path, batch_size: int, steps: int
) -> Callable[[], float]:
    """Seconds per training step of the original's loop, with the paper's U-Net."""
    with h5py.File(directory / "original.h5", "w") as file:
        file["x"] = store.standardization.to_model(store.read(slice(None))).numpy()

    class LocalScoreUNet(score.ScoreUNet):  # type: ignore[misc, name-defined]
        """The U-Net with the forcing as its context, as in the original's experiment."""

        def __init__(self) -> None:
            super().__init__(
                channels=10,
                context=1,
                embedding=64,
                hidden_channels=(96, 192, 384),
                hidden_blocks=(3, 3, 3),
                kernel_size=3,
                activation=torch.nn.SiLU,
                spatial=2,
                padding_mode="circular",
            )
            y = 2 * torch.pi / 64 * (torch.arange(64) + 0.5)
            self.register_buffer("forcing", torch.sin(4 * y).expand(1, 64, 64).clone())

        def forward(self, x: torch.Tensor, t: torch.Tensor, c: Any = None) -> torch.Tensor:
            return super().forward(x, t, self.forcing)

    sde = score.VPSDE(LocalScoreUNet(), shape=(10, 64, 64)).to(device())
    one = utils.TrajectoryDataset(directory / "original.h5", window=5, flatten=True)
    data = ConcatDataset([one] * (steps * batch_size)), one

    def theirs() -> float:
        loop = utils.loop(sde, *data, epochs=2, batch_size=batch_size, device=device().type)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            next(loop)  # starts its processes that read the data
            started = clock()
            next(loop)
            seconds = clock() - started
            loop.close()
        return seconds / steps

    return theirs


def new_model(experiment: Experiment, store: TrajectoryStore) -> TrainedModel:
    """A model with random weights."""
    assert isinstance(experiment.system, HasContext)
    model = TrainedModel.create(
        experiment.require("kernel", "training"),
        experiment.require("schedule", "training"),
        experiment.model,
        store.spec,
        experiment.system.context(),
    )
    model.denoiser.to(device())
    return model


def training(experiment: Experiment, store: TrajectoryStore, train: Any) -> Callable[[], float]:
    """Seconds per training step of this project."""
    model = new_model(experiment, store)
    windows = WindowDataset(store, experiment.model.window, device=device())

    def ours() -> float:
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(model.denoiser, windows, None, train, 0)
        started = clock()
        for _ in trainer.epochs():
            pass
        return (clock() - started) / trainer.num_steps

    return ours


def posterior(
    experiment: Experiment, directory: Path, store: TrajectoryStore, steps: int
) -> tuple[float, str]:
    """Seconds for the preset's members, or one on a CPU, scaled, and the memory plan."""
    problem = make_problem(Run(experiment, directory))
    said: list[str] = []
    tools = dict(
        model=new_model(experiment, store),
        sampler=attrs.evolve(experiment.sampler, steps=steps),
        guidance=experiment.guidance,
        announce=said.append,
    )
    method = experiment.require("method", "sampling")
    members = experiment.assimilate.members if GPU else 1
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    started = clock()
    draw(method, problem, members, 0, **tools)
    return (clock() - started) * SAMPLING_STEPS / steps, "\n".join(said)


def whole_data_set() -> float:
    """Seconds for the paper's 1024 trajectories, with files."""
    with tempfile.TemporaryDirectory() as folder:
        started = clock()
        simulate(load_experiment("kolmogorov-rozet2023"), folder, progress=False)
        return clock() - started


if __name__ == "__main__":
    typer.run(main)
