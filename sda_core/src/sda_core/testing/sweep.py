"""What every sweep promises."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from sda_core.errors import SDAError
from sda_core.experiment import Experiment
from sda_core.sweep import Sweep
from sda_core.testing.chain import GaussianChain
from sda_core.testing.promises import keep, require


def _refusal(sweep: Sweep) -> None:
    """An experiment with nothing to sweep is refused before anything is written."""
    experiment = Experiment(system=GaussianChain(), sweep=sweep)
    for resume in (False, True):
        with TemporaryDirectory() as folder:
            directory = Path(folder) / "study"
            try:
                sweep.run(experiment, directory, resume=resume, progress=False)
            except SDAError:
                require(not directory.exists(), "it wrote something before it refused")
                continue
            require(False, "it swept a system without kernel or method")


PROMISES = (_refusal,)


def check_sweep(sweep: Sweep) -> None:
    """Check what every sweep promises.

    Args:
        sweep: The sweep.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, sweep)
