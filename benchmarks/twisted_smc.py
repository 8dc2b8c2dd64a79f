"""Twisted SMC on noisy Lorenz-63 (LO), beside the same guidance without it.

Both take as many evaluations of the network: M members from P particles in n steps, and M members
in n P / M ancestral steps. Prints, as means over observation sets, effective sample sizes and the
number of the first particles that the last descend from, E log p(x), E log p(y|x) and the
Wasserstein-1 distance to a particle filter, beside those of a second, independent run of the
filter. Exact values: E log p(x) = +81.7, E log p(y|x) = +14.19.

    python benchmarks/twisted_smc.py runs/lorenz63-quick --sets 2 --particles 256 --members 64
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sda_core import load_experiment
from sda_core.config import structure
from sda_core.errors import AssimilationError, AssimilationWarning
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Run
from sda_core.guidance import Guidance
from sda_core.method import SDA, Method, ParticleFilter, Problem
from sda_core.model import TrainedModel
from sda_core.sampler import DDPM
from sda_core.stages import make_problem
from sda_core.testing import draw

GUIDANCES = (
    {"name": "gaussian", "gamma": 0.03},
    {"name": "gaussian", "gamma": 1.0},
    {"name": "dps", "zeta": 1.0},
    {"name": "mmps"},
)
SCORES = ("log_prior", "log_prior_median", "log_likelihood", "wasserstein1")


def row(
    method: Method, problem: Problem, members: int, seed: int, tools: dict[str, Any], reference: Any
) -> tuple[list[float], dict[str, Any]]:
    """Scores of a method, and what it records."""
    recorded: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssimilationWarning)
        given = {**tools, "record": recorded.update}
        try:
            x = draw(method, problem, members, seed, **given)
        except AssimilationError:
            return [np.nan] * len(SCORES), recorded
    scores = evaluate_ensemble(problem, x, reference)
    return [scores[name] for name in SCORES], recorded


def main(
    directory: Annotated[Path, typer.Argument(help="A trained run directory, lorenz63-quick.")],
    sets: Annotated[int, typer.Option(help="Observation sets, one test trajectory each.")] = 2,
    first: Annotated[int, typer.Option(help="Number of the first test trajectory.")] = 0,
    members: Annotated[int, typer.Option(help="Members M of each ensemble.")] = 64,
    particles: Annotated[int, typer.Option(help="Particles P, a multiple of M.")] = 256,
    steps: Annotated[int, typer.Option(help="Steps n of the particles.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help="Guidances, by name.")] = None,
) -> None:
    """Print the table."""
    from sda_dps.twisted_smc import TwistedSMC

    guidances = [table for table in GUIDANCES if not only or table["name"] in only]
    rows: dict[tuple[str, str], list[list[float]]] = {}
    sizes: dict[tuple[str, str], list[list[float]]] = {}
    for number in range(first, first + sets):
        experiment = load_experiment(directory, [f"assimilate.trajectory={number}"])
        problem = make_problem(Run(experiment, directory))
        filter_ = ParticleFilter()
        reference = filter_.draw(problem, members, 2_000 + number)
        again = filter_.draw(problem, members, 3_000 + number)
        scores = evaluate_ensemble(problem, again, reference)
        rows.setdefault(("particle filter", ""), []).append([scores[name] for name in SCORES])
        model = TrainedModel.load(directory / "model", config=experiment.model)
        for table in guidances:
            label = ", ".join(str(value) for value in table.values())
            for name, method, n in (
                ("uncorrected", SDA(), steps * particles // members),
                ("corrected", TwistedSMC(particles=particles), steps),
            ):
                tools = dict(
                    model=model,
                    sampler=DDPM(steps=n, grid="rho"),
                    guidance=structure(Guidance, table),
                )
                values, recorded = row(method, problem, members, 1_000 + number, tools, reference)
                rows.setdefault((label, name), []).append(values)
                if recorded:
                    kept = [float(recorded[k]) for k in ("ess_min", "ess_final", "ancestors")]
                    sizes.setdefault((label, name), []).append(kept)
                    print([round(size, 1) for size in recorded["ess"]], flush=True)
                print(number, label, name, np.round(values, 2), flush=True)
    print(f"\n{sets} observation sets, {members} members, {particles} particles, {steps} steps\n")
    print("| guidance | | least ESS | final ESS | ancestors | E log p(x) | median | ", end="")
    print("E log p(y\\|x) | W1 |\n" + "| --- " * 9 + "|")
    for (label, name), values in rows.items():
        found = sizes.get((label, name))
        ess = [f"{v:.0f}" for v in np.mean(found, 0)] if found else [""] * 3
        cells = [f"{v:.1f}" for v in np.mean(values, 0)]
        print("| " + " | ".join((label, name, *ess, *cells)) + " |")


if __name__ == "__main__":
    typer.run(main)
