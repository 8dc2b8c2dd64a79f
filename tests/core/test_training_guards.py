"""What keeps a training from going wrong: optimizers, torch's switches, memory, settings."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch import nn

from sda_core.config import structure
from sda_core.errors import ConfigError
from sda_core.training import TrainConfig, arithmetic_rules
from sda_core.training.memory import memory_in_use, peak_memory, reset_peak_memory
from sda_core.training.optimizers import make_optimizer

CPU = torch.device("cpu")


def steps(name: str, skipped: tuple[int, ...], betas: tuple[float, float]) -> torch.Tensor:
    """Weights after some steps, and others that are skipped."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 64, generator=generator))
    config = TrainConfig(optimizer=name, betas=betas, learning_rate=0.1)
    optimizer = make_optimizer(config, iter([weight]))
    for step in range(4):
        if step in skipped:
            weight.grad = torch.full_like(weight, torch.nan)
            optimizer.found_inf = torch.ones(())
            optimizer.step()
        weight.grad = torch.randn(64, 64, generator=generator)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_skipped_step_leaves_no_trace(name, betas, monkeypatch) -> None:
    empty_like = torch.empty_like

    def dirty(*arguments, **options):  # as memory often is
        return empty_like(*arguments, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", dirty)
    expected = steps(name, (), betas)
    assert expected.isfinite().all()
    for skipped in ((0,), (2,), (0, 1, 3)):
        assert torch.equal(steps(name, skipped, betas), expected)


def test_momentum_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(30, generator=generator))
    theirs = nn.Parameter(ours.detach().clone())
    config = TrainConfig(optimizer="sgd", betas=(0.8, 0.9), learning_rate=0.1, weight_decay=0.02)
    optimizers = (
        make_optimizer(config, [ours]),
        torch.optim.SGD([theirs], 0.1, 0.8, weight_decay=0.02, nesterov=True, fused=True),
    )
    for _ in range(5):
        ours.grad = torch.randn(30, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(ours, theirs)


def precisions() -> list[str]:
    backends = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return [part.fp32_precision for part in parts]


def older() -> tuple[object, ...]:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


def others() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()


@pytest.fixture(params=["untouched", "older", "newer", "newer, mixed"])
def switches(request):
    """Torch's switches, set by either of its interfaces to them, or not at all."""
    before = precisions()
    if request.param == "older":
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = False
    elif request.param == "newer":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
    elif request.param == "newer, mixed":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
    yield request.param
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.fp32_precision = before[0]
    torch.backends.mkldnn.matmul.fp32_precision = before[3]
    assert precisions() == before


def test_torchs_switches_are_set_and_put_back(switches) -> None:
    def state():
        return precisions(), others(), older() if switches in ("untouched", "older") else None

    before = state()
    with arithmetic_rules(TrainConfig(tf32=True)):
        # What is read through either interface is the same.
        assert precisions()[:3] == ["tf32"] * 3
        assert older() == ("high", True, True)
        assert others() == (True, False)
    assert state() == before
    with arithmetic_rules(TrainConfig(deterministic=True)):
        assert "tf32" not in precisions()
        assert older() == ("highest", False, False)
        assert others() == (False, True)
    assert state() == before
    with pytest.raises(ZeroDivisionError), arithmetic_rules(TrainConfig(deterministic=True)):
        raise ZeroDivisionError
    assert state() == before


def test_determinism_on_a_gpu_takes_the_environment(monkeypatch) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, "")  # so that it is put back
    monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with arithmetic_rules(TrainConfig()):
        pass
    assert name not in os.environ
    before = others()
    with (
        pytest.raises(
            ConfigError,
            match=rf"deterministic = true takes {name} .* not set, and a GPU is in use already.*"
            rf"start with {name}=:4096:8",
        ),
        arithmetic_rules(TrainConfig(deterministic=True)),
    ):
        pass
    assert others() == before
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with arithmetic_rules(TrainConfig(deterministic=True)):
        assert os.environ[name] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv(name, ":16:8")
    with arithmetic_rules(TrainConfig(deterministic=True)):
        assert os.environ[name] == ":16:8"


@pytest.mark.skipif(sys.platform != "linux", reason="of a process, on Linux alone")
def test_peak_memory_is_of_what_follows_its_reset() -> None:
    size = 2**27
    torch.ones(size, dtype=torch.uint8)  # freed at once
    assert peak_memory(CPU) >= memory_in_use(CPU) + size // 2
    reset_peak_memory(CPU)
    peak = peak_memory(CPU)
    assert abs(peak - memory_in_use(CPU)) < size // 4
    torch.ones(size, dtype=torch.uint8)
    assert size // 2 < peak_memory(CPU) - peak < 2 * size


def test_memory_without_what_linux_tells(monkeypatch) -> None:
    class Absent:
        def __init__(self, path) -> None: ...

        def read_text(self):
            raise FileNotFoundError

        def write_text(self, text):
            raise PermissionError

    monkeypatch.setattr("sda_core.training.memory.Path", Absent)
    reset_peak_memory(CPU)
    assert memory_in_use(CPU) == peak_memory(CPU) > 2**20


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"betas": [0.9, 1.0]}, r"betas: got .*allowed: from 0 to less than 1"),
        ({"betas": [-0.1, 0.9]}, r"betas: got .*allowed: from 0 to less than 1"),
        (
            {"guards": {"slow_down": 0.0}},
            r"slow_down: got 0\.0, allowed: greater than 0, at most 1",
        ),
        (
            {"guards": {"slow_down": 1.5}},
            r"slow_down: got 1\.5, allowed: greater than 0, at most 1",
        ),
        ({"guards": {"spike": 1.0}}, r"spike: got 1\.0, allowed: greater than 1"),
    ],
)
def test_settings_out_of_range(table, message) -> None:
    with pytest.raises(ConfigError, match=message):
        structure(TrainConfig, table)


def test_settings_at_the_ends_of_their_range() -> None:
    table = {"betas": [0.0, 0.999], "guards": {"slow_down": 1.0, "spike": 1.01}}
    assert structure(TrainConfig, table).guards.slow_down == 1.0
