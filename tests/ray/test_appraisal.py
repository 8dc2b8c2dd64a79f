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
from sda_core.experiment import Run
from sda_core.model import TrainedModel
from sda_core.system import Axis, SystemSpec, Variable
from sda_ray import appraisal
from sda_ray.appraisal import appraise
from sda_ray.denoising import denoising_pictures
from sda_ray.scores import NOISE_LEVELS, Denoised, denoise, denoising_scores, variable_scores
from sda_ray.study import Study, Trial
from sda_ray.summary import write_summary
from sda_ray.work import Job, do_trial

from .test_sweep import SPACE, TINY, TRAIN, cluster, run, tiny, trained

__all__ = ["cluster", "trained"]


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
    found = denoise(fresh, model)
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
    result = appraise(fresh, model, lambda: None, evaluate=False)
    assert result == {"metrics": denoising_scores(denoise(fresh, model))}
    assert names(fresh.directory / "figures") == {"denoising-error.png", "denoised-window.png"}
    assert not (fresh.directory / "posterior.nc").exists()


def test_a_trained_model_is_evaluated(fresh: Run, model: TrainedModel) -> None:
    seen: list[int] = []
    result = appraise(fresh, model, lambda: seen.append(1), evaluate=True)
    scores = json.loads((fresh.directory / "metrics.json").read_text())["posterior"]
    assert {k[10:]: v for k, v in result["metrics"].items() if k.startswith("posterior/")} == scores
    assert {"posterior/crps", "posterior/wasserstein1", "rmse/x"} <= result["metrics"].keys()
    assert seen  # so that a trial can be left meanwhile
    assert (fresh.directory / "report.html").is_file()
    assert {"posterior.png", "denoised-window.png"} <= names(fresh.directory / "figures")


def test_a_model_that_cannot_be_evaluated_is_kept(
    fresh: Run, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssimilationError("states are not finite")

    monkeypatch.setattr(stages, "assimilate", fail)
    result = appraise(fresh, model, lambda: None, evaluate=True)
    assert result["cause"] == "trained, and not evaluated: states are not finite"
    assert result["metrics"]["rmse/x"] > 0


def test_no_trial_is_lost_for_a_picture(
    fresh: Run, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appraisal, "denoise", lambda *args: [Denoised.__new__(Denoised)])
    monkeypatch.setattr(appraisal, "denoising_scores", lambda found: {"rmse/x": 1.0})
    with pytest.warns(UserWarning, match="figures cannot be drawn: AttributeError"):
        assert appraise(fresh, model, lambda: None, evaluate=False)["metrics"] == {"rmse/x": 1.0}


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


def test_the_summary_leads_to_reports_and_figures(tmp_path: Path) -> None:
    trials = tuple(
        Trial(
            number=n,
            state="finished",
            value=1.0 + n,
            directory=f"trials/{n:05d}",
            curve=((1, 1.0),),
        )
        for n in range(3)
    )
    (tmp_path / "trials" / "00000" / "figures").mkdir(parents=True)
    (tmp_path / "trials" / "00000" / "report.html").touch()
    (tmp_path / "trials" / "00001" / "figures").mkdir(parents=True)
    study = Study(title="", metric="valid_loss", mode="min", stage="train", trials=trials)
    page = write_summary(study, tmp_path, figures=False).read_text()
    text = (tmp_path / "summary.md").read_text()
    assert page.count('<a href="trials/00000/report.html">report</a>') == 2  # as the best one, too
    assert "| [0](trials/00000/) [report](trials/00000/report.html) [figures](trials/" in text
    assert '<a href="trials/00001/figures">figures</a>' in page
    assert "trials/00001/report.html" not in page + text
    assert "trials/00002/figures" not in page + text


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
    experiment = tiny(*TINY[:-1], f"model.pretrained={trained / 'model'}", "assimilate.members=16")
    from sda_ray.sweep import table_of

    space = {"guidance.gamma": {"choice": [1.0, 2.0]}}
    (tmp_path / "data").symlink_to(trained / "data")
    job = Job(
        directory=str(tmp_path), table=table_of(experiment), space=space, stage="assimilate",
        metric="crps", sets=2,
    )  # fmt: skip
    do_trial(job, 0, {"guidance.gamma": 2.0}, lambda done, value: None, lambda: None)
    folder = job.trial(0)
    assert json.loads((folder / "result.json").read_text())["state"] == "finished"
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
