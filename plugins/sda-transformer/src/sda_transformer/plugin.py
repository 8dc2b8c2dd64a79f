"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The kernel."""
    return [
        Component(
            kind="kernel",
            name="transformer",
            target="sda_transformer.transformer:Transformer",
            summary="Transformer over time with adaptive layer norm, for wide windows",
        )
    ]
