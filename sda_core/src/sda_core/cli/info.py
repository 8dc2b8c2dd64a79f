"""``sda info``: what a component is and takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from sda_core.cli import catalog
from sda_core.cli.output import JsonOption, command, echo, print_json
from sda_core.plugins import KINDS

if TYPE_CHECKING:
    from sda_core.config import FieldInfo


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(command(info))


def info(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    name: Annotated[str, typer.Argument(help="The component's name, as in `sda list`.")],
    as_json: JsonOption = False,
) -> None:
    """Show a component's fields, types, defaults and documentation."""
    found = catalog.info(kind, name)
    if as_json:
        print_json(attrs.asdict(found))
        return
    echo(f"{kind} {name}: {found.summary}")
    echo(f"from {found.distribution} {found.version}, {found.target}\n")
    echo(found.documentation)
    echo("\nFields" if found.fields else "\nNo fields")
    for field in found.fields:
        echo(f"  {_field(field)}")
        if field.help:
            echo(f"      {field.help}")
    if found.declarations:
        echo("\nDeclares")
        for key, value in found.declarations.items():
            echo(f"  {key} = {value}")


def _field(field: FieldInfo) -> str:
    default = "required" if field.required else f"default {field.default!r}"
    units = f" [{field.units}]" if field.units else ""
    allowed = f"; {field.allowed}" if field.allowed else ""
    return f"{field.name}{units}: {field.type}, {default}{allowed}"
