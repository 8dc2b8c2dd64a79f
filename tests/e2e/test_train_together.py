"""A training by several processes: stopped, killed, resumed by another number of them."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sda_core as sda
from sda_core import stages
from sda_core.cli import make_app
from sda_core.cluster import Local
from sda_core.errors import ClusterError, ConfigError, PluginError, StoppedError
from sda_core.plugins import default_manager, hookimpl
from sda_core.training import CheckpointFolder

from ..core import group_work
from .small_runs import COMMON, experiments, options

SMALL = [
    *COMMON,
    "train.epochs=6",
    "train.windows_per_trajectory=4",
    "train.batch_size=20",
    "train.validate_every=2",
    "train.checkpoint_every=1",
    "train.report_every=3",
    "sampler.steps=4",
    "sample.members=2",
    "sample.length=9",
]
small = experiments(SMALL)
STEPS_PER_EPOCH = 7


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    sda.simulate(small(), directory, progress=False)
    sda.train(small(), directory, progress=False)
    return directory


@pytest.fixture
def directory(undisturbed: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(undisturbed / "data")
    return tmp_path


def events(directory: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == name]


def check_same(directory: Path, other: Path) -> None:
    """Check that trainings had the same course, and that each step was written once."""
    for name, more in (("report", "loss_t7"), ("epoch", "valid_loss")):
        mine, wanted = events(directory, name), events(other, name)
        assert [e["step"] for e in mine] == [e["step"] for e in wanted]
        for key in ("loss", "grad_norm", "learning_rate", more):
            values, same = ([e.get(key, math.nan) for e in found] for found in (mine, wanted))
            assert values == pytest.approx(same, rel=1e-4, nan_ok=True), (name, key)
    names = [{p.name for p in (d / "checkpoints").iterdir()} for d in (directory, other)]
    assert names[0] == names[1]


def started_by_this_process() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [p for p in map(int, text.split()) if b"spawn_main" in _command(p)]


def wait_for_end_of_all(group: int) -> None:
    """Wait until a group of processes has ended, as it soon must."""
    for _ in range(400):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlive the command")


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_lost_worker_and_a_failing_plugin(
    directory: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble = group_work.Trouble(tmp_path, kill_after=2, fail_after=4)
    with (
        pytest.warns(UserWarning, match="a hook warns"),
        pytest.raises(ZeroDivisionError, match="at epoch 4") as raised,
    ):
        sda.train(small(), directory, workers=2, hooks=[trouble])
    assert "in worker process 0" in raised.value.__notes__[0]
    assert (tmp_path / "killed").exists()
    assert "step 7 of 42" in capsys.readouterr().err
    assert started_by_this_process() == []
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert [int(epoch) for _, epoch in seen] == [1, 2, 2, 3, 4]
    assert len({process for process, _ in seen}) == 2  # the first one alone, before and after
    assert str(os.getpid()) not in {process for process, _ in seen}
    sda.train(small(), directory, progress=False)  # in this process
    check_same(directory, undisturbed)


class Seen:
    """A plugin that keeps what it sees."""

    sda_interface = 1

    def __init__(self) -> None:
        self.epochs: list[int] = []

    @hookimpl
    def sda_epoch_ended(self, metrics):
        self.epochs.append(metrics["epoch"])


def test_hooks_see_one_training(directory: Path) -> None:
    seen = Seen()
    sda.train(small("train.epochs=2"), directory, progress=False, hooks=[seen])
    sda.train(small("train.epochs=3"), directory, progress=False, may_change=["train.epochs"])
    assert seen.epochs == [1, 2]
    with pytest.raises(PluginError, match="does not declare the plugin interface"):
        sda.train(small(), directory, progress=False, hooks=[object()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, r"--workers 0: give the number of processes, from 1 to train.batch_size"),
        ({"workers": 21}, r"--workers 21: .* from 1 to train.batch_size = 20, whose windows"),
        ({"gpus_per_worker": 1}, r"--gpus-per-worker 1 says .*give --workers, too"),
        ({"workers": 2, "gpus_per_worker": 1.5}, r"--gpus-per-worker 1.5: give 0, a fraction"),
        ({"workers": 2, "gpus_per_worker": -1}, r"--gpus-per-worker -1: give 0, a fraction"),
        ({"workers": 2, "detect_anomaly": True}, r"--detect-anomaly .*leave out --workers 2"),
    ],
)
def test_what_cannot_be_done(directory: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sda.train(small(), directory, progress=False, **options)


def test_gpus_that_are_not_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ClusterError, match="2 workers with 1 GPUs each need 2 GPUs"):
        sda.train(small(), directory, progress=False, workers=2, gpus_per_worker=1)


def test_workers_need_the_data(directory: Path) -> None:
    class Elsewhere(Local):
        def run_distributed(self, work, **options):
            (directory / "data").unlink()
            work(None)
            yield

    with pytest.raises(ClusterError, match=r"data is not there for worker 0: .*a disk in common"):
        sda.train(small(), directory, progress=False, workers=2, cluster=Elsewhere())


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def train(*_: Any, **options: Any) -> None:
        given.append({k: options[k] for k in ("workers", "gpus_per_worker", "cluster")})
        raise StoppedError("seen")

    monkeypatch.setattr(stages, "train", train)
    app = make_app(default_manager())

    def invoke(*options: str) -> str:
        command = ["train", "lorenz63-quick", "-d", str(tmp_path), *options]
        return str(CliRunner().invoke(app, command).exception)

    assert invoke("--workers=3", "--gpus-per-worker=0.5") == "seen"
    assert invoke() == "seen"
    assert given == [
        {"workers": 3, "gpus_per_worker": 0.5, "cluster": None},
        {"workers": None, "gpus_per_worker": None, "cluster": None},
    ]
    assert "--address auto says where, but not how many" in invoke("--address=auto")
    for other in ("--dry-run", "--quick", "--seeds=0"):
        name = other.partition("=")[0]
        assert f"--workers and {name} cannot be combined" in invoke("--workers=2", other)


# --- long ones ---


@pytest.mark.slow
def test_ctrl_c_is_passed_on(directory: Path) -> None:
    heard = []

    def interrupt(done: int, total: int) -> None:
        heard.append((done, total))
        if len(heard) == 1:
            signal.raise_signal(signal.SIGINT)

    # So that the time in which progress is told is not over before the signal is heard.
    experiment = small("train.epochs=2000", "train.checkpoint_every=1000")
    with pytest.raises(StoppedError, match=r"training stopped after step [\d,]+ of 14,000"):
        sda.train(experiment, directory, progress=interrupt, workers=2)
    assert heard[0][1] == 14_000
    (checkpoint,) = (directory / "checkpoints").glob("step-*")
    stopped = int(checkpoint.stem[5:])
    assert stopped >= heard[0][0]
    assert not (directory / "model").exists()
    epochs = str(stopped // STEPS_PER_EPOCH + 1)
    fewer = small("train.decay='constant'", f"train.epochs={epochs}")
    allowed = ["train.epochs", "train.decay", "train.checkpoint_every"]
    sda.train(fewer, directory, progress=False, resume=True, may_change=allowed)
    steps = [e["step"] for e in events(directory, "report")]
    assert steps == list(range(3, int(epochs) * STEPS_PER_EPOCH + 1, 3))


@pytest.mark.slow
def test_the_first_worker_is_lost_and_the_rest_is_done_by_others(
    directory: Path, undisturbed: Path, tmp_path: Path
) -> None:
    trouble = group_work.Trouble(tmp_path, kill_after=3, own=True)
    with pytest.warns(UserWarning, match="a hook warns"):
        sda.train(small(), directory, progress=False, workers=2, hooks=[trouble])
    assert (tmp_path / "killed").exists()
    check_same(directory, undisturbed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a hook warns")
def test_any_number_goes_on(directory: Path, undisturbed: Path, tmp_path: Path) -> None:
    for workers, epoch in ((2, 2), (3, 3), (1, 4), (None, 5), (3, 0)):
        options = {"workers": workers, "hooks": [group_work.Trouble(tmp_path, fail_after=epoch)]}
        if epoch:
            with pytest.raises(ZeroDivisionError):
                sda.train(small(), directory, progress=False, **options)
        else:
            model = sda.train(small(), directory, progress=False, **options)
    check_same(directory, undisturbed)
    valid_loss = events(undisturbed, "epoch")[-1]["valid_loss"]
    assert model.provenance["valid_loss"] == pytest.approx(valid_loss, rel=1e-4)


@pytest.mark.slow
def test_all_roll_back(directory: Path) -> None:
    changes = ["train.epochs=24", "train.guards.spike=3.0", "train.checkpoint_every=5"]
    experiment = small(*changes, "train.batch_size=16")
    sda.train(experiment, directory, progress=False, workers=2, cluster=group_work.Collapsing())
    (event,) = events(directory, "rollback")
    assert event["step"] in range(120, 156)
    assert event["from_step"] in range(156, 165)
    steps = [e["step"] for e in events(directory, "epoch")]
    assert steps == list(range(8, 193, 8))


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_to_the_command(directory: Path, to_all: bool) -> None:
    """As Ctrl-C does in a terminal, or a batch system to all processes of a job."""
    longer = ["--set", "train.epochs=2000", "--set", "train.checkpoint_every=1000"]
    command = [
        "train",
        "lorenz63-quick",
        *options(SMALL),
        *longer,
        "--workers=2",
        f"--dir={directory}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "sda_core", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = directory / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if to_all:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    step = re.search(r"training stopped after step ([\d,]+)", stderr)
    assert step, stderr
    wait_for_end_of_all(process.pid)
    newest = CheckpointFolder(directory / "checkpoints", 2).newest()
    assert newest is not None
    assert newest.state["step"] == int(step[1].replace(",", ""))


@pytest.mark.slow
def test_workers_end_with_a_command_that_is_killed(directory: Path) -> None:
    command = [
        "train",
        "lorenz63-quick",
        *options(SMALL),
        "--set",
        "train.epochs=20000",
        "--workers=2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "sda_core", *command, f"--dir={directory}", "--quiet"],
        start_new_session=True,
    )
    while not (directory / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_for_end_of_all(process.pid)
