"""The training loop."""

from __future__ import annotations

import copy
import functools
import json
import math
import time

import attrs
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sda_core import threads
from sda_core.config import structure
from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.denoiser import WindowDenoiser
from sda_core.errors import CheckpointWarning, ConfigError, TrainingError
from sda_core.schedule import VP
from sda_core.training import (
    EpochMetrics,
    GuardConfig,
    LossSpike,
    SkippedBatch,
    Step,
    TrainConfig,
    Trainer,
    anomaly_hunt,
    trainer as trainer_module,
)
from sda_core.training.random_state import RandomState

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
    times = {"history.steps_per_second", "history.utilization"}
    return all(
        torch.equal(x.nan_to_num(), tensors[1][key].nan_to_num())
        for key, x in tensors[0].items()
        if key not in times and not key.startswith("meter.")
    )


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


def test_measuring_threads_leaves_no_trace(windows, monkeypatch) -> None:
    class Norm(Network):
        def __init__(self, dropout) -> None:
            super().__init__(dropout)
            self.layers[1] = nn.BatchNorm1d(32)

    monkeypatch.setitem(globals(), "Network", Norm)
    monkeypatch.setattr(threads, "_MEASURE", 0.01)
    settings = {"epochs": 2, "dropout": 0.1, "ema": 0.9, "accumulate": 2}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measured = _trainer(windows, **settings)
        steps = measured.events()
        next(steps)
        assert torch.get_num_threads() == measured.threads
        resumed = _trainer(windows, **settings)
        resumed.load_state_dict(*map(copy.deepcopy, measured.state_dict()))
        list(steps)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("SDA_THREADS", str(measured.threads))
        torch.set_num_threads(measured.threads)
        fixed = _trainer(windows, **settings)
        for trainer in (fixed, resumed):
            list(trainer.epochs())
            assert _same(measured, trainer)
            assert trainer.threads == measured.threads
    finally:
        torch.set_num_threads(before)


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


def _through_json(state):
    return json.loads(json.dumps(state))


MORE = [
    {"ema": None},
    {"ema": 0.9, "decay": "cosine"},
    {"ema": 0.9, "accumulate": 2, "precision": "bfloat16"},
    {"precision": "float16"},
    {"optimizer": "sgd", "learning_rate": 1e-2},
    {"optimizer": "adam", "windows_per_trajectory": 2},
]


@pytest.mark.parametrize("more", MORE)
def test_resuming_after_any_step_is_bit_for_bit_the_same(windows, more) -> None:
    settings = {"epochs": 4, "warmup_steps": 3, "clip_norm": 0.5, "dropout": 0.2} | more
    whole = _trainer(windows, **settings)
    states, expected = [], []
    for event in whole.events():
        tensors, state = whole.state_dict()
        states.append(({k: v.clone() for k, v in tensors.items()}, _through_json(state)))
        expected.append(event)
        if event.step == 5:
            whole.report()
    assert [e.step for e in expected] == list(range(1, whole.num_steps + 1))
    last = whole.report()
    for i in range(0, len(states), 3):
        torch.manual_seed(123)
        resumed = _trainer(windows, **settings)
        resumed.load_state_dict(*states[i])
        for a, b in zip(expected[i + 1 :], resumed.events(), strict=True):
            assert type(a) is type(b)
            assert _without_times(a) == _without_times(b)
            if b.step == 5:
                resumed.report()
        assert _same(whole, resumed)
        assert [_without_times(m) for m in resumed.history] == [
            _without_times(m) for m in whole.history
        ]
        timed = {"windows_per_second", "utilization"}
        again = resumed.report()
        assert {k: v for k, v in again.items() if k not in timed} == {
            k: v for k, v in last.items() if k not in timed
        }


def _without_times(event):
    return {
        k: v for k, v in attrs.asdict(event).items() if k not in ("steps_per_second", "utilization")
    }


