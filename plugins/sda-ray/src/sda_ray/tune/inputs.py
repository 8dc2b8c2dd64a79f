"""What the trials of a study share is made before the first one: data, model, references."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from sda_core.config import dump_toml, unstructure
from sda_core.errors import StoppedError
from sda_core.experiment import Run
from sda_core.io import xarray as xarray_io
from sda_core.io.files import replace_file
from sda_core.io.progress import ProgressOption, announce, reporting
from sda_core.model import model_folder
from sda_core.random import seeded_generator
from sda_core.stages import make_problem, simulate
from sda_core.stages.assimilation import infer
from sda_core.stages.common import REFERENCE
from sda_ray.cluster import Ray
from sda_ray.storage import upload
from sda_ray.tune.context import TrialContext


def prepare_inputs(
    experiment: Any,
    context: TrialContext,
    cluster: Ray,
    progress: ProgressOption,
    stopping: Callable[[], bool],
) -> None:
    """Make what trials share, and upload it where there is a storage.

    Raises:
        StoppedError: A stop was asked for.
    """
    if not context.shares_data:
        return
    directory = Path(context.directory)
    untracked = attrs.evolve(experiment, trackers=())  # trackers are for trials
    pretrained, data = experiment.model.pretrained, directory / "data"
    if pretrained is not None and not data.exists():
        beside = model_folder(pretrained).resolve().parent / "data"
        if beside.is_dir():
            data.symlink_to(beside)
    if not Run(untracked, directory).is_done("simulate"):
        simulate(untracked, directory, progress=progress)
        dump_toml(unstructure(experiment), directory / "config.toml")
    shared = {"data": data}
    if pretrained is not None and Path(pretrained).exists():
        shared["model"] = Path(pretrained)
    if context.storage is not None:
        for name, folder in shared.items():
            announce(progress, f"{name}: {folder} is copied to {context.storage}, if need be")
            upload(folder, f"{context.storage}/{name}")
    if context.sweep.stage == "assimilate" and experiment.evaluate.reference is not None:
        _make_references(context, cluster, progress, stopping)
        if context.storage is not None:
            upload(directory / "reference", f"{context.storage}/reference")


def _make_references(
    context: TrialContext, cluster: Ray, progress: ProgressOption, stopping: Callable[[], bool]
) -> None:
    sets = context.sweep.observation_sets
    missing = [n for n in range(sets) if not context.reference(n).is_file()]
    workers = context.sweep.concurrency or len(missing)
    with reporting(progress, "references", sets, sets - len(missing)) as report:
        drawn = cluster.map(
            partial(_draw_reference, context.for_workers()), missing, workers=workers
        )
        for done, (index, data) in enumerate(drawn, sets - len(missing) + 1):
            with replace_file(context.reference(missing[index])) as temporary:
                temporary.write_bytes(data)
            report(done)
            if stopping():
                raise StoppedError(
                    "sweep stopped before its first trial; pass --resume to continue it"
                )


def _draw_reference(context: TrialContext, number: int) -> bytes:
    """Draw the ensemble that counts as the truth for an observation set, and give it as a file."""
    here = context.staged()
    experiment = here.observed(here.experiment({}), number)
    run = Run(experiment, here.directory, progress=False)
    method: Any = experiment.evaluate.reference
    seed = seeded_generator(experiment.seed, REFERENCE, 0).initial_seed()
    problem, members = make_problem(run), experiment.assimilate.members
    x = infer(run, method, problem, members, seed, lambda step, steps: None)
    array = xarray_io.trajectories(x, problem.system.spec).rename("reference")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.nc"
        xarray_io.save(array, path)
        return path.read_bytes()
