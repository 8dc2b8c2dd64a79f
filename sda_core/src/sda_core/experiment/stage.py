"""The stages of a run: what each depends on, leaves behind and does."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from sda_core.experiment.configuration import Experiment


@attrs.frozen(kw_only=True)
class Stage:
    """One stage.

    Attributes:
        name: Its name, which is also that of its command and function.
        target: Its function, as ``"module:function"``, imported when it is run.
        tables: Tables of the experiment that its result depends on itself.
        after: Earlier stages whose results it uses.
        ignored: By table, keys that do not change the result: how fast it is made, or how the model
            is composed afterwards.
        results: What it leaves in the run directory; without one of these it is not done.
        sealed: Files and folders of its results whose SHA-256 is kept. Those of data are in their
            files, and checked as they are read.
        needed: Whether an experiment needs it.
    """

    name: str
    target: str
    tables: tuple[str, ...]
    after: tuple[str, ...] = ()
    ignored: Mapping[str, tuple[str, ...]] = {}
    results: tuple[str, ...]
    sealed: tuple[str, ...] = ()
    needed: Callable[[Experiment], bool] = lambda experiment: True

    @property
    def function(self) -> Callable[..., Any]:
        """The function, (experiment, directory, *, progress)."""
        module, _, name = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function

    def exists_in(self, directory: Path) -> bool:
        """Whether a result is there, of whatever configuration."""
        return any((directory / name).exists() for name in self.results)


def _needs_model(experiment: Experiment) -> bool:
    return experiment.method is None or experiment.method.needs_model


def _is_trained(experiment: Experiment) -> bool:
    return _needs_model(experiment) and experiment.model.pretrained is None


#: All stages, in order.
STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="simulate",
            target="sda_core.stages.simulation:simulate",
            tables=("seed", "system", "data"),
            ignored={"data": ("workers",)},
            results=("data",),
            needed=lambda e: _is_trained(e) or e.assimilate.observations is None,
        ),
        Stage(
            name="train",
            target="sda_core.stages.training:train",
            tables=("kernel", "schedule", "model", "train"),
            after=("simulate",),
            ignored={
                "model": ("stride", "fold", "chunk_size"),
                "train": (
                    "checkpoint_every",
                    "checkpoint_minutes",
                    "keep",
                    "report_every",
                    "histograms",
                    "sample_every",
                ),
            },
            results=("model/model.json",),
            sealed=("model",),
            needed=_is_trained,
        ),
        Stage(
            name="sample",
            target="sda_core.stages.sampling:sample",
            tables=("model", "sampler", "sample"),
            after=("train",),
            ignored={"model": ("chunk_size",)},
            results=("samples.nc",),
            sealed=("samples.nc",),
            needed=lambda e: _needs_model(e) and e.sample is not None,
        ),
        Stage(
            name="assimilate",
            target="sda_core.stages.assimilation:assimilate",
            tables=("model", "observation", "sampler", "guidance", "method", "assimilate"),
            after=("train",),
            ignored={
                "model": ("chunk_size",),
                "method": ("batch_size", "memory"),
                "assimilate": ("checkpoint_minutes",),
            },
            results=("posterior.nc", "posterior.zarr"),
            sealed=("posterior.nc", "posterior.zarr"),
        ),
        Stage(
            name="evaluate",
            target="sda_core.stages.evaluation:evaluate",
            tables=("evaluate",),
            after=("sample", "assimilate"),
            results=("report.html",),
            sealed=("metrics.json", "report.html", "baseline.nc", "reference.nc"),
        ),
    )
}


def with_earlier(stage: str) -> list[str]:
    """A stage after all those that it depends on."""
    earlier = [name for before in STAGES[stage].after for name in with_earlier(before)]
    return list(dict.fromkeys([*earlier, stage]))