def test_what_is_done_between_steps_does_not_change_the_training(windows) -> None:
    quiet, busy = (_trainer(windows, epochs=2, dropout=0.3) for _ in range(2))
    list(quiet.epochs())
    outside = torch.random.manual_seed(7).get_state()
    for _ in busy.events():
        assert torch.equal(torch.get_rng_state(), outside)
        torch.randn(5)
        outside = torch.get_rng_state()
        busy.best_denoiser.eval()
        busy.report()
        busy.validate()
    assert _same(quiet, busy)


def test_report(windows) -> None:
    trainer = _trainer(windows, epochs=2, learning_rate=1e-9, weight_decay=0.0)
    for event in trainer.events():
        if event.step == 4:
            first = trainer.report()
            assert first["loss"] == pytest.approx(trainer.history[0].loss, rel=1e-6)
    report = trainer.report()
    assert report["loss"] == pytest.approx(trainer.history[1].loss, rel=1e-6)
    # 32 windows at stratified times: four in each eighth.
    levels = [report[f"loss_t{i}"] for i in range(8)]
    assert sum(levels) / 8 == pytest.approx(report["loss"], rel=1e-6)
    random = RandomState(0, torch.device("cpu"), 0)
    random.begin_epoch(1)
    draws, order = random.draws, random.order(1)
    total = torch.zeros(8, dtype=torch.float64)
    for x in windows[0].epoch(order, batch_size=8):
        t, eps = trainer.denoiser.draw(x, draws)
        losses = trainer.denoiser.losses_at(x, t, eps)[1].double()
        total += torch.stack([losses[(t * 8).long() == i].sum() for i in range(8)])
    assert levels == pytest.approx((total / 4).tolist(), rel=1e-4)
    assert report["grad_norm"] == trainer.history[1].grad_norm > 0
    assert report["windows_per_second"] > 0
    assert 0 < report["utilization"] <= 1
    assert trainer.report().keys().isdisjoint({"loss", "loss_t0"})  # nothing since


def test_waiting_for_data_is_not_utilization(windows) -> None:
    class Slow(WindowDataset):
        def epoch(self, *arguments, **more):
            for batch in super().epoch(*arguments, **more):
                time.sleep(0.05)
                yield batch

    slow = [Slow(split.store, WINDOW) for split in windows]
    fast, waits = (next(_trainer(data, epochs=1).epochs()) for data in (windows, slow))
    assert waits.utilization < 0.3
    assert waits.utilization < fast.utilization


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
    weights = {k: v for k, v in half.state_dict()[0].items() if k.startswith(("raw", "ema", "opt"))}
    assert {v.dtype for v in weights.values()} == {torch.float32}


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


def test_the_host_waits_for_the_device_at_the_end_of_an_epoch_alone(windows) -> None:
    settings = {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2, "variable_weights": (1.0, 2.0)}
    for precision in ("float32", "bfloat16"):
        trainer = _trainer(windows, epochs=2, precision=precision, **settings)
        assert trainer.steps_per_epoch == 4
        epochs = trainer.epochs()
        for expected in (2, 4):  # loss and count of batches; two losses of a validation
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
    clip = trainer_module.clip_grads_with_norm_

    def record(parameters, max_norm, norm):
        clip(parameters, max_norm, norm)
        after = torch.cat([p.grad.flatten() for p in parameters]).norm()
        norms.append((float(norm), float(after)))

    monkeypatch.setattr(trainer_module, "clip_grads_with_norm_", record)
    list(_trainer(windows, epochs=1).epochs())
    assert not norms
    (metrics,) = _trainer(windows, epochs=1, clip_norm=1e-3).epochs()
    assert len(norms) == 4
    assert metrics.grad_norm == pytest.approx(norms[-1][0])
    for before, after in norms:
        assert before > 1e-2
        assert after == pytest.approx(1e-3, rel=1e-2)


def test_variable_weights_are_used(windows) -> None:
    only_q = _trainer(windows, variable_weights=(1.0, 0.0), epochs=2)
    both = _trainer(windows, epochs=2)
    assert only_q.validate() != both.validate()
    list(only_q.epochs())
    last = only_q.denoiser.kernel.layers[-1].weight.grad
    assert last is None  # gradients are freed at the end
    loss = only_q.denoiser.loss(
        torch.randn(8, WINDOW, 2), torch.Generator().manual_seed(0), only_q.weights
    )
    loss.backward()
    rows = only_q.denoiser.kernel.layers[-1].weight.grad.abs().sum(1).reshape(WINDOW, 2)
    assert (rows[:, 0] > 0).all()
    assert (rows[:, 1] == 0).all()


