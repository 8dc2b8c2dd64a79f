"""Types and values in words, for messages and tables."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from sda_core.io.secrets import redact

_PLAIN = {type(None): "none", Any: "any value", Path: "path", dict: "table", tuple: "list"}
_LONGEST = 60


def is_union(annotation: Any) -> bool:
    """Whether a type is ``A | B`` or ``Optional[A]``."""
    return get_origin(annotation) in (Union, types.UnionType)


def is_list(annotation: Any) -> bool:
    """Whether a type is written as a list in TOML."""
    return (get_origin(annotation) or annotation) in (tuple, list, Sequence)


def is_table(annotation: Any) -> bool:
    """Whether a type is written as a table with free keys in TOML."""
    return (get_origin(annotation) or annotation) in (dict, Mapping)


def type_text(annotation: Any) -> str:
    """A field's type as people who write TOML know it."""
    args = get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, args))
    if is_union(annotation):
        return " | ".join(map(type_text, args))
    if is_list(annotation) and args:
        if args[-1] is Ellipsis or (len(args) == 1 and get_origin(annotation) is not tuple):
            return f"list of {type_text(args[0])}"
        return f"list [{', '.join(map(type_text, args))}]"
    if is_table(annotation) and args:
        return f"table of {type_text(args[1])}"
    return str(getattr(annotation, "sda_kind", None) or getattr(annotation, "__name__", annotation))


def value_text(value: object) -> str:
    """A value as it stands in messages, shortened."""
    if isinstance(value, Mapping):
        return "a table"
    text = redact(repr(value))
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{text} ({type(value).__name__})"
