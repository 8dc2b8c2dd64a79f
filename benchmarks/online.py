"""Forecast and online assimilation of noisy Lorenz-63, beside the system itself and a filter.

``forecast`` prints CRPS and energy score by lead time of forecasts from known states, beside those
of the system's own transitions from the same states. ``filter`` assimilates the paper's LO
observations (x of every 8th state, error 0.05 in standardized units) one by one, and prints how
good the ensemble is at the newest time, right after an observation, beside a particle filter that
is given the same observations. All in standardized units.

    python benchmarks/online.py forecast runs/lorenz63-quick/model
    python benchmarks/online.py filter runs/lorenz63-quick/model --updates 200
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sda_core.config import structure
from sda_core.evaluation.metrics import coverage, crps, rmse, spread
from sda_core.guidance import Guidance
from sda_core.method import OnlineAssimilator, forecast
from sda_core.model import TrainedModel
from sda_core.observation import Select
from sda_core.random import seeded_generator
from sda_core.sampler import DDPM, PredictorCorrector, Sampler
from sda_core.system import System, trajectory

app = typer.Typer(add_completion=False)
STEP = 8
LEADS = (1, 2, 4, 8, 16, 32, 64)
Model = Annotated[Path, typer.Argument(help="Directory of a model of noisy Lorenz-63.")]

CORRECTED = PredictorCorrector(
    steps=64, grid="rho", denoise_final=True, eta=1.0, corrections=1, tau=0.25
)
#: Name; known states a piece begins with; sampler; guidance.
FORECASTS: dict[str, tuple[int, Sampler, dict[str, Any]]] = {
    "C = 1, mmps, ancestral-64": (1, DDPM(steps=64, grid="rho"), {"name": "mmps"}),
    "C = 1, gaussian, ancestral-64": (1, DDPM(steps=64, grid="rho"), {"name": "gaussian"}),
    "C = 1, gaussian, one correction-64": (1, CORRECTED, {"name": "gaussian"}),
    "C = 2, gaussian, one correction-64": (2, CORRECTED, {"name": "gaussian"}),
    "C = 4, gaussian, one correction-64": (4, CORRECTED, {"name": "gaussian"}),
}
ANCESTRAL_64, ANCESTRAL_32 = DDPM(steps=64, grid="rho"), DDPM(steps=32, grid="rho")
COARSE = DDPM(steps=16, grid="rho")
FILTERS: dict[str, dict[str, Any]] = {
    "cold, ancestral-64": {"sampler": ANCESTRAL_64, "start_level": None},
    "cold, ancestral-32": {"sampler": ANCESTRAL_32, "start_level": None},
    "cold, ancestral-64, nothing held": {
        "sampler": ANCESTRAL_64,
        "start_level": None,
        "background_std": None,
    },
    "cold, one correction-64": {"sampler": CORRECTED, "start_level": None},
    "warm from 3, ancestral-64": {"sampler": ANCESTRAL_64, "start_level": 3.0},
    "warm from 1, ancestral-64": {"sampler": ANCESTRAL_64, "start_level": 1.0},
    "warm from 1, ancestral-32": {"sampler": ANCESTRAL_32, "start_level": 1.0},
    "warm from 0.3, ancestral-64": {"sampler": ANCESTRAL_64, "start_level": 0.3},
    "warm from 0.3, one correction-64": {"sampler": CORRECTED, "start_level": 0.3},
}


def _energy_score(x: Tensor, y: Tensor) -> float:
    """Fair energy score, (M, n), (n,)."""
    pairs = torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))
    return float((x - y).norm(dim=-1).mean() - 0.5 * pairs)


@app.command("forecast")
def print_forecasts(
    directory: Model,
    starts: Annotated[int, typer.Option(help="Number of initial conditions.")] = 32,
    members: Annotated[int, typer.Option(help="Members of each.")] = 16,
    only: Annotated[str, typer.Option(help="Part of the names of rows to make.")] = "",
) -> None:
    """Print scores by lead time, CRPS / energy score."""
    model = TrainedModel.load(directory)
    system = structure(System, {"name": "noisy-lorenz63"})
    generator = seeded_generator(5)
    start = system.prior((starts,), generator)
    x = trajectory(system, start, STEP + LEADS[-1], generator, burn_in=256)
    truth = model.standardization.to_model(x[:, STEP:].double())
    known = x[:, :STEP].repeat_interleave(members, 0)
    states = [known[:, -1]]
    for _ in range(LEADS[-1]):
        states.append(system.transition(states[-1], generator))
    ensembles = {"the system": torch.stack(states[1:], 1)}
    for name, (condition, sampler, guidance) in FORECASTS.items():
        if only in name:
            ensembles[name] = forecast(
                model,
                sampler,
                structure(Guidance, guidance),
                known,
                LEADS[-1],
                seed=0,
                condition=condition,
            )
    table = Table("forecast", *(f"lead {lead}" for lead in LEADS))
    for name, ensemble in ensembles.items():
        z = model.standardization.to_model(ensemble.double())
        groups = z.unflatten(0, (starts, members))
        cells = []
        for lead in LEADS:
            pairs = [
                (group[:, lead - 1], y[lead - 1]) for group, y in zip(groups, truth, strict=True)
            ]
            marginal = sum(crps(e[:, None], y[None]) for e, y in pairs) / starts
            joint = sum(_energy_score(e, y) for e, y in pairs) / starts
            cells.append(f"{marginal:.3f} / {joint:.3f}")
        table.add_row(name, *cells)
    Console(width=160).print(table)


def _particle_filter(
    system: System, observation: Any, ys: list[Tensor], members: int, particles: int
) -> Tensor:
    """Members of a bootstrap filter at the last state of each batch, (updates, M, C)."""
    generator = seeded_generator(7)
    x = system.prior((particles,), generator)
    for _ in range(64):
        x = system.transition(x, generator)
    kept = []
    for y in ys:
        for i in range(STEP):
            x = system.transition(x, generator)
            log_w = observation.log_prob_at(i, y, x)
            if log_w is not None:
                weights = torch.softmax(log_w.double(), 0)
                x = x[torch.multinomial(weights, particles, True, generator=generator)]
        kept.append(x[torch.randperm(particles, generator=generator)[:members]])
    return torch.stack(kept)


@app.command("filter")
def print_filters(
    directory: Model,
    updates: Annotated[int, typer.Option(help="Updates that count.")] = 200,
    spin_up: Annotated[int, typer.Option(help="Updates before these.")] = 8,
    members: Annotated[int, typer.Option(help="Members.")] = 32,
    particles: Annotated[int, typer.Option(help="Particles of the filter.")] = 16384,
    only: Annotated[str, typer.Option(help="Part of the names of rows to make.")] = "",
) -> None:
    """Print scores at the newest time."""
    model = TrainedModel.load(directory)
    system = structure(System, {"name": "noisy-lorenz63"})
    generator, total = seeded_generator(6), updates + spin_up
    start = system.prior((1,), generator)
    truth = trajectory(system, start, total * STEP, generator, burn_in=256)[0]
    select = Select(variables=("x",), every=STEP, offset=STEP - 1, standardized=True, std=0.05)
    observation = select.bind(model.spec, STEP)
    ys = [observation.sample(block, generator) for block in truth.split(STEP)]
    newest = model.standardization.to_model(truth[STEP - 1 :: STEP].double())[spin_up:]
    table = Table(
        "ensemble",
        "RMSE",
        "spread",
        "CRPS",
        "90 % coverage",
        "evaluations per update",
        "seconds per update",
    )

    def add(name: str, ensemble: Tensor, evaluations: float, seconds: float) -> None:
        x = model.standardization.to_model(ensemble.double())[spin_up:].transpose(0, 1)
        scores = [score(x, newest) for score in (rmse, lambda e, _: spread(e), crps)]
        row = [name, *(f"{score:.4f}" for score in scores), f"{coverage(x, newest):.2f}"]
        row += [f"{evaluations:.0f}", f"{seconds:.2f}"]
        print(", ".join(row), flush=True)
        table.add_row(*row)

    begun = time.perf_counter()
    reference = _particle_filter(system, observation, ys, members, particles)
    add(f"particle filter, {particles}", reference, 0, (time.perf_counter() - begun) / total)
    for name, fields in FILTERS.items():
        if only not in name:
            continue
        assimilator = OnlineAssimilator(
            model=model,
            spec=model.spec,
            guidance=structure(Guidance, {"name": "gaussian", "gamma": 0.1}),
            members=members,
            length=1 + 4 * STEP,
            step=STEP,
            forecast_sampler=COARSE,
            **fields,
        )
        posteriors, latency, evaluations = [], 0.0, 0.0
        for y in ys:
            posterior = assimilator.update(select, y)
            posteriors.append(posterior.newest)
            latency += posterior.latency / total
            evaluations += posterior.evaluations / total
        add(name, torch.stack(posteriors), evaluations, latency)
    Console(width=140).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
