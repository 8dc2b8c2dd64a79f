"""The search of a sweep as Ray Tune sees it."""

from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from sda_ray.book import Book
from sda_ray.study import Trial
from sda_ray.worker import VALUE


class NotKept:
    """What Tune wants to keep, to go on from, and need not: the book is on the disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class OptunaSearcher(NotKept, Searcher):
    """Gives Tune the trials of a book, which Optuna has chosen."""

    def __init__(self, book: Book) -> None:
        super().__init__(metric=VALUE, mode=book.sweep.mode)
        self._book = book

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        trial = self._book.start()
        return Searcher.FINISHED if trial is None else {"trial": config_of(trial)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the book has heard of it from the callback, which knows more."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the book is on the disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the book is on the disk."""


def config_of(trial: Trial) -> dict[str, Any]:
    """What the process of a trial is given."""
    return {"number": trial.number, "parameters": trial.parameters}
