"""What there is to configure, for people."""

from __future__ import annotations

import inspect
import re
from typing import Any

import attrs

from sda_core.config.convert import configuration_fields
from sda_core.config.text import type_text

_FACTORY: Any = attrs.Factory
_SECTION = re.compile(r"^(?:Attributes|Args):\n((?:[ ]+.*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: *(.*(?:\n {5,}.*)*)", re.MULTILINE)


@attrs.frozen(kw_only=True)
class FieldInfo:
    """One field of a configuration class.

    Attributes:
        name: Its key.
        type: Its type in words.
        required: Whether it has to be given.
        default: What it is where it is not given; None if it is required.
        allowed: What values are allowed, beyond the type.
        units: Unit of the value.
        help: What it means.
    """

    name: str
    type: str
    required: bool
    default: Any
    allowed: str
    units: str
    help: str


def describe(cls: type) -> list[FieldInfo]:
    """The fields of a configuration class, in order."""
    documented = _documented(cls)
    return [
        _field_info(name, field, documented) for name, field in configuration_fields(cls).items()
    ]


def _field_info(name: str, field: attrs.Attribute[Any], documented: dict[str, str]) -> FieldInfo:
    default: Any = field.default
    if isinstance(default, _FACTORY):
        default = None if default.takes_self else default.factory()
    check = field.metadata.get("check")
    return FieldInfo(
        name=name,
        type=type_text(field.type),
        required=field.default is attrs.NOTHING,
        default=None if default is attrs.NOTHING else default,
        allowed=check.allowed if check else "",
        units=field.metadata.get("units", ""),
        help=field.metadata.get("help") or documented.get(name, ""),
    )


def _documented(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of its attributes."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "") + "\n"
        for section in _SECTION.findall(text):
            for name, entry in _ENTRY.findall(section):
                found[name] = " ".join(entry.split())
    return found
