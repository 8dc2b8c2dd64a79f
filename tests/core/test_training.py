"""The training loop."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sda_core.config import structure
from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import CheckpointError, ConfigError
from sda_core.schedule import VP
from sda_core.training import TrainConfig, Trainer, load_checkpoint, save_checkpoint

from .data_systems import Swing, make

WINDOW = 3


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    path = make(Swing(), tmp_path_factory.mktemp("data"), trajectories=40)
    return [
        WindowDataset(TrajectoryStore(path / f"{split}.h5"), WINDOW) for split in ("train", "valid")
    ]


class Network(nn.Module):
    def __init__(self, dropout) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * WINDOW + 1, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 2 * WINDOW)
        )

    def forward(self, x, t):
        return self.layers(torch.cat((x.flatten(1), t[:, None]), 1)).reshape(x.shape)


def _trainer(windows, seed=0, dropout=0.0, **settings) -> Trainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = WindowDenoiser(Network(dropout), VP(), WINDOW, "eps")
    settings = {"epochs": 6, "batch_size": 8, "validate_every": 2} | settings
    return Trainer(denoiser, *windows, TrainConfig(**settings), seed)


def _same(a: Trainer, b: Trainer) -> bool:
    tensors = [trainer.state_dict()[0] for trainer in (a, b)]
    assert tensors[0].keys() == tensors[1].keys()
    return all(torch.equal(x, tensors[1][key]) for key, x in tensors[0].items())


def test_loss_decreases(windows) -> None:
    trainer = _trainer(windows, epochs=40, learning_rate=1e-2, validate_every=40)
    before = trainer.validate()
    metrics = list(trainer.epochs())
    assert metrics[-1].valid_loss < 0.6 * before
    assert sum(m.loss for m in metrics[-5:]) < 0.6 * sum(m.loss for m in metrics[:5])


def test_metrics(windows) -> None:
    trainer = _trainer(windows, windows_per_trajectory=2)
    steps = trainer.steps_per_epoch
    assert steps == math.ceil(32 * 2 / 8)
    metrics = list(trainer.epochs())
    assert [m.epoch for m in metrics] == list(range(1, 7))
    assert [m.step for m in metrics] == [steps * i for i in range(1, 7)]
    assert [m.valid_loss is not None for m in metrics] == [False, True] * 3
    rates = [1e-3 * (1 - (m.step - 1) / (6 * steps)) for m in metrics]
    assert [m.learning_rate for m in metrics] == pytest.approx(rates)
    assert all(m.steps_per_second > 0 for m in metrics)
    assert trainer.validate() == trainer.validate()


def test_it_depends_on_its_seed_alone(windows) -> None:
    runs = []
    for seed, outside in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(outside)
        runs.append(_trainer(windows, seed=seed, epochs=2, dropout=0.1))
        list(runs[-1].epochs())
        state = torch.get_rng_state()
    assert torch.equal(state, torch.random.manual_seed(0).get_state())
    assert _same(runs[0], runs[1])
    assert not _same(runs[0], runs[2])


def test_resuming_keeps_the_memory_layout_of_weights(windows) -> None:
    def trainer() -> Trainer:
        made = _trainer(windows, epochs=4)
        for weight in made.denoiser.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.T.contiguous().T
        return made

    whole, first, second = trainer(), trainer(), trainer()
    list(whole.epochs())
    next(epochs := first.epochs())
    next(epochs)
    second.load_state_dict(*first.state_dict())
    for weight, state in second.optimizer.state.items():
        assert state["exp_avg"].stride() == weight.stride()
    list(second.epochs())
    assert _same(whole, second)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize(
    "more", [{"ema": None}, {"ema": 0.9}, {"ema": 0.9, "accumulate": 2, "precision": "bfloat16"}]
)
def test_resuming_is_bit_for_bit_the_same(windows, tmp_path, more, decay) -> None:
    settings = {"decay": decay, "warmup_steps": 3, "clip_norm": 0.5, "dropout": 0.2} | more
    whole = _trainer(windows, **settings)
    expected = list(whole.epochs())
    first = _trainer(windows, **settings)
    for metrics in first.epochs():
        if metrics.epoch == 3:
            break
    save_checkpoint(tmp_path / "checkpoint", *first.state_dict(), {"same": 1})
    second = _trainer(windows, **settings)
    torch.manual_seed(123)
    second.load_state_dict(*load_checkpoint(tmp_path / "checkpoint", {"same": 1}))
    resumed = list(second.epochs())
    for a, b in zip(expected[3:], resumed, strict=True):
        assert (a.epoch, a.step, a.loss, a.valid_loss) == (b.epoch, b.step, b.loss, b.valid_loss)
        assert a.learning_rate == b.learning_rate
    assert _same(whole, second)


def test_moving_average(windows) -> None:
    trainer = _trainer(windows, ema=0.3, epochs=2, learning_rate=0.1)
    trainer.denoiser.register_buffer("counter", torch.tensor(7.0))
    trainer.averaged.register_buffer("counter", torch.tensor(0.0))
    current = []
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, *_: current.append(
            [p.detach().clone() for p in trainer.denoiser.parameters()]
        )
    )
    list(trainer.epochs())
    assert len(current) == 8
    average = current[0]
    for n, weights in enumerate(current[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    for a, b in zip(average, trainer.best_denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert trainer.averaged.counter == 7
    assert trainer.best_denoiser is not trainer.denoiser
    assert _trainer(windows).best_denoiser is not None


def test_validation_is_of_the_averaged_weights(windows) -> None:
    trainer = _trainer(windows, ema=0.999, epochs=1)
    list(trainer.epochs())
    averaged = trainer.validate()
    with torch.no_grad():
        for p in trainer.denoiser.parameters():
            p.zero_()
    assert trainer.validate() == averaged


class Doubled(WindowDataset):
    """Windows in double precision, in which equal gradients can be told from similar ones."""

    def epoch(self, *arguments, **more):
        return (batch.double() for batch in super().epoch(*arguments, **more))


def test_accumulated_gradients_are_those_of_the_whole_batch(windows) -> None:
    doubled = [Doubled(split.store, WINDOW) for split in windows]
    trainers = {n: _trainer(doubled, batch_size=9, accumulate=n, epochs=3) for n in (1, 3, 9)}
    gradients, metrics = {}, {}
    for n, trainer in trainers.items():
        trainer.denoiser.double()
        seen = gradients[n] = []
        calls = []
        trainer.denoiser.kernel.register_forward_pre_hook(
            lambda _, inputs, calls=calls: calls.append(len(inputs[0]))
        )
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]])
            )
        )
        metrics[n] = [m.loss for m in trainer.epochs()]
        # 32 windows are three batches of 9 and one of 5.
        batches = {1: [9, 9, 9, 5], 3: [3] * 9 + [2, 2, 1], 9: [1] * 32}[n]
        assert calls[: len(batches)] == batches
        assert len(seen) == 3 * 4
    for n in (3, 9):
        torch.testing.assert_close(gradients[n], gradients[1], rtol=1e-9, atol=1e-12)
        assert metrics[n] == pytest.approx(metrics[1], rel=1e-6)


def test_bfloat16_is_for_the_network_in_training_alone(windows) -> None:
    full = _trainer(windows, ema=0.9, epochs=20)
    half = _trainer(windows, ema=0.9, epochs=20, precision="bfloat16")
    assert half.validate() == full.validate()
    seen = []
    half.denoiser.kernel.layers.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
    )
    a, b = (torch.tensor([m.loss for m in t.epochs()]) for t in (full, half))
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert len(seen) == half.num_steps  # the validation is of the averaged network
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.02, atol=0)
    assert {v.dtype for v in half.state_dict()[0].values()} == {torch.float32}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_compiling_changes_neither_names_nor_results(windows, monkeypatch, ema) -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    settings = {"batch_size": 12, "epochs": 3, "ema": ema, "validate_every": 1}
    plain = _trainer(windows, **settings)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled = _trainer(windows, compile=True, **settings)
    names = list(compiled.denoiser.state_dict())
    expected, metrics = (list(trainer.epochs()) for trainer in (plain, compiled))
    # One graph for the batches of 12, one for the last of 8, and none for the validation.
    assert len(graphs) == 2
    assert list(compiled.denoiser.state_dict()) == names == list(plain.denoiser.state_dict())
    for a, b in zip(expected, metrics, strict=True):
        assert (a.loss, a.valid_loss) == pytest.approx((b.loss, b.valid_loss), rel=1e-5)


@pytest.mark.slow
def test_compiling_for_this_machine(windows) -> None:
    settings = {"batch_size": 16, "epochs": 2, "ema": 0.9, "precision": "bfloat16"}
    plain, compiled = (_trainer(windows, compile=c, **settings) for c in (False, True))
    torch._dynamo.reset()
    for a, b in zip(plain.epochs(), compiled.epochs(), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=0.01)


class Synchronizations(TorchDispatchMode):
    """Counts values that the host asks of a device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_once_in_an_epoch(windows) -> None:
    settings = {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2, "variable_weights": (1.0, 2.0)}
    for precision in ("float32", "bfloat16"):
        trainer = _trainer(windows, epochs=2, precision=precision, **settings)
        assert trainer.steps_per_epoch == 4
        epochs = trainer.epochs()
        for expected in (1, 2):  # the loss, and where there is a validation its loss
            with Synchronizations() as seen:
                next(epochs)
            assert seen.count == expected


