"""What this package registers."""

from sda_core.plugins import Component, components, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The kernel."""
    return components(
        "kernel",
        "sda_mlp",
        {
            "mlp": (
                "mlp:MLP",
                "Residual MLP on flattened windows, as in the SDA paper's Lorenz experiment",
            ),
        },
    )
