"""Sweeps that run as jobs on a cluster that this machine is no part of; and --new and --delete."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray as module
from typer.testing import CliRunner

from sda_core.cli import make_app
from sda_core.config import dump_toml, load_toml, unstructure
from sda_core.errors import ClusterError, ConfigError, StoppedError, SweepError
from sda_core.plugins import default_manager
from sda_ray import submit
from sda_ray.connection import on_loopback
from sda_ray.storage import upload
from sda_ray.tune import tuner
from sda_ray.tune.searcher import StudySearcher
from sda_ray.tune.study import Study

from .test_storage import LOOPBACK
from .test_sweep import LONG, PATIENCE, SPACE, TRAIN, tiny, wait_for


def sda(*arguments: str) -> Any:
    return CliRunner().invoke(make_app(default_manager()), list(arguments))


def test_an_address_from_outside_is_refused(tmp_path: Path) -> None:
    experiment = tiny(*TRAIN, SPACE, "cluster.name=ray", "cluster.address=ray://head:10001")
    assert experiment.sweep is not None
    with pytest.raises(ConfigError, match=r"cluster.address = 'ray://head:10001'.* --submit http:"):
        experiment.sweep.run(experiment, tmp_path / "study")


def test_a_storage_is_needed(tmp_path: Path) -> None:
    for changes in ((), ("cluster.name=ray",)):
        experiment = tiny(*TRAIN, SPACE, *changes)
        with pytest.raises(ConfigError, match=r"cluster.storage: not set, .* --submit"):
            submit.submit_sweep("http://head:8265", experiment, tmp_path, resume=False, progress=0)


def test_a_head_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sda-ray\[submit\]'"):
        submit._client("http://head:8265")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ClusterError, match=f"--submit http://127.0.0.1:{port} cannot be reached"):
        submit._client(f"http://127.0.0.1:{port}")


class Status(str):
    def is_terminal(self) -> bool:
        return self not in ("PENDING", "RUNNING")


class Client:
    """A job server whose jobs do nothing but what a test wants."""

    def __init__(self, far: str, ends: str) -> None:
        self.far, self.ends, self.sent = far, ends, SimpleNamespace()
        self.stopped = False

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        folder = Path(runtime_env["working_dir"])
        table = load_toml(folder / "experiment.toml")
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        self.sent = SimpleNamespace(entrypoint=entrypoint, table=table, names=names)
        return "job"

    def get_job_status(self, job: str) -> Status:
        return Status(self.ends if self.ends != "STOPPED" or self.stopped else "RUNNING")

    def get_job_logs(self, job: str) -> str:
        return "trials: 10 %\nit failed\n"

    def stop_job(self, job: str) -> None:
        self.stopped = True


@pytest.mark.parametrize("ends", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_what_is_sent_and_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.json").write_text("{}")
    far = f"file://{tmp_path}/far"
    changes = ("cluster.name=ray", "cluster.cpus=3", f"cluster.storage={far}")
    experiment = tiny(*TRAIN, SPACE, *changes, f"model.pretrained={tmp_path / 'run' / 'model'}")
    # What the job has kept in the storage.
    there = tmp_path / "there" / "study"
    there.mkdir(parents=True)
    facts = {"title": "", "metric": "loss", "mode": "min", "stage": "train", "versions": {}}
    assert experiment.sweep is not None
    settings = experiment.sweep.settings
    study = Study.create(there, {**facts, "settings": settings})
    found = StudySearcher(study, experiment.sweep)  # type: ignore[arg-type]
    trial = found.next()
    assert trial is not None
    study.report(0, 1, 0.5, 1.0, trial.parameters)
    study.end(0, "finished", {})
    (there / "trials" / "00000").mkdir(parents=True)
    (there / "trials" / "00000" / "history.json").write_text("[]")

    client = Client(far, ends)

    def job(*, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        upload(there, f"{far}/study/study", exclude=("trials",))
        upload(there / "trials" / "00000", f"{far}/study/trials/00000")
        if ends == "STOPPED":
            os.kill(os.getpid(), signal.SIGTERM)
        return Client.submit_job(client, entrypoint=entrypoint, runtime_env=runtime_env)

    monkeypatch.setattr(client, "submit_job", job)
    monkeypatch.setattr(submit, "_client", lambda address: client)
    options: Any = {"resume": False, "progress": True}
    directory = tmp_path / "here" / "study"
    if ends == "SUCCEEDED":
        page = submit.submit_sweep("http://head:8265", experiment, directory, **options)
        assert page.is_file()
    else:
        error = SweepError if ends == "FAILED" else StoppedError
        with pytest.raises(error, match="it failed" if ends == "FAILED" else "pass --resume"):
            submit.submit_sweep("http://head:8265", experiment, directory, **options)
    assert Study.load(directory).counts == {"finished": 1}
    assert (directory / "trials" / "00000" / "history.json").is_file()
    assert client.sent.entrypoint == "sda sweep experiment.toml --dir study"
    assert client.sent.names == {"experiment.toml", "pretrained/model/model.json"}
    assert client.sent.table["cluster"]["address"] == "auto"
    assert "cpus" not in client.sent.table["cluster"]
    assert client.sent.table["model"]["pretrained"] == "pretrained/model"
    assert capsys.readouterr().err.count("trials: 10 %") == 1


def test_another_study_beside_the_old_one_or_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def run(sweep: Any, experiment: Any, directory: Path, **options: Any) -> Path:
        seen.append(directory)
        assert not directory.exists()
        directory.mkdir()
        (directory / "optuna.db").touch()
        return directory / "summary.html"

    monkeypatch.setattr(tuner, "run", run)
    path, folder = tmp_path / "tiny.toml", tmp_path / "study"
    dump_toml(unstructure(tiny(*TRAIN, SPACE)), path)
    command = ("sweep", str(path), "--dir", str(folder))
    for option in ("--new", "--new", "--delete"):
        result = sda(*command, option)
        assert result.exit_code == 0, result.output
    assert [path.name for path in seen] == ["study", "study-2", "study"]
    (folder / "mine").touch()
    (folder / "optuna.db").unlink()
    with pytest.raises(AssertionError):  # what is no study is not deleted
        raise sda(*command, "--delete").exception
    assert (folder / "mine").is_file()
    result = sda(*command, "--new", "--delete")
    assert result.exit_code != 0
    assert "--new and --delete exclude each other" in str(result.exception)


# --- what takes longer ---


def takes_jobs(address: str) -> bool:
    from ray.job_submission import JobSubmissionClient

    with contextlib.suppress(Exception):
        return bool(JobSubmissionClient(address).submit_job(entrypoint="true"))
    return False


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A head with a job server, on loopback."""
    pytest.importorskip("aiohttp")
    from ray.cluster_utils import Cluster

    module.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    with on_loopback(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(*LOOPBACK)
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        nodes = Cluster()
        try:
            nodes.add_node(
                num_cpus=1,
                node_ip_address="127.0.0.1",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=port,
            )
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: takes_jobs(address))  # its agent takes longer to start
            yield address
        finally:
            module.shutdown()
            nodes.shutdown()


