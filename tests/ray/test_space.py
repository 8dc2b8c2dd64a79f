"""The space of a sweep: what it accepts, what it refuses, and what it does to an experiment."""

from __future__ import annotations

import tomllib
from typing import Any

import optuna
import pytest

from sda_core.config import structure, unstructure
from sda_core.errors import ConfigError
from sda_core.experiment import Experiment, load_experiment
from sda_core.sweep import Sweep
from sda_ray.tune.context import trial_table
from sda_ray.tune.search_space import Space
from sda_ray.tune.sweep import RayTune

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
    return trial_table(load_experiment("lorenz63-quick"))


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
    table = quick | {
        "observation": {"name": "select", "noise": {"name": "student-t", "scale": 1.0, "dof": 3.0}}
    }
    found = space('observation.noise.name = { choice = ["student-t", "laplace"] }')
    changed = found.apply(table, {"observation.noise.name": "laplace"})
    assert changed["observation"]["noise"] == {"name": "laplace", "scale": 1.0}


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


def test_entries_of_lists_are_paths(quick: dict) -> None:
    found = space('"data.fractions.1" = { range = [0.05, 0.1], step = 0.05 }')
    changed = found.apply(quick, {"data.fractions.1": 0.05})
    assert changed["data"]["fractions"][1] == 0.05
    assert quick["data"]["fractions"][1] != 0.05
    nested = {"trackers": [{"name": "wandb"}]}
    varied = space('"trackers.0.project" = { choice = ["a", "b"] }')
    changed = varied.apply(nested, {"trackers.0.project": "b"})
    assert changed == {"trackers": [{"name": "wandb", "project": "b"}]}


def test_a_range_with_a_step_has_so_many_values() -> None:
    found = space("a = { range = [0.1, 0.5], step = 0.1 }")
    values = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert [each["a"] for each in found.grid()] == list(values)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {round(found.suggest(study.ask())["a"], 9) for _ in range(40)}
    assert drawn == set(values)


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
        ("a.b = { range = [0, 1], step = 0.3 }", "space.a.b.step: got 0.3, .* divides 1 - 0"),
        ("a.b = { range = [0, 1], step = 0 }", "space.a.b.step: got 0, allowed: a number"),
        ("a.b = { choice = [0, 1], step = 1 }", "space.a.b.step: unknown key, allowed: choice"),
        ("a.b = { range = 3 }", "space.a.b.range: got 3, allowed: a list of two numbers"),
        (
            "a.b = { range = [1, 1] }",
            r"space.a.b.range: got \[1, 1\], allowed: a list of two numbers",
        ),
        ("a.b = { range = [0, inf] }", "space.a.b.range: got .* allowed: a list of two numbers"),
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
            "space.k.x.when.k.y: k.y is a range; only a choice, integers",
        ),
        (
            'a = { choice = [1], when = { "b" = 1 } }\nb = { choice = [1], when = { "a" = 1 } }',
            "space.a.when: depends on itself, by b and a",
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
        ("data.fractions.3 = { range = [0, 1] }", "space: data.fractions: got '3', allowed"),
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
            "sweep.space.model.window: not for scheduler 'pbt', which changes settings during",
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


def test_any_metric_that_a_training_may_report_is_accepted() -> None:
    sweep(RATE, metric="rmse/x").check(load_experiment("lorenz63-quick"))
    with pytest.raises(ConfigError, match=r"'posterior/crps' .* set sweep.evaluate"):
        sweep(RATE, metric="posterior/crps").check(load_experiment("lorenz63-quick"))


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
