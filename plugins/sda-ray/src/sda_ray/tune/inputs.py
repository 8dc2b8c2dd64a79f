"""What the trials of a study start from, and share: its table, data, model and references."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sda_core.config import dump_toml, unstructure
from sda_core.errors import StoppedError, SweepError
from sda_core.experiment import Experiment, Run
from sda_core.io.files import replace_file
from sda_core.io.progress import ProgressOption, announce, reporting
from sda_core.model import model_folder
from sda_core.stages import simulate
from sda_ray.cluster import Ray
from sda_ray.storage import check_writable, exists, upload
from sda_ray.tune.context import TrialContext
from sda_ray.tune.inference import make_reference
from sda_ray.tune.preflight import table_of
from sda_ray.tune.search_space import Space, leaves

if TYPE_CHECKING:
    from sda_ray.tune.config import RayTune


def make_context(sweep: RayTune, experiment: Experiment, directory: Path) -> TrialContext:
    """What all trials of a study in a directory have in common."""
    cluster: Any = experiment.cluster
    storage = None if cluster is None else cluster.storage
    return TrialContext(
        directory=str(directory.resolve()),
        table=trial_table(experiment, directory),
        space=dict(leaves(sweep.space)),
        stage=sweep.stage,
        metric=sweep.metric,
        sets=sweep.observation_sets,
        shares_data=not Space.parse(sweep.space).touches("system", "data", "seed"),
        predictions=sweep.predictions,
        evaluate=sweep.evaluate,
        interval=sweep.scheduler.interval if sweep.scheduler.name == "pbt" else None,
        storage=None if storage is None else url_of(storage, directory),
        workers=sweep.workers if sweep.workers_per_trial > 1 else None,
        retries=sweep.retries,
    )


def url_of(storage: str, directory: Path) -> str:
    """The place of a study in the storage of a cluster: it has the name of its directory."""
    return f"{storage.rstrip('/')}/{directory.resolve().name}"


def check_storage(storage: str, directory: Path, resume: bool) -> None:
    """Refuse a place that cannot be written to, or has another study.

    Raises:
        ClusterError: It cannot.
        SweepError: It has.
    """
    check_writable(storage)
    url = url_of(storage, directory)
    if not resume and exists(url):
        raise SweepError(
            f"there is something in {url}, as of a study in another directory of this name: give "
            "another name by --dir, or another cluster.storage, or remove it"
        )


def trial_table(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """The table that trials start from: models by their whole path, trackers with one group."""
    whole: Any = experiment
    trackers = tuple(
        attrs.evolve(tracker, group=directory.resolve().name)
        if getattr(tracker, "group", "") is None
        else tracker
        for tracker in whole.trackers
    )
    table = table_of(attrs.evolve(whole, trackers=trackers))
    if whole.sweep.scheduler.name == "pbt":  # others start from a trial's weights of then
        table["train"] = table["train"] | {"checkpoint_every": whole.sweep.scheduler.interval}
    pretrained = whole.model.pretrained
    if pretrained is not None and Path(pretrained).exists():
        table["model"] = table["model"] | {"pretrained": str(Path(pretrained).resolve())}
    if (observed := table["assimilate"].get("observations")) is not None:
        whole_path = {"file": str(Path(observed["file"]).resolve())}
        table["assimilate"] = table["assimilate"] | {"observations": observed | whole_path}
    return table


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
    directory, sweep = Path(context.directory), experiment.sweep
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
    if sweep.stage == "assimilate" and experiment.evaluate.reference is not None:
        _make_references(sweep, context, cluster, progress, stopping)
        if context.storage is not None:
            upload(directory / "reference", f"{context.storage}/reference")


def _make_references(
    sweep: RayTune,
    context: TrialContext,
    cluster: Ray,
    progress: ProgressOption,
    stopping: Callable[[], bool],
) -> None:
    sets = sweep.observation_sets
    missing = [n for n in range(sets) if not context.reference(n).is_file()]
    workers = sweep.concurrency or len(missing)
    with reporting(progress, "references", sets, sets - len(missing)) as report:
        drawn = cluster.map(partial(make_reference, for_workers(context)), missing, workers=workers)
        for done, (index, data) in enumerate(drawn, sets - len(missing) + 1):
            with replace_file(context.reference(missing[index])) as temporary:
                temporary.write_bytes(data)
            report(done)
            if stopping():
                raise StoppedError(
                    "sweep stopped before its first trial; pass --resume to continue it"
                )


def for_workers(context: TrialContext) -> TrialContext:
    """The same for machines of the cluster, which may not have the directory."""
    whole: Any = context
    return context if context.storage is None else attrs.evolve(whole, directory="")
