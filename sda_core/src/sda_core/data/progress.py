"""How far a generation has come, on the terminal or as lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: True: a bar on a terminal, else lines; None: a bar on a terminal, else nothing; False: nothing;
#: or a function of (blocks done, blocks in all).
ProgressOption = bool | Callable[[int, int], None] | None
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def reporting(progress: ProgressOption, done: int, total: int) -> Iterator[Callable[[int], None]]:
    """Report progress as chosen.

    Args:
        progress: What to show, and where.
        done: Blocks that were done before.
        total: Blocks in all.

    Yields:
        A function to call with the number of blocks done.
    """
    console = Console(stderr=True)
    if callable(progress):
        function = progress
        yield lambda blocks: function(blocks, total)
    elif progress is False or (progress is None and not console.is_terminal):
        yield lambda blocks: None
    elif console.is_terminal:
        columns = (
            TextColumn("simulating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("blocks,"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total, completed=done)
            yield lambda blocks: bar.update(task, completed=blocks)
    else:
        yield _lines(console, done, total)


def _lines(console: Console, done: int, total: int) -> Callable[[int], None]:
    start = time.monotonic()
    next_line = start

    def report(blocks: int) -> None:
        nonlocal next_line
        now = time.monotonic()
        if now < next_line and blocks < total:
            return
        next_line = now + SECONDS_BETWEEN_LINES
        left = (now - start) / max(1, blocks - done) * (total - blocks)
        console.print(f"simulated {blocks} of {total} blocks, about {left:.0f} s left")

    return report
