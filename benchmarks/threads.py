"""Speed on an idle and on a busy machine: the number of threads chosen, or one for each core.

    python benchmarks/threads.py

Training of `lorenz63-quick`'s network (windows per second), and 8 members of the posterior of
the model `lorenz63` (seconds), alone and with a process beside them that never waits. `all cores`
is what OpenMP does by itself, a spinning thread for each core; `chosen` is what `sda` does. They
take turns, each in a process of its own, and the medians and the ratio of each turn are printed.
The load says how busy the machine was otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

# Not torch: it must not be imported before the number of threads is set.
from sda_core import load_experiment, simulate
from sda_core.threads import cores

ALL_CORES = {"SDA_THREADS": str(cores()), "GOMP_SPINCOUNT": "300000"}  # libgomp's default
WORK = ("training, windows/s", "8 members, s")


def main(
    turns: Annotated[int, typer.Option(help="Turns of each variant.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps in a turn.")] = 20,
    work: Annotated[int | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the table."""
    if work is not None and folder is not None:
        seconds, threads = (training, sampling)[work](folder, steps)
        print(seconds, threads)
        return
    print(f"medians of {turns} turns, {cores()} cores")
    row = "{:<27} {:>5} {:>10} {:>10} {:>8}   {}".format
    print(row("", "load", "all cores", "chosen", "threads", "times as fast (min to max)"))
    with tempfile.TemporaryDirectory() as name:
        simulate(training_experiment(), name, progress=False)
        for number, label in enumerate(WORK):
            for busy in (False, True):
                command = [sys.executable, __file__, f"--work={number}", f"--folder={name}"]
                command += [f"--steps={steps}"]
                with beside() if busy else idle():
                    found = [
                        [ask(command, environment) for environment in (ALL_CORES, {})]
                        for _ in range(turns)
                    ]
                ratios = [a / b for (a, _), (b, _) in found]
                if number == 0:
                    found = [[(steps * 32 / s, n) for s, n in pair] for pair in found]
                line = row(
                    f"{label}, {'busy' if busy else 'idle'}",
                    f"{os.getloadavg()[0]:.1f}",
                    *(f"{median(pair[i][0] for pair in found):.1f}" for i in (0, 1)),
                    ", ".join(str(n) for n in sorted({pair[1][1] for pair in found})),
                    f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                )
                print(line, flush=True)  # at once, since spinning threads can take very long


@contextmanager
def idle() -> Iterator[None]:
    """Nothing beside."""
    yield


@contextmanager
def beside() -> Iterator[None]:
    """A process that never waits."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ask(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Seconds and threads of some work, done in another process."""
    names = ("OMP_NUM_THREADS", "SDA_THREADS", "OMP_WAIT_POLICY")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    found = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    )
    seconds, threads = found.stdout.split()[-2:]
    return float(seconds), int(threads)


def training_experiment():
    return load_experiment(
        "lorenz63-quick",
        ["data.trajectories=64", "data.length=256", "data.burn_in=64", "train.epochs=100000"],
    )


def training(folder: Path, steps: int) -> tuple[float, int | None]:
    """Seconds for some steps, those that measure threads included."""
    from sda_core.data import TrajectoryStore, WindowDataset, split_path
    from sda_core.experiment import Run
    from sda_core.stages.training import new_model
    from sda_core.training import Trainer

    run = Run(training_experiment(), folder)
    store = TrajectoryStore(split_path(run.data, "train"))
    model = new_model(run, store.spec)
    windows = WindowDataset(store, model.config.window)
    trainer = Trainer(model.denoiser, windows, None, run.experiment.train, 0)
    events = trainer.events()
    next(events)
    started = time.perf_counter()
    for _ in range(steps):
        next(events)
    return time.perf_counter() - started, trainer.threads


def sampling(folder: Path, steps: int) -> tuple[float, int | None]:
    """Seconds for a posterior."""
    from sda_core import stages
    from sda_core.experiment import Run

    changes = ["assimilate.members=8", "assimilate.length=33", "data.trajectories=64"]
    changes += ["model.pretrained=lorenz63", "method.name=sda"]
    experiment = load_experiment("lorenz63-wide", changes)
    with tempfile.TemporaryDirectory() as name:
        simulate(experiment, name, progress=False)
        started = time.perf_counter()
        stages.assimilate(experiment, name, progress=False)
        seconds = time.perf_counter() - started
        record = Run(experiment, name).provenance()["stages"]["assimilate"]
    return seconds, record["threads"]


if __name__ == "__main__":
    typer.run(main)
