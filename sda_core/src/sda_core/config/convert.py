"""From tables to instances and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs

from sda_core.config.fields import Check, CheckError
from sda_core.config.text import is_list, is_table, is_union, type_text, value_text
from sda_core.errors import ConfigError, SDAError
from sda_core.io.secrets import has_secret
from sda_core.plugins import PluginManager, default_manager
from sda_core.plugins.names import did_you_mean

T = TypeVar("T")

# Which values a table can hold, numpy's numbers included, and as what; the first match counts.
_PLAIN: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (bool, bool),
    (Integral, int),
    (Real, float),
    (str, str),
    (Path, str),
)

_SECRET = (
    "this URL holds a password, key or token, which would be written to config.toml and shown: "
    "take it out, and give it by the environment (such as AWS_SECRET_ACCESS_KEY) or the files that "
    "the storage's library reads (such as ~/.aws/credentials or ~/.config/fsspec), on all machines"
)


@attrs.frozen
class _Problem:
    path: str
    message: str
    cause: Exception | None = None

    def under(self, key: str) -> _Problem:
        path = self.path if not key or self.path.startswith("[") else f".{self.path}"
        return attrs.evolve(self, path=(key + path).removesuffix("."))

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class _ProblemsError(Exception):
    """All that is wrong with a value and what is in it."""

    def __init__(self, problems: Iterable[_Problem]) -> None:
        self.problems = list(problems)


def _refuse(message: str, key: str = "", cause: Exception | None = None) -> _ProblemsError:
    return _ProblemsError([_Problem(key, message, cause)])


def _wrong(value: object, allowed: str) -> _ProblemsError:
    return _refuse(f"got {value_text(value)}, allowed: {allowed}")


@contextmanager
def _collecting(problems: list[_Problem], key: str) -> Iterator[None]:
    """Put what is wrong with the value of a key on the list, and go on."""
    try:
        yield
    except _ProblemsError as error:
        problems += [problem.under(key) for problem in error.problems]
    except CheckError as error:
        problems.append(_Problem(key, error.problem))


def structure(
    cls: type[T],
    data: Mapping[str, Any],
    *,
    manager: PluginManager | None = None,
    path: str = "",
) -> T:
    """Make an instance of a configuration class from a table.

    A field whose type is a component's base class takes a table with the component's ``name`` and
    its fields, or an instance.

    Args:
        cls: A configuration class, or a component's base class.
        data: The table.
        manager: Where components are looked up; None for what is installed.
        path: Key of the table, put before the keys in messages.

    Raises:
        ConfigError: There are unknown, missing, mistyped or out-of-range values; names them all.
    """
    try:
        return _converter(manager or default_manager()).structure(data, cls)
    except _ProblemsError as error:
        problems = [problem.under(path) for problem in error.problems]
    lines = [str(problem) for problem in problems]
    if len(lines) > 1:
        lines = [f"{len(lines)} problems:", *(f"  {line}" for line in lines)]
    raise ConfigError("\n".join(lines)) from next((p.cause for p in problems if p.cause), None)


@functools.lru_cache(maxsize=8)
def _converter(manager: PluginManager) -> cattrs.Converter:
    converter = cattrs.Converter(structure_fallback_factory=lambda _: _instance)
    # Later hooks are asked first.
    hooks: list[tuple[Callable[[Any], bool], Callable[..., Any]]] = [
        (attrs.has, _table),
        (lambda t: isinstance(getattr(t, "sda_kind", None), str), _component),
        (is_list, _list),
        (is_table, _free_table),
        (lambda t: get_origin(t) is Literal, _literal),
        (is_union, _union),
    ]
    for applies, hook in hooks:
        converter.register_structure_hook_func(applies, functools.partial(hook, manager, converter))
    for scalar in (bool, int, float, str, Path):
        converter.register_structure_hook(scalar, _scalar)
    return converter


def _scalar(value: Any, cls: Any) -> Any:
    is_bool = isinstance(value, bool)
    accepted = {
        bool: is_bool,
        int: isinstance(value, Integral) and not is_bool,
        float: isinstance(value, Real) and not is_bool,
        str: isinstance(value, str),
        Path: isinstance(value, str | Path),
    }
    if not accepted[cls]:
        raise _wrong(value, type_text(cls))
    if isinstance(value, str) and has_secret(value):
        raise _refuse(_SECRET)
    return cls(value)


def _instance(value: Any, cls: Any) -> Any:
    """What no table can say, such as a function, is given as it is."""
    if not isinstance(value, get_origin(cls) or cls):
        raise _wrong(value, f"an instance of {type_text(cls)}, given from Python")
    return value


def _literal(_: PluginManager, converter: cattrs.Converter, value: Any, cls: Any) -> Any:
    choices = get_args(cls)
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    hint = did_you_mean(value, (choice for choice in choices if isinstance(choice, str)))
    allowed = type_text(cls).replace(" | ", " or ")
    raise _refuse(f"got {value_text(value)}, {hint}allowed: {allowed}")


def _union(_: PluginManager, converter: cattrs.Converter, value: Any, cls: Any) -> Any:
    members = [member for member in get_args(cls) if member is not type(None)]
    if value is None and len(members) < len(get_args(cls)):
        return None
    if len(members) == 1:
        return converter.structure(value, members[0])
    for member in members:
        try:
            return converter.structure(value, member)
        except _ProblemsError:
            if isinstance(value, Mapping) and (attrs.has(member) or hasattr(member, "sda_kind")):
                raise  # its keys say more than "not this type"
    raise _wrong(value, " or ".join(map(type_text, members)))


def _list(_: PluginManager, converter: cattrs.Converter, value: Any, cls: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(value, type_text(cls))
    kind = list if (get_origin(cls) or cls) is list else tuple
    types = get_args(cls) or (Any,)
    if kind is tuple and get_origin(cls) is tuple and types[-1] is not Ellipsis:
        if len(value) != len(types):
            raise _refuse(f"got {len(value)} entries, allowed: {type_text(cls)}")
    else:
        types = (types[0],) * len(value)
    problems: list[_Problem] = []
    entries = []
    for i, (entry, type_) in enumerate(zip(value, types, strict=True)):
        with _collecting(problems, f"[{i}]"):
            entries.append(converter.structure(entry, type_))
    if problems:
        raise _ProblemsError(problems)
    return kind(entries)


def _free_table(_: PluginManager, converter: cattrs.Converter, value: Any, cls: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(value, type_text(cls))
    type_ = (get_args(cls) or (str, Any))[1]
    problems: list[_Problem] = []
    entries = {}
    for key, entry in value.items():
        with _collecting(problems, str(key)):
            entries[str(key)] = converter.structure(entry, type_)
    if problems:
        raise _ProblemsError(problems)
    return entries


def _component(manager: PluginManager, converter: cattrs.Converter, value: Any, cls: Any) -> Any:
    kind = cls.sda_kind
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(value, f"a table with the `name` of a {kind} and its fields")
    fields = dict(value)
    if "name" not in fields:
        if attrs.has(cls) and not inspect.isabstract(cls):
            return _table(manager, converter, fields, cls)
        names = ", ".join(c.name for c in manager.components(kind)) or "none"
        raise _refuse(f"missing, but required: which {kind}; installed are: {names}", "name")
    name = fields.pop("name")
    if not isinstance(name, str):
        raise _refuse(f"got {value_text(name)}, allowed: the name of a {kind}", "name")
    try:
        chosen = manager.get(kind, name)
    except SDAError as error:
        raise _refuse(str(error), "name", error) from error
    if not issubclass(chosen, cls) or not attrs.has(chosen):
        need = f"subclass of {cls.__name__}" if attrs.has(chosen) else "class made with @component"
        raise _refuse(f"{kind} {name!r} is {chosen.__qualname__}, which is not a {need}", "name")
    return _table(manager, converter, fields, chosen)


def _table(manager: PluginManager, converter: cattrs.Converter, value: Any, cls: Any) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(value, f"a table with the keys of {cls.__name__}")
    fields = configuration_fields(cls)
    problems: list[_Problem] = []
    arguments = {}
    for key in value:
        if key not in fields:
            allowed = f"{did_you_mean(key, fields)}allowed: {', '.join(fields) or 'none'}"
            problems.append(_Problem(str(key), f"unknown key, {allowed}"))
    for key, field in fields.items():
        if key not in value:
            if field.default is attrs.NOTHING:
                problems.append(_Problem(key, f"missing, but required: {type_text(field.type)}"))
            continue
        with _collecting(problems, key):
            arguments[key] = converter.structure(value[key], field.type or Any)
            if isinstance(field.validator, Check):
                field.validator(None, field, arguments[key])
    if problems:
        raise _ProblemsError(problems)
    try:
        return cls(**arguments)
    except (SDAError, ValueError, TypeError) as error:
        raise _refuse(str(error), cause=error) from error


def configuration_fields(cls: Any) -> dict[str, attrs.Attribute[Any]]:
    """The fields of a configuration class that can be given, by key, with their types resolved.

    Raises:
        ConfigError: A type is not known at run time.
    """
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise ConfigError(
            f"the type of a field of {cls.__module__}:{cls.__qualname__} cannot be resolved: "
            f"{error}. Import it outside of `if TYPE_CHECKING`"
        ) from error
    return {a.alias or a.name: a for a in attrs.fields(cls) if _is_option(a)}


def _is_option(field: attrs.Attribute[Any]) -> bool:
    return field.init and not field.metadata.get("part")


def unstructure(obj: Any, *, manager: PluginManager | None = None) -> dict[str, Any]:
    """Turn an instance of a configuration class into the table that :func:`structure` makes it of.

    Components get their ``name`` first; fields that are None are left out, as TOML has no null.

    Raises:
        ConfigError: A field holds what no table can, such as a function.
        UnknownComponentError: A component is not registered under any name.
    """
    table: dict[str, Any] = to_plain(obj, manager or default_manager())
    return table


def to_plain(value: Any, manager: PluginManager, path: str = "") -> Any:
    """Turn a value into what a table can hold.

    Args:
        value: An instance of a configuration class, a number, a string, or a collection of them.
        manager: Where the names of components are looked up.
        path: Key of the value, for messages.

    Raises:
        ConfigError: No table can hold it.
        UnknownComponentError: A component is not registered under any name.
    """
    if attrs.has(type(value)):
        table: dict[str, Any] = {}
        if hasattr(value, "sda_kind"):
            table["name"] = manager.name_of(type(value))[1]
        for name, field in configuration_fields(type(value)).items():
            entry = getattr(value, field.name)
            key = f"{path}.{name}".lstrip(".")
            if entry is not None:
                table[name] = to_plain(entry, manager, key)
            elif field.default is not None:
                raise ConfigError(
                    f"{key}: got None, which no table can hold, and leaving it out would mean its "
                    "default: give another value"
                )
        return table
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, manager, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry, manager, f"{path}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, str | Path) and has_secret(str(value)):
        raise ConfigError(f"{path}: {_SECRET}")
    for abstract, plain in _PLAIN:
        if isinstance(value, abstract):
            return plain(value)
    raise ConfigError(f"{path}: got {value_text(value)}, which no table can hold")
