"""What this package registers."""

from sda_core.plugins import Component, components, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The kernel."""
    return components(
        "kernel",
        "sda_unet",
        {
            "unet": (
                "unet:UNet",
                "U-Net over the grid, as in the SDA paper's Kolmogorov flow, or over time",
            ),
        },
    )
