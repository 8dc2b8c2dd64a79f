"""What a sweep leaves for people to read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from matplotlib.figure import Figure

from sda_core.errors import SweepError
from sda_ray import figures
from sda_ray.importance import importance
from sda_ray.parameters import parameters_of
from sda_ray.study import Study, Trial
from sda_ray.summary import write_summary

SPACE: dict[str, Any] = {
    "train.learning_rate": {"log_range": [1e-4, 1e-2]},
    "kernel.name": {"choice": ["mlp", "transformer"]},
    "kernel.depth": {"integers": [2, 6], "when": {"kernel.name": "mlp"}},
    "guidance.gamma": {"range": [0.001, 0.1]},
}
CAUSE = "RuntimeError: x|y <b>\nout of memory"


def _study(count: int = 20, **changes: Any) -> Study:
    """The learning rate alone decides; each fourth trial is pruned, and the eighth failed."""
    random = np.random.default_rng(0)
    trials = []
    for i in range(count):
        rate = float(10 ** random.uniform(-4, -2))
        given = {"train.learning_rate": rate, "kernel.name": ("mlp", "transformer")[i % 2]}
        if i % 2 == 0:
            given["kernel.depth"] = int(random.integers(2, 7))
        given["guidance.gamma"] = float(random.uniform(0.001, 0.1))
        value = 0.1 + (math.log10(rate) + 3) ** 2
        state, epochs = ("pruned", 2) if i % 4 == 3 else ("finished", 6)
        if i == 8:
            state, epochs = "failed", 1
        trials.append(
            Trial(
                number=i,
                state=state,  # type: ignore[arg-type]
                parameters=given,
                value=None if state == "failed" else value,
                metrics={"rmse/x": 2 * value},
                curve=tuple((e, value + 1 / e) for e in range(1, epochs + 1)),
                epochs=epochs,
                planned_epochs=6,
                directory=f"trials/{i:05d}",
                cause=CAUSE if state == "failed" else None,
                seconds=2.0,
            )
        )
    study = Study(
        title="Lorenz",
        metric="valid_loss",
        mode="min",
        stage="train",
        settings={"space": SPACE},
        trials=tuple(trials),
        seconds=60.0,
    )
    return attrs.evolve(study, **changes)


def _with(study: Study, **changes: Any) -> Study:
    """The same, with all its trials changed."""
    return attrs.evolve(study, trials=tuple(attrs.evolve(t, **changes) for t in study.trials))


def test_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    study = _study(resumed=2, versions={"ray": "2.60.0"})
    study.save(tmp_path)
    assert Study.load(tmp_path) == study
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    trial = Trial(
        number=0,
        state="finished",
        value=math.inf,
        metrics={"rmse/x": math.nan},
        curve=((1, math.nan), (2, 1.0)),
        directory="trials/00000",
    )
    path = _study(trials=(trial,)).save(tmp_path)
    (plain,) = json.loads(path.read_text(), parse_constant=pytest.fail)["trials"]
    assert plain["value"] is None
    assert plain["curve"] == [[1, None], [2, 1.0]]
    (read,) = Study.load(tmp_path).trials
    assert read.value is None
    assert math.isnan(read.metrics["rmse/x"])
    assert math.isnan(read.curve[0][1])


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="does not exist: give the directory of a study"):
        Study.load(tmp_path)
    (tmp_path / "study.json").write_text('{"trials": [], "title": "x"}')
    with pytest.raises(SweepError, match=r"is not a study .* it was changed, or another version"):
        Study.load(tmp_path)


def test_best() -> None:
    study = _study(4)
    values = (3.0, 1.0, math.nan, 0.5, 1.0)
    states = ("finished", "finished", "finished", "pruned", "finished")
    trials = tuple(
        Trial(number=i, state=state, value=value, directory="")  # type: ignore[arg-type]
        for i, (state, value) in enumerate(zip(states, values, strict=True))
    )
    low, high = attrs.evolve(study, trials=trials), attrs.evolve(study, trials=trials, mode="max")
    assert low.best is trials[1]  # not the pruned one, and the first of equal ones
    assert high.best is trials[0]
    assert _with(study, state="pruned").best is None


def test_epochs_saved() -> None:
    study = _study()
    assert study.epochs_saved == 5 * 4
    assert study.counts == {"finished": 14, "pruned": 5, "failed": 1}
    assert _with(study, planned_epochs=None).epochs_saved == 0


@pytest.mark.parametrize("mode", ["min", "max"])
def test_importance(mode: str) -> None:
    study = _study(60)
    if mode == "max":
        trials = [
            attrs.evolve(t, value=None if t.value is None else -t.value) for t in study.trials
        ]
        study = attrs.evolve(study, mode="max", trials=tuple(trials))
    first, *others = importance(study).items()
    assert first[0] == "train.learning_rate"
    assert first[1].share > 0.5 > first[1].by_chance
    assert {path for path, _ in others} == set(SPACE) - {"train.learning_rate"}
    assert all(each.share < each.by_chance for path, each in others if path == "guidance.gamma")


def test_importance_is_not_told_of_nothing() -> None:
    assert importance(_study(9)) == {}
    equal = _with(_study(), value=1.0, state="finished")
    assert importance(equal) == {}
    assert importance(_with(_study(), parameters={"train.learning_rate": 1e-3})) == {}
    assert importance(_study(trials=())) == {}


def test_axes() -> None:
    study = _study()
    rate, name, depth, _ = parameters_of(study, study.trials)
    assert [axis.path for axis in (rate, name, depth)] == list(SPACE)[:3]
    assert rate.position(1e-3) == pytest.approx(0.5)
    assert [name.position(value) for value in ("mlp", "transformer")] == [0.25, 0.75]
    assert depth.position(6) == 1.0
    moved = Trial(number=0, state="finished", parameters={"kernel.depth": 8}, directory="")
    (axis,) = parameters_of(study, [moved])
    assert axis.position(8) == 1.0  # a scheduler has left the range


def test_summary(tmp_path: Path) -> None:
    study = _study()
    page = write_summary(study, tmp_path)
    assert page == tmp_path / "summary.html"
    text = page.read_text()
    for trial in study.trials:
        assert f'href="{trial.directory}/">{trial.number}</a>' in text
    assert "RuntimeError: x|y &lt;b&gt;" in text
    assert "Pruning saved 20 of 120 epochs (17 %)" in text
    assert text.count("data:image/png;base64,") == 4
    assert re.search(r"(src|href)=[\"'](https?:)?//|<script|@import|url\(", text) is None
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {
        f"{name}.png"
        for name in ("history", "learning-curves", "importance", "parallel-coordinates")
    }
    assert Study.load(tmp_path) == study


def test_markdown(tmp_path: Path) -> None:
    study = _study()
    write_summary(study, tmp_path, figures=False)
    text = (tmp_path / "summary.md").read_text()
    assert study.best is not None
    assert f"[Trial {study.best.number}]({study.best.directory}/)" in text
    assert "Pruning saved 20 of 120 epochs" in text
    table = text.split("## All trials")[1].strip().splitlines()
    assert len(table) == 2 + len(study.trials)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    (failed,) = (line for line in table if "| failed |" in line)
    assert r"RuntimeError: x\|y \<b\> out of memory |" in failed
    assert failed.startswith("| [8](trials/00008/) |")
    assert table[2].startswith(f"| [{study.best.number}]")  # the best first
    assert not (tmp_path / "figures").exists()


def test_link_to_the_best(tmp_path: Path) -> None:
    study = _study()
    for trial in study.trials:
        (tmp_path / trial.directory).mkdir(parents=True)
    for mode in ("min", "max"):  # the second time over the first one
        told = attrs.evolve(study, mode=mode)
        write_summary(told, tmp_path, figures=False)
        assert told.best is not None
        assert (tmp_path / "best").readlink() == Path(told.best.directory)
        assert (tmp_path / "best").is_dir()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "study",
    [
        _study(trials=()),
        _with(_study(), state="failed", value=None, curve=(), cause="lost"),
        _study(1),
        _with(_study(), parameters={"train.learning_rate": 1e-3}),
        _with(_study(), value=0.0, curve=((1, 0.0),)),
        _with(_study(), state="running", planned_epochs=None, curve=()),
        _with(_study(), value=math.nan, curve=((1, math.nan),)),
        _with(_study(stage="assimilate"), curve=(), error=0.1, epochs=None, planned_epochs=None),
    ],
    ids=["empty", "failed", "one", "constant", "equal", "running", "nan", "assimilate"],
)
def test_studies_of_which_little_can_be_told(study: Study, tmp_path: Path) -> None:
    text = write_summary(study, tmp_path).read_text()
    assert f"{len(study.trials)} trials" in text
    if study.best is None:
        assert "there is no best one" in text
        assert not (tmp_path / "best").is_symlink()
    if not importance(study):
        assert "The importance of parameters is not told" in text


def _lines(figure: Figure | None) -> dict[str, np.ndarray]:
    assert figure is not None
    return {str(line.get_label()): np.array(line.get_data()) for line in figure.axes[0].lines}


def test_history() -> None:
    study = _study()
    lines = _lines(figures.history(study))
    so_far = lines["best so far"][1]
    finished = [trial.value for trial in study.trials if trial.state == "finished"]
    np.testing.assert_allclose(so_far[:-1], np.minimum.accumulate(finished))
    np.testing.assert_array_equal(lines["failed (1)"][0], [8])
    assert figures.history(_with(study, value=None)) is None


def test_learning_curves_of_pruned_trials_end_early() -> None:
    study = _study()
    figure = figures.learning_curves(study)
    assert figure is not None
    ends = sorted(line.get_xdata()[-1] for line in figure.axes[0].lines)  # type: ignore[index]
    assert ends == sorted(trial.epochs for trial in study.trials)
    assert figures.learning_curves(_with(study, curve=())) is None


def test_parallel_coordinates_have_a_gap_where_there_is_no_parameter() -> None:
    study = _study()
    figure = figures.parallel_coordinates(study)
    assert figure is not None
    paths = [line.get_ydata() for line in figure.axes[0].lines]
    paths = [path for path in paths if len(path) == len(SPACE) + 1]  # type: ignore[arg-type]
    valued = [trial for trial in study.trials if trial.value is not None]
    assert len(paths) == len(valued)
    below = sum(path[2] < -0.05 for path in paths)  # type: ignore[index]
    assert below == sum("kernel.depth" not in trial.parameters for trial in valued)
    labels = {text.get_text() for text in figure.axes[0].texts}
    assert {"mlp", "transformer", "-", "train.\nlearning_rate"} <= labels
