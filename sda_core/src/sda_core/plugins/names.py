"""Kinds and names, and what to say of those that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sda_core.errors import UnknownComponentError

#: What a component can be, in the order of tables.
KINDS = (
    "system",
    "kernel",
    "schedule",
    "sampler",
    "guidance",
    "observation",
    "noise",
    "method",
    "tracker",
    "cluster",
    "sweep",
)


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option most like a word, or None if nothing is like it."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """``"did you mean 'x'? "``, or nothing; stands before what it is a hint to."""
    match = nearest(word, options)
    return f"did you mean {match!r}? " if match else ""


def cause_text(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"


def check_kind(kind: str) -> None:
    """Refuse a kind that is none.

    Raises:
        UnknownComponentError: There is no such kind.
    """
    if kind not in KINDS:
        raise UnknownComponentError(
            f"unknown kind of component {kind!r}: {did_you_mean(kind, KINDS)}"
            f"the kinds are {', '.join(KINDS)}"
        )
