"""Score-based data assimilation.

Importing this package is cheap: what needs torch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sda_core.cli.catalog import info, init, list_components, presets
    from sda_core.config import component, option
    from sda_core.experiment import Experiment, load_experiment
    from sda_core.plugins.doctor import doctor
    from sda_core.stages import assimilate, evaluate, run, sample, simulate, train, train_seeds

__all__ = [
    "Experiment",
    "__version__",
    "assimilate",
    "component",
    "doctor",
    "evaluate",
    "info",
    "init",
    "list_components",
    "load_experiment",
    "option",
    "presets",
    "run",
    "sample",
    "simulate",
    "train",
    "train_seeds",
]

# No name here may be a submodule's: importing the submodule would replace the function.
_HOMES = {
    "Experiment": "experiment",
    "assimilate": "stages",
    "component": "config",
    "doctor": "plugins.doctor",
    "evaluate": "stages",
    "info": "cli.catalog",
    "init": "cli.catalog",
    "list_components": "cli.catalog",
    "load_experiment": "experiment",
    "option": "config",
    "presets": "cli.catalog",
    "run": "stages",
    "sample": "stages",
    "simulate": "stages",
    "train": "stages",
    "train_seeds": "stages",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
