"""Sweeps: many trials of one experiment, each with other settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from sda_core.io.progress import ProgressOption


class Sweep(ABC):
    """Searches the settings of an experiment for the best ones."""

    sda_kind: ClassVar[str] = "sweep"

    @abstractmethod
    def run(
        self,
        experiment: Any,
        directory: str | Path,
        *,
        resume: bool = False,
        progress: ProgressOption = True,
    ) -> Path:
        """Do the trials.

        Args:
            experiment: The :class:`sda_core.experiment.Experiment`; its ``cluster`` says where, and
                its ``sweep`` is this one.
            directory: The directory of the study; each trial has a run directory of its own in it.
            resume: Whether to resume the study in the directory. No finished trial is repeated.
            progress: What to show.

        Returns:
            The summary that was written, for people to read.

        Raises:
            ConfigError: The sweep asks for what cannot be; said before anything is started.
            SweepError: There is another study in the directory, or all trials failed.
            StoppedError: Ctrl-C or SIGTERM; the study can be resumed.
        """
