"""One path that a sweep varies, and the table that says its values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sda_core.config.compare import flatten
from sda_core.errors import ConfigError
from sda_core.plugins import nearest

if TYPE_CHECKING:
    import optuna

KINDS = ("range", "log_range", "integers", "choice")
#: Where the space is, in messages.
TABLE = "space"
_EXAMPLES = {
    "range": "range = [0.001, 0.1]",
    "log_range": "log_range = [1e-4, 1e-2]",
    "integers": "integers = [2, 6]",
    "choice": 'choice = ["mlp", "transformer"]',
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

    def exists(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it does, given what was chosen for the paths that it depends on."""
        return all(p in chosen and chosen[p] in allowed for p, allowed in self.when.items())

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last value."""
        return self.values[0], self.values[-1]

    @property
    def is_finite(self) -> bool:
        """Whether it has finitely many values."""
        return self.kind == "choice" or self.step is not None

    def all(self) -> tuple[Any, ...]:
        """All its values, where these are finitely many."""
        if self.kind == "choice" or self.step is None:
            return self.values
        low, high = self.ends
        number = int if self.kind == "integers" else float
        return tuple(
            number(round(low + i * self.step, 12))
            for i in range(round((high - low) / self.step) + 1)
        )

    def suggest(self, trial: optuna.Trial) -> Any:
        """Let a search choose a value."""
        low, high = self.ends
        if self.kind == "choice":
            return self.value_of(trial.suggest_categorical(self.path, self.labels))
        if self.kind == "integers":
            return trial.suggest_int(self.path, low, high, step=int(self.step or 1))
        log = self.kind == "log_range"
        return trial.suggest_float(self.path, low, high, log=log, step=self.step)

    def value_of(self, label: Any) -> Any:
        """The value that a label in the database stands for."""
        return self.values[self.labels.index(label)] if self.kind == "choice" else label

    def label_of(self, value: Any) -> Any:
        """What stands for a value in the database."""
        return self.labels[self.values.index(value)] if self.kind == "choice" else value


def read_parameter(path: str, leaf: Any) -> Parameter:
    """Read the table of a parameter.

    Raises:
        ConfigError: Something in it is wrong; says what, by key.
    """
    where = f"{TABLE}.{path}"
    if not isinstance(leaf, Mapping):
        raise ConfigError(
            f"{where}: got {leaf!r}, allowed: a table such as {{ {_EXAMPLES['log_range']} }}"
        )
    kinds = [kind for kind in KINDS if kind in leaf]
    if len(kinds) != 1:
        raise ConfigError(
            f"{where}: has {' and '.join(kinds)}, but needs exactly one of "
            f"{', '.join(KINDS)}, such as {{ {_EXAMPLES['log_range']} }}"
        )
    kind = kinds[0]
    known = (kind, "when", "step") if kind in ("integers", "range") else (kind, "when")
    for key in leaf:
        if key not in known:
            hint = f"did you mean {match!r}? " if (match := nearest(key, known)) else ""
            raise ConfigError(f"{where}.{key}: unknown key, {hint}allowed: {', '.join(known)}")
    values, step = leaf[kind], leaf.get("step", 1 if kind == "integers" else None)
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{where}.{kind}: got {values!r}, allowed: a list, as {_EXAMPLES[kind]}")
    if kind == "choice":
        _check_choice(where, values)
    else:
        _check_ends(where, kind, values, step)
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


def _check_choice(where: str, values: Any) -> None:
    labels = [json.dumps(value) for value in values]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError(
            f"{where}.choice: got {list(values)}, allowed: one value or more, each once"
        )


def _check_ends(where: str, kind: str, values: Any, step: Any) -> None:
    number = int if kind == "integers" else (int, float)
    fits = len(values) == 2 and all(
        isinstance(v, number) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    least = "two numbers above 0, the smaller first" if kind == "log_range" else None
    what = "two whole numbers, the smaller first" if kind == "integers" else least
    if not fits or values[0] >= values[1] or (kind == "log_range" and values[0] <= 0):
        raise ConfigError(
            f"{where}.{kind}: got {list(values)}, allowed: "
            f"{what or 'two numbers, the smaller first'}, as {_EXAMPLES[kind]}"
        )
    if step is None:
        return
    is_number = isinstance(step, number) and not isinstance(step, bool) and step > 0
    steps = (values[1] - values[0]) / step if is_number else 0.5
    if not is_number or abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
        whole = "whole " if kind == "integers" else ""
        raise ConfigError(
            f"{where}.step: got {step!r}, allowed: a {whole}number that divides "
            f"{values[1]} - {values[0]}"
        )


def wrong_conditions(parameter: Parameter, found: Mapping[str, Parameter]) -> Iterator[str]:
    """What is wrong with the conditions of a parameter, given all that are found."""
    for path, allowed in parameter.when.items():
        where = f"{TABLE}.{parameter.path}.when.{path}"
        if path not in found:
            hint = f"did you mean {match!r}? " if (match := nearest(path, found)) else ""
            yield f"{where}: not in the space, {hint}there are: {', '.join(found)}"
            continue
        other = found[path]
        for value in allowed:
            if not other.is_finite:
                yield (
                    f"{where}: {path} is a {other.kind}; only a choice, integers or a range with a "
                    "step can be asked"
                )
            elif value not in other.all():
                yield f"{where}: got {value!r}, allowed: {', '.join(map(repr, other.all()))}"
        if _depends(found, path, parameter.path, set()):
            yield f"{where}: {path} itself depends on {parameter.path}"


def _depends(found: Mapping[str, Parameter], path: str, on: str, seen: set[str]) -> bool:
    if path == on:
        return True
    if path in seen or path not in found:
        return False
    seen.add(path)
    return any(_depends(found, p, on, seen) for p in found[path].when)
