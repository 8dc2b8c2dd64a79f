"""The study of a sweep: its record, what is tried next, and what people read of it."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from sda_core.config import structure
from sda_core.errors import SweepError
from sda_core.sweep import Sweep
from sda_ray.tune.importance import importance
from sda_ray.tune.report import write_report
from sda_ray.tune.searcher import StudySearcher
from sda_ray.tune.study import Study, TrialRecord
from sda_ray.tune.sweep import RayTune

SPACE = """
train.learning_rate = { log_range = [1e-4, 1e-2] }
kernel.name = { choice = ["mlp", "transformer"] }
kernel.depth = { integers = [2, 6], when = { "kernel.name" = "mlp" } }
guidance.gamma = { range = [0.001, 0.1] }
"""
CAUSE = "RuntimeError: x|y <b>\nout of memory"


def sweep(text: str = SPACE, **settings: Any) -> RayTune:
    made = structure(Sweep, {"name": "ray-tune", "space": tomllib.loads(text), **settings})
    assert isinstance(made, RayTune)
    return made


def create(folder: Path, text: str = SPACE, **settings: Any) -> StudySearcher:
    """The study of a sweep in a folder, which is made or resumed."""
    asked = sweep(text, **settings)
    facts = {
        "title": "Lorenz",
        "metric": asked.metric,
        "mode": asked.mode,
        "stage": asked.stage,
        "settings": asked.settings,
        "versions": {"ray": "2.60.0"},
    }
    folder.mkdir(exist_ok=True)
    return StudySearcher(Study.create(folder, facts), asked, lambda parameters: 6)


def report(study: Study, number: int, epoch: int, value: float, **options: Any) -> None:
    given = {"seconds": 1.0, "parameters": study[number].parameters, **options}
    study.report(number, epoch, value, **given)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The learning rate alone decides; each fourth trial is pruned, and the eighth failed."""
    found = create(tmp_path_factory.mktemp("studies") / "study", search="random", trials=20)
    study = found.study
    for number in range(20):
        trial = found.next()
        assert trial is not None
        value = 0.1 + (math.log10(trial.parameters["train.learning_rate"]) + 3) ** 2
        state, epochs = ("pruned", 2) if number % 4 == 3 else ("finished", 6)
        if number == 8:
            state, epochs = "failed", 1
        for epoch in range(1, epochs + 1):
            report(study, number, epoch, value + 1 - epoch / 6)
        outcome = {"metrics": {"rmse/x": 2 * value}, "cause": CAUSE if number == 8 else None}
        study.end(number, state, outcome)  # type: ignore[arg-type]
    study.stop(60.0)
    return study


def test_a_study_is_read_as_it_was_written(studied: Study) -> None:
    directory = Path(studied.optuna._storage._backend.url.removeprefix("sqlite:///")).parent  # type: ignore[attr-defined]
    read = Study.load(directory)
    assert read.trials == studied.trials
    assert (read.title, read.metric, read.resumed, read.seconds) == ("Lorenz", "valid_loss", 0, 60)
    assert read.counts == {"finished": 14, "pruned": 5, "failed": 1}
    assert read.epochs_saved == 5 * 4
    assert [path.name for path in directory.iterdir()] == ["optuna.db"]
    trial = read.trials[0]
    assert trial.value == min(value for _, value in trial.curve)
    assert (trial.epochs, trial.planned_epochs, trial.directory) == (6, 6, "trials/00000")
    attributes = read.optuna.trials[0].user_attrs
    assert attributes["rmse/x"] == trial.metrics["rmse/x"] == pytest.approx(2 * trial.value)
    assert read.trials[8].cause == CAUSE
    with pytest.raises(AttributeError, match="no 'nothing'"):
        read.nothing  # noqa: B018


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="does not exist: give the directory of a study"):
        Study.load(tmp_path)
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    with pytest.raises(SweepError, match="is not the study of a sweep"):
        Study.load(tmp_path)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_finished(tmp_path: Path, mode: str) -> None:
    found = create(tmp_path / mode, mode=mode, trials=4, search="random")
    study = found.study
    assert study.best is None
    for number, (value, state) in enumerate(
        ((3.0, "finished"), (1.0, "finished"), (0.5 if mode == "min" else 4.0, "pruned"))
    ):
        found.next()
        report(study, number, 1, value)
        study.end(number, state, {})  # type: ignore[arg-type]
    found.next()
    report(study, 3, 1, 1.0)
    study.end(3, "finished", {})
    best = study.best
    assert best is not None
    # Not the pruned one, and the first of equal ones.
    assert best.number == {"min": 1, "max": 0}[mode]


def test_a_trial_without_a_finite_value_has_failed(tmp_path: Path) -> None:
    found = create(tmp_path / "a", trials=3)
    for number, value in enumerate((math.nan, math.inf, None)):
        found.next()
        report(found.study, number, 1, math.nan)  # is no report
        found.study.end(number, "finished", {} if value is None else {"value": value})
    assert found.study.counts == {"failed": 3}
    assert [t.cause for t in found.study.trials] == [
        f"its valid_loss is {value}" for value in ("nan", "inf", "None")
    ]


