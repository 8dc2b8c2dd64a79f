"""Putting values into the table of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import attrs

from sda_core.config.convert import configuration_fields
from sda_core.errors import ConfigError, SDAError
from sda_core.plugins import default_manager


def place(table: dict[str, Any], path: str, value: Any) -> None:
    """Set a value by its path.

    Another component's ``name`` keeps those fields of its table that the component has, too.

    Raises:
        ConfigError: The path leads through what is not a table.
    """
    parts, home = path.split("."), table
    for i, part in enumerate(parts[:-1]):
        home = home.setdefault(part, {})
        if not isinstance(home, dict):
            raise ConfigError(f"{'.'.join(parts[: i + 1])} is {home!r}, not a table")
    if parts[-1] == "name" and home.get("name", value) != value:
        kept = _fields(table, parts[:-1], value)
        for key in [key for key in home if key not in kept]:
            del home[key]
    home[parts[-1]] = value


def _fields(table: Mapping[str, Any], parts: list[str], name: Any) -> set[str]:
    """The fields of the component of a name at a place in an experiment."""
    from sda_core.experiment import Experiment

    cls: Any = Experiment
    for i, part in enumerate(parts):
        field = configuration_fields(cls).get(part)
        types = () if field is None else (field.type, *get_args(field.type))
        cls = next((t for t in types if isinstance(t, type) and t is not type(None)), None)
        kind = getattr(cls, "sda_kind", None)
        table = table[part]
        if kind is not None:
            last = i == len(parts) - 1
            chosen = str(name if last else table.get("name"))
            try:
                cls = default_manager().get(kind, chosen)
            except SDAError:  # said where the experiment is checked
                return set()
        if cls is None or not attrs.has(cls):
            return set()
    return set(configuration_fields(cls))
