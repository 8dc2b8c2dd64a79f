"""The training stage: stopped, killed, resumed, guarded, ended early."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

import sda_core as sda
from sda_core.data import WindowDataset
from sda_core.errors import (
    CheckpointError,
    ConfigError,
    PluginWarning,
    StoppedError,
    TrainingError,
)
from sda_core.experiment import Run
from sda_core.io.files import file_lock
from sda_core.model import TrainedModel
from sda_core.plugins import PluginManager, hookimpl
from sda_core.stages.common import load_model
from sda_core.training import Trainer

from .small_runs import COMMON, experiments, options

SMALL = [
    *COMMON,
    "train.epochs=6",
    "train.windows_per_trajectory=4",
    "train.batch_size=16",
    "train.validate_every=2",
    "train.checkpoint_every=1",
    "train.report_every=5",
    "sampler.steps=4",
    "sample.members=2",
    "sample.length=9",
]
small = experiments(SMALL)
STEPS_PER_EPOCH = 8


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    sda.simulate(small(), tmp_path / "run", progress=False)
    return tmp_path / "run"


def events(directory: Path, name: str | None = None) -> list[dict]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if name in (None, event["event"])]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    sda.simulate(small(), directory, progress=False)
    sda.train(small(), directory, progress=False)
    return directory


def test_what_is_written(undisturbed: Path) -> None:
    reports, epochs = events(undisturbed, "report"), events(undisturbed, "epoch")
    assert [e["step"] for e in reports] == list(range(5, 6 * STEPS_PER_EPOCH, 5))
    assert [e["step"] for e in epochs] == [STEPS_PER_EPOCH * i for i in range(1, 7)]
    assert ["valid_loss" in e for e in epochs] == [False, True] * 3
    assert {"loss", "loss_t0", "loss_t7", "grad_norm", "learning_rate", "utilization"} <= set(
        reports[0]
    )
    history = json.loads((undisturbed / "history.json").read_text())
    assert history["loss"] == [e["loss"] for e in epochs]
    assert history["valid_loss"] == [e.get("valid_loss") for e in epochs]
    names = {path.name for path in (undisturbed / "checkpoints").iterdir()}
    assert names == {"step-00000040.safetensors", "step-00000048.safetensors", "best.safetensors"}


@pytest.mark.slow
def test_killed_at_random_moments(request: pytest.FixtureRequest) -> None:
    script = Path(__file__).with_name("kill_training.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 kills survived")


@pytest.mark.slow
def test_killed_a_hundred_times() -> None:
    script = Path(__file__).with_name("kill_training.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "100", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"(\d+) of them in the middle of writing", done.stdout)[1]) >= 10


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_stops_after_the_step(directory: Path, undisturbed: Path, number) -> None:
    command = [sys.executable, "-m", "sda_core", "train", "lorenz63-quick", *options(SMALL)]
    # Slow enough to be stopped on the way, and nothing is due to be written but what a stop writes.
    slow = "import time, torch; from sda_core.training import Trainer; old = Trainer._train_on\n"
    slow += "def step(*a): time.sleep(0.1); open('started', 'w'); old(*a)\n"
    slow += "Trainer._train_on = step; from sda_core.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command[3:], "--dir", str(directory)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
    )
    while not (directory / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == 130
    (step,) = map(int, re.findall(r"training stopped after step (\d+) of 48", stderr))
    assert "training stopped after step" in stderr
    assert not (directory / "model").exists()
    assert [p.name for p in (directory / "checkpoints").iterdir()] == [
        f"step-{step:08d}.safetensors"
    ]
    assert step % STEPS_PER_EPOCH  # in mid-epoch
    sda.train(small(), directory, progress=False, resume=True)
    assert same(directory, undisturbed)


def test_one_training_at_a_time(directory: Path) -> None:
    with (
        file_lock(directory / ".training.lock", "training"),
        pytest.raises(TrainingError, match=r"another training \(process \d+ on .*is running in"),
    ):
        sda.train(small(), directory, progress=False)
    sda.train(small("train.epochs=1"), directory, progress=False)


def test_resume_wants_a_checkpoint_of_the_same_configuration(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .* without --resume"):
        sda.train(small(), directory, progress=False, resume=True)
    sda.train(small("train.epochs=2"), directory, progress=False)
    changed = small("train.epochs=4", "train.learning_rate=1e-3")
    with pytest.raises(
        CheckpointError,
        match=r"train\.epochs \(2 there, 4 asked for\), train\.learning_rate \(0\.002 there",
    ):
        sda.train(changed, directory, progress=False, resume=True)
    with pytest.raises(CheckpointError, match=r"train\.learning_rate"):
        sda.train(changed, directory, progress=False, may_change=["train.epochs"])
    sda.train(
        changed, directory, progress=False, may_change=["train.epochs", "train.learning_rate"]
    )
    assert [e["step"] for e in events(directory, "epoch")] == [8, 16, 24, 32]
    assert Run(changed, directory).is_done("train")
    # What changes no result may always differ.
    more = small("train.epochs=4", "train.learning_rate=1e-3", "train.report_every=3")
    sda.train(more, directory, progress=False, resume=True)


def test_a_damaged_checkpoint_is_passed_over(
    directory: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 20)
    with pytest.raises(StoppedError):
        sda.train(small(), directory, progress=False)
    monkeypatch.undo()
    newest = directory / "checkpoints" / "step-00000020.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=r"step-00000020.* is damaged .*using step-00000016"):
        sda.train(small(), directory, progress=False)
    assert same(directory, undisturbed)
    assert [e["step"] for e in events(directory, "report")] == list(range(5, 48, 5))


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask for a stop, as a signal does, after a step."""
    train_on = Trainer._train_on

    def last(trainer, x):
        train_on(trainer, x)
        if trainer.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_on", last)


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the batches of some steps hold a value that is not finite."""
    train_on = Trainer._train_on

    def spoilt(trainer, x):
        if trainer.step + 1 in steps:
            x = x.clone()
            x[0, 0, 0] = math.nan
        train_on(trainer, x)

    monkeypatch.setattr(Trainer, "_train_on", spoilt)


def test_skipped_batches_are_recorded(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 11)
    sda.train(small(), directory)
    (event,) = events(directory, "skipped")
    assert (event["epoch"], event["step"], event["batch"]) == (1, 11, 2)
    assert event["summary"]["input"]["not_finite"] == 1
    assert "skipped a batch that is not finite, at step 11" in capsys.readouterr().err
    assert [e["skipped"] for e in events(directory, "epoch")] == [0, 1, 0, 0, 0, 0]
    assert all(torch.isfinite(v).all() for v in weights(directory).values())


def test_too_many_skipped_batches_stop_at_the_last_good_checkpoint(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, *range(19, 48))
    with pytest.raises(
        TrainingError,
        match=r"4 of the last 22 batches .*The last good checkpoint is .*step-00000016.* step 16",
    ):
        sda.train(small("train.guards.skip_limit=3"), directory, progress=False)
    assert len(events(directory, "skipped")) == 4
    assert not (directory / "model").exists()
    monkeypatch.undo()
    sda.train(small("train.guards.skip_limit=3"), directory, progress=False)
    assert events(directory, "skipped") == []  # their steps were done again


def test_weights_that_are_not_finite_are_never_saved(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_on = Trainer._train_on

    def overflow(trainer, x):
        train_on(trainer, x)
        if trainer.step + 1 == 20:
            with torch.no_grad():
                next(trainer.averaged.parameters()).view(-1)[0] = math.inf

    monkeypatch.setattr(Trainer, "_train_on", overflow)
    with pytest.raises(TrainingError, match=r"weights are not finite after step 24.*of step 16"):
        sda.train(small(), directory, progress=False)


def test_a_spike_rolls_back(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_on = Trainer._train_on

    def collapse(trainer, x):
        if trainer.step + 1 == 156 and trainer.guards.rollbacks == 0:
            with torch.no_grad():
                for p in trainer.denoiser.parameters():
                    p.mul_(10)
        train_on(trainer, x)

    monkeypatch.setattr(Trainer, "_train_on", collapse)
    experiment = small("train.epochs=24", "train.guards.spike=3.0", "train.checkpoint_every=5")
    sda.train(experiment, directory, progress=False)
    (event,) = events(directory, "rollback")
    assert event["loss"] > 3 * event["median"]
    assert event["step"] in range(120, 156)
    assert event["from_step"] in range(156, 165)
    assert event["slow_down"] == 0.5
    for name in ("report", "epoch"):
        steps = [e["step"] for e in events(directory, name)]
        assert steps == sorted(set(steps))
    last = events(directory, "epoch")[-1]
    whole = 2e-3 * experiment.train.learning_rate_at(191, 192)
    assert last["learning_rate"] == pytest.approx(0.5 * whole)
    newest = Run(experiment, directory).checkpoints.newest()
    assert newest.state["rollbacks"] == 1


def test_no_roll_back_into_the_rise(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_on = Trainer._train_on

    def collapse(trainer, x):
        if trainer.step + 1 == 146 and trainer.guards.rollbacks == 0:
            with torch.no_grad():
                for p in trainer.denoiser.parameters():
                    p.mul_(10)
        train_on(trainer, x)

    monkeypatch.setattr(Trainer, "_train_on", collapse)
    # Checkpoints at almost every step: most of the newest are of the collapse.
    settings = ["train.checkpoint_minutes=1e-6", "train.keep=4", "train.guards.spike=3.0"]
    experiment = small("train.epochs=24", *settings, "train.validate_every=1")
    try:
        sda.train(experiment, directory, progress=False)
    except TrainingError as error:
        assert "there is no checkpoint from before step" in str(error)  # noqa: PT017
        return
    (event,) = events(directory, "rollback")
    assert event["step"] <= 145
    assert event["step"] <= event["since"] < event["from_step"]


def test_patience_and_the_best_weights(directory: Path) -> None:
    # With so high a rate the validation loss does not fall for long.
    changes = ["train.learning_rate=0.3", "train.clip_norm=1e3", "train.patience=2"]
    experiment = small(*changes, "train.epochs=60", "train.validate_every=1", "train.final=best")
    model = sda.train(experiment, directory, progress=False)
    validated = [e["valid_loss"] for e in events(directory, "epoch")]
    best = min(range(len(validated)), key=validated.__getitem__)
    assert len(validated) == best + 1 + 2 < 60
    assert model.provenance["valid_loss"] == validated[best]
    saved = Run(experiment, directory).checkpoints.best()
    assert saved.state["epoch"] == best + 1
    for name, value in weights(directory).items():
        assert torch.equal(value, saved.tensors[f"ema.{name}"])
    before = len(events(directory))
    (directory / "history.json").unlink()
    sda.train(experiment, directory, progress=False)  # it has ended, and stays so
    assert len(events(directory, "epoch")) == len(validated)
    assert len(events(directory)) == before + 1
    assert len(json.loads((directory / "history.json").read_text())["loss"]) == len(validated)
    # A damaged best checkpoint costs a warning, and not the model.
    best_file = directory / "checkpoints" / "best.safetensors"
    best_file.unlink()
    best_file.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="The model has the last weights instead"):
        model = sda.train(experiment, directory, progress=False)
    assert model.provenance["valid_loss"] == validated[-1]
    # With other settings it goes on.
    more = attrs.evolve(experiment, train=attrs.evolve(experiment.train, patience=4))
    with pytest.warns(UserWarning, match="damaged"):
        sda.train(more, directory, progress=False, may_change=["train.patience"])
    assert len(events(directory, "epoch")) > len(validated)


def test_the_configuration_to_resume_with_is_there_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = small("train.epochs=5", "train.report_every=2", "train.learning_rate=1e-3")
    stop_after(monkeypatch, 20)
    with pytest.raises(StoppedError):
        sda.train(changed, directory, progress=False)
    monkeypatch.undo()
    again = sda.load_experiment(directory)
    assert (again.train.epochs, again.train.report_every, again.train.learning_rate) == (5, 2, 1e-3)
    sda.train(again, directory, progress=False, resume=True)
    assert [e["step"] for e in events(directory, "epoch")] == [8, 16, 24, 32, 40]


def test_other_data_are_refused(directory: Path) -> None:
    sda.train(small("train.epochs=2"), directory, progress=False)
    newest = Run(small(), directory).checkpoints.newest()
    assert newest.settings["data_id"]
    other = {**newest.settings, "data_id": "other"}
    Run(small(), directory).checkpoints.write(newest.tensors, newest.state, other)
    with pytest.raises(CheckpointError, match=r"data_id \(other there"):
        sda.train(small("train.epochs=2"), directory, progress=False)


class Broken:
    """A plugin whose hooks fail, each where it is told to."""

    sda_interface = 1

    def __init__(self, where: str) -> None:
        self.where = where

    @hookimpl
    def sda_diagnostics(self, stage):
        if self.where == "diagnostics":
            raise ZeroDivisionError(stage)
        return {}

    @hookimpl
    def sda_epoch_ended(self, metrics):
        if self.where == "epoch" and metrics["epoch"] == 3:
            raise ZeroDivisionError("at epoch 3")


def with_broken(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    manager = PluginManager()
    manager.register(Broken(where), "broken")
    monkeypatch.setattr("sda_core.experiment.run.default_manager", lambda: manager)


def test_diagnostics_that_fail_end_no_training(
    directory: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_broken(monkeypatch, "diagnostics")
    with pytest.warns(
        UserWarning,
        match=r"sda_diagnostics of plugin broken.*failed.*ZeroDivisionError",
    ):
        sda.train(small(), directory, progress=False)
    assert same(directory, undisturbed)
    assert "param_norm" in events(directory, "report")[0]  # the others' are there


def test_a_plugin_that_fails_is_left_out(
    directory: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_broken(monkeypatch, "epoch")
    with pytest.warns(PluginWarning, match=r"sda_epoch_ended of plugin broken.*at epoch 3"):
        sda.train(small(), directory, progress=False)
    assert same(directory, undisturbed)


def test_a_hook_of_the_caller_that_fails_loses_nothing(directory: Path, undisturbed: Path) -> None:
    changes = small("train.checkpoint_every=6")
    with pytest.raises(ZeroDivisionError):
        sda.train(changes, directory, progress=False, hooks=[Broken("epoch")])
    assert Run(small(), directory).checkpoints.newest().state["epoch"] == 3
    sda.train(small(), directory, progress=False)
    assert same(directory, undisturbed)


def test_a_learning_curve_that_cannot_be_drawn_costs_no_model(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory):
        raise OSError("no space left")

    monkeypatch.setattr("sda_core.figures.write_learning_curve", fail)
    with pytest.warns(UserWarning, match="learning curve cannot be drawn: no space left"):
        sda.train(small("train.epochs=1"), directory, progress=False)
    assert weights(directory)


def test_records_are_json_for_everyone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, *range(1, 9))
    sda.train(small("train.epochs=2"), directory, progress=False)
    check_json(directory)
    assert events(directory, "epoch")[0]["loss"] is None


def check_json(directory: Path) -> None:
    """All records are JSON, in which NaN and Infinity are none."""
    whole = [path.read_text() for path in directory.glob("**/*.json")]
    for text in [*whole, *(directory / "metrics.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=pytest.fail)


def test_samples_on_the_way(directory: Path, undisturbed: Path) -> None:
    sda.train(small("train.sample_every=3"), directory, progress=False)
    assert same(directory, undisturbed)  # they change nothing
    without = attrs.evolve(small("train.sample_every=3"), sample=None)
    with pytest.raises(ConfigError, match=r"no \[sample\] table, which train\.sample_every needs"):
        sda.train(without, directory, progress=False)


def test_training_and_inference_share_one_standardization(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    init = WindowDataset.__init__

    def record(self, *arguments, **more):
        init(self, *arguments, **more)
        made.append(self.standardization)

    create = TrainedModel.create

    def other(*arguments):
        model = create(*arguments)
        return attrs.evolve(model, spec=attrs.evolve(model.spec, mean=(1, 2, 3), std=(4, 5, 6)))

    monkeypatch.setattr(WindowDataset, "__init__", record)
    monkeypatch.setattr(WindowDataset, "check", lambda self: None)
    monkeypatch.setattr(TrainedModel, "create", other)
    sda.train(small("train.epochs=1"), directory, progress=False)
    monkeypatch.undo()
    assert len(made) == 2
    for given in (*made, load_model(Run(small(), directory)).standardization):
        assert given.mean.tolist() == [1, 2, 3]
        assert given.std.tolist() == [4, 5, 6]


def test_anomalies(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 11)
    with (
        pytest.warns(UserWarning, match="Anomaly Detection"),
        pytest.raises(TrainingError, match=r"module kernel\.\S+ .*1 of \d+ not finite"),
    ):
        sda.train(small(), directory, progress=False, detect_anomaly=True)


@pytest.mark.parametrize(
    "change", ["train.learning_rate=1e30", "train.weight_decay=1e30", "schedule.sigma_min=1e-6"]
)
def test_a_training_that_ends_in_nan_is_no_success(directory: Path, change: str) -> None:
    """Fewer batches than train.guards.skip_limit are bad, so that only the end can notice."""
    quick = small("train.epochs=1", "train.guards.skip_limit=100", change)
    if change.startswith("schedule"):  # unusual, but it trains
        assert math.isfinite(sda.train(quick, directory, progress=False).provenance["valid_loss"])
    else:
        with pytest.raises(TrainingError, match="not finite"):
            sda.train(quick, directory, progress=False)
        assert not (directory / "model").exists()
        assert not Run(quick, directory).is_done("train")
    check_json(directory)
