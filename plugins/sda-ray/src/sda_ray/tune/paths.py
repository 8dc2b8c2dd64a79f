"""Another component in the table of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import attrs

from sda_core.config.convert import configuration_fields
from sda_core.errors import SDAError
from sda_core.plugins import default_manager


def renamed(table: Mapping[str, Any], path: str, name: Any) -> dict[str, Any]:
    """The table for the ``name`` at a path, with those fields of the earlier one that it has too.

    Args:
        table: The table of an experiment.
        path: The path of a table in it.
        name: The name of the component that is put there.
    """
    parts, earlier = path.split("."), dict(table)
    for part in parts:
        earlier = earlier.get(part, {})
    kept = _fields(table, parts, name)
    return {key: value for key, value in earlier.items() if key in kept} | {"name": name}


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
