"""One path that a sweep varies, and the table that says its values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sda_core.config import nearest
from sda_core.config.compare import flatten
from sda_core.errors import ConfigError

if TYPE_CHECKING:
    import optuna

#: Where the space is, in messages.
TABLE = "space"
#: The keys that say values: what is allowed, and an example.
KINDS = {
    "range": ("two numbers, the smaller first", "range = [0.001, 0.1]"),
    "log_range": ("two numbers above 0, the smaller first", "log_range = [1e-4, 1e-2]"),
    "integers": ("two whole numbers, the smaller first", "integers = [2, 6]"),
    "choice": ("one value or more, each once", 'choice = ["mlp", "transformer"]'),
}


@attrs.frozen(kw_only=True)
class Parameter:
    """One path of the configuration, and the values it may take.

    Attributes:
        path: The dotted path.
        kind: Which of the four keys says the values.
        values: The two ends, or the choices.
        step: Distance of values between the ends; None for all numbers.
        when: The other paths that it depends on, and for which of their values it exists.
    """

    path: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = attrs.Factory(dict)

    @property
    def labels(self) -> tuple[Any, ...]:
        """The choices as a database can hold them."""
        return tuple(json.dumps(v) if isinstance(v, list | dict) else v for v in self.values)

    @property
    def is_finite(self) -> bool:
        """Whether it has finitely many values."""
        return self.kind == "choice" or self.step is not None

    def exists(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it does, given what was chosen for the paths that it depends on."""
        return all(p in chosen and chosen[p] in allowed for p, allowed in self.when.items())

    def all(self) -> tuple[Any, ...]:
        """All its values, where these are finitely many."""
        if self.kind == "choice" or self.step is None:
            return self.values
        low, high = self.values
        count = round((high - low) / self.step) + 1
        return tuple(type(low)(round(low + i * self.step, 12)) for i in range(count))

    def suggest(self, trial: optuna.Trial) -> Any:
        """Let a search choose a value."""
        if self.kind == "choice":
            label = trial.suggest_categorical(self.path, self.labels)
            return self.values[self.labels.index(label)]
        low, high = self.values
        if self.kind == "integers":
            return trial.suggest_int(self.path, low, high, step=int(self.step or 1))
        log = self.kind == "log_range"
        return trial.suggest_float(self.path, low, high, log=log, step=self.step)

    def label_of(self, value: Any) -> Any:
        """What stands for a value in the database."""
        return self.labels[self.values.index(value)] if self.kind == "choice" else value


def read_parameter(path: str, leaf: Any) -> Parameter:
    """Read the table of a parameter.

    Raises:
        ConfigError: Something in it is wrong; says what, by key.
    """
    where = f"{TABLE}.{path}"
    example = KINDS["log_range"][1]
    if not isinstance(leaf, Mapping):
        raise ConfigError(f"{where}: got {leaf!r}, allowed: a table such as {{ {example} }}")
    kinds = [kind for kind in KINDS if kind in leaf]
    if len(kinds) != 1:
        raise ConfigError(
            f"{where}: has {' and '.join(kinds)}, but needs exactly one of {', '.join(KINDS)}, "
            f"such as {{ {example} }}"
        )
    kind = kinds[0]
    known = (kind, "when", "step") if kind in ("integers", "range") else (kind, "when")
    for key in leaf:
        if key not in known:
            hint = f"did you mean {match!r}? " if (match := nearest(key, known)) else ""
            raise ConfigError(f"{where}.{key}: unknown key, {hint}allowed: {', '.join(known)}")
    values, step = leaf[kind], leaf.get("step", 1 if kind == "integers" else None)
    what, example = KINDS[kind]
    if not isinstance(values, list | tuple) or not _fits(kind, values):
        raise ConfigError(f"{where}.{kind}: got {values!r}, allowed: a list of {what}, {example}")
    if step is not None and not _divides(kind, values, step):
        whole = "whole " if kind == "integers" else ""
        raise ConfigError(
            f"{where}.step: got {step!r}, allowed: a {whole}number that divides "
            f"{values[1]} - {values[0]}"
        )
    when = leaf.get("when", {})
    if not isinstance(when, Mapping):
        raise ConfigError(
            f'{where}.when: got {when!r}, allowed: a table, as when = {{ "kernel.name" = "mlp" }}'
        )
    return Parameter(
        path=path,
        kind=kind,
        values=tuple(map(float, values)) if kind.endswith("range") else tuple(values),
        step=step,
        when={p: tuple(v) if isinstance(v, list) else (v,) for p, v in flatten(when).items()},
    )


def _fits(kind: str, values: Any) -> bool:
    if kind == "choice":
        return 0 < len(values) == len({json.dumps(value) for value in values})
    if len(values) != 2 or not all(_is_number(kind, v) and math.isfinite(v) for v in values):
        return False
    return bool(values[0] < values[1]) and (kind != "log_range" or values[0] > 0)


def _divides(kind: str, values: Any, step: Any) -> bool:
    if not _is_number(kind, step) or step <= 0:
        return False
    steps = (values[1] - values[0]) / step
    return abs(steps - round(steps)) <= 1e-9 * max(1.0, steps)


def _is_number(kind: str, value: Any) -> bool:
    numbers = int if kind == "integers" else (int, float)
    return isinstance(value, numbers) and not isinstance(value, bool)
