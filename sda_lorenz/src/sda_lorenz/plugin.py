"""What this package registers."""

from importlib.resources import files

from sda_core.plugins import Component, Preset, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The systems."""
    return [
        Component(
            kind="system",
            name="lorenz63",
            target="sda_lorenz.lorenz63:Lorenz63",
            summary="Lorenz (1963) convection model, 3 variables, chaotic",
        ),
        Component(
            kind="system",
            name="noisy-lorenz63",
            target="sda_lorenz.lorenz63:NoisyLorenz63",
            summary="Lorenz-63 with Gaussian transition noise and exact log_prob (the SDA paper's)",
        ),
        Component(
            kind="system",
            name="lorenz96",
            target="sda_lorenz.lorenz96:Lorenz96",
            summary="Lorenz (1996) model of a mid-latitude circle, 40 variables by default",
        ),
        Component(
            kind="system",
            name="lotka-volterra",
            target="sda_lorenz.lotka_volterra:LotkaVolterra",
            summary="Predator and prey, in log populations",
        ),
        Component(
            kind="system",
            name="damped-spring",
            target="sda_lorenz.damped_spring:DampedSpring",
            summary="Mass on a spring in wind, linear and Gaussian: exact answers exist",
        ),
    ]


@hookimpl
def sda_register_presets() -> list[Preset]:
    """The experiments."""
    presets = files("sda_lorenz") / "presets"
    return [
        Preset(
            name="lorenz63-quick",
            path=presets / "lorenz63-quick.toml",
            summary="Noisy Lorenz-63, wide window, about 5 minutes on 2 CPU cores",
        ),
        Preset(
            name="lorenz63-pretrained",
            path=presets / "lorenz63-pretrained.toml",
            summary="Noisy Lorenz-63 with the model of lorenz63-wide: nothing to train",
        ),
        Preset(
            name="lorenz63-wide",
            path=presets / "lorenz63-wide.toml",
            summary="Noisy Lorenz-63, wide window, trained at length: 75 minutes on one CPU core",
        ),
        Preset(
            name="lorenz63-rozet2023",
            path=presets / "lorenz63-rozet2023.toml",
            summary="Noisy Lorenz-63 as in the SDA paper: local MLP, k = 2, 4096 epochs",
        ),
        Preset(
            name="lorenz96-sakov2008",
            path=presets / "lorenz96-sakov2008.toml",
            summary="Lorenz-96 as in Sakov & Oke (2008), convolutions over time and space",
        ),
    ]
