"""Trackers: where the numbers and pictures of a run are sent while it goes on.

A tracker is configuration; :meth:`Tracker.open` gives the session of one stage. What is logged is a
number, a histogram or a picture, by name, at an optimizer step. Trackers are no part of a result,
and one that fails ends no run: it is left out from then on, with a warning.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import attrs

from sda_core.errors import TrackingWarning

if TYPE_CHECKING:
    from sda_core.figures import Picture


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


@attrs.frozen
class Histogram:
    """How values are distributed.

    Attributes:
        counts: Number of values in each bin, (n,).
        edges: Edges of the bins, ascending, (n + 1,).
    """

    counts: tuple[float, ...] = attrs.field(converter=_floats)
    edges: tuple[float, ...] = attrs.field(converter=_floats)

    def __attrs_post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"a histogram of {len(self.counts)} counts has {len(self.counts) + 1} edges, "
                f"got {len(self.edges)}"
            )


#: What can be logged.
Value: TypeAlias = "float | Histogram | Picture"


class Session(ABC):
    """The tracking of one stage of a run."""

    @abstractmethod
    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record values, by name, at an optimizer step.

        Steps rise, but go back to that of the checkpoint when a training is resumed or rolled back.
        """

    def save_model(self, directory: Path) -> None:  # noqa: B027 - not every tracker keeps models
        """Keep a trained model, a directory with weights and description; by default not."""

    @abstractmethod
    def close(self, summary: Mapping[str, Any] | None, error: BaseException | None = None) -> None:
        """End the session.

        Args:
            summary: The results of the stage; None if it did not end well.
            error: What ended it then. After a :class:`~sda_core.errors.StoppedError` the stage can
                be resumed, and there may be little time left.
        """


class Tracker(ABC):
    """Configuration of a tracker."""

    sda_kind: ClassVar[str] = "tracker"

    @abstractmethod
    def open(self, run: Any, stage: str) -> Session:
        """Start, or go on with, the tracking of a run.

        Args:
            run: The run: ``directory``, which is there, ``experiment``, ``manager`` and
                ``progress``.
            stage: The stage that starts.
        """


class TrackerSet(Session):
    """The sessions of several trackers, of which those that fail are left out."""

    def __init__(self, trackers: Iterable[Tracker], run: Any, stage: str) -> None:
        self._open: dict[Tracker, Session] = {}
        for tracker in trackers:
            with self._left_out_if_it_fails(tracker):
                self._open[tracker] = tracker.open(run, stage)

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record values with all."""
        self._each(lambda session: session.log(values, step))

    def save_model(self, directory: Path) -> None:
        """Keep a trained model with all."""
        self._each(lambda session: session.save_model(directory))

    def close(self, summary: Mapping[str, Any] | None, error: BaseException | None = None) -> None:
        """End all sessions."""
        self._each(lambda session: session.close(summary, error))
        self._open.clear()

    def _each(self, do: Callable[[Session], None]) -> None:
        for tracker, session in list(self._open.items()):
            with self._left_out_if_it_fails(tracker):
                do(session)

    @contextmanager
    def _left_out_if_it_fails(self, tracker: Tracker) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a tracker can fail in any way
            self._open.pop(tracker, None)
            warnings.warn(
                f"{type(tracker).__name__} failed and is left out from now on, the run goes on: "
                f"{type(error).__name__}: {error}",
                TrackingWarning,
                stacklevel=4,
            )
