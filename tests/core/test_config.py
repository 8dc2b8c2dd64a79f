"""Configuration: what is accepted, what is refused and in which words."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from sda_core.config import (
    Check,
    apply_overrides,
    at_least,
    between,
    component,
    describe,
    dump_toml,
    load_toml,
    merge,
    non_negative,
    one_of,
    option,
    positive,
    set_by_path,
    structure,
    unstructure,
)
from sda_core.errors import ConfigError, PluginError, UnknownComponentError
from sda_core.experiment import load_experiment
from sda_core.plugins import Component, PluginManager, hookimpl

if TYPE_CHECKING:
    from nowhere import Unknown


class System(ABC):
    sda_kind: ClassVar[str] = "system"

    @abstractmethod
    def step(self) -> None: ...


@component
class Pendulum(System):
    """A pendulum.

    Attributes:
        length: Length of the rod,
            from pivot to mass.
        damping: Damping.
    """

    length: float = option(default=1.0, check=positive, units="m")
    damping: float | tuple[float, ...] = option(default=0.0, check=non_negative)
    start: Literal["rest", "swing", 3] = "rest"

    def step(self) -> None: ...


@component
class Coupled(System):
    """Two systems."""

    parts: tuple[System, ...]
    first: Pendulum = option(factory=Pendulum, help="The first")

    def step(self) -> None: ...


class Plain(System):
    def step(self) -> None: ...


@component
class Train:
    learning_rate: float = option(default=1e-3, check=between(0, 1))
    epochs: int = option(check=at_least(1))
    schedule: str = option(default="linear", check=one_of("linear", "cosine"))
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    weights: dict[str, float] | None = option(default=None, check=positive)
    layers: list[int] = option(factory=list)
    output: Path | None = None
    resume: bool = False
    seed: int | str | None = None

    def __attrs_post_init__(self) -> None:
        if sum(self.fractions) > 1.001:
            raise ConfigError(f"fractions {self.fractions} add up to more than 1")


@component
class Experiment:
    system: System
    train: Train
    transform: Callable[[float], float] | None = None


@hookimpl
def sda_register_components() -> list[Component]:
    return [
        Component("system", "pendulum", f"{__name__}:Pendulum"),
        Component("system", "coupled", f"{__name__}:Coupled"),
        Component("system", "plain", f"{__name__}:Plain"),
        Component("system", "train", f"{__name__}:Train"),
        Component("system", "lost", "no_such_module:Lost"),
    ]


MANAGER = PluginManager(
    [],
    {"test": SimpleNamespace(sda_interface=1, sda_register_components=sda_register_components)},
)
GOOD: dict[str, Any] = {"system": {"name": "pendulum"}, "train": {"epochs": 3}}


def problems(data: Any, cls: type = Experiment, path: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        structure(cls, data, manager=MANAGER, path=path)
    first, *lines = str(caught.value).split("\n")
    if not lines:
        return [first]
    assert first == f"{len(lines)} problems:"
    return [line.removeprefix("  ") for line in lines]


def test_structure() -> None:
    data = {
        "system": {"name": "pendulum", "length": 2, "damping": [0, 0.5], "start": 3},
        "train": {
            "epochs": np.int64(3),
            "learning_rate": np.float32(0.5),
            "weights": {"a": 1},
            "layers": (1, 2),
            "output": "runs/a",
            "seed": "x",
        },
        "transform": math.sin,
    }
    made = structure(Experiment, data, manager=MANAGER)
    assert isinstance(made.system, Pendulum)
    assert (made.system.length, made.system.damping, made.system.start) == (2.0, (0.0, 0.5), 3)
    assert isinstance(made.system.length, float)
    train = made.train
    assert (train.epochs, train.learning_rate, train.weights) == (3, 0.5, {"a": 1.0})
    assert (train.layers, train.output, train.seed) == ([1, 2], Path("runs/a"), "x")
    assert made.transform is math.sin


def test_instances_are_taken_as_they_are() -> None:
    system, train = Pendulum(), Train(epochs=1)
    made = structure(Experiment, {"system": system, "train": train}, manager=MANAGER)
    assert made.system is system
    assert made.train is train


def test_components_by_base_and_by_class() -> None:
    data = {"name": "pendulum", "length": 2.0}
    assert isinstance(structure(System, data, manager=MANAGER), Pendulum)  # type: ignore[type-abstract]
    assert structure(Pendulum, data, manager=MANAGER).length == 2.0
    assert structure(Pendulum, {"length": 2.0}, manager=MANAGER).length == 2.0
    nested = {"name": "coupled", "parts": [data, {"name": "coupled", "parts": []}]}
    made = structure(System, nested, manager=MANAGER)  # type: ignore[type-abstract]
    assert isinstance(made, Coupled)
    assert isinstance(made.parts[1], Coupled)


def test_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Pendulum().length = 2.0  # type: ignore[misc]


def test_all_problems_at_once() -> None:
    data = {
        "system": {"name": "pendulum", "lenth": 2, "length": -1.0},
        "train": {"learning_rat": 1, "learning_rate": "5", "resume": 1},
        "sytem": {},
    }
    assert problems(data, path="experiment") == [
        "experiment.sytem: unknown key, did you mean 'system'? allowed: system, train, transform",
        "experiment.system.lenth: unknown key, did you mean 'length'? "
        "allowed: length, damping, start",
        "experiment.system.length: got -1.0, allowed: greater than 0",
        "experiment.train.learning_rat: unknown key, did you mean 'learning_rate'? "
        "allowed: learning_rate, epochs, schedule, fractions, weights, layers, output, resume, "
        "seed",
        "experiment.train.learning_rate: got '5' (str), allowed: float",
        "experiment.train.epochs: missing, but required: int",
        "experiment.train.resume: got 1 (int), allowed: bool",
    ]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"epochs": 2.7}, "epochs: got 2.7 (float), allowed: int"),
        ({"epochs": True}, "epochs: got True (bool), allowed: int"),
        ({"epochs": "5"}, "epochs: got '5' (str), allowed: int"),
        ({"epochs": None}, "epochs: got None (NoneType), allowed: int"),
        ({"epochs": 0}, "epochs: got 0, allowed: 1 or greater"),
        ({"learning_rate": True}, "learning_rate: got True (bool), allowed: float"),
        ({"learning_rate": 1.5}, "learning_rate: got 1.5, allowed: from 0 to 1"),
        ({"learning_rate": math.nan}, "learning_rate: got nan, allowed: from 0 to 1"),
        ({"schedule": 3}, "schedule: got 3 (int), allowed: str"),
        (
            {"schedule": "cosin"},
            "schedule: got 'cosin', did you mean 'cosine'? allowed: one of 'linear', 'cosine'",
        ),
        ({"fractions": [1, 0]}, "fractions: got 2 entries, allowed: list [float, float, float]"),
        ({"fractions": "abc"}, "fractions: got 'abc' (str), allowed: list [float, float, float]"),
        ({"fractions": [1, "a", 0]}, "fractions[1]: got 'a' (str), allowed: float"),
        ({"fractions": [1, 1, 1]}, ": fractions (1.0, 1.0, 1.0) add up to more than 1"),
        ({"weights": {"a": "b"}}, "weights.a: got 'b' (str), allowed: float"),
        ({"weights": {"a": -1}}, "weights: got {'a': -1.0}, allowed: greater than 0"),
        ({"weights": [1]}, "weights: got [1] (list), allowed: table of float"),
        ({"layers": 3}, "layers: got 3 (int), allowed: list of int"),
        ({"output": 3}, "output: got 3 (int), allowed: path"),
        ({"seed": 1.5}, "seed: got 1.5 (float), allowed: int or str"),
        ({"seed": {}}, "seed: got a table, allowed: int or str"),
        ({"seed": []}, "seed: got [] (list), allowed: int or str"),
        ({3: 1}, "3: unknown key, allowed: learning_rate"),
    ],
)
def test_refused_values(values: dict[Any, Any], problem: str) -> None:
    (found,) = problems({**GOOD, "train": {"epochs": 3, **values}})
    assert found.startswith(f"train.{problem}".replace(".:", ":"))


@pytest.mark.parametrize(
    ("system", "problem"),
    [
        ("pendulum", "system: got 'pendulum' (str), allowed: a table with the `name` of a system"),
        ({}, "system.name: missing, but required: which system; installed are: coupled, lost, pen"),
        ({"name": 3}, "system.name: got 3 (int), allowed: the name of a system"),
        ({"name": "pendulun"}, "system.name: no system 'pendulun': did you mean 'pendulum'?"),
        ({"name": "plain"}, "system.name: system 'plain' is Plain, which is not a class made with"),
        ({"name": "train"}, "system.name: system 'train' is Train, which is not a subclass of Sys"),
        ({"name": "lost"}, "system.name: system 'lost' of test (target 'no_such_module:Lost')"),
        (
            {"name": "pendulum", "start": "swim"},
            "system.start: got 'swim' (str), did you mean 'swing'? allowed: 'rest' or 'swing' or 3",
        ),
        ({"name": "pendulum", "start": 4}, "system.start: got 4 (int), allowed: 'rest' or"),
        (
            {"name": "pendulum", "damping": ["a"]},
            "system.damping: got ['a'] (list), allowed: float or list of float",
        ),
        (
            {"name": "pendulum", "damping": [0.1, -1]},
            "system.damping: got (0.1, -1.0), allowed: 0 or greater",
        ),
        (
            {"name": "coupled", "parts": [{"name": "pendulum"}, {"name": "pendulum", "length": 0}]},
            "system.parts[1].length: got 0.0, allowed: greater than 0",
        ),
        (
            {"name": "coupled", "parts": [], "first": {"name": "coupled"}},
            "system.first.name: system 'coupled' is Coupled, which is not a subclass of Pendulum",
        ),
    ],
)
def test_refused_components(system: Any, problem: str) -> None:
    (found,) = problems({**GOOD, "system": system})
    assert found.startswith(problem)


def test_refused_tables() -> None:
    assert problems({"system": {"name": "pendulum"}, "train": 3}) == [
        "train: got 3 (int), allowed: a table with the keys of Train"
    ]
    assert problems({**GOOD, "transform": "sin"}) == [
        "transform: got 'sin' (str), allowed: an instance of Callable, given from Python"
    ]
    assert problems(3) == ["got 3 (int), allowed: a table with the keys of Experiment"]


def test_the_cause_is_kept() -> None:
    with pytest.raises(ConfigError) as caught:
        structure(Experiment, {**GOOD, "system": {"name": "lost"}}, manager=MANAGER)
    assert isinstance(caught.value.__cause__, PluginError)
    assert isinstance(caught.value.__cause__.__cause__, ModuleNotFoundError)


def test_checks_hold_in_python_too() -> None:
    with pytest.raises(ConfigError, match=r"^length: got -1, allowed: greater than 0$"):
        Pendulum(length=-1)
    with pytest.raises(ConfigError, match=r"^length: got 'a', allowed: greater than 0$"):
        Pendulum(length="a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^length: got None, allowed: greater than 0$"):
        Pendulum(length=None)  # type: ignore[arg-type]
    assert Train(epochs=1, weights=None).weights is None


def test_a_component_has_no_field_called_name() -> None:
    with pytest.raises(PluginError, match=r"Named has a field 'name', but in its table `name`"):

        @component
        class Named(System):
            name: str

            def step(self) -> None: ...


def test_types_must_be_known_at_run_time() -> None:
    @component
    class Lazy:
        unknown: Unknown

    with pytest.raises(ConfigError, match=r"Lazy cannot be resolved: .*'Unknown'.*TYPE_CHECKING"):
        describe(Lazy)


def test_unstructure() -> None:
    made = Experiment(
        system=Coupled(parts=(Pendulum(damping=(0.5,)),)),
        train=Train(epochs=1, output=Path("a")),
    )
    table = unstructure(made, manager=MANAGER)
    pendulum = {"name": "pendulum", "length": 1.0, "damping": 0.0, "start": "rest"}
    assert table["system"] == {
        "name": "coupled",
        "parts": [{**pendulum, "damping": [0.5]}],
        "first": pendulum,
    }
    assert list(table["system"])[0] == "name"  # noqa: RUF015
    assert table["train"]["output"] == "a"
    assert "weights" not in table["train"]
    assert "transform" not in table


def test_what_no_table_can_hold() -> None:
    made = Experiment(system=Pendulum(), train=Train(epochs=1), transform=math.sin)
    with pytest.raises(ConfigError, match=r"^transform: got <built-in function sin> .* no table"):
        unstructure(made, manager=MANAGER)

    @component
    class Defaulted:
        limit: float | None = 3.0

    with pytest.raises(ConfigError, match=r"^limit: got None, which no table can hold"):
        unstructure(Defaulted(limit=None), manager=MANAGER)

    @component
    class Unregistered(System):
        def step(self) -> None: ...

    with pytest.raises(UnknownComponentError, match=r"Unregistered is not registered under any"):
        unstructure(Unregistered(), manager=MANAGER)


pendulums = st.builds(
    Pendulum,
    length=st.floats(min_value=1e-300, allow_infinity=False),
    damping=st.floats(0, 1e300) | st.lists(st.floats(0, 1), max_size=3).map(tuple),
    start=st.sampled_from(["rest", "swing", 3]),
)
systems = st.recursive(
    pendulums,
    lambda inner: st.builds(Coupled, parts=st.lists(inner, max_size=3).map(tuple), first=pendulums),
    max_leaves=5,
)
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10)
trainings = st.builds(
    Train,
    epochs=st.integers(1, 2**62),
    learning_rate=st.floats(0, 1),
    weights=st.none() | st.dictionaries(text, st.floats(1e-9, 1e9), max_size=3),
    layers=st.lists(st.integers(-9, 9), max_size=3),
    output=st.none() | text.map(Path),
    resume=st.booleans(),
    seed=st.none() | st.integers(-9, 9) | text,
)


@given(system=systems, train=trainings)
def test_round_trip(system: System, train: Train) -> None:
    table = unstructure(Experiment(system=system, train=train), manager=MANAGER)
    assert unstructure(structure(Experiment, table, manager=MANAGER), manager=MANAGER) == table


@given(system=systems, train=trainings)
def test_round_trip_through_a_file(
    tmp_path_factory: pytest.TempPathFactory, system: System, train: Train
) -> None:
    table = unstructure(Experiment(system=system, train=train), manager=MANAGER)
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    assert dump_toml(table, path) == path.read_text()
    assert load_toml(path) == table


def test_toml_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*gone.toml: .*No such file"):
        load_toml(tmp_path / "gone.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("a = 1\nb =\n")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML: .*line 2"):
        load_toml(bad)
    bad.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"cannot read .*bad.toml: .*utf-8"):
        load_toml(bad)
    with pytest.raises(ConfigError, match=r"cannot be written as TOML: .*object"):
        dump_toml({"a": object()}, bad)
    assert bad.read_bytes() == b"a = '\xff'"


def test_overrides() -> None:
    data = {"train": {"learning_rate": 1.0, "epochs": 3}, "kernel": {"name": "mlp", "width": 8}}
    changed = apply_overrides(
        data,
        [
            "train.learning_rate=2e-4",
            "train.output=runs/a = b",
            "kernel.depth=2",
            "kernel.name=transformer",
            "new.list=[1, 2]",
            "new.list=[3]",
            "new.table={a = true}",
            'new.text="5"',
            "new.quiet=",
        ],
    )
    assert changed == {
        "train": {"learning_rate": 2e-4, "epochs": 3, "output": "runs/a = b"},
        "kernel": {"name": "transformer", "depth": 2},
        "new": {"list": [3], "table": {"a": True}, "text": "5", "quiet": ""},
    }
    assert data["train"] == {"learning_rate": 1.0, "epochs": 3}
    assert apply_overrides(data, ["kernel.name=mlp"]) == data
    # What would be more than a value is text: nothing can be smuggled in beside it.
    assert apply_overrides({}, ["a=1\nb = 2"]) == {"a": "1\nb = 2"}


def test_tables_in_overrides_are_toml() -> None:
    assert apply_overrides({}, ['a={name="x", parts=[{b=1}]}']) == {
        "a": {"name": "x", "parts": [{"b": 1}]}
    }
    for text in ('{name="x",\n b=1}', "[1, 2"):
        with pytest.raises(ConfigError, match=r"--set: .* is not valid TOML"):
            apply_overrides({}, [f"a={text}"])


@pytest.mark.parametrize("item", ["train.learning_rate", "=1", "train..x=1", ""])
def test_malformed_overrides(item: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form key=value, as in train.learning"):
        apply_overrides({}, [item])


def test_entries_of_lists_by_number() -> None:
    data = {"w": [1, 2, 3], "terms": [{"name": "a", "std": 1.0, "x": 0}, {"name": "b"}]}
    changed = apply_overrides(data, ["w.1=5", "w.2=6", "terms.0.std=2.0", "terms.1.name=c"])
    assert changed == {
        "w": [1, 5, 6],
        "terms": [{"name": "a", "std": 2.0, "x": 0}, {"name": "c"}],
    }
    assert apply_overrides(data, ["terms.0.name=z"])["terms"][0] == {"name": "z"}
    assert apply_overrides(data, ["w=[7, 8]", "w.0=9"])["w"] == [9, 8]
    assert apply_overrides(data, ["w.0=none", "terms.1=none"]) == {
        "w": [2, 3],
        "terms": [data["terms"][0]],
    }
    assert data["w"] == [1, 2, 3]
    for change in (apply_overrides, lambda d, items: set_by_path(d, items[0][:-2], 1)):
        with pytest.raises(ConfigError, match=r"^w: got '3', allowed: .* 3 entries"):
            change(data, ["w.3=1"])
        with pytest.raises(ConfigError, match=r"^terms\.0\.std is 1\.0, not a table"):
            change(data, ["terms.0.std.a=1"])


def test_a_value_is_set_by_its_path() -> None:
    data = {"w": [{"a": 1, "b": 2}]}
    assert set_by_path(data, "w.0.a", 3) == {"w": [{"a": 3, "b": 2}]}
    assert set_by_path(data, "w.0", {"c": 1}) == {"w": [{"c": 1}]}
    assert set_by_path(data, "x.y", 1) == data | {"x": {"y": 1}}
    assert data == {"w": [{"a": 1, "b": 2}]}
    with pytest.raises(ConfigError, match=r"^w: got 'a'"):
        set_by_path(data, "w.a", 1)


def test_overriding_below_a_value() -> None:
    with pytest.raises(ConfigError, match=r"a.b is 3, not a table: it has no key 'c'; set a.b as"):
        apply_overrides({"a": {"b": 3}}, ["a.b.c=1"])
    with pytest.raises(ConfigError, match=r"a is 1, not a table"):
        apply_overrides({}, ["a=1", "a.b=2"])


tables = st.recursive(
    st.integers(0, 3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda t: isinstance(t, dict))


@given(tables)
def test_merging_is_idempotent(table: dict[str, Any]) -> None:
    assert merge(table, table) == table
    assert merge({}, table) == table
    assert merge(table, {}) == table


def test_merge_switches_components() -> None:
    base = {"system": {"name": "a", "part": {"x": 1}}, "seed": 1}
    assert merge(base, {"system": {"name": "b"}})["system"] == {"name": "b"}
    assert merge(base, {"system": {"part": {"y": 2}}}) == {
        "system": {"name": "a", "part": {"x": 1, "y": 2}},
        "seed": 1,
    }


def test_describe() -> None:
    length, damping, start = describe(Pendulum)
    assert (length.name, length.type, length.default) == ("length", "float", 1.0)
    assert (length.allowed, length.units) == ("greater than 0", "m")
    assert length.help == "Length of the rod, from pivot to mass."
    assert not length.required
    assert (damping.type, damping.help) == ("float | list of float", "Damping.")
    assert (start.type, start.help) == ("'rest' | 'swing' | 3", "")
    parts, first = describe(Coupled)
    assert (parts.type, parts.required, parts.default) == ("list of system", True, None)
    assert (first.type, first.help) == ("system", "The first")
    assert isinstance(first.default, Pendulum)
    types = {field.name: field.type for field in describe(Train)}
    assert types["fractions"] == "list [float, float, float]"
    assert types["weights"] == "table of float | none"
    assert types["layers"] == "list of int"
    assert types["output"] == "path | none"


def test_none_takes_a_key_or_table_out():
    data = {"sample": {"members": 3}, "evaluate": {"reference": {"name": "a"}, "b": 1}}
    changed = apply_overrides(data, ["sample=none", "evaluate.reference=none", "absent=none"])
    assert changed == {"evaluate": {"b": 1}}
    assert apply_overrides({}, ['word="none"']) == {"word": "none"}


@component
class _Numbers:
    plain: float = 1.0
    many: tuple[float, ...] = ()
    table: dict[str, tuple[float, float]] = option(default={})
    bounded: float = option(default=1.0, check=positive)
    open: float = option(default=1.0, check=Check("greater than 0", lambda v: v > 0, finite=False))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value: float) -> None:
    wrong = {"plain": value, "many": (1.0, value), "table": {"a": (0.0, value)}, "bounded": value}
    for key, entry in wrong.items():
        with pytest.raises(ConfigError, match=f"{key}: got"):
            _Numbers(**{key: entry})
        with pytest.raises(ConfigError, match=f"numbers.{key}: got"):
            structure(_Numbers, {key: entry}, path="numbers")
    if value > 0:
        assert structure(_Numbers, {"open": value}).open == value
    else:
        with pytest.raises(ConfigError, match="open: got"):
            _Numbers(open=value)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 3000 + "]" * 3000,
        "a = " + "[" * 40 + "]" * 40,
        "a = " + "{a = " * 2000 + "1" + "}" * 2000,
        ".".join(["a"] * 3000) + " = 1",
        "[" + ".".join(["a"] * 50) + "]",
        "a = " + "9" * 5000,
    ],
)
def test_toml_that_is_too_much(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.toml is not valid TOML: (it is nested|Exceeds)"):
        load_toml(path)


@pytest.mark.parametrize(
    "item",
    [
        "seed=" + "9" * 5000,
        "a." * 3000 + "b=1",
        "title=" + "[" * 5000,
        "title=" + "[" * 50 + "]" * 50,
        "title=\udcff\udcfe",
        "a=" + "{a=" * 100 + "1" + "}" * 100,
    ],
)
def test_overrides_that_are_too_much(item: str) -> None:
    with pytest.raises(ConfigError, match=r"--set|override") as caught:
        apply_overrides({}, [item])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("source", ["x" * 5000, "x" * 300 + ".toml"])
def test_an_experiment_that_can_be_no_path(source: str) -> None:
    with pytest.raises(ConfigError, match="can be no path"):
        load_experiment(source)
