"""How commands print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from sda_core.plugins import PluginManager

#: The option all commands that report something have.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(data: Any) -> None:
    """Print data as JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_columns(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print rows in columns that line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo((indent + "  ".join(cells)).rstrip())


def warn_of_broken(manager: PluginManager) -> None:
    """Say on stderr what cannot be used."""
    for plugin in manager.broken:
        typer.echo(f"warning: broken plugin {plugin}", err=True)
    for conflict in manager.conflicts:
        typer.echo(f"warning: {conflict}", err=True)
    if manager.broken or manager.conflicts:
        typer.echo("`sda doctor` says how to mend this", err=True)
