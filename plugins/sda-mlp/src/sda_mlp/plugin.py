"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The kernel."""
    return [
        Component(
            kind="kernel",
            name="mlp",
            target="sda_mlp.mlp:MLP",
            summary="Residual MLP on flattened windows, as in the SDA paper's Lorenz experiment",
        )
    ]
