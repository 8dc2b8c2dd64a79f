"""Observations from a file, from the command line to the report."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import sda_core as sda
from sda_core import stages
from sda_core.cli import make_app
from sda_core.errors import ConfigError
from sda_core.experiment import Run
from sda_core.plugins import default_manager
from sda_core.system import trajectory

LENGTH, DT = 17, 0.025
BASE = (
    "assimilate.members=40",
    f"assimilate.length={LENGTH}",
    "method={name='particle-filter', particles=2048}",
)


def write_table(path: Path) -> None:
    """x and y of a trajectory with an error of 0.5 at every state, and some that cannot be used."""
    system = sda.load_experiment("noisy-lorenz63").system
    generator = torch.Generator().manual_seed(3)
    truth = trajectory(system, system.prior((1,), generator), LENGTH, generator, burn_in=1024)[0]
    rows = [
        (100 + i * DT, "xy"[c], float(truth[i, c] + 0.5 * torch.randn((), generator=generator)))
        for i in range(LENGTH)
        for c in (0, 1)
    ]
    rows += [(99.0, "x", 1.0), (100.0, "x", 999.0), (100.1, "z", math.nan)]
    pd.DataFrame(rows, columns=["time", "variable", "value"]).to_csv(path, index=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "obs.csv"
    write_table(path)
    return path


def options(table: Path, **more: object) -> str:
    given = {"file": str(table), "error": 0.5, "origin": 100, "withhold": 0.3, **more}
    text = ", ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
    return f"assimilate.observations={{{text}}}"


def test_a_filter_needs_neither_data_nor_model(table: Path, tmp_path: Path) -> None:
    """noisy-lorenz63 has a mean and std of its own, so that gross errors are found as well."""
    arguments = ["noisy-lorenz63", "--dir", str(tmp_path)]
    for change in (*BASE, options(table)):
        arguments += ["--set", change]
    done = CliRunner().invoke(make_app(default_manager()), ["assimilate", *arguments])
    assert done.exit_code == 0, done.output
    assert (
        "observations: 24 used, 10 withheld, 1 rejected, 1 missing value, 1 out of range"
        in done.output
    )
    assert not (tmp_path / "data").exists()
    with xr.open_dataset(tmp_path / "observations.nc") as observed:
        assert observed["status"].values.tolist().count("withheld") == 10

    done = CliRunner().invoke(make_app(default_manager()), ["evaluate", *arguments])
    assert done.exit_code == 0, done.output
    assert "RMSE of withheld observations" in done.output
    scores = json.loads((tmp_path / "metrics.json").read_text())["posterior"]
    assert (scores["withheld_count"], scores["used_count"]) == (10, 24)
    assert "rmse" not in scores
    # The error alone is 0.5, the posterior's own share is less.
    assert 0.2 < scores["withheld_rmse"] < 1.2
    assert 0.2 < scores["withheld_chi_square"] < 2.5
    assert scores["used_rmse"] < scores["withheld_rmse"] + 0.2

    seen = pd.read_csv(tmp_path / "observations.csv")
    used = seen[seen["status"] == "used"]
    assert ((used["departure"] ** 2).mean()) ** 0.5 == pytest.approx(scores["used_rmse"])
    assert seen["status"].tolist()[-3:] == ["out of range", "rejected", "missing value"]
    assert seen["mean"].isna().tolist()[-3:] == [True, False, False]
    with xr.open_dataset(tmp_path / "observations.nc") as observed:
        assert observed["departure"].values[-2] == pytest.approx(seen["departure"].iloc[-2])
    report = (tmp_path / "report.html").read_text()
    assert "<td>withheld</td>" in report
    assert (tmp_path / "figures" / "observations.png").is_file()


def test_scoring_other_observations_than_were_used_is_refused(table: Path, tmp_path: Path) -> None:
    experiment = sda.load_experiment("noisy-lorenz63", [*BASE, options(table)])
    sda.assimilate(experiment, tmp_path, progress=False)
    assert Run(experiment, tmp_path).is_done("assimilate")
    for change in (options(table, seed=1), options(table, withhold=0.1)):
        other = sda.load_experiment("noisy-lorenz63", [*BASE, change])
        with pytest.raises(ConfigError, match=r"differs in assimilate\.observations\.(seed|with)"):
            sda.evaluate(other, tmp_path, progress=False)
    # The same file with another content is other observations.
    copied = shutil.copy(table, tmp_path / "obs.csv")
    experiment = sda.load_experiment("noisy-lorenz63", [*BASE, options(copied)])
    sda.assimilate(experiment, tmp_path, progress=False)
    assert Run(experiment, tmp_path).is_done("assimilate")
    text = Path(copied).read_text()
    Path(copied).write_text(text.replace("99.0,x,1.0\n", ""))
    assert not Run(experiment, tmp_path).is_done("assimilate")
    with pytest.raises(ConfigError, match=r"evaluate would use .*`sda assimilate`.*observed"):
        sda.evaluate(experiment, tmp_path, progress=False)


def test_a_trained_model_needs_no_data(table: Path, tmp_path: Path) -> None:
    changes = [
        "data.trajectories=40",
        "data.length=48",
        "data.burn_in=8",
        "kernel.width=16",
        "kernel.blocks=1",
        "model.window=9",
        "model.stride=4",
        "train.epochs=2",
        "train.batch_size=16",
        "sampler.steps=4",
        "guidance.gamma=1.0",
        "assimilate.members=3",
        f"assimilate.length={LENGTH}",
        "evaluate.reference=none",
        "evaluate.baseline={name='interpolation'}",
        options(table),
    ]
    experiment = sda.load_experiment("lorenz63-quick", changes)
    sda.simulate(experiment, tmp_path, progress=False)
    sda.train(experiment, tmp_path, progress=False)
    shutil.rmtree(tmp_path / "data")
    problem = stages.make_problem(Run(experiment, tmp_path))
    assert problem.truth is None
    assert problem.y.shape == (24,)
    assert sda.assimilate(experiment, tmp_path, progress=False).shape == (3, LENGTH, 3)
    scores = sda.evaluate(experiment, tmp_path, progress=False)
    assert set(scores) == {"posterior", "baseline"}
    for values in scores.values():
        assert math.isfinite(values["withheld_crps"])
    assert scores["baseline"]["withheld_rmse"] < 1.5  # a spline through x and y
