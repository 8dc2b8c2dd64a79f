"""What this package registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sda_core.plugins import Component, components, hookimpl

if TYPE_CHECKING:
    import typer

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The cluster and the sweep."""
    cluster = ("cluster:Ray", "A Ray cluster: this machine, or many")
    sweep = ("tune.sweep:RayTune", "Sweeps by Ray Tune, searched by Optuna")
    return [
        *components("cluster", "sda_ray", {"ray": cluster}),
        *components("sweep", "sda_ray", {"ray-tune": sweep}),
    ]


@hookimpl
def sda_cli_commands(app: typer.Typer) -> None:
    """``sda sweep``."""
    from sda_ray.cli import sweep

    app.command()(sweep)
