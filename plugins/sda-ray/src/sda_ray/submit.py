"""``sda sweep --submit``: a sweep that runs as a job on another cluster.

The job is the same command, sent by Ray's job submission. What it finds comes back by
``cluster.storage``, where it keeps the study while it runs.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sda_core.config import dump_toml, unstructure
from sda_core.errors import ClusterError, ConfigError, StoppedError, SweepError
from sda_core.experiment import Experiment
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption
from sda_ray.cluster import Ray
from sda_ray.storage import download
from sda_ray.tune.config import SweepSettings
from sda_ray.tune.context import TrialContext

#: Seconds between two polls of the job, and that it has to stop in order.
POLL_INTERVAL, STOP_TIMEOUT = 1.0, 150


def submit_sweep(
    address: str, experiment: Experiment, directory: Path, *, resume: bool, progress: ProgressOption
) -> Path:
    """Run a sweep that was checked as a job, and fetch what it found.

    Args:
        address: The job server of the cluster, such as ``http://HEAD:8265``.
        experiment: The experiment; its cluster has a storage.
        directory: Where the study is fetched to; its name is that of the study in the storage.
        resume: Whether to continue a study.
        progress: Whether to show what the job says.

    Returns:
        The summary.

    Raises:
        ConfigError: There is no storage.
        ClusterError: The job server cannot be reached.
        SweepError: The job failed.
        StoppedError: Ctrl-C or SIGTERM, which stop the job; what it had found is fetched.
    """
    cluster, sweep = experiment.cluster, experiment.sweep
    assert isinstance(sweep, SweepSettings)  # since it was checked
    if not isinstance(cluster, Ray) or cluster.storage is None:
        raise ConfigError(
            "cluster.storage: not set, and what a sweep with --submit finds comes back by it; set "
            "it to a URL that this machine and the cluster reach, such as s3://bucket/path"
        )
    context = TrialContext.create(sweep, experiment, directory)
    context.check_storage(resume)
    with _packed(experiment) as folder, stop_request() as stopping:
        client = _client(address)
        command = ["sda", "sweep", "experiment.toml", "--dir", directory.resolve().name]
        variables = {
            "RAY_JOB_STOP_SIGNAL": "SIGTERM",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT),
        }
        try:
            job = client.submit_job(
                entrypoint=shlex.join([*command, *(["--resume"] if resume else [])]),
                runtime_env={"working_dir": str(folder), "env_vars": variables},
            )
        except RuntimeError as error:
            raise ClusterError(f"--submit {address}: the job is not taken ({error})") from error
        shown, has_stopped = 0, False
        while True:
            status, log = client.get_job_status(job), client.get_job_logs(job)
            if progress:
                sys.stderr.write(log[shown:])
            shown = len(log)
            if status.is_terminal():
                break
            if stopping() and not has_stopped:
                has_stopped = True
                client.stop_job(job)
            time.sleep(POLL_INTERVAL)
    _fetch(context)
    if has_stopped:
        raise StoppedError("sweep stopped; pass --resume, with --submit, to continue it")
    if status != "SUCCEEDED":
        last = log.strip().rpartition("\n")[2] or client.get_job_info(job).message
        raise SweepError(f"the job {job} of the sweep failed: {last}")
    return directory / "summary.html"


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    if importlib.util.find_spec("aiohttp") is None:
        raise ConfigError(
            "--submit needs more packages of Ray: pip install 'sda-ray[submit]', here "
            "and on the head of the cluster"
        )
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # of several libraries
        raise ClusterError(
            f"--submit {address} cannot be reached ({error}): give the address of the cluster's "
            "dashboard, such as http://HEAD:8265"
        ) from error


@contextmanager
def _packed(experiment: Any) -> Iterator[Path]:
    """A folder with what the job needs: the experiment, and the files that it names."""
    table = unstructure(experiment)
    kept = {k: v for k, v in table["cluster"].items() if k not in ("cpus", "gpus")}
    table["cluster"] = kept | {"address": "auto"}
    with TemporaryDirectory() as name:
        folder = Path(name)
        pretrained = experiment.model.pretrained
        if pretrained is not None and Path(pretrained).is_dir():
            shutil.copytree(pretrained, folder / "pretrained" / "model")
            table["model"]["pretrained"] = "pretrained/model"
        if experiment.assimilate.observations is not None:
            file = Path(table["assimilate"]["observations"]["file"])
            shutil.copyfile(file, folder / file.name)
            table["assimilate"]["observations"]["file"] = file.name
        dump_toml(table, folder / "experiment.toml")
        yield folder


def _fetch(context: TrialContext) -> None:
    """Make a directory like that of the study, as far as the job came."""
    directory = Path(context.directory)
    directory.mkdir(parents=True, exist_ok=True)
    if not context.download_study():
        return
    from sda_ray.tune.report import write_report
    from sda_ray.tune.study import Study

    download(f"{context.storage}/data", directory / "data")
    study = Study.load(directory)
    for trial in study.trials:
        context.download(trial.number)
    write_report(study, directory)
