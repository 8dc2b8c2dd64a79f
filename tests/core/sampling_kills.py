"""Kill a sampling at each of its operations, and resume from what it leaves.

Run by test_resume_sampling, as a process of its own, since it forks: the samplings so start at
once, with torch imported.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from sda_core.io import xarray as xarray_io
from sda_core.io.ensemble_file import EnsembleFile
from sda_core.method import EnsembleSampler, Execution
from sda_core.sampler import DDPM, AdamsBashforth, DPMSolver, PredictorCorrector, Sampler
from sda_core.system import SystemSpec
from sda_core.testing import gaussian_problem

SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPM(steps=3),
    "adams-bashforth": AdamsBashforth(steps=5),
    "dpm-solver++": DPMSolver(steps=4),
    "predictor-corrector": PredictorCorrector(steps=2, corrections=1),
}
SHAPE, SPEC = (3, 4, 2), SystemSpec(variables=("a", "b"), time_step=0.1)
MODEL = gaussian_problem(length=4).model


def sample(
    sampler: Sampler, path: Path, on_step: Callable[[int, int], None] | None = None
) -> torch.Tensor:
    """In batches of 2 members, of which the state is kept after every step."""
    file = EnsembleFile(path, SPEC, SHAPE, {"steps": sampler.steps}, minutes=0.0)
    sampling = EnsembleSampler(MODEL, sampler, SHAPE, 3, batch_size=2)
    x = sampling.sample(Execution(ensemble=file, on_step=on_step))
    file.finish(x)
    return x


def die_at(deadline: int, seen: set[str]) -> None:
    """Let this process be killed right before one of the operations that sampling consists of."""
    count = itertools.count()

    def wrap(place: object, name: str) -> None:
        original = getattr(place, name)

        def wrapped(*args, **kwargs):
            seen.add(name)
            if next(count) == deadline:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(place, name, wrapped)

    for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
        wrap(os, name)
    for name in ("write", "save", "finish"):
        wrap(EnsembleFile, name)


def killed(sampler: Sampler, path: Path, deadline: int, names: Path) -> bool:
    """Sample in a process that is killed at an operation; whether it came so far."""
    if not (process := os.fork()):
        status = 1
        try:
            seen: set[str] = set()
            die_at(deadline, seen)
            sample(sampler, path)
            names.write_text(" ".join(sorted(seen)))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def everywhere(sampler: Sampler, directory: Path, every: int) -> int:
    """Kill at an operation, then at another as it goes on; then go on to the end."""
    names, done = directory / "names", 0
    whole = EnsembleSampler(MODEL, sampler, SHAPE, 3, batch_size=2).sample()
    for deadline in itertools.count(step=every):
        path, steps = directory / str(deadline) / "posterior.nc", []
        alive = not killed(sampler, path, deadline, names)
        if not path.exists():
            killed(sampler, path, 5, names)
        if not path.exists():
            sample(sampler, path, lambda step, steps_, heard=steps: heard.append(step))
            # What was kept is not done again.
            first = min(steps, default=2 * sampler.steps)
            assert first >= done, f"killed at {deadline}, it went on at {first} after {done}"
            done = first
        x = xarray_io.load_array(path, "assimilate")
        assert torch.equal(x, whole), f"killed at {deadline}, it became another one"
        if alive:
            break
    assert names.read_text() == "finish fsync rename replace rmdir save unlink write"
    assert done > sampler.steps
    return deadline


def main(directory: Path, every: int) -> None:
    """Kill each sampler at every n-th operation."""
    os.fsync = lambda descriptor: None  # it takes long, and kills do not need it
    for name, sampler in SAMPLERS.items():
        (directory / name).mkdir()
        print(f"{name}: {everywhere(sampler, directory / name, every)} operations")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
