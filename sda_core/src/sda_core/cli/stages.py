"""The stages of a run as commands; each calls the function of its name in sda_core.stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sda_core.cli.output import JsonOption, command, console, echo, print_columns, print_json
from sda_core.errors import ConfigError
from sda_core.threads import use

if TYPE_CHECKING:
    from sda_core.cluster import Cluster
    from sda_core.experiment import Experiment


def use_threads(threads: int | None) -> None:
    """Let this command compute with a number of threads."""
    if threads is not None:
        use(threads)


Source = Annotated[
    str, typer.Argument(help="A preset, a TOML file, a run directory, or a system's name.")
]
Directory = Annotated[
    Path | None, typer.Option("--dir", "-d", help="Run directory; runs/NAME if not given.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change a value, as in train.learning_rate=2e-4; repeatable."),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Only try everything in small, in a folder that is removed."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Spread the work over so many processes, of [cluster] or this machine."),
]
Address = Annotated[
    str | None, typer.Option(help="Address of the Ray cluster whose processes do the work.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        callback=use_threads,
        expose_value=False,
        help="Compute with so many threads; else with as many as are found to be fastest.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (run, simulate, train, sample, assimilate, evaluate):
        app.command()(command(function))


def prepare(
    source: str, directory: Path | None, overrides: list[str] | None
) -> tuple[Experiment, Path]:
    """The experiment that a command was given, and its run directory."""
    from sda_core.experiment import load_experiment

    experiment = load_experiment(source, overrides or ())
    if directory is None:
        path = Path(source)
        directory = path if path.is_dir() else Path("runs") / path.stem
    return experiment, directory


def cluster_at(address: str | None, workers: int | None, experiment: Experiment) -> Cluster | None:
    """The cluster that the options name, if any."""
    if address is None:
        return None
    if workers is None:
        raise ConfigError(f"--address {address} says where, but not how many: give --workers, too")
    from sda_core.cluster import at_address

    return at_address(address, experiment.cluster)


def _newest(resume: bool, directory: Path | None, quiet: bool) -> str:
    """The run directory to resume where no experiment is given."""
    from sda_core.io.progress import announce
    from sda_core.training import newest_run

    if not resume:
        raise ConfigError(
            "train what? Give a preset, a TOML file or a run directory, or --resume to continue "
            "the run in ./runs that was trained last"
        )
    found = directory or newest_run("runs")
    announce(not quiet, f"resuming {found}")
    return str(found)


def _at_most_one(**options: bool) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} cannot be combined: give one of them")


def _try(experiment: Experiment, directory: Path, quiet: bool) -> None:
    from sda_core import stages

    for stage in stages.quick(experiment, directory, progress=not quiet):
        echo(str(stage))
    echo("everything works")


def run(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: JsonOption = False,
    quick: Quick = False,
) -> None:
    """Do all stages, from simulation to report; what is done and unchanged is skipped."""
    _at_most_one(quick=quick, json=as_json)
    loaded, folder = prepare(experiment, directory, overrides)
    from sda_core import stages

    if quick:
        loaded.require("method", "a run")
        _try(loaded, folder, quiet)
        return
    scores = stages.run(loaded, folder, progress=not quiet)
    _print_scores(scores, folder, as_json)


def simulate(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    threads: Threads = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much data and time it takes, and stop.")
    ] = False,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Simulate the data set: train.h5, valid.h5 and test.h5."""
    loaded, folder = prepare(experiment, directory, overrides)
    from sda_core import stages

    if dry_run:
        echo(str(stages.preview(loaded, folder, workers=workers)))
        return
    cluster = cluster_at(address, workers, loaded)
    path = stages.simulate(loaded, folder, progress=not quiet, workers=workers, cluster=cluster)
    echo(f"data: {path}")


