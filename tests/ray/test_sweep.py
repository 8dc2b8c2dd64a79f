"""Sweeps on a real cluster: this machine by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import optuna
import pytest
import ray
from typer.testing import CliRunner

from sda_core import stages
from sda_core.cli import make_app
from sda_core.config import dump_toml, unstructure
from sda_core.errors import ClusterError, SweepError
from sda_core.experiment import Experiment, load_experiment
from sda_core.plugins import default_manager
from sda_ray.cluster import Ray
from sda_ray.connection import on_loopback
from sda_ray.tune.context import trial_table
from sda_ray.tune.schedulers import make_scheduler, replay
from sda_ray.tune.study import Study, TrialRecord
from sda_ray.tune.sweep import RayTune

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
    "train.epochs=9",
    "train.validate_every=1",
    "train.warmup_steps=0",
    "sample=none",
    "sampler.name=ddim",
    "sampler.steps=8",
    "guidance.gamma=1.0",
    "assimilate.members=4",
    "assimilate.length=9",
    "evaluate.reference={ name = 'particle-filter', particles = 64 }",
    "sweep.name=ray-tune",
)
TRAIN = (
    *TINY,
    "sweep.trials=4",
    "sweep.concurrency=2",
    "sweep.startup_trials=2",
    "sweep.scheduler={ name = 'asha', grace_period = 1 }",
)
SPACE = (
    "sweep.space={ 'train.learning_rate' = { log_range = [1e-4, 1e-1] },"
    " 'kernel.name' = { choice = ['mlp', 'transformer'] },"
    " 'kernel.depth' = { integers = [1, 2], when = { 'kernel.name' = 'mlp' } } }"
)
INFER = (
    *TINY,
    "sweep.stage=assimilate",
    "sweep.metric=crps",
    "sweep.search=grid",
    "sweep.observation_sets=2",
)
#: Seconds in which anything here should happen, on a machine that does other work, too.
PATIENCE = 240.0


def tiny(*overrides: str) -> Experiment:
    return load_experiment("lorenz63-quick", overrides)


def run(experiment: Experiment, directory: Path, **options: Any) -> Study:
    assert experiment.sweep is not None
    options = {"progress": False, **options}
    summary = experiment.sweep.run(experiment, directory, **options)
    assert summary.is_file()
    return Study.load(directory)


@pytest.fixture(scope="module")
def swept(
    connect: Callable[[], Ray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Study]:
    connect()
    directory = tmp_path_factory.mktemp("sweeps") / "study"
    return directory, run(tiny(*TRAIN, SPACE), directory)


def test_a_sweep_trains_compares_and_prunes(swept: tuple[Path, Study]) -> None:
    directory, study = swept
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert study.counts.get("finished", 0) >= 1
    assert set(study.counts) <= {"finished", "pruned"}
    for trial in study.trials:
        folder = directory / trial.directory
        made = load_experiment(str(folder))
        assert made.train.learning_rate == trial.parameters["train.learning_rate"]
        assert ("kernel.depth" in trial.parameters) == (trial.parameters["kernel.name"] == "mlp")
        assert (folder / "data").resolve() == directory / "data"
        assert trial.value == min(value for _, value in trial.curve)
        assert trial.planned_epochs == 9
        assert {"loss", "valid_loss", "grad_norm"} <= trial.metrics.keys()
        if trial.state == "finished":
            assert (folder / "model" / "model.json").is_file()
            assert [epoch for epoch, _ in trial.curve] == list(range(1, 10))
            assert trial.metrics["rmse/x"] == pytest.approx(trial.metrics["mse/x"] ** 0.5, rel=0.5)
            assert {"mae/y", "r2/z"} <= trial.metrics.keys()
        else:
            assert trial.epochs is not None
            assert trial.epochs < 9
            assert trial.cause == f"asha after epoch {trial.epochs}"
    assert study.best is not None
    assert (directory / "best").resolve() == directory / study.best.directory
    assert not (directory / ".tune").exists()
    assert not (Path.home() / "ray_results").exists()


def test_more_trials_repeat_no_other(swept: tuple[Path, Study], ray: Ray) -> None:
    directory, _ = swept
    before = Study.load(directory).trials
    written = {t.number: (directory / t.directory).stat().st_mtime_ns for t in before}
    seen: list[tuple[int, int]] = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    after = run(tiny(*TRAIN, SPACE, "sweep.trials=5"), directory, resume=True, progress=progress)
    assert after.resumed == 1
    assert after.trials[:4] == before
    assert after.trials[4].state in ("finished", "pruned")
    for number, time_of in written.items():
        assert (directory / f"trials/{number:05d}").stat().st_mtime_ns == time_of
    assert seen[-1] == (5, 5)


def test_another_study_is_not_resumed(swept: tuple[Path, Study]) -> None:
    directory, _ = swept
    with pytest.raises(
        SweepError, match=r"already holds a study; pass --resume .* --new .* --delete"
    ):
        run(tiny(*TRAIN, SPACE), directory)
    other = tiny(*TRAIN, SPACE, "sweep.mode=max", "kernel.width=16")
    with pytest.raises(SweepError, match=r"differs in kernel.width \(8 .*16.*sweep.mode \(min"):
        run(other, directory, resume=True)
    space = tiny(*TRAIN, SPACE, "sweep.space.train.learning_rate={ log_range = [1e-4, 1e-2] }")
    told = r"sweep.space.train.learning_rate.log_range .* pass --new .* --delete"
    with pytest.raises(SweepError, match=told):
        run(space, directory, resume=True)
    with pytest.raises(SweepError, match=r"there is no study in .* to continue"):
        run(tiny(*TRAIN, SPACE), directory / "none", resume=True)
    with pytest.raises(SweepError, match=r"there is a run in .*, and no study"):
        run(tiny(*TRAIN, SPACE), directory / "trials" / "00000")


def test_no_machine_fits_a_trial(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"1 workers of 64 CPUs each, .*sweep.cpus_per_trial"):
        run(tiny(*TRAIN, SPACE, "sweep.cpus_per_trial=64"), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_the_command_says_what_it_would_do(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    dump_toml(unstructure(tiny(*TRAIN, SPACE)), path)
    command = ["sweep", str(path), "--dir", str(tmp_path / "study"), "--dry-run"]
    result = CliRunner().invoke(make_app(default_manager()), command)
    assert result.exit_code == 0, result.output
    assert "4 trials (stage train)" in result.output
    assert "kernel.depth: integers [1, 2] where kernel.name in ['mlp']" in result.output
    assert not (tmp_path / "study").exists()


def test_trials_are_tracked_as_one_group() -> None:
    trackers = "trackers=[{ name = 'wandb' }, { name = 'wandb', group = 'mine' }]"
    table = trial_table(tiny(*TRAIN, SPACE, trackers), "my-study")
    assert [tracker["group"] for tracker in table["trackers"]] == ["my-study", "mine"]


@attrs.frozen
class Stub:
    trial_id: str


@pytest.mark.parametrize("name", ["asha", "median"])
def test_schedulers_know_the_trials_of_earlier_calls(tmp_path: Path, name: str) -> None:
    """A trial that is resumed is compared with those that had ended before."""
    scheduler = f"sweep.scheduler={{ name = '{name}', grace_period = 2 }}"
    asked = tiny(*TRAIN, SPACE, scheduler).sweep
    assert isinstance(asked, RayTune)
    trials = [
        TrialRecord(number=n, state="finished", curve=((1, 1.0), (2, 0.5), (3, 0.25)), directory="")
        for n in range(3)
    ]
    found = make_scheduler(asked, 9)
    replay(found, asked.mode, trials)
    controller: Any = None
    for value, decision in ((0.75, "STOP"), (0.125, "CONTINUE")):
        trial: Any = Stub(str(value))
        found.on_trial_add(controller, trial)
        early = {"epoch": 1, "value": 9.0}
        assert found.on_trial_result(controller, trial, early) == "CONTINUE"  # too early to tell
        later = {"epoch": 2, "value": value}
        assert found.on_trial_result(controller, trial, later) == decision


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def record(directory: Path, number: int) -> TrialRecord:
    """A trial as it is recorded; one that has not begun has no curve."""
    none = TrialRecord(number=number, state="running", directory="none")
    try:
        trials = Study.load(directory).trials
    except SweepError:  # it is not whole yet
        return none
    return trials[number] if number < len(trials) else none


def epochs(directory: Path, trial: TrialRecord) -> list[int]:
    lines = (directory / trial.directory / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [event["epoch"] for event in events if event["event"] == "epoch"]


#: Trials long enough to be killed in.
LONG = (
    *TINY,
    "train.epochs=60",
    "train.checkpoint_every=5",
    "sweep.concurrency=1",
    "sweep.search=random",
    "sweep.trials=3",
    "sweep.space={ 'train.learning_rate' = { log_range = [1e-4, 1e-2] } }",
)


@pytest.mark.slow
def test_a_killed_driver_is_resumed(tmp_path: Path) -> None:
    path, directory = tmp_path / "long.toml", tmp_path / "study"
    dump_toml(unstructure(tiny(*LONG, "cluster.name=ray", "cluster.cpus=1")), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen([*command, "--quiet"])
    try:
        wait_for(lambda: len(record(directory, 1).curve) > 20)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
    before = Study.load(directory).trials
    states = [trial.state for trial in before]
    assert states in (["finished", "running"], ["finished", "running", "running"])  # it is pending
    finished = (directory / "trials" / "00000").stat().st_mtime_ns
    # At once: the process of the trial may still be there.
    subprocess.run([*command, "--resume"], check=True, timeout=PATIENCE)
    study = Study.load(directory)
    assert study.counts == {"finished": 3}
    assert study.resumed == 1
    assert study.trials[0] == before[0]
    assert (directory / "trials" / "00000").stat().st_mtime_ns == finished
    assert study.trials[1].parameters == before[1].parameters
    for trial in study.trials:
        assert epochs(directory, trial) == list(range(1, 61))
        assert [epoch for epoch, _ in trial.curve] == list(range(1, 61))
    # What it had recorded before it was killed stands: it did not start again.
    known = before[1].curve
    assert study.trials[1].curve[: len(known)] == known


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group(tmp_path: Path, number: int) -> None:
    """Ray's own processes do not get it, so that trials end in order."""
    path, directory = tmp_path / "long.toml", tmp_path / "study"
    changes = ("train.epochs=100000", "cluster.name=ray", "cluster.cpus=1")
    dump_toml(unstructure(tiny(*LONG, *changes)), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        wait_for(lambda: len(record(directory, 0).curve) > 10 or driver.poll() is not None)
        os.killpg(driver.pid, number)
        _, said = driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 130, said
    assert "sweep stopped: 0 of 3 trials are done" in said
    trial = Study.load(directory).trials[0]
    assert trial.state == "stopped"
    history = json.loads((directory / trial.directory / "history.json").read_text())
    assert history["epoch"][-1] >= (trial.epochs or 0)  # it wrote a checkpoint when it was stopped


@pytest.mark.slow
def test_a_killed_worker_is_replaced(cluster: None, tmp_path: Path) -> None:
    directory, killed = tmp_path / "study", []

    def kill() -> None:
        wait_for(lambda: len(record(directory, 0).curve) > 20)
        lock = directory / "trials" / "00000" / ".training.lock"
        killed.append(int(lock.read_text().split()[1]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    study = run(tiny(*LONG, "sweep.trials=1"), directory)
    killer.join()
    (trial,) = study.trials
    assert trial.state == "finished"
    assert epochs(directory, trial) == list(range(1, 61))
    lock = directory / "trials" / "00000" / ".training.lock"
    assert int(lock.read_text().split()[1]) != killed[0]


@pytest.mark.slow
def test_a_worker_that_is_lost_too_often_fails_its_trial(cluster: None, tmp_path: Path) -> None:
    directory = tmp_path / "study"

    def kill() -> None:
        wait_for(lambda: len(record(directory, 0).curve) > 5)
        lock = directory / "trials" / "00000" / ".training.lock"
        os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SweepError, match=r"all 1 trials failed.* its process was lost: .*died"):
        run(tiny(*LONG, "sweep.trials=1", "sweep.retries=0"), directory)
    killer.join()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done(tmp_path: Path) -> None:
    path, directory = tmp_path / "long.toml", tmp_path / "study"
    dump_toml(unstructure(tiny(*LONG, "cluster.name=ray", "cluster.cpus=1")), path)
    command = [sys.executable, "-m", "sda_core", "sweep", str(path), "--dir", str(directory)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(record(directory, 0).curve) > 10)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130
    assert "sweep stopped: 0 of 3 trials are done" in said
    assert "--resume" in said
    study = Study.load(directory)
    assert study.trials[0].state == "stopped"
    done = study.trials[0].epochs
    assert done is not None
    # It wrote a checkpoint when it was stopped, and resumes there.
    history = json.loads((directory / "trials" / "00000" / "history.json").read_text())
    assert history["epoch"][-1] >= done
    assert (directory / "summary.md").is_file()


@pytest.mark.slow
def test_the_time_budget(cluster: None, tmp_path: Path) -> None:
    experiment = tiny(*LONG, "train.epochs=100000", "sweep.time_budget=20.0")
    study = run(experiment, tmp_path / "study")
    assert "stopped" in study.counts
    assert "finished" not in study.counts


@pytest.mark.slow
def test_a_population_learns_from_its_best(cluster: None, tmp_path: Path) -> None:
    space = "sweep.space={ 'train.learning_rate' = { log_range = [1e-6, 1e-1] } }"
    pbt = "sweep.scheduler={ name = 'pbt', interval = 8 }"
    more = ("train.epochs=24", "train.decay=constant", "sweep.trials=4", "sweep.search=random")
    study = run(tiny(*TINY, space, pbt, *more), tmp_path / "study")
    assert study.counts == {"finished": 4}
    storage = f"sqlite:///{tmp_path / 'study' / 'optuna.db'}"
    begun = optuna.load_study(study_name=None, storage=storage).trials
    first = {t.number: t.params["train.learning_rate"] for t in begun}
    changed = []
    for trial in study.trials:
        rate = trial.parameters["train.learning_rate"]
        assert 1e-6 <= rate <= 1e-1
        folder = tmp_path / "study" / trial.directory
        assert load_experiment(str(folder)).train.learning_rate == pytest.approx(rate)
        assert epochs(tmp_path / "study", trial) == list(range(1, 25))
        assert trial.curve[-1][0] == 24
        if rate != first[trial.number]:
            changed.append(trial.number)
    assert changed
    # Who changed has the weights, and so the first epochs, of another trial.
    stories = [
        json.loads((tmp_path / "study" / t.directory / "history.json").read_text())["loss"]
        for t in study.trials
    ]
    for number in changed:
        others = [story for n, story in enumerate(stories) if n != number]
        assert any(story[:5] == stories[number][:5] for story in others)


@pytest.mark.slow
def test_a_failing_trial_is_reported_and_others_continue(cluster: None, tmp_path: Path) -> None:
    space = "sweep.space={ 'model.window' = { choice = [5, 400] } }"
    study = run(tiny(*TRAIN, space, "sweep.search=grid"), tmp_path / "study")
    assert [trial.state for trial in study.trials] == ["finished", "failed"]
    assert "400" in str(study.trials[1].cause)
    assert (tmp_path / "study" / "trials" / "00001" / "error.txt").is_file()
    space = "sweep.space={ 'model.window' = { choice = [300, 400] } }"
    with pytest.raises(SweepError, match=r"all 2 trials failed, the first one because: .*300"):
        run(tiny(*TRAIN, space, "sweep.search=grid"), tmp_path / "other")


@pytest.mark.slow
def test_data_that_are_varied_are_each_trials_own(cluster: None, tmp_path: Path) -> None:
    space = "sweep.space={ 'data.trajectories' = { choice = [24, 40] } }"
    study = run(tiny(*TRAIN, space, "sweep.search=grid"), tmp_path / "study")
    assert study.counts == {"finished": 2} or study.counts == {"finished": 1, "pruned": 1}
    for trial in study.trials:
        data = tmp_path / "study" / trial.directory / "data"
        assert data.is_dir()
        assert not data.is_symlink()
    assert not (tmp_path / "study" / "data").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "trained"
    experiment = tiny(*TINY[:-1], "train.epochs=150", "train.learning_rate=5e-3")
    stages.simulate(experiment, directory, progress=False)
    stages.train(experiment, directory, progress=False)
    return directory


@pytest.mark.slow
def test_trials_of_inference_share_observations_and_seeds(
    cluster: None, trained: Path, tmp_path: Path
) -> None:
    # The size of batches changes no member, so these trials differ by no more than rounding.
    space = (
        "sweep.space={ 'method.batch_size' = { choice = [2, 4] },"
        " 'guidance.gamma' = { choice = [1.0, 2.0] } }"
    )
    model = f"model.pretrained={trained / 'model'}"
    directory = tmp_path / "study"
    study = run(tiny(*INFER, space, model, "sweep.predictions=true"), directory)
    assert study.counts == {"finished": 4}
    by_gamma: dict[float, list[TrialRecord]] = {}
    for trial in study.trials:
        by_gamma.setdefault(trial.parameters["guidance.gamma"], []).append(trial)
        assert trial.error is not None
        assert trial.error > 0
        assert {"wasserstein1", "rmse/x", "r2/y"} <= trial.metrics.keys()
        assert [n for n, _ in trial.curve] == [1, 2]
        assert (directory / trial.directory / "posterior-1.nc").is_file()
        assert not (directory / trial.directory / "checkpoints").exists()
    for one, other in by_gamma.values():
        assert one.value == pytest.approx(other.value, rel=1e-4)
    values = [found[0].value for found in by_gamma.values()]
    assert values[0] != pytest.approx(values[1], rel=1e-4)
    assert len(list((directory / "reference").iterdir())) == 2
    assert (directory / "data").resolve() == trained / "data"


@pytest.mark.slow
def test_the_command_sweeps_the_use_of_a_run(trained: Path, tmp_path: Path) -> None:
    space = "sweep.space={ 'sampler.steps' = { integers = [8, 9] } }"
    command = [sys.executable, "-m", "sda_core", "sweep", str(trained), "--quiet"]
    command += [
        f"--set={change}" for change in (*INFER[len(TINY) - 1 :], space, "cluster.name=ray")
    ]
    subprocess.run([*command, "--set=cluster.cpus=1"], check=True, cwd=tmp_path, timeout=PATIENCE)
    directory = tmp_path / "sweeps" / "trained"
    assert Study.load(directory).counts == {"finished": 2}


@pytest.mark.slow
def test_a_lost_node_costs_no_trial(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()  # the cluster of the tests above
    directory = tmp_path / "study"
    with on_loopback():
        nodes = Cluster()
        try:
            nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
            other = nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1")
            nodes.wait_for_nodes()

            def lose() -> None:
                wait_for(lambda: all(len(record(directory, n).curve) > 20 for n in (0, 1)))
                nodes.remove_node(other, allow_graceful=False)

            # Both trials were on their way, on one CPU each.
            loser = threading.Thread(target=lose)
            loser.start()
            more = ("train.epochs=400", "sweep.trials=2", "sweep.concurrency=2")
            at = (f"cluster.address={nodes.address}", "cluster.name=ray")
            study = run(tiny(*LONG, *more, *at), directory)
            loser.join()
        finally:
            ray.shutdown()
            nodes.shutdown()
    assert study.counts == {"finished": 2}
    for trial in study.trials:
        assert epochs(directory, trial) == list(range(1, 401))
        assert [epoch for epoch, _ in trial.curve] == list(range(1, 401))
