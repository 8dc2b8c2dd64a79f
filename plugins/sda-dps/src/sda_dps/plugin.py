"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The guidance methods."""
    return [
        Component(
            kind="guidance",
            name="gaussian",
            target="sda_dps.gaussian:GaussianGuidance",
            summary="The Gaussian likelihood score of the SDA paper (std, gamma)",
        ),
        Component(
            kind="guidance",
            name="dps",
            target="sda_dps.dps:DPS",
            summary="Diffusion posterior sampling, norm taken per member",
        ),
        Component(
            kind="guidance",
            name="mmps",
            target="sda_dps.mmps:MMPS",
            summary="Moment matching posterior sampling with an exact solve; exact for Gaussians",
        ),
    ]
