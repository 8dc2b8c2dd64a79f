"""Asking the process of a trial, from the process of its group that trains.

The trial is compared with others where Ray Tune knows it, and trained elsewhere, if it has several
workers. Questions and answers lie on a desk between the two, an actor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import ray

#: Called with (epochs done, the metric); gives a reason to end the trial.
Report = Callable[[int, float], str | None]
#: Seconds between two looks at the desk, while an answer is waited for and else.
_GLANCE, _FAR_GLANCE = 0.1, 1.0


@contextmanager
def desk(report: Report, check: Callable[[], None]) -> Iterator[tuple[Report, Callable[[], None]]]:
    """Have two functions called from other processes of the cluster.

    Args:
        report: Called once for each epoch; a group that begins anew gets the answers of before.
        check: Called often; what it raises is raised there.

    Yields:
        Both, to be sent there.
    """
    actor: Any = ray.remote(num_cpus=0)(_Desk).remote()
    closed = threading.Event()
    clerk = threading.Thread(target=_answer, args=(actor, report, check, closed), daemon=True)
    clerk.start()
    try:
        asker = _Asker(actor)
        yield asker.report, asker.check
    finally:
        closed.set()
        clerk.join()
        ray.kill(actor)


def _answer(actor: Any, report: Report, check: Callable[[], None], closed: threading.Event) -> None:
    """Answer what is asked, in the process of the trial."""
    reached, reason = 0, None
    try:
        while not closed.wait(_GLANCE):
            check()
            asked = ray.get(actor.asked.remote())
            if asked is None:
                continue
            epoch, value = asked
            if epoch > reached and reason is None:
                reached, reason = epoch, report(epoch, value)
            ray.get(actor.answer.remote(epoch, reason))
    except Exception as error:  # noqa: BLE001 - it is raised where the training is
        ray.get(actor.close.remote(error))


class _Desk:
    def __init__(self) -> None:
        self._asked: tuple[int, float] | None = None
        self._answers: dict[int, str | None] = {}
        self._error: Exception | None = None

    def ask(self, epoch: int, value: float) -> None:
        self._asked = (epoch, value)

    def asked(self) -> tuple[int, float] | None:
        asked, self._asked = self._asked, None
        return asked

    def answer(self, epoch: int, reason: str | None) -> None:
        self._answers[epoch] = reason

    def close(self, error: Exception) -> None:
        self._error = error

    def look(self, epoch: int) -> tuple[Exception | None, bool, str | None]:
        return self._error, epoch in self._answers, self._answers.get(epoch)


@attrs.define
class _Asker:
    """Both functions, in the process that trains."""

    actor: Any
    next: float = 0.0

    def report(self, epoch: int, value: float) -> str | None:
        """Ask, and wait for the answer."""
        ray.get(self.actor.ask.remote(epoch, value))
        while True:
            is_answered, reason = self._look(epoch)
            if is_answered:
                return reason
            time.sleep(_GLANCE)

    def check(self) -> None:
        """Raise what was raised there."""
        if (now := time.monotonic()) >= self.next:
            self.next = now + _FAR_GLANCE
            self._look(0)

    def _look(self, epoch: int) -> tuple[bool, str | None]:
        error, is_answered, reason = ray.get(self.actor.look.remote(epoch))
        if error is not None:
            raise error
        return is_answered, reason
