"""The classes of a package's components as its own names, each imported when first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def exports(
    package: str, plugin: str = "plugin", more: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Let the components of a package be imported from it.

    With ``__getattr__, __dir__ = exports(__name__)`` in its ``__init__.py``, ``from sda_dps import
    MMPS`` imports the module of ``MMPS``, and importing the package alone imports none.

    Args:
        package: The package.
        plugin: Its module that registers components.
        more: Modules in the package by further names that they define.

    Returns:
        The package's ``__getattr__`` and ``__dir__``.
    """

    def targets() -> dict[str, str]:
        registered: Iterable[Any] = importlib.import_module(
            f"{package}.{plugin}"
        ).sda_register_components()
        found = {c.target.partition(":")[2]: c.target.partition(":")[0] for c in registered}
        return found | {name: f"{package}.{module}" for name, module in (more or {}).items()}

    def getattr_(name: str) -> Any:
        module = None if name.startswith("_") else targets().get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *targets()})

    return getattr_, dir_
