"""Ensembles that a stage writes as their members are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from sda_core.experiment import STAGES, Run
from sda_core.io.ensemble_file import EnsembleFile, checksum
from sda_core.io.progress import announce
from sda_core.model import TrainedModel
from sda_core.system import SystemSpec


@contextmanager
def ensemble_file(
    run: Run,
    stage: str,
    spec: SystemSpec,
    shape: Sequence[int],
    model: TrainedModel | None,
    observed: Tensor | None = None,
) -> Iterator[EnsembleFile]:
    r"""The ensemble of a stage, on disk, or what a stopped run of it left of the same one.

    Args:
        run: The run.
        stage: The stage.
        spec: What the states are.
        shape: (M, L, C, \*S).
        model: The model that it is sampled with.
        observed: The observation y.
    """
    config = run.experiment.assimilate
    weights = () if model is None else model.denoiser.state_dict().values()
    identity = {
        **run.settings("simulate", stage),
        "shape": shape,
        "model_weights": checksum(*weights),
        "observed": checksum() if observed is None else checksum(observed),
        "versions": run.versions(),
    }
    if stage == "assimilate":
        del identity["assimilate"]["format"]  # the values do not depend on it
    file = EnsembleFile(
        run.directory / STAGES[stage].results[0],
        spec,
        shape,
        identity,
        file_format=config.format if stage == "assimilate" else "netcdf",
        minutes=config.checkpoint_minutes,
        announce=partial(announce, run.progress),
    )
    with file.alone():
        yield file
