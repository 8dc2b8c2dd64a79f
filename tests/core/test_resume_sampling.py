"""Sampling that is stopped or killed goes on where it was, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from sda_core import load_experiment, stages
from sda_core.config import component, differences
from sda_core.data import TrajectoryStore, split_path
from sda_core.errors import AssimilationError, AssimilationWarning, StoppedError
from sda_core.experiment import Run
from sda_core.io import xarray as xarray_io
from sda_core.io.ensemble_file import EnsembleFile
from sda_core.method import SDA, EnsembleSampler, Execution
from sda_core.method.divergence import RedrawTracker
from sda_core.model import TrainedModel
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler import (
    DDPM,
    EDM,
    AdamsBashforth,
    DPMSolver,
    Heun,
    PredictorCorrector,
    Sampler,
    SamplerState,
)
from sda_core.stages.streaming import ensemble_file
from sda_core.system import SystemSpec
from sda_core.testing import ExactGuidance, draw, gaussian_problem

SHAPE, STEPS = (5, 4, 2), 6
SPEC = SystemSpec(variables=("a", "b"), time_step=0.1)
KILLS = Path(__file__).parent / "sampling_kills.py"


@component
class OwnSampler(Sampler):
    """Somebody's sampler, which knows how to step and nothing else."""

    order: ClassVar[int] = 1

    def step(self, denoiser, x, t, s, noise):
        alpha, sigma = denoiser.schedule.alpha(s), denoiser.schedule.sigma(s)
        return alpha * denoiser(x, t) + sigma * noise.normal(x.shape)


SAMPLERS = [
    DDPM(steps=STEPS),
    DDPM(steps=STEPS, denoise_final=False),
    AdamsBashforth(steps=STEPS),
    AdamsBashforth(steps=STEPS, order=2, denoise_final=False),
    DPMSolver(steps=STEPS),
    PredictorCorrector(steps=STEPS, corrections=2, largest_step=1.0),
    EDM(steps=STEPS),
    Heun(steps=STEPS),
    OwnSampler(steps=STEPS),
]


