"""A training by one worker and by two, on this machine: wall time and loss curve.

    python benchmarks/workers.py                                    # lorenz63-quick
    python benchmarks/workers.py --preset kolmogorov-small --epochs 2 --set data.trajectories=48

Each worker has one CPU thread. `seconds` are those of the command, `steps/s` those of the training
alone (median of the epochs). `difference` is the largest relative one of the losses of all epochs,
of training and validation, to those of the first row.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sda_core import load_experiment, simulate

#: Name of a row, and what is given to the command.
WAYS = {
    "1 worker": ["--workers", "1"],
    "2 workers": ["--workers", "2"],
    "2 workers, Ray Train": ["--workers", "2", "--set", "cluster.name=ray"],
}


def main(
    preset: Annotated[str, typer.Option(help="What is trained.")] = "lorenz63-quick",
    epochs: Annotated[int, typer.Option(help="Epochs.")] = 10,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a value.")] = None,
) -> None:
    """Print the table."""
    settings = [f"train.epochs={epochs}", "train.validate_every=1", *(change or [])]
    experiment = load_experiment(preset, settings)
    table = Table(title=f"{preset}, {epochs} epochs, batch size {experiment.train.batch_size}")
    for column in ("", "seconds", "steps/s", "valid. loss", "difference"):
        table.add_column(column, justify="right" if column else "left")
    first: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        data = simulate(experiment, Path(folder) / "data-of-all", progress=False)
        for number, (name, options) in enumerate(WAYS.items()):
            run = Path(folder) / str(number)
            run.mkdir()
            (run / "data").symlink_to(data)
            sets = [option for setting in settings for option in ("--set", setting)]
            command = [sys.executable, "-m", "sda_core", "train", preset, "--quiet", *sets]
            started = time.perf_counter()
            subprocess.run(
                [*command, *options, "--dir", str(run)],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            seconds = time.perf_counter() - started
            history = json.loads((run / "history.json").read_text())
            losses = history["loss"] + history["valid_loss"]
            first = first or losses
            speed = statistics.median(history["steps_per_second"])
            away = max(abs(a / b - 1) for a, b in zip(losses, first, strict=True))
            valid = f"{history['valid_loss'][-1]:.5f}"
            table.add_row(name, f"{seconds:.1f}", f"{speed:.2f}", valid, f"{away:.1e}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
