"""How far long work has come: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

#: True: a bar on a terminal, else lines; None: a bar on a terminal, else nothing; False: nothing;
#: or a function of (done, total).
ProgressOption = bool | Callable[[int, int], None] | None
SECONDS_BETWEEN_LINES = 10.0
#: Time over which a bar takes the speed for what is left: single steps can take a minute.
_SPEED_SECONDS = 600.0

#: Parts that progress is counted in where the number of steps is not known beforehand.
_WHOLE = 10_000


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
        A function of how much is done by now and, optionally, a note to show with it, whose parts
        have two spaces between them.
    """
    with reporting_each(progress, {label: done}, total) as reports:
        yield reports[label]


@contextmanager
def reporting_steps(progress: ProgressOption, label: str) -> Iterator[Callable[[int, int], None]]:
    """Report progress; what is given is called with (steps done, number of steps)."""
    with reporting(progress, label, _WHOLE) as report:
        yield lambda step, num_steps: report(round(_WHOLE * step / num_steps))


@contextmanager
def reporting_each(
    progress: ProgressOption, done: Mapping[str, int], total: int
) -> Iterator[dict[str, Callable[..., None]]]:
    """Report the progress of several things that are done side by side.

    Args:
        progress: What to show, and where; a function is told the sums.
        done: How much was done before, by the label of each.
        total: How much there is to do of each.

    Yields:
        A function for each, as of :func:`reporting`.
    """
    console = Console(stderr=True, highlight=False)
    if callable(progress):
        function, now = progress, dict(done)

        def tell(label: str, now_done: int, note: str = "") -> None:
            now[label] = now_done
            function(sum(now.values()), total * len(now))

        yield {label: partial(tell, label) for label in done}
    elif progress is False or (progress is None and not console.is_terminal):
        yield {label: lambda now_done, note="": None for label in done}
    elif console.is_terminal:
        with _Bars(console) as bars:
            yield {label: bars.add(label, total, before) for label, before in done.items()}
    else:
        yield {label: _lines(console, label, total, before) for label, before in done.items()}


class _Bars(Progress):
    """Bars, each with its note below it, since there is no room beside it on most terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            speed_estimate_period=_SPEED_SECONDS,
        )

    def add(self, label: str, total: int, done: int) -> Callable[..., None]:
        """Add a bar."""
        task = self.add_task(label, total=total, completed=done, note="")
        return lambda now_done, note="": self.update(task, completed=now_done, note=note)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is shown."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if note := task.fields["note"]:
                yield Text(_folded(note, self.console.width - 2), style="dim")


def _folded(note: str, width: int) -> str:
    """A note in lines, indented, that break between its parts only."""
    unbreakable = "  ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in note.split("  "))
    lines = textwrap.wrap(unbreakable, max(1, width - 1), break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "  ").replace("\N{NO-BREAK SPACE}", " ")


def _lines(console: Console, label: str, total: int, done: int) -> Callable[..., None]:
    start = time.monotonic()
    next_line, is_over = start + 1.0, False

    def report(now_done: int, note: str = "") -> None:
        nonlocal start, next_line, is_over
        now = time.monotonic()
        if now_done <= done:
            start = now  # it has not begun, or has lost what it had done
        if is_over or (now_done < total and now < next_line):
            return
        next_line, is_over = now + SECONDS_BETWEEN_LINES, now_done >= total
        if is_over:
            state = f"done in {duration_text(now - start)}"
        else:
            state = f"{100 * now_done / total:.0f} %"
            if now_done > done:
                left = (now - start) / (now_done - done) * (total - now_done)
                state += f", about {duration_text(left)} left"
        console.print(f"{label}: {state}  {note}".rstrip(), soft_wrap=True, markup=False)

    return report


def duration_text(seconds: float) -> str:
    """A duration in words, rounded to about two digits."""
    for unit, length in (("s", 1), ("min", 60)):
        if round(seconds / length) < 100:
            return f"{max(1, round(seconds / length))} {unit}"
    hours = round(seconds / 3600, 1)
    return f"{hours:g} h" if hours < 48 else f"{round(hours / 24, 1):g} days"
