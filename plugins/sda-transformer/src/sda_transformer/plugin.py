"""What this package registers."""

from sda_core.plugins import Component, components, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The kernel."""
    return components(
        "kernel",
        "sda_transformer",
        {
            "transformer": (
                "transformer:Transformer",
                "Transformer over time with adaptive layer norm, for wide windows",
            ),
        },
    )
