"""Kill writers of checkpoints and look at what they leave; run by test_checkpoints.

A process of its own, since it forks: the writers so start at once, with torch imported.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sda_core.training.checkpoints import CheckpointFolder

KEEP = 2
#: Steps of the checkpoints that are written, and whether each is the best so far; back at times.
PLAN = [(10, True), (20, False), (30, True), (15, False), (25, False), (20, True)]


def write(folder: CheckpointFolder, serial: int, best_serial: int, size: int = 4) -> int:
    """Write the next of the plan; its serial number is in all of it. Gives that of the best."""
    step, best = PLAN[serial % len(PLAN)]
    best_serial = serial if best else best_serial
    tensors = {name: torch.full((size,), float(serial)) for name in "abc"}
    state = {"step": step, "serial": serial, "best": best_serial}
    folder.write(tensors, state, {"serial": serial}, best)
    return best_serial


def check(folder: CheckpointFolder, complete: int) -> tuple[int, int]:
    """The newest is whole, not older than what was known to be complete, and knows its best."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest, best = folder.newest(), folder.best()
    if newest is None:
        assert complete < 0, f"nothing is left, and {complete} was complete"
        return -1, -1
    serial = newest.state["serial"]
    assert serial >= complete, f"{complete} was complete, and {serial} is the newest"
    assert newest.settings == {"serial": serial}
    assert all((x == serial).all() for x in newest.tensors.values())
    assert best is not None
    assert best.state["serial"] == newest.state["best"]
    assert all((x == newest.state["best"]).all() for x in best.tensors.values())
    return serial, newest.state["best"]


def fork(work: Callable[[Callable[[int], None]], None]) -> tuple[int, int]:
    """Start work that reports numbers; give its process and where to read them."""
    reading, writing = os.pipe()
    if process := os.fork():
        os.close(writing)
        return process, reading
    status = 1
    try:
        work(lambda number: os.write(writing, number.to_bytes(4, "little")) and None)
        status = 0
    finally:
        os._exit(status)


def last_report(reading: int) -> int:
    with os.fdopen(reading, "rb") as file:
        reports = file.read()
    return int.from_bytes(reports[-4:], "little") if reports else -1


def die_at(deadline: int, seen: set[str]) -> None:
    """Let this process be killed right before one of the operations that writing consists of."""
    count = itertools.count()

    def wrap(name: str, original: Callable[..., None]) -> None:
        def wrapped(*args, **kwargs):
            seen.add(name)
            if next(count) == deadline:
                if name == "fsync":
                    cut_short(args[0])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(os, name, wrapped)

    for name in ("fsync", "replace", "link", "unlink"):
        wrap(name, getattr(os, name))


def cut_short(descriptor: int) -> None:
    """Let a new file be as if its writer was killed before it had written all."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        os.ftruncate(descriptor, status.st_size // 2)


def everywhere(directory: Path) -> None:
    """Kill at each operation of the whole plan, once."""
    os.fsync = lambda descriptor: None  # it takes long, and kills do not need it
    seen = directory / "seen"
    for deadline in itertools.count():
        folder = CheckpointFolder(directory / str(deadline), KEEP)

        def work(report, folder=folder, deadline=deadline) -> None:
            names: set[str] = set()
            die_at(deadline, names)
            best = -1
            for serial in range(len(PLAN)):
                best = write(folder, serial, best)
                report(serial)
            seen.write_text(" ".join(sorted(names)))

        process, reading = fork(work)
        complete = last_report(reading)
        _, status = os.waitpid(process, 0)
        serial, best = check(folder, complete)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert serial == len(PLAN) - 1
            break
        write(folder, serial + 1, best)
        check(folder, serial + 1)
        assert not list(folder.directory.glob(".*")), "temporary files were left"
        steps = [int(path.stem[5:]) for path in folder.directory.glob("step-*")]
        assert max(steps) == PLAN[(serial + 1) % len(PLAN)][0]
        assert len(steps) <= KEEP
    assert seen.read_text() == "fsync link replace unlink"
    print(f"{deadline} kills")


def anywhere(directory: Path, kills: int = 25) -> None:
    """Kill at random moments, in one folder."""
    rng = random.Random(0)
    folder = CheckpointFolder(directory, KEEP)
    serial = best = -1
    for _ in range(kills):

        def work(report, serial=serial, best=best) -> None:
            while True:
                serial += 1
                best = write(folder, serial, best, size=100_000)
                report(serial)

        process, reading = fork(work)
        first = int.from_bytes(os.read(reading, 4), "little")
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        serial, best = check(folder, max(last_report(reading), first))
    print(f"{kills} kills, {serial + 1} checkpoints")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"everywhere": everywhere, "anywhere": anywhere}[sys.argv[1]](Path(sys.argv[2]))
