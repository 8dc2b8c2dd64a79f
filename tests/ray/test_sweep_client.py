"""Sweeps that are asked for from outside of the cluster, at an address ray://HOST:PORT."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import ray

from sda_core.config import dump_toml, unstructure
from sda_core.errors import ClusterError, StoppedError, SweepError
from sda_core.experiment import Experiment
from sda_ray import conduct, leader, reach, scratch
from sda_ray.cluster import _on_loopback
from sda_ray.conduct import trial_table
from sda_ray.mirror import Mirror
from sda_ray.study import Study

from .test_cluster import _children
from .test_sweep import (
    INFER,
    LONG,
    PATIENCE,
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

#: Of servers and drivers: loopback stays loopback, and gRPC lets the servers start others.
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GRPC_ENABLE_FORK_SUPPORT": "0"}
#: Two trials, the second of which fails.
TWO = (
    *TRAIN,
    "train.epochs=2",
    "sweep.search=grid",
    "sweep.scheduler={ name = 'none' }",
    "sweep.space={ 'model.window' = { choice = [5, 400] } }",
)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head of two CPUs, for those who are outside."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch, _on_loopback():
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # workers import these tests
        cluster = Cluster()
        try:
            cluster.add_node(
                num_cpus=2,
                node_ip_address="127.0.0.1",
                include_dashboard=False,
                ray_client_server_port=port,
            )
            wait_for(lambda: _answers(port))
            yield f"ray://127.0.0.1:{port}"
        finally:
            ray.shutdown()
            cluster.shutdown()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def connected(head: str) -> None:
    """A connection to it, which is kept."""
    if not ray.is_initialized():
        ray.init(head, log_to_driver=False)


def outside(head: str, *overrides: str) -> Experiment:
    return tiny(*overrides, "cluster.name=ray", f"cluster.address={head}")


def files(directory: Path) -> set[str]:
    found = (path.relative_to(directory) for path in directory.rglob("*"))
    return {str(path) for path in found if not path.name.startswith(".")}


def leaders() -> list[int]:
    """The processes that lead sweeps, below this one."""
    found = []
    for pid in _children(os.getpid()):
        path = Path(f"/proc/{pid}/cmdline")
        if path.exists() and path.read_bytes().startswith(b"ray::_Leader"):
            found.append(pid)
    return found


# --- what is checked before anything starts; no cluster is needed ---


def test_an_address_outside_is_no_mistake(tmp_path: Path) -> None:
    experiment = outside("ray://head:10001", *TWO)
    assert experiment.sweep is not None
    experiment.sweep.check(experiment)  # type: ignore[attr-defined]
    (tmp_path / "study").mkdir()
    dump_toml(unstructure(experiment), tmp_path / "study" / "config.toml")
    with pytest.raises(SweepError, match="there is a study in"):  # and nobody was asked
        run(experiment, tmp_path / "study")


def look(place: Path | str, **changes: Any) -> None:
    table = trial_table(tiny(*TWO), Path("study"))
    given = {"table": table, "files": [], "versions": {}} | changes
    reach.check_reach(Mirror(str(place)), **given)


def test_a_head_that_has_it_all(tmp_path: Path) -> None:
    look(tmp_path / "study", files=[tmp_path], versions={"attrs": attrs.__version__, "none": "1"})
    look(f"file://{tmp_path}/far")
    assert files(tmp_path) == {"study", "far"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": {"attrs": "1.2"}}, "attrs is 1.2 on this machine and .* on the head"),
        ({"files": [Path("/no/model")]}, "/no/model is not there for the head of the cluster"),
        (
            {"table": {"system": {"name": "of-a-plugin"}}},
            "the head of the cluster cannot read the experiment, and needs the same packages",
        ),
    ],
)
def test_a_head_that_lacks_something(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        look(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mirror, "put_text", lambda self, text: None)  # it is not there for the head
    with pytest.raises(
        ClusterError, match=r"is not the same place.*set cluster.storage.*job submit"
    ):
        look(tmp_path)
    with pytest.raises(ClusterError, match=r"file://.* is not the same place"):
        look(f"file://{tmp_path}")


def test_a_disk_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(type(Mirror(str(tmp_path)).file_system), "rm_file", refuse)
    with pytest.raises(ClusterError, match=r"cannot be written to, on the head"):
        look(tmp_path)
    with pytest.raises(ClusterError, match=r"the head .* cannot reach cluster.storage.*Permission"):
        look(f"file://{tmp_path}")


def test_observations_are_named_by_their_whole_path(tmp_path: Path) -> None:
    observed = "assimilate.observations={ file = 'obs.csv' }"
    table = trial_table(tiny(*TWO, observed), tmp_path)
    assert table["assimilate"]["observations"]["file"] == str(Path("obs.csv").resolve())


def test_what_the_leader_says_is_done_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def called(name: str, result: Any = None) -> Any:
        return SimpleNamespace(remote=lambda *given: said.append((name, *given)) or result)

    batches = [[("report", (0, 1, 0.5))], [("end", (0, "lost")), ("start", ())], [("warn", ("!",))]]
    last = leader._Outcome(is_late=True, is_left=True, calls=[("start", ()), ("end", (1, None))])
    monkeypatch.setattr(ray, "wait", lambda of, timeout: ([] if batches else of, []))
    monkeypatch.setattr(ray, "get", lambda what: what)
    there: Any = SimpleNamespace(
        take=SimpleNamespace(remote=lambda: batches.pop(0)),
        answer=called("answer"),
        leave=called("leave"),
    )
    book: Any = SimpleNamespace(
        report=lambda *given: said.append(("report", *given)),
        end=lambda *given: said.append(("end", *given)),
        start=lambda: "the next",
    )
    with pytest.warns(UserWarning, match="!"):
        assert leader._follow(there, last, book, lambda: len(batches) < 3) == (True, True)
    # A question that came too late is not answered: no trial is started.
    assert said == [
        ("report", 0, 1, 0.5),
        ("leave",),
        ("end", 0, "lost"),
        ("answer", "the next"),
        ("end", 1, None),
    ]


# --- on a cluster ---


def test_a_sweep_from_outside(
    head: str, connected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match=r"sweep.cpus_per_trial = 64, but no machine"):
        run(outside(head, *TWO, "sweep.cpus_per_trial=64"), tmp_path / "study")
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "put_text", lambda self, text: None)
        with pytest.raises(ClusterError, match="is not the same place"):
            run(outside(head, *TWO), tmp_path / "study")
    assert not (tmp_path / "study").exists()

    seen: list[tuple[int, int]] = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    study = run(outside(head, *TWO), tmp_path / "study", progress=progress)
    assert [trial.state for trial in study.trials] == ["finished", "failed"]
    assert [epoch for epoch, _ in study.trials[0].curve] == [1, 2]
    assert {"mae/y", "r2/z"} <= study.trials[0].metrics.keys()
    assert "400" in str(study.trials[1].cause)
    assert seen[-1] == (2, 2)
    assert (tmp_path / "study" / "best").resolve() == tmp_path / "study" / "trials" / "00000"
    assert not list((tmp_path / "study").glob(".[!s]*"))  # but the lock
    wait_for(lambda: not leaders())


@pytest.mark.slow
def test_errors_are_those_of_the_cluster(head: str, connected: None, tmp_path: Path) -> None:
    space = "sweep.space={ 'model.window' = { choice = [300, 400] } }"
    with pytest.raises(SweepError, match=r"all 2 trials failed, the first one because: .*300"):
        run(outside(head, *TWO, space), tmp_path / "study")
    with pytest.raises(
        ClusterError, match=r"head of the cluster cannot do its part.*same packages"
    ):
        leader.on_head(_fail)
    with pytest.raises(StoppedError, match="by somebody"):
        leader.on_head(_stop)


def _fail() -> None:
    raise ValueError("what no user can do anything about")


def _stop() -> None:
    raise StoppedError("by somebody")


@pytest.mark.slow
def test_machines_that_have_no_disk_in_common(
    head: str, connected: None, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inference, for which model, data and references are sent; as where the disk is shared."""
    space = "sweep.space={ 'guidance.gamma' = { choice = [1.0, 2.0] } }"
    ways = (*INFER, space, f"model.pretrained={trained / 'model'}", "sweep.predictions=true")
    shared = run(outside(head, *ways), tmp_path / "shared")
    monkeypatch.setattr(conduct, "lead", _who_knows_nothing_of(tmp_path / "study"))
    storage = f"cluster.storage=file://{tmp_path}/far"
    study = run(outside(head, *ways, storage), tmp_path / "study")
    assert files(tmp_path / "study") == files(tmp_path / "shared")
    assert study.counts == {"finished": 2}
    for one, other in zip(study.trials, shared.trials, strict=True):
        assert one.value == other.value
        assert one.metrics == other.metrics
    assert not scratch._home(f"file://{tmp_path}/far/study").exists()


