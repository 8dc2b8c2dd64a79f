"""What can be known beforehand is said before the first stage of a run, and within a second."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import sda_core as sda
from sda_core import stages
from sda_core.cli import main
from sda_core.errors import SDAError

HUGE = 2**31 - 1


def load_and_run(directory: Path, *overrides: str) -> dict[str, dict[str, float]]:
    experiment = sda.load_experiment("lorenz63-quick", overrides)
    return stages.run(experiment, directory, progress=False)


def refused(tmp_path: Path, *overrides: str) -> str:
    """What a run says to an experiment, before it does anything."""
    with pytest.raises(SDAError) as error:
        load_and_run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("observation.std=[0.1, 0.2]", "std"),
        ("observation.variables=['w']", "'w'"),
        ('observation={name="linear", matrix=[[1, 0]], std=0.1}', "matrix"),
        ('observation={name="function", target="torch:isnan", std=0.1}', "torch:isnan"),
        ('observation={name="function", target="no_such:thing", std=0.1}', "no_such"),
        ("observation=none", "observation"),
        ("sampler=none", "sampler"),
        ("guidance=none", "guidance"),
        ("kernel=none", "kernel"),
        ("schedule=none", "schedule"),
        ("method=none", "method"),
        ("model.window=2000", "model.window = 2000"),
        ("assimilate.length=100000", "assimilate.length = 100000"),
        ("assimilate.trajectory=100000", "assimilate.trajectory = 100000"),
        ("assimilate.start=100000", "assimilate.start"),
        ('assimilate.observations.file="nowhere.csv"', "nowhere.csv"),
        ("model.pretrained=nowhere", "nowhere"),
    ],
)
def test_before_the_first_stage(tmp_path: Path, override: str, told: str) -> None:
    assert told in refused(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.trajectories=1000000000", "data.trajectories = 1000000000"),
        (f"data.length={HUGE}", f"data.length = {HUGE}"),
        (f"kernel.blocks={HUGE}", f"kernel.blocks: got {HUGE}"),
        ("kernel.width=1048576", "parameters takes"),
        (f"model.window={HUGE}", f"model.window = {HUGE}"),
        (f"sampler.steps={HUGE}", f"sampler.steps: got {HUGE}"),
        (f"assimilate.members={HUGE}", f"assimilate: {HUGE} members"),
        (f"sample.members={HUGE}", f"sample: {HUGE} members"),
    ],
)
def test_sizes_are_counted_before_anything_is_built(
    tmp_path: Path, override: str, told: str
) -> None:
    started = time.process_time()
    assert told in refused(tmp_path, override)
    assert time.process_time() - started < 5  # hours, if any of it was built


def test_stages_that_are_not_to_be_done_are_not_checked(tmp_path: Path) -> None:
    overrides = ["method.name=interpolation", "kernel=none", "sampler=none", "guidance=none"]
    overrides += ["sample=none", "evaluate.reference=none", "evaluate.baseline=none"]
    small = ["data.trajectories=8", "data.length=80", "assimilate.members=2"]
    assert "posterior" in load_and_run(tmp_path, *overrides, *small)


def test_no_memory_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (
        MemoryError("Unable to allocate 16.0 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
    ):

        def fail(*arguments: object, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr("sda_core.stages.simulate", fail)
        with pytest.raises(SystemExit) as end:
            main(["simulate", "lorenz63-quick", "--dir", str(tmp_path)])
        assert end.value.code == 2
        assert "error: out of memory (" in (said := capsys.readouterr().err)
        assert "more\n" not in said
