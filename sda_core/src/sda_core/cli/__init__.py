"""The ``sda`` command.

Each command is a thin layer over a Python function, in a module of its own; plugins add theirs
through the hook ``sda_cli_commands``. Modules here import nothing heavy: a command imports what it
needs when it is called.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from sda_core import __version__
from sda_core.cli import composition, data, doctor, info, list_, presets, stages
from sda_core.cli.output import printable, warn_of_broken
from sda_core.errors import SDAError, StoppedError
from sda_core.plugins import PluginManager, default_manager
from sda_core.plugins.names import cause_text

_DEBUG = "SDA_DEBUG"
#: A disk, a quota or the size that a file may have is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=_DEBUG, help="Show where errors come from.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Score-based data assimilation."""
    os.environ[_DEBUG] = "1" if debug else "0"
    if version:
        typer.echo(__version__)
        raise typer.Exit


def make_app(manager: PluginManager) -> typer.Typer:
    """Put the command line together, plugins' commands included."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_options)
    for module in (list_, info, presets, stages, composition, data, doctor):
        module.add_commands(app)
    manager.add_cli_commands(app)
    return app


_python_format = warnings.formatwarning


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``sda``; errors and warnings of the library are shown without code."""
    warnings.formatwarning = _format_warning
    try:
        manager = default_manager()
        app = make_app(manager)
        warn_of_broken(manager)
        app(args=arguments, prog_name="sda")
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)  # as shells report a command stopped by Ctrl-C
    except Exception as error:
        text = _error_text(error)
        if text is None or os.environ.get(_DEBUG) == "1":
            raise
        print(f"error: {printable(text)}", file=sys.stderr)
        sys.exit(2)


def _error_text(error: Exception) -> str | None:
    """What an error of the user or of the machine says; None for a bug."""
    if isinstance(error, SDAError):
        return str(error)
    # torch has no class for the memory of a CPU.
    if isinstance(error, MemoryError) or (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    ):
        said = str(error).partition("\n")[0]
        return (
            f"out of memory ({said}): ask for less at once, as by smaller sizes, or use a machine "
            "or GPU with more; what was finished is kept"
        )
    if not isinstance(error, OSError):
        return None
    full = ". Make room, and the same command goes on from what is whole"
    return cause_text(error) + (full if error.errno in _FULL else "")


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    if category.__module__.partition(".")[0].startswith("sda_"):
        return f"warning: {message}\n"
    return _python_format(message, category, filename, lineno, line)
