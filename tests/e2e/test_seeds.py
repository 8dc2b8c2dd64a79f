"""Ensembles of trainings: one data set, several seeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sda_core as sda
from sda_core.errors import CheckpointError, ConfigError, DataError, StoppedError, TrainingError
from sda_core.experiment import Run
from sda_core.io.files import file_lock
from sda_core.stages import parse_seeds, seeds, train_seeds

from .small_runs import COMMON, experiments, options

SMALL = [
    *COMMON,
    "train.epochs=4",
    "train.batch_size=16",
    "train.validate_every=2",
    "sampler.steps=4",
    "assimilate.members=2",
    "assimilate.length=17",
]
small = experiments(SMALL)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def are_equal(a: Path, b: Path) -> bool:
    other = weights(b)
    return all(torch.equal(x, other[name]) for name, x in weights(a).items())


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ensemble")
    train_seeds(small(), directory, (1, 5), progress=False)
    return directory


def test_members_share_data_and_nothing_else(ensemble: Path, tmp_path: Path):
    one, five = ensemble / "seed-1", ensemble / "seed-5"
    assert os.readlink(one / "data") == "../data"
    assert (one / "data" / "train.h5").samefile(five / "data" / "train.h5")
    assert not any(torch.equal(x, weights(five)[name]) for name, x in weights(one).items())
    # A member is the run of its own that it would be alone.
    alone = small("train.seed=5")
    sda.simulate(alone, tmp_path, progress=False)
    sda.train(alone, tmp_path, progress=False)
    assert are_equal(tmp_path, five)
    assert sda.load_experiment(five).train.seed == 5
    x = sda.assimilate(sda.load_experiment(five), five, progress=False)
    assert x.shape == (2, 17, 3)


def test_in_parallel_is_one_after_another(ensemble: Path, tmp_path: Path):
    told = []
    members = train_seeds(small(), tmp_path, (1, 5), jobs=2, progress=lambda *now: told.append(now))
    for seed, member in members.items():
        assert member.directory == tmp_path / f"seed-{seed}"
        assert are_equal(member.directory, ensemble / f"seed-{seed}")
    assert told[-1] == (16, 16)
    assert (members[1].steps, members[5].steps) == (8, 8)
    assert members[1] == seeds.Member.of(Run(small(), tmp_path / "seed-1"))
    assert members[1].seconds > 0
    assert members[1].best_epoch in (2, 4)
    # What is finished is not trained again.
    before = (tmp_path / "seed-1" / "metrics.jsonl").stat().st_mtime_ns
    again = train_seeds(small(), tmp_path, (1, 2), jobs=2, progress=False, resume=True)
    assert list(again) == [1, 2]
    assert (tmp_path / "seed-1" / "metrics.jsonl").stat().st_mtime_ns == before


def test_members_may_be_trained_for_longer(tmp_path: Path):
    train_seeds(small(), tmp_path, (1,), progress=False)
    longer = small("train.epochs=6")
    with pytest.raises(TrainingError, match=r"train\.epochs \(4 there, 6 asked for\)"):
        train_seeds(longer, tmp_path, (1,), progress=False)
    allowed = ["train.epochs"]
    members = train_seeds(longer, tmp_path, (1,), progress=False, may_change=allowed)
    assert members[1].steps == 12


def test_a_member_that_fails_stops_no_other(tmp_path: Path):
    good, bad = tmp_path / "seed-1", tmp_path / "seed-2"
    train_seeds(small(), tmp_path, (1,), progress=False)
    other = small("train.seed=2", "train.learning_rate=0.1")
    bad.mkdir()
    (bad / "data").symlink_to("../data")
    sda.train(other, bad, progress=False)
    longer, allowed = small("train.epochs=6"), ["train.epochs"]
    with pytest.raises(TrainingError) as caught:
        train_seeds(longer, tmp_path, (1, 2), jobs=2, progress=False, may_change=allowed)
    text = str(caught.value)
    assert "1 of 2 trainings failed, of the seeds 2; the others are done" in text
    assert f"see {bad / 'train.log'}" in text
    assert "train.learning_rate (0.1 there, 0.002 asked for)" in text
    assert seeds.Member.of(Run(longer, good)).steps == 12
    # A training that is refused changes nothing.
    assert sda.load_experiment(bad).train.learning_rate == 0.1


@pytest.mark.parametrize("failure", [TrainingError, CheckpointError, DataError])
def test_one_after_another_goes_on_after_a_failure(failure, tmp_path: Path, monkeypatch):
    trained = []

    def train(experiment, directory, **options):
        if experiment.train.seed == 1:
            raise failure("it is bad")
        trained.append(directory.name)

    monkeypatch.setattr(seeds, "train", train)
    with pytest.raises(TrainingError, match=r"the seeds 1; the others are done\nseed 1: it is bad"):
        train_seeds(small(), tmp_path, (1, 2), progress=False)
    assert trained == ["seed-2"]


def test_one_after_another_stops_when_asked(tmp_path: Path, monkeypatch):
    def train(*arguments, **options):
        raise StoppedError("stopped at step 3")

    monkeypatch.setattr(seeds, "train", train)
    with pytest.raises(StoppedError, match="stopped at step 3"):
        train_seeds(small(), tmp_path, (1, 2), progress=False)


def start(directory: Path, *changes: str) -> subprocess.Popen[str]:
    """Start to train the seeds 0 and 1 in parallel, until both have a checkpoint."""
    command = [
        sys.executable,
        "-m",
        "sda_core",
        "train",
        "lorenz63-quick",
        "--quiet",
        *options([*SMALL, *changes]),
    ]
    command += ["--dir", str(directory), "--seeds", "0-1", "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not all((directory / f"seed-{seed}" / "checkpoints").is_dir() for seed in (0, 1)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_members_stop_when_their_parent_is_killed(tmp_path: Path):
    """Their directories are free again at once, with whole checkpoints."""
    with start(tmp_path, "train.epochs=1000", "train.checkpoint_every=1") as process:
        process.kill()
    deadline = time.monotonic() + 60
    for seed in (0, 1):
        run = Run(small(), tmp_path / f"seed-{seed}")
        while True:
            with suppress(TrainingError), file_lock(run.directory / ".training.lock", "training"):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert run.checkpoints.newest() is not None


@pytest.mark.slow
def test_stopped_trainings_go_on_bit_for_bit(tmp_path: Path):
    changes = ["train.epochs=80", "train.checkpoint_every=1", "train.validate_every=80"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = start(broken, *changes)
    folders = [broken / f"seed-{seed}" for seed in (0, 1)]
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "training stopped with " in stderr
    assert "the same command resumes from their checkpoints" in stderr
    left = [folder for folder in folders if not (folder / "model").exists()]
    assert left  # on a busy machine one may have ended before the other's first checkpoint
    for folder in left:  # they were asked to stop, and did so of themselves
        assert "training stopped after step" in (folder / "train.log").read_text()
    experiment = small(*changes)
    train_seeds(experiment, broken, (0, 1), progress=False, resume=True)
    train_seeds(experiment, whole, (0, 1), progress=False)
    assert all(are_equal(folder, whole / folder.name) for folder in folders)


def test_what_cannot_be_done(tmp_path: Path):
    with pytest.raises(ConfigError, match="--jobs 0"):
        train_seeds(small(), tmp_path, (0,), jobs=0)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/seed-\*"):
        train_seeds(small(), tmp_path, (0,), resume=True)
    with pytest.raises(ConfigError, match=r"no \[kernel\] table"):
        train_seeds(sda.load_experiment("noisy-lorenz63"), tmp_path, (0,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [("0,1,2", (0, 1, 2)), ("0-2", (0, 1, 2)), ("7", (7,)), (" 3, 5-6", (3, 5, 6))],
)
def test_seeds_as_text(text, found):
    assert parse_seeds(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither a number from 0 on nor a range"),
        ("0,,1", "'' is neither"),
        ("0,x", "'x' is neither a number from 0 on nor a range of them: give for example 0,1,2"),
        ("-1", "'-1' is neither"),
        ("1.5", "'1.5' is neither"),
        ("2-0", "'2-0' is neither"),
        ("0,1-3,2,0", "0, 2 given more than once"),
    ],
)
def test_seeds_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_seeds(text)
