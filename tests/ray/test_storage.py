"""Sweeps on machines that have no disk in common."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import ray

from sda_core.config import dump_toml, unstructure
from sda_core.errors import SweepError
from sda_core.experiment import Experiment, load_experiment
from sda_ray import sync
from sda_ray.connection import on_loopback
from sda_ray.storage import download, newest, upload
from sda_ray.tune.context import TrialContext, TrialUploader
from sda_ray.tune.study import Study, TrialRecord

from .test_sweep import (
    INFER,
    LONG,
    PATIENCE,
    SPACE,
    TINY,
    TRAIN,
    epochs,
    record,
    run,
    tiny,
    trained,
    wait_for,
)

__all__ = ["trained"]

#: Where drivers find machines that are there on loopback only.
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def environment() -> dict[str, str]:
    """The same for a command, with Ray's token where this process has one by now."""
    return os.environ | dict([LOOPBACK])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two machines of one CPU each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with on_loopback():
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
            cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
            cluster.wait_for_nodes()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(autouse=True)
def nobody_knows_where_the_study_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is sent to a machine of the cluster has the path of the study."""
    for_workers = TrialContext.for_workers

    def checked(job: TrialContext) -> TrialContext:
        sent = for_workers(job)
        assert job.storage is None or str(tmp_path / "study").encode() not in pickle.dumps(sent)
        return sent

    monkeypatch.setattr(TrialContext, "for_workers", checked)


def away(nodes: Any, tmp_path: Path, *overrides: str) -> Experiment:
    at = (f"cluster.address={nodes.address}", "cluster.name=ray")
    return tiny(*overrides, *at, f"cluster.storage=file://{tmp_path}/far")


def homes(tmp_path: Path) -> Path:
    """Where machines work for the study."""
    return sync._cache_root(f"file://{tmp_path}/far/study")


def files(directory: Path) -> set[str]:
    """All files, and all that links lead to, but our own and those that training leaves behind."""
    found = (path.relative_to(directory) for path in directory.rglob("*"))
    return {str(path) for path in found if not path.name.startswith(".")}


def worker_of(tmp_path: Path, number: int) -> int:
    """The process that trains."""
    (lock,) = homes(tmp_path).glob(f"*/trials/{number:05d}/.training.lock")
    return int(lock.read_text().split()[1])


def stored(tmp_path: Path, number: int) -> str:
    """Where the uploads of a trial are."""
    return f"file://{tmp_path}/far/study/trials/{number:05d}"


def stored_step(tmp_path: Path, number: int) -> int:
    """The step of the newest checkpoint that was uploaded."""
    folder = tmp_path / "far" / "study" / "trials" / f"{number:05d}"
    found = folder.glob("*/checkpoints/step-*") if newest(stored(tmp_path, number)) else ()
    return max((int(path.name.split(".")[0][5:]) for path in found), default=0)


def timeless(trial: TrialRecord) -> TrialRecord:
    """The same, without what depends on the time that it took."""
    kept = {k: v for k, v in trial.metrics.items() if k not in ("steps_per_second", "utilization")}
    return attrs.evolve(trial, seconds=0.0, metrics=kept)


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "far" / "study").mkdir(parents=True)
    overrides = ("cluster.name=ray", f"cluster.storage=file://{tmp_path}/far")
    with pytest.raises(SweepError, match=r"there is something in file://.*/far/study, as of a st"):
        run(tiny(*TRAIN, SPACE, *overrides), tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that is in no cluster."""
    node = SimpleNamespace(get_node_id=lambda: "0123456789abcdef")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: node)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def job_in(storage: str | None, directory: str = "") -> TrialContext:
    sweep: Any = tiny(*TRAIN, SPACE).sweep
    return TrialContext(directory=directory, table={}, sweep=sweep, storage=storage)


def test_a_trial_works_elsewhere(alone: None, tmp_path: Path) -> None:
    far = f"file://{tmp_path}/far/study"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.h5").write_text("states")
    upload(tmp_path / "data", f"{far}/data")
    job = job_in(far)
    with job.opened(3) as here:
        folder = here.trial(3)
        assert str(folder).startswith(str(tmp_path / "tmp"))
        assert here.model is None
        assert (folder / "data" / "train.h5").read_text() == "states"
        (folder / "history.json").write_text("[1]")
        TrialUploader(here, 3).sda_checkpoint_written()
        (folder / "history.json").write_text("[1, 2]")
    assert not folder.exists()
    # Another process resumes it, where a killed one has left other things.
    folder.mkdir()
    (folder / "history.json").write_text("[1, 2, 3]")
    (folder / "left").touch()
    with job.opened(3) as here:
        assert files(folder) == {"history.json", "data"}
        assert (folder / "history.json").read_text() == "[1]"
    download(f"{far}/trials/00003", tmp_path / "there")
    assert files(tmp_path / "there") == {"history.json"}
    assert (Path(here.directory) / "data" / "train.h5").is_file()  # for the next trial