@pytest.fixture(autouse=True)
def _fast(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it takes long


class PowerCutError(Exception):
    """Nothing is done any more once it is raised."""


def _model():
    return gaussian_problem(length=4).model


def _file(path, identity=None, **settings) -> EnsembleFile:
    settings = {"minutes": 0.0} | settings
    return EnsembleFile(path / "posterior.nc", SPEC, SHAPE, identity or {}, **settings)


def _sample(sampler, ensemble=None, stop_at=None, batch_size=2, **settings):
    """Stopped before the given number of steps is reported, if there is one."""
    heard = []

    def on_step(step, steps):
        if step == stop_at:
            raise PowerCutError
        heard.append(step)

    model, guide = settings.pop("model", None) or _model(), settings.pop("guide", None)
    sampling = EnsembleSampler(model, sampler, SHAPE, 3, guide=guide, batch_size=batch_size)
    return sampling.sample(Execution(ensemble=ensemble, on_step=on_step, **settings)), heard


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_it_goes_on_at_every_step_bit_for_bit(sampler, tmp_path) -> None:
    whole, heard = _sample(sampler)
    assert heard == list(range(1, 3 * STEPS + 1))
    for step in (1, 4, STEPS, STEPS + 3):
        with pytest.raises(PowerCutError):
            _sample(sampler, _file(tmp_path / str(step)), stop_at=step)
        ensemble = _file(tmp_path / str(step))
        x, rest = _sample(sampler, ensemble)
        assert torch.equal(x, whole), step
        assert x is ensemble.values
        assert rest == heard[step:]  # step itself was kept before it was reported


def test_it_may_be_stopped_at_all_steps_in_turn(tmp_path) -> None:
    sampler = AdamsBashforth(steps=STEPS)
    for step in range(1, 3 * STEPS + 1):
        with pytest.raises(PowerCutError):
            _sample(sampler, _file(tmp_path), stop_at=step)
    x, rest = _sample(sampler, _file(tmp_path))
    assert rest == []
    assert torch.equal(x, _sample(sampler)[0])


@pytest.mark.parametrize("every", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_kills(every, tmp_path) -> None:
    ran = subprocess.run(
        [sys.executable, KILLS, tmp_path, str(every)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("operations") == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_asked_for(number, tmp_path) -> None:
    sampler = DPMSolver(steps=STEPS)

    def on_step(step, steps):
        if step == 4:
            os.kill(os.getpid(), number)

    ensemble = _file(tmp_path, minutes=60.0)  # nothing is due but what a stop keeps
    with pytest.raises(StoppedError, match=r"the same command resumes there .*posterior.part"):
        EnsembleSampler(_model(), sampler, SHAPE, 3, batch_size=2).sample(
            Execution(on_step=on_step, ensemble=ensemble)
        )
    lines = []
    x, rest = _sample(sampler, _file(tmp_path), announce=lines.append)
    assert rest[0] == 6  # the signal came after step 4, and was seen after step 5
    assert torch.equal(x, _sample(sampler)[0])
    assert lines == ["resuming after 0 of 5 members and 5 steps of the next 2"]


def test_between_checkpoints_finished_batches_are_kept(tmp_path) -> None:
    sampler, lines = DDPM(steps=STEPS), []
    with pytest.raises(PowerCutError):
        _sample(sampler, _file(tmp_path, minutes=60.0), stop_at=STEPS + 3)
    x, rest = _sample(sampler, _file(tmp_path), announce=lines.append)
    assert rest[0] == STEPS + 1
    assert torch.equal(x, _sample(sampler)[0])
    assert lines == ["resuming after 2 of 5 members"]


def test_it_goes_on_in_the_same_batches(tmp_path, monkeypatch) -> None:
    """Although there is less memory now. Where other ones are asked for, they are taken."""
    sampler = DDPM(steps=STEPS)
    with pytest.raises(PowerCutError):
        _sample(sampler, _file(tmp_path), stop_at=STEPS + 3, batch_size=3)
    monkeypatch.setattr("sda_core.method.memory_plan.available_memory", lambda device: 1)
    x, rest = _sample(sampler, _file(tmp_path), batch_size=3)
    assert rest == list(range(STEPS + 4, 2 * STEPS + 1))
    monkeypatch.undo()
    assert torch.equal(x, _sample(sampler, batch_size=3)[0])

    with pytest.raises(PowerCutError):
        _sample(sampler, _file(tmp_path / "other"), stop_at=STEPS + 3, batch_size=3)
    x, rest = _sample(sampler, _file(tmp_path / "other"), batch_size=1)
    assert rest == list(range(3 * STEPS + 1, 5 * STEPS + 1))
    torch.testing.assert_close(x, _sample(sampler)[0], rtol=1e-5, atol=1e-5)


def test_another_identity_starts_anew(tmp_path) -> None:
    with pytest.raises(PowerCutError):
        _sample(DDPM(steps=STEPS), _file(tmp_path, {"seed": 0}), stop_at=8)
    _, rest = _sample(DDPM(steps=STEPS), _file(tmp_path, {"seed": 1}))
    assert rest[0] == 1


# --- lost members ---


def _diverging(lost):
    """Guidance that loses the members whose noise starts so."""

    def guide(prior):
        forward = prior.forward

        def losing(x, t):
            doomed = torch.isclose(x[:, 0, :1], torch.tensor(lost)).any(1)
            return torch.where(doomed[:, None, None], torch.nan, forward(x, t))

        prior.forward = losing
        return prior

    return guide


def _first(seed, member) -> float:
    noise = MemberNoise(seed, [member]).normal((1, *SHAPE[1:]))
    schedule = _model().denoiser.schedule
    return float(schedule.sigma(torch.tensor(1.0)) * noise[0, 0, 0])


def test_drawing_lost_members_again_goes_on(tmp_path) -> None:
    """Stopped at every evaluation of the first attempt and of the next two."""
    sampler = DDPM(steps=3)
    again = seeded_generator(3, 1).initial_seed()
    lost = [_first(3, 1), _first(3, 4), _first(again, 4)]
    with pytest.warns(AssimilationWarning) as heard:
        whole, _ = _sample(sampler, guide=_diverging(lost))
    assert [str(w.message)[:6] for w in heard] == ["2 of 5", "1 of 5"]
    evaluations = 0

    def until(stop_at):
        def guide(prior):
            nonlocal evaluations
            prior = _diverging(lost)(prior)
            forward, evaluations = prior.forward, 0

            def counted(x, t):
                nonlocal evaluations
                evaluations += 1
                if evaluations == stop_at:
                    raise PowerCutError
                return forward(x, t)

            prior.forward = counted
            return prior

        return guide

    with warnings.catch_warnings(record=True) as everything:
        warnings.simplefilter("always")
        _sample(sampler, guide=until(None))
        # Twice 5 batches of 3 steps: the prior is guided for the plan, and again on top of that.
        assert evaluations == 2 * 5 * 3
        stops = range(1, evaluations, 4)
        for stop_at in stops:
            path = tmp_path / str(stop_at)
            with pytest.raises(PowerCutError):
                _sample(sampler, _file(path), guide=until(stop_at))
            x, _ = _sample(sampler, _file(path), guide=until(None))
            assert torch.equal(x, whole), stop_at
    assert len(everything) >= 2 * len(stops)


def test_draws_say_nothing_twice() -> None:
    draws = RedrawTracker(
        4, torch.tensor([torch.nan, 2.0, torch.nan, 3.0]), torch.tensor([1, 2, 1, 1])
    )
    drawn = []

    def draw(numbers, attempt):
        drawn.append((attempt, numbers.tolist()))
        draws.record(numbers, torch.full((len(numbers),), torch.nan))

    with pytest.warns(AssimilationWarning, match=r"1 of 4 .* attempt 3 of 4") as heard:
        draws.complete(draw)
    assert [entry for entry in drawn if entry[1]] == [(1, [3]), (2, [1])]
    assert len(heard) == 1


# --- the parts ---


def test_noise_goes_on() -> None:
    noise, other = MemberNoise(3, [0, 5]), MemberNoise(3, [0, 5])
    noise.normal((2, 3))
    noise.normal((2, 5))  # an odd number, so that a normal number is left over
    other.state = noise.state
    assert torch.equal(noise.normal((2, 7)), other.normal((2, 7)))


def test_samplers_keep_no_more_than_they_need() -> None:
    denoiser, noise = _model().denoiser, MemberNoise(0, [0])
    for sampler, most in (
        (AdamsBashforth(steps=6), 2),
        (DPMSolver(steps=6), 1),
        (DDPM(steps=6), 0),
    ):
        x, times = noise.normal((1, 4, 2)), sampler.times(denoiser.schedule)
        states = list(sampler.walk(denoiser, SamplerState(x), times, noise))
        assert [state.step for state in states] == [1, 2, 3, 4, 5]
        assert [len(state.past) for state in states] == [min(i, most) for i in (1, 2, 3, 4, 5)]
        rest = list(sampler.walk(denoiser, states[-1], times, noise))
        assert rest == []


def test_the_method_uses_the_ensemble(tmp_path) -> None:
    problem = gaussian_problem(length=4)
    tools = {"model": problem.model, "sampler": DDPM(steps=STEPS), "guidance": ExactGuidance()}
    ensemble = _file(tmp_path)
    x = draw(SDA(), problem.problem, 5, 0, ensemble=ensemble, **tools)
    assert x is ensemble.values
    assert torch.equal(x, draw(SDA(), problem.problem, 5, 0, **tools))


# --- a stage ---

STAGE = """
import os, signal, sys
from pathlib import Path
import torch
from sda_core import load_experiment, stages
from sda_core.io.ensemble_file import EnsembleFile

torch.set_num_threads(1)
directory, stage, deadline = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
saved = EnsembleFile.save

def save(self, progress):
    global deadline
    saved(self, progress)
    deadline -= 1
    if deadline == 0:
        os.kill(os.getpid(), signal.SIGKILL)

EnsembleFile.save = save
x = getattr(stages, stage)(load_experiment(directory), directory)
print(int(x.isfinite().all()), deadline)
"""


@pytest.mark.parametrize("stage", ["assimilate", pytest.param("sample", marks=pytest.mark.slow)])
def test_a_stage_that_is_killed_goes_on(stage, tmp_path) -> None:
    settings = [
        "data.trajectories=20",
        "data.length=40",
        "data.burn_in=8",
        "kernel={name='mlp', width=16, depth=1}",
        "model={window=9, stride=4, parameterization='edm'}",
        "sampler.steps=4",
        "method={name='sda', batch_size=2}",
        "sample={members=6, length=21}",
        "assimilate={members=6, length=21, checkpoint_minutes=1e-9}",
    ]
    experiment = load_experiment("lorenz63-quick", settings)
    results = []
    for deadline in (0, 9):
        directory = tmp_path / str(deadline)
        run = Run(experiment, directory, progress=False)
        stages.simulate(experiment, directory, progress=False)
        run.write_config()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            spec = TrajectoryStore(split_path(run.data, "train")).spec
            TrainedModel.create(
                experiment.kernel, experiment.schedule, experiment.model, spec
            ).save(run.model)
        command = [sys.executable, "-c", STAGE, directory, stage]
        if deadline:
            killed = subprocess.run([*command, str(deadline)], capture_output=True, text=True)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            ran = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
            # Each of 3 batches is saved after each of 4 steps and when it is finished.
            assert ran.stdout == f"1 -{15 - deadline}\n"
            assert "resuming after 2 of 6 members and 4 steps of the next 2" in ran.stderr
        else:
            getattr(stages, stage)(experiment, directory, progress=False)
        name = {"assimilate": "posterior.nc", "sample": "samples.nc"}[stage]
        results.append(xarray_io.load_array(directory / name, stage))
        assert not list(directory.glob("*.partial"))
        assert run.provenance()["stages"][stage]
    assert torch.equal(*results)
    if stage == "assimilate":  # one that is refused leaves the other's observations as they are
        observed = (directory / "observations.nc").read_bytes()
        other = load_experiment(directory, ["observation.std=3.0"])
        with (
            EnsembleFile(directory / "posterior.nc", SPEC, SHAPE, {}).alone(),
            pytest.raises(AssimilationError, match="another sampling"),
        ):
            stages.assimilate(other, directory, progress=False)
        assert (directory / "observations.nc").read_bytes() == observed


def test_what_an_ensemble_is_gone_on_with_by(tmp_path) -> None:
    def identity(*settings):
        run = Run(load_experiment("lorenz63-quick", settings), tmp_path, progress=False)
        with ensemble_file(run, "assimilate", SPEC, SHAPE, _model(), torch.ones(3)) as file:
            return file.identity

    first = identity("seed=1")
    assert identity("seed=1", "assimilate.format='zarr'", "method.batch_size=3") == first
    assert differences(first, identity("seed=2")) == ["seed (1 there, 2 asked for)"]
    changed = identity("seed=1", "observation.std=3.0", "system.rho=20.0")
    assert [line.split(" (")[0] for line in differences(first, changed)] == [
        "observation.std",
        "system.rho",
    ]