def test_validation_without_weights_compares_trainings(windows) -> None:
    settings = {"epochs": 2, "learning_rate": 1e-30, "validate_every": 2}
    plain = _trainer(windows, **settings)
    weighted = _trainer(windows, **settings, variable_weights=(3.0, 1.0))
    for trainer in (plain, weighted):
        list(trainer.epochs())
    assert [m.valid_loss_unweighted for m in plain.history] == [None, None]
    first, last = weighted.history
    assert first.valid_loss_unweighted is None
    assert last.valid_loss_unweighted == plain.history[-1].valid_loss != last.valid_loss
    again = _trainer(windows, **settings, variable_weights=(3.0, 1.0))
    again.load_state_dict(*weighted.state_dict())
    assert again.history == weighted.history


def test_errors(windows, tmp_path) -> None:
    with pytest.raises(
        ConfigError, match=r"variable_weights has 3 entries, but there are 2 variables \['q', 'p'\]"
    ):
        _trainer(windows, variable_weights=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"variable_weights: got .*-1.0"):
        structure(TrainConfig, {"variable_weights": [1.0, -1.0]})
    with pytest.raises(ConfigError, match=r"ema: got 1.5"):
        structure(TrainConfig, {"ema": 1.5})
    with pytest.raises(
        ConfigError, match=r"accumulate = 5 does not divide batch_size = 64: choose a divisor"
    ):
        structure(TrainConfig, {"accumulate": 5})


class Poisoned(WindowDataset):
    """Windows of which some batches, counted over all epochs, hold a value that is not finite."""

    def poison(self, *batches, value=math.nan):
        self.count, self.batches, self.value = 0, batches, value
        return self

    def epoch(self, *arguments, **more):
        for batch in super().epoch(*arguments, **more):
            if self.count in self.batches:
                batch = batch.clone()
                batch[3, 1, 0] = self.value
            self.count += 1
            yield batch


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "optimizer": "sgd"}, {"optimizer": "adam"}])
def test_a_batch_that_is_not_finite_is_skipped_and_recorded(windows, value, more) -> None:
    poisoned = Poisoned(windows[0].store, WINDOW).poison(2, value=value)
    trainer = _trainer((poisoned, windows[1]), epochs=2, **more)
    before, skipped = None, []
    for event in trainer.events():
        weights = [p.detach().clone() for p in trainer.denoiser.parameters()]
        if isinstance(event, SkippedBatch):
            skipped.append(event)
            assert all(map(torch.equal, weights, before))
        elif before is not None and event.step != 3:
            assert not torch.equal(weights[0], before[0])
        before = weights
    (event,) = skipped
    assert (event.epoch, event.step, event.batch) == (0, 3, 2)
    assert not math.isfinite(event.loss)
    (level,) = event.levels
    assert 0 <= level <= 1
    assert event.summary["input"]["not_finite"] == (0 if value == 1e38 else 1)
    assert event.summary["loss"]["not_finite"] == 1
    loss = event.summary["loss"]
    assert 0 < loss["min"] <= loss["median"] <= loss["max"]
    assert [m.skipped for m in trainer.history] == [1, 0]
    assert all(math.isfinite(m.loss) and m.loss < 3 for m in trainer.history)
    assert trainer.is_finite()


