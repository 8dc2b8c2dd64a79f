"""Keep a journal of a run, and show it with a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sda_core.plugins import hookimpl

if TYPE_CHECKING:
    import typer

sda_interface = 1


@hookimpl
def sda_epoch_ended(run: Any, metrics: Mapping[str, float]) -> None:
    """Note the loss; arguments that a hook does not need can be left out."""
    _note(run, f"epoch {metrics['epoch']}: loss {metrics['loss']:.3f}")


@hookimpl
def sda_run_finished(run: Any, summary: Mapping[str, Any]) -> None:
    """Note that a stage is done."""
    _note(run, f"{summary['stage']} took {summary['seconds']} s")


@hookimpl
def sda_cli_commands(app: typer.Typer) -> None:
    """Add `sda journal`."""

    @app.command()
    def journal(directory: str) -> None:
        """Show the journal of a run directory."""
        with open(f"{directory}/journal.txt") as file:
            print(file.read(), end="")


def _note(run: Any, line: str) -> None:
    with (run.directory / "journal.txt").open("a") as file:
        file.write(line + "\n")
