"""What is installed: the functions behind ``sda list``, ``info``, ``presets`` and ``init``.

Imported by every ``sda`` command, so that what only :func:`info` needs is imported there.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sda_core.errors import ConfigError, PluginError
from sda_core.plugins import (
    PluginManager,
    RegisteredComponent,
    RegisteredPreset,
    default_manager,
)

if TYPE_CHECKING:
    from sda_core.config import FieldInfo


def list_components(
    kind: str | None = None, *, manager: PluginManager | None = None
) -> list[RegisteredComponent]:
    """The components that are installed, by kind and name; imports none of them.

    Args:
        kind: Only those of this kind.
        manager: Where to look; None for what is installed.

    Raises:
        UnknownComponentError: There is no such kind.
    """
    return (manager or default_manager()).components(kind)


@attrs.frozen(kw_only=True)
class ComponentInfo:
    """All there is to know of a component.

    Attributes:
        kind: Its kind.
        name: Its name.
        summary: One line.
        distribution: The distribution it comes from.
        version: That distribution's version.
        target: Where its class is.
        documentation: The class's docstring.
        declarations: What its class declares about its theory, such as ``order``.
        fields: Its configuration.
    """

    kind: str
    name: str
    summary: str
    distribution: str
    version: str
    target: str
    documentation: str
    declarations: dict[str, Any]
    fields: list[FieldInfo]


def info(kind: str, name: str, *, manager: PluginManager | None = None) -> ComponentInfo:
    """Describe a component.

    Args:
        kind: Its kind.
        name: Its name.
        manager: Where to look; None for what is installed.

    Raises:
        UnknownComponentError: There is no such kind or name.
        PluginError: Several plugins claim the name, or its class cannot be imported.
    """
    from sda_core.config import describe

    manager = manager or default_manager()
    registered = manager.component(kind, name)
    cls = registered.load()
    if not attrs.has(cls):
        raise PluginError(
            f"{kind} {name!r} of {registered.origin} ({registered.source}) is not a class made "
            "with @component"
        )
    fields = [attrs.evolve(f, default=_plain(f.default, manager)) for f in describe(cls)]
    return ComponentInfo(
        kind=kind,
        name=name,
        summary=registered.summary,
        distribution=registered.distribution,
        version=registered.version,
        target=registered.component.target,
        documentation=inspect.getdoc(cls) or "",
        declarations=_declarations(cls),
        fields=fields,
    )


def _plain(default: Any, manager: PluginManager) -> Any:
    from sda_core.config.convert import to_plain

    try:
        return None if default is None else to_plain(default, manager)
    except ConfigError:
        return repr(default)


def _declarations(cls: type) -> dict[str, Any]:
    """Public class variables that hold plain values."""
    names = {
        name: None  # a dict, to keep them in the order of declaration
        for base in reversed(cls.__mro__)
        for name, annotation in inspect.get_annotations(base).items()
        if "ClassVar" in str(annotation) and not name.startswith("_") and name != "sda_kind"
    }
    values = {name: getattr(cls, name, None) for name in names}
    return {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}


def presets(*, manager: PluginManager | None = None) -> list[RegisteredPreset]:
    """The presets that are installed, by name."""
    return (manager or default_manager()).presets()


def init(
    preset: str, output: str | Path | None = None, *, manager: PluginManager | None = None
) -> Path:
    """Write a preset's file, comments included, as a start for an experiment of one's own.

    Args:
        preset: The preset's name.
        output: Where to; None for the preset's name with ``.toml`` in the current folder.
        manager: Where to look for the preset; None for what is installed.

    Returns:
        The file's path.

    Raises:
        UnknownComponentError: There is no such preset.
        PluginError: Several plugins claim the name, or the preset's file cannot be read.
        ConfigError: There is a file already, or it cannot be written.
    """
    text = (manager or default_manager()).preset(preset).read_text()
    path = Path(output) if output else Path(f"{preset}.toml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        problem = f"cannot write {path}: {error}"
        if path.exists():
            problem = f"{path} is there already and is not overwritten: choose another output"
        raise ConfigError(problem) from error
    return path
