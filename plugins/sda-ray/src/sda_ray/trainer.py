"""The call of Ray Train; imported by the process that makes it, after its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayError
from ray.train import UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from sda_core.errors import ClusterError
from sda_ray.resources import WorkerResources
from sda_ray.worker import last_line


def fit(channel: Any, worker: Callable[[], None], asked: WorkerResources, retries: int) -> None:
    """Start workers, and start all of them anew when one is lost.

    Raises:
        ClusterError: They were lost too often, or do not start.
    """
    trainer = TorchTrainer(
        worker,
        torch_config=_OwnGroup(),
        scaling_config=ScalingConfig(
            num_workers=asked.number,
            use_gpu=bool(asked.gpus),
            resources_per_worker=asked.resources,
        ),
        run_config=RunConfig(
            # Checkpoints are the work's, so that there is nothing to keep.
            storage_path="sda",
            storage_filesystem=PyFileSystem(FSSpecHandler(fsspec.filesystem("memory"))),
            failure_config=FailureConfig(max_failures=retries),
            callbacks=[_LossCallback(channel)],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with suppress(SystemExit):  # with which Ray Train ends when it is interrupted
            trainer.fit()
    except WorkerGroupError as error:
        raise ClusterError(
            f"workers were lost, and were started anew {retries} times (cluster.retries); often "
            "they are out of memory: use smaller batches, or machines with more of it. "
            f"Ray says: {_cause(error.worker_failures)}"
        ) from None
    except ControllerError as error:
        raise ClusterError(
            "workers do not start; often they lack a package, which all machines of the cluster "
            f"need. Ray says: {last_line(error.controller_failure)}"
        ) from None


def _cause(failures: Mapping[int, Exception]) -> str:
    """Why a group ended: others fail because one is lost."""
    _, rank, error = min(
        ((not isinstance(e, RayError), rank, e) for rank, e in failures.items()),
        key=lambda f: f[:2],
    )
    return f"rank {rank}: {' '.join(str(error).split())}"


class _NoBackend(Backend):
    """Ray Train's own makes the group's store listen to the whole network."""


@dataclass
class _OwnGroup(TorchConfig):
    """The work makes its group itself, and each process sees its own GPUs only."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NoBackend

    @property
    def train_func_context(self) -> Any:
        return nullcontext


class _LossCallback(UserCallback):
    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell the driver what was lost."""
        self._channel.report_loss.remote(_cause(worker_exceptions))
