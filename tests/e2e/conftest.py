"""A run that tests of several files copy."""

from __future__ import annotations

from pathlib import Path

import pytest

import sda_core as sda

from .small_runs import TINY, experiments


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the settings TINY; not to be changed."""
    directory = tmp_path_factory.mktemp("tiny")
    sda.run(experiments(TINY)(), directory, progress=False)
    return directory
