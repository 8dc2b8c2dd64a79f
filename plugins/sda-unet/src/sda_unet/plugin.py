"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The kernel."""
    return [
        Component(
            kind="kernel",
            name="unet",
            target="sda_unet.unet:UNet",
            summary="U-Net over the grid, as in the SDA paper's Kolmogorov flow, or over time",
        )
    ]
