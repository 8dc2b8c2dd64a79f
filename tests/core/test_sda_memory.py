"""Sampling within a memory budget: what is measured, what is chosen, and what comes of it."""

from __future__ import annotations

import subprocess
import sys

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sda_core.config import component
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.errors import AssimilationError
from sda_core.guidance import Likelihood
from sda_core.io.progress import announce
from sda_core.method import (
    SDA,
    EnsembleSampler,
    Execution,
    MemoryPlan,
    Problem,
    peak_bytes,
    plan_memory,
)
from sda_core.model import ModelConfig, TrainedModel
from sda_core.observation import Function
from sda_core.random import GeneratorNoise, MemberNoise, seeded_generator
from sda_core.sampler import DDIM, DDPM, PredictorCorrector
from sda_core.schedule import VP
from sda_core.system import Axis, System, SystemSpec
from sda_core.testing import ExactGuidance, draw, gaussian_problem
from sda_dps.dps import DPS
from sda_dps.gaussian import GaussianGuidance
from sda_dps.mmps import MMPS
from sda_mlp.mlp import MLP

GIB = 2**30
CPU = torch.device("cpu")


@component
class Field(System):
    """Something with 2 variables in 16 places."""

    @property
    def spec(self) -> SystemSpec:
        return SystemSpec(
            variables=("u", "v"),
            axes=(Axis("place", np.arange(16)),),
            time_step=0.1,
            mean=(2.0, 0.0),
            std=(1.5, 0.8),
        )

    def prior(self, shape, generator):
        raise NotImplementedError

    def transition(self, x, generator):
        raise NotImplementedError


def _model(**config) -> TrainedModel:
    config = {"window": 5, "stride": 2, "parameterization": "edm"} | config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kernel = MLP(width=256, depth=4)
        return TrainedModel.create(kernel, VP(), ModelConfig(**config), Field().spec)


def _problem(length: int, every: int = 3) -> Problem:
    system = Field()
    observe = Function(target=lambda x: x[..., ::every, :1, :].mean(-1), statewise=False, std=0.3)
    observation = observe.bind(system.spec, length)
    y = torch.linspace(-1, 1, observation.std.numel(), dtype=torch.float64)
    return Problem(system=system, observation=observation, y=y.reshape(observation.shape))


def _likelihood(problem: Problem) -> Likelihood:
    observation = problem.observation
    return Likelihood(operator=observation.operator, y=problem.y, noise=observation.noise)


def _step(sampler, guidance, problem):
    """What is done at each noise level, for any number of members."""

    def step(prior: Denoiser, members: int = 1) -> None:
        noise = GeneratorNoise(seeded_generator(0))
        t, s = sampler.times(prior.schedule).float()[:2]
        guided = guidance(prior, _likelihood(problem)) if guidance else prior
        with torch.no_grad():
            sampler.step(guided, noise.normal((members, *problem.shape)), t, s, noise)

    return step


# --- measuring ---


def test_peak_is_what_is_alive_at_one_time() -> None:
    outside = torch.zeros(1000)

    def work():
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + outside  # 8,000
        b.mul_(2).view(10, 100).sub_(1)  # nothing new
        del a
        c = torch.cat((b, b))  # 12,000
        del b, c
        return outside + 1

    assert peak_bytes(work) == 12_000
    assert peak_bytes(lambda: outside.reshape(10, 100)) == 0


def test_peak_counts_what_is_kept_for_the_backward_pass() -> None:
    x = torch.zeros(1000, requires_grad=True)

    def forward(steps):
        y = x
        for _ in range(steps):
            y = y.sin()
        return y.sum()

    with torch.no_grad():
        assert peak_bytes(lambda: forward(8)) <= 8_004
    kept = peak_bytes(lambda: forward(8)) - peak_bytes(lambda: forward(4))
    assert kept == 16_000
    back = [peak_bytes(lambda n=n: torch.autograd.grad(forward(n), x)) for n in (4, 8)]
    assert back[1] - back[0] == 16_000


# --- choosing ---


class Known(Denoiser):
    """Windows that take 1,000 bytes each with their input and output, whatever else happens."""

    def forward(self, x_t, t):
        torch.zeros(len(x_t), 1000 - 8 * x_t[0].numel(), dtype=torch.uint8)
        return x_t + 0


