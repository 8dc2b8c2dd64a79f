"""``sda sweep``."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sda_core.cli.stages import Overrides, Quiet, Source
from sda_core.errors import ConfigError

if TYPE_CHECKING:
    from sda_core.experiment import Experiment
    from sda_ray.tune.sweep import RayTune


def sweep(
    experiment: Source,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", "-d", help="Directory of the study; sweeps/NAME if not given."),
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster that this machine is part of: auto, or HOST:6379."
        ),
    ] = None,
    submit: Annotated[
        str | None,
        typer.Option(
            help="Run the sweep as a job on another cluster, and fetch what it found by "
            "cluster.storage: http://HEAD:8265."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the study in the directory.")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Start another study beside the one in the directory.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the study in the directory, and start another.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Search the settings in [sweep.space] for the best ones, by many trials."""
    from sda_core.experiment import load_experiment

    if resume + new + delete > 1:
        raise ConfigError("--resume, --new and --delete exclude each other: give one of them")
    source = Path(experiment)
    is_study = (source / "optuna.db").is_file()
    changes = list(overrides or ())
    if address is not None:
        changes += ["cluster.name=ray", f"cluster.address={json.dumps(address)}"]
    if not is_study and (source / "model" / "model.json").is_file():
        # First, so that --set can name another one. What is swept is its use, if not its training.
        loaded = load_experiment(experiment, changes)
        stage = getattr(loaded.sweep, "stage", None)
        if stage == "assimilate" and loaded.model.pretrained is None:
            changes.insert(0, f"model.pretrained={json.dumps(str(source / 'model'))}")
    loaded = load_experiment(experiment, changes)
    folder = directory or (source if is_study else Path("sweeps") / source.stem)
    if new:
        folder = _next_to(folder)
    searched = loaded.require("sweep", "`sda sweep`")
    searched.check(loaded)
    if dry_run:
        typer.echo(_plan(searched, loaded, folder))
        return
    if delete and (folder / "optuna.db").is_file():
        shutil.rmtree(folder)
    if submit is not None:
        from sda_ray.submit import submit_sweep

        summary = submit_sweep(submit, loaded, folder, resume=resume, progress=not quiet)
    else:
        summary = searched.run(loaded, folder, resume=resume, progress=not quiet)
    typer.echo(f"best trial: {folder / 'best'}")
    typer.echo(f"summary: {summary}")


def _next_to(folder: Path) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... in which there is no study."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([folder], names) if not each.exists())


def _plan(sweep: RayTune, experiment: Experiment, folder: Path) -> str:
    """What a sweep would do, in words."""
    searched = "lowest" if sweep.mode == "min" else "highest"
    number = sweep.workers_per_trial
    workers = f"{number} workers of " if number > 1 else ""
    lines = [
        f"{sweep.trials} trials (stage {sweep.stage}) in {folder}, for the {searched} "
        f"{sweep.metric}, by search {sweep.search!r} and scheduler {sweep.scheduler.name!r}",
        f"each with {workers}{sweep.cpus_per_trial:g} CPUs, {sweep.gpus_per_trial:g} GPUs and up "
        f"to {sweep.longest(experiment)} {sweep.unit}",
    ]
    for parameter in sweep.search_space.parameters:
        values = ", ".join(map(str, parameter.values))
        when = " and ".join(f"{p} in {list(v)}" for p, v in parameter.when.items())
        lines.append(f"  {parameter.path}: {parameter.kind} [{values}]{when and f' where {when}'}")
    return "\n".join(lines)
