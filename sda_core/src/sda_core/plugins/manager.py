"""The manager of what is installed."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import EntryPoint
from operator import attrgetter
from typing import Any, TypeVar

import pluggy

from sda_core.errors import PluginError, UnknownComponentError
from sda_core.plugins.loading import Source, check_hooks, check_interface, collect, hooks_only
from sda_core.plugins.names import KINDS, check_kind, did_you_mean
from sda_core.plugins.records import (
    BrokenPlugin,
    Component,
    Conflict,
    Preset,
    RegisteredComponent,
    RegisteredPreset,
)

ENTRY_POINT_GROUP = "sda"

_Registered = TypeVar("_Registered", RegisteredComponent, RegisteredPreset)


class PluginManager:
    """The plugins that are installed, and what they bring.

    Args:
        entry_points: Entry points to load; None for those installed in group ``sda``.
        plugins: Further plugins (modules or objects with hook implementations), by name.

    Attributes:
        broken: Plugins that cannot be used.
        hook: Calls a hook of all plugins, as in ``manager.hook.sda_run_started(run=run)``.
    """

    def __init__(
        self,
        entry_points: Iterable[EntryPoint] | None = None,
        plugins: Mapping[str, object] | None = None,
    ) -> None:
        self._pluggy = hooks_only()
        self._components: dict[tuple[str, str], list[RegisteredComponent]] = {}
        self._presets: dict[str, list[RegisteredPreset]] = {}
        self._sources: dict[str, Source] = {}
        self.broken: list[BrokenPlugin] = []
        if entry_points is None:
            entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        for entry_point in entry_points:
            self._add(Source.from_entry_point(entry_point))
        for name, plugin in (plugins or {}).items():
            self.register(plugin, name)

    @property
    def hook(self) -> pluggy.HookRelay:
        """Calls a hook of all plugins."""
        return self._pluggy.hook

    @property
    def distributions(self) -> dict[str, str]:
        """Names and versions of the distributions whose plugins work."""
        return {s.distribution: s.version for s in self._sources.values()}

    @property
    def conflicts(self) -> list[Conflict]:
        """Names that several plugins claim."""
        claims: list[tuple[str, str, Sequence[RegisteredComponent | RegisteredPreset]]] = [
            *((kind, name, found) for (kind, name), found in self._components.items()),
            *(("preset", name, found) for name, found in self._presets.items()),
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
        single = [found[0] for found in self._components.values() if len(found) == 1]
        chosen = [c for c in single if kind in (None, c.kind)]
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
        return sorted((p[0] for p in self._presets.values() if len(p) == 1), key=lambda p: p.name)

    def preset(self, name: str) -> RegisteredPreset:
        """Find a preset.

        Raises:
            UnknownComponentError: There is no such preset.
            PluginError: Several plugins claim the name.
        """
        return self._pick("preset", name, self._presets)

    def add_cli_commands(self, app: Any) -> None:
        """Let each plugin add its commands; one that fails is noted as broken."""
        for implementation in self.hook.sda_cli_commands.get_hookimpls():
            try:
                implementation.function(*(app for _ in implementation.argnames))
            except Exception as error:  # noqa: BLE001 - a plugin can fail in any way
                self._break(self._sources[implementation.plugin_name], error)

    def implementations(
        self, hook: str, arguments: Mapping[str, Any]
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The implementations of a hook one by one, for where one that fails must not end all.

        Args:
            hook: Name of the hook.
            arguments: What it is called with.

        Yields:
            The name of the plugin, and a function that calls its implementation.
        """
        for found in getattr(self.hook, hook).get_hookimpls():
            yield (
                found.plugin_name,
                partial(found.function, *(arguments[a] for a in found.argnames)),
            )

    def _add(self, source: Source) -> None:
        # A plugin is tried on a manager of its own: what is wrong with it cannot touch the others.
        alone = hooks_only()
        try:
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
        if len(found) == 1:
            return found[0]
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