def test_stopped_trials_come_first_with_the_same_parameters(tmp_path: Path) -> None:
    first = create(tmp_path / "a", trials=4, search="random")
    trials = [first.next() for _ in range(3)]
    report(first.study, 0, 1, 0.5)
    report(first.study, 0, 2, 0.75)
    first.study.end(0, "finished", {"metrics": {"mse/x": 1.0, "mse/y": math.nan}})
    report(first.study, 1, 1, 0.25)
    first.study.stop(5.0)
    assert [t.state for t in first.study.trials] == ["finished", "stopped", "stopped"]
    assert first.study.trials[0].value == 0.5  # the best of its curve
    assert first.study.trials[0].metrics == {"mse/x": 1.0}

    again = create(tmp_path / "a", trials=5, search="random")
    study = again.study
    assert study.resumed == 1
    started = [again.next() for _ in range(5)]
    assert [t.number if t else None for t in started] == [1, 2, 3, 4, None]
    for before, now in zip(trials[1:], started[:2], strict=True):
        assert before is not None
        assert now is not None
        assert before.parameters == now.parameters
    assert study[1].curve == ((1, 0.25),)
    report(study, 1, 1, 0.25)  # as a trial that is resumed does
    report(study, 1, 2, 0.125, seconds=2.0)
    assert study[1].seconds == 3.0
    study.end(1, "pruned", {"cause": "asha after epoch 2"})
    study.end(2, "failed", {"cause": "its process was lost"})
    study.end(2, "failed", {"cause": "and again"})
    assert study[2].cause == "its process was lost"
    states = [t.state.name for t in study.optuna.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "RUNNING"]
    assert study.optuna.trials[1].intermediate_values == {1: 0.25, 2: 0.125}


def test_a_trial_that_a_killed_driver_had_not_given_all_parameters(tmp_path: Path) -> None:
    first = create(tmp_path / "a", trials=2, search="random")
    asked = first.study.optuna.ask()
    rate = asked.suggest_float("train.learning_rate", 1e-4, 1e-2, log=True)
    assert first.study.trials == []
    again = create(tmp_path / "a", trials=2, search="random")
    trial = again.next()
    assert trial is not None
    assert (trial.number, trial.parameters["train.learning_rate"]) == (0, rate)
    assert "guidance.gamma" in trial.parameters
    assert again.next() is not None
    assert again.next() is None


def test_what_a_scheduler_has_changed_is_recorded(tmp_path: Path) -> None:
    found = create(tmp_path / "a", trials=1)
    trial = found.next()
    assert trial is not None
    changed = trial.parameters | {"guidance.gamma": 0.05}
    report(found.study, 0, 1, 1.0, parameters=changed)
    assert found.study[0].parameters == changed
    again = create(tmp_path / "a", trials=1).next()
    assert again is not None
    assert again.parameters == changed


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_searches_are_seeded(tmp_path: Path, search: str) -> None:
    def found(folder: str, seed: int) -> list[Any]:
        made = create(tmp_path / folder, trials=4, search=search, startup_trials=2, seed=seed)
        parameters = []
        for number in range(4):
            trial = made.next()
            assert trial is not None
            parameters.append(trial.parameters)
            report(made.study, number, 1, trial.parameters["train.learning_rate"])
            made.study.end(number, "finished", {})
        return parameters

    one, same, other = found("a", 0), found("b", 0), found("c", 1)
    assert one == same
    assert one != other


