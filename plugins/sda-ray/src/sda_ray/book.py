"""What Ray Tune is told of the trials of a study, and tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sda_ray.study import Trial

if TYPE_CHECKING:
    from sda_ray.sweep import RayTune


class Book(Protocol):
    """The :class:`sda_ray.ledger.Ledger` of a study, or what speaks for it on another machine."""

    @property
    def sweep(self) -> RayTune:
        """What is asked for."""

    @property
    def earlier(self) -> Sequence[Trial]:
        """The trials that have ended."""

    def start(self) -> Trial | None:
        """The trial to do next; None when all are started."""

    def report(
        self,
        number: int,
        epoch: int,
        value: float,
        seconds: float = 0.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a value of the metric."""

    def end(self, number: int, cause: str | None = None) -> None:
        """Record that a trial has ended."""

    def leave(self) -> None:
        """Record that the study is left."""
