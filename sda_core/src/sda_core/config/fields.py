"""Declaring configuration: the class decorator, its fields and what their values may be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform, get_args, overload

import attrs

from sda_core.errors import ConfigError, PluginError
from sda_core.plugins.names import did_you_mean

T = TypeVar("T")


class CheckError(ConfigError):
    """A value is out of range.

    Attributes:
        problem: The message without the field's name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.problem = problem


@attrs.frozen
class Check:
    """An attrs validator that can say what it allows.

    Where the field's type allows None, None passes. Of a sequence or table each entry is checked.

    Attributes:
        allowed: What is allowed, in words.
        accepts: Whether a value is allowed.
        choices: The values that are allowed, where they can be told.
        finite: Whether NaN, infinities and integers of over 64 bits are refused, whatever
            ``accepts`` says.

    Raises:
        CheckError: When called as a validator with a value that is not allowed.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    choices: tuple[object, ...] = ()
    finite: bool = True

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        """Validate a field."""
        if value is None and _allows_none(attribute.type):
            return
        if not all(self._accepts_safely(entry) for entry in _entries(value)):
            names = [choice for choice in self.choices if isinstance(choice, str)]
            hint = did_you_mean(str(value), names)
            raise CheckError(attribute.name, f"got {value!r}, {hint}allowed: {self.allowed}")

    def _accepts_safely(self, value: object) -> bool:
        try:
            return (not self.finite or _is_finite(value)) and self.accepts(value)
        except TypeError:  # not comparable with a number
            return False


def _entries(value: object) -> list[Any]:
    """The values of a table or sequence, or the one value that it is."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [value]


def _is_finite(value: object) -> bool:
    """Whether a value, or all that it consists of, is finite as far as it is a number."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**63  # what tensors and files hold
    if isinstance(value, tuple | list | Mapping):
        return all(map(_is_finite, _entries(value)))
    return True


_FINITE = Check("finite numbers, integers of at most 64 bits", _is_finite)


def _with_checks(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Let fields that have no check refuse numbers that are not finite."""
    return [f if f.validator else f.evolve(validator=_FINITE) for f in fields]


def _allows_none(annotation: object) -> bool:
    if isinstance(annotation, str):
        return "None" in annotation or "Optional" in annotation
    return type(None) in get_args(annotation)


positive = Check("greater than 0", lambda v: v > 0)
non_negative = Check("0 or greater", lambda v: v >= 0)


def at_least(n: float) -> Check:
    """Numbers from n on."""
    return Check(f"{n} or greater", lambda v: v >= n)


def between(a: float, b: float) -> Check:
    """Numbers from a to b, both included."""
    return Check(f"from {a} to {b}", lambda v: a <= v <= b)


def one_of(*choices: object) -> Check:
    """Certain values only."""
    return Check("one of " + ", ".join(map(repr, choices)), lambda v: v in choices, choices)


@overload
def option(*, default: T, help: str = ..., check: Check | None = ..., units: str = ...) -> T: ...


@overload
def option(
    *, factory: Callable[[], T], help: str = ..., check: Check | None = ..., units: str = ...
) -> T: ...


@overload
def option(*, help: str = ..., check: Check | None = ..., units: str = ...) -> Any: ...


def option(
    *,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    help: str = "",
    check: Check | None = None,
    units: str = "",
) -> Any:
    """A field of a configuration class; plain annotations and ``attrs.field`` do as well.

    Args:
        default: Its value where none is given. Without it (and ``factory``) the field is required.
        factory: Makes the default anew for each instance.
        help: One line for ``sda info``; default is the field's entry in the class's docstring.
        check: What values are allowed, beyond the type.
        units: Unit of the value.
    """
    return attrs.field(
        default=default,
        factory=factory,
        validator=check,
        metadata={"help": help, "check": check, "units": units},
    )


def part(*, default: Any = None, kw_only: bool = True) -> Any:
    """A field that is no configuration: an object that a component works with, given in Python.

    Args:
        default: Its value where none is given.
        kw_only: Whether it is given by its name alone.
    """
    return attrs.field(default=default, kw_only=kw_only, metadata={"part": True})


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    eq_default=False,
    field_specifiers=(option, part, attrs.field),
)
def component(cls: type[T]) -> type[T]:
    """Make a class a frozen attrs class whose fields, given by keyword, are its configuration.

    Numbers must be finite; a field that takes infinities says so by ``Check(..., finite=False)``.
    A keyword that is none of its fields is a ConfigError that names them.

    Raises:
        PluginError: A component has a field called ``name``, the key that components are picked by.
    """
    made: Any = attrs.frozen(kw_only=True, eq=False, field_transformer=_with_checks)(cls)
    if hasattr(made, "sda_kind") and any(a.name == "name" for a in attrs.fields(made)):
        raise PluginError(
            f"{cls.__qualname__} has a field 'name', but in its table `name` picks the component: "
            "call the field something else"
        )
    init = made.__init__

    @functools.wraps(init)
    def checked(self: T, *args: Any, **values: Any) -> None:
        names = [a.alias for a in attrs.fields(made) if a.init]
        for key in values:
            if key not in names:
                raise ConfigError(
                    f"{cls.__qualname__} has no {key!r}: {did_you_mean(key, names)}allowed: "
                    f"{', '.join(names) or 'nothing'}"
                )
        init(self, *args, **values)

    made.__init__ = checked
    frozen: type[T] = made
    return frozen
