"""``sda sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sda_core.cli.stages import Overrides, Quiet, Source

if TYPE_CHECKING:
    from sda_core.experiment import Experiment
    from sda_ray.sweep import RayTune


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
            help="Address of the Ray cluster that does the trials: auto, or ray://HOST:10001."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in the directory.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would be done, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Search the settings in [sweep.space] for the best ones, by many trials."""
    from sda_core.experiment import load_experiment

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
    searched = loaded.require("sweep", "`sda sweep`")
    if dry_run:
        searched.check(loaded)
        typer.echo(_plan(searched, loaded, folder))
        return
    summary = searched.run(loaded, folder, resume=resume, progress=not quiet)
    typer.echo(f"best trial: {folder / 'best'}")
    typer.echo(f"summary: {summary}")


def _plan(sweep: RayTune, experiment: Experiment, folder: Path) -> str:
    """What a sweep would do, in words."""
    from sda_ray.space import Space

    searched = "lowest" if sweep.mode == "min" else "highest"
    unit = "epochs" if sweep.stage == "train" else "observation sets"
    number = sweep.workers_per_trial
    workers = f"{number} workers of " if number > 1 else ""
    lines = [
        f"{sweep.trials} trials (stage {sweep.stage}) in {folder}, for the {searched} "
        f"{sweep.metric}, by search {sweep.search!r} and scheduler {sweep.scheduler.name!r}",
        f"each with {workers}{sweep.cpus_per_trial:g} CPUs, {sweep.gpus_per_trial:g} GPUs and up "
        f"to {sweep.longest(experiment)} {unit}",
    ]
    for parameter in Space.parse(sweep.space).parameters:
        values = ", ".join(map(str, parameter.values))
        when = " and ".join(f"{p} in {list(v)}" for p, v in parameter.when.items())
        lines.append(f"  {parameter.path}: {parameter.kind} [{values}]{when and f' where {when}'}")
    return "\n".join(lines)
