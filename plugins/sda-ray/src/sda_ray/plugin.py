"""What this package registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sda_core.plugins import Component, hookimpl

if TYPE_CHECKING:
    import typer

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The cluster and the sweep."""
    return [
        Component(
            kind="cluster",
            name="ray",
            target="sda_ray.cluster:Ray",
            summary="A Ray cluster: this machine, or many",
        ),
        Component(
            kind="sweep",
            name="ray-tune",
            target="sda_ray.tune.sweep:RayTune",
            summary="Sweeps by Ray Tune, searched by Optuna",
        ),
    ]


@hookimpl
def sda_cli_commands(app: typer.Typer) -> None:
    """``sda sweep``."""
    from sda_ray.cli import sweep

    app.command()(sweep)
