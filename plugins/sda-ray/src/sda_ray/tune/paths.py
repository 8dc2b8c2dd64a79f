"""Setting values in the table of an experiment by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import attrs

from sda_core.config.convert import configuration_fields
from sda_core.errors import ConfigError, SDAError
from sda_core.plugins import default_manager


def set_by_path(table: dict[str, Any], path: str, value: Any) -> None:
    """Set a value by its path; a number in it is that of a list's entry.

    Another component's ``name`` keeps those fields of its table that the component has, too.

    Raises:
        ConfigError: The path leads through what is neither a table nor a list with such an entry.
    """
    parts, inner = path.split("."), table
    for i, part in enumerate(parts[:-1]):
        inner = _enter(inner, part, ".".join(parts[: i + 1]))
    last = parts[-1]
    if isinstance(inner, list):
        inner[_index(inner, last, path)] = value
        return
    if last == "name" and inner.get("name", value) != value:
        kept = _fields(table, parts[:-1], value)
        for key in [key for key in inner if key not in kept]:
            del inner[key]
    inner[last] = value


def _enter(inner: Any, part: str, path: str) -> Any:
    found = (
        inner[_index(inner, part, path)] if isinstance(inner, list) else inner.setdefault(part, {})
    )
    if not isinstance(found, dict | list):
        raise ConfigError(f"{path} is {found!r}, not a table")
    return found


def _index(entries: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise ConfigError(
            f"{path}: got {part!r}, allowed: the number of one of {len(entries)} entries, from 0"
        )
    return int(part)


def _fields(table: Mapping[str, Any], parts: list[str], name: Any) -> set[str]:
    """The fields of the component of a name at a place in an experiment."""
    from sda_core.experiment import Experiment

    cls: Any = Experiment
    for i, part in enumerate(parts):
        field = configuration_fields(cls).get(part)
        types = () if field is None else (field.type, *get_args(field.type))
        cls = next((t for t in types if isinstance(t, type) and t is not type(None)), None)
        kind = getattr(cls, "sda_kind", None)
        if not isinstance(table, Mapping) or part not in table:
            return set()
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
