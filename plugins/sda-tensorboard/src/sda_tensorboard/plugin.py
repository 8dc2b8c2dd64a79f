"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The tracker."""
    return [
        Component(
            kind="tracker",
            name="tensorboard",
            target="sda_tensorboard.tensorboard:TensorBoard",
            summary="Event files for TensorBoard",
        )
    ]
