"""What is said of a model after a trial's training, and the figures of trials."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sda_core import stages
from sda_core.errors import AssimilationError, ConfigError
from sda_core.evaluation.denoiser import (
    NOISE_LEVELS,
    Denoised,
    denoise,
    denoising_scores,
    variable_scores,
)
from sda_core.experiment import Run
from sda_core.figures.denoiser import denoising_pictures
from sda_core.model import TrainedModel
from sda_core.plugins import hookimpl
from sda_core.system import Axis, SystemSpec, Variable
from sda_ray.tune import trainable
from sda_ray.tune.context import TrialContext
from sda_ray.tune.sweep import RayTune
from sda_ray.tune.trainable import evaluate_trial, reported, run_trial

from .test_sweep import INFER, SPACE, TINY, TRAIN, run, tiny, trained

__all__ = ["trained"]


class Flag:
    """A study that is not stopped, and how often that was asked for."""

    sda_interface = 1

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl(specname="sda_sampling_step")
    def check(self) -> None:
        self.asked += 1


@pytest.fixture(scope="module")
def model(trained: Path) -> TrainedModel:
    return TrainedModel.load(trained / "model")


@pytest.fixture
def fresh(trained: Path, tmp_path: Path) -> Run:
    """A trial that has its model and data, and nothing else."""
    for name in ("data", "model"):
        (tmp_path / name).symlink_to(trained / name)
    return Run(tiny(*TINY[:-1]), tmp_path, progress=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_a_denoiser_is_scored_by_noise_level(fresh: Run, model: TrainedModel) -> None:
    found = denoise(fresh.data, model)
    assert [each.level for each in found] == list(NOISE_LEVELS)
    r2 = [each.scores["r2/x"] for each in found]
    assert sorted(r2, reverse=True) == r2  # the more noise, the less is known
    assert denoising_scores(found)["r2/x"] == pytest.approx(sum(r2) / len(r2))
    for each in found:
        noise = each.noised - each.x
        spread = model.standardization.std.flatten()
        assert float((noise / spread).std()) == pytest.approx(each.level, rel=0.5)
        assert each.estimate.shape == each.x.shape == (5, 3)
    assert denoising_scores([]) == {}


def test_a_trained_model_is_drawn_and_scored(fresh: Run, model: TrainedModel) -> None:
    result = evaluate_trial(fresh, model, Flag(), with_posterior=False)
    assert result == {"metrics": denoising_scores(denoise(fresh.data, model))}
    assert names(fresh.directory / "figures") == {"denoising-error.png", "denoised-window.png"}
    assert not (fresh.directory / "posterior.nc").exists()


def test_a_trained_model_is_evaluated(fresh: Run, model: TrainedModel) -> None:
    flag = Flag()
    result = evaluate_trial(fresh, model, flag, with_posterior=True)
    scores = json.loads((fresh.directory / "metrics.json").read_text())["posterior"]
    assert {k[10:]: v for k, v in result["metrics"].items() if k.startswith("posterior/")} == scores
    assert {"posterior/crps", "posterior/wasserstein1", "rmse/x"} <= result["metrics"].keys()
    assert flag.asked  # so that a trial can be stopped meanwhile
    assert (fresh.directory / "report.html").is_file()
    assert {"posterior.png", "denoised-window.png"} <= names(fresh.directory / "figures")


def test_a_model_that_cannot_be_evaluated_is_kept(
    fresh: Run, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssimilationError("states are not finite")

    monkeypatch.setattr(stages, "assimilate", fail)
    result = evaluate_trial(fresh, model, Flag(), with_posterior=True)
    assert result["cause"] == "trained, and not evaluated: states are not finite"
    assert result["metrics"]["rmse/x"] > 0


def test_no_trial_is_lost_for_a_picture(
    fresh: Run, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "denoise", lambda *args: [Denoised.__new__(Denoised)])
    monkeypatch.setattr(trainable, "denoising_scores", lambda found: {"rmse/x": 1.0})
    with pytest.warns(UserWarning, match="figures cannot be drawn: AttributeError"):
        assert evaluate_trial(fresh, model, Flag(), with_posterior=False) == {
            "metrics": {"rmse/x": 1.0}
        }


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_windows_of_any_grid_are_drawn(dimensions: int, tmp_path: Path) -> None:
    import torch

    size = 6
    values = tuple(map(float, range(size)))
    spec = SystemSpec(
        variables=(Variable(name="u", units="m/s"), Variable(name="v")),
        axes=tuple(Axis(name=name, values=values) for name in "xyz"[:dimensions]),
        time_step=0.1,
    )
    x = torch.randn(4, 7, 2, *(dimensions * [size]))
    found = []
    for level in (0.3, 1.0):
        noised, estimate = x + level * torch.randn(x.shape), 0.9 * x
        scores = variable_scores(("u", "v"), estimate.flatten(0, 1), x.flatten(0, 1))
        one = {"x": x[0], "noised": noised[0], "estimate": estimate[0]}
        found.append(Denoised(level=level, scores=scores, **one))
    paths = [picture.save(tmp_path) for picture in denoising_pictures(found, spec)]
    assert [path.name for path in paths] == ["denoising-error.png", "denoised-window.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 500


def test_a_variable_that_never_changes_has_no_curve(tmp_path: Path) -> None:
    import torch

    spec = SystemSpec(variables=(Variable(name="u"), Variable(name="still")), time_step=0.1)
    x = torch.stack([torch.randn(4, 7), torch.ones(4, 7)], dim=2)
    scores = variable_scores(("u", "still"), 0.9 * x.flatten(0, 1), x.flatten(0, 1))
    found = [Denoised(level=1.0, scores=scores, x=x[0], noised=x[0], estimate=x[0])]
    for picture in denoising_pictures(found, spec):
        assert picture.save(tmp_path).is_file()
    assert math.isfinite(scores["rmse/still"])


def test_what_a_training_has_recorded(tmp_path: Path) -> None:
    """Numbers of epochs that were validated, of plugins too; a line that a kill cut is left out."""
    lines = [
        {"event": "epoch", "epoch": 1, "step": 4, "loss": 2.0, "valid_loss": 0.5, "mine/x": 3.0},
        {"event": "epoch", "epoch": 2, "step": 8, "loss": 1.0},
        {"event": "step", "epoch": 2, "step": 9, "loss": 1.0, "valid_loss": 1.0},
        {"event": "epoch", "epoch": 3, "step": 12, "loss": 0.5, "valid_loss": 0.25},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"event": "ep')
    found = reported(tmp_path, "valid_loss")
    assert [(epoch, value) for epoch, value, _ in found] == [(1, 0.5), (3, 0.25)]
    assert found[1][2] == {"loss": 0.5, "valid_loss": 0.25}
    assert [value for _, value, _ in reported(tmp_path, "mine/x")] == [3.0]
    assert reported(tmp_path / "none", "loss") == []


def test_a_method_without_guidance_is_evaluated_without_one() -> None:
    without = ("method={ name = 'block-smc' }", "guidance=none")
    experiment = tiny(*TRAIN, SPACE, "sweep.evaluate=true", *without)
    assert experiment.sweep is not None
    experiment.sweep.check(experiment)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("observation=none",), r"no \[observation\] table, which sweep.evaluate needs"),
        (("method=none",), r"no \[method\] table, which sweep.evaluate needs"),
        (("sampler=none",), r"no \[sampler\] table, which sweep.evaluate needs"),
        (("assimilate.trajectory=99",), r"trajectory = 99, but the test split has \d+ traj"),
        (("assimilate.length=99",), r"assimilate.length = 99, but data.length = 40: sweep.ev"),
        (("sweep.stage=assimilate",), r"sweep.evaluate: trials of stage = 'assimilate' are eval"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: tuple[str, ...], told: str) -> None:
    experiment = tiny(*TRAIN, SPACE, "sweep.evaluate=true", *changes)
    assert experiment.sweep is not None
    with pytest.raises(ConfigError, match=told):
        experiment.sweep.check(experiment)


def test_a_trial_of_inference_is_drawn(trained: Path, tmp_path: Path) -> None:
    """The report of its first observation set, with the experiment's own configuration."""
    space = "sweep.space={ 'guidance.gamma' = { choice = [1.0, 2.0] } }"
    model = f"model.pretrained={trained / 'model'}"
    experiment = tiny(*INFER, space, model, "assimilate.members=16")
    (tmp_path / "data").symlink_to(trained / "data")
    assert isinstance(experiment.sweep, RayTune)
    job = TrialContext.create(experiment.sweep, experiment, tmp_path)
    folder, seen = job.trial(0), []
    folder.mkdir(parents=True)
    job.link_data(0)
    flag: Any = Flag()
    given = {"guidance.gamma": 2.0}
    outcome = run_trial(job, 0, given, lambda done, value, _: seen.append(done), flag)
    assert outcome["state"] == "finished", outcome
    assert seen == [1, 2]
    assert {"posterior.png", "observations.png", "rank-histogram.png"} <= names(folder / "figures")
    page = (folder / "report.html").read_text()
    assert str(trained / "model") in page
    assert "a second, independent run of it" not in page  # there is none


@pytest.mark.slow
def test_a_sweep_evaluates_what_it_trains(cluster: None, tmp_path: Path) -> None:
    more = ("sweep.trials=2", "sweep.scheduler={ name = 'none' }", "train.epochs=60")
    study = run(tiny(*TRAIN, SPACE, "sweep.evaluate=true", *more), tmp_path / "study")
    for trial in study.trials:
        assert trial.state == "finished", trial.cause
        folder = tmp_path / "study" / trial.directory
        if trial.cause is None:
            assert trial.metrics["posterior/crps"] > 0
            assert (folder / "report.html").is_file()
        assert {"denoising-error.png", "denoised-window.png"} <= names(folder / "figures")
    page = (tmp_path / "study" / "summary.html").read_text()
    assert "posterior/crps" in page
    assert "report.html" in page
