r"""Posterior of noisy Lorenz-63 against the particle filter, over several observation sets.

Prints the mean over observation sets of E log p(x), E log p(y|x) and the Wasserstein-1 distance to
a particle filter, for the paper's scenarios LO and HI, beside those of a second, independent run of
the filter. Exact values: E log p(x) = +81.7, E log p(y|x) = +14.19 (LO) and -2.12 (HI).

    python benchmarks/lorenz63.py runs/lorenz63-quick --sets 8 --members 128

The model that comes with sda-lorenz, on new trajectories:

    python benchmarks/lorenz63.py lorenz63-pretrained --sets 16 --members 256 \
        --set data.trajectories=160
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from sda_core import load_experiment, simulate
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Run
from sda_core.method import ParticleFilter
from sda_core.stages import make_problem
from sda_core.stages.common import load_model
from sda_core.testing import draw

SCENARIOS = {
    "LO": ["observation.every=8", "observation.std=0.05"],
    "HI": ["observation.every=1", "observation.std=0.25"],
}
COLUMNS = ("log_prior", "log_prior_median", "log_likelihood", "wasserstein1", "coverage_90")


def main(
    source: Annotated[str, typer.Argument(help="A trained run directory, or a pretrained preset.")],
    sets: Annotated[int, typer.Option(help="Observation sets, one test trajectory each.")] = 8,
    members: Annotated[int, typer.Option(help="Members of each ensemble.")] = 128,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a value.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="LO or HI; both if not given.")] = None,
    first: Annotated[int, typer.Option(help="Number of the first test trajectory.")] = 0,
) -> None:
    """Print the table."""
    directory = Path(source) if Path(source).is_dir() else Path("runs") / source
    table = Table(title=f"{directory.name}: {sets} observation sets, {members} members")
    for column in (
        "scenario",
        "ensemble",
        "E log p(x)",
        "median",
        "E log p(y|x)",
        "W1 to filter",
        "90 % coverage",
        "seconds",
    ):
        table.add_column(column, justify="left" if column in ("scenario", "ensemble") else "right")
    for label in scenario or SCENARIOS:
        overrides = SCENARIOS[label]
        rows: dict[str, list[list[float]]] = {"posterior": [], "filter": []}
        for number in range(first, first + sets):
            experiment = load_experiment(
                source, [*overrides, f"assimilate.trajectory={number}", *(change or [])]
            )
            run = Run(experiment, directory)
            if experiment.model.pretrained is not None and not run.is_done("simulate"):
                simulate(experiment, directory)
            problem = make_problem(run)
            tools = dict(
                model=load_model(run),
                sampler=experiment.sampler,
                guidance=experiment.guidance,
            )
            started = time.perf_counter()
            posterior = draw(
                experiment.require("method", "this"), problem, members, 1_000 + number, **tools
            )
            seconds = time.perf_counter() - started
            particles = ParticleFilter()
            started = time.perf_counter()
            reference = draw(particles, problem, members, 2_000 + number, **tools)
            filter_seconds = time.perf_counter() - started
            again = draw(particles, problem, members, 3_000 + number, **tools)
            for name, ensemble, elapsed in (
                ("posterior", posterior, seconds),
                ("filter", again, filter_seconds),
            ):
                scores = evaluate_ensemble(problem, ensemble, reference)
                rows[name].append([*(scores[c] for c in COLUMNS), elapsed])
            values = ", ".join(f"{v:.4g}" for v in rows["posterior"][-1])
            print(f"{label} {number}: {values}", flush=True)
        for name, values_of in rows.items():
            mean = np.mean(values_of, axis=0)
            error = np.std(values_of, axis=0, ddof=1) / len(values_of) ** 0.5
            cells = [f"{m:.3g} ± {e:.2g}" for m, e in zip(mean[:4], error[:4], strict=True)]
            table.add_row(label, name, *cells, f"{mean[4]:.2f}", f"{mean[5]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