def test_a_failed_upload_ends_no_training(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    def fail(self: Any, *args: Any) -> None:
        raise ConnectionResetError("the cable")

    far = f"file://{tmp_path}/far"
    with job_in(far).opened(0) as here:
        (here.trial(0) / "history.json").write_text("[1]")
        uploader = TrialUploader(here, 0)
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, "put_file", fail)
            with pytest.warns(UserWarning, match="cannot be given a copy of.*the cable"):
                uploader.sda_checkpoint_written()
        uploader.sda_checkpoint_written()
    assert download(f"{far}/trials/00000", tmp_path / "there")


def test_where_the_directory_is_shared_nothing_is_uploaded(alone: None, tmp_path: Path) -> None:
    job = job_in(None, str(tmp_path))
    with job.opened(0) as here:
        assert here is job
        here.upload(0)
        here.download(0)
    assert job.trial(0).is_dir()
    with pytest.raises(SweepError, match="none is not there for a worker of the cluster"):
        job_in(None, str(tmp_path / "none")).opened(0).__enter__()


@pytest.mark.slow
def test_the_directory_is_as_if_it_were_shared(nodes: Any, tmp_path: Path) -> None:
    space = "sweep.space={ 'train.learning_rate' = { choice = [1e-4, 1e-2] } }"
    ways = (*TRAIN, space, "sweep.search=grid", "train.epochs=3", "sweep.scheduler={name='none'}")
    study = run(away(nodes, tmp_path, *ways), tmp_path / "study")
    assert study.counts == {"finished": 2}
    at = (f"cluster.address={nodes.address}", "cluster.name=ray")
    shared = run(tiny(*ways, *at), tmp_path / "shared")
    assert files(tmp_path / "study") == files(tmp_path / "shared")
    for one, other in zip(study.trials, shared.trials, strict=True):
        assert timeless(one) == timeless(other)
        folder = tmp_path / "study" / one.directory
        assert (folder / "data").resolve() == tmp_path / "study" / "data"
        config = (tmp_path / "shared" / other.directory / "config.toml").read_text()
        assert (folder / "config.toml").read_text() == config
    assert not homes(tmp_path).exists()


@pytest.mark.slow
def test_pruned_trials_are_fetched(nodes: Any, tmp_path: Path) -> None:
    study = run(away(nodes, tmp_path, *TRAIN, SPACE), tmp_path / "study")
    assert set(study.counts) == {"finished", "pruned"}
    for trial in study.trials:
        folder = tmp_path / "study" / trial.directory
        if trial.state == "finished":
            assert (folder / "model" / "model.json").is_file()
            assert (folder / "figures" / "learning-curve.png").is_file()
            assert trial.epochs in epochs(tmp_path / "study", trial)


