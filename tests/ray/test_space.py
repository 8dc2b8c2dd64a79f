"""The space of a sweep: what it accepts, what it refuses, and what it does to an experiment."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest

from sda_core.config import structure, unstructure
from sda_core.errors import ConfigError
from sda_core.experiment import Experiment, load_experiment
from sda_core.sweep import Sweep
from sda_ray.ledger import Ledger
from sda_ray.space import Space
from sda_ray.sweep import RayTune, table_of

SPACE = """
train.learning_rate = { log_range = [1e-4, 1e-2] }
guidance.gamma = { range = [0.001, 0.1] }
"sampler.steps" = { integers = [16, 64], step = 16 }
kernel.depth = { integers = [2, 3], when = { "kernel.name" = "mlp" } }
kernel.blocks = { integers = [2, 4], when = { kernel.name = ["transformer"] } }
kernel.name = { choice = ["mlp", "transformer"] }
"""


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    return table_of(load_experiment("lorenz63-quick"))


def space(text: str) -> Space:
    return Space.parse(tomllib.loads(text))


def sweep(text: str, **settings: Any) -> RayTune:
    made = structure(Sweep, {"name": "ray-tune", "space": tomllib.loads(text), **settings})
    assert isinstance(made, RayTune)
    return made


def test_dotted_and_quoted_paths_are_the_same_and_names_come_first(quick: dict) -> None:
    found = space(SPACE)
    assert found.paths[0] == "kernel.name"
    assert set(found.paths) == {
        "kernel.name",
        "train.learning_rate",
        "guidance.gamma",
        "sampler.steps",
        "kernel.depth",
        "kernel.blocks",
    }
    found.check(quick)


def test_a_search_sees_only_the_parameters_that_exist() -> None:
    found, study = space(SPACE), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        values = found.suggest(trial)
        own = {"mlp": "kernel.depth", "transformer": "kernel.blocks"}[values["kernel.name"]]
        assert {"kernel.depth", "kernel.blocks"} & values.keys() == {own}
        assert trial.params == found.labels_of(values)
        assert found.values_of(trial.params) == values
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
        assert values["sampler.steps"] in (16, 32, 48, 64)
        seen.add(own)
    assert len(seen) == 2


def test_another_component_keeps_the_fields_that_it_has(quick: dict) -> None:
    before = unstructure(structure(Experiment, quick))
    changed = space(SPACE).apply(quick, {"kernel.name": "mlp", "kernel.depth": 3})
    assert changed["kernel"] == {"name": "mlp", "width": 64, "depth": 3}  # no blocks, no heads
    assert structure(Experiment, changed).kernel.width == 64
    assert quick == {k: v for k, v in before.items() if k in quick}
    same = space(SPACE).apply(quick, {"kernel.name": "transformer", "kernel.blocks": 2})
    assert same["kernel"] == quick["kernel"] | {"blocks": 2}


def test_names_of_components_within_components(quick: dict) -> None:
    table = quick | {"observation": {"name": "select", "noise": {"name": "student-t", "dof": 3.0}}}
    found = space('observation.noise.name = { choice = ["student-t", "laplace"] }')
    changed = found.apply(table, {"observation.noise.name": "laplace"})
    assert changed["observation"]["noise"] == {"name": "laplace"}


def test_choices_may_be_lists_and_tables(quick: dict) -> None:
    found = space("""
        observation.variables = { choice = [["x"], ["x", "y"]] }
        sampler = { choice = [{ name = "heun", steps = 8 }, { name = "ddim", eta = 0.5 }] }
    """)
    found.check(quick)
    asked = optuna.create_study().ask()
    values = found.suggest(asked)
    assert values["sampler"] in ({"name": "heun", "steps": 8}, {"name": "ddim", "eta": 0.5})
    assert structure(Experiment, found.apply(quick, values))


def test_the_grid_has_each_combination_that_exists_once() -> None:
    found = space("""
        kernel.name = { choice = ["mlp", "transformer"] }
        kernel.depth = { integers = [2, 6], step = 2, when = { "kernel.name" = "mlp" } }
        sampler.steps = { choice = [16, 32] }
    """)
    grid = found.grid()
    assert len(grid) == (3 + 1) * 2
    assert len({tuple(sorted(g.items())) for g in grid}) == len(grid)
    assert all(("kernel.depth" in g) == (g["kernel.name"] == "mlp") for g in grid)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space: it is empty; name what is varied"),
        ("train.epochs = 3", "space.train.epochs: got 3, allowed: a table"),
        ("a.b = { range = [0, 1], choice = [1] }", "space.a.b: has range and choice, but needs"),
        ("a.b = { step = 2 }", "space.a.b.step: got 2, allowed: a table"),
        ("a.b = { range = [0, 1], whe = 3 }", r"space.a.b.whe: unknown key, did you mean 'when'"),
        ("a.b = { range = [0, 1], step = 3 }", "space.a.b.step: unknown key, allowed: range, when"),
        ("a.b = { range = 3 }", "space.a.b.range: got 3, allowed: a list, as range = "),
        ("a.b = { range = [1, 1] }", r"space.a.b.range: got \[1, 1\], allowed: two numbers"),
        ("a.b = { range = [0, inf] }", "space.a.b.range: got .* allowed: two numbers"),
        ("a.b = { log_range = [0, 1] }", "space.a.b.log_range: got .* two numbers above 0"),
        ("a.b = { integers = [1, 2.5] }", "space.a.b.integers: got .* two whole numbers"),
        ("a.b = { integers = [1, 4], step = 2 }", "space.a.b.step: got 2, .* divides 4 - 1"),
        ("a.b = { choice = [] }", "space.a.b.choice: got .* one value or more, each once"),
        ("a.b = { choice = [1, 1] }", "space.a.b.choice: got .* each once"),
        ("a.b = { choice = [1], when = 3 }", "space.a.b.when: got 3, allowed: a table"),
        (
            'k.name = { choice = ["a"] }\nk.x = { range = [0, 1], when = { "k.nam" = "a" } }',
            "space.k.x.when.k.nam: not in the space, did you mean 'k.name'",
        ),
        (
            'k.name = { choice = ["a"] }\nk.x = { range = [0, 1], when = { "k.name" = "b" } }',
            "space.k.x.when.k.name: got 'b', allowed: 'a'",
        ),
        (
            'k.y = { range = [0, 1] }\nk.x = { range = [0, 1], when = { "k.y" = 0.5 } }',
            "space.k.x.when.k.y: k.y is a range; only a choice or integers",
        ),
        (
            'a = { choice = [1], when = { "b" = 1 } }\nb = { choice = [1], when = { "a" = 1 } }',
            "space.a.when.b: b itself depends on a",
        ),
    ],
)
def test_what_is_no_space(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(text)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 problems:.*space.a.*space.b"):
        space("a = { range = [1, 0] }\nb = { choice = [] }")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.learning_rat = { log_range = [1e-4, 1e-2] }", "did you mean 'learning_rate'"),
        ("train.learning_rate = { range = [-1, 1] }", "space: train.learning_rate: got -1.0"),
        ('kernel.name = { choice = ["mpl"] }', "space: kernel.name: no kernel 'mpl'"),
        ("kernel.depth = { integers = [2, 6] }", "space: kernel.depth: unknown key"),
        ("title.x = { range = [0, 1] }", "space: title is .*, not a table"),
    ],
)
def test_what_does_not_fit_the_experiment(quick: dict, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(text).check(quick)


RATE = "train.learning_rate = { log_range = [1e-4, 1e-2] }"
GAMMA = "guidance.gamma = { choice = [0.01, 0.1] }"


@pytest.mark.parametrize(
    ("text", "settings", "changes", "message"),
    [
        (RATE, {"metric": "valid_los"}, [], "sweep.metric: got 'valid_los', did you mean"),
        (RATE, {}, ["model.pretrained=x"], "model.pretrained: there is nothing to train"),
        (RATE, {}, ["data.fractions=[0.9, 0.0, 0.1]"], "leaves no trajectories for validation"),
        (
            RATE,
            {"scheduler": {"name": "asha", "grace_period": 400}},
            [],
            "sweep.scheduler.grace_period = 400, but a trial has 360 epochs",
        ),
        (
            GAMMA,
            {"stage": "assimilate", "scheduler": {"name": "asha", "grace_period": 5}},
            [],
            "sweep.scheduler.grace_period = 5, but a trial has 4 observation sets",
        ),
        (
            "model.window = { choice = [17, 33] }",
            {"scheduler": {"name": "pbt"}},
            [],
            "sweep.space.model.window: not for scheduler 'pbt', which changes settings while",
        ),
        (RATE, {"scheduler": {"name": "pbt", "interval": 24}}, [], "validate_every = 16 does not"),
        (
            RATE,
            {"scheduler": {"name": "pbt", "interval": 32}, "concurrency": 2},
            [],
            "sweep.concurrency: not for scheduler 'pbt'",
        ),
        (
            "train.ema = { choice = [0.9, 0.99] }\n"
            'train.clip_norm = { choice = [1.0], when = { "train.ema" = 0.9 } }',
            {"scheduler": {"name": "pbt", "interval": 32}},
            [],
            "sweep.space: `when` is not for scheduler 'pbt'",
        ),
        (
            GAMMA,
            {"stage": "assimilate", "metric": "crps", "scheduler": {"name": "pbt"}},
            [],
            "sweep.scheduler.name: 'pbt' is for stage = 'train' only",
        ),
        ("cluster.cpus = { choice = [1, 2] }", {}, [], "sweep.space.cluster.cpus: cluster changes"),
        ("train.epoch = { choice = [1] }", {}, [], "sweep: space: train.epoch: unknown key"),
        (RATE, {"stage": "assimilate"}, [], "sweep.space.train.learning_rate: not for stage"),
        (GAMMA, {"stage": "assimilate", "metric": "crps"}, [], "model.pretrained is not set"),
        (
            GAMMA,
            {"stage": "assimilate", "metric": "wasserstein1"},
            ["model.pretrained=x", "evaluate.reference=none"],
            "is a distance to evaluate.reference, which is not set",
        ),
        (
            GAMMA,
            {"stage": "assimilate"},
            ["model.pretrained=x"],
            "sweep.metric: 'valid_loss' is of a training",
        ),
        (
            GAMMA,
            {"stage": "assimilate", "metric": "crps", "observation_sets": 200},
            ["model.pretrained=x"],
            "sweep.observation_sets = 200, but the test split has 103",
        ),
        (
            GAMMA,
            {"stage": "assimilate", "metric": "crps"},
            ["model.pretrained=x", 'assimilate.observations={ file = "obs.csv" }'],
            "assimilate.observations: trials are scored against held-out",
        ),
    ],
)
def test_what_a_sweep_refuses(text: str, settings: dict, changes: list, message: str) -> None:
    asked = sweep(text, **settings)
    with pytest.raises(ConfigError, match=message):
        asked.check(load_experiment("lorenz63-quick", changes))


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"space.train.learning_rate: search = 'grid' tries all"):
        sweep(RATE, search="grid")


def test_cma_es_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sda-ray\[cma-es\]'"):
        sweep(RATE, search="cma-es")


@pytest.mark.parametrize(
    ("text", "there"), [(GAMMA, "none"), (f"{RATE}\n{GAMMA}", r"train.learning_rate\.")]
)
def test_cma_es_needs_numbers(text: str, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=f"space: search = 'cma-es' goes by two .* is {there}"):
        sweep(text, search="cma-es")
    sweep(f"{RATE}\ntrain.batch_size = {{ integers = [4, 8] }}", search="cma-es")


def ledger(folder: Path, text: str = SPACE, **settings: Any) -> Ledger:
    return Ledger(folder, sweep(text, **settings), space(text))


def test_a_ledger_gives_unfinished_trials_first_and_the_same_again(tmp_path: Path) -> None:
    first = ledger(tmp_path, trials=4, search="random")
    trials = [first.start() for _ in range(3)]
    first.report(0, 1, 0.5)
    first.report(0, 2, 0.75)
    (first.path(0) / "result.json").write_text('{"state": "finished", "metrics": {"mse/x": 1.0}}')
    first.end(0)
    first.report(1, 1, 0.25)
    first.leave()
    assert [t.state for t in first.trials.values()] == ["finished", "stopped", "stopped"]
    assert first.trials[0].value == 0.5  # the best of its curve

    again = ledger(tmp_path, trials=5, search="random")
    assert [t.number for t in again.earlier] == [0]
    started = [again.start() for _ in range(5)]
    assert [t.number if t else None for t in started] == [1, 2, 3, 4, None]
    for before, now in zip(trials[1:], started[:2], strict=True):
        assert before is not None
        assert now is not None
        assert before.parameters == now.parameters
    assert again.trials[1].curve == ((1, 0.25),)
    again.report(1, 1, 0.25)  # as a trial that goes on does
    again.report(1, 2, 0.125)
    again.end(1)
    again.end(2, "its process was lost")
    again.end(2, "and again")
    assert again.trials[1].state == "pruned"
    assert again.trials[2].cause == "its process was lost"
    states = [t.state.name for t in again.optuna.get_trials()]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "RUNNING"]
    assert again.optuna.get_trials()[1].intermediate_values == {1: 0.25, 2: 0.125}


def test_a_trial_that_ended_unseen_or_lost_its_record(tmp_path: Path) -> None:
    first = ledger(tmp_path, trials=3, search="random")
    for number in range(3):
        first.start()
        first.report(number, 1, 0.5)
    for number in (0, 1):
        (first.path(number) / "result.json").write_text('{"state": "finished", "metrics": {}}')
    first.end(0)  # and then the driver is killed
    (first.path(0) / "trial.json").unlink()
    (first.path(2) / "trial.json").write_text('{"number"')
    with pytest.warns(UserWarning, match=r"trial.json cannot be read .* done again"):
        again = ledger(tmp_path, trials=3, search="random")
    assert [t.number for t in again.earlier] == [1]  # its result was there
    assert again.optuna.get_trials()[1].state.name == "COMPLETE"
    repeated = again.start()
    assert repeated is not None
    assert (repeated.number, repeated.parameters) == (0, first.trials[0].parameters)
    assert not (again.path(0) / "result.json").exists()


@pytest.mark.parametrize("stage", ["train", "assimilate"])
def test_what_a_trial_reported_while_nobody_listened(tmp_path: Path, stage: str) -> None:
    """The command was killed, and the trial came to its end on another machine."""
    metric = "valid_loss" if stage == "train" else "crps"
    first = ledger(tmp_path, trials=1, stage=stage, metric=metric)
    first.start()
    first.report(0, 1, 0.5, seconds=2.0)
    path = first.path(0)
    history = {"epoch": [1, 2, 3, 4], "valid_loss": [0.5, None, 0.25, 0.75]}
    (path / "history.json").write_text(json.dumps(history))
    (path / "sets.json").write_text('[{"crps": 0.5}, {"crps": 0.25}]')
    result = {"state": "finished"} | ({} if stage == "train" else {"value": 0.375})
    (path / "result.json").write_text(json.dumps(result))
    trial = ledger(tmp_path, trials=1, stage=stage, metric=metric).trials[0]
    assert trial.state == "finished"
    assert trial.seconds == 2.0
    if stage == "train":
        assert (trial.value, trial.epochs) == (0.25, 4)
        assert trial.curve == ((1, 0.5), (3, 0.25), (4, 0.75))
    else:
        assert (trial.value, trial.curve) == (0.375, ((1, 0.5), (2, 0.375)))


def test_a_finished_trial_without_a_value_has_failed(tmp_path: Path) -> None:
    found = ledger(tmp_path, trials=1)
    found.start()
    (found.path(0) / "result.json").write_text('{"state": "finished", "metrics": {}}')
    found.end(0)
    assert (found.trials[0].state, found.trials[0].cause) == (
        "failed",
        "no valid_loss was reported",
    )


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_searches_are_seeded(tmp_path: Path, search: str) -> None:
    def found(folder: str, seed: int) -> list[Any]:
        (tmp_path / folder).mkdir()
        made = ledger(tmp_path / folder, trials=4, search=search, startup_trials=2, seed=seed)
        parameters = []
        for number in range(4):
            trial = made.start()
            assert trial is not None
            parameters.append(trial.parameters)
            made.report(number, 1, trial.parameters["train.learning_rate"])
            (made.path(number) / "result.json").write_text('{"state": "finished"}')
            made.end(number)
        return parameters

    one, same, other = found("a", 0), found("b", 0), found("c", 1)
    assert one == same
    assert one != other


def test_a_grid_is_walked_through_over_several_calls(tmp_path: Path) -> None:
    text = "sampler.steps = { choice = [8, 16, 32] }"
    first = ledger(tmp_path, text, trials=100, search="grid")
    assert first.planned == 3
    assert first.start()
    again = ledger(tmp_path, text, trials=100, search="grid")
    found = [again.start() for _ in range(4)]
    assert [t and t.parameters["sampler.steps"] for t in found] == [8, 16, 32, None]