def _who_knows_nothing_of(directory: Path) -> Any:
    def lead(job: Any, *rest: Any) -> bool:
        assert str(directory).encode() not in pickle.dumps(job)
        return leader.lead(job, *rest)

    return lead


@pytest.mark.slow
def test_a_population_from_outside(head: str, connected: None, tmp_path: Path) -> None:
    space = "sweep.space={ 'train.learning_rate' = { log_range = [1e-6, 1e-1] } }"
    pbt = "sweep.scheduler={ name = 'pbt', interval = 8 }"
    more = ("train.epochs=16", "train.decay=constant", "sweep.trials=2", "sweep.search=random")
    far = f"cluster.storage=file://{tmp_path}/far"
    study = run(outside(head, *TINY, space, pbt, *more, far), tmp_path / "study")
    assert study.counts == {"finished": 2}
    for trial in study.trials:
        assert epochs(tmp_path / "study", trial) == list(range(1, 17))


def command(head: str, tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "long.toml"
    dump_toml(unstructure(tiny(*LONG, "train.epochs=200", "sweep.trials=2", *overrides)), path)
    to = [str(path), "--dir", str(tmp_path / "study"), "--address", head]
    return [sys.executable, "-m", "sda_core", "sweep", *to]


def finish(asked: list[str], tmp_path: Path) -> Study:
    """Go on, and check that nothing is lost and nothing repeated."""
    before = Study.load(tmp_path / "study")
    found = subprocess.run(
        [*asked, "--resume"], capture_output=True, text=True, timeout=3 * PATIENCE
    )
    assert found.returncode == 0, found.stderr
    study = Study.load(tmp_path / "study")
    assert study.counts == {"finished": 2}
    for trial in study.trials:
        assert epochs(tmp_path / "study", trial) == list(range(1, 201))
        assert [epoch for epoch, _ in trial.curve] == list(range(1, 201))
    for earlier in before.trials:
        later = study.trials[earlier.number]
        assert later.parameters == earlier.parameters
        assert later.curve[: len(earlier.curve)] == earlier.curve
    return study


def speeds(tmp_path: Path) -> list[float]:
    """How fast each epoch of the first trial was: other numbers, if it is done again."""
    path = tmp_path / "study" / "trials" / "00000" / "history.json"
    found: list[float] = json.loads(path.read_text())["steps_per_second"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("storage", [False, True])
def test_ctrl_c_is_passed_on(head: str, tmp_path: Path, storage: bool) -> None:
    where = f"cluster={{ name = 'ray', storage = 'file://{tmp_path}/far' }}"
    asked = command(head, tmp_path, *([where] if storage else []))
    caller = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(record(tmp_path / "study", 0)["curve"]) > 10)
        caller.send_signal(signal.SIGINT)
        _, said = caller.communicate(timeout=PATIENCE)
    finally:
        caller.kill()
        caller.wait()
    assert caller.returncode == 130, said
    assert "sweep stopped: 0 of 2 trials are done" in said
    trial = Study.load(tmp_path / "study").trials[0]
    assert trial.state == "stopped"
    done = speeds(tmp_path)  # of a checkpoint that it wrote when it was left
    assert len(done) >= (trial.epochs or 0) > 10
    assert (tmp_path / "study" / "summary.md").is_file()
    finish(asked, tmp_path)
    assert speeds(tmp_path)[: len(done)] == done


@pytest.mark.slow
@pytest.mark.parametrize("storage", [False, True])
def test_a_caller_that_is_killed(head: str, tmp_path: Path, storage: bool) -> None:
    """The trials write checkpoints and end; the next call waits for that."""
    where = f"cluster={{ name = 'ray', storage = 'file://{tmp_path}/far' }}"
    asked = command(head, tmp_path, *([where] if storage else []))
    caller = subprocess.Popen([*asked, "--quiet"])
    try:
        wait_for(lambda: len(record(tmp_path / "study", 0)["curve"]) > 10)
    finally:
        caller.kill()
        caller.wait()
    assert record(tmp_path / "study", 0)["state"] == "running"
    finish(asked, tmp_path)


@pytest.mark.slow
def test_a_leader_that_is_killed(head: str, tmp_path: Path) -> None:
    where = f"cluster={{ name = 'ray', storage = 'file://{tmp_path}/far' }}"
    asked = command(head, tmp_path, where)
    caller = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(record(tmp_path / "study", 0)["curve"]) > 10)
        (pid,) = leaders()
        os.kill(pid, signal.SIGKILL)
        _, said = caller.communicate(timeout=PATIENCE)
    finally:
        caller.kill()
        caller.wait()
    assert caller.returncode == 2, said
    assert "what leads the sweep on the head of the cluster was lost" in said
    assert "Traceback" not in said
    assert record(tmp_path / "study", 0)["state"] == "stopped"
    finish(asked, tmp_path)


@pytest.mark.slow
def test_a_study_that_is_taken_over(head: str, connected: None, tmp_path: Path) -> None:
    """As by somebody who has a copy of its directory."""
    storage = f"cluster.storage=file://{tmp_path}/far"
    experiment = outside(head, *LONG, "train.epochs=100000", storage)
    place = f"file://{tmp_path}/far/study"

    def take_over() -> None:
        wait_for(lambda: len(record(tmp_path / "study", 0)["curve"]) > 3)
        leader.end_earlier(place, False, lambda: False)

    other = threading.Thread(target=take_over)
    other.start()
    with pytest.raises(SweepError, match=r"taken over by another"):
        run(experiment, tmp_path / "study")
    other.join()
    assert record(tmp_path / "study", 0)["state"] == "stopped"
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(leader._name(place), leader._NAMESPACE)
