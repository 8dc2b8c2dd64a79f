"""What a system's states are: variables, grid, time step and standardization."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import numpy as np

from sda_core.errors import ConfigError

_text = attrs.validators.instance_of(str)


@attrs.frozen
class Variable:
    """A physical variable: its name, unit ("1" for none) and, optionally, a longer name."""

    name: str = attrs.field(validator=_text)
    units: str = attrs.field(default="1", validator=_text)
    long_name: str = attrs.field(default="", validator=_text)

    @classmethod
    def parse(cls, text: str | Variable) -> Variable:
        """Read ``"u [m/s]"`` or ``"u"``."""
        if isinstance(text, Variable):
            return text
        name, _, rest = text.partition("[")
        return cls(name.strip(), rest.rstrip("] ").strip() or "1")


@attrs.frozen(eq=False)
class Axis:
    """A named grid axis.

    Attributes:
        name: Its name.
        values: Coordinates of its points, (n,).
        units: Their unit.
        period: Length of the domain after which coordinates repeat; None if they do not.

    Raises:
        ConfigError: The points do not lie within one period.
    """

    name: str = attrs.field(validator=_text)
    values: np.ndarray = attrs.field(converter=np.asarray)
    units: str = attrs.field(default="1", validator=_text)
    period: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.period is not None and not np.ptp(self.values) < self.period:
            raise ConfigError(
                f"axis {self.name!r} has a period of {self.period:g}, but points from "
                f"{self.values.min():g} to {self.values.max():g}: leave out those that repeat "
                "others, or give the length of the whole domain"
            )


def _variables(value: Sequence[str | Variable]) -> tuple[Variable, ...]:
    return tuple(Variable.parse(v) for v in value)


def _axes(value: Iterable[Axis]) -> tuple[Axis, ...]:
    return tuple(value)


def _floats(value: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(v) for v in value)


@attrs.frozen(kw_only=True, eq=False)
class SystemSpec:
    """What a system's states are.

    Attributes:
        variables: The C variables, as :class:`Variable` or ``"name [unit]"``.
        axes: The grid axes S; empty for systems without a grid.
        time_step: Time between two stored states.
        time_units: Unit of time.
        mean: Per-variable mean that maps physical states to model space, (x - mean) / std.
            None: taken from the training data when they are made.
        std: Per-variable standard deviation, likewise.

    Raises:
        ConfigError: Two variables share a name, or mean and std do not have one entry per variable.
    """

    variables: tuple[Variable, ...] = attrs.field(converter=_variables)
    time_step: float = attrs.field(converter=float)
    axes: tuple[Axis, ...] = attrs.field(default=(), converter=_axes)
    time_units: str = attrs.field(default="1", validator=_text)
    mean: tuple[float, ...] | None = attrs.field(default=None, converter=_floats)
    std: tuple[float, ...] | None = attrs.field(default=None, converter=_floats)

    def __attrs_post_init__(self) -> None:
        names = self.variable_names
        if len(set(names)) != len(names):
            raise ConfigError(f"variables must have different names, got {list(names)}")
        for label, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and len(value) != len(names):
                raise ConfigError(
                    f"{label} has {len(value)} entries, but there are {len(names)} variables "
                    f"{list(names)}: give one entry per variable"
                )

    @property
    def variable_names(self) -> tuple[str, ...]:
        """Names of the variables, in order."""
        return tuple(v.name for v in self.variables)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Shape S of the grid."""
        return tuple(len(a.values) for a in self.axes)

    @property
    def state_shape(self) -> tuple[int, ...]:
        r"""Shape (C, \*S) of a state."""
        return (len(self.variables), *self.grid_shape)
