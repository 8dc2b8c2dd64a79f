"""``sda doctor``: whether what is installed works."""

from __future__ import annotations

import attrs
import typer

from sda_core.cli.output import JsonOption, command, echo, print_json
from sda_core.plugins.doctor import doctor as check_installation


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(command(doctor))


def doctor(as_json: JsonOption = False) -> None:
    """Check the installation; exit code 1 if anything is broken."""
    findings = check_installation()
    broken = any(finding.broken for finding in findings)
    if as_json:
        print_json({"ok": not broken, "findings": [attrs.asdict(f) for f in findings]})
    else:
        for finding in findings:
            mark = "BROKEN" if finding.broken else "advice" if finding.mend else "ok"
            echo(f"{mark:<6}  {finding.subject}: {finding.message}")
            if finding.mend:
                echo(f"        to mend: {finding.mend}")
    if broken:
        raise typer.Exit(1)
