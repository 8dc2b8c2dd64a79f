"""Making items ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """Make items in a background thread, while those before them are used.

    The thread ends with the items, with an error, and when the iterator returned is closed.

    Args:
        items: What is made, in this order; None ends them.
        count: How many are made ahead.

    Yields:
        The items; an error in making one is raised in its place.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = deque(thread.submit(next, items, None) for _ in range(count))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
