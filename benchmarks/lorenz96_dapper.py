"""Lorenz-96 as in Sakov & Oke (2008), beside DAPPER's EnKF, EnKS, LETKF and iEnKS.

All methods get the same observations: 40 variables, all observed at every step of 0.05 with unit
error. Prints root mean square errors (over the variables, then averaged over the cycles without
spin-up and the last states, as DAPPER does) of the analysis, which knows no later observations, and
of the smoother.

The observations are the trajectory with white noise. So the posterior's mean is the denoiser at
that noise level, and the posterior is sampled by going on from the observations themselves, both
without guidance; the guided ensemble, on the first states, should have the same mean.

DAPPER (https://github.com/nansencenter/DAPPER) is `pip install dapper`, best in an environment of
its own:

    sda train lorenz96-sakov2008
    python benchmarks/lorenz96_dapper.py runs/lorenz96-sakov2008 --dapper-python PATH_OF_ITS_PYTHON
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import attrs
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sda_core import load_experiment
from sda_core.experiment import Experiment
from sda_core.method import Problem
from sda_core.model import TrainedModel
from sda_core.observation import Select
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler import DDPM, SamplerState
from sda_core.system import System
from sda_core.testing import draw

#: Windows denoised at once.
CHUNK = 64
#: Standard deviation of the observations' errors.
STD = 1.0


def main(
    directory: Annotated[Path, typer.Argument(help="A trained run directory.")],
    dapper_python: Annotated[
        Path | None, typer.Option(help="Interpreter that has DAPPER; without it no DAPPER.")
    ] = None,
    cycles: Annotated[int, typer.Option(help="Observed states.")] = 2000,
    skipped: Annotated[int, typer.Option(help="Cycles left out at either end.")] = 100,
    members: Annotated[int, typer.Option(help="Members of the ensembles.")] = 16,
    steps: Annotated[int, typer.Option(help="Steps from the observations to the posterior.")] = 16,
    guided: Annotated[int, typer.Option(help="States of the guided ensemble; 0 for none.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of truth and observations.")] = 0,
    method: Annotated[list[str] | None, typer.Option(help="DAPPER's; all if not given.")] = None,
) -> None:
    """Print the table."""
    experiment = load_experiment(directory)
    model = TrainedModel.load(directory / "model", config=experiment.model)
    truth, observed = simulate(experiment.system, cycles, seed)
    table = Table(title=f"Lorenz-96: RMSE over {cycles - 2 * skipped} cycles, seed {seed}")
    for column in ("method", "settings", "analysis", "smoother", "spread"):
        table.add_column(column, justify="left" if column in ("method", "settings") else "right")

    def add(name: str, settings: str, **errors: Any) -> None:
        numbers = {
            k: f"{np.mean(np.asarray(v)[skipped : len(v) - skipped]):.4f}"
            for k, v in errors.items()
        }
        table.add_row(name, settings, *(numbers.get(k, "") for k in ("a", "s", "spread")))

    if dapper_python:
        for name, result in run_dapper(dapper_python, truth, observed, method or []).items():
            settings = ", ".join(f"{k} = {v}" for k, v in result.pop("settings").items())
            add(f"DAPPER's {name}", settings, **result)
    width = f"window {model.config.window}"
    add(
        "denoiser at the observations' noise",
        f"{width}, stride {model.config.stride}",
        a=errors_of(filtered(model, observed), truth[1:]),
        s=errors_of(smoothed(model, observed), truth[1:]),
    )
    x = from_observations(model, observed, members, steps, seed)
    add(
        "diffusion from the observations",
        f"{width}, {members} members, {steps} steps",
        s=errors_of(x.mean(0), truth[1:]),
        spread=spread(x),
    )
    if guided:
        x, few = guided_ensemble(experiment, model, observed[:guided], members, seed), 16
        inner = slice(few, guided - few)
        best = smoothed(model, observed[:guided])
        table.add_section()
        for name, mean in (("guided ensemble", x.mean(0)), ("denoiser, same states", best)):
            table.add_row(
                name,
                ("" if mean is best else f"{members} members, ")
                + f"states {few} to {guided - few}",
                "",
                f"{errors_of(mean, truth[1 : guided + 1])[inner].mean():.4f}",
                f"{spread(x)[inner].mean():.4f}" if mean is not best else "",
            )
        apart = errors_of(x.mean(0), best)[inner].mean()
        table.add_row("distance of their means", "", "", f"{apart:.4f}", "")
    Console(width=160).print(table)


def simulate(system: System, cycles: int, seed: int) -> tuple[Tensor, Tensor]:
    """Truth (cycles + 1, 1, 40) after a spin-up of 1000 steps, observations (cycles, 1, 40)."""
    generator = seeded_generator(seed, 96)
    x, states = system.prior((1,), generator), []
    for _ in range(1000 + cycles + 1):
        x = system.transition(x, generator)
        states.append(x[0])
    truth = torch.stack(states[1000:])
    noise = torch.randn(truth[1:].shape, generator=generator, dtype=torch.float64)
    return truth, truth[1:] + STD * noise


def run_dapper(
    python: Path, truth: Tensor, observed: Tensor, methods: list[str]
) -> dict[str, dict[str, Any]]:
    """Errors of DAPPER's methods at every cycle."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.json"
        np.savez(source, truth=truth.flatten(1).numpy(), observations=observed.flatten(1).numpy())
        script = Path(__file__).with_name("_dapper.py")
        subprocess.run(
            [python, script, source, target, *methods],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MPLBACKEND": "agg"},
        )
        results: dict[str, dict[str, Any]] = json.loads(target.read_text())
    return results


