"""``sda data``: what is in data stores, and whether they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sda_core.cli.output import JsonOption, command, echo, print_json

data = typer.Typer(help="Inspect and verify data stores.", no_args_is_help=True)

Store = Annotated[Path, typer.Argument(help="A data set's directory, or one of its files.")]


def add_commands(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(data, name="data")


@data.command()
@command
def inspect(path: Store, as_json: JsonOption = False) -> None:
    """Say what is in a store: shape, variables, system, seed, statistics, versions.

    Exit code 1 if something is not as it should be; `verify` looks closer.
    """
    from sda_core.data import inspect

    report = inspect(path)
    if as_json:
        print_json(report.as_dict())
    else:
        echo(str(report))
    if report.problems:
        raise typer.Exit(1)


@data.command()
@command
def verify(path: Store, as_json: JsonOption = False) -> None:
    """Say whether a store is whole, and what to do if it is not; exit code 1 then."""
    from sda_core.data import verify

    report = verify(path)
    if as_json:
        print_json(report.as_dict())
    else:
        echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
