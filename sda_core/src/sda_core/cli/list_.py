"""``sda list``: what is installed."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

import typer

from sda_core.cli.catalog import list_components
from sda_core.cli.output import JsonOption, command, echo, print_columns, print_json
from sda_core.plugins import KINDS


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command("list")(command(list_))


def list_(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the components that are installed."""
    components = list_components(kind)
    if as_json:
        print_json(
            [
                {
                    "kind": c.kind,
                    "name": c.name,
                    "summary": c.summary,
                    "distribution": c.distribution,
                    "version": c.version,
                }
                for c in components
            ]
        )
    else:
        for i, (kind_, group) in enumerate(groupby(components, key=lambda c: c.kind)):
            echo(("\n" if i else "") + kind_)
            print_columns([(c.name, c.summary, c.origin) for c in group], indent="  ")
