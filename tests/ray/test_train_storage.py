"""Training by workers on machines that have no disk in common."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import sda_ray.cluster
from sda_core import stages
from sda_core.config import dump_toml, unstructure
from sda_core.errors import ClusterError, ConfigError, StoppedError
from sda_core.experiment import Experiment
from sda_core.plugins import hookimpl
from sda_core.testing import check_cluster
from sda_ray import sync
from sda_ray.cluster import Ray
from sda_ray.connection import on_loopback
from sda_ray.tune.context import TrialContext

from .test_cluster import _children
from .test_storage import LOOPBACK, environment, files
from .test_train import (
    LONG,
    PATIENCE,
    ROOT,
    SWEEP,
    epochs_of,
    losses,
    losses_of_one,
    swept,
    tiny,
    wait_for,
)


@pytest.fixture(scope="module")
def client_port() -> int:
    """Where the cluster listens to those that are no part of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def nodes(client_port: int) -> Iterator[Any]:
    """Two machines of one CPU each, so that two workers are on two of them."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    machine: dict[str, Any] = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}
    with on_loopback(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # workers import the hooks of these tests
        patch.setenv(*LOOPBACK)  # for its client server
        cluster = Cluster()
        try:
            head = {"include_dashboard": False, "ray_client_server_port": client_port}
            cluster.add_node(**machine, **head)
            cluster.add_node(**machine)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(autouse=True)
def nobody_knows_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is sent to a machine of the cluster has the path of the run or study."""
    run_distributed, for_workers = sda_ray.cluster.run_distributed, TrialContext.for_workers

    def sent(work: Any, *rest: Any) -> Any:
        assert str(tmp_path / "run").encode() not in pickle.dumps(work)
        return run_distributed(work, *rest)

    def checked(job: TrialContext) -> TrialContext:
        found = for_workers(job)
        assert job.storage is None or str(tmp_path / "study").encode() not in pickle.dumps(found)
        return found

    monkeypatch.setattr(sda_ray.cluster, "run_distributed", sent)
    monkeypatch.setattr(TrialContext, "for_workers", checked)


def away(nodes: Any, tmp_path: Path) -> Ray:
    return Ray(address=nodes.address, storage=f"file://{tmp_path}/far")


def simulated(experiment: Experiment, directory: Path) -> Path:
    stages.simulate(experiment, directory, progress=False)
    return directory


def homes(tmp_path: Path) -> list[Path]:
    """Where machines work for the run."""
    (place,) = (tmp_path / "far").iterdir()
    return list(sync._cache_root(f"file://{place}").glob("*"))


def saved(tmp_path: Path, name: str = "run-*/*/run/*") -> int:
    """The step of the newest checkpoint that was copied to the storage."""
    folders = (tmp_path / "far").glob(f"{name}/checkpoints")
    names = (path.name for folder in folders for path in folder.glob("step-*"))
    return max((int(name.split(".")[0][5:]) for name in names), default=0)


class Machine:
    """A plugin that writes which process is rank 0, and where."""

    sda_interface = 1

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def sda_run_started(self, run: Any) -> None:
        """Write it."""
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {run.directory}\n")


def test_machines_without_the_directory_train_as_one_process_does(
    nodes: Any, tmp_path: Path
) -> None:
    experiment, directory = tiny("train.keep=2"), tmp_path / "run"
    one = losses_of_one(experiment, tmp_path / "one")
    (directory / "data").parent.mkdir()
    (directory / "data").symlink_to(tmp_path / "one" / "data")
    (directory / "posterior.nc").write_text("of an earlier model")
    checkpoints: set[str] = set()

    def progress(done: int, total: int) -> None:
        checkpoints.update(path.name for path in (directory / "checkpoints").glob("step-*"))

    hooks = [Machine(tmp_path / "rank-0")]
    options: dict[str, Any] = {"workers": 2, "cluster": away(nodes, tmp_path)}
    model = stages.train(experiment, directory, progress=progress, hooks=hooks, **options)
    assert losses(directory) == pytest.approx(one, rel=1e-4)
    assert losses(directory, "valid_loss")[-1] == pytest.approx(
        model.provenance["valid_loss"], rel=1e-6
    )
    # What was brought on the way went again, and the rest is as after a training here.
    there = {name for name in files(tmp_path / "one") if not name.startswith("data/")}
    assert files(directory) == there | {"posterior.nc"}
    config = (tmp_path / "one" / "config.toml").read_text()
    assert (directory / "config.toml").read_text() == config
    ((_, where),) = (line.split() for line in (tmp_path / "rank-0").read_text().splitlines())
    assert Path(where).name == "run"
    assert not Path(where).exists()
    assert not homes(tmp_path)
    stored = [path.name for path in (tmp_path / "far").rglob("*")]
    assert not any(name.startswith("posterior") for name in stored)


# --- what takes longer ---


@pytest.mark.slow
def test_a_ray_that_copies_directories_keeps_its_promises(nodes: Any, tmp_path: Path) -> None:
    check_cluster(away(nodes, tmp_path))


