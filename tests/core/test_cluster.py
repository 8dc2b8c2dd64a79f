"""Work that is spread over processes is the same as without them."""

from __future__ import annotations

import os
import pickle
import time
from contextlib import closing
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sda_core import errors, stages
from sda_core.cli import make_app
from sda_core.cluster import Cluster, Local, at_address
from sda_core.config import component, structure
from sda_core.data import SPLITS, split_path
from sda_core.errors import AssimilationWarning, ClusterError, ConfigError, SDAError
from sda_core.io.ensemble_file import EnsembleFile
from sda_core.kernel import Kernel
from sda_core.method import EnsembleSampler, Execution
from sda_core.model import ModelConfig, TrainedModel
from sda_core.observation import Concatenate, Select
from sda_core.plugins import Component, PluginManager, default_manager, hookimpl
from sda_core.sampler import DDPM
from sda_core.schedule import VP
from sda_core.system import Axis, SystemSpec
from sda_core.testing import check_cluster, cluster as kit, gaussian_problem

from . import cluster_runs, cluster_work


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@component
class Here(Local):
    """This process, which does the last task first, and can break off."""

    most: int = 1000

    def map(self, work, tasks, *, workers):
        work = pickle.loads(pickle.dumps(work))
        for count, i in enumerate(reversed(range(len(tasks)))):
            if count == self.most:
                raise KeyboardInterrupt
            yield i, work(tasks[i])


# --- the processes of this machine ---


def test_results_come_as_they_are_finished() -> None:
    found = list(Local().map(cluster_work.sleep, (4.0, 0.0, 0.1), workers=2))
    assert found == [(1, 0.0), (2, 0.1), (0, 4.0)]


def test_work_waits_for_results_to_be_taken(tmp_path) -> None:
    with closing(Local().map(cluster_work.Mark(tmp_path), range(9), workers=2)) as results:
        first, _ = next(results)
        time.sleep(1)
        assert len(list(tmp_path.iterdir())) <= 3  # each worker has done one, besides this
        rest = [number for number, _ in results]
    assert sorted([first, *rest]) == list(range(9))


def test_processes_end_when_no_more_results_are_taken(tmp_path) -> None:
    with closing(Local().map(cluster_work.Hang(tmp_path), range(2), workers=2)) as results:
        assert next(results) == (0, 0)
        while not (marks := list(tmp_path.glob("1-*"))):
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marks[0].name.split("-")[1]), 0)


def test_a_process_that_dies_is_told_of(tmp_path) -> None:
    with pytest.raises(ClusterError, match=r"one of 2 worker processes died.*fewer workers"):
        list(Local().map(cluster_work.Die(tmp_path, 1), range(2), workers=2))
    assert len(list(tmp_path.glob("0-*"))) <= 1  # it is not done again


def test_what_cannot_be_sent() -> None:
    with pytest.raises(ClusterError, match=r"cannot be sent to 2 worker.*define its classes"):
        list(Local().map(lambda task: task, range(3), workers=2))
    with pytest.raises(ClusterError, match="a result cannot be sent back"):
        list(Local().map(cluster_work.unsendable, range(2), workers=1))


def test_errors_say_where_they_come_from() -> None:
    with pytest.raises(ValueError, match="task 0 cannot be done") as raised:
        list(Local().map(cluster_work.fail, range(1), workers=1))
    assert "in a worker process" in raised.value.__notes__[0]
    assert "cluster_work.py" in raised.value.__notes__[0]


def test_all_errors_can_be_sent() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, SDAError)]
    assert len(classes) > 10
    for cls in classes:
        again = pickle.loads(pickle.dumps(cls("what is wrong")))
        assert (type(again), str(again)) == (cls, "what is wrong")


