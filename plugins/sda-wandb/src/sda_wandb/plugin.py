"""What this package registers."""

from sda_core.plugins import Component, components, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The tracker."""
    return components(
        "tracker",
        "sda_wandb",
        {
            "wandb": ("weights_and_biases:WeightsAndBiases", "Weights & Biases, online or offline"),
        },
    )
