"""What this package registers."""

from sda_core.plugins import Component, Preset, components, hookimpl, presets

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The systems."""
    return components(
        "system",
        "sda_lorenz",
        {
            "lorenz63": (
                "lorenz63:Lorenz63",
                "Lorenz (1963) convection model, 3 variables, chaotic",
            ),
            "noisy-lorenz63": (
                "lorenz63:NoisyLorenz63",
                "Lorenz-63 with Gaussian transition noise and exact log_prob (the SDA paper's)",
            ),
            "lorenz96": (
                "lorenz96:Lorenz96",
                "Lorenz (1996) model of a mid-latitude circle, 40 variables by default",
            ),
            "lotka-volterra": (
                "lotka_volterra:LotkaVolterra",
                "Predator and prey, in log populations",
            ),
            "damped-spring": (
                "damped_spring:DampedSpring",
                "Mass on a spring in wind, linear and Gaussian: exact answers exist",
            ),
        },
    )


@hookimpl
def sda_register_presets() -> list[Preset]:
    """The experiments."""
    return presets(
        "sda_lorenz",
        {
            "lorenz63-quick": "Noisy Lorenz-63, wide window, about 5 minutes on 2 CPU cores",
            "lorenz63-forecast": "Noisy Lorenz-63, particle filter on learned forecasts, 3 minutes",
            "lorenz63-pretrained": "Noisy Lorenz-63 with a trained model: nothing to train",
            "lorenz63-wide": "Noisy Lorenz-63, wide window, trained for 75 minutes on one core",
            "lorenz63-rozet2023": "Noisy Lorenz-63 as in the SDA paper: MLP, k = 2, 4096 epochs",
            "lorenz96-sakov2008": "Lorenz-96 as in Sakov & Oke (2008), convolutions",
        },
    )