def test_a_place_that_is_none(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(ConfigError, match="'/far' is no place that other machines see"):
        Ray(storage="/far").sync_directory(directory).__enter__()


@pytest.mark.slow
def test_a_killed_worker_resumes_from_what_was_saved(nodes: Any, tmp_path: Path) -> None:
    experiment, directory = tiny(*LONG), tmp_path / "run"
    one = losses_of_one(experiment, tmp_path / "one")
    simulated(experiment, directory)

    def kill() -> None:
        wait_for(lambda: saved(tmp_path) >= 20)
        process, _ = (tmp_path / "rank-0").read_text().split()
        os.kill(int(process), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    hooks = [Machine(tmp_path / "rank-0")]
    options: dict[str, Any] = {"workers": 2, "cluster": away(nodes, tmp_path)}
    with pytest.warns(UserWarning, match="a worker was lost"):
        stages.train(experiment, directory, progress=False, hooks=hooks, **options)
    killer.join()
    assert len((tmp_path / "rank-0").read_text().splitlines()) == 2
    assert losses(directory) == pytest.approx(one, rel=1e-3)
    assert epochs_of(directory) == list(range(1, 61))


@pytest.mark.slow
def test_a_lost_machine_takes_nothing_with_it(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    experiment, directory = tiny(*LONG, "train.epochs=200"), tmp_path / "run"
    one = losses_of_one(experiment, tmp_path / "one")
    simulated(experiment, directory)
    ray.shutdown()
    with on_loopback(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        nodes = Cluster()
        try:
            # The head has no CPU, so that rank 0 is on a machine that can be lost.
            nodes.add_node(num_cpus=0, node_ip_address="127.0.0.1", include_dashboard=False)
            others = [nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1") for _ in range(3)]
            nodes.wait_for_nodes()

            def lose() -> None:
                wait_for(lambda: saved(tmp_path) >= 20)
                _, where = (tmp_path / "rank-0").read_text().split()
                (node,) = (n for n in others if n.node_id[:12] in where)
                nodes.remove_node(node, allow_graceful=False)

            loser = threading.Thread(target=lose)
            loser.start()
            with pytest.warns(UserWarning, match="a worker was lost"):
                stages.train(
                    experiment,
                    directory,
                    progress=False,
                    workers=2,
                    cluster=away(nodes, tmp_path),
                    hooks=[Machine(tmp_path / "rank-0")],
                )
            loser.join()
        finally:
            ray.shutdown()
            nodes.shutdown()
    first, second = (tmp_path / "rank-0").read_text().splitlines()
    assert first.split()[1] != second.split()[1]
    assert losses(directory) == pytest.approx(one, rel=1e-2)
    assert epochs_of(directory) == list(range(1, 201))


@pytest.mark.slow
def test_ctrl_c_brings_what_was_trained(nodes: Any, tmp_path: Path) -> None:
    """It is resumed here, by one process, when the storage is gone; and away again."""
    constant = (*LONG, "train.decay=constant")  # the number of epochs so changes no step
    experiment, directory = tiny(*constant), tmp_path / "run"
    one = losses_of_one(experiment, tmp_path / "one")
    simulated(experiment, directory)
    cluster = away(nodes, tmp_path)
    options: dict[str, Any] = {"progress": False, "workers": 2, "cluster": cluster}

    def stopped_after(step: int) -> int:
        def press() -> None:
            wait_for(lambda: saved(tmp_path) >= step)
            os.kill(os.getpid(), signal.SIGINT)

        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(StoppedError, match="training stopped after step"):
            stages.train(experiment, directory, **options)
        presser.join()
        assert not homes(tmp_path)
        return len(losses(directory))

    done = stopped_after(10)
    (far,) = (tmp_path / "far").iterdir()
    far.rename(tmp_path / "gone")
    short = tiny(*constant, f"train.epochs={done + 2}")
    may: dict[str, Any] = {"resume": True, "may_change": ("train.epochs",)}
    stages.train(short, directory, progress=False, **may)
    assert len(losses(directory)) == done + 2
    # What the storage has is of before, and counts for nothing.
    (tmp_path / "gone").rename(far)
    stages.train(experiment, directory, **may, **options)
    assert losses(directory) == pytest.approx(one, rel=1e-3)
    assert epochs_of(directory) == list(range(1, 61))


@pytest.mark.slow
def test_a_caller_that_is_no_part_of_the_cluster(
    nodes: Any, client_port: int, tmp_path: Path
) -> None:
    experiment, directory = tiny(), tmp_path / "run"
    one = losses_of_one(experiment, tmp_path / "one")
    simulated(experiment, directory)
    outside = Ray(address=f"ray://127.0.0.1:{client_port}", storage=f"file://{tmp_path}/far")
    stages.train(experiment, directory, progress=False, workers=2, cluster=outside)
    assert losses(directory) == pytest.approx(one, rel=1e-4)
    assert files(directory) == files(tmp_path / "one")
    assert not homes(tmp_path)


@pytest.mark.slow
def test_a_killed_command_resumes_from_what_it_had_fetched(nodes: Any, tmp_path: Path) -> None:
    experiment, directory, path = tiny(*LONG), tmp_path / "run", tmp_path / "tiny.toml"
    one = losses_of_one(experiment, tmp_path / "one")
    simulated(experiment, directory)
    at = ("cluster.name=ray", f"cluster.address={nodes.address}")
    dump_toml(unstructure(tiny(*LONG, *at, f"cluster.storage=file://{tmp_path}/far")), path)
    command = [sys.executable, "-m", "sda_core", "train", str(path), "--dir", str(directory)]
    command += ["--workers", "2", "--quiet"]
    driver = subprocess.Popen(command, env=environment())
    try:
        wait_for(lambda: len(losses(directory)) >= 10 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    assert 10 <= len(losses(directory)) < 60
    subprocess.run([*command, "--resume"], check=True, timeout=PATIENCE, env=environment())
    assert losses(directory) == pytest.approx(one, rel=1e-3)
    assert epochs_of(directory) == list(range(1, 61))
    assert not homes(tmp_path)


@pytest.mark.slow
def test_a_storage_that_fails_costs_no_training(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, directory = tiny(*LONG), tmp_path / "run"
    simulated(experiment, directory)
    download, failures = sync.download, iter([True, True])

    def fail(url: str, target: Path) -> bool:
        if next(failures, False):
            raise ClusterError("the cable")
        return download(url, target)

    monkeypatch.setattr(sync, "download", fail)
    options: dict[str, Any] = {"workers": 2, "cluster": away(nodes, tmp_path)}
    with pytest.warns(UserWarning, match="the cable"):
        stages.train(experiment, directory, progress=False, **options)
    assert epochs_of(directory) == list(range(1, 61))


def command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def study(nodes: Any, tmp_path: Path, *changes: str) -> Experiment:
    at = (f"cluster.address={nodes.address}", f"cluster.storage=file://{tmp_path}/far")
    return tiny(*SWEEP, *changes, "cluster.name=ray", *at)


@pytest.mark.slow
@pytest.mark.parametrize("own_data", [False, True])
def test_trials_of_two_workers_each(nodes: Any, tmp_path: Path, own_data: bool) -> None:
    space = "sweep.space={ 'data.trajectories' = { choice = [32, 40] } }"
    changes = (*((space,) if own_data else ()), "sweep.trials=2")
    found = swept(study(nodes, tmp_path, *changes), tmp_path / "study")
    at = ("cluster.name=ray", f"cluster.address={nodes.address}")
    shared = swept(tiny(*SWEEP, *changes, *at), tmp_path / "shared")
    assert found.counts == shared.counts, [trial.cause for trial in found.trials]
    for trial, other in zip(found.trials, shared.trials, strict=True):
        assert trial.value == pytest.approx(other.value, rel=1e-4)
        if trial.state == "finished":  # of others, what was uploaded before they were pruned
            folders = (tmp_path / name / trial.directory for name in ("study", "shared"))
            assert len({frozenset(files(folder)) for folder in folders}) == 1
            done = [epoch for epoch, _ in trial.curve]
            assert epochs_of(tmp_path / "study" / trial.directory) == done
    assert not sync._cache_root(f"file://{tmp_path}/far/study").exists()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["the trial", "a worker"])
def test_a_trial_that_loses_a_process(nodes: Any, tmp_path: Path, which: str) -> None:
    home = sync._cache_root(f"file://{tmp_path}/far/study")

    def kill() -> None:
        wait_for(lambda: saved(tmp_path, "study/trials/00000/*") >= 20)
        if which == "the trial":
            (lock,) = home.glob("*/trials/00000/.training.lock")
            process = int(lock.read_text().split()[1])
        else:
            workers = (p for p in _children(os.getpid()) if b"ray::Worker" in command(p))
            process = next(workers)
        os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    changes = (*LONG, "sweep.trials=1")
    found = swept(study(nodes, tmp_path, *changes), tmp_path / "study")
    killer.join()
    assert found.counts == {"finished": 1}
    assert epochs_of(tmp_path / "study" / "trials" / "00000") == list(range(1, 61))


@pytest.mark.slow
def test_a_study_of_groups_is_stopped_and_resumed(nodes: Any, tmp_path: Path) -> None:
    path, directory = tmp_path / "tiny.toml", tmp_path / "study"
    changes = ("sweep.scheduler={ name = 'none' }", "sweep.trials=1", *LONG)
    dump_toml(unstructure(study(nodes, tmp_path, *changes)), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        wait_for(lambda: saved(tmp_path, "study/trials/00000/*") >= 20 or driver.poll() is not None)
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 130, said
    assert "sweep stopped: 0 of 1 trials are done" in said
    done = len(losses(directory / "trials" / "00000"))
    assert 10 <= done < 60
    subprocess.run(
        [*command, "--resume", "--quiet"], check=True, timeout=PATIENCE, env=environment()
    )
    assert epochs_of(directory / "trials" / "00000") == list(range(1, 61))