def test_what_went_wrong_is_told_when_the_host_lags_behind(windows) -> None:
    """As on a GPU, where the host looks at a step when two more are under way."""
    events = []
    for lag in (0, 2):
        poisoned = Poisoned(windows[0].store, WINDOW).poison(1, 3)
        trainer = _trainer((poisoned, None), epochs=1)
        trainer._lag = lag
        events.append(list(trainer.events()))
    kinds = [[type(e).__name__ for e in both] for both in events]
    assert kinds[0] == ["Step", "SkippedBatch", "Step", "Step", "SkippedBatch", "EpochMetrics"]
    assert kinds[1] == ["Step", "Step", "Step", "SkippedBatch", "SkippedBatch", "EpochMetrics"]
    skipped = [[e for e in both if isinstance(e, SkippedBatch)] for both in events]
    for now, later in zip(*skipped, strict=True):
        assert (now.step, now.batch, now.levels) == (later.step, later.batch, later.levels)
        assert now.summary["input"] == later.summary["input"]
    # A state is saved with nothing left to tell.
    poisoned = Poisoned(windows[0].store, WINDOW).poison(1)
    trainer = _trainer((poisoned, None), epochs=1)
    trainer._lag = 2
    steps = trainer.events()
    assert [next(steps).step, next(steps).step] == [1, 2]
    (found,) = trainer.flush_events()
    assert found.step == 2
    assert trainer.state_dict()[1]["skipped"] == [2]
    assert not [e for e in steps if isinstance(e, SkippedBatch)]


def test_a_state_of_mid_epoch_is_resumed_on_another_device(windows) -> None:
    trainer = _trainer(windows, epochs=2)
    for event in trainer.events():
        if event.step == 3:
            break
    tensors, state = trainer.state_dict()
    tensors["random.draws"] = torch.zeros(16, dtype=torch.uint8)  # a GPU's
    other = _trainer(windows, epochs=2)
    with pytest.warns(CheckpointWarning, match="written on cuda in mid-epoch, and .* on cpu"):
        other.load_state_dict(tensors, state | {"device": "cuda"})
    assert [m.step for m in other.epochs()] == [4, 8]
    assert other.is_finite()


def test_gradients_that_are_not_finite_are_skipped_too(windows) -> None:
    trainer = _trainer(windows, epochs=1)
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * math.inf if len(calls) == 2 else gradient

    trainer.denoiser.kernel.layers[0].weight.register_hook(spoil)
    events = list(trainer.events())
    kinds = [type(e) for e in events]
    assert kinds == [Step, SkippedBatch, Step, Step, EpochMetrics]
    assert math.isfinite(events[1].loss)
    assert not math.isfinite(events[1].grad_norm)
    assert len(events[1].levels) == 8  # no window is to blame more than another
    assert trainer.is_finite()


def test_too_many_skipped_batches_end_the_training(windows) -> None:
    poisoned = Poisoned(windows[0].store, WINDOW).poison(1, 2, 5)
    trainer = _trainer((poisoned, None), guards=GuardConfig(skip_limit=2))
    with pytest.raises(
        TrainingError,
        match=r"3 of the last 6 batches .*skip_limit = 2\. Lower train\.learning_rate",
    ):
        list(trainer.events())
    assert trainer.step == 6


def test_weights_that_are_not_finite_are_noticed(windows) -> None:
    trainer = _trainer(windows, ema=0.9)
    assert trainer.is_finite()
    with torch.no_grad():
        trainer.averaged.kernel.layers[0].bias[3] = math.inf
    assert not trainer.is_finite()


def test_float16_finds_its_scale(windows) -> None:
    trainer = _trainer(windows, precision="float16", epochs=8)
    full = _trainer(windows, epochs=8)
    trainer._arithmetic._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    events = list(trainer.events())
    scales = trainer.report()["loss_scale"]
    assert not [e for e in events if isinstance(e, SkippedBatch)]  # that is no fault
    overflown = sum(m.skipped for m in trainer.history)
    assert overflown > 0
    # The scale was bounded at once, and then halved at each overflow.
    assert scales == 2.0 ** (24 - (overflown - 1)) or scales == 2.0 ** (40 - overflown)
    a, b = ([m.loss for m in t.epochs()][-1:] or [t.history[-1].loss] for t in (trainer, full))
    assert a == pytest.approx(b, rel=0.2)


def test_the_scale_of_float16_is_bounded_below(windows) -> None:
    every = Poisoned(windows[0].store, WINDOW).poison(*range(100))
    trainer = _trainer(
        (every, None), precision="float16", epochs=20, guards=GuardConfig(skip_limit=100)
    )
    events = list(trainer.events())
    assert trainer.report()["loss_scale"] == 2.0**-10
    assert len([e for e in events if isinstance(e, SkippedBatch)]) == 80


