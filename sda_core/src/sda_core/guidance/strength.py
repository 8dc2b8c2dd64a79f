"""Strengths of guidances that can be set to "auto"."""

from __future__ import annotations

from typing import Final, Literal

import attrs

from sda_core.config import Check
from sda_core.errors import ConfigError

AUTO: Final = "auto"


@attrs.frozen(kw_only=True)
class Strength:
    """The field of a guidance that says how strongly it pulls, and where to look for its value.

    Attributes:
        field: Name of the field, which takes a number or "auto".
        weakest: The value of the weakest guidance that is tried, where A(x) has unit variance.
        strongest: That of the strongest, above or below the weakest.
        power: Its unit is that of A(x) to this power.
    """

    field: str
    weakest: float
    strongest: float
    power: float = 0.0


def allow_auto(check: Check) -> Check:
    """What a check allows, and "auto"."""
    return Check(f'{check.allowed}, or "{AUTO}"', lambda v: v == AUTO or check.accepts(v))


def require_number(value: float | Literal["auto"]) -> float:
    """A strength as a number.

    Raises:
        ConfigError: It is still "auto".
    """
    if isinstance(value, str):
        raise ConfigError(
            "the strength of this guidance is 'auto', which the methods 'sda' and 'twisted-smc' "
            "choose from the observations before they sample. To use the guidance by itself, give "
            "a number, or let sda_core.method.tune_strength choose one"
        )
    return value
