"""How wide a window and how long a stride: samples of noisy Lorenz-63 by composition.

Trains the kernel of lorenz63-quick with several windows, and samples with several strides and
folds. Prints of each composition: evaluations of the network per state, its denoising error at
about sigma = alpha, E log p(x) of samples of the prior (exact: +81.7) in 64 steps of ddim and of
ddpm, and the Wasserstein-1 distance of the posterior of scenario LO (ddpm, 64 steps) to a particle
filter, beside that of a second run of the filter.

    python benchmarks/composition.py runs/composition

With `--rows issue`: models that are there, each with the samplers of the original code and of this
project, in both scenarios of the paper.

    sda train lorenz63-rozet2023
    sda train lorenz63-quick
    python benchmarks/composition.py runs/composition --rows issue \
        --narrow runs/lorenz63-rozet2023 --wide runs/lorenz63-quick

Trained models, reference ensembles and finished rows are kept in the directory, so that the script
goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import attrs
import numpy as np
import torch
import typer
from lorenz63 import SCENARIOS
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sda_core import load_experiment, stages
from sda_core.denoiser import window_starts
from sda_core.errors import AssimilationError
from sda_core.evaluation.metrics import log_prior, wasserstein1
from sda_core.experiment import Run
from sda_core.io.files import write_text
from sda_core.method import EnsembleSampler, ParticleFilter, Problem
from sda_core.model import TrainedModel
from sda_core.testing import draw

LENGTH = 65
DDIM, DDPM = (f'sampler={{name="{name}", steps=64, grid="rho"}}' for name in ("ddim", "ddpm"))
CORRECTED = (
    'sampler={name="predictor-corrector", steps=128, grid="rho", corrections=1, tau=0.25, '
    "denoise_final=true}"
)
#: The original's, by the number of corrections.
ORIGINAL = {
    n: f'sampler={{name="predictor-corrector", steps=256, corrections={n}, tau=0.25}}'
    for n in (0, 1, 4)
}
GUIDANCE = 'guidance={name="gaussian", gamma=0.03}'


class Rows(StrEnum):
    """Which table."""

    WINDOWS = "windows"
    ISSUE = "issue"


@attrs.frozen(kw_only=True)
class Task:
    """An ensemble that is drawn and scored.

    Attributes:
        run: The run directory of the model.
        scenario: "LO", "HI", or "prior" for samples without observations.
        overrides: Changes of its experiment.
        members: Members of the ensemble.
        sets: Observation sets over which scores are averaged.
    """

    run: Path
    scenario: str
    overrides: tuple[str, ...]
    members: int
    sets: int

    def scores(self, directory: Path) -> dict[str, float | None]:
        """The scores, as kept from an earlier run of the script if there are any."""
        model = hashlib.sha256((self.run / "model" / "model.safetensors").read_bytes())
        settings = json.dumps([attrs.asdict(self), model.hexdigest()], default=str)
        path = directory / "rows" / f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            started = time.perf_counter()
            try:
                draw = self._prior if self.scenario == "prior" else self._posterior
                found = draw(directory)
            except AssimilationError as error:  # too many members are lost
                print(f"{self.run.name}, {self.scenario}: {error}")
                found = {}
            found["seconds"] = time.perf_counter() - started
            write_text(path, json.dumps({"task": settings, "scores": found}, indent=2))
        scores: dict[str, float | None] = json.loads(path.read_text())["scores"]
        return scores

    def _prior(self, directory: Path) -> dict[str, float]:
        experiment = load_experiment(self.run, self.overrides)
        model = TrainedModel.load(self.run / "model", config=experiment.model)
        shape = (self.members, LENGTH, *model.spec.state_shape)
        return _plausibility(
            experiment.system,
            EnsembleSampler(model, experiment.require("sampler", "it"), shape, 1).sample(),
        )

    def _posterior(self, directory: Path) -> dict[str, float]:
        found = []
        for number in range(self.sets):
            changes = (*SCENARIOS[self.scenario], f"assimilate.trajectory={number}")
            experiment = load_experiment(self.run, (*changes, *self.overrides))
            problem = stages.make_problem(Run(experiment, self.run))
            tools = dict(
                model=TrainedModel.load(self.run / "model", config=experiment.model),
                sampler=experiment.sampler,
                guidance=experiment.guidance,
            )
            x = draw(experiment.require("method", "it"), problem, self.members, number, **tools)
            one, two = (_filtered(directory, problem, self.members, seed) for seed in (1, 2))
            distances = {"w1": wasserstein1(x, one), "filter_w1": wasserstein1(two, one)}
            found.append(_plausibility(problem.system, x) | distances)
        return {key: float(np.mean([f[key] for f in found])) for key in found[0]}


def _plausibility(system: Any, x: Tensor) -> dict[str, float]:
    log_p = log_prior(system, x)
    return {"log_prior": float(log_p.mean()), "median": float(log_p.median())}


def _filtered(directory: Path, problem: Problem, members: int, seed: int) -> Tensor:
    """An ensemble of the particle filter, kept by the observations that it is of."""
    key = hashlib.sha256(repr((problem.y.tolist(), members, seed)).encode()).hexdigest()[:16]
    path = directory / "filter" / f"{key}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, ParticleFilter().draw(problem, members, seed).numpy())
    return torch.from_numpy(np.load(path))


def train(directory: Path, windows: list[int], epochs: int) -> dict[int, Path]:
    """Train the same kernel on windows of each width, on the same trajectories."""
    runs = {}
    for window in windows:
        changes = [f"model.window={window}", f"model.stride={(window + 1) // 2}"]
        experiment = load_experiment("lorenz63-quick", [*changes, f"train.epochs={epochs}"])
        runs[window] = folder = directory / f"window-{window}"
        folder.mkdir(parents=True, exist_ok=True)
        data, first = folder / "data", directory / f"window-{windows[0]}" / "data"
        if window == windows[0]:
            if not Run(experiment, folder).is_done("simulate"):
                stages.simulate(experiment, folder)
        elif not data.exists():
            data.symlink_to(first.resolve())
        if not Run(experiment, folder).is_done("train"):
            stages.train(experiment, folder)
    return runs


def windows_table(
    directory: Path, windows: list[int], epochs: int, members: int, sets: int
) -> Table:
    """Windows, strides and folds of one kernel."""
    table = Table(title=f"{epochs} epochs, {members} members, {sets} observation sets")
    for column in ("window", "stride", "fold", "evaluations / state", "error"):
        table.add_column(column, justify="right")
    for column in ("ddim-64", "ddpm-64", "LO", "LO W1", "filter W1", "seconds"):
        table.add_column(column, justify="right")
    for window, run in train(directory, windows, epochs).items():
        if not (run / "composition.json").is_file():
            stages.composition(load_experiment(run), run, trajectories=32)
        errors = json.loads((run / "composition.json").read_text())
        level = int(np.abs(np.log(errors["noise"])).argmin())  # sigma = alpha
        excess = {(c["stride"], c["fold"]): c["excess"] for c in errors["compositions"]}
        half = (window - 1) // 2
        compositions = [(s, "center") for s in sorted({1, half // 2, half, window})]
        for stride, fold in [*compositions, (half, "average")]:
            composed = (f"model.stride={stride}", f'model.fold="{fold}"')
            scores = [
                Task(
                    run=run,
                    scenario=scenario,
                    overrides=(*composed, sampler, GUIDANCE),
                    members=members,
                    sets=sets,
                ).scores(directory)
                for scenario, sampler in (("prior", DDIM), ("prior", DDPM), ("LO", DDPM))
            ]
            times = 1 + excess[stride, fold]["value"][level]
            table.add_row(
                str(window),
                str(stride),
                fold,
                f"{len(window_starts(LENGTH, window, stride)) / LENGTH:.2f}",
                f"{errors['full_width_error']['value'][level] * times:.3g}",
                *(_number(s, "log_prior") for s in scores),
                _number(scores[2], "w1"),
                _number(scores[2], "filter_w1"),
                f"{math.fsum(s['seconds'] for s in scores):.0f}",
            )
    return table


def issue_table(directory: Path, narrow: Path, wide: Path, members: int, sets: int) -> Table:
    """Samplers of the original code with its window, and of this project with a wide one."""
    rows: list[tuple[str, str, Path, str, tuple[str, ...]]] = []
    for scenario, corrections in (("prior", (0, 1)), ("LO", (0, 1, 4))):
        for n in corrections:
            name = f"256 steps, corrections: {n}"
            rows.append(("narrow, stride 1", name, narrow, scenario, (ORIGINAL[n],)))
    rows += [
        ("wide", "ddim, 64 steps", wide, "prior", (DDIM,)),
        ("wide", "ddpm, 64 steps", wide, "prior", (DDPM,)),
        ("wide, stride 1", "ddpm, 64 steps", wide, "prior", (DDPM, "model.stride=1")),
    ]
    for scenario in SCENARIOS:
        for name, sampler in (("ddpm, 64 steps", DDPM), ("128 steps, corrections: 1", CORRECTED)):
            rows.append(("wide", name, wide, scenario, (sampler,)))
    table = Table(title=f"{members} members, {sets} observation sets")
    for column in ("model", "sampler", "scenario"):
        table.add_column(column)
    for column in ("E log p(x)", "median", "W1", "filter W1", "seconds"):
        table.add_column(column, justify="right")
    for model, name, run, scenario, overrides in rows:
        scores = Task(
            run=run,
            scenario=scenario,
            overrides=(*overrides, GUIDANCE),
            members=members,
            sets=sets,
        ).scores(directory)
        cells = (_number(scores, key) for key in ("log_prior", "median", "w1", "filter_w1"))
        table.add_row(model, name, scenario, *cells, f"{scores['seconds']:.0f}")
    return table


def _number(scores: dict[str, Any], key: str) -> str:
    """A score; a dash where there is none."""
    value = scores.get(key)
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def main(
    directory: Annotated[Path, typer.Argument(help="Where models and finished rows are kept.")],
    rows: Annotated[Rows, typer.Option(help="Which table.")] = Rows.WINDOWS,
    windows: Annotated[str, typer.Option(help="Widths.")] = "5,9,17,33,65",
    epochs: Annotated[int, typer.Option(help="Epochs of each training.")] = 360,
    members: Annotated[int, typer.Option(help="Members of each ensemble.")] = 128,
    sets: Annotated[int, typer.Option(help="Observation sets, one test trajectory each.")] = 4,
    narrow: Annotated[Path | None, typer.Option(help="For the issue: window of 5.")] = None,
    wide: Annotated[Path | None, typer.Option(help="For the issue: window of 33.")] = None,
) -> None:
    """Print a table."""
    if rows is Rows.WINDOWS:
        widths = [int(width) for width in windows.split(",")]
        table = windows_table(directory, widths, epochs, members, sets)
    elif narrow is None or wide is None:
        raise typer.BadParameter("--rows issue needs --narrow and --wide: trained run directories")
    else:
        table = issue_table(directory, narrow, wide, members, sets)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
