"""The commands of a Typer app, one by one."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from sda_core.errors import PluginError


def command_names(app: typer.Typer) -> list[str]:
    """The names of an app's commands and groups of commands."""
    return list(typer.main.get_group(app).commands)


def pieces(app: typer.Typer) -> Iterator[typer.Typer]:
    """Apps that have one command, or one group of commands, of an app each.

    Raises:
        PluginError: The app has a callback, which would be that of all of ``sda``.
    """
    if app.registered_callback is not None:
        raise PluginError(
            "its hook sda_cli_commands sets a callback, but sda's options are its own"
        )
    for command in app.registered_commands:
        piece = typer.Typer()
        piece.registered_commands = [command]
        yield piece
    for group in app.registered_groups:
        piece = typer.Typer()
        piece.registered_groups = [group]
        yield piece


def add(piece: typer.Typer, app: typer.Typer) -> None:
    """Add what :func:`pieces` gave to an app."""
    app.registered_commands += piece.registered_commands
    app.registered_groups += piece.registered_groups
