"""The errors this library raises on purpose.

Every message says what was asked, what was given, what is allowed and how to mend it.
Anything else that escapes is a bug.
"""

from __future__ import annotations


class SDAError(Exception):
    """Base class of all errors raised on purpose."""


class ConfigError(SDAError, ValueError):
    """A configuration key is unknown, missing, of the wrong type or out of range."""


class PluginError(SDAError):
    """A plugin cannot be used: it fails to import, clashes with another or is misdeclared."""


class PluginWarning(UserWarning):
    """A plugin failed, and what it does there is left out from now on."""


class UnknownComponentError(PluginError, LookupError):
    """No component or preset is registered under the name asked for."""


class DataError(SDAError):
    """A data store is missing, damaged, incomplete or does not belong with the others."""


class ShapeError(SDAError, ValueError):
    """An array does not have the shape that was promised."""


class CheckpointError(SDAError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, and the one before it is used."""


class TrainingError(SDAError):
    """A training cannot go on: losses or gradients are not finite, or the loss rises again."""


class TrackingWarning(UserWarning):
    """A tracker failed and is left out from now on, or keeps its records on this machine alone."""


class SimulationError(SDAError, ArithmeticError):
    """A simulated trajectory left the range of finite numbers."""


class SimulationWarning(UserWarning):
    """A simulated trajectory left the range of finite numbers and was drawn again."""


class AssimilationWarning(UserWarning):
    """Members of an ensemble diverged and were drawn again."""


class AssimilationError(SDAError):
    """An assimilation cannot be done as asked, or produced values that are not finite."""


class DivergedMembersError(AssimilationError):
    """Members of an ensemble diverge, and drawing them again does not help."""


class StoppedError(SDAError):
    """The user stopped long work; what was done is kept, and the same call resumes there."""


class ClusterError(SDAError):
    """A cluster cannot be reached, lacks what is asked of it, or lost a task for good."""


class SweepError(SDAError):
    """A sweep cannot be done or resumed: another study is in its directory, or all fail."""
