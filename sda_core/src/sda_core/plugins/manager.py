"""The manager of what is installed."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import EntryPoint
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from sda_core.errors import PluginError, PluginWarning, UnknownComponentError
from sda_core.plugins.guard import contained
from sda_core.plugins.loading import Source, check_hooks, check_interface, collect, hooks_only
from sda_core.plugins.names import KINDS, cause_text, check_kind, did_you_mean
from sda_core.plugins.records import (
    CORE,
    BrokenPlugin,
    Component,
    Conflict,
    Preset,
    Registered,
    RegisteredCommand,
    RegisteredComponent,
    RegisteredPreset,
    holder,
)

if TYPE_CHECKING:
    import typer

ENTRY_POINT_GROUP = "sda"

_Registered = TypeVar("_Registered", RegisteredComponent, RegisteredPreset)
_Given = TypeVar("_Given")


class PluginManager:
    """The plugins that are installed, and what they bring.

    Args:
        entry_points: Entry points to load; None for those installed in group ``sda``.
        plugins: Further plugins (modules or objects with hook implementations), by name.

    Attributes:
        broken: Plugins that cannot be used.
    """

    def __init__(
        self,
        entry_points: Iterable[EntryPoint] | None = None,
        plugins: Mapping[str, object] | None = None,
    ) -> None:
        self._pluggy = hooks_only()
        self._components: dict[tuple[str, str], list[RegisteredComponent]] = {}
        self._presets: dict[str, list[RegisteredPreset]] = {}
        self._commands: dict[str, list[RegisteredCommand]] = {}
        self._sources: dict[str, Source] = {}
        self._left_out: set[tuple[str, str]] = set()
        self.broken: list[BrokenPlugin] = []
        if entry_points is None:
            entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        for entry_point in entry_points:
            self._add(Source.from_entry_point(entry_point))
        for name, plugin in (plugins or {}).items():
            self.register(plugin, name)

    @property
    def distributions(self) -> dict[str, str]:
        """Names and versions of the distributions whose plugins work."""
        return {s.distribution: s.version for s in self._sources.values()}

    @property
    def conflicts(self) -> list[Conflict]:
        """Names that several plugins claim."""
        claims: list[tuple[str, str, Sequence[Registered]]] = [
            *((kind, name, found) for (kind, name), found in self._components.items()),
            *(("preset", name, found) for name, found in self._presets.items()),
            *(("command", name, found) for name, found in self._commands.items()),
        ]
        return [Conflict(k, name, tuple(found)) for k, name, found in claims if len(found) > 1]

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin that is no entry point, under the same rules."""
        self._add(Source(name, "", name, lambda: plugin))

    @contextmanager
    def with_plugins(self, plugins: Iterable[object]) -> Iterator[None]:
        """Call the hooks of further objects too, within.

        Raises:
            PluginError: One is no plugin; says why.
        """
        with ExitStack() as stack:
            for number, plugin in enumerate(plugins):
                name = type(plugin).__name__
                alone = hooks_only()
                check_interface(plugin, Source(name, "", name, lambda: None))
                alone.register(plugin)
                check_hooks(alone, plugin)
                self._pluggy.register(plugin, f"{name}:{number}")
                stack.callback(self._pluggy.unregister, plugin)
            yield

    def components(self, kind: str | None = None) -> list[RegisteredComponent]:
        """The components that can be picked, by kind and name.

        Args:
            kind: Only those of this kind.

        Raises:
            UnknownComponentError: There is no such kind.
        """
        if kind is not None:
            check_kind(kind)
        held = map(holder, self._components.values())
        chosen = [c for c in held if c is not None and kind in (None, c.kind)]
        return sorted(chosen, key=lambda c: (KINDS.index(c.kind), c.name))

    def component(self, kind: str, name: str) -> RegisteredComponent:
        """Find a component without importing it.

        Raises:
            UnknownComponentError: There is no such kind or name.
            PluginError: Several plugins claim the name.
        """
        check_kind(kind)
        by_name = {n: found for (k, n), found in self._components.items() if k == kind}
        return self._pick(kind, name, by_name)

    def get(self, kind: str, name: str) -> type:
        """Import a component's class.

        Raises:
            UnknownComponentError: There is no such kind or name.
            PluginError: Several plugins claim the name, or the class cannot be imported.
        """
        return self.component(kind, name).load()

    def name_of(self, cls: type) -> tuple[str, str]:
        """The kind and name a class is registered under; imports nothing.

        Raises:
            UnknownComponentError: It is not registered.
        """
        for (kind, name), found in self._components.items():
            for registered in found:
                module, _, qualname = registered.component.target.partition(":")
                # A class that exists has been imported, and so has the module it is found in.
                home = sys.modules.get(module)
                if home is not None and _lookup(home, qualname) is cls:
                    return kind, name
        raise UnknownComponentError(
            f"class {cls.__module__}:{cls.__qualname__} is not registered under any name: register "
            f"it with `sda_register_components` in a plugin{self._broken_note()}"
        )

    def presets(self) -> list[RegisteredPreset]:
        """The presets that can be picked, by name."""
        held = map(holder, self._presets.values())
        return sorted((p for p in held if p is not None), key=lambda p: p.name)

    def preset(self, name: str) -> RegisteredPreset:
        """Find a preset.

        Raises:
            UnknownComponentError: There is no such preset.
            PluginError: Several plugins claim the name.
        """
        return self._pick("preset", name, self._presets)

    def add_cli_commands(self, app: typer.Typer) -> None:
        """Let each plugin add its commands, but none that is there or that another plugin adds.

        A plugin that fails is noted as broken, and a command that is refused as a conflict.

        Args:
            app: The command line, with the core's commands.
        """
        import typer

        from sda_core.plugins.commands import add, command_names, pieces

        self._commands.clear()  # those of another app
        for name in command_names(app):
            version = importlib.metadata.version(CORE)
            self._commands[name] = [RegisteredCommand(CORE, version, name, "sda_core.cli")]
        given: list[tuple[typer.Typer, list[str]]] = []
        for found in self._implementations("sda_cli_commands"):
            source = self._sources[found.plugin_name]
            own = typer.Typer()  # of the plugin alone, so that it can change nothing of others
            try:
                with contained():
                    found.function(*(own for _ in found.argnames))
                    named = [(piece, command_names(piece)) for piece in pieces(own)]
            except Exception as error:  # noqa: BLE001 - a plugin can fail in any way
                self._break(source, error)
                continue
            given += named
            origin = (source.distribution, source.version)
            for name in (name for _, names in named for name in names):
                claim = RegisteredCommand(*origin, name, source.entry_point)
                self._commands.setdefault(name, []).append(claim)
        for piece, names in given:
            if all(len(self._commands[name]) == 1 for name in names):
                add(piece, app)

    def call(
        self, hook: str, use: Callable[[Any], _Given] = lambda given: given, **arguments: Any
    ) -> list[_Given]:
        """Call a hook of all plugins.

        A plugin that fails, or gives what cannot be used, is left out of this hook from then on,
        with a warning. What :meth:`with_plugins` adds is the caller's own: its errors pass.

        Args:
            hook: Name of the hook.
            use: What is done with what a plugin gives.
            arguments: What the hook is called with.

        Returns:
            What ``use`` makes of what the plugins give, other than None.
        """
        used = []
        for found in self._implementations(hook):
            if (found.plugin_name, hook) in self._left_out:
                continue
            ask = partial(found.function, *(arguments[a] for a in found.argnames))
            if found.plugin_name not in self._sources:
                given = ask()
                used += [] if given is None else [use(given)]
                continue
            try:
                with contained():
                    given = ask()
                    used += [] if given is None else [use(given)]
            except Exception as error:  # noqa: BLE001 - a plugin can fail in any way
                self._left_out.add((found.plugin_name, hook))
                origin = self._sources[found.plugin_name].origin
                warnings.warn(
                    f"{hook} of plugin {found.plugin_name} ({origin}) failed and is left out from "
                    f"now on: {cause_text(error)}",
                    PluginWarning,
                    stacklevel=2,
                )
        return used

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """The implementations of a hook, in the order of calling them."""
        return getattr(self._pluggy.hook, hook).get_hookimpls()[::-1]

    def _add(self, source: Source) -> None:
        # A plugin is tried on a manager of its own: what is wrong with it cannot touch the others.
        alone = hooks_only()
        try:
            with contained():
                plugin = source.load()
                check_interface(plugin, source)
                alone.register(plugin)
                check_hooks(alone, plugin)
                components = collect(alone, "sda_register_components", Component)
                presets = collect(alone, "sda_register_presets", Preset)
                self._pluggy.register(plugin, source.key)
        except Exception as error:  # noqa: BLE001 - a plugin can fail in any way
            self._break(source, error)
            return
        self._sources[source.key] = source
        origin = (source.distribution, source.version)
        for component in components:
            claimed = self._components.setdefault((component.kind, component.name), [])
            claimed.append(RegisteredComponent(*origin, component))
        for preset in presets:
            self._presets.setdefault(preset.name, []).append(RegisteredPreset(*origin, preset))

    def _break(self, source: Source, cause: Exception) -> None:
        self.broken.append(
            BrokenPlugin(source.distribution, source.version, source.entry_point, cause)
        )

    def _pick(self, kind: str, name: str, by_name: Mapping[str, list[_Registered]]) -> _Registered:
        found = by_name.get(name, [])
        if (held := holder(found)) is not None:
            return held
        if found:
            raise PluginError(str(Conflict(kind, name, tuple(found))))
        installed = ", ".join(sorted(by_name)) or "none"
        raise UnknownComponentError(
            f"no {kind} {name!r}: {did_you_mean(name, by_name)}installed are: {installed}. "
            f"If a plugin brings it, pip install that plugin{self._broken_note()}"
        ) from (self.broken[0].cause if self.broken else None)

    def _broken_note(self) -> str:
        """What an error about a missing name adds, since a broken plugin may be what brings it."""
        if not self.broken:
            return ""
        return ". These plugins are broken and may bring it: " + "; ".join(map(str, self.broken))


def _lookup(module: object, qualname: str) -> object:
    try:
        return attrgetter(qualname)(module)
    except AttributeError:
        return None


@functools.cache
def default_manager() -> PluginManager:
    """The manager of what is installed, made on first use."""
    return PluginManager()