class _Broken(Cluster):
    def __init__(self, change=None, told=()) -> None:
        self.change, self.told = change, told

    def map(self, work, tasks, *, workers):
        yield from self.change([(i, work(task)) for i, task in enumerate(tasks)])

    def run_distributed(self, work, *, workers, gpus_per_worker=None, should_stop=None):
        yield from self.told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[1:], r"results of the tasks \[1, 2, 3, 4\]"),
        (lambda found: found, "in the process that asks for it"),
        (lambda found: [(i, (0, x[:3])) for i, (_, x) in found], "the result of another one"),
    ],
)
def test_the_kit_finds_broken_clusters(change, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_cluster(_Broken(change))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([(os.getpid(), 11.0), 0, 1, 2, "stopped"], "in the process that asks for it"),
        ([(1, 1.0), 0, 1, 2, "stopped"], "the sum of 1 and 10 over two processes is 1"),
        ([(1, 11.0), 0, 2, 1, "stopped"], r"is told, and \[0, 2, 1, 'stopped'\] comes"),
    ],
)
def test_the_kit_finds_broken_groups(told, message) -> None:
    with pytest.raises(AssertionError, match=message):
        kit._group(_Broken(told=told))


class _Forgetful(_Broken):
    """A group that saves in a directory, whose end does not come back."""

    def sync_directory(self, directory, **options):
        self.log = directory / "log"
        return super().sync_directory(directory, **options)

    def run_distributed(self, work, **options):
        with self.log.open("a") as log:
            log.write("saved")
        yield from self.told


def test_the_kit_finds_directories_that_do_not_come_back() -> None:
    told = [(1, 11.0), 0, 1, 2, "stopped"]
    with pytest.raises(AssertionError, match="is saved is 'lent, saved', and 'lent, ' comes"):
        kit._group(_Broken(told=told))
    with pytest.raises(AssertionError, match="'ended' is written, and 'lent, saved' comes"):
        kit._group(_Forgetful(told=told))


def test_the_kit_finds_groups_that_hide_errors() -> None:
    with pytest.raises(AssertionError, match="nothing is raised by a group"):
        kit._group_errors(_Broken())


# --- the cluster at an address ---


def test_an_address_needs_ray() -> None:
    with pytest.raises(ConfigError, match=r"--address head:6379 .*pip install sda-ray"):
        at_address("head:6379", manager=PluginManager(()))


@component
class Remote(Here):
    address: str | None = None
    retries: int = 3


class _Plugin:
    sda_interface = 1

    @hookimpl
    def sda_register_components(self):
        return [Component("cluster", "ray", f"{__name__}:Remote")]


def test_an_address_keeps_what_else_is_set() -> None:
    manager = PluginManager((), {"plugin": _Plugin()})
    found = at_address("head:6379", Remote(retries=1, address="auto"), manager=manager)
    assert (found.address, found.retries) == ("head:6379", 1)
    found = at_address("head:6379", Local(), manager=manager)
    assert (found.address, found.retries) == ("head:6379", 3)


# --- what is sent ---


def _sent(value):
    return pickle.loads(pickle.dumps(value))


def test_an_observation_is_sent_as_what_it_is_made_of() -> None:
    spec = SystemSpec(variables=("u", "v"), time_step=0.1)
    select = Select(variables=("v",), every=2, std=0.3)
    x = torch.randn(3, 6, 2)
    for observation in (select, Concatenate(parts=(select, Select(std=0.1)))):
        model = observation.bind(spec, 6)
        again = _sent(model)
        assert torch.equal(again.operator(x), model.operator(x))
        assert torch.equal(again.std, model.std)


def test_a_model_is_sent_with_its_weights_and_context(tmp_path) -> None:
    spec = SystemSpec(
        variables=("u",),
        axes=(Axis("place", np.arange(8.0)),),
        time_step=0.1,
        mean=(0.0,),
        std=(1.0,),
    )
    model = TrainedModel.create(
        structure(Kernel, {"name": "unet", "channels": [4], "blocks": [1]}),
        VP(),
        ModelConfig(window=3, context=("forcing",)),
        spec,
        {"forcing": torch.randn(8)},
    )
    x, t = torch.randn(2, 5, 1, 8), torch.tensor(0.5)
    again = _sent(attrs.evolve(model, provenance={"epochs": 3}))
    with torch.no_grad():
        y, same = (m.trajectory_denoiser()(x, t) for m in (model, again))
    assert torch.equal(y, same)
    assert again.provenance == {"epochs": 3}


# --- members ---

SPEC = SystemSpec(variables=("u", "v"), time_step=0.1)


