"""Where a training is shown and stopped: here, or from the process that asked for it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import attrs

from sda_core.cluster import Cluster, Link
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption, announce, reporting

#: A function of the steps done and a note, and one that says whether to stop.
Watching = tuple[Callable[..., None], Callable[[], bool]]


class Watcher(ABC):
    """Who watches a training."""

    @abstractmethod
    def watching(self, total: int, done: int) -> AbstractContextManager[Watching]:
        """Watch a training of so many steps, of which some are done."""

    @abstractmethod
    def say(self, line: str) -> None:
        """Say something."""


@attrs.frozen
class Here(Watcher):
    """This process, where progress is shown and Ctrl-C is heard."""

    progress: ProgressOption

    @contextmanager
    def watching(self, total: int, done: int) -> Iterator[Watching]:
        """Watch a training."""
        with (
            reporting(self.progress, "training", total, done) as report,
            stop_request() as stopping,
        ):
            yield report, stopping

    def say(self, line: str) -> None:
        """Say something, where progress is shown."""
        announce(self.progress, line)


@attrs.frozen
class Asker(Watcher):
    """The process that asked for the training, by a link to it."""

    link: Link

    @contextmanager
    def watching(self, total: int, done: int) -> Iterator[Watching]:
        """Watch a training."""
        self.link.tell(("begin", total, done))
        yield lambda done, note="": self.link.tell(("step", done, note)), self.link.stopping

    def say(self, line: str) -> None:
        """Say something."""
        self.link.tell(("say", line))

    def saved(self) -> None:
        """Say that a checkpoint was saved."""
        self.link.tell(("saved",))

    @contextmanager
    def warned(self) -> Iterator[None]:
        """Let warnings of this process be given there."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: self.link.tell(("warn", message))
            yield


def watch_together(
    cluster: Cluster,
    work: Callable[[Link], None],
    progress: ProgressOption,
    fetch: Callable[[], None],
    **options: Any,
) -> None:
    """Let processes train together, and watch what an :class:`Asker` among them tells.

    Args:
        cluster: Where.
        work: What each does.
        progress: What to show.
        fetch: Called when a checkpoint was saved.
        options: More for :meth:`sda_core.cluster.Cluster.together`.
    """
    report: Callable[..., None] | None = None
    with ExitStack() as stack:
        stopping = stack.enter_context(stop_request())
        told = stack.enter_context(closing(cluster.together(work, stopping=stopping, **options)))
        what: list[Any]
        for kind, *what in told:
            if kind == "begin" and report is None:
                report = stack.enter_context(reporting(progress, "training", *what))
            elif kind == "begin":
                total, done = what
                announce(
                    progress,
                    f"workers were started anew, and go on from step {done:,} of {total:,}",
                )
            elif kind == "step" and report is not None:
                report(*what)
            elif kind == "saved":
                fetch()
            elif kind == "say":
                announce(progress, *what)
            elif kind == "warn":
                warnings.warn(what[0], stacklevel=4)
