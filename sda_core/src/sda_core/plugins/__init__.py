"""Plugins and the components they bring.

Plugins are found through the entry-point group ``sda`` (see :mod:`sda_core.plugins.hooks` for what
they implement); the core's own components enter by the same door. One bad plugin never takes the
others down: it is kept in :attr:`PluginManager.broken` with its cause, which every error about a
name that is not there repeats. Nothing here imports what a component's target imports.
"""

from __future__ import annotations

from sda_core.plugins.exports import exports
from sda_core.plugins.hooks import INTERFACE_VERSION, hookimpl, hookspec
from sda_core.plugins.manager import PluginManager, default_manager
from sda_core.plugins.names import KINDS, nearest
from sda_core.plugins.records import (
    BrokenPlugin,
    Component,
    Conflict,
    Preset,
    RegisteredComponent,
    RegisteredPreset,
    components,
    presets,
)

__all__ = [
    "INTERFACE_VERSION",
    "KINDS",
    "BrokenPlugin",
    "Component",
    "Conflict",
    "PluginManager",
    "Preset",
    "RegisteredComponent",
    "RegisteredPreset",
    "components",
    "default_manager",
    "exports",
    "hookimpl",
    "hookspec",
    "nearest",
    "presets",
]
