"""How far long work has come: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: True: a bar on a terminal, else lines; None: a bar on a terminal, else nothing; False: nothing;
#: or a function of (done, total).
ProgressOption = bool | Callable[[int, int], None] | None
SECONDS_BETWEEN_LINES = 10.0


def is_shown(progress: ProgressOption) -> bool:
    """Whether text about progress goes to stderr."""
    return progress is True or (progress is None and sys.stderr.isatty())


def announce(progress: ProgressOption, line: str) -> None:
    """Print a line on stderr, where progress is shown there."""
    if is_shown(progress):
        print(line, file=sys.stderr)  # not by a console: a bar on the terminal moves below it


@contextmanager
def reporting(
    progress: ProgressOption, label: str, total: int, done: int = 0
) -> Iterator[Callable[..., None]]:
    """Report progress as chosen.

    Args:
        progress: What to show, and where.
        label: What is being done.
        total: How much there is to do.
        done: How much of it was done before.

    Yields:
        A function of how much is done by now and, optionally, a note to show beside it.
    """
    console = Console(stderr=True, highlight=False)
    if callable(progress):
        function = progress
        yield lambda now, note="": function(now, total)
    elif progress is False or (progress is None and not console.is_terminal):
        yield lambda now, note="": None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total, completed=done, note="")
            yield lambda now, note="": bar.update(task, completed=now, note=note)
    else:
        yield _lines(console, label, total, done)


def _lines(console: Console, label: str, total: int, done: int) -> Callable[..., None]:
    start = time.monotonic()
    next_line = start + 1.0

    def report(now_done: int, note: str = "") -> None:
        nonlocal next_line
        now = time.monotonic()
        if now_done >= total:
            state = f"done in {now - start:.0f} s"
        elif now >= next_line:
            left = (now - start) / max(1, now_done - done) * (total - now_done)
            state = f"{100 * now_done / total:.0f} %, about {left:.0f} s left"
        else:
            return
        next_line = now + SECONDS_BETWEEN_LINES
        console.print(f"{label}: {state}  {note}".rstrip())

    return report
