"""``sda data``: what is in data stores, and whether they are whole."""

from __future__ import annotations

import typer

data = typer.Typer(help="Inspect and verify data stores.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(data, name="data")
