"""Sweeps over the training of `lorenz63-quick`: overhead, pruning, and one node against two.

    python benchmarks/sweep.py overhead    # a sweep beside the same trials by hand, in turns
    python benchmarks/sweep.py pruning     # epochs saved, and the best trial beside the preset
    python benchmarks/sweep.py nodes       # trials per hour on a cluster of 1 and of 2 nodes

Each trial has one CPU thread. Trials are those of the preset with fewer epochs, about a minute long
each. On two idle cores `overhead` takes nine minutes and `nodes` seven.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from sda_core import load_experiment, simulate
from sda_ray.connection import on_loopback
from sda_ray.tune.study import Study

os.environ["OMP_NUM_THREADS"] = "1"  # as for trials, which have one CPU each
app = typer.Typer(help=__doc__)
Trials = Annotated[int, typer.Option(help="Number of trials.")]
Epochs = Annotated[int, typer.Option(help="Epochs of a trial.")]
SPACE = """{
    train.learning_rate = { log_range = [2e-4, 2e-2] },
    train.weight_decay = { log_range = [1e-6, 1e-1] },
    train.batch_size = { choice = [16, 32, 64] },
    kernel.blocks = { integers = [2, 4] },
    kernel.heads = { choice = [1, 2, 4] }
}""".replace("\n", " ")


def changes(epochs: int, **sweep: Any) -> list[str]:
    """What is changed of the preset."""
    table = {"name": "ray-tune", **sweep}
    return [
        f"train.epochs={epochs}",
        "train.validate_every=2",
        *(f"sweep.{k}={v if k == 'scheduler' else json.dumps(v)}" for k, v in table.items()),
        f"sweep.space={SPACE}",
    ]


def sweep(folder: Path, epochs: int, data: Path, **settings: Any) -> tuple[Study, float]:
    """Do a sweep on data that are there already, and give the study and its seconds."""
    folder.mkdir()
    (folder / "data").symlink_to(data)
    experiment = load_experiment("lorenz63-quick", changes(epochs, **settings))
    started = time.perf_counter()
    experiment.require("sweep", "this").run(experiment, folder, progress=False)
    return Study.load(folder), time.perf_counter() - started


def by_hand(trial: Path, folder: Path, data: Path) -> float:
    """Train with the configuration of a trial, as a user would, and give the seconds."""
    folder.mkdir()
    (folder / "data").symlink_to(data)
    command = [sys.executable, "-m", "sda_core", "train", str(trial / "config.toml"), "--quiet"]
    started = time.perf_counter()
    subprocess.run([*command, "--dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def simulated(folder: Path) -> Path:
    """The data of the preset."""
    return simulate(load_experiment("lorenz63-quick"), folder / "data-of-all", progress=False)


@app.command()
def overhead(trials: Trials = 4, epochs: Epochs = 60, turns: int = 1) -> None:
    """A sweep, one trial after another, beside the same trials by hand, in turns."""
    table = Table(title=f"{trials} trials of {epochs} epochs, one after another")
    for column in ("turn", "by hand, s", "sweep, s", "overhead, %"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = simulated(folder)
        for turn in range(turns):
            study, seconds = sweep(
                folder / f"study-{turn}",
                epochs,
                data,
                trials=trials,
                search="random",
                concurrency=1,
            )
            paths = [folder / f"study-{turn}" / trial.directory for trial in study.trials]
            hand = sum(
                by_hand(path, folder / f"hand-{turn}-{i}", data) for i, path in enumerate(paths)
            )
            excess = 100 * (seconds / hand - 1)
            table.add_row(str(turn), f"{hand:.1f}", f"{seconds:.1f}", f"{excess:.1f}")
    Console().print(table)


@app.command()
def pruning(
    trials: Trials = 20,
    epochs: Epochs = 60,
    concurrency: int = 2,
    keep: Annotated[Path | None, typer.Option(help="Where the study is kept.")] = None,
) -> None:
    """Successive halving: epochs saved, and what the best trial gained over the preset."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = simulated(folder)
        scheduler = f'{{ name = "asha", grace_period = {max(2, epochs // 10)} }}'
        study, seconds = sweep(
            keep or folder / "study",
            epochs,
            data,
            trials=trials,
            concurrency=concurrency,
            scheduler=scheduler,
        )
        (folder / "preset").mkdir()
        preset = folder / "preset" / "config.toml"
        subprocess.run(
            [sys.executable, "-m", "sda_core", "init", "lorenz63-quick", "--output", str(preset)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        command = [sys.executable, "-m", "sda_core", "train", str(preset), "--quiet"]
        run = folder / "preset-run"
        run.mkdir()
        (run / "data").symlink_to(data)
        settings = [f"train.epochs={epochs}", "train.validate_every=2"]
        sets = [option for change in settings for option in ("--set", change)]
        subprocess.run([*command, "--dir", str(run), *sets], check=True, stdout=subprocess.DEVNULL)
        losses = json.loads((run / "history.json").read_text())["valid_loss"]
        own = min(loss for loss in losses if loss is not None)
        planned = sum(trial.planned_epochs or 0 for trial in study.trials)
        assert study.best is not None
        print(f"{trials} trials of up to {epochs} epochs: {study.counts}, {seconds:.0f} s")
        print(f"epochs saved: {study.epochs_saved} of {planned}")
        print(f"validation loss: preset {own:.4f}, best trial {study.best.value:.4f}")
        print(f"best trial: {study.best.parameters}")


@app.command()
def nodes(trials: Trials = 4, epochs: Epochs = 60) -> None:
    """Trials per hour on a cluster of one and of two nodes, of one CPU each, on this machine."""
    table = Table(title=f"{trials} trials of {epochs} epochs")
    for column in ("nodes", "seconds", "trials per hour"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name, on_loopback():
        folder = Path(name)
        data = simulated(folder)
        for count in (1, 2):
            cluster = Cluster()
            try:
                for i in range(count):
                    more = {} if i else {"include_dashboard": False}
                    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", **more)
                cluster.wait_for_nodes()
                ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
                _, seconds = sweep(
                    folder / f"study-{count}", epochs, data, trials=trials, search="random"
                )
            finally:
                ray.shutdown()
                cluster.shutdown()
            table.add_row(str(count), f"{seconds:.0f}", f"{3600 * trials / seconds:.0f}")
    Console().print(table)


if __name__ == "__main__":
    app()
