"""Where trials work on machines that do not have the directory of the study.

Each machine has a folder of its own, in that of temporary files. What trials share is fetched to it
once; each trial has its run directory there, which it uploads, and which is removed at its end.
"""

from __future__ import annotations

import getpass
import hashlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sda_core.errors import ClusterError
from sda_core.plugins import default_manager, hookimpl
from sda_ray.mirror import Mirror

if TYPE_CHECKING:
    from sda_ray.work import Job

#: What trials share: the data, a pretrained model, and the reference ensembles.
SHARED = ("data", "model", "reference")
#: Seconds within which machines remove what they have of a study.
_PATIENCE = 60.0


def at_hand(job: Job) -> Job:
    """The job as this machine can do it: where storage is not shared, what trials share is fetched.

    Raises:
        ClusterError: It cannot be fetched.
    """
    if job.storage is None:
        return job
    here = home(job.storage)
    with alone(here):
        there = {name: Mirror(f"{job.storage}/{name}").pull(here / name) for name in SHARED}
    model = str(here / "model") if there["model"] else None
    return attrs.evolve(job, directory=str(here), model=model)


def begin(job: Job, number: int) -> Job:
    """The same, with what a trial has uploaded before; from here on its checkpoints are uploaded.

    Raises:
        ClusterError: It cannot be fetched.
    """
    job = at_hand(job)
    if job.storage is None:
        return job
    directory = job.trial(number)
    shutil.rmtree(directory, ignore_errors=True)  # a killed process has left it
    if _mirror(job, number).pull(directory) and (directory / "result.json").exists():
        (directory / "result.json").unlink()  # it is done again
        upload(job, number)
    default_manager().register(_Uploader(job, number), "storage")
    return job


def upload(job: Job, number: int) -> None:
    """Upload the directory of a trial, where storage is not shared.

    Raises:
        ClusterError: That cannot be done.
    """
    if job.storage is not None:
        _mirror(job, number).push(job.trial(number))


def leave(job: Job, number: int) -> None:
    """Remove the directory of a trial that was uploaded."""
    if job.storage is not None:
        shutil.rmtree(job.trial(number), ignore_errors=True)


def clean(storage: str) -> None:
    """Remove what the machines of the cluster have of a study; one that does not answer is left."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remove = ray.remote(num_cpus=0, max_retries=0)(_remove)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    on = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    with suppress(RayError):
        ray.wait(
            [remove.options(scheduling_strategy=node).remote(storage) for node in on],
            num_returns=len(on),
            timeout=_PATIENCE,
        )


def _remove(storage: str) -> None:
    shutil.rmtree(_home(storage), ignore_errors=True)


class _Uploader:
    """A plugin that uploads a trial's directory with each checkpoint."""

    sda_interface = 1

    def __init__(self, job: Job, number: int) -> None:
        self._job, self._number = job, number

    @hookimpl
    def sda_checkpoint_written(self) -> None:
        """Upload it; if that fails, the training goes on, and it is tried with the next one."""
        try:
            upload(self._job, self._number)
        except ClusterError as error:
            warnings.warn(str(error), stacklevel=2)


def _mirror(job: Job, number: int) -> Mirror:
    return Mirror(f"{job.storage}/trials/{number:05d}")


def home(storage: str) -> Path:
    """The folder that this machine has for a study, or for a training."""
    import ray

    path = _home(storage) / ray.get_runtime_context().get_node_id()[:12]
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _home(storage: str) -> Path:
    """The folder of this user and a study among temporary files."""
    name = hashlib.sha256(storage.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sda-ray-{getpass.getuser()}" / name


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine has a folder to itself, and have it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