def errors_of(x: Tensor, truth: Tensor) -> Tensor:
    """Root mean square error at every time, (L,)."""
    return (x.double() - truth.double()).square().flatten(1).mean(1).sqrt()


def spread(x: Tensor) -> Tensor:
    """Root of the mean variance of an ensemble at every time, (L,)."""
    return x.double().var(0).flatten(1).mean(1).sqrt()


def noise_time(model: TrainedModel) -> Tensor:
    """Diffusion time at which the noise is that of the observations."""
    scale = STD / float(model.standardization.std)
    return model.schedule.time(torch.tensor(-2 * math.log(scale), dtype=torch.float64))


def scaled(model: TrainedModel, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The observations as a noised trajectory in model space, (1, L, C, n), and its time."""
    t = noise_time(model)
    y = model.schedule.alpha(t) * model.standardization.to_model(observed)
    return y[None].float(), t.float()


def smoothed(model: TrainedModel, observed: Tensor) -> Tensor:
    """E[x | all observations], (L, C, n)."""
    denoiser = attrs.evolve(
        model, config=attrs.evolve(model.config, chunk_size=CHUNK)
    ).trajectory_denoiser()
    with torch.no_grad():
        return model.standardization.to_physical(denoiser(*scaled(model, observed))[0])


def filtered(model: TrainedModel, observed: Tensor) -> Tensor:
    """E[x_i | observations of a window that ends at i], (L, C, n); before that, of the first."""
    y, t = scaled(model, observed)
    windows = y[0].unfold(0, model.config.window, 1).movedim(-1, 1)
    model.denoiser.eval()
    with torch.no_grad():
        parts = [model.denoiser(part, t) for part in windows.split(CHUNK)]
    x = torch.cat((parts[0][0, :-1], *(part[:, -1] for part in parts)))
    return model.standardization.to_physical(x)


def from_observations(
    model: TrainedModel, observed: Tensor, members: int, steps: int, seed: int
) -> Tensor:
    """Posterior samples (M, L, C, n): ancestral sampling that starts from the observations."""
    y, t = scaled(model, observed)
    config = attrs.evolve(model.config, chunk_size=CHUNK)
    denoiser = attrs.evolve(model, config=config).trajectory_denoiser()
    schedule = model.schedule
    first, last = (schedule.log_snr(s.double()) for s in (t, torch.zeros(())))
    times = schedule.time(first + torch.linspace(0, 1, steps, dtype=torch.float64) * (last - first))
    x = []
    for member in range(members):
        noise = MemberNoise(seed, [member])
        with torch.no_grad():
            *_, end = DDPM(steps=steps).walk(denoiser, SamplerState(y), times, noise)
            x.append(denoiser(end.x, times[-1].float())[0])
    return model.standardization.to_physical(torch.stack(x))


def guided_ensemble(
    experiment: Experiment, model: TrainedModel, observed: Tensor, members: int, seed: int
) -> Tensor:
    """Posterior samples by the experiment's sampler and guidance, (M, L, C, n)."""
    problem = Problem(
        system=experiment.system,
        observation=Select(std=STD).bind(model.spec, len(observed)),
        y=observed,
    )
    tools = dict(model=model, sampler=experiment.sampler, guidance=experiment.guidance)
    return draw(experiment.require("method", "this"), problem, members, seed, **tools)


if __name__ == "__main__":
    typer.run(main)
