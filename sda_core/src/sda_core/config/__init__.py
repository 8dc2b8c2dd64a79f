"""Configuration: frozen classes, made from tables and turned back into them.

A component's fields are its configuration::

    @component
    class Lorenz63(System):
        dt: float = option(default=0.025, check=positive, help="Time between two states")

:func:`structure` makes it from ``{name = "lorenz63", dt = 0.025}`` and reports every mistake in
the table at once, each by the full path of its key. Nothing here imports torch.
"""

from __future__ import annotations

from sda_core.config.compare import differences
from sda_core.config.convert import structure, unstructure
from sda_core.config.fields import (
    Check,
    at_least,
    between,
    component,
    non_negative,
    one_of,
    option,
    part,
    positive,
)
from sda_core.config.info import FieldInfo, describe
from sda_core.config.toml import apply_overrides, dump_toml, load_toml, merge, set_by_path
from sda_core.plugins import nearest

__all__ = [
    "Check",
    "FieldInfo",
    "apply_overrides",
    "at_least",
    "between",
    "component",
    "describe",
    "differences",
    "dump_toml",
    "load_toml",
    "merge",
    "nearest",
    "non_negative",
    "one_of",
    "option",
    "part",
    "positive",
    "set_by_path",
    "structure",
    "unstructure",
]
