"""Observe through a function of one's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.system import SystemSpec


@component
class Function(Observation):
    r"""A differentiable function on tensors, (..., L, C, \*S) -> (..., \*obs).

    ``target`` is the function itself, or ``"module:function"``. It is given a copy of the
    trajectory, so that it may work in place.
    """

    target: str | Callable[[Tensor], Tensor] = option(help='the function, as "module:function"')
    statewise: bool = option(
        default=True, help="the function acts on each state alone, and keeps the time axis"
    )

    def operator(self, spec: SystemSpec) -> Operator:
        """The function."""
        function = self._function()
        return lambda x: function(x.clone())

    def _function(self) -> Operator:
        if callable(self.target):
            return self.target
        module, _, name = self.target.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"observation.target = {self.target!r} cannot be imported ({error}): give it as "
                '"module:function", with the module on the Python path'
            ) from error
        if not callable(function):
            raise ConfigError(f"observation.target = {self.target!r} is not a function")
        result: Operator = function
        return result

    def times(self, times: Tensor) -> Tensor | None:
        """The given times, if the function acts on each state alone."""
        return times if self.statewise else None
