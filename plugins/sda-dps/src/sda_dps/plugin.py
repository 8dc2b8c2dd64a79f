"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """Guidance, and the method that corrects it."""
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
            summary="Moment matching posterior sampling, bounded; exact for Gaussians",
        ),
        Component(
            kind="guidance",
            name="tmpd",
            target="sda_dps.tmpd:TMPD",
            summary="Tweedie moment projected diffusion: MMPS with row sums, two backward passes",
        ),
        Component(
            kind="guidance",
            name="pigdm",
            target="sda_dps.pigdm:PiGDM",
            summary="Pseudoinverse guidance; exact for a standard normal prior",
        ),
        Component(
            kind="guidance",
            name="diffpir",
            target="sda_dps.diffpir:DiffPIR",
            summary="A proximal step on the estimate; no backward pass through the network",
        ),
        Component(
            kind="method",
            name="twisted-smc",
            target="sda_dps.twisted_smc:TwistedSMC",
            summary="Particles that correct any guidance, resampled by twisted weights",
        ),
    ]