def train(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="A preset, a TOML file, or a run directory; with --resume it may be left out, "
            "for the run in ./runs that was trained last."
        ),
    ] = None,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    threads: Threads = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from a checkpoint; there must be one.")
    ] = False,
    may_change: Annotated[
        list[str] | None,
        typer.Option(
            help="A key or table that may differ from the checkpoint's, as in train.epochs; "
            "repeatable."
        ),
    ] = None,
    detect_anomaly: Annotated[
        bool,
        typer.Option("--detect-anomaly", help="Stop at the first value that is not finite; slow."),
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="Train an ensemble: seeds, as in 0,1,2 or 0-2.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="With --seeds: number of worker processes.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(help="Train with so many processes at once, of [cluster] or this machine."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="GPUs of each worker, as in 0.5; 1 if there are enough, else 0."),
    ] = None,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much memory and time it takes, and stop.")
    ] = False,
    quick: Quick = False,
) -> None:
    """Train the kernel, from the newest checkpoint if there is one."""
    _at_most_one(resume=resume, dry_run=dry_run, quick=quick)
    _at_most_one(may_change=bool(may_change), dry_run=dry_run, quick=quick)
    _at_most_one(
        detect_anomaly=detect_anomaly, seeds=seeds is not None, dry_run=dry_run, quick=quick
    )
    _at_most_one(workers=workers is not None, seeds=seeds is not None, dry_run=dry_run, quick=quick)
    if seeds is None and jobs != 1:
        raise ConfigError("--jobs is for ensembles: give their --seeds, as in 0,1,2")
    loaded, folder = prepare(
        experiment or _newest(resume and seeds is None, directory, quiet), directory, overrides
    )
    from sda_core import stages

    if dry_run:
        echo(str(stages.preview_training(loaded, folder)))
    elif quick:
        _try(loaded, folder, quiet)
    elif seeds is not None:
        members = stages.train_seeds(
            loaded,
            folder,
            stages.parse_seeds(seeds),
            jobs=jobs,
            progress=not quiet,
            resume=resume,
            may_change=may_change or (),
        )
        rows = [(str(seed), *member.cells()) for seed, member in members.items()]
        print_columns([("seed", "steps", "validation loss", "best epoch", "minutes"), *rows])
    else:
        model = stages.train(
            loaded,
            folder,
            progress=not quiet,
            resume=resume,
            may_change=may_change or (),
            detect_anomaly=detect_anomaly,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            cluster=cluster_at(address, workers, loaded),
        )
        echo(f"model: {folder / 'model'}, validation loss {model.provenance['valid_loss']}")


def sample(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    threads: Threads = None,
) -> None:
    """Sample trajectories from the learned prior, without observations."""
    loaded, folder = prepare(experiment, directory, overrides)
    from sda_core import stages

    x = stages.sample(loaded, folder, progress=not quiet)
    echo(f"samples: {folder / 'samples.nc'}, shape {tuple(x.shape)}")


def assimilate(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    threads: Threads = None,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Infer a trajectory from a table of observations, or from those of a held-out one."""
    loaded, folder = prepare(experiment, directory, overrides)
    from sda_core import stages
    from sda_core.io.xarray import result

    cluster = cluster_at(address, workers, loaded)
    x = stages.assimilate(loaded, folder, progress=not quiet, workers=workers, cluster=cluster)
    echo(f"posterior: {result(folder / 'posterior.nc')}, shape {tuple(x.shape)}")


def evaluate(
    experiment: Source,
    directory: Directory = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Score the posterior, compare it with the reference method, and write the report."""
    loaded, folder = prepare(experiment, directory, overrides)
    from sda_core import stages

    scores = stages.evaluate(loaded, folder, progress=not quiet)
    _print_scores(scores, folder, as_json)


def _print_scores(scores: Mapping[str, Mapping[str, float]], folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(scores)
        return
    from rich.table import Table

    from sda_core.evaluation.report import score_rows

    scores = {name: values for name, values in scores.items() if name != "model"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("score")
    for name in scores:
        table.add_column(name, justify="right")
    for label, values in score_rows(scores):
        table.add_row(label, *values)
    out = console()
    out.print(table)
    out.print()
    for label, name in (
        ("report", "report.html"),
        ("figures", "figures"),
        ("posterior", "posterior.nc"),
        ("posterior", "posterior.zarr"),
        ("model", "model"),
        ("data", "data"),
    ):
        if (folder / name).exists():
            out.print(f"{label:<10} {folder / name}", soft_wrap=True)
