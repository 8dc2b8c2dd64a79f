"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The tracker."""
    return [
        Component(
            kind="tracker",
            name="wandb",
            target="sda_wandb.weights_and_biases:WeightsAndBiases",
            summary="Weights & Biases, online or offline",
        )
    ]
