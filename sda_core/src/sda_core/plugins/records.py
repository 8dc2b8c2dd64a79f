"""What plugins declare, and what became of it."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from sda_core.errors import PluginError
from sda_core.plugins.guard import contained
from sda_core.plugins.names import cause_text, check_kind

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

#: The distribution whose names no other can take.
CORE = "sda-core"

_text = attrs.validators.instance_of(str)


def _module_and_class(component: Component, attribute: attrs.Attribute[str], target: str) -> None:
    _text(component, attribute, target)
    module, _, qualname = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *qualname.split("."))):
        raise PluginError(
            f"{component.kind} {component.name!r}: its target {target!r} is not of the form "
            "'package.module:Class'"
        )


@attrs.frozen
class Component:
    """What a plugin says about one of its components.

    Attributes:
        kind: One of :data:`KINDS`.
        name: The name users pick it by, unique among the components of its kind.
        target: ``"package.module:Class"``, imported on first use.
        summary: One line for tables.

    Raises:
        UnknownComponentError: There is no such kind.
        PluginError: The target is not of the form above.
    """

    kind: str = attrs.field(validator=lambda _instance, _attribute, kind: check_kind(kind))
    name: str = attrs.field(validator=_text)
    target: str = attrs.field(validator=_module_and_class)
    summary: str = attrs.field(default="", validator=_text)

    def load(self) -> Any:
        """Import the target."""
        module, _, qualname = self.target.partition(":")
        return attrgetter(qualname)(importlib.import_module(module))


def components(kind: str, package: str, table: Mapping[str, tuple[str, str]]) -> list[Component]:
    """Components of one kind and package.

    Args:
        kind: Their kind.
        package: The package that their modules are in.
        table: ``("module:Class", summary)`` by name.
    """
    return [
        Component(kind, name, f"{package}.{target}", summary)
        for name, (target, summary) in table.items()
    ]


def _as_file(path: str | Path | Traversable) -> Path | Traversable:
    return Path(path) if isinstance(path, str) else path


@attrs.frozen
class Preset:
    """An experiment file that comes with a plugin.

    Attributes:
        name: The name users pick it by.
        path: The TOML file, best given as ``importlib.resources.files(__package__) / ...``.
        summary: One line for tables.
    """

    name: str = attrs.field(validator=_text)
    path: Path | Traversable = attrs.field(converter=_as_file)
    summary: str = attrs.field(default="", validator=_text)


def presets(package: str, table: Mapping[str, str]) -> list[Preset]:
    """The presets ``presets/NAME.toml`` of a package, by their summaries."""
    folder = files(package) / "presets"
    return [Preset(name, folder / f"{name}.toml", summary) for name, summary in table.items()]


@attrs.frozen
class Origin:
    """Where something comes from."""

    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Distribution and version, as they stand in messages."""
        return f"{self.distribution} {self.version}".rstrip()


@attrs.frozen
class RegisteredComponent(Origin):
    """A component and the distribution it came from."""

    component: Component

    @property
    def kind(self) -> str:
        """The component's kind."""
        return self.component.kind

    @property
    def name(self) -> str:
        """The component's name."""
        return self.component.name

    @property
    def summary(self) -> str:
        """The component's summary."""
        return self.component.summary

    @property
    def source(self) -> str:
        """Where the component's class is."""
        return self.component.target

    def load(self) -> type:
        """Import the component's class.

        Raises:
            PluginError: It cannot be imported, or is not a class; says whose it is.
        """
        what = f"{self.kind} {self.name!r} of {self.origin} (target {self.source!r})"
        try:
            with contained():
                target = self.component.load()
        except Exception as error:
            raise PluginError(
                f"{what} cannot be imported: {cause_text(error)}. Upgrade or "
                f"reinstall {self.distribution}"
            ) from error
        if not isinstance(target, type):
            raise PluginError(f"{what} is not a class but {target!r}: it must name a class")
        return target


@attrs.frozen
class RegisteredPreset(Origin):
    """A preset and the distribution it came from."""

    preset: Preset
    kind: str = attrs.field(default="preset", init=False)

    @property
    def name(self) -> str:
        """The preset's name."""
        return self.preset.name

    @property
    def summary(self) -> str:
        """The preset's summary."""
        return self.preset.summary

    @property
    def source(self) -> str:
        """Where the preset's file is."""
        return str(self.preset.path)

    def read_text(self) -> str:
        """The preset's TOML, comments included.

        Raises:
            PluginError: The file cannot be read; says whose it is.
        """
        try:
            return self.preset.path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PluginError(
                f"preset {self.name!r} of {self.origin} cannot be read: {cause_text(error)}. "
                f"Upgrade or reinstall {self.distribution}"
            ) from error

    def load(self) -> dict[str, Any]:
        """The preset's table.

        Raises:
            PluginError: The file cannot be read or is not TOML; says whose it is.
        """
        try:
            return tomllib.loads(self.read_text())
        except tomllib.TOMLDecodeError as error:
            raise PluginError(
                f"preset {self.name!r} of {self.origin} is not valid TOML: {error}. "
                f"Upgrade or reinstall {self.distribution}"
            ) from error


@attrs.frozen
class RegisteredCommand(Origin):
    """A command of ``sda`` and the distribution it came from.

    Attributes:
        name: Its name.
        source: Where it comes from: the entry point's value, or a module.
    """

    name: str
    source: str


#: What plugins claim the names of.
Registered = RegisteredComponent | RegisteredPreset | RegisteredCommand
_Registered = TypeVar("_Registered", bound=Registered)


@attrs.frozen
class BrokenPlugin(Origin):
    """A plugin that cannot be used, and why.

    Attributes:
        distribution: The distribution that brought it.
        version: That distribution's version.
        entry_point: The entry point's value, usually the module's name.
        cause: What went wrong.
    """

    entry_point: str
    cause: Exception

    def __str__(self) -> str:
        # The library's own errors are written to be read; others need their type's name.
        cause = self.cause if isinstance(self.cause, PluginError) else cause_text(self.cause)
        return f"{self.origin} ({self.entry_point}): {cause}"


@attrs.frozen
class Conflict:
    """A name that several distributions claim: it is the core's, or stands for none of theirs.

    Attributes:
        kind: Kind of the component, ``"preset"`` or ``"command"``.
        name: The name.
        claimants: Who claims it.
    """

    kind: str
    name: str
    claimants: tuple[Registered, ...]

    def __str__(self) -> str:
        claims = " and by ".join(f"{c.origin} ({c.source})" for c in self.claimants)
        held = holder(self.claimants)
        outcome = "uninstall all but one" if held is None else f"that of {CORE} is used"
        return f"{self.kind} {self.name!r} is claimed by {claims}: {outcome}"


def holder(claimants: Sequence[_Registered]) -> _Registered | None:
    """Whose a name is: the core's, or that of the only one who claims it."""
    core = [c for c in claimants if c.distribution == CORE]
    return core[0] if core else claimants[0] if len(claimants) == 1 else None
