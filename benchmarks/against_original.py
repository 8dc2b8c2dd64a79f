"""Training and sampling speed beside the original SDA code, same network, in one run.

Needs a checkout of https://github.com/francois-rozet/sda and what it imports (zuko, tqdm):

    python benchmarks/against_original.py PATH_OF_THE_CHECKOUT

Training: steps per second of both training loops on the same data (819 trajectories of noisy
Lorenz-63, window 5, 5 x 256 residual MLP, batch 64). Sampling: seconds for 64 posterior members of
65 states in scenario LO, 256 steps, 0 and 1 Langevin corrections, with the same weights. The two
codes take turns, and the medians and the ratio of each turn are printed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile
import time
import types
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

from sda_core import load_experiment, simulate
from sda_core.data import TrajectoryStore, WindowDataset, split_path
from sda_core.experiment import Experiment, Run
from sda_core.model import TrainedModel
from sda_core.stages import make_problem
from sda_core.testing import draw
from sda_core.training import Trainer


def main(
    checkout: Annotated[Path, typer.Argument(help="Checkout of francois-rozet/sda.")],
    turns: Annotated[int, typer.Option(help="Turns of each code.")] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs trained in a turn.")] = 20,
) -> None:
    """Print the table."""
    score, utils = import_original(checkout)
    experiment = load_experiment("lorenz63-rozet2023", [f"train.epochs={epochs}"])
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        simulate(experiment, directory, progress=False)
        table = Table(title=f"medians of {turns} turns, {torch.get_num_threads()} threads")
        for column in ("", "original", "this project", "ratio (min to max)"):
            table.add_column(column, justify="right" if column else "left")
        ours, theirs = training(experiment, directory, score, utils)
        add(table, "training, steps/s", *take_turns(turns, theirs, ours), faster_is_more=True)
        for corrections in (0, 1):
            ours, theirs = sampling(experiment, directory, score, corrections)
            label = f"sampling, {corrections} corrections, s"
            add(table, label, *take_turns(turns, theirs, ours), faster_is_more=False)
    Console(width=110).print(table)


def import_original(checkout: Path) -> tuple[Any, Any]:
    """The original's modules ``sda.score`` and ``sda.utils``."""
    # It imports jax for Kolmogorov flow, which plays no part here.
    for name in ("jax", "jax.numpy", "jax.random"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(checkout))
    return importlib.import_module("sda.score"), importlib.import_module("sda.utils")


def add(
    table: Table, label: str, theirs: list[float], ours: list[float], *, faster_is_more: bool
) -> None:
    """Add a row, with how many times faster this project is."""
    ratios = [o / t if faster_is_more else t / o for t, o in zip(theirs, ours, strict=True)]
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    table.add_row(label, f"{median(theirs):.2f}", f"{median(ours):.2f}", spread)


def training(
    experiment: Experiment, directory: Path, score: Any, utils: Any
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Steps per second of both loops."""
    stores = {s: TrajectoryStore(split_path(directory / "data", s)) for s in ("train", "valid")}
    for split, store in stores.items():
        x = store.standardization.to_model(store.read(slice(None)))
        with h5py.File(directory / f"original-{split}.h5", "w") as file:
            file["x"] = x.numpy()
    window, batch_size = experiment.model.window, experiment.train.batch_size
    steps = -(-len(stores["train"]) // batch_size) * experiment.train.epochs

    def theirs() -> float:
        sde = score.VPSDE(original_network(score).kernel, shape=(3 * window,))
        data = [
            utils.TrajectoryDataset(directory / f"original-{s}.h5", window=window, flatten=True)
            for s in stores
        ]
        loop = utils.loop(sde, *data, epochs=experiment.train.epochs, batch_size=batch_size)
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            for _ in loop:
                pass
        return steps / (time.perf_counter() - started)

    def ours() -> float:
        # Validated after each epoch, as the original does.
        settings = attrs.evolve(experiment.train, validate_every=1)
        data = [WindowDataset(store, window) for store in stores.values()]
        trainer = Trainer(new_model(experiment, stores["train"]).denoiser, *data, settings, 0)
        started = time.perf_counter()
        for _ in trainer.epochs():
            pass
        return steps / (time.perf_counter() - started)

    return ours, theirs


def sampling(
    experiment: Experiment, directory: Path, score: Any, corrections: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Seconds for a posterior ensemble with both codes."""
    store = TrajectoryStore(split_path(directory / "data", "train"))
    problem = make_problem(Run(experiment, directory))
    model = new_model(experiment, store)
    members = 64
    original = original_network(score).eval()
    with torch.no_grad():
        pairs = zip(original.kernel.parameters(), model.denoiser.kernel.parameters(), strict=True)
        for p, q in pairs:
            p.copy_(q)
    sampler = attrs.evolve(experiment.sampler, corrections=corrections)
    tools = dict(model=model, sampler=sampler, guidance=experiment.guidance)

    def ours() -> float:
        started = time.perf_counter()
        draw(experiment.require("method", "sampling"), problem, members, 0, **tools)
        return time.perf_counter() - started

    def theirs() -> float:
        guided = score.GaussianScore(
            y=problem.y.float(),
            A=lambda x: x[..., ::8, :1],
            std=0.05,
            sde=score.VPSDE(original, shape=()),
            gamma=3e-2,
        )
        sde = score.VPSDE(guided, shape=(problem.length, 3))
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            sde.sample((members,), steps=256, corrections=corrections, tau=0.25)
        return time.perf_counter() - started

    return ours, theirs


def new_model(experiment: Experiment, store: TrajectoryStore) -> TrainedModel:
    """A model with random weights."""
    return TrainedModel.create(
        experiment.require("kernel", "training"),
        experiment.require("schedule", "training"),
        experiment.model,
        store.spec,
    )


def original_network(score: Any) -> Any:
    """The original's local score network, with the paper's settings."""
    return score.MCScoreNet(
        features=3,
        order=2,
        embedding=32,
        hidden_features=[256] * 5,
        activation=torch.nn.SiLU,
    )


if __name__ == "__main__":
    typer.run(main)
