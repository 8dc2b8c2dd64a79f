"""Posterior of Kolmogorov flow beside spline interpolation, in three observation scenarios.

Prints means over observation sets, one test trajectory each. The scenarios:

- coarse: velocities averaged over 4 x 4 points at every 4th state, error 0.1;
- sensors: velocities at 2 % of the points, drawn at random, at every state, error 0.1;
- saturation: w / (1 + |w|) of the vorticity w at 16 x 16 at every 3rd state, error 0.05,
  sampled in four times as many steps with gamma = 0.03.

    sda run kolmogorov-small
    python benchmarks/kolmogorov_small.py runs/kolmogorov-small
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from sda_core import load_experiment
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Run
from sda_core.method import Interpolation
from sda_core.model import TrainedModel
from sda_core.stages import make_problem
from sda_core.testing import draw
from sda_kolmogorov.scores import kolmogorov_scores

SCENARIOS = {
    "coarse": ['observation={name="coarsen", factor=4, every=4, std=0.1}'],
    "sensors": ['observation={name="sensors", fraction=0.02, std=0.1}'],
    "saturation": [
        'observation={name="compose", std=0.05, parts=[{name="coarsen", factor=2, every=3}, '
        '{name="saturation"}]}',
        "sampler.steps=256",
        "guidance.gamma=0.03",
    ],
}
COLUMNS = {
    "residual_std": "residual std / std",
    "rmse": "RMSE velocity",
    "rmse_vorticity": "RMSE vorticity",
    "spread_skill": "spread / RMSE",
    "coverage_90": "90 % coverage",
    "crps": "CRPS",
    "spectrum_error": "spectrum",
    "divergence_rms": "divergence",
}


def main(
    directory: Annotated[Path, typer.Argument(help="A trained run directory.")],
    sets: Annotated[int, typer.Option(help="Observation sets, one test trajectory each.")] = 3,
    members: Annotated[int, typer.Option(help="Members of each ensemble.")] = 20,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a value.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="All if not given.")] = None,
    first: Annotated[int, typer.Option(help="Number of the first test trajectory.")] = 0,
) -> None:
    """Print the table."""
    table = Table(title=f"{directory.name}: {sets} observation sets, {members} members")
    for column in ("scenario", "ensemble", *COLUMNS.values(), "seconds"):
        table.add_column(column, justify="left" if column in ("scenario", "ensemble") else "right")
    for label in scenario or SCENARIOS:
        rows: dict[str, list[list[float]]] = {"posterior": [], "interpolation": []}
        for number in range(first, first + sets):
            experiment = load_experiment(
                directory,
                [*SCENARIOS[label], f"assimilate.trajectory={number}", *(change or [])],
            )
            problem = make_problem(Run(experiment, directory))
            tools = dict(
                model=TrainedModel.load(directory / "model", config=experiment.model),
                sampler=experiment.sampler,
                guidance=experiment.guidance,
            )
            methods = {
                "posterior": experiment.require("method", "this"),
                "interpolation": Interpolation(),
            }
            for name, method in methods.items():
                started = time.perf_counter()
                ensemble = draw(method, problem, members, 1_000 + number, **tools)
                seconds = time.perf_counter() - started
                scores = evaluate_ensemble(problem, ensemble) | kolmogorov_scores(problem, ensemble)
                rows[name].append([*(scores.get(c, np.nan) for c in COLUMNS), seconds])
                values = ", ".join(f"{v:.4g}" for v in rows[name][-1])
                print(f"{label} {number} {name}: {values}", flush=True)
        for name, values_of in rows.items():
            means = [f"{m:.3g}" if np.isfinite(m) else "" for m in np.mean(values_of, axis=0)]
            table.add_row(label, name, *means)
    Console(width=150).print(table)


if __name__ == "__main__":
    typer.run(main)
