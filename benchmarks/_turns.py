"""Two codes timed in turns."""

from __future__ import annotations

from collections.abc import Callable


def take_turns(
    turns: int, theirs: Callable[[], float], ours: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Run both once to warm up, then in turn."""
    theirs()
    ours()
    pairs = [(theirs(), ours()) for _ in range(turns)]
    return [p[0] for p in pairs], [p[1] for p in pairs]
