"""Runs on Weights & Biases: one for each run directory, whatever its stages and interruptions.

References:
    - Biewald, "Experiment Tracking with Weights and Biases", 2020, https://www.wandb.com
"""

from __future__ import annotations

import json
import secrets
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sda_core.config import component, option, unstructure
from sda_core.errors import DataError, StoppedError, TrackingWarning
from sda_core.figures import Picture
from sda_core.io.files import write_text
from sda_core.io.progress import announce
from sda_core.tracker import Histogram, Session, Tracker, Value

if TYPE_CHECKING:
    import wandb

#: In the run directory: which W&B run it is.
RUN_FILE = "wandb.json"

#: Longest time to wait for the server when a stage starts, and for the upload of a model.
START_SECONDS, MODEL_SECONDS = 60.0, 300
#: The same for the rest when a stage ends. It is sent all along, so little is left; and a batch
#: system that has asked the training to stop does not wait for long.
FINISH_SECONDS = 20.0


@component
class WeightsAndBiases(Tracker):
    """A run on Weights & Biases, with the stage in progress as its job type.

    Without a login, or where the server is not reached, it is recorded offline, with a warning;
    nothing is asked on the terminal.

    Good values: ``mode = "offline"`` where there is no network; ``wandb sync`` uploads it later.
    """

    project: str = option(default="sda", help="the project")
    entity: str | None = option(
        default=None, help="the user or team it belongs to, where it is not W&B's default"
    )
    group: str | None = option(
        default=None,
        help="the group of the run; if not set, runs in PARENT/seed-0, ... are in group PARENT",
    )
    tags: tuple[str, ...] = option(default=(), help="tags of the run")
    run_name: str | None = option(
        default=None, help="the run's name, where it is not that of its directory"
    )
    mode: Literal["online", "offline", "disabled"] | None = option(
        default=None, help="how it is tracked, where it is not as WANDB_MODE says"
    )
    upload_model: bool = option(
        default=True, help="whether the trained model is kept as an artifact"
    )

    def open(self, run: Any, stage: str) -> Session:
        """Start, or go on with, the tracking of a run.

        Raises:
            DataError: The file that says which W&B run it is cannot be read.
        """
        import wandb

        directory = Path(run.directory).resolve()
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )
        if self.mode is not None:
            settings.mode = self.mode
        # For the whole process, so that offline nothing else of W&B uses the network either.
        is_online = wandb.setup(settings).settings.mode == "online"
        problem = _login_problem() if is_online else None
        if problem:
            warnings.warn(
                f"not online on W&B: {problem}. The run is recorded in {directory / 'wandb'}: "
                "`wandb sync` uploads it, `wandb login` logs in, and mode = 'offline' avoids this "
                "warning",
                TrackingWarning,
                stacklevel=2,
            )

        known = _run_id(directory)
        hooks = sys.excepthook, sys.exit
        tracked = wandb.init(
            id=known or secrets.token_hex(4),
            resume="allow",
            reinit="create_new",  # another run may be open in this process
            mode="offline" if problem else None,
            dir=str(directory),
            project=self.project,
            entity=self.entity,
            group=self.group or _group(directory),
            tags=self.tags or None,
            name=self.run_name or directory.name,
            job_type=stage,
            config=unstructure(run.experiment, manager=run.manager),
        )
        # W&B replaces these, again for each stage, and would print an error once for each.
        sys.excepthook, sys.exit = hooks
        if known is None:
            write_text(directory / RUN_FILE, json.dumps({"id": tracked.id}) + "\n")
            if tracked.url:
                announce(run.progress, f"tracked at {tracked.url}")
        return _TrackedRun(tracked, stage, self.upload_model)


class _TrackedRun(Session):
    def __init__(self, run: wandb.Run, stage: str, upload_model: bool) -> None:
        self._run, self._stage, self._upload_model = run, stage, upload_model
        # W&B's own step must rise, and drops what comes after it went back.
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, Value], step: int) -> None:
        """Record values."""
        with TemporaryDirectory() as folder:
            media = {
                name: _as_wandb(value, Path(folder, str(i)))
                for i, (name, value) in enumerate(values.items())
            }
            self._run.log({**media, "step": step})

    def save_model(self, directory: Path) -> None:
        """Keep a model as an artifact."""
        import wandb

        if self._upload_model:
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
            # As it is in place: a copy would stay in the home directory of a run that is offline.
            artifact.add_dir(str(directory), policy="immutable", skip_cache=True)
            logged = self._run.log_artifact(artifact)
            if self._run.offline:
                return
            try:
                logged.wait(MODEL_SECONDS)
            except wandb.Error as error:
                warnings.warn(
                    f"the model may not be on W&B: {error}. `wandb sync` uploads it",
                    TrackingWarning,
                    stacklevel=2,
                )

    def close(self, summary: Mapping[str, Any] | None, error: BaseException | None = None) -> None:
        """Record the results, by the stage's name, and wait for uploads, for a short time.

        A stage that was stopped has not failed.
        """
        if summary is not None:
            self._run.summary.update({self._stage: dict(summary)})
        has_failed = summary is None and not isinstance(error, StoppedError)
        self._run.finish(exit_code=int(has_failed))


def _login_problem() -> str | None:
    """Why nothing can be uploaded, if so."""
    import wandb

    try:
        return None if wandb.login(prompt=False, verify=True) else "there is no login"
    except wandb.Error as error:
        return str(error).splitlines()[0]


def _run_id(directory: Path) -> str | None:
    path = directory / RUN_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not say which W&B run this is ({type(error).__name__}: {error}): delete "
            "it, and a new one is started"
        ) from error


def _group(directory: Path) -> str | None:
    return directory.parent.name if directory.name.startswith("seed-") else None


def _as_wandb(value: Value, folder: Path) -> Any:
    import wandb

    if isinstance(value, Histogram):
        return wandb.Histogram(np_histogram=(np.array(value.counts), np.array(value.edges)))
    if isinstance(value, Picture):
        path = value.save(folder)
        media = wandb.Video if path.suffix == ".gif" else wandb.Image
        return media(str(path), caption=value.caption)
    return float(value)
