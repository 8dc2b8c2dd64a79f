"""TOML files and changes to what they say."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sda_core.errors import ConfigError
from sda_core.io.files import write_text

#: How deep tables and lists may be nested; no component's are by more than a few.
MAX_DEPTH = 32


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: It cannot be read, or is not TOML; says where.
    """
    try:
        return _loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _loads(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: It is not TOML, has an integer of too many digits, or is nested too deep.
    """
    too_deep = f"it is nested by more than {MAX_DEPTH} tables and lists"
    try:
        parsed = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        nested = [v for v in level if isinstance(v, dict | list)]
        level = [v for n in nested for v in (n.values() if isinstance(n, dict) else n)]
    if level:
        raise ValueError(too_deep)
    return parsed


def dump_toml(data: Mapping[str, Any], path: str | Path | None = None) -> str:
    """Write a table as TOML.

    Args:
        data: The table.
        path: A file to put in place, whole; None for none.

    Returns:
        The text.

    Raises:
        ConfigError: It holds what TOML cannot.
    """
    import tomlkit  # takes longer to import than the rest of this module

    try:
        text = tomlkit.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot be written as TOML: {error}") from error
    if path is not None:
        write_text(Path(path), text)
    return text


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set single values of a table.

    Args:
        data: The table, left as it is.
        overrides: Items like ``"train.learning_rate=2e-4"``. Values are TOML; what is not is a
            string, so that quotes can be left out. A number in a key is that of a list's entry,
            from 0. ``none`` takes a key or table out. Another
            ``name`` for a table drops that table's other keys, which belong to the component it
            named before.

    Raises:
        ConfigError: An item is not of that form, or sets a key of what is not a table.
    """
    extra: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys) or len(keys) > MAX_DEPTH or not _is_text(item):
            shown = item if len(item) < 100 else item[:100] + "..."
            raise ConfigError(
                f"override {shown!r} is not of the form key=value, as in train.learning_rate=2e-4"
            )
        change: Any = _parse(text.strip())
        for part in reversed(keys):
            change = {part: change}
        extra = _merge(extra, change, "", switch=False)
    return merge(data, extra)


def _is_text(item: str) -> bool:
    """Whether a file can hold it; bytes of the command line that are no text become surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in item)


def _parse(text: str) -> Any:
    if text == "none":
        return None
    try:
        parsed = _loads(f"value = {text}")
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "[") or not isinstance(error, tomllib.TOMLDecodeError):
            shown = text if len(text) < 100 else text[:100] + "..."
            raise ConfigError(
                f"--set: {shown!r} is not valid TOML: {error}. A table in braces stands on one line"
            ) from error
        return text
    return parsed["value"] if len(parsed) == 1 else text


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another, table by table; both are left as they are.

    Where both give a table a ``name`` and these differ, it is another component: nothing of the
    base's table is kept.

    Raises:
        ConfigError: A table would take the place of a value, or a list has no such entry.
    """
    return _merge(base, extra, "", switch=True)


def _merge(
    base: Mapping[str, Any], extra: Mapping[str, Any], path: str, switch: bool
) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        where = f"{path}.{key}".lstrip(".")
        if value is None and switch:
            merged.pop(key, None)
            continue
        if not isinstance(value, Mapping):
            merged[key] = value
            continue
        old = merged.get(key, {})
        if isinstance(old, list) and value and all(map(str.isdecimal, value)):
            merged[key] = _merge_entries(old, value, where, switch)
            continue
        if not isinstance(old, Mapping):
            raise ConfigError(
                f"{where} is {old!r}, not a table: it has no key {next(iter(value), '')!r}; "
                f"set {where} as a whole"
            )
        if switch and "name" in old and value.get("name", old["name"]) != old["name"]:
            old = {}
        merged[key] = _merge(old, value, where, switch)
    return merged


def _merge_entries(old: list[Any], extra: Mapping[str, Any], path: str, switch: bool) -> list[Any]:
    for number in extra:
        _check_entry(old, number, path)
    entries = {str(number): entry for number, entry in enumerate(old)}
    return list(_merge(entries, extra, path, switch).values())


def set_by_path(data: Any, path: str, value: Any) -> Any:
    """Set one value of a table, or of a list in it, by its dotted path.

    Args:
        data: The table, left as it is.
        path: Keys and numbers of entries, as ``"train.variable_weights.0"``.
        value: What is put there, in place of what is there as a whole.

    Raises:
        ConfigError: The path leads through what is neither a table nor a list with such an entry.
    """
    return _set(data, path.split("."), value, "")


def _set(data: Any, keys: list[str], value: Any, path: str) -> Any:
    if not keys:
        return value
    key, *rest = keys
    where = f"{path}.{key}".lstrip(".")
    if isinstance(data, list):
        number = _check_entry(data, key, path)
        return [*data[:number], _set(data[number], rest, value, where), *data[number + 1 :]]
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} is {data!r}, not a table: it has no key {key!r}")
    return {**data, key: _set(data.get(key, {}), rest, value, where)}


def _check_entry(entries: list[Any], number: str, path: str) -> int:
    if not number.isdecimal() or int(number) >= len(entries):
        raise ConfigError(
            f"{path}: got {number!r}, allowed: the number of one of its {len(entries)} entries, "
            f"from 0; or set {path} as a whole"
        )
    return int(number)
