"""``sda presets`` and ``sda init``: experiments to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sda_core.cli import catalog
from sda_core.cli.output import JsonOption, command, echo, print_columns, print_json


def add_commands(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(command(presets))
    app.command()(command(init))


def presets(as_json: JsonOption = False) -> None:
    """List the presets that are installed."""
    found = catalog.presets()
    if as_json:
        print_json(
            [
                {
                    "name": p.name,
                    "summary": p.summary,
                    "distribution": p.distribution,
                    "version": p.version,
                }
                for p in found
            ]
        )
    else:
        print_columns([(p.name, p.summary, p.origin) for p in found])


def init(
    preset: Annotated[str, typer.Argument(help="The preset's name, as in `sda presets`.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; default PRESET.toml.")
    ] = None,
) -> None:
    """Write a preset's file, to change and run."""
    path = catalog.init(preset, output)
    echo(f"wrote {path}; run it with: sda run {path}")
