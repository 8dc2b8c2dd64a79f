"""TrackerSet keep failing trackers apart; what histograms must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from sda_core.errors import StoppedError, TrackingWarning
from sda_core.tracker import Histogram, Session, Tracker, TrackerSet

CALLS: dict[str, Callable[[Session], None]] = {
    "log": lambda s: s.log({"loss": 1.0}, 5),
    "save_model": lambda s: s.save_model(Path("model")),
    "close": lambda s: s.close({"seconds": 2.0}),
}


class Recorder(Session):
    def __init__(self, fails_at: str | None) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.fails_at = fails_at

    def _hear(self, *call: Any) -> None:
        self.heard.append(call)
        if call[0] == self.fails_at:
            raise OSError("disk full")

    def log(self, values: Any, step: int) -> None:
        self._hear("log", dict(values), step)

    def save_model(self, directory: Path) -> None:
        self._hear("save_model", directory)

    def close(self, summary: Any, error: BaseException | None = None) -> None:
        self._hear("close", summary, error)


@attrs.frozen(eq=False)
class Recording(Tracker):
    fails_at: str | None = None
    sessions: list[Recorder] = attrs.field(factory=list)

    def open(self, run: Any, stage: str) -> Session:
        if self.fails_at == "open":
            raise ConnectionError("no network")
        session = Recorder(self.fails_at)
        session.heard.append(("open", run, stage))
        self.sessions.append(session)
        return session


HEARD = [
    ("open", "run", "train"),
    ("log", {"loss": 1.0}, 5),
    ("save_model", Path("model")),
    ("close", {"seconds": 2.0}, None),
]


def test_all_sessions_hear_all() -> None:
    trackers = Recording(), Recording()
    sessions = TrackerSet(trackers, "run", "train")
    for call in CALLS.values():
        call(sessions)
    assert [t.sessions[0].heard for t in trackers] == [HEARD, HEARD]
    sessions.close(None)  # they are closed already
    assert trackers[0].sessions[0].heard == HEARD


def test_sessions_hear_what_ended_the_stage() -> None:
    tracker, error = Recording(), StoppedError("stopped")
    TrackerSet((tracker,), "run", "train").close(None, error)
    assert tracker.sessions[0].heard[-1] == ("close", None, error)


@pytest.mark.parametrize("at", ["open", *CALLS])
def test_who_fails_is_left_out(at: str) -> None:
    """The others go on, and it is not called again."""
    first, bad, last = Recording(), Recording(fails_at=at), Recording()
    cause = "ConnectionError: no network" if at == "open" else "OSError: disk full"

    def stage() -> None:
        sessions = TrackerSet((first, bad, last), "run", "train")
        for call in CALLS.values():
            call(sessions)

    with pytest.warns(TrackingWarning) as caught:
        stage()
    assert [str(w.message) for w in caught] == [
        f"Recording failed and is left out from now on, the run goes on: {cause}"
    ]
    assert first.sessions[0].heard == last.sessions[0].heard == HEARD
    heard = bad.sessions[0].heard if bad.sessions else []
    assert heard == HEARD[: ["open", *CALLS].index(at) + (at != "open")]


def test_interrupts_are_not_caught() -> None:
    class Interrupted(Recording):
        def open(self, run: Any, stage: str) -> Session:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrackerSet((Interrupted(),), "run", "train")


def test_histogram() -> None:
    histogram = Histogram(counts=[1, 2], edges=[0, 0.5, 1])
    assert histogram == Histogram(counts=(1.0, 2.0), edges=(0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="a histogram of 2 counts has 3 edges, got 2"):
        Histogram(counts=(1, 2), edges=(0, 1))
