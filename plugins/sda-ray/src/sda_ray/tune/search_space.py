"""What a sweep varies: dotted paths of the configuration, each with the values it may take.

A space is a table whose leaves are tables with one of four keys; lists are entered by number::

    train.learning_rate = { log_range = [1e-4, 1e-2] }
    guidance.gamma      = { range = [0.001, 0.1] }
    sampler.steps       = { integers = [16, 128], step = 16 }
    kernel.name         = { choice = ["mlp", "transformer"] }
    kernel.depth        = { integers = [2, 6], when = { "kernel.name" = "mlp" } }
    train.variable_weights.0 = { range = [0.5, 2.0], step = 0.5 }
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import attrs

from sda_core.config import nearest, set_by_path, structure
from sda_core.config.convert import configuration_fields
from sda_core.errors import ConfigError, SDAError
from sda_core.experiment import Experiment
from sda_core.plugins import default_manager
from sda_ray.tune.parameter import KINDS, TABLE, Parameter, read_parameter

if TYPE_CHECKING:
    import optuna


@attrs.frozen
class Space:
    """All parameters of a sweep, those that others depend on first."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Space:
        """Read a space.

        Raises:
            ConfigError: Something in it is wrong; names it all, by key.
        """
        problems: list[str] = []
        found: dict[str, Parameter] = {}
        for path, leaf in leaves(table):
            try:
                found[path] = read_parameter(path, leaf)
            except ConfigError as error:
                problems.append(str(error))
        if not found and not problems:
            problems.append(
                f"{TABLE}: it is empty; name what is varied, such as "
                "train.learning_rate = { log_range = [1e-4, 1e-2] }"
            )
        _raise(problems)
        _raise(problem for each in found.values() for problem in _wrong_conditions(each, found))
        return cls(tuple(found[path] for path in _ordered(found)))

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are varied."""
        return tuple(parameter.path for parameter in self.parameters)

    def touches(self, *tables: str) -> list[str]:
        """Those paths that lie in one of the tables, or are one."""
        return [p for p in self.paths if any(f"{p}.".startswith(f"{t}.") for t in tables)]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Let a search choose: values by path, of those parameters that then exist."""
        return self._chosen(lambda parameter: parameter.suggest(trial))

    def labels_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What stands for values in the database."""
        return {p.path: p.label_of(values[p.path]) for p in self.parameters if p.path in values}

    def _chosen(self, choose: Callable[[Parameter], Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.exists(chosen):
                chosen[parameter.path] = choose(parameter)
        return chosen

    def grid(self) -> list[dict[str, Any]]:
        """All combinations of values.

        Raises:
            ConfigError: A range without a step has no end of values.
        """
        _raise(
            f"{TABLE}.{p.path}: search = 'grid' tries all values, and {p.kind} has no end of "
            "them; give a choice, a range with a step, or another search"
            for p in self.parameters
            if not p.is_finite
        )
        grid: list[dict[str, Any]] = [{}]
        for parameter in self.parameters:
            values = [{parameter.path: value} for value in parameter.all()]
            grid = [g | more for g in grid for more in (values if parameter.exists(g) else [{}])]
        return grid

    def check_numbers(self) -> None:
        """Refuse a space in which nothing follows from earlier trials by CMA-ES.

        Raises:
            ConfigError: Fewer than two numbers are in all trials.
        """
        numbers = [p.path for p in self.parameters if p.kind != "choice" and not p.when]
        if len(numbers) < 2:
            raise ConfigError(
                f"{TABLE}: search = 'cma-es' goes by two or more numbers that all trials have "
                "(range, log_range or integers, without `when`), and draws all else at random; "
                f"here is {', '.join(numbers) or 'none'}. Choose search = 'tpe', or vary more"
            )

    def apply(self, table: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Put values into the table of an experiment; the table is left as it is.

        Another component's ``name`` keeps those fields of its table that the component has, too.
        """
        result = dict(table)
        for path in [path for path in self.paths if path in values]:
            outer, _, last = path.rpartition(".")
            if outer and last == "name":
                result = set_by_path(result, outer, _renamed(table, result, outer, values[path]))
            else:
                result = set_by_path(result, path, values[path])
        return result

    def check(self, table: Mapping[str, Any]) -> None:
        """Try all choices, and both ends of ranges, in an experiment.

        Args:
            table: The table of the experiment.

        Raises:
            ConfigError: There is no such path, or a value is not allowed there; names all.
        """
        problems: dict[str, None] = {}  # in order, each once
        for parameter in self.parameters:
            for value in parameter.values:
                needed = self._needed(parameter) | {parameter.path: value}
                values = self._chosen(lambda p, needed=needed: needed.get(p.path, p.values[0]))  # type: ignore[misc]
                try:
                    structure(Experiment, self.apply(table, values))
                except SDAError as error:
                    lines = [line.strip() for line in str(error).splitlines()]
                    problems |= dict.fromkeys(lines[1:] or lines)
        _raise(f"{TABLE}: {problem}" for problem in problems)

    def _needed(self, parameter: Parameter) -> dict[str, Any]:
        """Values with which a parameter exists."""
        needed: dict[str, Any] = {}
        for path, allowed in parameter.when.items():
            other = next(p for p in self.parameters if p.path == path)
            needed |= self._needed(other) | {path: allowed[0]}
        return needed


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a space by path: tables that say values, and what is no table."""
    for key, value in table.items():
        path = f"{prefix}{key}"
        says_values = isinstance(value, Mapping) and any(
            not isinstance(value.get(kind, {}), Mapping) for kind in KINDS
        )
        if isinstance(value, Mapping) and not says_values:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def _raise(problems: Iterable[str]) -> None:
    lines = list(problems)
    if len(lines) > 1:
        lines = [f"{len(lines)} problems:", *(f"  {line}" for line in lines)]
    if lines:
        raise ConfigError("\n".join(lines))


def _wrong_conditions(parameter: Parameter, found: Mapping[str, Parameter]) -> Iterator[str]:
    """What is wrong with the conditions of a parameter, given all that are found."""
    for path, allowed in parameter.when.items():
        where = f"{TABLE}.{parameter.path}.when.{path}"
        if path not in found:
            hint = f"did you mean {match!r}? " if (match := nearest(path, found)) else ""
            yield f"{where}: not in the space, {hint}there are: {', '.join(found)}"
        elif not (other := found[path]).is_finite:
            yield (
                f"{where}: {path} is a {other.kind}; only a choice, integers or a range with a "
                "step can be asked"
            )
        elif wrong := [value for value in allowed if value not in other.all()]:
            yield f"{where}: got {wrong[0]!r}, allowed: {', '.join(map(repr, other.all()))}"


def _ordered(found: Mapping[str, Parameter]) -> list[str]:
    """The paths: after those in their conditions, and after their table or its name."""
    order = TopologicalSorter[str]()
    for path in sorted(found, key=lambda path: (path.count("."), not path.endswith(".name"))):
        tables = [q for q in found if q != path and path.startswith(q.removesuffix(".name") + ".")]
        order.add(path, *found[path].when, *tables)
    try:
        return list(order.static_order())
    except CycleError as error:
        cycle = error.args[1]
        raise ConfigError(
            f"{TABLE}.{cycle[0]}.when: depends on itself, by {' and '.join(cycle[1:])}"
        ) from None


def _renamed(base: Any, table: Mapping[str, Any], path: str, name: Any) -> dict[str, Any]:
    """The table for the ``name`` at a path, with those fields of the earlier one that it has too.

    Args:
        base: The table of an experiment that is whole.
        table: The same, in which values were changed.
        path: The path of a table in it.
        name: The name of the component that is put there.
    """
    component: Any = structure(Experiment, base)
    earlier: Any = table
    for part in path.split("."):
        component, earlier = getattr(component, part, None), earlier.get(part, {})
    try:
        kept = configuration_fields(default_manager().get(component.sda_kind, name))
    except (AttributeError, SDAError):  # which is said where the experiment is checked
        kept = {}
    return {key: value for key, value in earlier.items() if key in kept} | {"name": name}
