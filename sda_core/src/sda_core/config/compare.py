"""How two configurations differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All values of a table and its tables, by dotted path."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    words: tuple[str, str] = ("there", "asked for"),
) -> list[str]:
    """The keys in which two tables differ, as "key (value there, value asked for)".

    Args:
        one: A table.
        other: Another one.
        words: What to call the first and the other.
    """
    here, there = flatten(one), flatten(other)
    return [
        f"{key} ({here.get(key, 'none')} {words[0]}, {there.get(key, 'none')} {words[1]})"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
