"""What lies between the workers of a group and the driver."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import attrs

#: Seconds after which an orphaned channel ends.
ORPHAN_TIMEOUT = 60.0


@attrs.frozen
class News:
    """What the driver does not know yet.

    Attributes:
        messages: What rank 0 sends, pickled.
        error: What the work raised, pickled.
        losses: Why workers were lost.
        is_running: Whether the workers are at work.
    """

    messages: list[bytes]
    error: bytes | None
    losses: list[str]
    is_running: bool


class Channel:
    """Between the workers and the driver; an actor.

    Only the group that began last is heard: one that was given up may have messages on their way.
    """

    def __init__(self) -> None:
        self._group, self._workers = "", dict[int, Any]()
        self._messages, self._losses = list[bytes](), list[str]()
        self._error: bytes | None = None
        self._placement: Any = None
        self._stopping = self._closed = False

    # --- for the workers ---

    def join(self, group: str, rank: int, actor: list[Any], placement: Any) -> None:
        """Know a worker of a group, and what the group holds."""
        if group != self._group:
            self._group, self._workers, self._placement = group, {}, placement
        self._workers[rank] = actor

    def workers(self) -> list[list[Any]]:
        """The workers of the group."""
        return list(self._workers.values())

    def send(self, group: str, message: bytes) -> None:
        """Pass a message on."""
        if group == self._group:
            self._messages.append(message)

    def fail(self, group: str, error: bytes) -> None:
        """Pass on what the work has raised."""
        if group == self._group and self._error is None:
            self._error = error

    def is_stopping(self) -> bool:
        """Whether the work is to stop."""
        return self._stopping

    # --- for the runner ---

    def report_loss(self, cause: str) -> None:
        """Know that a worker, and with it the group, is lost."""
        self._losses.append(cause)
        self._group, self._workers = "", {}

    def is_closed(self) -> bool:
        """Whether nobody wants the workers any more."""
        return self._closed

    # --- for the driver ---

    def take(self) -> News:
        """What has come since the last call."""
        news = News(self._messages, self._error, self._losses, bool(self._group))
        self._messages, self._losses = [], []
        return news

    def stop(self) -> None:
        """Let the work stop."""
        self._stopping = True

    def close(self) -> None:
        """Let the workers end."""
        self._closed = True

    def clean_up_after(self, ended: list[Any]) -> None:
        """Free what the workers hold when their runner has ended or is lost."""
        threading.Thread(target=self._clean_up_after, args=ended, daemon=True).start()

    def _clean_up_after(self, ended: Any) -> None:
        """Free what the workers hold, which Ray keeps if their runner was killed; then end."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            ray.get(ended)
        if self._placement is not None:
            ray.util.remove_placement_group(self._placement)
        time.sleep(ORPHAN_TIMEOUT)  # by then the driver has ended this process, or is lost
        ray.kill(ray.get_runtime_context().current_actor)
