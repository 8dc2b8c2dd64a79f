"""TOML files and changes to what they say."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sda_core.errors import ConfigError
from sda_core.io.files import write_text


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: It cannot be read, or is not TOML; says where.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


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
            string, so that quotes can be left out. ``none`` takes a key or table out. Another
            ``name`` for a table drops that table's other keys, which belong to the component it
            named before.

    Raises:
        ConfigError: An item is not of that form, or sets a key of what is not a table.
    """
    extra: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys):
            raise ConfigError(
                f"override {item!r} is not of the form key=value, as in train.learning_rate=2e-4"
            )
        change: Any = _parse(text.strip())
        for part in reversed(keys):
            change = {part: change}
        extra = _merge(extra, change, "", switch=False)
    return merge(data, extra)


def _parse(text: str) -> Any:
    if text == "none":
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.lstrip()[:1] in ("{", "["):
            raise ConfigError(
                f"--set: {text!r} is not valid TOML: {error}. A table in braces stands on one line"
            ) from error
        return text
    return parsed["value"] if len(parsed) == 1 else text


def merge(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another, table by table; both are left as they are.

    Where both give a table a ``name`` and these differ, it is another component: nothing of the
    base's table is kept.

    Raises:
        ConfigError: A table would take the place of a value.
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
        if not isinstance(old, Mapping):
            raise ConfigError(
                f"{where} is {old!r}, not a table: it has no key {next(iter(value), '')!r}; "
                f"set {where} as a whole"
            )
        if switch and "name" in old and value.get("name", old["name"]) != old["name"]:
            old = {}
        merged[key] = _merge(old, value, where, switch)
    return merged
