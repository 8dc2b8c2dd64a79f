"""The batch script for Slurm, with stand-ins for Slurm's commands: two "nodes" on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .test_sweep import PATIENCE, TINY, record

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "cluster" / "slurm.sbatch"

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")

#: Starts the command as a process of this machine, on a node of one CPU.
SRUN = """#!/bin/bash
for option; do
    case $option in
        --nodelist=*) echo "${option#*=}" >>"$SDA_TEST_STEPS" ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
SLURM_CPUS_ON_NODE=1 exec "$@"
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && tr , '\\n' <<<"$3"
"""
#: Ray as it is, but for a check that keeps machines that listen on loopback alone by themselves.
RAY = f"""#!{sys.executable}
from types import SimpleNamespace
from ray.scripts import scripts
constants = {{**vars(scripts.ray_constants), "ENABLE_RAY_CLUSTER": True}}
scripts.ray_constants = SimpleNamespace(**constants)
scripts.main()
"""


def _of_job(job: str) -> set[int]:
    """The processes that have the environment of a job."""
    mark, found = f"SLURM_JOB_ID={job}".encode(), set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not (reached := condition()) and time.monotonic() < end:
        time.sleep(0.5)
    return reached


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job; whatever it has started is ended."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("ray", RAY)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = str(os.getpid())
    environment = os.environ | {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),  # for Ray's token
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
        "SDA_TEST_STEPS": str(tmp_path / "steps"),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "here,there",
    }
    yield environment
    for pid in _of_job(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_it_asks_for_a_command(slurm: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", SCRIPT], env=slurm, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert "usage: sbatch [OPTIONS] slurm.sbatch COMMAND" in done.stderr


def test_it_ends_if_ray_does_not_start(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "ray").write_text("#!/bin/bash\n[ $1 != start ]\n")
    done = subprocess.run(
        ["bash", SCRIPT, "sda", "list"],
        env=slurm,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "Ray has not started on here" in done.stderr
    assert "system" not in done.stdout  # the command has not run


@pytest.mark.slow
def test_a_sweep_runs_on_all_nodes_and_stops_before_the_time_is_up(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    changes = [
        *(change for change in TINY if not change.startswith("train.epochs")),
        "train.epochs=100000",
        "sweep.trials=3",
        "sweep.space={ 'train.learning_rate' = { log_range = [1e-4, 1e-1] } }",
    ]
    sets = [option for change in changes for option in ("--set", change)]
    log, study = tmp_path / "job.log", tmp_path / "study"
    with log.open("w") as file:
        job = subprocess.Popen(
            [
                "bash",
                SCRIPT,
                "sda",
                "sweep",
                "lorenz63-quick",
                "--address=auto",
                "--dir=study",
                *sets,
            ],
            env=slurm,
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    temporary = Path(f"/tmp/ray-{slurm['SLURM_JOB_ID']}")

    def two_trials_train() -> bool:
        assert job.poll() is None, log.read_text()
        trials = [record(study, number) for number in range(3)]
        return sum(trial.state == "running" and len(trial.curve) > 0 for trial in trials) == 2

    assert _until(two_trials_train), log.read_text()  # one on each node, which has one CPU
    assert temporary.is_dir()
    job.send_signal(signal.SIGUSR1)  # what Slurm sends at the time of `--signal`
    assert job.wait(PATIENCE) == 130, log.read_text()
    text = log.read_text()
    assert "2 nodes, 2 CPUs, 0 GPUs" in text
    assert "pass --resume to continue it" in text
    assert Path(slurm["SDA_TEST_STEPS"]).read_text().split() == ["here", "there"]
    assert len(list((tmp_path / "study" / "trials").glob("*/checkpoints/*"))) >= 2
    assert _until(lambda: not _of_job(slurm["SLURM_JOB_ID"]))
    assert not temporary.exists()