@pytest.mark.slow
def test_a_sweep_is_submitted_stopped_and_resumed(head: str, tmp_path: Path) -> None:
    directory, path = tmp_path / "study", tmp_path / "long.toml"
    storage = f"cluster.storage=file://{tmp_path}/far"
    dump_toml(unstructure(tiny(*LONG, "train.epochs=400", "cluster.name=ray", storage)), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    command += ["--submit", head]
    with (tmp_path / "log").open("w") as log:
        client = subprocess.Popen(command, stdout=log, stderr=log)
    far = tmp_path / "far" / "study" / "trials" / "00000"
    try:
        wait_for(lambda: list(far.glob("*/checkpoints/step-*")) or client.poll() is not None)
        client.send_signal(signal.SIGINT)
        assert client.wait(PATIENCE) == 130, (tmp_path / "log").read_text()
    finally:
        client.kill()
        client.wait()
    study = Study.load(directory)
    assert study.trials[0].state == "stopped"
    losses = json.loads((directory / "trials/00000/history.json").read_text())["loss"]
    assert losses
    done = subprocess.run([*command, "--resume"], check=False, timeout=PATIENCE, text=True)
    assert done.returncode == 0
    study = Study.load(directory)
    assert (study.counts, study.resumed) == ({"finished": 3}, 1)
    history = json.loads((directory / "trials/00000/history.json").read_text())
    assert history["epoch"] == list(range(1, 401))
    assert history["loss"][: len(losses)] == losses
    assert (directory / "best").resolve().is_dir()