def test_cma_es_reads_and_leaves_no_pickles(tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    text = "train.learning_rate = { range = [0, 1] }\ntrain.weight_decay = { range = [0, 1] }"
    settings: dict[str, Any] = {"search": "cma-es", "startup_trials": 2, "trials": 30}
    for _ in range(2):  # the second time as another call
        found = create(tmp_path / "a", text, **settings)
        for _ in range(12):
            trial = found.next()
            assert trial is not None
            report(found.study, trial.number, 1, sum(trial.parameters.values()))
            found.study.end(trial.number, "finished", {})
        known = found.study.optuna.get_trials(deepcopy=False)
        assert not any(key.startswith("cma") for t in known for key in t.system_attrs)
    # What somebody else has written there is not looked at.
    last = known[-1]._trial_id
    path = tmp_path / "a" / "optuna.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        value = json.dumps(pickle.dumps(_Evil()).hex())
        row = (last, "cma:optimizer:0", value)
        names = "(trial_id, key, value_json)"
        database.execute(f"INSERT INTO trial_system_attributes {names} VALUES (?, ?, ?)", row)
        database.commit()
    assert create(tmp_path / "a", text, **settings).next() is not None


class _Evil:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


def test_a_grid_is_walked_through_over_several_calls(tmp_path: Path) -> None:
    text = "sampler.steps = { choice = [8, 16, 32] }"
    first = create(tmp_path / "a", text, trials=100, search="grid")
    assert first.next()
    again = create(tmp_path / "a", text, trials=100, search="grid")
    found = [again.next() for _ in range(4)]
    assert [t and t.parameters["sampler.steps"] for t in found] == [8, 16, 32, None]


# --- what people read ---


@pytest.mark.parametrize("mode", ["min", "max"])
def test_importance(tmp_path: Path, mode: str) -> None:
    found = create(tmp_path / "a", mode=mode, search="random", trials=60)
    sign = 1 if mode == "min" else -1
    for number in range(60):
        trial = found.next()
        assert trial is not None
        value = sign * (math.log10(trial.parameters["train.learning_rate"]) + 3) ** 2
        report(found.study, number, 1, value)
        found.study.end(number, "pruned" if number % 4 == 3 else "finished", {})
    first, *others = importance(found.study).items()
    assert first[0] == "train.learning_rate"
    assert first[1].share > 0.5 > first[1].by_chance
    assert {path for path, _ in others} == set(sweep().search_space.paths) - {"train.learning_rate"}
    assert all(each.share < each.by_chance for path, each in others if path == "guidance.gamma")


def test_summary(studied: Study, tmp_path: Path) -> None:
    page = write_report(studied, tmp_path)
    assert page == tmp_path / "summary.html"
    text = page.read_text()
    for trial in studied.trials:
        assert f'href="{trial.directory}/">{trial.number}</a>' in text
    assert "RuntimeError: x|y &lt;b&gt;" in text
    assert "Pruning saved 20 of 120 epochs (17 %)" in text
    assert text.count('<tr class="best">') == 1
    assert text.count("data:image/png;base64,") == 4
    assert re.search(r"(src|href)=[\"'](https?:)?//|<script|@import|url\(", text) is None
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("history", "learning-curves", "importance", "parallel-coordinates")
    assert drawn == {f"{name}.png" for name in names}


def test_markdown(studied: Study, tmp_path: Path) -> None:
    write_report(studied, tmp_path, figures=False)
    text = (tmp_path / "summary.md").read_text()
    best = studied.best
    assert best is not None
    assert f"[Trial {best.number}]({best.directory}/)" in text
    assert "Pruning saved 20 of 120 epochs" in text
    table = text.split("## All trials")[1].strip().splitlines()
    assert len(table) == 2 + len(studied.trials)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    (failed,) = (line for line in table if "| failed |" in line)
    assert r"RuntimeError: x\|y \<b\> out of memory |" in failed
    assert failed.startswith("| [8](trials/00008/) |")
    assert table[2].startswith(f"| [{best.number}]")  # the best first
    assert not (tmp_path / "figures").exists()


def test_links_to_the_best_and_to_reports(studied: Study, tmp_path: Path) -> None:
    best = studied.best
    assert best is not None
    (tmp_path / best.directory / "figures").mkdir(parents=True)
    for name in ("report.html", "posterior-0.nc"):
        (tmp_path / best.directory / name).touch()
    (tmp_path / "best").symlink_to("elsewhere")
    page = write_report(studied, tmp_path, figures=False).read_text()
    assert (tmp_path / "best").readlink() == Path(best.directory)
    assert not list(tmp_path.glob(".*"))
    assert page.count(f'<a href="{best.directory}/report.html">report</a>') == 2
    text = (tmp_path / "summary.md").read_text()
    start = f"| [{best.number}]({best.directory}/) [report]({best.directory}/report.html) [figures]"
    assert start in text
    assert page.count("report.html") == page.count('posterior-0.nc">posterior-0</a>') == 2


def _end(trial: TrialRecord, study: Study, state: Any, values: list[float]) -> None:
    for epoch, value in enumerate(values, 1):
        report(study, trial.number, epoch, value)
    study.end(trial.number, state, {})


@pytest.mark.parametrize("trials", [0, 1, 12])
@pytest.mark.parametrize("state", ["finished", "pruned", "failed", "running"])
@pytest.mark.parametrize("text", [SPACE, "train.epochs = { choice = [6] }"])
def test_studies_of_which_little_can_be_told(
    tmp_path: Path, trials: int, state: str, text: str
) -> None:
    found = create(tmp_path / "study", text, search="random", trials=20)
    for _ in range(trials):
        trial = found.next()
        assert trial is not None
        if state != "running":
            _end(trial, found.study, state, [] if state == "failed" else [0.0, 0.0])
    page = write_report(found.study, tmp_path / "study").read_text()
    assert f"{trials} trials" in page
    assert "The importance of parameters is not told" in page
    if trials == 0 or state != "finished":
        assert "there is no best one" in page
        assert not (tmp_path / "study" / "best").is_symlink()


def test_chance_is_shown_beside_importance() -> None:
    from sda_ray.tune.importance import Importance
    from sda_ray.tune.report import importance_bars

    found = {"a": Importance(share=0.9, by_chance=0.3), "b": Importance(share=0.1, by_chance=0.2)}
    (axis,) = importance_bars(found).axes
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [0.9, 0.1])
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [0.3, 0.2])
    colors = {bar.get_facecolor() for bar in axis.patches}
    assert len(colors) == 2
