"""How commands print."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TextIO

import typer

from sda_core.errors import SDAError
from sda_core.io.secrets import redact
from sda_core.plugins import PluginManager
from sda_core.plugins.guard import stdout_to_stderr

if TYPE_CHECKING:
    from rich.console import Console

_Arguments = ParamSpec("_Arguments")

#: The option all commands that report something have.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_results: TextIO | None = None


def command(function: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Make a function a command whose results alone are on stdout.

    What libraries and plugins print meanwhile goes to stderr, and none of them ends the command
    by an exit of their own.
    """

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        global _results
        with stdout_to_stderr() as _results:
            try:
                function(*args, **kwargs)
            except SystemExit as error:
                raise SDAError(
                    f"something that was called exits (SystemExit: {error}): with --debug it is "
                    "shown where"
                ) from error
            finally:
                _results = None

    return run


def echo(line: str, *, end: str = "\n") -> None:
    """Print results."""
    print(line, file=_results, end=end)


def printable(text: str) -> str:
    """A text without secrets, in which characters that would control the terminal are escaped."""
    shown = redact(text)
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in shown)


def console() -> Console:
    """A console for results."""
    from rich.console import Console

    return Console(highlight=False, file=_results)


def print_json(data: Any) -> None:
    """Print data as JSON."""
    echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_columns(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print rows in columns that line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo((indent + "  ".join(cells)).rstrip())


def warn_of_broken(manager: PluginManager) -> None:
    """Say on stderr what cannot be used."""
    for plugin in manager.broken:
        typer.echo(f"warning: broken plugin {plugin}", err=True)
    for conflict in manager.conflicts:
        typer.echo(f"warning: {conflict}", err=True)
    if manager.broken or manager.conflicts:
        typer.echo("`sda doctor` says how to mend this", err=True)
