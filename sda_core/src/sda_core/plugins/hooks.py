"""The hooks a plugin can implement, and the version of this interface.

A plugin is a light module named by an entry point in group ``sda``::

    from sda_core.plugins import Component, hookimpl

    sda_interface = 1

    @hookimpl
    def sda_register_components():
        yield Component("system", "pendulum", "sda_pendulum.pendulum:Pendulum", "A pendulum")

An implementation may leave out arguments that it does not use. ``run`` is the run in progress.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import typer
    from torch import Tensor

    from sda_core.plugins.records import Component, Preset

#: (major, minor). Plugins state the major version they were made for; a new minor version only
#: adds hooks or arguments.
INTERFACE_VERSION = (1, 4)


class Observed(Protocol):
    """What hooks know of a :class:`sda_core.method.Problem`."""

    @property
    def system(self) -> Any:
        """The system, which says whose problem it is."""

    @property
    def y(self) -> Tensor:
        """The observation."""

    @property
    def truth(self) -> Tensor | None:
        """The trajectory that was observed, if known."""


hookspec = pluggy.HookspecMarker("sda")
hookimpl = pluggy.HookimplMarker("sda")


@hookspec
def sda_register_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Give the components of this plugin; called once, when the plugin is loaded."""


@hookspec
def sda_register_presets() -> Iterable[Preset]:  # type: ignore[empty-body]
    """Give the presets of this plugin; called once, when the plugin is loaded."""


@hookspec
def sda_cli_commands(app: typer.Typer) -> None:
    """Add commands to ``sda``; called before the command line is parsed, so import lazily."""


@hookspec
def sda_run_started(run: Any, stage: str) -> None:
    """Called once when a stage of a run starts, with configuration and folder in place."""


@hookspec
def sda_epoch_ended(run: Any, metrics: Mapping[str, float]) -> None:
    """Called after each training epoch with its metrics (``epoch``, ``step``, losses, rate)."""


@hookspec
def sda_metrics_logged(run: Any, step: int, values: Mapping[str, Any]) -> None:
    """Called with what is reported of a training: numbers, histograms and pictures, by name.

    As ``"report/<name>"`` every ``train.report_every`` steps, and as ``"epoch/<name>"`` after each
    epoch. ``step`` counts optimizer steps and never goes back, but to that of a checkpoint when a
    training is resumed or rolled back.
    """


@hookspec
def sda_stop_training(run: Any, metrics: Mapping[str, float]) -> str | None:
    """Called after each validation; text ends the training there, and says why.

    Args:
        run: The run.
        metrics: What :func:`sda_epoch_ended` is called with, ``valid_loss`` among it.
    """


@hookspec
def sda_checkpoint_written(run: Any, path: Path) -> None:
    """Called when a checkpoint is whole under its final name."""


@hookspec
def sda_sampling_step(run: Any, step: int, num_steps: int) -> None:
    """Called after each step of sampling or assimilating, from 1 to ``num_steps``.

    Steps are those of the sampler, over all batches of members, or of the method (the particle
    filter: one per state). Runs of the reference method are left out.
    """


@hookspec
def sda_run_finished(run: Any, summary: Mapping[str, Any]) -> None:
    """Called once when a stage of a run ends well, with its results."""


@hookspec
def sda_diagnostics(  # type: ignore[empty-body]
    run: Any, stage: str, context: Mapping[str, Any]
) -> Mapping[str, Any]:
    r"""Give extra numbers, histograms or pictures, by name, to be recorded.

    ======================  ==========================  ===============================
    stage                   when                        context
    ======================  ==========================  ===============================
    ``"batch"``             reported training steps     ``trainer``
    ``"epoch"``             after each epoch            ``trainer``, ``metrics``
    ``"validation"``        after each validation       ``trainer``, ``metrics``
    ``"training-samples"``  ``train.sample_every``      ``model``, ``samples``
    ``"train"``             at the end of the training  ``model``
    ``"sample"``            at its end                  ``model``, ``samples``
    ``"assimilate"``        at its end                  ``problem``, ``posterior``
    ``"evaluate"``          at its end                  ``problem``, ``posterior``,
                                                        ``reference``
    ======================  ==========================  ===============================

    ``trainer`` is the :class:`sda_core.training.Trainer`, with the gradients of the last step still
    in place; ``samples`` are trajectories in physical units, (M, L, C, \*S). The first four are
    logged (see :func:`sda_metrics_logged`); of the others numbers are kept, with the results.

    Args:
        run: The run.
        stage: The stage that asks.
        context: What there is to look at, by name.
    """


@hookspec
def sda_scores(problem: Observed, ensemble: Tensor) -> Mapping[str, float]:  # type: ignore[empty-body]
    r"""Give extra scores of an ensemble, by name, for ``metrics.json`` and the report.

    Called for the posterior and for every ensemble that it is compared with.

    Args:
        problem: The problem that the ensemble solves; ``problem.system`` says whose it is.
        ensemble: Trajectories in physical units, (M, L, C, \*S).
    """


@hookspec
def sda_figures(  # type: ignore[empty-body]
    run: Any, problem: Observed, ensembles: Mapping[str, Tensor]
) -> Iterable[Any]:
    r"""Give extra pictures (:class:`sda_core.figures.Picture`) for ``figures/`` and the report.

    Args:
        run: The run.
        problem: The problem.
        ensembles: Trajectories in physical units, (M, L, C, \*S), by name: ``"posterior"`` first,
            then those that it is compared with.
    """
