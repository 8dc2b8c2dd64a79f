"""Getting a plugin in: is it made for this interface, and what does it bring."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import TypeVar

import attrs
import pluggy

from sda_core.errors import PluginError
from sda_core.plugins import hooks
from sda_core.plugins.hooks import INTERFACE_VERSION
from sda_core.plugins.names import cause_text, did_you_mean
from sda_core.plugins.records import Origin

_Given = TypeVar("_Given")
_HOOKS = [name for name in vars(hooks) if name.startswith("sda_")]


@attrs.frozen
class Source(Origin):
    """Where a plugin is to be had from."""

    entry_point: str
    load: Callable[[], object]

    @property
    def key(self) -> str:
        """What pluggy knows the plugin by."""
        return f"{self.distribution}:{self.entry_point}"

    @classmethod
    def from_entry_point(cls, entry_point: EntryPoint) -> Source:
        """A plugin that is installed."""
        dist = entry_point.dist
        name, version = (dist.name, dist.version) if dist else ("unknown distribution", "")
        return cls(name, version, entry_point.value, entry_point.load)


def hooks_only() -> pluggy.PluginManager:
    """A pluggy manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager("sda")
    manager.add_hookspecs(hooks)
    return manager


def check_interface(plugin: object, source: Source) -> None:
    """Refuse a plugin made for another major version of the interface.

    Raises:
        PluginError: It declares another version, or none.
    """
    declared = getattr(plugin, "sda_interface", None)
    major, minor = INTERFACE_VERSION
    if declared is None:
        raise PluginError(
            "it does not declare the plugin interface it was made for: "
            f"write `sda_interface = {major}` into {source.entry_point}"
        )
    if declared != major:
        raise PluginError(
            f"it was made for plugin interface {declared!r}, but this sda-core speaks "
            f"{major}.{minor}: install a version of {source.distribution} made for interface "
            f"{major}, or an sda-core that speaks {declared!r}"
        )


def check_hooks(alone: pluggy.PluginManager, plugin: object) -> None:
    """Refuse hook implementations that would never be called.

    Args:
        alone: A manager that has this plugin only.
        plugin: The plugin.

    Raises:
        PluginError: A hook's name is misspelt, or an implementation is not marked as one.
    """
    callers = alone.get_hookcallers(plugin) or []
    try:
        alone.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = [caller.name for caller in callers if not caller.has_spec()]
        raise PluginError(
            "".join(f"there is no hook {u!r}: {did_you_mean(u, _HOOKS)}" for u in unknown)
            + f"the hooks are {', '.join(_HOOKS)}"
        ) from error
    if wraps := [i.function.__name__ for c in callers for i in c.get_hookimpls() if _is_wrapper(i)]:
        raise PluginError(f"its hook {wraps[0]} is a wrapper of others': write a plain function")
    implemented = {caller.name for caller in callers}
    for name in _HOOKS:
        if callable(getattr(plugin, name, None)) and name not in implemented:
            raise PluginError(f"its function {name!r} lacks the decorator @hookimpl")


def _is_wrapper(implementation: pluggy.HookImpl) -> bool:
    return implementation.wrapper or implementation.hookwrapper


def collect(alone: pluggy.PluginManager, hook: str, expected: type[_Given]) -> list[_Given]:
    """What a plugin's registration hook gives.

    Args:
        alone: A manager that has this plugin only.
        hook: The hook's name.
        expected: Class of what it should give.

    Raises:
        PluginError: It fails, or gives something else.
    """
    try:
        given = [item for result in getattr(alone.hook, hook)() for item in result]
    except Exception as error:
        raise PluginError(f"its hook {hook} raised {cause_text(error)}") from error
    for item in given:
        if not isinstance(item, expected):
            raise PluginError(f"its hook {hook} gave {item!r}, not a {expected.__name__}")
    return given
