"""What this package registers."""

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> list[Component]:
    """The system."""
    target = "sda_double_pendulum.double_pendulum:DoublePendulum"
    return [Component("system", "double-pendulum", target, "Double pendulum without friction")]
