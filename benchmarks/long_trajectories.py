"""Memory of assimilating long trajectories, and what chunks and batches do to the result.

For each length, in a process of its own, a trajectory of noisy Lorenz-63 is drawn and observed (as
in lorenz63-quick), and an ensemble is sampled within a memory budget and streamed to disk. Columns:

- at once: how many members and windows the plan takes, and what it expects of that;
- peak: the most memory of the process that belongs to no file, above what it had after sampling one
  member of 65 states;
- ensemble: the size of what is on the disk;
- other batches: the largest difference of members that are sampled again in other batches and in
  chunks of 7 windows, in climatological standard deviations.

    sda run lorenz63-quick
    python benchmarks/long_trajectories.py runs/lorenz63-quick/model
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from attrs import evolve
from rich.console import Console
from rich.table import Table

from sda_core import load_experiment
from sda_core.io.ensemble_file import EnsembleFile
from sda_core.method import SDA, Problem
from sda_core.model import TrainedModel
from sda_core.random import seeded_generator
from sda_core.system import simulate_block
from sda_core.testing import draw

LENGTHS = (65, 1025, 4097)


def own_memory() -> float:
    """Memory of this process that belongs to no file, MiB."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(model: Path, length: int, members: int, memory: float, steps: int) -> dict[str, Any]:
    """Sample one length in this process."""
    torch.set_num_threads(1)
    experiment, lines = load_experiment("lorenz63-quick", [f"sampler.steps={steps}"]), []
    system, trained = experiment.system, TrainedModel.load(model)
    tools = dict(
        model=trained,
        sampler=experiment.sampler,
        guidance=experiment.guidance,
        announce=lines.append,
    )

    def problem(length: int) -> Problem:
        truth = simulate_block(system, 0, 0, length, 1024)[0]
        observation = experiment.observation.bind(trained.spec, length)
        y = observation.sample(truth, seeded_generator(1))
        return Problem(system=system, observation=observation, y=y)

    draw(SDA(memory=memory), problem(LENGTHS[0]), 1, 0, **tools)  # all is loaded after this
    asked, before, peak, done = problem(length), own_memory(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory() as folder:
        path, shape = Path(folder) / "posterior.nc", (members, *asked.shape)
        ensemble = EnsembleFile(path, trained.spec, shape, {})
        watcher.start()
        x = draw(SDA(memory=memory), asked, members, 0, **{**tools, "ensemble": ensemble})
        done.set()
        watcher.join()
        other = evolve(trained, config=evolve(trained.config, chunk_size=7))
        again = draw(SDA(batch_size=1), asked, 2, 0, **{**tools, "model": other})
        std = torch.tensor(trained.spec.std)
        return {
            "plan": lines[1].split("; ")[1],
            "peak": peak - before,
            "ensemble": x.nbytes / 2**20,
            "difference": float(((again - x[:2]) / std).abs().max()),
        }


def main(
    model: Annotated[Path, typer.Argument(help="A trained model of lorenz63-quick.")],
    members: Annotated[int, typer.Option(help="Members of each ensemble.")] = 4,
    memory: Annotated[float, typer.Option(help="Memory budget, GiB.")] = 0.0625,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 4,
    length: Annotated[int | None, typer.Option(help="One length, as JSON.")] = None,
) -> None:
    if length is not None:
        print(json.dumps(measure(model, length, members, memory, steps)))
        return
    table = Table(title=f"{members} members, {steps} steps, budget {1024 * memory:g} MiB")
    for column in ("states", "at once", "peak / MiB", "ensemble / MiB", "other batches"):
        table.add_column(column, justify="right")
    for length in LENGTHS:
        command = [sys.executable, __file__, str(model), "--length", str(length)]
        for name, value in (("members", members), ("memory", memory), ("steps", steps)):
            command += [f"--{name}", str(value)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(ran.stdout.splitlines()[-1])
        table.add_row(
            f"{length:,}",
            row["plan"],
            f"{row['peak']:.0f}",
            f"{row['ensemble']:.2f}",
            f"{row['difference']:.1g}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
