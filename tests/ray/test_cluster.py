"""Work that is spread over a Ray cluster is the same as without it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray as module
import torch

from sda_core import stages
from sda_core.cluster import at_address
from sda_core.data import SPLITS, split_path
from sda_core.errors import ClusterError
from sda_core.testing import checks
from sda_ray.cluster import Ray
from sda_ray.connection import on_loopback

from ..core import cluster_runs, cluster_work, data_systems

ROOT = Path(__file__).parents[2]


def _pid(mark: Path) -> int:
    return int(mark.name.split("-")[1])


def _children(pid: int) -> set[int]:
    """The processes below a process."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, path.read_text().split()):
                found |= {child} | _children(child)
    return found


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _listening(pids: set[int]) -> set[str]:
    """The addresses that processes listen on, in the kernel's hexadecimal notation."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(entry))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                found.add(local.partition(":")[0])
    return found


@pytest.mark.parametrize("check", checks("cluster", "ray"), ids=str)
def test_promises(check, ray) -> None:
    check()


def test_it_is_found_by_its_address() -> None:
    found = at_address("auto", Ray(task_gpus=0.5))
    assert (found.address, found.task_gpus) == ("auto", 0.5)
    assert at_address("auto").address == "auto"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_it_listenson_loopback_only_and_sends_no_statistics(ray) -> None:
    list(ray.map(cluster_work.sleep, [0.0], workers=1))
    found = _listening({os.getpid(), *_children(os.getpid())})
    assert found == {"0100007F", "0000000000000000FFFF00000100007F"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_lost_task_is_done_again(ray, tmp_path) -> None:
    work = cluster_work.Die(tmp_path, 1)
    assert sorted(ray.map(work, range(3), workers=2)) == [(0, 0), (1, 1), (2, 2)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_task_that_is_always_lost_is_told_of(tmp_path, ray) -> None:
    work = cluster_work.Die(tmp_path, 9)
    with pytest.raises(ClusterError, match=r"1 retries of it \(cluster.retries\).*Ray says: "):
        list(Ray(retries=1).map(work, [0], workers=1))
    assert len(list(tmp_path.iterdir())) == 2


def test_work_waits_for_results_to_be_taken(ray, tmp_path) -> None:
    with closing(ray.map(cluster_work.Mark(tmp_path), range(9), workers=2)) as results:
        first, _ = next(results)
        time.sleep(1)
        assert len(list(tmp_path.iterdir())) <= 3
        rest = [number for number, _ in results]
    assert sorted([first, *rest]) == list(range(9))


def test_errors_are_those_of_the_work(ray) -> None:
    with pytest.raises(ValueError, match="task 0 cannot be done"):
        list(ray.map(cluster_work.fail, [0], workers=1))


def test_what_cannot_be_sent(ray) -> None:
    lock = threading.Lock()
    with pytest.raises(ClusterError, match="the work cannot be sent to the cluster"):
        list(ray.map(lambda task: lock, [0], workers=1))


def test_gpus_that_are_not_there(ray) -> None:
    with pytest.raises(ClusterError, match=r"task_gpus = 1.0, but this machine has 0 GPUs"):
        list(Ray(task_gpus=1.0).map(cluster_work.sleep, [0.0], workers=1))


def test_simulate_gives_the_same_files_on_a_cluster(ray, tmp_path) -> None:
    experiment = cluster_runs.experiment()
    for name, options in (("one", {}), ("ray", {"workers": 2, "cluster": ray})):
        stages.simulate(experiment, tmp_path / name, progress=False, **options)
    for split in SPLITS:
        one, other = (split_path(tmp_path / name / "data", split) for name in ("one", "ray"))
        assert one.read_bytes() == other.read_bytes()


def test_assimilate_gives_the_same_members_on_a_cluster(ray, tmp_path) -> None:
    experiment = cluster_runs.experiment()
    stages.simulate(experiment, tmp_path, progress=False)
    cluster_runs.add_model(experiment, tmp_path)
    done: list[tuple[int, int]] = []
    one = stages.assimilate(experiment, tmp_path, progress=False).clone()
    other = stages.assimilate(
        experiment,
        tmp_path,
        progress=lambda *step: done.append(step),
        workers=2,
        cluster=ray,
    )
    assert torch.equal(one, other)
    assert [round(3 * step / total) for step, total in done[-3:]] == [1, 2, 3]


def test_a_cluster_that_is_not_there(monkeypatch) -> None:
    monkeypatch.setattr(module, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ClusterError, match=rf"'{address}' cannot be reached .*refused.*--head"):
            list(Ray(address=address).map(cluster_work.sleep, [0.0], workers=1))


def test_what_wants_too_much_memory_is_not_tried_for_ever(monkeypatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(module, "is_initialized", lambda: False)
    monkeypatch.setattr(module, "init", lambda **settings: given.update(settings))
    monkeypatch.setattr(module, "shutdown", lambda: None)
    with Ray(retries=2).connected():
        assert given["_system_config"] == {"task_oom_retries": 2}


# --- what takes longer: clusters of their own ---


@pytest.mark.slow
def test_tasks_end_when_no_more_results_are_taken(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module.shutdown()  # the one that other tests share is kept by map
    with closing(Ray(cpus=2).map(cluster_work.Hang(tmp_path), range(2), workers=2)) as results:
        assert next(results) == (0, 0)
        while not (marks := list(tmp_path.glob("1-*"))):
            time.sleep(0.01)
    deadline = time.monotonic() + 60
    while _runs(_pid(marks[0])):
        assert time.monotonic() < deadline
        time.sleep(0.05)


DRIVER = """
import sys
from pathlib import Path
from sda_ray.cluster import Ray
from sda_ray.connection import on_loopback
from tests.core import cluster_work
list(Ray(cpus=2).map(cluster_work.Hang(Path(sys.argv[1])), [1, 2], workers=2))
"""


def test_what_is_written_is_private_and_removed() -> None:
    code = """
