"""The stages of a run as commands; each calls the function of its name in sda_core.stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sda_core.cli.output import JsonOption, print_json

if TYPE_CHECKING:
    from sda_core.experiment import Experiment

Source = Annotated[
    str, typer.Argument(help="A preset, a TOML file, a run directory, or a system's name.")
]
Directory = Annotated[
    Path | None, typer.Option("--dir", "-d", help="Run directory; runs/NAME if not given.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change a value, as in train.learning_rate=2e-4; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run, simulate, train, sample, assimilate, evaluate):
        app.command()(command)


def _prepare(
    source: str, directory: Path | None, overrides: list[str] | None
) -> tuple[Experiment, Path]:
    from sda_core.experiment import load_experiment

    experiment = load_experiment(source, overrides or ())
    if directory is None:
        path = Path(source)
        directory = path if path.is_dir() else Path("runs") / path.stem
    return experiment, directory


def run(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Do all stages, from simulation to report; what is done and unchanged is skipped."""
    loaded, folder = _prepare(experiment, directory, overrides)
    from sda_core import stages

    scores = stages.run(loaded, folder, progress=not quiet)
    _print_scores(scores, folder, as_json)


def simulate(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much data and time it takes, and stop.")
    ] = False,
) -> None:
    """Simulate the data set: train.h5, valid.h5 and test.h5."""
    loaded, folder = _prepare(experiment, directory, overrides)
    from sda_core import stages

    if dry_run:
        typer.echo(str(stages.preview(loaded, folder)))
        return
    path = stages.simulate(loaded, folder, progress=not quiet)
    typer.echo(f"data: {path}")


def train(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Train the kernel, from the last checkpoint if there is one."""
    loaded, folder = _prepare(experiment, directory, overrides)
    from sda_core import stages

    model = stages.train(loaded, folder, progress=not quiet)
    typer.echo(f"model: {folder / 'model'}, validation loss {model.provenance['valid_loss']}")


def sample(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Sample trajectories from the learned prior, without observations."""
    loaded, folder = _prepare(experiment, directory, overrides)
    from sda_core import stages

    x = stages.sample(loaded, folder, progress=not quiet)
    typer.echo(f"samples: {folder / 'samples.nc'}, shape {tuple(x.shape)}")


def assimilate(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Observe a held-out trajectory and infer it."""
    loaded, folder = _prepare(experiment, directory, overrides)
    from sda_core import stages

    x = stages.assimilate(loaded, folder, progress=not quiet)
    typer.echo(f"posterior: {folder / 'posterior.nc'}, shape {tuple(x.shape)}")


def evaluate(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Score the posterior, compare it with the reference method, and write the report."""
    loaded, folder = _prepare(experiment, directory, overrides)
    from sda_core import stages

    scores = stages.evaluate(loaded, folder, progress=not quiet)
    _print_scores(scores, folder, as_json)


def _print_scores(scores: Mapping[str, Mapping[str, float]], folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(scores)
        return
    from rich.console import Console
    from rich.table import Table

    from sda_core.report import score_rows

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("score")
    for name in scores:
        table.add_column(name, justify="right")
    for label, values in score_rows(scores):
        table.add_row(label, *values)
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for label, name in (
        ("report", "report.html"),
        ("figures", "figures"),
        ("posterior", "posterior.nc"),
        ("model", "model"),
        ("data", "data"),
    ):
        if (folder / name).exists():
            console.print(f"{label:<10} {folder / name}", soft_wrap=True)
