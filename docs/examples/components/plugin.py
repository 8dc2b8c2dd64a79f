"""What this package registers."""

from collections.abc import Iterable

from sda_core.plugins import Component, hookimpl

sda_interface = 1


@hookimpl
def sda_register_components() -> Iterable[Component]:
    """One component of each of five kinds."""
    yield Component(
        "system", "ornstein-uhlenbeck", "ornstein_uhlenbeck:OrnsteinUhlenbeck", "An SDE"
    )
    yield Component("kernel", "linear", "linear_kernel:LinearKernel", "One matrix per window")
    yield Component(
        "sampler", "trapezoid", "trapezoid:Trapezoid", "Deterministic steps of order two"
    )
    yield Component("guidance", "bounded", "bounded:Bounded", "Gaussian, with bounded variance")
    yield Component("observation", "magnitude", "magnitude:Magnitude", "The length of a vector")