import os, stat, sys
from pathlib import Path
from sda_ray.cluster import Ray
with Ray(cpus=1).connected():
    (folder,) = Path(sys.argv[1]).iterdir()
    assert list(folder.glob("ray/session*"))
    print(oct(stat.S_IMODE(folder.stat().st_mode)))
"""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, folder]
        environment = os.environ | {"TMPDIR": folder}
        assert subprocess.check_output(command, env=environment, text=True) == "0o700\n"
        assert not os.listdir(folder)


@pytest.mark.slow
def test_all_processes_end_with_a_driver_that_is_killed(tmp_path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path], cwd=ROOT)
    while len(marks := list(tmp_path.iterdir())) < 2:
        assert driver.poll() is None
        time.sleep(0.1)
    processes = _children(driver.pid)
    assert {_pid(mark) for mark in marks} < processes
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 120
    while left := {pid for pid in processes if _runs(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_simulate_goes_on_when_a_node_is_lost(tmp_path, monkeypatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module.shutdown()
    with on_loopback():
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
            other = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
            cluster.wait_for_nodes()
            blocks: list[int] = []

            def lose_a_node(done: int, total: int) -> None:
                blocks.append(done)
                if done == 2:
                    cluster.remove_node(other, allow_graceful=False)

            data_systems.make(
                data_systems.Walk(pause=2.0),
                tmp_path / "ray",
                trajectories=32,
                workers=2,
                cluster=Ray(address=cluster.address),
                progress=lose_a_node,
            )
        finally:
            cluster.shutdown()
    assert blocks == list(range(1, 9))
    data_systems.make(data_systems.Walk(), tmp_path / "one", trajectories=32)
    for split in SPLITS:
        one, other = (split_path(tmp_path / name, split) for name in ("one", "ray"))
        assert one.read_bytes() == other.read_bytes()
