"""A few batches of everything."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import sda_core as sda
from sda_core.cli import main
from sda_core.errors import SDAError
from sda_core.plugins import default_manager, hookimpl
from sda_core.stages import quick

from .small_runs import COMMON, experiments, options

SMALL = [
    *COMMON,
    "train.batch_size=16",
    "sampler.corrections=0",
    "assimilate.length=17",
]
small = experiments(SMALL)


class Observer:
    """A plugin that sees what is done."""

    sda_interface = 1

    def __init__(self) -> None:
        self.runs: list[tuple[str, sda.Experiment]] = []
        self.epochs: list[dict] = []

    @hookimpl
    def sda_run_started(self, run, stage):
        self.runs.append((stage, run.experiment))

    @hookimpl
    def sda_epoch_ended(self, metrics):
        self.epochs.append(metrics)


@pytest.fixture(scope="module")
def registered() -> Observer:
    plugin = Observer()
    default_manager().register(plugin, "observer-of-quick")
    return plugin


@pytest.fixture
def observer(registered: Observer) -> Observer:
    registered.__init__()
    return registered


def words(experiment: sda.Experiment, directory: Path) -> list[str]:
    stages = list(quick(experiment, directory, progress=False))
    assert all(stage.seconds > 0 and stage.memory > 2**20 for stage in stages)
    return [stage.what for stage in stages]


def test_every_stage_is_tried_in_small(tmp_path: Path, observer: Observer):
    directory = tmp_path / "runs" / "new"
    experiment = small("train.sample_every=64", "train.ema=0.9", "train.accumulate=2")
    assert words(experiment, directory) == [
        # 32 windows to train on, 16 trajectories to validate with, one to assimilate.
        "simulated 49 trajectories of 13 states",
        "trained on 2 batches of 16 windows, validated, wrote a checkpoint",
        "resumed from the checkpoint, trained on 2 batches of 16 windows",
        "sampled 2 trajectories of 13 states",
        "assimilated 13 states with 2 members",
        "evaluated them, wrote the report",
    ]
    assert not directory.exists()
    stages = [stage for stage, _ in observer.runs]
    assert stages == ["simulate", "train", "train", "sample", "assimilate", "evaluate"]
    assert [(m["epoch"], m["step"]) for m in observer.epochs] == [(1, 2), (2, 4)]
    assert all(m["valid_loss"] is not None for m in observer.epochs)
    # What is tried is the network that is asked for, with its batches.
    _, tried = observer.runs[-1]
    for name in ("system", "kernel", "schedule", "model", "observation", "guidance"):
        assert getattr(tried, name) is getattr(experiment, name)
    for name in ("batch_size", "accumulate", "ema", "precision", "learning_rate", "guards"):
        assert getattr(tried.train, name) == getattr(experiment.train, name)
    assert tried.sampler.steps == 3
    assert tried.evaluate.reference.particles == 64


def test_data_that_are_there_are_used(tmp_path: Path):
    experiment = small("train.batch_size=64")
    sda.simulate(experiment, tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    first, second, *_ = words(experiment, tmp_path)
    assert first == f"took 37 trajectories of 48 states from {tmp_path / 'data'}"
    assert second.startswith("trained on 2 batches of 64 windows")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_only_what_there_are_tables_for(tmp_path: Path):
    network = ["kernel={name='mlp', width=8}", "schedule={name='vp'}", "train.batch_size=4"]
    training = sda.load_experiment("noisy-lorenz63", network)
    assert [what.split()[0] for what in words(training, tmp_path)] == [
        "simulated",
        "trained",
        "resumed",
    ]
    baseline = attrs.evolve(small("method={name='interpolation'}"), sample=None)
    assert [what.split()[0] for what in words(baseline, tmp_path)] == [
        "simulated",
        "assimilated",
        "evaluated",
    ]


def test_trajectories_are_long_enough_to_be_observed(tmp_path: Path):
    later = "observation={name='select', offset=14, every=99, std=1.0}"
    assert "assimilated 15 states with 2 members" in words(small(later), tmp_path)


def test_a_failure_keeps_what_was_made(tmp_path: Path):
    # Found where it would be found after the training.
    broken = small("guidance.gamma=1e-30", "observation.std=1e-30", "evaluate={}")
    with pytest.raises(SDAError, match="the quick run failed as it assimilated 13 states") as found:
        words(broken, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert str(found.value).endswith(f"what was made is kept in {kept}")
    assert (kept / "model" / "model.json").is_file()


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def build(kernel, shape):
        raise ZeroDivisionError("in the kernel")

    monkeypatch.setattr(type(small().kernel), "build", build)
    with pytest.raises(ZeroDivisionError, match="in the kernel") as caught:
        words(small(), tmp_path)
    (kept,) = tmp_path.iterdir()
    (note,) = caught.value.__notes__
    assert note.startswith("The quick run got this as it trained on 2 batches")
    assert note.endswith(str(kept))


@pytest.mark.parametrize("command", ["train", "run"])
def test_the_command(command: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main([command, "lorenz63-quick", "-q", "--quick", "--dir", str(tmp_path), *options(SMALL)])
    assert end.value.code == 0
    *stages, last = capsys.readouterr().out.splitlines()
    assert len(stages) == 6
    assert all(line.endswith(("MiB", "GiB")) and " s " in line for line in stages)
    assert last == "everything works"


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [
        "lorenz63-quick",
        "lorenz63-rozet2023",
        "lorenz96-sakov2008",
        "kolmogorov-small",
        "kolmogorov-rozet2023",
    ],
)
def test_presets(preset: str, tmp_path: Path):
    assert words(sda.load_experiment(preset), tmp_path)[-1] == "evaluated them, wrote the report"
