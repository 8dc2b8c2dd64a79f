"""Observe the length of a vector."""

from torch import Tensor

from sda_core import component, option
from sda_core.errors import ConfigError
from sda_core.observation import Observation, Operator
from sda_core.system import SystemSpec


@component
class Magnitude(Observation):
    r"""The norm of some variables at every state: (..., L, C, \*S) -> (..., L, \*S)."""

    variables: tuple[str, ...] = option(help="names of the vector's components")

    def operator(self, spec: SystemSpec) -> Operator:
        """The Euclidean norm over the variables."""
        unknown = set(self.variables) - set(spec.variable_names)
        if unknown or not self.variables:
            raise ConfigError(
                f"observation.variables = {list(self.variables)}, but this system has "
                f"{list(spec.variable_names)}: choose among these"
            )
        index = [spec.variable_names.index(name) for name in self.variables]
        axis = -1 - len(spec.grid_shape)

        def A(x: Tensor) -> Tensor:
            return x.movedim(axis, 0)[index].square().sum(0).sqrt()

        return A