def _sample(cluster=None, guide=None, ensemble=None, on_step=None):
    model = gaussian_problem(length=4).model
    sampling = EnsembleSampler(model, DDPM(steps=3), (7, 4, 2), 0, guide=guide, batch_size=2)
    return sampling.sample(
        Execution(cluster=cluster, workers=2, ensemble=ensemble, on_step=on_step)
    )


def test_diverged_members_are_drawn_again_as_in_one_process() -> None:
    results = []
    for cluster in (None, Here()):
        with pytest.warns(AssimilationWarning, match="of 7 members are not finite") as heard:
            results.append(
                (_sample(cluster, cluster_runs.Diverging), [str(w.message) for w in heard])
            )
    (x, said), (y, also) = results
    assert torch.equal(x, y)
    assert said == also


def test_sampling_goes_on_after_the_batches_that_are_finished(tmp_path) -> None:
    def file():
        return EnsembleFile(tmp_path / "posterior.nc", SPEC, (7, 4, 2), {})

    done: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        _sample(Here(most=3), ensemble=file())
    x = _sample(Here(), ensemble=file(), on_step=lambda *step: done.append(step))
    assert done == [(4, 4)]
    assert torch.equal(x, _sample())
    done.clear()
    _sample(ensemble=file(), on_step=lambda *step: done.append(step))  # nothing is left
    assert done == []


# --- the stages ---


def test_simulate_spread_over_processes_makes_the_same_files(tmp_path) -> None:
    for workers in (None, 2):
        stages.simulate(
            cluster_runs.experiment(), tmp_path / str(workers), progress=False, workers=workers
        )
    for split in SPLITS:
        one, other = (split_path(tmp_path / str(w) / "data", split) for w in (None, 2))
        assert one.read_bytes() == other.read_bytes()


def test_assimilate_spread_over_processes_gives_the_same_members(tmp_path) -> None:
    experiment = cluster_runs.experiment()
    stages.simulate(experiment, tmp_path, progress=False)
    cluster_runs.add_model(experiment, tmp_path)
    heard: list[tuple[int, int]] = []
    found = []
    for workers in (None, 1, 2):
        x = stages.assimilate(
            experiment, tmp_path, progress=lambda *step: heard.append(step), workers=workers
        )
        found.append((x.clone(), (tmp_path / "posterior.nc").read_bytes()))
    for x, file in found[1:]:
        assert torch.equal(x, found[0][0])
        assert file == found[0][1]
    assert [round(3 * done / total) for done, total in heard[-3:]] == [1, 2, 3]


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path) -> None:
    experiment = cluster_runs.experiment("assimilate.members=9")
    stages.simulate(experiment, tmp_path, progress=False)
    cluster_runs.add_model(experiment, tmp_path)
    one, three = (
        stages.assimilate(
            experiment, tmp_path, progress=False, workers=workers, cluster=Here()
        ).clone()
        for workers in (1, 3)
    )
    assert torch.equal(one, three)


def test_what_cannot_be_spread(tmp_path) -> None:
    experiment = cluster_runs.experiment("method={name='particle-filter', particles=64}")
    stages.simulate(experiment, tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"--workers 2: .*'particle-filter' depend on each other"):
        stages.assimilate(experiment, tmp_path, progress=False, workers=2)
    with pytest.raises(ConfigError, match="--workers 0: give the number of processes"):
        stages.assimilate(cluster_runs.experiment(), tmp_path, progress=False, workers=0)
    with pytest.raises(ConfigError, match="workers: got 0, allowed: 1 or"):
        stages.simulate(cluster_runs.experiment(), tmp_path, progress=False, workers=0)


def test_the_command_line(tmp_path, monkeypatch) -> None:
    app, directory = make_app(default_manager()), str(tmp_path)
    given = []
    monkeypatch.setattr(stages, "simulate", lambda *_, **options: given.append(options))
    sets = [f"--set={setting}" for setting in cluster_runs.SETTINGS]
    command = ["simulate", "lorenz63-quick", "-d", directory, "--quiet", *sets]
    done = CliRunner().invoke(app, [*command, "--workers=3"])
    assert done.exit_code == 0, done.output
    assert given == [{"progress": False, "workers": 3, "cluster": None}]
    done = CliRunner().invoke(app, [*command, "--address=auto"])
    assert isinstance(done.exception, ConfigError)
    assert "--address auto says where, but not how many: give --workers" in str(done.exception)