def test_a_spike_is_noticed_and_rolled_back(windows) -> None:
    guards = GuardConfig(spike=3.0, slow_down=0.25, rollbacks=1)
    trainer = _trainer(windows, epochs=100, learning_rate=1e-3, decay="constant", guards=guards)
    events = trainer.events()
    for event in events:
        assert not isinstance(event, LossSpike)
        if event.step == 200:
            break
    saved = trainer.state_dict()
    saved = ({k: v.clone() for k, v in saved[0].items()}, _through_json(saved[1]))

    def collapse():
        with torch.no_grad():
            for p in trainer.denoiser.parameters():
                p.mul_(5)
        return next(e for e in trainer.events() if isinstance(e, LossSpike))

    spike = collapse()
    assert 200 < spike.step <= 208
    assert spike.since == spike.step - 8
    assert spike.loss > 3 * spike.median
    trainer.roll_back(*saved)
    assert (trainer.step, trainer.guards.rollbacks, trainer.learning_rate) == (200, 1, 0.25e-3)
    for a, b in zip(trainer.denoiser.state_dict().values(), part_of(saved[0]), strict=True):
        assert torch.equal(a, b)
    later = [e for e in trainer.events() if e.step < 398]
    assert not [e for e in later if isinstance(e, LossSpike)]
    assert trainer.history[-1].learning_rate == 0.25e-3
    again = _trainer(windows, epochs=100, decay="constant", guards=guards)
    again.load_state_dict(*trainer.state_dict())
    assert (again.guards.slow_down, again.guards.rollbacks) == (0.25, 1)
    with pytest.raises(TrainingError, match=r"3 times .* once more after 1 roll-backs"):
        trainer.roll_back(*saved)


def part_of(tensors):
    return [v for k, v in tensors.items() if k.startswith("raw.")]


def test_no_spike_is_seen_in_usual_noise(windows) -> None:
    trainer = _trainer(windows, epochs=100, guards=GuardConfig(spike=3.0))
    assert not [e for e in trainer.events() if isinstance(e, LossSpike)]


def test_anomalies_are_named(windows) -> None:
    poisoned = Poisoned(windows[0].store, WINDOW).poison(1)
    trainer = _trainer((poisoned, None))
    with (
        pytest.raises(
            TrainingError,
            match=r"module kernel\.layers\.0 \(Linear\) gave \(8, 32\) of .*32 of 256 not finite.*"
            r"given \(8, 7\) of .*1 of 56 not finite; its weights are weight: \(32, 7\) of",
        ),
        anomaly_hunt(trainer.denoiser),
    ):
        list(trainer.events())
    assert trainer.step == 1
    trainer = _trainer(windows, epochs=1)
    activation = trainer.denoiser.kernel.layers[1]
    activation.forward = lambda x: (x - x).sqrt() + x  # finite, but its gradient is 0 / 0
    with (
        pytest.warns(UserWarning, match="Traceback of forward call"),
        pytest.raises(
            TrainingError, match=r"a gradient is not finite: Function '\w+' returned nan"
        ),
        anomaly_hunt(trainer.denoiser),
    ):
        list(trainer.events())
    list(_trainer(windows, epochs=1).events())
    assert not any(m._forward_hooks for m in trainer.denoiser.modules())


def test_optimizers(windows) -> None:
    for name, kind in (("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD")):
        trainer = _trainer(
            windows,
            optimizer=name,
            betas=(0.8, 0.99),
            weight_decay=0.02,
            learning_rate=1e-2,
            epochs=20,
        )
        (group,) = trainer.optimizer.param_groups
        assert type(trainer.optimizer).__name__ == kind
        assert (group["lr"], group["weight_decay"], group["fused"]) == (1e-2, 0.02, True)
        if name == "sgd":
            assert (group["momentum"], group["nesterov"]) == (0.8, True)
        else:
            assert group["betas"] == (0.8, 0.99)
        losses = [m.loss for m in trainer.epochs()]
        assert losses[-1] < losses[0]
