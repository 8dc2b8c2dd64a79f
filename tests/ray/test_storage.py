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
from sda_ray import conduct, scratch
from sda_ray.cluster import _on_loopback
from sda_ray.mirror import Mirror
from sda_ray.study import Study
from sda_ray.work import Job

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
ON_LOOPBACK = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two machines of one CPU each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with _on_loopback():
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
def nobody_knows_where_the_study_is(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is sent to a machine of the cluster has the path of the study."""
    do_trials, make_reference = conduct.do_trials, conduct.make_reference

    def checked(job: Any, *rest: Any) -> Any:
        assert job.storage is None or str(tmp_path / "study").encode() not in pickle.dumps(job)
        return do_trials(job, *rest)

    def partial(work: Any, job: Any) -> Any:
        assert work is make_reference
        assert job.storage is None or str(tmp_path / "study").encode() not in pickle.dumps(job)
        return lambda number: work(job, number)

    monkeypatch.setattr(conduct, "do_trials", checked)
    monkeypatch.setattr(conduct, "partial", partial)


def away(nodes: Any, tmp_path: Path, *overrides: str) -> Experiment:
    at = (f"cluster.address={nodes.address}", "cluster.name=ray")
    return tiny(*overrides, *at, f"cluster.storage=file://{tmp_path}/far")


def homes(tmp_path: Path) -> Path:
    """Where machines work for the study."""
    return scratch._home(f"file://{tmp_path}/far/study")


def files(directory: Path) -> set[str]:
    """All files, and all that links lead to, but our own and those that training leaves behind."""
    found = (path.relative_to(directory) for path in directory.rglob("*"))
    return {str(path) for path in found if not path.name.startswith(".")}


def worker_of(tmp_path: Path, number: int) -> int:
    """The process that trains."""
    (lock,) = homes(tmp_path).glob(f"*/trials/{number:05d}/.training.lock")
    return int(lock.read_text().split()[1])


def stored_step(tmp_path: Path, number: int) -> int:
    """The step of the newest checkpoint that was uploaded."""
    folder = tmp_path / "far" / "study" / "trials" / f"{number:05d}" / "checkpoints"
    steps = (int(path.name.split(".")[0][5:]) for path in folder.glob("step-*"))
    return max(steps, default=0)


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "far" / "study").mkdir(parents=True)
    overrides = ("cluster.name=ray", f"cluster.storage=file://{tmp_path}/far")
    with pytest.raises(SweepError, match=r"there is something in file://.*/far/study, as of a st"):
        run(tiny(*TRAIN, SPACE, *overrides), tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A machine that is in no cluster, and the plugins that are registered on it."""
    plugins: list[Any] = []
    manager = SimpleNamespace(register=lambda plugin, name: plugins.append(plugin))
    context = SimpleNamespace(get_node_id=lambda: "0123456789abcdef")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(scratch, "default_manager", lambda: manager)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return plugins


def test_a_trial_works_elsewhere(alone: list[Any], tmp_path: Path) -> None:
    far = Mirror(f"file://{tmp_path}/far/study")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.h5").write_text("states")
    (far / "data").push(tmp_path / "data")
    job = Job(directory="", table={}, space={}, stage="train", metric="", storage=far.url)
    here = scratch.begin(job, 3)
    folder = here.trial(3)
    assert str(folder).startswith(str(tmp_path / "tmp"))
    assert here.model is None
    folder.mkdir(parents=True)
    here.link_data(3)
    assert (folder / "data" / "train.h5").read_text() == "states"
    (folder / "history.json").write_text("[1]")
    (uploader,) = alone
    uploader.sda_checkpoint_written()
    (folder / "history.json").write_text("[1, 2]")
    (folder / "result.json").write_text("{}")
    scratch.upload(here, 3)
    # Another process goes on with it, where a killed one has left other things.
    (folder / "history.json").write_text("[1, 2, 3]")
    (folder / "left").touch()
    assert scratch.begin(job, 3) == here
    assert files(folder) == {"history.json"}  # the result was of the time before
    assert (folder / "history.json").read_text() == "[1, 2]"
    (far / "trials/00003").pull(tmp_path / "there")
    assert files(tmp_path / "there") == {"history.json"}
    scratch.leave(here, 3)
    assert not folder.exists()
    assert (Path(here.directory) / "data" / "train.h5").is_file()  # for the next trial


def test_a_failed_upload_ends_no_training(
    alone: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(
        directory="", table={}, space={}, stage="train", metric="", storage=f"file://{tmp_path}/far"
    )
    here = scratch.begin(job, 0)
    here.trial(0).mkdir(parents=True)
    (here.trial(0) / "history.json").write_text("[1]")

    def fail(self: Any, *args: Any) -> None:
        raise ConnectionResetError("the cable")

    (uploader,) = alone
    with monkeypatch.context() as patch:
        patch.setattr(type(Mirror(here.storage or "").file_system), "put", fail)
        with pytest.warns(UserWarning, match="cannot be given a copy of.*the cable"):
            uploader.sda_checkpoint_written()
    uploader.sda_checkpoint_written()
    assert Mirror(f"{here.storage}/trials/00000").pull(tmp_path / "there")


def test_where_the_directory_is_shared_nothing_is_done(alone: list[Any], tmp_path: Path) -> None:
    job = Job(directory=str(tmp_path), table={}, space={}, stage="train", metric="")
    job.trial(0).mkdir(parents=True)
    assert scratch.begin(job, 0) is job
    scratch.upload(job, 0)
    scratch.leave(job, 0)
    assert not alone
    assert job.trial(0).is_dir()


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
        assert attrs.evolve(one, seconds=0.0) == attrs.evolve(other, seconds=0.0)
        folder = tmp_path / "study" / one.directory
        assert (folder / "data").resolve() == tmp_path / "study" / "data"
        config = (tmp_path / "shared" / other.directory / "config.toml").read_text()
        assert (folder / "config.toml").read_text() == config
    assert not homes(tmp_path).exists()


@pytest.mark.slow
def test_pruned_trials_are_fetched_whole(nodes: Any, tmp_path: Path) -> None:
    study = run(away(nodes, tmp_path, *TRAIN, SPACE), tmp_path / "study")
    assert set(study.counts) == {"finished", "pruned"}
    for trial in study.trials:
        folder = tmp_path / "study" / trial.directory
        assert (folder / "model" / "model.json").is_file()
        assert (folder / "figures" / "learning-curve.png").is_file()
        assert trial.epochs in epochs(tmp_path / "study", trial)


@pytest.mark.slow
def test_a_lost_worker_goes_on_from_what_was_uploaded(nodes: Any, tmp_path: Path) -> None:
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
def test_a_killed_driver_is_gone_on_with(nodes: Any, tmp_path: Path) -> None:
    directory, path = tmp_path / "study", tmp_path / "long.toml"
    dump_toml(unstructure(away(nodes, tmp_path, *LONG, "train.epochs=120")), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen([*command, "--quiet"], env=ON_LOOPBACK)
    try:
        wait_for(lambda: stored_step(tmp_path, 1) > 10)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    assert record(directory, 0)["state"] == "finished"
    assert (directory / "trials" / "00000" / "model" / "model.json").is_file()
    assert files(directory / "trials" / "00001") == {"trial.json"}
    finished = (directory / "trials" / "00000" / "trial.json").stat().st_mtime_ns
    uploaded = tmp_path / "uploaded"
    Mirror(f"file://{tmp_path}/far/study/trials/00001").pull(uploaded)
    # What machines had is lost with them, but for what was uploaded.
    wait_for(lambda: not Path(f"/proc/{worker_of(tmp_path, 1)}").exists())
    for home in homes(tmp_path).iterdir():
        home.rename(tmp_path / home.name)
    subprocess.run([*command, "--resume"], check=True, timeout=PATIENCE, env=ON_LOOPBACK)
    study = Study.load(directory)
    assert study.counts == {"finished": 3}
    assert (directory / "trials" / "00000" / "trial.json").stat().st_mtime_ns == finished
    for trial in study.trials:
        assert epochs(directory, trial) == list(range(1, 121))
    # It went on from its checkpoint, and did not start anew: the same steps were as fast.
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
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ON_LOOPBACK)
    try:
        wait_for(lambda: len(record(directory, 0)["curve"]) > 10)
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
    """Its checkpoints are sent to the machines that go on with it."""
    at = (f"cluster.address={nodes.address}", "cluster.name=ray")
    budget = ("sweep.trials=1", "train.epochs=3000", "sweep.time_budget=30.0")
    before = run(tiny(*LONG, *at, *budget), tmp_path / "study").trials[0]
    assert before.state == "stopped"
    history = tmp_path / "study" / before.directory / "history.json"
    done = json.loads(history.read_text())["steps_per_second"]
    study = run(away(nodes, tmp_path, *LONG, *budget), tmp_path / "study", resume=True)
    assert json.loads(history.read_text())["steps_per_second"][: len(done)] == done
    manifest = (Mirror(f"file://{tmp_path}/far/study/trials/00000") / "manifest.json").text()
    assert "history.json" in str(manifest)
    assert "trial.json" not in str(manifest)
    assert (study.trials[0].epochs or 0) > (before.epochs or 0)


@pytest.mark.slow
def test_a_lost_node_costs_no_trial(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with _on_loopback():
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