@settings(deadline=None)
@given(
    members=st.integers(1, 40),
    length=st.integers(5, 60),
    stride=st.integers(1, 5),
    kib=st.integers(8, 4000),
    batch_size=st.none() | st.integers(1, 50),
    chunk_size=st.none() | st.integers(1, 300),
)
def test_plans(members, length, stride, kib, batch_size, chunk_size) -> None:
    prior = MarkovBlanketDenoiser(Known(VP()), 5, stride, chunk_size=chunk_size)

    def plan(kib) -> MemoryPlan:
        return plan_memory(
            prior,
            (members, length, 2),
            lambda prior: prior(torch.zeros(1, length, 2), torch.tensor(0.5)),
            device=CPU,
            gradients=False,
            batch_size=batch_size,
            memory=kib / 2**20,
        )

    everything = plan(1e6)
    windows = everything.windows
    assert everything.batch_size == min(members, batch_size or members)
    wanted = everything.batch_size * windows
    assert everything.chunk_size == min(wanted, chunk_size or wanted)
    try:
        chosen = plan(kib)
    except AssimilationError:
        least = attrs.evolve(
            everything,
            batch_size=min(members, batch_size or 1),
            chunk_size=min(chunk_size or 1, members * windows),
        )
        assert least.bytes > 1024 * kib
        return
    assert 1 <= chosen.batch_size <= members
    assert 1 <= chosen.chunk_size <= chosen.batch_size * windows
    if batch_size:
        assert chosen.batch_size == everything.batch_size
    if chunk_size:
        assert chosen.chunk_size == min(chunk_size, chosen.batch_size * windows)
    if not (batch_size and chunk_size):
        assert chosen.bytes <= 1024 * kib
    if everything.bytes <= 1024 * kib:
        sizes = everything.batch_size, everything.chunk_size
        assert (chosen.batch_size, chosen.chunk_size) == sizes
    # Nothing is left that would save a round.
    if not chunk_size:
        chunks = -(-chosen.batch_size * windows // chosen.chunk_size)
        if chunks > 1:
            fewer = -(-chosen.batch_size * windows // (chunks - 1))
            assert attrs.evolve(chosen, chunk_size=fewer).bytes > 1024 * kib


def test_a_plan_in_one_line() -> None:
    plan = MemoryPlan(
        members=16,
        length=32,
        windows=8,
        member_bytes=40 * 2**20,
        window_bytes=5347738,
        fixed_bytes=0,
        batch_size=16,
        chunk_size=64,
    )
    assert plan.bytes == 640 * 2**20 + 64 * 5347738
    assert str(plan) == (
        "16 members x 32 states: 8 windows each of 5.1 MiB; "
        "16 members and 64 windows at once, about 966.4 MiB"
    )
    assert "0.3 KiB" in str(attrs.evolve(plan, window_bytes=300))
    assert str(attrs.evolve(plan, chunk_size=128)).endswith("about 1.3 GiB")


GUIDANCE = [None, GaussianGuidance(), GaussianGuidance(detach=True), DPS(), MMPS()]


@pytest.mark.parametrize("guidance", GUIDANCE, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("fold", ["center", "average"])
@pytest.mark.parametrize("chunk_size", [3, 30, 1000])
def test_a_plan_holds(guidance, fold, chunk_size) -> None:
    """What a step takes is no more than planned, and not far less."""
    problem, members = _problem(24, every=8), 6
    prior = _model(fold=fold, chunk_size=chunk_size).trajectory_denoiser()
    step = _step(PredictorCorrector(corrections=1), guidance, problem)
    plan = plan_memory(
        prior, (members, *problem.shape), step, device=CPU, gradients=guidance is not None
    )
    assert (plan.batch_size, plan.windows) == (members, 11)
    taken = peak_bytes(lambda: step(prior, members))
    assert taken <= plan.bytes
    if guidance is None or not getattr(guidance, "detach", False):
        assert taken > 0.5 * plan.bytes


def test_memory_does_not_grow_with_members_and_length() -> None:
    """4 times the members and 4 times the length within the same budget."""

    def peak(members, length, memory) -> int:
        prior, problem = _model().trajectory_denoiser(), _problem(length)
        step = _step(DDIM(), GaussianGuidance(), problem)
        plan = plan_memory(
            prior, (members, *problem.shape), step, device=CPU, gradients=True, memory=memory
        )
        prior.chunk_size = plan.chunk_size
        return peak_bytes(lambda: step(prior, plan.batch_size))

    assert peak(16, 129, 1) > 14 * peak(4, 33, 1)
    budget = 2**20
    assert 0.4 * budget < peak(4, 33, budget / GIB) < budget
    assert 0.4 * budget < peak(16, 129, budget / GIB) < budget


PROCESS = """
import torch
from sda_core.config import component
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.method import SDA, Problem
from sda_core.observation import Select
from sda_core.sampler import DDIM
from sda_core.schedule import VP
from sda_core.testing import GaussianChain, draw, gaussian_problem
from sda_dps.gaussian import GaussianGuidance

class Wide(Denoiser):  # 3.5 MiB for each window
    def forward(self, x_t, t):
        h = x_t.tanh().mean((1, 2))[:, None] + torch.zeros(2**17)
        for _ in range(3):
            h = h.square()
        return 0.5 * x_t + 0.01 * h.mean(1)[:, None, None]

class Model:
    device, standardization = torch.device("cpu"), gaussian_problem(length=2).model.standardization
    def trajectory_denoiser(self):
        return MarkovBlanketDenoiser(Wide(VP()), 5, 2)

def run(members, length):
    system = GaussianChain()
    observation = Select(every=4, std=0.3).bind(system.spec, length)
    y = torch.zeros(observation.shape, dtype=torch.float64)
    tools = dict(
        model=Model(), sampler=DDIM(steps=2), guidance=GaussianGuidance(), announce=print
    )
    problem = Problem(system=system, observation=observation, y=y)
    draw(SDA(memory=1 / 32), problem, members, 0, **tools)
    return peak()

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1024

torch.set_num_threads(1)
print(run(3, 11), run(12, 41))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_process_does_not_grow() -> None:
    """As the operating system counts it: 228 windows of 3.5 MiB where 32 MiB are allowed."""
    ran = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True
    )
    *plans, numbers = ran.stdout.splitlines()
    assert [plan.split(";")[0] for plan in plans] == [
        "3 members x 11 states: 4 windows each of 3.5 MiB",
        "12 members x 41 states: 19 windows each of 3.5 MiB",
    ]
    small, large = map(float, numbers.split())  # MiB
    assert large - small < 100


# --- sampling ---


def test_members_do_not_depend_on_the_plan() -> None:
    problem, model = _problem(17), _model()
    lines = []
    tools = dict(
        model=model,
        sampler=DDPM(steps=12),
        guidance=GaussianGuidance(gamma=0.1),
        announce=lines.append,
    )
    whole = draw(SDA(), problem, 7, 0, **tools)
    assert "7 members and 49 windows at once" in lines[0]
    tight = draw(SDA(memory=250 / 2**20), problem, 7, 0, **tools)
    assert "4 members and 10 windows at once" in lines[1]
    few = draw(SDA(batch_size=3), problem, 7, 0, **tools)
    assert "3 members and 21 windows at once" in lines[2]
    tools = tools | {"model": _model(chunk_size=5)}
    chunked = draw(SDA(), problem, 7, 0, **tools)
    assert "7 members and 5 windows at once" in lines[3]
    # A chunk size beyond all windows takes no room from the members.
    tools = tools | {"model": _model(chunk_size=10_000)}
    draw(SDA(memory=2**-9), problem, 7, 0, **tools)
    assert "7 members and 49 windows at once" in lines[4]
    assert whole.dtype == torch.float32
    for other in (tight, few, chunked):
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-5)


def test_sampling_the_prior_in_batches() -> None:
    model, shape = _model(), (5, 17, 2, 16)
    sampler, heard, lines = DDPM(steps=8), [], []
    x = EnsembleSampler(model, sampler, shape, 3, batch_size=2).sample(
        Execution(
            announce=lambda line: lines.append((len(heard), line)),
            on_step=lambda *done: heard.append(done),
        )
    )
    z = sampler.sample(model.trajectory_denoiser(), shape, MemberNoise(3, range(5)))
    torch.testing.assert_close(x, model.standardization.to_physical(z), rtol=1e-5, atol=1e-5)
    assert [at for at, _ in lines] == [0]
    assert "; 2 members and 14 windows at once" in lines[0][1]
    assert heard[-1] == (24, 24)
    assert heard == sorted(heard)


def test_a_denoiser_that_is_not_composed() -> None:
    problem, lines = gaussian_problem(length=6), []
    tools = dict(
        model=problem.model, sampler=DDIM(), guidance=ExactGuidance(), announce=lines.append
    )
    whole = draw(SDA(), problem.problem, 5, 0, **tools)
    parts = draw(SDA(memory=8 / 2**20), problem.problem, 5, 0, **tools)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert "5 members and 5 windows" in lines[0]
    assert "5 members and 5 windows" not in lines[1]


def test_what_does_not_fit() -> None:
    problem = _problem(17)
    tools = dict(model=_model(), sampler=DDIM(), guidance=GaussianGuidance())
    with pytest.raises(
        AssimilationError,
        match=r"1 member\(s\) of 17 states and 1 window\(s\) at once take about .* but there are "
        r"1.0 KiB to use: give more memory \(method.memory, in GiB\), or take fewer states",
    ):
        draw(SDA(memory=1 / 2**20), problem, 4, 0, **tools)
    with pytest.raises(AssimilationError, match=r"40 member\(s\) .* and 1 window\(s\).*or less at"):
        draw(SDA(memory=30 / 2**20, batch_size=40), problem, 40, 0, **tools)
    # Where both are given there is nothing to choose.
    tools = tools | {"model": _model(chunk_size=7)}
    draw(SDA(memory=1 / 2**20, batch_size=1), problem, 1, 0, **tools)


def test_half_of_what_is_free(monkeypatch) -> None:
    monkeypatch.setattr("sda_core.method.memory_plan.available_memory", lambda device: 2000)
    tools = dict(model=_model(), sampler=DDIM(), guidance=GaussianGuidance())
    with pytest.raises(AssimilationError, match=r"there are 1.0 KiB to use \(half of what is free"):
        draw(SDA(), _problem(17), 4, 0, **tools)


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_the_plan_is_shown_with_progress(progress, shown, capsys) -> None:
    announce(progress, "16 members")
    assert capsys.readouterr() == ("", "16 members\n" if shown else "")