@pytest.mark.slow
def test_a_lost_worker_resumes_from_what_was_uploaded(nodes: Any, tmp_path: Path) -> None:
    killed = []

    def kill() -> None:
        wait_for(lambda: stored_step(tmp_path, 0) > 10)
        killed.append((worker_of(tmp_path, 0), stored_step(tmp_path, 0)))
        os.kill(killed[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    study = run(away(nodes, tmp_path, *LONG, "sweep.trials=1"), tmp_path / "study")
    killer.join()
    assert killed
    assert study.counts == {"finished": 1}
    assert epochs(tmp_path / "study", study.trials[0]) == list(range(1, 61))


@pytest.mark.slow
def test_a_killed_driver_is_resumed(nodes: Any, tmp_path: Path) -> None:
    directory, path = tmp_path / "study", tmp_path / "long.toml"
    dump_toml(unstructure(away(nodes, tmp_path, *LONG, "train.epochs=120")), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen([*command, "--quiet"], env=environment())
    try:
        wait_for(lambda: stored_step(tmp_path, 1) > 10)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    assert record(directory, 0).state == "finished"
    assert (directory / "trials" / "00000" / "model" / "model.json").is_file()
    assert not (directory / "trials" / "00001").exists()
    finished = record(directory, 0)
    uploaded = tmp_path / "uploaded"
    download(stored(tmp_path, 1), uploaded)
    # What machines had is lost with them, but for what was uploaded.
    wait_for(lambda: not Path(f"/proc/{worker_of(tmp_path, 1)}").exists())
    for home in homes(tmp_path).iterdir():
        home.rename(tmp_path / home.name)
    subprocess.run([*command, "--resume"], check=True, timeout=PATIENCE, env=environment())
    study = Study.load(directory)
    assert study.counts == {"finished": 3}
    assert study.trials[0] == finished
    for trial in study.trials:
        assert epochs(directory, trial) == list(range(1, 121))
    # It resumed from its checkpoint, and did not start again: the same steps were as fast.
    before, after = (
        json.loads((folder / "history.json").read_text())["steps_per_second"]
        for folder in (uploaded, directory / "trials" / "00001")
    )
    assert len(before) > 10
    assert after[: len(before)] == before


@pytest.mark.slow
def test_ctrl_c_fetches_what_was_done(nodes: Any, tmp_path: Path) -> None:
    directory, path = tmp_path / "study", tmp_path / "long.toml"
    dump_toml(unstructure(away(nodes, tmp_path, *LONG, "train.epochs=2000")), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        wait_for(lambda: len(record(directory, 0).curve) > 10)
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 130, said
    assert "sweep stopped: 0 of 3 trials are done" in said
    assert Study.load(directory).trials[0].state == "stopped"
    assert list((directory / "trials" / "00000" / "checkpoints").glob("step-*"))
    assert not homes(tmp_path).exists()


@pytest.mark.slow
def test_a_population_learns_over_machines(nodes: Any, tmp_path: Path) -> None:
    space = "sweep.space={ 'train.learning_rate' = { log_range = [1e-6, 1e-1] } }"
    pbt = "sweep.scheduler={ name = 'pbt', interval = 8 }"
    more = ("train.epochs=24", "train.decay=constant", "sweep.trials=4", "sweep.search=random")
    study = run(away(nodes, tmp_path, *TINY, space, pbt, *more), tmp_path / "study")
    assert study.counts == {"finished": 4}
    for trial in study.trials:
        assert epochs(tmp_path / "study", trial) == list(range(1, 25))
    # Who learned from another has its first epochs.
    stories = [
        json.loads((tmp_path / "study" / t.directory / "history.json").read_text())["loss"][:5]
        for t in study.trials
    ]
    assert any(story in stories[:n] for n, story in enumerate(stories))
    assert not (tmp_path / "far" / "study" / ".tune").exists()


@pytest.mark.slow
def test_trials_of_inference_get_model_data_and_references(
    nodes: Any, trained: Path, tmp_path: Path
) -> None:
    space = "sweep.space={ 'guidance.gamma' = { choice = [1.0, 2.0] } }"
    model = f"model.pretrained={trained / 'model'}"
    ways = (*INFER, space, model, "sweep.predictions=true")
    study = run(away(nodes, tmp_path, *ways), tmp_path / "study")
    at = (f"cluster.address={nodes.address}", "cluster.name=ray")
    shared = run(tiny(*ways, *at), tmp_path / "shared")
    assert files(tmp_path / "study") == files(tmp_path / "shared")
    assert study.counts == {"finished": 2}
    for one, other in zip(study.trials, shared.trials, strict=True):
        assert one.value == other.value
        assert one.metrics == other.metrics
        config = load_experiment(str(tmp_path / "study" / one.directory))
        assert config.model.pretrained == str(trained / "model")


@pytest.mark.slow
def test_a_study_that_was_begun_with_a_shared_directory(nodes: Any, tmp_path: Path) -> None:
    """Its checkpoints are uploaded for the machines that resume it."""
    at = (f"cluster.address={nodes.address}", "cluster.name=ray")
    budget = ("sweep.trials=1", "train.epochs=3000", "sweep.time_budget=30.0")
    before = run(tiny(*LONG, *at, *budget), tmp_path / "study").trials[0]
    assert before.state == "stopped"
    history = tmp_path / "study" / before.directory / "history.json"
    done = json.loads(history.read_text())["steps_per_second"]
    study = run(away(nodes, tmp_path, *LONG, *budget), tmp_path / "study", resume=True)
    assert json.loads(history.read_text())["steps_per_second"][: len(done)] == done
    assert (study.trials[0].epochs or 0) > (before.epochs or 0)


@pytest.mark.slow
def test_a_lost_node_costs_no_trial(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with on_loopback():
        nodes = Cluster()
        try:
            nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
            other = nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1")
            nodes.wait_for_nodes()

            def lose() -> None:
                wait_for(lambda: min(stored_step(tmp_path, n) for n in (0, 1)) > 10)
                nodes.remove_node(other, allow_graceful=False)

            loser = threading.Thread(target=lose)
            loser.start()
            more = ("train.epochs=400", "sweep.trials=2", "sweep.concurrency=2")
            study = run(away(nodes, tmp_path, *LONG, *more), tmp_path / "study")
            loser.join()
        finally:
            ray.shutdown()
            nodes.shutdown()
    assert study.counts == {"finished": 2}
    for trial in study.trials:
        assert epochs(tmp_path / "study", trial) == list(range(1, 401))
