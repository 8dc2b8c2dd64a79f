"""Accuracy of the posterior for the time it takes, beside the original SDA code, in one run.

Needs a checkout of https://github.com/francois-rozet/sda, what it imports (zuko, tqdm), and the
weights that its training of the Lorenz experiment (local score, k = 2) wrote:

    python benchmarks/accuracy_for_time.py CHECKOUT state.pth RUN

Both infer the same observations in scenario LO, with as many members, and are scored by the
Wasserstein-1 distance to the same particle filter, whose own (two runs of it) is the floor. The
original takes 256 steps with 0, 1 and 4 Langevin corrections; this project the model in RUN (a run
directory, or a preset with a pretrained model) with its sampler at several numbers of steps.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import attrs
import numpy as np
import torch
import typer
from against_original import import_original, original_network
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sda_core import load_experiment, simulate
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Experiment, Run
from sda_core.method import ParticleFilter, Problem
from sda_core.stages import make_problem
from sda_core.stages.common import load_model
from sda_core.testing import draw

LO = ["observation.every=8", "observation.std=0.05"]


def main(
    checkout: Annotated[Path, typer.Argument(help="Checkout of francois-rozet/sda.")],
    weights: Annotated[Path, typer.Argument(help="state.pth of its Lorenz training.")],
    source: Annotated[str, typer.Argument(help="Run directory or preset of this project.")],
    members: Annotated[int, typer.Option(help="Members of each ensemble.")] = 256,
    sets: Annotated[int, typer.Option(help="Observation sets.")] = 2,
    steps: Annotated[str, typer.Option(help="Numbers of steps of this project.")] = "16,32,64",
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a value.")] = None,
    corrections: Annotated[str, typer.Option(help="Corrections of the original.")] = "0,1,4",
) -> None:
    """Print the table."""
    score, _ = import_original(checkout)
    network = original_network(score)
    network.load_state_dict(torch.load(weights, weights_only=True))
    rows: dict[str, list[tuple[float, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(sets):
            experiment = load_experiment(
                source, [*LO, *(change or []), f"assimilate.trajectory={number}"]
            )
            run = Run(experiment, source if Path(source).is_dir() else folder)
            if not run.data.is_dir():
                simulate(experiment, folder, progress=False)
            problem = make_problem(run)
            reference, again = (ParticleFilter().draw(problem, members, seed) for seed in (1, 2))
            rows.setdefault("particle filter", []).append(
                (float("nan"), evaluate_ensemble(problem, again, reference))
            )
            ways: dict[str, Callable[[], Tensor]] = {}
            for c in corrections.split(","):
                ways[f"original, {c} corrections"] = theirs(
                    score, network, problem, members, int(c)
                )
            for n in steps.split(","):
                ways[f"this project, {n} steps"] = ours(run, experiment, problem, members, int(n))
            for label, way in ways.items():
                started = time.perf_counter()
                x = way()
                elapsed = time.perf_counter() - started
                rows.setdefault(label, []).append(
                    (elapsed, evaluate_ensemble(problem, x, reference))
                )
                print(f"set {number}, {label}: {elapsed:.1f} s", flush=True)
    threads = torch.get_num_threads()
    table = Table(title=f"LO, {sets} sets, {members} members, {threads} threads; means over sets")
    for column in ("", "seconds", "W1 to filter", "E log p(x)", "E log p(y|x)", "90 % coverage"):
        table.add_column(column, justify="right" if column else "left")
    for label, values in rows.items():
        keys = ("wasserstein1", "log_prior", "log_likelihood", "coverage_90")
        numbers = [np.mean([s for s, _ in values])]
        numbers += [np.mean([scores[key] for _, scores in values]) for key in keys]
        cells = [f"{v:.{d}f}" for v, d in zip(numbers, (1, 2, 1, 1, 2), strict=True)]
        table.add_row(label, "" if np.isnan(numbers[0]) else cells[0], *cells[1:])
    Console(width=110).print(table)


def ours(
    run: Run, experiment: Experiment, problem: Problem, members: int, steps: int
) -> Callable[[], Tensor]:
    """This project's ensemble."""
    method = experiment.require("method", "this")
    tools = dict(
        model=load_model(run),
        sampler=attrs.evolve(experiment.require("sampler", "this"), steps=steps),
        guidance=experiment.guidance,
    )
    return lambda: draw(method, problem, members, 0, **tools)


def theirs(
    score: Any, network: Any, problem: Problem, members: int, corrections: int
) -> Callable[[], Tensor]:
    """The original's ensemble, in physical units."""
    spec = problem.system.spec
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)

    def sample() -> Tensor:
        guided = score.GaussianScore(
            y=problem.y.float(),
            A=lambda x: x[..., ::8, :1],
            std=0.05,
            sde=score.VPSDE(network.eval(), shape=()),
            gamma=3e-2,
        )
        sde = score.VPSDE(guided, shape=(problem.length, 3))
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            x = sde.sample((members,), steps=256, corrections=corrections, tau=0.25)
        return torch.as_tensor(mean + std * x)

    return sample


if __name__ == "__main__":
    typer.run(main)
