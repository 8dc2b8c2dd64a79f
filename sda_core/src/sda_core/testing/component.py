"""Checks of components by name, as tests of their own.

A plugin's test file needs three lines::

    import pytest
    from sda_core.testing import checks

    @pytest.mark.parametrize("check", checks("system", "double-pendulum"), ids=str)
    def test_double_pendulum(check):
        check()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sda_core.cluster import Cluster
from sda_core.config import describe, structure, unstructure
from sda_core.guidance import Guidance
from sda_core.kernel import Kernel
from sda_core.method import Method
from sda_core.noise import Noise
from sda_core.observation import Observation
from sda_core.plugins import PluginManager, default_manager
from sda_core.sampler import Sampler
from sda_core.schedule import Schedule
from sda_core.sweep import Sweep
from sda_core.system import System
from sda_core.testing import (
    cluster,
    guidance,
    kernel,
    method,
    noise,
    observation,
    sampler,
    schedule,
    sweep,
    system,
    tracker,
)
from sda_core.testing.promises import Check, require
from sda_core.tracker import Tracker

#: By kind: base class, promises, and conditions with their defaults.
_KINDS: dict[str, tuple[Any, tuple[Callable[..., None], ...], dict[str, Any]]] = {
    "system": (System, system.PROMISES, {}),
    "kernel": (Kernel, kernel.PROMISES, {"window": kernel.DEFAULT_WINDOW}),
    "schedule": (Schedule, schedule.PROMISES, {}),
    "sampler": (Sampler, sampler.PROMISES, {"tolerance": sampler.DEFAULT_TOLERANCE}),
    "guidance": (Guidance, guidance.PROMISES, {}),
    "observation": (
        Observation,
        observation.PROMISES,
        {"spec": observation.DEFAULT_SPEC, "length": observation.DEFAULT_LENGTH},
    ),
    "noise": (Noise, noise.PROMISES, {"shape": noise.DEFAULT_SHAPE}),
    "method": (Method, method.PROMISES, {"tolerance": method.DEFAULT_TOLERANCE}),
    "tracker": (Tracker, tracker.PROMISES, {}),
    "cluster": (Cluster, cluster.PROMISES, {}),
    "sweep": (Sweep, sweep.PROMISES, {}),
}


def _configuration(table: Mapping[str, Any], base: Any, manager: PluginManager) -> None:
    """Its table makes it, and it makes a table that JSON can hold and that makes it again."""
    made: Any = structure(base, table, manager=manager)
    plain = unstructure(made, manager=manager)
    again = unstructure(
        structure(base, json.loads(json.dumps(plain)), manager=manager), manager=manager
    )
    require(plain == again, f"{plain} became {again}")
    require(_holds(plain, table), f"{dict(table)} became {plain}")


def _holds(plain: Any, given: Any) -> bool:
    """Whether a table has all that was given, besides defaults."""
    if isinstance(given, Mapping):
        return all(key in plain and _holds(plain[key], value) for key, value in given.items())
    if isinstance(given, list | tuple):
        return len(plain) == len(given) and all(map(_holds, plain, given))
    return bool(plain == given)


def _documentation(cls: type) -> None:
    """It says what it is, and what each of its fields is."""
    require((cls.__doc__ or "").strip(), "it has no docstring")
    silent = [field.name for field in describe(cls) if not field.help]
    require(not silent, f"fields without help: {silent}")


def checks(
    kind: str,
    name: str,
    fields: Mapping[str, Any] | None = None,
    *,
    manager: PluginManager | None = None,
    **conditions: Any,
) -> list[Check]:
    """The promises of one component, each as a callable test.

    Args:
        kind: Its kind.
        name: The name it is registered under.
        fields: Its configuration, where the defaults are not what should be checked.
        manager: Where it is looked up; None for what is installed.
        **conditions: What the kind's checks take besides: ``window`` for kernels, ``tolerance`` for
            samplers and methods, ``spec`` and ``length`` for observations, ``shape`` for noises.

    Raises:
        UnknownComponentError: There is no such kind.
        TypeError: A condition is not one of the kind's.
    """
    found = manager or default_manager()
    found.components(kind)
    base, promises, defaults = _KINDS[kind]
    for condition in conditions:
        if condition not in defaults:
            raise TypeError(
                f"checks of a {kind} take {sorted(defaults) or 'no conditions'}, got {condition!r}"
            )
    table = {"name": name, **(fields or {})}
    given = {**defaults, **conditions}
    subject = f"{kind}-{name}"

    def arguments() -> tuple[Any, ...]:
        return (structure(base, table, manager=found), *given.values())

    return [
        Check(subject, _configuration, lambda: (table, base, found)),
        Check(subject, _documentation, lambda: (found.get(kind, name),)),
        *(Check(subject, promise, arguments) for promise in promises),
    ]


def check_component(
    kind: str,
    name: str,
    fields: Mapping[str, Any] | None = None,
    *,
    manager: PluginManager | None = None,
    **conditions: Any,
) -> None:
    """Check all that :func:`checks` lists.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    for check in checks(kind, name, fields, manager=manager, **conditions):
        check()
