"""Training by the workers of a Ray cluster, which are one group."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray as module
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from sda_core import stages
from sda_core.cli import make_app
from sda_core.cluster import WorkerChannel
from sda_core.config import dump_toml, unstructure
from sda_core.errors import ClusterError, ConfigError, StoppedError
from sda_core.experiment import Experiment, load_experiment
from sda_core.plugins import default_manager, hookimpl
from sda_ray.cluster import Ray
from sda_ray.connection import on_loopback
from sda_ray.remote import get_work
from sda_ray.tune.callbacks import forwarding
from sda_ray.tune.study import Study

from .test_cluster import _children, _listening

ROOT = Path(__file__).parents[2]
#: Seconds in which anything here should happen, on a machine that does other work, too.
PATIENCE = 300.0

#: lorenz63-quick, as small as it gets.
TINY = (
    "data.trajectories=32",
    "data.length=40",
    "data.burn_in=16",
    "kernel.name=mlp",
    "kernel.width=8",
    "kernel.depth=1",
    "model.window=5",
    "model.stride=2",
    "train.batch_size=16",
    "train.epochs=6",
    "train.validate_every=1",
    "train.checkpoint_every=1",
    "train.warmup_steps=0",
    "sample=none",
)
#: A training that can be interfered with.
LONG = ("train.epochs=60", "train.checkpoint_every=2")
SWEEP = (
    *TINY,
    "sweep.name=ray-tune",
    "sweep.trials=3",
    "sweep.search=random",
    "sweep.workers_per_trial=2",
    "sweep.scheduler={ name = 'asha', grace_period = 1 }",
    "sweep.space={ 'train.learning_rate' = { log_range = [1e-5, 1e-1] } }",
)


def tiny(*overrides: str) -> Experiment:
    return load_experiment("lorenz63-quick", (*TINY, *overrides))


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def losses(directory: Path, column: str = "loss") -> list[float]:
    path = directory / "history.json"
    return json.loads(path.read_text())[column] if path.is_file() else []


def losses_of_one(experiment: Experiment, directory: Path) -> list[float]:
    """The losses of one process that was never disturbed."""
    stages.simulate(experiment, directory, progress=False)
    stages.train(experiment, directory, progress=False)
    return losses(directory)


def everything(channel: WorkerChannel) -> None:
    """Say where the process is, and find out all that tests ask for."""
    where = module.util.get_node_ip_address(), os.environ["GLOO_SOCKET_IFNAME"], os.getcwd()
    what = os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads(), dist.get_backend()
    here = [dist.get_rank(), os.getpid(), *where, *what]
    all_of_them: list[Any] = [None, None]
    dist.all_gather_object(all_of_them, here)
    if dist.get_rank() == 0:
        channel.send(all_of_them)
        for number in range(100):
            channel.send(number)


def die_once(channel: WorkerChannel, path: Path) -> None:
    """Lose the second process the first time; the first one then hears a closed connection."""
    if dist.get_rank() == 0:
        channel.send("begun")
    dist.barrier()
    if dist.get_rank() == 1 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    if dist.get_rank() == 0:
        channel.send("done")


class DieOnce:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, channel: WorkerChannel) -> None:
        die_once(channel, self.path)


def always_die(channel: WorkerChannel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_in_some_way(channel: WorkerChannel) -> None:
    class LocalError(Exception):
        pass

    if dist.get_rank() == 1:
        raise LocalError(threading.Lock())
    dist.barrier()


def wait_for_ever(channel: WorkerChannel) -> None:
    if dist.get_rank() == 0:
        channel.send(os.getpid())
    while True:
        time.sleep(0.1)


def test_what_is_not_there_is_refused(ray: Ray) -> None:
    with pytest.raises(ClusterError, match=r"3 workers of 1 CPUs each.*2 CPUs .*fits 2: ask"):
        list(ray.run_distributed(everything, workers=3))
    with pytest.raises(ClusterError, match=r"2 workers of 1 CPUs and 0.5 GPUs each.*0 GPUs"):
        list(ray.run_distributed(everything, workers=2, gpus_per_worker=0.5))
    lock = threading.Lock()
    with pytest.raises(ClusterError, match="the work cannot be sent to the cluster"):
        list(ray.run_distributed(lambda channel: lock.acquire(), workers=2))


def test_work_that_cannot_be_read(ray: Ray) -> None:
    with pytest.raises(ClusterError, match=r"cannot read the work; .* says: .*not here"):
        get_work([module.put(_Unreadable())])


class _Unreadable:
    def __reduce__(self) -> Any:
        return fail_to_read, ()


def fail_to_read() -> None:
    raise ImportError("not here")


def test_a_trial_that_does_not_fit_is_refused(ray: Ray, tmp_path: Path) -> None:
    experiment = tiny(*SWEEP, "sweep.workers_per_trial=3")
    assert experiment.sweep is not None
    with pytest.raises(ClusterError, match=r"fits 2: .*\(sweep.workers_per_trial, sweep.cpus"):
        experiment.sweep.run(experiment, tmp_path / "study", progress=False)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("train.batch_size=1",), r"workers_per_trial = 2, but train.batch_size = 1"),
        (
            ("sweep.space={ 'train.batch_size' = { integers = [1, 4] } }",),
            r"workers_per_trial = 2, but train.batch_size = 1",
        ),
        (
            ("sweep.scheduler={ name = 'pbt' }",),
            r"workers_per_trial = 2: not for scheduler 'pbt'",
        ),
        (
            ("sweep.stage=assimilate", "sweep.metric=crps"),
            r"workers_per_trial = 2: only for stage = 'train'",
        ),
    ],
)
def test_what_several_workers_per_trial_are_not_for(changes: tuple[str, ...], said: str) -> None:
    experiment = tiny(*SWEEP, *changes)
    assert experiment.sweep is not None
    with pytest.raises(ConfigError, match=said):
        experiment.sweep.check(experiment)


def test_the_command_says_how_many_workers_a_trial_has(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    dump_toml(unstructure(tiny(*SWEEP)), path)
    result = CliRunner().invoke(make_app(default_manager()), ["sweep", str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "each with 2 workers of 1 CPUs, 0 GPUs and up to 6 epochs" in result.output


def test_workers_report_from_their_process(ray: Ray) -> None:
    """Each epoch once, though workers that are restarted report it again."""
    seen: list[tuple[int, float]] = []

    def report(epoch: int, value: float, metrics: Any) -> None:
        assert metrics == {"loss": value}
        seen.append((epoch, value))

    def work(report: Any, epochs: list[int]) -> None:
        for epoch in epochs:
            report(epoch, epoch / 2, {"loss": epoch / 2})

    remote: Any = module.remote(num_cpus=0, max_retries=0)(work)
    with forwarding(report) as sent:
        for epochs in ([1], [1, 2], [1, 2, 3]):
            module.get(remote.remote(sent, epochs))
    assert seen == [(1, 0.5), (2, 1.0), (3, 1.5)]


@pytest.mark.slow
def test_workers_that_do_not_start_in_time(ray: Ray) -> None:
    """They are restarted, and then named in the error."""
    other = Ray().run_distributed(wait_for_ever, workers=2)
    next(other)
    told = pytest.raises(
        ClusterError, match=r"within 2 s \(cluster.start_timeout\).*restarted 1 times"
    )
    with told, pytest.warns(UserWarning, match="did not start within 2 s"):
        list(Ray(retries=1, start_timeout=2.0).run_distributed(everything, workers=2))
    other.close()


@pytest.mark.slow
def test_a_trial_that_does_not_start_in_time(ray: Ray, tmp_path: Path) -> None:
    """All trials are tried again, and then the sweep ends; it can be resumed."""
    other = Ray().run_distributed(wait_for_ever, workers=2)
    next(other)
    changes = ("sweep.workers_per_trial=1", "sweep.retries=1", "sweep.trials=1")
    experiment = tiny(*SWEEP, *changes, "cluster.name=ray", "cluster.start_timeout=3.0")
    failed = pytest.raises(ClusterError, match=r"no trial .* 3 s \(cluster.start_timeout\).* 2 att")
    with failed, pytest.warns(UserWarning, match="no trial has started within 3 s"):
        swept(experiment, tmp_path / "study")
    other.close()
    study = swept(tiny(*SWEEP, *changes), tmp_path / "study", resume=True)
    assert study.counts == {"finished": 1}


def test_two_workers_train_as_one_process_does(ray: Ray, tmp_path: Path) -> None:
    experiment = tiny()
    one = losses_of_one(experiment, tmp_path / "one")
    stages.simulate(experiment, tmp_path / "two", progress=False)
    seen: list[tuple[int, int]] = []
    stages.train(
        experiment,
        tmp_path / "two",
        progress=lambda *step: seen.append(step),
        workers=2,
        cluster=ray,
    )
    assert losses(tmp_path / "two") == pytest.approx(one, rel=1e-4)
    validated = [losses(tmp_path / name, "valid_loss") for name in ("one", "two")]
    assert validated[1] == pytest.approx(validated[0], rel=1e-4)
    assert seen[-1][0] == seen[-1][1]
    assert not (Path.home() / "ray_results").exists()  # where Ray Train keeps its files


# --- what takes longer ---


@pytest.mark.slow
def test_a_group_of_two(ray: Ray) -> None:
    where, *numbers = ray.run_distributed(everything, workers=2)
    assert [here[0] for here in where] == [0, 1]
    assert len({os.getpid(), *(here[1] for here in where)}) == 3
    expected = ("127.0.0.1", "lo", os.getcwd(), "", 1, "gloo")
    assert {tuple(here[2:]) for here in where} == {expected}
    assert numbers == list(range(100))


@pytest.mark.slow
def test_a_lost_process_costs_what_was_not_saved(ray: Ray, tmp_path: Path) -> None:
    work = DieOnce(tmp_path / "died")
    with pytest.warns(UserWarning, match="a worker was lost"):
        assert list(ray.run_distributed(work, workers=2)) == ["begun", "begun", "done"]


@pytest.mark.slow
def test_processes_that_are_lost_too_often(ray: Ray) -> None:
    lost = pytest.raises(
        ClusterError, match=r"a worker was lost .*restarted 1 times \(cluster.retries\)"
    )
    with lost, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(Ray(retries=1).run_distributed(always_die, workers=2))


@pytest.mark.slow
def test_an_error_that_cannot_be_sent(ray: Ray) -> None:
    with pytest.raises(ClusterError, match=r"cannot be sent back: .*LocalError"):
        list(ray.run_distributed(fail_in_some_way, workers=2))


@pytest.mark.slow
def test_a_group_ends_when_nobody_listens(ray: Ray) -> None:
    with closing(ray.run_distributed(wait_for_ever, workers=2)) as told:
        process = next(told)
        if Path("/proc/net/tcp").exists():  # neither Ray Train nor the group listens elsewhere
            found = _listening({os.getpid(), *_children(os.getpid())})
            assert found == {"0100007F", "0000000000000000FFFF00000100007F"}
    wait_for(lambda: not Path(f"/proc/{process}").exists())
    # The CPUs are free again.
    assert len(list(ray.run_distributed(everything, workers=2))) == 101


@pytest.mark.slow
def test_a_training_waits_for_resources(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sda_ray.distributed.WAIT_NOTICE", 3.0)
    other = Ray().run_distributed(wait_for_ever, workers=2)
    next(other)
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.extend(ray.run_distributed(everything, workers=2))
    )
    with warnings.catch_warnings(record=True) as told:
        waiting.start()
        wait_for(lambda: told)
        other.close()
        waiting.join(PATIENCE)
    assert re.search(r"waiting for 2 workers of 1 CPUs each: .*\(0 free\)", str(told[0].message))
    assert len(found) == 101


def kill_rank_zero_after(directory: Path, epochs: int) -> threading.Thread:
    """Kill the process that writes, once."""

    def kill() -> None:
        wait_for(lambda: len(losses(directory)) >= epochs)
        os.kill(int((directory / "writer").read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


class SayWho:
    """A plugin that writes which process trains."""

    sda_interface = 1

    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def sda_run_started(self) -> None:
        """Write it."""
        self.path.write_text(str(os.getpid()))


@pytest.mark.slow
def test_a_killed_worker_resumes_from_the_last_checkpoint(ray: Ray, tmp_path: Path) -> None:
    experiment = tiny(*LONG)
    one = losses_of_one(experiment, tmp_path / "one")
    directory = tmp_path / "two"
    stages.simulate(experiment, directory, progress=False)
    killer = kill_rank_zero_after(directory, 10)
    hooks = [SayWho(directory / "writer")]
    with pytest.warns(UserWarning, match="a worker was lost"):
        stages.train(experiment, directory, progress=False, workers=2, cluster=ray, hooks=hooks)
    killer.join()
    assert losses(directory) == pytest.approx(one, rel=1e-3)
    assert epochs_of(directory) == list(range(1, 61))


def epochs_of(directory: Path) -> list[int]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [event["epoch"] for event in events if event["event"] == "epoch"]


def swept(experiment: Experiment, directory: Path, **options: Any) -> Study:
    assert experiment.sweep is not None
    experiment.sweep.run(experiment, directory, progress=False, **options)
    return Study.load(directory)


@pytest.mark.slow
def test_trials_of_two_workers_each(ray: Ray, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    study = swept(tiny(*SWEEP), directory)
    assert len(study.trials) == 3
    assert set(study.counts) == {"finished", "pruned"}
    for trial in study.trials:
        done = [epoch for epoch, _ in trial.curve]
        assert epochs_of(directory / trial.directory)[: len(done)] == done
        if trial.state == "pruned":
            assert trial.epochs is not None
            assert trial.epochs < 6
            assert trial.cause == f"asha after epoch {trial.epochs}"
        else:
            assert [epoch for epoch, _ in trial.curve] == list(range(1, 7))
            assert "rmse/x" in trial.metrics
    # A trial more has one worker.
    before = study.trials
    changes = ("sweep.workers_per_trial=1", "sweep.trials=4")
    after = swept(tiny(*SWEEP, *changes), directory, resume=True)
    assert after.trials[:3] == before
    assert after.trials[3].has_ended


@pytest.mark.slow
def test_a_lost_trial_leaves_no_workers(ray: Ray, tmp_path: Path) -> None:
    """The one in its place gets their CPUs."""
    directory = tmp_path / "study"
    trial = directory / "trials" / "00000"

    def kill() -> None:
        wait_for(lambda: len(losses(trial)) >= 10)
        os.kill(int((trial / ".training.lock").read_text().split()[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    study = swept(tiny(*SWEEP, *LONG, "sweep.trials=1"), directory)
    killer.join()
    assert study.counts == {"finished": 1}
    assert epochs_of(trial) == list(range(1, 61))


@pytest.mark.slow
def test_a_sweep_of_groups_is_stopped_and_resumed(own_cluster: None, tmp_path: Path) -> None:
    path, directory = tmp_path / "tiny.toml", tmp_path / "study"
    changes = ("sweep.scheduler={ name = 'none' }", "sweep.trials=2", "train.epochs=300")
    dump_toml(unstructure(tiny(*SWEEP, *changes, "cluster.name=ray", "cluster.cpus=2")), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    trial = directory / "trials" / "00000"
    wait_for(lambda: len(losses(trial)) > 10 or driver.poll() is not None)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130, said
    assert "sweep stopped: 0 of 2 trials are done" in said
    done = len(losses(trial))
    assert 10 < done < 300
    subprocess.run([*command, "--resume", "--quiet"], check=True, timeout=PATIENCE)
    study = Study.load(directory)
    assert study.counts == {"finished": 2}
    for found in study.trials:
        assert epochs_of(directory / found.directory) == list(range(1, 301))
        assert [epoch for epoch, _ in found.curve] == list(range(1, 301))


@pytest.mark.slow
def test_a_killed_driver_is_resumed(own_cluster: None, tmp_path: Path) -> None:
    experiment = tiny(*LONG)
    one = losses_of_one(experiment, tmp_path / "one")
    path, directory = tmp_path / "tiny.toml", tmp_path / "two"
    dump_toml(unstructure(tiny(*LONG, "cluster.name=ray", "cluster.cpus=2")), path)
    stages.simulate(experiment, directory, progress=False)
    command = [sys.executable, "-m", "sda_core", "train", str(path), "--dir", str(directory)]
    command += ["--workers", "2", "--quiet"]
    driver = subprocess.Popen(command)
    try:
        wait_for(lambda: len(losses(directory)) >= 10 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    assert 10 <= len(losses(directory)) < 60
    subprocess.run(command, check=True, timeout=PATIENCE)
    assert losses(directory) == pytest.approx(one, rel=1e-3)
    assert epochs_of(directory) == list(range(1, 61))


@pytest.mark.slow
def test_a_lost_node_is_done_without(own_cluster: None, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    changes = ("train.epochs=200",)
    experiment = tiny(*LONG, *changes)
    one = losses_of_one(experiment, tmp_path / "one")
    directory = tmp_path / "two"
    stages.simulate(experiment, directory, progress=False)
    with on_loopback():
        nodes = Cluster()
        try:
            nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
            others = [nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1") for _ in range(2)]
            nodes.wait_for_nodes()
            lost: list[Any] = []

            def lose() -> None:
                wait_for(lambda: len(losses(directory)) >= 5)
                used = {
                    node["NodeID"]
                    for node in module.nodes()
                    if node["Alive"]
                    and not module._private.state.available_resources_per_node()[
                        node["NodeID"]
                    ].get("CPU")
                }
                lost.extend(node for node in others if node.node_id in used)
                nodes.remove_node(lost[0], allow_graceful=False)

            loser = threading.Thread(target=lose)
            loser.start()
            with pytest.warns(UserWarning, match="a worker was lost"):
                stages.train(
                    experiment,
                    directory,
                    progress=False,
                    workers=2,
                    cluster=Ray(address=nodes.address),
                )
            loser.join()
        finally:
            module.shutdown()
            nodes.shutdown()
    assert lost
    assert losses(directory) == pytest.approx(one, rel=1e-2)
    assert epochs_of(directory) == list(range(1, 201))


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_trained(own_cluster: None, tmp_path: Path) -> None:
    experiment, path = tiny("train.epochs=100000"), tmp_path / "tiny.toml"
    directory = tmp_path / "run"
    stages.simulate(experiment, directory, progress=False)
    dump_toml(unstructure(experiment), path)
    with contextlib.ExitStack() as stack:
        stack.callback(module.shutdown)

        def press() -> None:
            wait_for(lambda: len(losses(directory)) >= 3)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=press)
        thread.start()
        with pytest.raises(StoppedError, match="training stopped after step"):
            stages.train(experiment, directory, progress=False, workers=2, cluster=Ray(cpus=2))
        thread.join()
    assert len(losses(directory)) >= 3
