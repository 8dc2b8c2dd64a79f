"""Kills a training again and again, and shows that nothing is lost and nothing differs.

    python tests/e2e/kill_training.py --kills 100

Trains once undisturbed. Then trains in processes that are killed (SIGKILL) at random moments, each
going on from the newest checkpoint, until the number of kills is reached; a share of them strikes
in the middle of the writing of a checkpoint. The last one trains to the end. Then weights, averaged
weights, optimizer state, metrics and history are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

import torch

import sda_core as sda
from sda_core.experiment import Run
from sda_core.io import files

CHANGES = [
    "data.trajectories=40",
    "data.length=48",
    "data.burn_in=8",
    "kernel.width=16",
    "kernel.blocks=1",
    "model.window=9",
    "model.stride=4",
    "train.epochs=12",
    "train.windows_per_trajectory=10",
    "train.batch_size=16",
    "train.validate_every=2",
    "train.checkpoint_every=2",
    "train.checkpoint_minutes=0.003",
    "train.report_every=7",
]

#: What is no result: how long it took.
TIMES = ("steps_per_second", "utilization", "windows_per_second", "seconds")
#: What a diagnostic says of the process.
MEMORY = "memory"


def train(experiment: sda.Experiment, directory: Path, kill_in_write: int | None) -> None:
    """Train to the end; or die in the middle of writing a file, counted from 1."""
    written = 0
    fsync = os.fsync

    def dying(descriptor: int) -> None:
        nonlocal written
        written += stat.S_ISREG(os.fstat(descriptor).st_mode)  # and not the folder's
        if written == kill_in_write:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    if kill_in_write is not None:
        files.os.fsync = dying
    sda.train(experiment, directory, progress=False)


def in_process(experiment: sda.Experiment, directory: Path, die: float | int | None) -> bool:
    """Train in a process; killed after some seconds, or at the n-th file; whether it ended well."""
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            train(experiment, directory, die if isinstance(die, int) else None)
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - it must not go on as the parent would
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if isinstance(die, float):
        time.sleep(die)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status):
        sys.exit("a training that was not killed failed")
    return True


def records(directory: Path) -> list[dict]:
    """What the training logged, without times."""
    found = []
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if "step" in event:
            found.append({k: v for k, v in event.items() if k not in TIMES and MEMORY not in k})
    return found


def compare(experiment: sda.Experiment, whole: Path, broken: Path) -> dict[str, int]:
    """Check that two runs are the same; give how much was compared."""
    states = [Run(experiment, directory).checkpoints.newest() for directory in (whole, broken)]
    a, b = (state.tensors for state in states)
    assert a.keys() == b.keys()
    compared = [key for key in a if key.removeprefix("history.") not in TIMES]
    for key in compared:
        assert torch.equal(a[key].nan_to_num(), b[key].nan_to_num()), key
    assert states[0].state == states[1].state
    logs = [records(directory) for directory in (whole, broken)]
    assert logs[0] == logs[1]
    for event in ("report", "epoch"):
        steps = [e["step"] for e in logs[1] if e["event"] == event]
        assert steps == sorted(set(steps)), f"steps of {event} repeat"
    weights = [(d / "model" / "model.safetensors").read_bytes() for d in (whole, broken)]
    assert weights[0] == weights[1]
    return {"tensors": len(compared), "values": sum(a[k].numel() for k in compared)}


def main(kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    experiment = sda.load_experiment("lorenz63-quick", CHANGES)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        for directory in (whole, broken):
            sda.simulate(experiment, directory, progress=False)
        started = time.monotonic()
        assert in_process(experiment, whole, None)
        duration = time.monotonic() - started
        done = in_writing = rounds = 0
        while done < kills:
            while done < kills:
                # Early enough that a training is killed about ten times before it ends.
                at_file = draw.random() < 0.4
                die = draw.randint(1, 6) if at_file else draw.uniform(0, 0.25 * duration)
                if in_process(experiment, broken, die):
                    break
                done += 1
                in_writing += at_file
            assert done == kills or (broken / "model").is_dir()
            in_process(experiment, broken, None)
            compared = compare(experiment, whole, broken)
            rounds += 1
            if done < kills:  # again from the start
                for name in ("checkpoints", "model"):
                    for path in (broken / name).iterdir():
                        path.unlink()
    trainings = f"{rounds} training{'s' * (rounds > 1)} of {duration:.1f} s"
    print(
        f"{done} kills survived, {in_writing} of them in the middle of writing a file, in "
        f"{trainings}; each time {compared['tensors']} tensors with {compared['values']:,} values, "
        "all metrics and the model were bit for bit those of the training that was not killed"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)
