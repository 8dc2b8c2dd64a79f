"""The parameters of a study as axes: what they range over, and where a value lies on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import attrs

from sda_ray.study import Study, Trial


@attrs.frozen(kw_only=True)
class Parameter:
    """An axis of a study.

    Attributes:
        path: The dotted path.
        categories: What can be chosen, spelled; empty for numbers.
        low: The smallest number.
        high: The largest number.
        log: Whether numbers are compared by their logarithms.
        integer: Whether they are whole numbers.
        is_constant: Whether all trials that have it have the same value.
    """

    path: str
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    is_constant: bool = False

    def position(self, value: Any) -> float:
        """Where a value lies between the ends of the axis, from 0 to 1."""
        if self.categories:
            return (self.categories.index(spelled(value)) + 0.5) / len(self.categories)
        if self.low == self.high:
            return 0.5
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def parameters_of(study: Study, trials: Iterable[Trial]) -> list[Parameter]:
    """The parameters that trials have, in the order of the sweep's table.

    An axis has the range that the sweep gives, and that of the trials where it is wider: a
    scheduler can change values after they were drawn.
    """
    values: dict[str, list[Any]] = {}
    for trial in trials:
        for path, value in trial.parameters.items():
            values.setdefault(path, []).append(value)
    space = study.settings.get("space", {})
    order = [path for path in space if path in values]
    order += [path for path in values if path not in space]
    return [_parameter(path, space.get(path, {}), values[path]) for path in order]


def spelled(value: Any) -> str:
    """A value as text."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def _parameter(path: str, leaf: dict[str, Any], values: list[Any]) -> Parameter:
    found = dict.fromkeys(spelled(value) for value in [*leaf.get("choice", ()), *values])
    is_constant = len({spelled(value) for value in values}) == 1
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if "choice" in leaf or len(numbers) < len(values):
        return Parameter(path=path, categories=tuple(found), is_constant=is_constant)
    ends = next((leaf[kind] for kind in ("range", "log_range", "integers") if kind in leaf), ())
    return Parameter(
        path=path,
        low=min([*ends, *values]),
        high=max([*ends, *values]),
        log="log_range" in leaf,
        integer="integers" in leaf,
        is_constant=len(set(values)) == 1,
    )