@pytest.mark.parametrize(
    ("decay", "values"),
    [
        ("linear", [1, 0.75, 0.5, 0.01]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 + math.cos(math.pi * 0.99)) / 2]),
        ("exponential", [1, math.exp(-7 / 16), math.exp(-7 / 4), math.exp(-7 * 0.99**2)]),
        ("constant", [1, 1, 1, 1]),
    ],
)
def test_learning_rate_decays(decay, values) -> None:
    config = TrainConfig(decay=decay)
    assert [config.learning_rate_at(i, 100) for i in (0, 25, 50, 99)] == pytest.approx(values)


def test_warmup() -> None:
    config = TrainConfig(decay="constant", warmup_steps=4)
    rates = [config.learning_rate_at(i, 100) for i in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_gradients_are_clipped(windows, monkeypatch) -> None:
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def record(parameters, max_norm):
        parameters = list(parameters)
        before = clip(parameters, max_norm)
        after = torch.cat([p.grad.flatten() for p in parameters]).norm()
        norms.append((float(before), float(after)))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    list(_trainer(windows, epochs=1).epochs())
    assert not norms
    list(_trainer(windows, epochs=1, clip_norm=1e-3).epochs())
    assert len(norms) == 4
    for before, after in norms:
        assert before > 1e-2
        assert after == pytest.approx(1e-3, rel=1e-2)


def test_variable_weights_are_used(windows) -> None:
    only_q = _trainer(windows, variable_weights=(1.0, 0.0), epochs=2)
    both = _trainer(windows, epochs=2)
    assert only_q.validate() != both.validate()
    list(only_q.epochs())
    last = only_q.denoiser.kernel.layers[-1].weight.grad
    assert last is None  # gradients are freed
    loss = only_q.denoiser.loss(
        torch.randn(8, WINDOW, 2), torch.Generator().manual_seed(0), only_q.weights
    )
    loss.backward()
    rows = only_q.denoiser.kernel.layers[-1].weight.grad.abs().sum(1).reshape(WINDOW, 2)
    assert (rows[:, 0] > 0).all()
    assert (rows[:, 1] == 0).all()


def test_errors(windows, tmp_path) -> None:
    with pytest.raises(
        ConfigError, match=r"variable_weights has 3 entries, but there are 2 variables \['q', 'p'\]"
    ):
        _trainer(windows, variable_weights=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"variable_weights: got .*allowed: 0 or greater"):
        structure(TrainConfig, {"variable_weights": [1.0, -1.0]})
    with pytest.raises(ConfigError, match=r"ema: got .*allowed: from 0 to 1"):
        structure(TrainConfig, {"ema": 1.5})
    with pytest.raises(
        ConfigError, match=r"accumulate = 5 does not divide batch_size = 64: choose a divisor"
    ):
        structure(TrainConfig, {"accumulate": 5})


def test_checkpoint_errors(tmp_path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot be read .*delete it to train from the sta"):
        load_checkpoint(path, {"a": {"b": 1}})
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint .* cannot be read"):
        load_checkpoint(path, {"a": {"b": 1}})
    save_checkpoint(path, {"x": torch.arange(3)}, {"epoch": 2, "step": 9}, {"a": {"b": 1}})
    tensors, counters = load_checkpoint(path, {"a": {"b": 1}})
    assert torch.equal(tensors["x"], torch.arange(3))
    assert counters == {"epoch": 2, "step": 9}
    with pytest.raises(
        CheckpointError, match=r"another configuration\. It differs in a\.b \(1 there, 2 asked"
    ):
        load_checkpoint(path, {"a": {"b": 2}})
    from safetensors.torch import save_file

    save_file({"x": torch.arange(3)}, path, {"schema": "99"})
    with pytest.raises(CheckpointError, match=r"has schema 99, and this version .* reads 2"):
        load_checkpoint(path, {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
