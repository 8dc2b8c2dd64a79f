"""``sda train``: what it will take, and where it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

import sda_core as sda
from sda_core.cli import main
from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.errors import CheckpointError, ConfigError
from sda_core.stages import preview_training
from sda_core.training import TrainingPreview, newest_run, preview

from .small_runs import COMMON, experiments, options

SMALL = [
    *COMMON,
    "train.epochs=4",
    "train.batch_size=24",
    "train.validate_every=2",
]
small = experiments(SMALL)
OPTIONS = options(SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in runs/first, and in runs/second/seed-1 a newer one."""
    folder = tmp_path_factory.mktemp("folder")
    for name in ("first", "second/seed-1"):
        sda.simulate(small(), folder / "runs" / name, progress=False)
        sda.train(small(), folder / "runs" / name, progress=False)
    return folder


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preview, "ENOUGH_SECONDS", 0.05)


def call(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(["train", *arguments])
    return end.value.code


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("ema", [0.9, None])
def test_preview_counts_what_training_makes(trained: Path, tmp_path: Path, optimizer, ema):
    change = [f"train.optimizer='{optimizer}'", f"train.ema={ema}"]
    experiment = small(*(change if ema else change[:1]))
    if not ema:
        experiment = attrs.evolve(experiment, train=attrs.evolve(experiment.train, ema=None))
    plan = preview_training(experiment, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    weights = load_file(trained / "runs" / "first" / "model" / "model.safetensors")
    count = sum(w.numel() for w in weights.values())
    assert plan.parameters == count
    assert plan.steps == 4 * 2  # 32 trajectories in batches of 24
    assert (plan.epochs, plan.batch_size, plan.device) == (4, 24, "cpu")
    memory = plan.memory
    assert memory["weights"] == memory["gradients"] == plan.model == 4 * count
    moments = 2 if optimizer == "adamw" else 1
    # A count of steps comes with the moments of each tensor.
    assert 0 <= memory["optimizer"] - 4 * moments * count <= 4 * len(weights)
    assert memory.get("average") == (4 * count if ema else None)
    assert plan.data == 4 * 36 * 48 * 3
    assert plan.held_on == "cpu"
    assert plan.checkpoints == 3
    assert plan.seconds > 0


def test_preview_of_a_checkpoint_is_a_checkpoint(trained: Path, tmp_path: Path):
    plan = preview_training(small(), tmp_path)
    for path in (trained / "runs" / "first" / "checkpoints").iterdir():
        assert plan.checkpoint == pytest.approx(path.stat().st_size, rel=0.02)


def test_activations_are_those_of_the_batch(tmp_path: Path):
    """Memory grows with the batch, window by window, and a batch in parts needs that of a part."""
    step = {}
    for batch, parts in ((8, 1), (16, 1), (32, 1), (32, 4)):
        change = [f"train.batch_size={batch}", f"train.accumulate={parts}"]
        step[batch, parts] = preview_training(small(*change), tmp_path).memory["activations"]
    one, two, four = step[8, 1], step[16, 1], step[32, 1]
    assert four - two == pytest.approx(2 * (two - one), rel=0.05)
    assert one < step[32, 4] < four / 2


def test_preview_says_where_the_data_will_be(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size = 4 * 36 * 48 * 3
    for available, held_on in ((2 * size, "cpu"), (2 * size - 1, None)):
        monkeypatch.setattr(preview, "available_memory", lambda p, n=available: n)
        plan = preview_training(small(), tmp_path)
        assert plan.held_on == held_on
    assert "window by window" in str(plan)


def test_preview_in_words():
    plan = TrainingPreview(
        parameters=22_874_922,
        epochs=4096,
        steps=106_496,
        batch_size=32,
        device="cuda",
        memory={"weights": 3 * 2**30, "activations": 2**30},
        data=2**31,
        held_on="cuda",
        checkpoint=2**29,
        checkpoints=3,
        model=2**29,
        disk=2**35,
        seconds=7200,
        compiled=True,
    )
    assert str(plan).splitlines() == [
        "network: 22,874,922 weights",
        "steps: 106,496 of 32 windows, in 4,096 epochs",
        "memory: 4.0 GiB on cuda (weights 3.0 GiB, activations 1.0 GiB)",
        "data: 2.0 GiB, held in the memory of cuda",
        "disk: 2.0 GiB (3 checkpoints of 512 MiB, model 512 MiB); 32.0 GiB are free",
        "time: about 2 h on cuda, and what the compilation takes",
    ]


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert call("lorenz63-quick", *OPTIONS, "--dry-run", "--dir", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "network",
        "steps",
        "memory",
        "data",
        "disk",
        "time",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_random_windows_stand_for_those_of_data(trained: Path):
    """As many, in the same parts, as a data set gives."""
    store = TrajectoryStore(trained / "runs" / "first" / "data" / "train.h5")
    real = WindowDataset(store, 9)
    stand_in = preview._RandomWindows(len(real), 9, store.spec, torch.device("cpu"))
    g = torch.Generator()
    for arguments in ((g, 24), (g, 24, 3), (g, 24, 3, 2), (g, 32), (g, 100)):
        shapes = [batch.shape for batch in real.epoch(*arguments)]
        assert [batch.shape for batch in stand_in.epoch(*arguments)] == shapes


def test_newest_run(tmp_path: Path):
    for age, name in enumerate(["a/b/c/d", ".hidden", "a/b/c", "a", "a/b"]):
        path = tmp_path / name / "checkpoints" / "step-00000001.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert newest_run(tmp_path) == tmp_path / "a" / "b" / "c"
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/d, in 3 levels of folders"):
        newest_run(tmp_path / "a" / "b" / "c" / "d")


def test_resume_finds_the_newest(trained: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(trained)
    allowed = ["--set", "train.epochs=6", "--may-change", "train.epochs"]
    assert call("--resume", *allowed[:2]) == 2
    error = capsys.readouterr().err
    assert "train.epochs (4 there, 6 asked for)" in error
    assert "--may-change train.epochs" in error
    assert call("--resume", *allowed) == 0
    output = capsys.readouterr()
    assert output.err.startswith("resuming runs/second/seed-1\n")
    assert output.out.startswith("model: runs/second/seed-1/model, validation loss ")
    assert sda.load_experiment("runs/second/seed-1").train.epochs == 6
    assert sda.load_experiment("runs/first").train.epochs == 4
    # Of a run that is named, its own.
    assert call("runs/first", "--resume", "-q") == 0
    assert call("--resume", "-q", "--dir", "runs/first") == 0
    assert capsys.readouterr().err == ""


def test_resume_must_have_something_to_go_on_from(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("--resume") == 2
    assert "there is no checkpoint in runs" in capsys.readouterr().err
    assert call() == 2
    assert "error: train what? Give a preset" in capsys.readouterr().err
    assert call("--resume", "--seeds", "0") == 2
    assert "error: train what? Give a preset" in capsys.readouterr().err


def test_members_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert call("lorenz63-quick", *OPTIONS, "-q", "--seeds", "3,0", "--dir", str(tmp_path)) == 0
    head, *rows = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    assert [cell.strip() for cell in head if cell] == [
        "seed",
        "steps",
        "validation loss",
        "best epoch",
        "minutes",
    ]
    assert [row[0].strip() for row in rows] == ["3", "0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--dry-run"], "--resume and --dry-run cannot be combined"),
        (["--seeds", "0", "--quick"], "--seeds and --quick cannot be combined: give one"),
        (["--seeds", "0", "--detect-anomaly"], "--detect-anomaly and --seeds cannot be combined"),
        (["--may-change", "train.xyz", "--dry-run"], "--may-change and --dry-run cannot be comb"),
        (["--may-change", "train", "--quick"], "--may-change and --quick cannot be combined"),
        (["--jobs", "2"], "--jobs is for ensembles"),
        (["--seeds", "0,0"], "0 given more than once"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("lorenz63-quick", *OPTIONS, *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_quick_run_has_no_scores_to_print(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "lorenz63-quick", "--quick", "--json", "--dir", str(tmp_path)])
    assert end.value.code == 2
    assert "--quick and --json cannot be combined: give one of them" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_anomalies_can_be_looked_for(trained: Path, tmp_path: Path, capsys):
    (tmp_path / "data").symlink_to(trained / "runs" / "first" / "data")
    options = ["-q", "--detect-anomaly", "--set", "kernel.width=8"]
    assert call("lorenz63-quick", *OPTIONS, *options, "--dir", str(tmp_path)) == 0
    assert (tmp_path / "model" / "model.json").is_file()


def test_preview_needs_a_kernel(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no \[kernel\] table, which training needs"):
        preview_training(sda.load_experiment("noisy-lorenz63"), tmp_path)
