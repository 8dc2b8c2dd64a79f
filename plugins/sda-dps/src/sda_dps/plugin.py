"""What this package registers."""

from sda_core.plugins import Component, components, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """Guidance, and the method that corrects it."""
    return components(
        "guidance",
        "sda_dps",
        {
            "gaussian": (
                "gaussian:GaussianGuidance",
                "The Gaussian likelihood score of the SDA paper (std, gamma)",
            ),
            "dps": ("dps:DPS", "Diffusion posterior sampling, norm taken per member"),
            "mmps": (
                "mmps:MMPS",
                "Moment matching posterior sampling, bounded; exact for Gaussians",
            ),
            "tmpd": (
                "tmpd:TMPD",
                "Tweedie moment projected diffusion: MMPS with row sums, two backward passes",
            ),
            "pigdm": ("pigdm:PiGDM", "Pseudoinverse guidance; exact for a standard normal prior"),
            "diffpir": (
                "diffpir:DiffPIR",
                "A proximal step on the estimate; no backward pass through the network",
            ),
        },
    ) + components(
        "method",
        "sda_dps",
        {
            "twisted-smc": (
                "twisted_smc:TwistedSMC",
                "Particles that correct any guidance, resampled by twisted weights",
            ),
        },
    )
